#!/usr/bin/env python3
"""Real Kafka clients against a running cluster: what ran, what passed, what was skipped and why.

    run.py --bootstrap 127.0.0.1:9092          a cluster that runs already
    run.py --trilog target/debug/trilog        a development cluster of its own, on free ports

A client that is missing is SKIPPED with the reason and never counts as passed. Exit status 1 when
a check failed, 2 when no client was there at all.
"""

import argparse
import os
import signal
import sys
import time
import traceback

import access
import admin
import consumers
import elsewhere
import groups
import jvm
import records
import transactions
from capture import Capture
from cluster import Cluster, Given
from common import Missing, end_when_told

MODULES = [records, groups, consumers, transactions, elsewhere, jvm, admin, access]
CLIENTS = [client for module in MODULES for client in module.CLIENTS]
# Of one check, or of getting a client, unless it says that it may take longer.
DEADLINE = 300


class Late(Exception):
    """A check did not end in its time."""


def checks_of(client):
    """What a class says itself; what it inherits, or begins with a dash, is no check."""
    return [name for name, one in vars(client).items() if callable(one) and name[0] != "_"]


def limited(seconds, call):
    """Calls, and gives up at a deadline, wherever the call may be waiting."""

    def late(*_):
        raise Late(f"not done within {seconds} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        return call()
    finally:
        signal.alarm(0)


def outcome(seconds, call):
    """What a call gave, and how it is to be reported unless it went well."""
    try:
        return limited(seconds, call), None
    except Missing as missing:
        return None, ("SKIPPED", str(missing))
    except Exception as error:
        traceback.print_exc()
        return None, ("FAILED", f"{type(error).__name__}: {error}")


def run(cluster, only, capture=None):
    for make in CLIENTS:
        names = [name for name in checks_of(make) if only in f"{make.name} {name}"]
        if not names:
            continue
        if capture:
            capture.client = make.fixture
        deadline = getattr(make, "deadline", DEADLINE)
        client, verdict = outcome(deadline, lambda: make(cluster))
        if verdict:
            yield (make.name, "*", *verdict)
            continue
        for name in names:
            began = time.time()
            print(f"{make.name}: {name}", file=sys.stderr, flush=True)
            _, verdict = outcome(deadline, getattr(client, name))
            yield (make.name, name, *(verdict or ("passed", f"{time.time() - began:.1f} s")))


def report(rows):
    widths = [max([0, *(len(row[column]) for row in rows)]) for column in range(3)]
    for *cells, why in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths))
        print(f"{line}  {' '.join(why.split())[:160]}")
    count = lambda kind: sum(row[2] == kind for row in rows)
    passed, failed, skipped = count("passed"), count("FAILED"), count("SKIPPED")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0 if passed else 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bootstrap")
    parser.add_argument("--trilog", default="target/debug/trilog")
    parser.add_argument("--only", default="", help="checks whose client and name hold this text")
    parser.add_argument("--capture", metavar="DIR", help="keep what was sent as fixtures, as root")
    args = parser.parse_args()
    end_when_told()
    cluster = Given(args.bootstrap) if args.bootstrap else Cluster(args.trilog)
    rows = []
    try:
        capture = cluster.capture = args.capture and Capture(cluster.ports)
        # One by one: what was found is told even when somebody ends it early.
        for row in run(cluster, args.only, capture):
            rows.append(row)
        if capture:
            print("captured:", *capture.stop(args.capture))
    finally:
        access.Secured.stop()
        cluster.stop()
        status = report(rows)
    return status


if __name__ == "__main__":
    # With an exception it ends as usual.
    status = main()
    sys.stdout.flush()
    # A consumer that a failed check left open would keep the process waiting.
    os._exit(status)
