"""What each side has to do: a table of loads, each of which gives figures by name.

A load belongs to a stage, for which a side is started anew, and runs in the order of the table. It
gives {"figures": {name: number}}, and "quantiles": {name: [[quantile, milliseconds], ...]} where
there is a distribution to draw. Sizes are those of a full run; others have a fraction.
"""

import contextlib
import os
import pathlib
import time
from dataclasses import dataclass, field

from processes import Used, cpu_seconds, memory_mib

KIB = 1024
REPLICAS = 3
# One topic of records of 1 KiB stays for those who read it later.
KEPT, KEPT_RECORDS = "kept", 600_000
# Records a second at which nobody is under pressure.
CALM = 1000
# Both sides look every ten seconds for what is past its time.
RETAINED_SECONDS = 30


@dataclass
class Ground:
    """What a load works with: a side that runs, and the clients."""

    peer: object
    tools: object
    generator: object
    # How much of a full run's sizes.
    scale: float = 1
    # Records of 1 KiB a second, half of what the first of the others could take.
    half: float = 5000
    written: int = 0
    topics: list = field(default_factory=list)

    def scaled(self, full):
        return max(1, int(full * self.scale))

    def topic(self, name, partitions, **config):
        """Makes it; it goes when the stage ends at the latest."""
        self.generator.create(self.peer, name, partitions, **config)
        self.topics.append(name)
        return name

    def drop(self, name):
        self.generator.delete(self.peer, name)
        self.topics.remove(name)

    def clear(self):
        """What a load that failed left behind; of one that is dead nothing can be removed."""
        for name in [name for name in self.topics if name != KEPT]:
            with contextlib.suppress(AssertionError):
                self.drop(name)

    def used(self):
        return Used(self.peer.pids().values())

    def memory(self):
        return memory_mib(self.peer.pids().values())


def settled():
    """What earlier loads left for the disk to do is not the next one's."""
    os.sync()
    time.sleep(1)


def forget(folder):
    """Asks the kernel to keep nothing of these files in memory, so that reading them is cold."""
    os.sync()
    for path in pathlib.Path(folder).rglob("*"):
        if path.is_file():
            try:
                file = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)


def per_gigabyte(used, size):
    return {"servers s/GB": used.servers / size * 1e9, "client s/GB": used.clients / size * 1e9}


def at_rest(ground):
    """Three processes that have nothing to do."""
    time.sleep(ground.scaled(10))
    return {"figures": {"memory MiB": ground.memory()}}


def idle(ground):
    """A thousand partitions that nobody uses."""
    name = ground.topic("idle", 1000)
    time.sleep(ground.scaled(30))
    pids, watched = ground.peer.pids().values(), ground.scaled(20)
    before = cpu_seconds(pids)
    time.sleep(watched)
    share = (cpu_seconds(pids) - before) / watched * 100
    figures = {"cpu %": share, "memory MiB": ground.memory()}
    ground.drop(name)
    return {"figures": figures}


def warm_up(ground):
    """Code is compiled, files are there: as much as the write-ahead logs of a Trilog node hold."""
    name = ground.topic("warm", 10)
    count = int(1_050_000 * min(1, 2 * ground.scale))
    ground.tools.produce(ground.peer.bootstrap, name, count, KIB, 1)
    ground.drop(name)
    return {"figures": {}}


def produce(size, partitions, records, keep=False):
    def run(ground):
        name = ground.topic(KEPT if keep else "produce", partitions)
        count, warm = ground.scaled(records), ground.scaled(records) // 6
        used = ground.used()
        told = ground.tools.produce(ground.peer.bootstrap, name, count, size, warm)
        used.stop()
        if not keep:
            ground.drop(name)
        figures = {
            "MB/s": told["rate"] * size / 1e6,
            "records/s": told["rate"],
            "ack p50 ms": told["p50"],
            "ack p99 ms": told["p99"],
            "memory MiB": ground.memory(),
            # Warming up is work, too.
            **per_gigabyte(used, (count + warm) * size),
        }
        return {"figures": figures}

    return run


