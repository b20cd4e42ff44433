#!/usr/bin/env python3
"""Trilog beside what people run today: one table, one JSON file, one page of charts.

    compare.py --trilog target/release/trilog --rounds 5 [--quick] [--into FILE] [--report DIR]

A round has each side in turn, never two at once, on the same disk and cores, with the same clients;
every second round goes the other way about. With --into what is measured is added to a file line by
line, so that a run can be done in parts (--stages, --loads, --sides), and the report is of all.
--report-only measures nothing.
"""

import argparse
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

import generator
import loads
import machine
import peers
import report
from figures import short
from processes import Others
from shared import ROOT, Missing, end_when_told, free_ports, tell, wait_until
from tools import Tools

# Besides the records themselves: logs that are filled with zeros in advance, and room to spare.
SPARE = 6 * 10**9
START_SECONDS = 120
# Of a whole run; what is not done by then is left out, and said so.
HOURS = 6


class Runner:
    def __init__(self, args, clients):
        self.args, self.clients = args, clients
        self.measured = read(args.into)
        self.skipped = []
        self.until = time.time() + args.hours * 3600

    def half(self):
        """Half of what the first of the others took, fixed once it is known."""
        for one in self.measured:
            if one["load"] == "produce-1k-10" and one["side"] == "kafka":
                return one["figures"]["records/s"] / 2
        return loads.Ground.half

    def keep(self, one):
        self.measured.append(one)
        if self.args.into:
            with self.args.into.open("a") as file:
                file.write(json.dumps(one) + "\n")

    def stage(self, turn, side, stage):
        """Starts a side, and has it do what the stage consists of."""
        todo = [
            load for load in loads.LOADS
            if load.stage == stage and load.dialect == side.dialect
            and (not load.only or side.name in load.only) and self.wanted(load)
        ]
        if not [load for load in todo if load.name != "warm-up"]:
            return
        room(todo, self.args.scale)
        try:
            peer = side(stage)
        except AssertionError as why:
            return self.skip_all(todo, side, f"does not start: {why}")
        ground = loads.Ground(peer, *self.clients, scale=self.args.scale, half=self.half())
        try:
            wait_until(f"{side.title} serves", lambda: serves(ground), START_SECONDS)
            for load in todo:
                if time.time() > self.until:
                    self.skip(load, side, "the time of the run was over")
                    continue
                ground.half = self.half()
                self.load(turn, side, load, ground)
        except (AssertionError, Missing) as why:
            self.skip_all(todo, side, str(why))
        finally:
            peer.stop()

    def skip_all(self, todo, side, why):
        for load in todo:
            self.skip(load, side, why)

    def wanted(self, load):
        return load.name == "warm-up" or re.search(self.args.loads, load.name)

    def load(self, turn, side, load, ground):
        loads.settled()
        began, others = time.time(), Others(ground.peer.pids().values())
        try:
            told = load.run(ground)
        except Missing as why:
            return self.skip(load, side, str(why))
        except (AssertionError, subprocess.TimeoutExpired) as error:
            # The rest may well work.
            return self.skip(load, side, f"failed: {str(error)[-300:]}")
        finally:
            ground.clear()
        if told["figures"]:
            self.keep({
                "round": turn, "side": side.name, "load": load.name, "scale": self.args.scale,
                "others": others.share(), **told,
            })
        took = time.time() - began
        print(f"{turn} {side.name:12} {load.title}: {brief(told['figures'])} ({took:.0f} s)", flush=True)

    def skip(self, load, side, why):
        self.skipped.append(f"{side.name}, {load.title}: {why}")
        print(f"SKIPPED {self.skipped[-1]}", flush=True)

    def round(self, turn, sides):
        for stage in self.args.stages:
            for side in sides if turn % 2 else reversed(sides):
                self.stage(turn, side, stage)

    def bare(self):
        """What the machine does without any of this, and the native client beside it."""
        found, others = {}, Others([])
        for figure in ("produce", "single", "tail"):
            with tempfile.TemporaryDirectory(prefix="trilog-compare-") as folder:
                command = [peers.OURS.program, "bench", figure, "--quick", "--json", "--dir", folder]
                try:
                    said = tell([*command, "--io", "auto", "--base-port", str(free_ports(30))])
                except (AssertionError, subprocess.TimeoutExpired) as error:
                    self.skipped.append(f"trilog bench {figure}: {str(error)[-200:]}")
                    continue
            for one in json.loads(said)["figures"]:
                if one["baseline"]:
                    found[one["baseline"]["what"]] = one["baseline"]["value"]
                    found[one["name"]] = one["value"]
        self.keep({
            "round": 0, "side": "machine", "load": "bare", "others": others.share(), "figures": found,
        })


class Absent:
    """Clients that this machine cannot have: asked for anything, they say so."""

    def __init__(self, why):
        self._why = why

    def __getattr__(self, _):
        raise Missing(self._why)


def client(make):
    try:
        return make()
    except Missing as why:
        return Absent(str(why))


def read(path):
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def serves(ground):
    """Whether a topic can be made; one that starts cannot yet."""
    try:
        ground.drop(ground.topic(f"first-{time.time_ns()}", 1))
        return True
    except AssertionError:
        return False


def room(todo, scale):
    """Refuses to fill a disk."""
    sizes = [load.size * scale for load in todo]
    need = loads.REPLICAS * 2 * max([0, *sizes]) + SPARE
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < need:
        raise SystemExit(f"{need / 1e9:.0f} GB of free disk are needed, there are {free / 1e9:.0f}")


def brief(found):
    return ", ".join(f"{name} {short(value)}" for name, value in found.items()) or "done"


def available(wanted):
    """The sides that can run here, and what is missing for the others."""
    found, missing = [], []
    for side in [*peers.OTHERS, peers.OURS]:
        if side.name in wanted:
            try:
                side.prepare()
                found.append(side)
            except Missing as why:
                missing.append(f"{side.title}: {why}")
    return found, missing


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [side.name for side in [*peers.OTHERS, peers.OURS]]
    parser.add_argument("--trilog", default="target/release/trilog")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first", type=int, default=1, help="number of the first round")
    parser.add_argument("--scale", type=float, default=1, help="how much of everything")
    parser.add_argument("--quick", dest="scale", action="store_const", const=0.5, help="half of it")
    parser.add_argument("--sides", nargs="*", default=names, choices=names)
    parser.add_argument("--stages", nargs="*", default=loads.STAGES, choices=loads.STAGES)
    parser.add_argument("--loads", default="", help="only those whose name has this pattern")
    parser.add_argument("--into", type=pathlib.Path, help="add to what this file has already")
    parser.add_argument("--report", type=pathlib.Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument("--commit", default=machine.commit(ROOT), help="of the build measured")
    parser.add_argument("--hours", type=float, default=HOURS)
    return parser.parse_args()


def main():
    args = arguments()
    end_when_told()
    peers.OURS.program = str(pathlib.Path(args.trilog).resolve())
    sides, missing = available(args.sides)
    for one in missing:
        print(f"SKIPPED {one}", flush=True)
    clients = None
    if not args.report_only:
        make = [lambda: Tools(peers.kafka.jars()), lambda: generator.Generator(generator.build())]
        clients = [client(one) for one in make]
    runner = Runner(args, clients)
    runner.skipped += missing
    try:
        if not args.report_only:
            runner.bare()
            for turn in range(args.first, args.first + args.rounds):
                runner.round(turn, sides)
    finally:
        print(report.write(args.report, runner.measured, runner.skipped, sides, args.commit))


if __name__ == "__main__":
    main()
