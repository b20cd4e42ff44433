#!/usr/bin/env python3
"""How near Kafka's own tools come to the native client, in the same run on the same machine.

    perf.py --trilog target/release/trilog --rounds 5 [--into FILE]

A round measures, one after the other and each alone: the Java tools on Trilog, `trilog bench` (the
native client), and the Java tools on three Apache Kafka brokers, which are the lower bound where
the tools themselves are slower than the native client. Records of 1 KiB, eight partitions, three
replicas, all acknowledged by all. A round takes about two minutes. With --into, rounds are added
to those of a file, and the medians are of all of them, so that each can run when it suits.

The tool shares its processors with the nodes, so what each used of them is shown, too.
"""

import argparse
import base64
import contextlib
import datetime
import json
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid

from cluster import Cluster, free_ports
from common import end_when_told, wait_until
from elsewhere import HERE, PATIENCE, cache, fetch, tell

TOPIC = "perf"
PARTITIONS = 8
RECORD = 1024
RECORDS = 1_000_000
# As large as a server has them, and as `trilog bench` does.
SETTINGS = ["storage.wal_file_size=64MiB", "storage.wal_files=16", "storage.cache_size=1GiB"]
# What a quick `trilog bench produce` writes in all, its warming up included.
NATIVE_GIGABYTES = 9 * 2**30 / 10 / 1e9
TARGET = 85
BROKERS = 3
TICKS = os.sysconf("SC_CLK_TCK")


class Tools:
    """The Java tools, from a folder of jars."""

    def __init__(self, jars):
        self._java = ["java", "-Xms512m", "-Xmx512m", "-cp", f"{jars}/*"]

    def run(self, tool, *args):
        return tell([*self._java, f"org.apache.kafka.tools.{tool}", *args])

    def create(self, bootstrap):
        where = ["--bootstrap-server", bootstrap, "--create", "--topic", TOPIC]
        self.run("TopicCommand", *where, "--partitions", str(PARTITIONS), "--replication-factor", "3")

    def produce(self, bootstrap):
        """Records a second, without the first seconds in which the JVM compiles itself."""
        settings = [f"bootstrap.servers={bootstrap}", "acks=all", "batch.size=65536", "linger.ms=5"]
        said = self.run(
            "ProducerPerformance", "--topic", TOPIC, "--num-records", str(RECORDS),
            "--record-size", str(RECORD), "--throughput", "-1", "--producer-props", *settings,
        )
        rows = re.findall(r"([\d.]+) records sent, ([\d.]+) records/sec", said)
        (first, speed), (all, average) = ([float(part) for part in row] for row in (rows[0], rows[-1]))
        assert all == RECORDS, said
        return (all - first) / (all / average - first / speed) if len(rows) > 2 else average

    def consume(self, bootstrap):
        """As many, from when the first have come."""
        said = self.run(
            "ConsumerPerformance", "--bootstrap-server", bootstrap, "--topic", TOPIC,
            "--messages", str(RECORDS), "--show-detailed-stats", "--reporting-interval", "100",
        )
        rows = [line.split(", ") for line in said.split("\n") if re.match(r"\d{4}-", line)]
        when = lambda row: datetime.datetime.strptime(row[0] + "000", "%Y-%m-%d %H:%M:%S:%f")
        counted = [(when(row).timestamp(), int(row[4])) for row in rows if int(row[4]) > 0]
        (began, first), (ended, last) = counted[1], counted[-1]
        return (last - first) / (ended - began)


class Kafka:
    """Three brokers of Apache Kafka, as they come, that are controllers, too."""

    def __init__(self, jars):
        self._java = ["java", "-Xms512m", "-Xmx512m", "-cp", f"{jars}/*"]
        self._kept = tempfile.TemporaryDirectory(prefix="trilog-perf-")
        self._dir = pathlib.Path(self._kept.name)
        first = free_ports(2 * BROKERS)
        ports = range(first, first + BROKERS)
        self.bootstrap = ",".join(f"127.0.0.1:{port}" for port in ports)
        voters = ",".join(f"{n}@127.0.0.1:{port + BROKERS}" for n, port in enumerate(ports))
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().strip("=")
        self._processes = []
        for n, port in enumerate(ports):
            self._start(n, port, voters, cluster)

    def _start(self, n, port, voters, cluster):
        listeners = f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{port + BROKERS}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": n,
            "controller.quorum.voters": voters,
            "controller.listener.names": "CONTROLLER",
            "listeners": listeners,
            "log.dirs": self._dir / str(n),
            "offsets.topic.replication.factor": 3,
            "group.initial.rebalance.delay.ms": 0,
            "min.insync.replicas": 2,
        }
        file = self._dir / f"{n}.properties"
        file.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        tell([*self._java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(file)])
        with (self._dir / f"{n}.log").open("wb") as log:
            start = [*self._java, "kafka.Kafka", str(file)]
            self._processes.append(subprocess.Popen(start, stdout=log, stderr=log))

    def pids(self):
        return [process.pid for process in self._processes]

    def stop(self):
        for process in self._processes:
            process.kill()
            process.wait()
        self._kept.cleanup()