def kept_records(ground):
    count = ground.scaled(KEPT_RECORDS)
    return count + count // 6


def consume(ground):
    count = kept_records(ground)
    used = ground.used()
    speed = ground.tools.consume(ground.peer.bootstrap, KEPT, count)
    used.stop()
    return {"figures": {"MB/s": speed * KIB / 1e6, **per_gigabyte(used, count * KIB)}}


def replay(ground):
    forget(ground.peer.folder)
    return consume(ground)


def replay_while_producing(ground):
    """Records come at a steady pace while another client reads what is old."""
    name = ground.topic("beside", 10)
    forget(ground.peer.folder)
    seconds = ground.scaled(10)
    pacing = {"rate": ground.half / 2, "size": KIB, "warm": 1, "seconds": seconds}
    with ground.generator.beside("pace", ground.peer, name, **pacing) as told:
        speed = ground.tools.consume(ground.peer.bootstrap, KEPT, kept_records(ground))
        told = told()
    ground.drop(name)
    figures = {"MB/s": speed * KIB / 1e6, "p99 ms": at(told["delivered"], 0.99)}
    return {"figures": figures, "quantiles": {"delivered": told["delivered"]}}


def small(producers):
    def run(ground):
        name = ground.topic("small", 100)
        seconds = ground.scaled(12)
        used = ground.used()
        told = ground.generator.load(
            "flood", ground.peer, name, producers=producers, window=100, size=100, keys=100_000,
            warm=3, seconds=seconds,
        )
        used.stop()
        ground.drop(name)
        figures = {
            "records/s": told["records_per_second"],
            "ack p99 ms": at(told["acknowledged"], 0.99),
            # Of a gigabyte of values.
            **per_gigabyte(used, told["sent"] * 100),
        }
        return {"figures": figures, "quantiles": {"acknowledged": told["acknowledged"]}}

    return run


def lone(ground):
    """One record at a time, by the tool that is made for it."""
    name = ground.topic("lone", 1)
    told = ground.tools.end_to_end(ground.peer.bootstrap, name, ground.scaled(4000), 100)
    ground.drop(name)
    return {"figures": {"average ms": told["average"], "p50 ms": told["p50"], "p99 ms": told["p99"]}}


def pace(of_half, calm=False):
    def run(ground):
        rate = CALM if calm else ground.half * of_half
        name = ground.topic("pace", 10)
        used = ground.used()
        told = ground.generator.load(
            "pace", ground.peer, name, rate=rate, size=KIB, warm=3, seconds=ground.scaled(16)
        )
        used.stop()
        ground.drop(name)
        delivered = told["delivered"]
        figures = {
            "rate records/s": rate,
            "p50 ms": at(delivered, 0.5),
            "p99 ms": at(delivered, 0.99),
            "p99.9 ms": at(delivered, 0.999),
            "ack p99 ms": at(told["acknowledged"], 0.99),
            "generator late p99 ms": at(told["late"], 0.99),
            **per_gigabyte(used, told["sent"] * KIB),
        }
        quantiles = {which: told[which] for which in ("acknowledged", "delivered")}
        return {"figures": figures, "quantiles": quantiles}

    return run


def retention(ground):
    """Old segments go while new ones come, for so long that they do, whatever the scale."""
    config = {"segment.bytes": 8 << 20, "retention.bytes": 16 << 20}
    name = ground.topic("retained", 3, **config)
    told = ground.generator.load(
        "pace", ground.peer, name, rate=ground.half, size=KIB, warm=3, seconds=RETAINED_SECONDS
    )
    started = ground.generator.run("starts", ground.peer.bootstrap, name)["starts"]
    assert all(start > 0 for start in started), f"not everywhere was something retired: {started}"
    ground.drop(name)
    delivered = told["delivered"]
    figures = {
        "rate records/s": ground.half,
        "retired records": sum(started),
        "p99 ms": at(delivered, 0.99),
        "p99.9 ms": at(delivered, 0.999),
    }
    return {"figures": figures, "quantiles": {"delivered": delivered}}


