#!/usr/bin/env python3
"""How long 1,000 partitions and 100 consumers in 20 groups take to get over a member's death.

    rebalance.py --trilog target/release/trilog

Three nodes, ten groups of each protocol. In one group of each a member is killed with `kill -9`.
Shown is how long it takes until the others hold its partitions; for the session time-out the
coordinator cannot know, so the target is on what comes after it. And whether members who were not
affected stopped: how long nothing came from partitions that they hold, to which somebody writes all
the time, how many they gave up, and whether anything changed in the other groups.
"""

import argparse
import os
import subprocess
import sys
import threading
import time

import confluent_kafka.admin as admin_of
from confluent_kafka import Consumer, Producer

from cluster import Cluster
from common import end_when_told, topic, wait_until

GROUPS, MEMBERS, PARTITIONS = 20, 5, 50
PROTOCOLS = ["classic", "consumer"]
SESSION_SECONDS, HEARTBEAT_SECONDS = 6, 2
# In groups of the newer protocol the coordinator says how long a session is.
SETTINGS = [
    f"groups.consumer_session_timeout={SESSION_SECONDS}s",
    f"groups.consumer_heartbeat_interval={HEARTBEAT_SECONDS}s",
]
# How often each partition of a group that loses a member is written to.
BEAT_SECONDS = 0.2
TARGET_SECONDS = 5
# What of a stop is left when nobody stops: writing, fetching, and a machine with few processors.
UNSTOPPED_SECONDS = 2
PATIENCE = 180


def consumer_of(bootstrap, group, protocol):
    settings = {
        "bootstrap.servers": bootstrap,
        "group.id": group,
        "group.protocol": protocol,
        "auto.offset.reset": "latest",
        "enable.auto.commit": False,
    }
    if protocol == "classic":
        settings["session.timeout.ms"] = SESSION_SECONDS * 1000
        settings["heartbeat.interval.ms"] = HEARTBEAT_SECONDS * 1000
    return Consumer(settings)


def be_doomed(bootstrap, group, protocol):
    """Is a member, until it is killed."""
    consumer = consumer_of(bootstrap, group, protocol)
    consumer.subscribe([group])
    while True:
        consumer.poll(0.5)


class Member:
    """One that lives, in a thread of its own."""

    def __init__(self, bootstrap, group, protocol):
        self.parts, self.changes, self.given_up = set(), 0, 0
        self.came = {}
        self.longest = {}
        self._stop = False
        self._consumer = consumer_of(bootstrap, group, protocol)
        gone = self._gone
        self._consumer.subscribe([group], on_assign=self._assigned, on_revoke=gone, on_lost=gone)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _assigned(self, _, parts):
        self.changes += 1
        self.parts = self.parts | {part.partition for part in parts}

    def _gone(self, _, parts):
        self.changes += 1
        self.given_up += len(parts)
        self.parts = self.parts - {part.partition for part in parts}

    def _run(self):
        while not self._stop:
            message = self._consumer.poll(0.5)
            if message is not None and message.error() is None:
                self._hear(message.partition(), time.time())
        self._consumer.close()

    def _hear(self, part, now):
        if part in self.came:
            gap = now - self.came[part]
            self.longest[part] = max(self.longest.get(part, 0), gap)
        self.came[part] = now

    def begin(self):
        """From here on it is looked at: what it holds, and what it does."""
        self.changes = self.given_up = 0
        self.held, self.longest = self.parts, {}

    def longest_stop(self):
        now = time.time()
        gaps = [max(self.longest.get(part, 0), now - self.came.get(part, 0)) for part in self.held]
        return max(gaps, default=0)

    def stop(self):
        self._stop = True

    def join(self):
        self._thread.join(60)


