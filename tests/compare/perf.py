#!/usr/bin/env python3
"""How near stock clients come to the native one, in the same run on the same machine.

    perf.py --trilog target/release/trilog --rounds 5 [--into FILE]

A round measures, one after the other and each alone: Kafka's own performance tools, kcat and
confluent-kafka on Trilog, `trilog bench` (the native client), and the same clients on three Apache
Kafka brokers, which are the lower bound where a client itself is slower than the native one.
Records of 1 KiB, eight partitions, three replicas, all acknowledged by all. A round takes about
six minutes and 8 GB of disk. With --into, rounds are added to those of a file, and the medians are
of all of them, so that each can run when it suits.

The tool shares its processors with the nodes, so what each used of them is shown, too.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import loads
import peers
from generator import Generator, build
from processes import Used, cpu_seconds
from shared import Missing, end_when_told, free_ports, wait_until
from stock import Confluent, Kcat, ShortRests
from tools import Tools

PARTITIONS = 8
RECORD = 1024
RECORDS = 1_000_000
# In which the JVM compiles itself.
WARM = 200_000
PATIENCE = 180
# What a quick `trilog bench produce` writes in all, its warming up included.
NATIVE_GIGABYTES = 9 * 2**30 / 10 / 1e9
TARGET = 85
NODES = 3


class Nodes(peers.OURS):
    # So that what is consumed is in memory.
    settings = {**peers.OURS.settings, "storage.cache_size": "1GiB"}

    def __init__(self):
        super().__init__("load")


class Java:
    """Kafka's own tools."""

    name = "java"
    records = {"produce": RECORDS, "consume": RECORDS}

    def __init__(self):
        self._tools = Tools(peers.kafka.jars())

    def produce(self, bootstrap, topic):
        return self._tools.produce(bootstrap, topic, RECORDS - WARM, RECORD, WARM)["rate"]

    def consume(self, bootstrap, topic):
        return self._tools.consume(bootstrap, topic, RECORDS)


def measured(servers, client, mode):
    """Megabytes a second, and seconds of processor for a gigabyte: of the client, of the servers."""
    loads.settled()
    used = Used(servers.pids().values())
    speed = getattr(client, mode)(servers.bootstrap, f"perf-{client.name}") * RECORD / 1e6
    used.stop()
    gigabytes = client.records[mode] * RECORD / 1e9
    return {"speed": speed, "tool": used.clients / gigabytes, "servers": used.servers / gigabytes}


def all_on(servers, clients, generator):
    """What each of the clients reaches on these servers."""
    found = {}
    try:
        for client in clients:
            topic = f"perf-{client.name}"
            made = lambda: attempt(lambda: generator.create(servers, topic, PARTITIONS))
            wait_until("a topic is made", made, 90)
            found[f"{client.name} on {servers.name}"] = {
                mode: measured(servers, client, mode) for mode in ("produce", "consume")
            }
            # The disk, and what is kept in memory, is for one client's records.
            generator.delete(servers, topic)
    finally:
        servers.stop()
    return found


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
                used = cpu_seconds([process.pid])
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
            loads.settled()
            said, used = watched(command)
            figures = json.loads(said)["figures"]
            found[mode] = {"speed": next(one["value"] for one in figures if one["unit"] == "MB/s")}
            # The client is in one process with the measuring.
            for each in (one["value"] for one in figures if one["unit"] == "s/GB"):
                found[mode] |= {"servers": each * NODES, "tool": used / NATIVE_GIGABYTES}
    return found


def a_round(trilog, clients, generator):
    return {
        **all_on(Nodes(), clients, generator),
        "native": native(trilog),
        **all_on(peers.kafka.Kafka("load"), clients, generator),
    }


def available(kinds):
    """Those clients that this machine has; the others are named."""
    found = []
    for kind in kinds:
        try:
            found.append(kind())
        except Missing as missing:
            print(f"SKIPPED: {missing}")
    return found


def spread(values):
    return f"{statistics.median(values):7.2f}  [{min(values):.2f} to {max(values):.2f}]"


def shares(rounds, mode, name):
    """What a client reaches on Trilog, in per cent of what bounds it: for each bound, by round."""
    found = {"native": [], "kafka": [], "the lower of both": []}
    for one in rounds:
        speed = lambda who: one[who][mode]["speed"]
        native, theirs = speed("native"), speed(f"{name} on kafka")
        for what, bound in zip(found, (native, theirs, min(native, theirs))):
            found[what].append(100 * speed(f"{name} on trilog") / bound)
    return found


def report(rounds):
    print(f"{len(rounds)} rounds; median [least to most]")
    for mode in ("produce", "consume"):
        each = lambda who, what: [one[who][mode][what] for one in rounds if what in one[who][mode]]
        for who in rounds[0]:
            print(f"{mode}, {who}:  MB/s {spread(each(who, 'speed'))}")
            for what in ("tool", "servers"):
                if values := each(who, what):
                    print(f"    processor of the {what}, s/GB {spread(values)}")
        for name in [who.removesuffix(" on trilog") for who in rounds[0] if who.endswith(" on trilog")]:
            print(f"{mode}, {name}:")
            found = shares(rounds, mode, name)
            for what, percent in found.items():
                print(f"    on trilog, % of {what} {spread(percent)}")
            reached = statistics.median(found["the lower of both"])
            print(f"    [>= {TARGET} %: {'met' if reached >= TARGET else 'MISSED'}]")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trilog", default="target/release/trilog")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--into", type=pathlib.Path)
    parser.add_argument("--only", nargs="+", metavar="CLIENT", help="these clients, beside the native one")
    args = parser.parse_args()
    end_when_told()
    Nodes.program = str(pathlib.Path(args.trilog).resolve())
    try:
        peers.kafka.Kafka.prepare()
        generator = Generator(build())
    except Missing as missing:
        print(f"SKIPPED: stock clients beside the native one: {missing}")
        return
    clients = available([Java, *(lambda kind=kind: kind(RECORD) for kind in (Kcat, Confluent, ShortRests))])
    if args.only:
        clients = [one for one in clients if one.name in args.only]
        assert clients, f"none of {', '.join(args.only)} can be run"
    known = args.into and args.into.exists() and args.into.read_text().splitlines()
    rounds = [json.loads(line) for line in known or []]
    for _ in range(args.rounds):
        rounds.append(a_round(Nodes.program, clients, generator))
        if args.into:
            args.into.write_text("".join(json.dumps(one) + "\n" for one in rounds))
    report(rounds)


if __name__ == "__main__":
    main()
