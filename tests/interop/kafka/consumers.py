"""Groups in which the coordinator assigns (KIP-848), as librdkafka's consumers do them."""

import subprocess
import sys
import time

from common import equal, topic, wait_until
from groups import PARTITIONS, ConfluentGroups

# The session is the coordinator's to say: 45 seconds, unless it was told otherwise.
SESSION = 45
# A member that is killed: it says how many partitions it has, and waits for its end.
DOOMED = """
import sys, confluent_kafka
consumer = confluent_kafka.Consumer({"bootstrap.servers": sys.argv[1], "group.id": sys.argv[2],
    "group.protocol": "consumer", "auto.offset.reset": "earliest"})
consumer.subscribe([sys.argv[3]])
told = None
while True:
    consumer.poll(0.1)
    now = len(consumer.assignment())
    if now != told:
        told = now
        print(now, flush=True)
"""


class ConsumerProtocol(ConfluentGroups):
    name = "confluent-kafka, group.protocol=consumer"

    def _member(self, group, pattern, **config):
        # What the coordinator says instead.
        theirs = {"session.timeout.ms": None, "heartbeat.interval.ms": None}
        settings = {"group.protocol": "consumer", **theirs, **config}
        return super()._member(group, pattern, **settings)

    def commit_and_resume(self):
        name = self._make(topic("consumer-group"), 400)
        first = self._member(name, name)
        first.read(150)
        first.commit()
        first.close()
        second = self._member(name, name)
        second.read(250)
        equal(sorted(first.found + second.found), list(range(400)))
        second.close()

    def reconcile(self):
        for assignor in ["uniform", "range"]:
            name = self._make(topic(f"consumer-{assignor}"))
            remote = {"group.remote.assignor": assignor}
            first = self._member(name, name, **remote)
            first.hold(4)
            second = self._member(name, name, **remote)
            second.hold(2, first)
            first.hold(2, second)
            assert not first.parts & second.parts, "a partition is held twice"
            equal(len(first.revoked), 2)
            second.close()
            first.hold(4)
            equal(len(first.revoked), 2)
            first.close()

    def killed_member(self):
        """Those who are not affected never stop: they give up nothing, and go on reading."""
        name = self._make(topic("consumer-killed"), 0)
        members = [self._member(name, name), self._member(name, name)]
        members[0].hold(2, members[1])
        members[1].hold(2, members[0])
        command = [sys.executable, "-c", DOOMED, self.bootstrap, name, name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as doomed:
            try:
                wait_until("one of three holds one", lambda: self._share(members) == 3, 60)
                while doomed.stdout.readline() != "1\n":
                    pass
            finally:
                doomed.kill()
        before = [len(member.revoked) for member in members]
        sent, longest, last = 0, 0, time.time()
        deadline = time.time() + SESSION + 20
        while self._share(members) != PARTITIONS:
            assert time.time() < deadline, "nobody took over"
            # What they hold is read all the while.
            holds = sorted(part for member in members for part in member.parts)
            self._send(name, [4 * sent + part for part in holds])
            sent += 1
            found = sum(len(member.found) for member in members)
            until = time.time() + 10
            while sum(len(member.found) for member in members) < found + len(holds):
                assert time.time() < until, "they have stopped"
                self._share(members)
            longest, last = max(longest, time.time() - last), time.time()
        equal([len(member.revoked) for member in members], before)
        assert longest < 5, f"nothing was read for {longest:.1f} s"
        for member in members:
            member.close()

    def _share(self, members):
        for member in members:
            member.pump()
        return sum(len(member.parts) for member in members)

    def static_member(self):
        name = self._make(topic("consumer-static"))
        first = self._member(name, name)
        named = {"group.instance.id": "one"}
        second = self._member(name, name, **named)
        second.hold(2, first)
        first.hold(2, second)
        parts, changes = set(second.parts), first.changes
        second.close()
        third = self._member(name, name, **named)
        third.hold(2, first)
        equal((third.parts, first.changes), (parts, changes))
        first.close()
        third.close()

    def pattern(self):
        base = topic("consumer-pattern")
        names = [self._make(f"{base}-{n}", 40) for n in range(2)]
        member = self._member(base, f"^{base}-[0-9]+")
        member.read(80)
        equal(len(member.consumer.assignment()), 2 * PARTITIONS)
        # One that is made later is found, too.
        names.append(self._make(f"{base}-2", 40))
        member.read(120)
        member.close()

    def administration(self):
        lib, name = self.lib, self._make(topic("consumer-admin"), 40)
        admin = self.admin()
        member = self._member(name, name)
        member.read(40)
        member.commit()
        kinds = {lib.ConsumerGroupType.CONSUMER}
        listed = admin.list_consumer_groups(types=kinds).result(30)
        (found,) = [group for group in listed.valid if group.group_id == name]
        equal((found.state, found.type), (lib.ConsumerGroupState.STABLE, lib.ConsumerGroupType.CONSUMER))
        described = admin.describe_consumer_groups([name])[name].result(30)
        equal((described.type, len(described.members)), (lib.ConsumerGroupType.CONSUMER, 1))
        (only,) = described.members
        parts = {(part.topic, part.partition) for part in only.assignment.topic_partitions}
        equal(parts, {(name, n) for n in range(PARTITIONS)})
        if self.cluster.is_ours:
            self._reset_while_active(name)
        try:
            admin.delete_consumer_groups([name])[name].result(30)
            raise AssertionError("a group with members was deleted")
        except lib.KafkaException as error:
            equal(error.args[0].name(), "NON_EMPTY_GROUP")
        member.close()
        admin.delete_consumer_groups([name])[name].result(30)

    def _reset_while_active(self, name):
        """`trilog group` shows who reads, and names who is in the way of a reset."""
        command = [self.cluster.trilog, "group", "-s", self.cluster.server]
        run = lambda *args: subprocess.run(
            [*command[:2], *args, *command[2:]], capture_output=True, text=True, timeout=60
        )
        described = run("describe", name)
        equal(described.returncode, 0)
        assert "Stable, 1 member" in described.stdout and "rdkafka" in described.stdout, described
        reset = run("reset", name, "--all-topics", "--to-earliest", "--execute")
        equal(reset.returncode, 1)
        assert "members who are active: rdkafka at /127.0.0.1" in reset.stderr, reset.stderr


CLIENTS = [ConsumerProtocol]