def outage(ground):
    """The leader of a partition is killed while somebody writes; several times."""
    name = ground.topic("outage", 1)
    took, failed = [], 0
    for _ in range(3 if ground.scale >= 1 else 1):
        leader = ground.generator.run("leader", ground.peer.bootstrap, name)["leader"]
        pid = ground.peer.pids()[leader]
        told = ground.generator.load("outage", ground.peer, name, pid=pid, warm=2)
        took.append(told["milliseconds"])
        failed += told["failed"]
        ground.peer.restart(leader)
    figures = {"ms": sorted(took)[len(took) // 2], "longest ms": max(took), "failed records": failed}
    return {"figures": figures}


def at(quantiles, wanted):
    """Milliseconds at a quantile of those that the generator shows."""
    return next(value for quantile, value in quantiles if quantile == wanted)


@dataclass(frozen=True)
class Load:
    name: str
    title: str
    stage: str
    run: object
    # Bytes of records that it has written at most, for the disk to be large enough.
    size: int = 0
    # Those sides for which it says something; all unless named.
    only: tuple = ()
    dialect: str = "kafka"


STAGES = ["rest", "load", "faults"]
GB = 1_000_000_000
DEFAULTS = ("kafka", "trilog")
LOADS = [
    Load("rest", "three nodes at rest", "rest", at_rest, only=DEFAULTS),
    Load("idle", "1,000 idle partitions", "rest", idle, only=DEFAULTS),
    Load("warm-up", "warming up", "load", warm_up, 1_100 * 10**6),
    Load("produce-1k-10", "produce, 1 KiB, 10 partitions", "load",
         produce(KIB, 10, KEPT_RECORDS, keep=True), 700 * 10**6),
    Load("tail", "consume what was just written", "load", consume, only=DEFAULTS),
    Load("produce-1k-1", "produce, 1 KiB, 1 partition", "load", produce(KIB, 1, 600_000), 700 * 10**6),
    Load("produce-1k-100", "produce, 1 KiB, 100 partitions", "load",
         produce(KIB, 100, 600_000), 700 * 10**6),
    Load("produce-100-1", "produce, 100 B, 1 partition", "load",
         produce(100, 1, 4_000_000), 500 * 10**6, DEFAULTS),
    Load("produce-100-10", "produce, 100 B, 10 partitions", "load",
         produce(100, 10, 4_000_000), 500 * 10**6, DEFAULTS),
    Load("produce-100-100", "produce, 100 B, 100 partitions", "load",
         produce(100, 100, 4_000_000), 500 * 10**6, DEFAULTS),
    Load("small-1", "small keyed batches, 1 producer", "load", small(1), 100 * 10**6),
    Load("small-50", "small keyed batches, 50 producers", "load", small(50), 300 * 10**6),
    Load("lone", "one record at a time", "load", lone, 10**6),
    Load("pace-calm", f"{CALM:,} records/s, 1 KiB", "load", pace(0, calm=True), 50 * 10**6, DEFAULTS),
    Load("pace-quarter", "a quarter of Kafka's maximum, 1 KiB", "load",
         pace(0.5), 500 * 10**6, DEFAULTS),
    Load("pace-half", "half of Kafka's maximum, 1 KiB", "load", pace(1), GB, DEFAULTS),
    Load("cold", "replay from disk", "load", replay, only=DEFAULTS),
    Load("beside", "replay from disk while producing", "load",
         replay_while_producing, 500 * 10**6, DEFAULTS),
    Load("retention", "half of Kafka's maximum while retention removes, 1 KiB", "faults",
         retention, GB, DEFAULTS),
    Load("outage", "leader killed, to the first acknowledged write", "faults", outage, 10**6, DEFAULTS),
]


def titles():
    return {load.name: load.title for load in LOADS}