class Group:
    def __init__(self, cluster, number):
        self.protocol = PROTOCOLS[number % len(PROTOCOLS)]
        self.name = topic(f"rebalance-{number}")
        self._bootstrap = cluster.bootstrap
        self.loses = number < len(PROTOCOLS)
        self.doomed = None
        self.members = []

    def start(self):
        if self.loses:
            args = [self._bootstrap, self.name, self.protocol]
            command = [sys.executable, __file__, "--doomed", *args]
            self.doomed = subprocess.Popen(command)
        count = MEMBERS - self.loses
        self.members = [Member(self._bootstrap, self.name, self.protocol) for _ in range(count)]

    def held(self):
        return sum(len(member.parts) for member in self.members)

    def is_settled(self):
        """All partitions are held, and each member has its share."""
        share = PARTITIONS // MEMBERS
        return all(len(member.parts) == share for member in self.members)

    def kill(self):
        self.doomed.kill()
        self.doomed.wait()

    def stop(self):
        if self.doomed and self.doomed.poll() is None:
            self.doomed.kill()
        for member in self.members:
            member.stop()


class Writer:
    """Writes to each partition of some topics all the time."""

    def __init__(self, bootstrap, topics):
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5})
        self._topics = topics
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.wait(BEAT_SECONDS):
            for name in self._topics:
                for part in range(PARTITIONS):
                    self._producer.produce(name, b"x", partition=part)
            self._producer.poll(0)

    def stop(self):
        self._stop.set()
        self._thread.join()
        self._producer.flush(30)


def prepare(cluster, groups):
    admin = admin_of.AdminClient({"bootstrap.servers": cluster.bootstrap})
    for group in groups:
        admin.create_topics([admin_of.NewTopic(group.name, PARTITIONS, 3)])[group.name].result(60)
    began = time.time()
    for group in groups:
        group.start()
    wait_until("all have their share", lambda: all(g.is_settled() for g in groups), PATIENCE)
    print(f"{len(groups) * PARTITIONS} partitions, {len(groups) * MEMBERS} consumers in {len(groups)}"
          f" groups: settled after {time.time() - began:.1f} s")


def over_it(group):
    """Seconds until the others hold what one held that is killed."""
    group.kill()
    began = time.time()
    wait_until("its partitions are held", lambda: group.held() == PARTITIONS, PATIENCE)
    return time.time() - began


def hear_all(groups):
    """Waits until every partition of these was read from."""
    parts = lambda: sum(len(m.came.keys() & m.parts) for g in groups for m in g.members)
    wait_until("all is read", lambda: parts() == sum(g.held() for g in groups), PATIENCE)


def measure(cluster):
    groups = [Group(cluster, number) for number in range(GROUPS)]
    good = True
    try:
        prepare(cluster, groups)
        losers = [group for group in groups if group.loses]
        writer = Writer(cluster.bootstrap, [group.name for group in losers])
        hear_all(losers)
        for loser in losers:
            for group in groups:
                for member in group.members:
                    member.begin()
            took = over_it(loser)
            # A moment more, in which a stop would be seen.
            time.sleep(2 * BEAT_SECONDS + 1)
            good &= tell(loser, took, [group for group in groups if group is not loser])
        writer.stop()
    finally:
        for group in groups:
            group.stop()
        for group in groups:
            for member in group.members:
                member.join()
    return good


def tell(group, took, others):
    stop = max(member.longest_stop() for member in group.members)
    given_up = sum(member.given_up for member in group.members)
    changed = sum(member.changes for other in others for member in other.members)
    beyond = took - SESSION_SECONDS
    print(f"{group.protocol}: {took:.1f} s from the kill until all is held again, "
          f"{beyond:.1f} s beyond the session time-out of {SESSION_SECONDS} s "
          f"[< {TARGET_SECONDS} s: {'met' if beyond < TARGET_SECONDS else 'MISSED'}]")
    print(f"    the survivors gave up {given_up} partitions; the longest that nothing came from one "
          f"they kept: {stop:.1f} s; {changed} changes in the other {len(others)} groups")
    unstopped = given_up == 0 and stop < UNSTOPPED_SECONDS
    if group.protocol == "consumer":
        print(f"    [nobody else stops: {'met' if unstopped else 'MISSED'}]")
    is_good = beyond < TARGET_SECONDS and changed == 0
    return is_good and (unstopped or group.protocol == "classic")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trilog", default="target/release/trilog")
    parser.add_argument("--doomed", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.doomed:
        be_doomed(*args.doomed)
    end_when_told()
    cluster = Cluster(args.trilog, SETTINGS)
    try:
        return 0 if measure(cluster) else 1
    finally:
        cluster.stop()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