class Nodes(Cluster):
    def pids(self):
        told = [self.trilog, "dev", "--data", self.data, "status", "--output", "json"]
        status = subprocess.run(told, check=True, capture_output=True, timeout=60)
        return [node["pid"] for node in json.loads(status.stdout)["nodes"]]


def of_processes(pids):
    """Seconds of processor time that these have used."""
    total = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(servers, work):
    """Megabytes a second, and seconds of processor for a gigabyte: of the tool, of the servers."""
    pids = servers.pids()
    before = of_processes(pids), of_children()
    speed = work(servers.bootstrap) * RECORD / 1e6
    after = of_processes(pids), of_children()
    gigabytes = RECORDS * RECORD / 1e9
    theirs, its = ((now - then) / gigabytes for now, then in zip(after, before))
    return {"speed": speed, "tool": its, "servers": theirs}


def java_on(servers, tools):
    try:
        wait_until("a topic is made", lambda: attempt(lambda: tools.create(servers.bootstrap)), 90)
        return {
            "produce": measured(servers, tools.produce),
            "consume": measured(servers, tools.consume),
        }
    finally:
        servers.stop()


def attempt(call):
    """Whether it could be done; a broker that starts cannot yet."""
    try:
        call()
        return True
    except AssertionError:
        return False


def watched(command):
    """What a program said, and the processor time of itself, without that of its children."""
    used = 0
    with tempfile.TemporaryFile("w+") as out, subprocess.Popen(command, stdout=out) as process:
        deadline = time.time() + PATIENCE
        while process.poll() is None:
            with contextlib.suppress(OSError, IndexError):
                used = of_processes([process.pid])
            if time.time() > deadline:
                process.kill()
            time.sleep(0.05)
        assert process.returncode == 0, f"{command}: {process.returncode}"
        out.seek(0)
        return out.read(), used


def native(trilog):
    """What `trilog bench` says of the same."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="trilog-perf-") as folder:
        for mode, args in {"produce": ["produce", "--quick"], "consume": ["tail"]}.items():
            command = [trilog, "bench", *args, "--json", "--dir", folder, "--io", "auto"]
            command += ["--base-port", str(free_ports(30))]
            said, used = watched(command)
            figures = json.loads(said)["figures"]
            found[mode] = {"speed": next(one["value"] for one in figures if one["unit"] == "MB/s")}
            # The client is in one process with the measuring.
            for each in (one["value"] for one in figures if one["unit"] == "s/GB"):
                found[mode] |= {"servers": each * BROKERS, "tool": used / NATIVE_GIGABYTES}
    return found


def a_round(trilog, tools, broker):
    return {
        "java on trilog": java_on(Nodes(trilog, SETTINGS), tools),
        "native": native(trilog),
        "java on kafka": java_on(Kafka(broker), tools),
    }


def spread(values):
    return f"{statistics.median(values):7.2f}  [{min(values):.2f} to {max(values):.2f}]"


def report(rounds):
    print(f"{len(rounds)} rounds; median [least to most]")
    for mode in ("produce", "consume"):
        each = lambda who, what: [one[who][mode][what] for one in rounds if what in one[who][mode]]
        for who in rounds[0]:
            print(f"{mode}, {who}:  MB/s {spread(each(who, 'speed'))}")
            for what in ("tool", "servers"):
                if values := each(who, what):
                    print(f"    processor of the {what}, s/GB {spread(values)}")
        java, client, kafka = (each(who, "speed") for who in ("java on trilog", "native", "java on kafka"))
        bound = [min(pair) for pair in zip(client, kafka)]
        for name, of in [("native", client), ("kafka", kafka), ("the lower of both", bound)]:
            print(f"    java on trilog, % of {name} {spread([100 * a / b for a, b in zip(java, of)])}")
        reached = statistics.median([100 * a / b for a, b in zip(java, bound)])
        print(f"    [>= {TARGET} %: {'met' if reached >= TARGET else 'MISSED'}]")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trilog", default="target/release/trilog")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--into", type=pathlib.Path)
    args = parser.parse_args()
    end_when_told()
    jars = {}
    for kind in ("jvm", "broker"):
        jars[kind] = cache(kind)
        copy = ["dependency:copy-dependencies", f"-DoutputDirectory={jars[kind]}"]
        fetch(["mvn", "-q", "-B", "-f", str(HERE / kind / "pom.xml"), *copy])
    tools = Tools(jars["jvm"])
    known = args.into and args.into.exists() and args.into.read_text().splitlines()
    rounds = [json.loads(line) for line in known or []]
    for _ in range(args.rounds):
        rounds.append(a_round(args.trilog, tools, jars["broker"]))
        if args.into:
            args.into.write_text("".join(json.dumps(one) + "\n" for one in rounds))
    report(rounds)


if __name__ == "__main__":
    main()
