"""Consumer groups, as each client does them: offsets that stay, members that come, go and die."""

import asyncio
import subprocess
import sys
import threading
import time

from clients import Aiokafka, Confluent, KafkaPython, Kcat
from common import Missing, equal, topic, wait_until

PARTITIONS = 4
SESSION_MS = 6000
# A member that is killed: it says how many partitions it has, and waits for its end.
DOOMED = """
import sys, confluent_kafka
consumer = confluent_kafka.Consumer({"bootstrap.servers": sys.argv[1], "group.id": sys.argv[2],
    "session.timeout.ms": %d, "auto.offset.reset": "earliest"})
consumer.subscribe([sys.argv[3]], on_assign=lambda _, parts: print(len(parts), flush=True))
while True:
    consumer.poll(0.1)
""" % SESSION_MS


class KcatGroups(Kcat):
    name = "kcat groups"

    def commit_and_resume(self):
        name = topic("kcat-group")
        lines = b"".join(b"%d\n" % n for n in range(100))
        self.kcat("-P", "-t", name, input=lines)
        settings = ["-X", "auto.offset.reset=earliest", "-q"]
        first = self.kcat("-G", name, *settings, "-c", "40", name)
        equal(first, b"".join(b"%d\n" % n for n in range(40)))
        rest = self.kcat("-G", name, *settings, "-c", "60", name)
        equal(first + rest, lines)


class ConfluentGroups(Confluent):
    name = "confluent-kafka groups"

    def _make(self, name, count=0, partitions=PARTITIONS):
        """A topic with so many records, in turn over its partitions."""
        self.create(name, partitions)
        self._send(name, range(count))
        return name

    def _send(self, name, numbers):
        self.produce(name, [{"value": b"%d" % n, "partition": n % PARTITIONS} for n in numbers])

    def _member(self, group, name, **config):
        return Member(self.lib, self.bootstrap, group, name, config)

    def commit_and_resume(self):
        name = self._make(topic("confluent-group"), 400)
        first = self._member(name, name)
        first.read(150)
        first.commit()
        first.close()
        second = self._member(name, name)
        second.read(250)
        equal(sorted(first.found + second.found), list(range(400)))
        second.close()

    def metadata_of_commits(self):
        name = self._make(topic("confluent-metadata"), 10)
        member = self._member(name, name)
        member.read(10)
        partition = self.lib.TopicPartition(name, 1, 2, "half-way")
        member.consumer.commit(offsets=[partition], asynchronous=False)
        (found,) = member.consumer.committed([self.lib.TopicPartition(name, 1)], timeout=30)
        equal((found.offset, found.metadata), (2, "half-way"))
        (none,) = member.consumer.committed([self.lib.TopicPartition(name, 3)], timeout=30)
        assert none.offset < 0, none
        member.close()

    def rebalance(self):
        name = self._make(topic("confluent-rebalance"))
        first = self._member(name, name)
        first.hold(4)
        second = self._member(name, name)
        first.hold(2, second)
        second.hold(2)
        assert not first.parts & second.parts, "a partition is held twice"
        second.close()
        first.hold(4)
        first.close()

    def killed_member(self):
        name = self._make(topic("confluent-killed"))
        first = self._member(name, name)
        first.hold(4)
        command = [sys.executable, "-c", DOOMED, self.bootstrap, name, name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as doomed:
            try:
                first.hold(2)
                equal(doomed.stdout.readline(), "2\n")
            finally:
                doomed.kill()
        began = time.time()
        first.hold(4)
        took = time.time() - began
        assert took < SESSION_MS / 1000 + 5, f"it took {took:.1f} s"
        first.close()

    def static_members(self):
        name = self._make(topic("confluent-static"))
        stays = self._member(name, name, **{"group.instance.id": "stays"})
        goes = self._member(name, name, **{"group.instance.id": "goes"})
        stays.hold(2, goes)
        goes.hold(2, stays)
        held, changes = set(goes.parts), stays.changes
        # It leaves without leaving the group, and gets the same partitions when it is back.
        goes.close()
        back = self._member(name, name, **{"group.instance.id": "goes"})
        back.hold(2, stays)
        equal((back.parts, stays.changes), (held, changes))
        # A second one of its name takes over; the first learns of it.
        other = self._member(name, name, **{"group.instance.id": "goes"})
        other.hold(2, stays)
        wait_until("the older one is fenced", lambda: back.pump() or back.fenced)
        other.close()
        stays.close()
        back.close()

    def cooperative_sticky(self):
        name = self._make(topic("confluent-cooperative"))
        config = {"partition.assignment.strategy": "cooperative-sticky"}
        first = self._member(name, name, **config)
        first.hold(4)
        second = self._member(name, name, **config)
        second.hold(2, first)
        first.hold(2, second)
        # It gave up two, and kept the other two all the time.
        equal(len(first.revoked), 2)
        assert not first.parts & second.parts, "a partition is held twice"
        second.close()
        first.hold(4)
        equal(len(first.revoked), 2)
        first.close()

    def administration(self):
        lib, name = self.lib, self._make(topic("confluent-group-admin"), 40)
        admin = self.admin()
        member = self._member(name, name)
        member.read(40)
        member.commit()
        listed = admin.list_consumer_groups().result(30)
        equal(listed.errors, [])
        (found,) = [group for group in listed.valid if group.group_id == name]
        equal((found.state, found.is_simple_consumer_group), (lib.ConsumerGroupState.STABLE, False))
        described = admin.describe_consumer_groups([name])[name].result(30)
        equal((described.state, len(described.members)), (lib.ConsumerGroupState.STABLE, 1))
        (only,) = described.members
        parts = {(part.topic, part.partition) for part in only.assignment.topic_partitions}
        equal(parts, {(name, n) for n in range(PARTITIONS)})
        try:
            admin.delete_consumer_groups([name])[name].result(30)
            raise AssertionError("a group with members was deleted")
        except lib.KafkaException as error:
            equal(error.args[0].name(), "NON_EMPTY_GROUP")
        member.close()

        def offsets():
            asked = [lib.ConsumerGroupTopicPartitions(name)]
            found = admin.list_consumer_group_offsets(asked)[name].result(30)
            return sorted((part.partition, part.offset) for part in found.topic_partitions)

        equal(offsets(), [(n, 10) for n in range(PARTITIONS)])
        states = {lib.ConsumerGroupState.STABLE}
        stable = admin.list_consumer_groups(states=states).result(30)
        assert name not in [group.group_id for group in stable.valid]
        changed = [lib.ConsumerGroupTopicPartitions(name, [lib.TopicPartition(name, 0, 3)])]
        admin.alter_consumer_group_offsets(changed)[name].result(30)
        equal(offsets(), [(0, 3)] + [(n, 10) for n in range(1, PARTITIONS)])
        admin.delete_consumer_groups([name])[name].result(30)
        equal(offsets(), [])
        try:
            admin.delete_consumer_groups([name])[name].result(30)
            raise AssertionError("a group was deleted twice")
        except lib.KafkaException as error:
            equal(error.args[0].name(), "GROUP_ID_NOT_FOUND")


class Member:
    """A member of a group, polled by whoever waits for something of it."""

    def __init__(self, lib, bootstrap, group, name, config):
        self.lib = lib
        self.parts, self.revoked, self.found = set(), [], []
        self.changes = 0
        self.fenced = False
        settings = {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": SESSION_MS,
            "heartbeat.interval.ms": 500,
            "topic.metadata.refresh.interval.ms": 2000,
            **config,
        }
        self.consumer = lib.Consumer({k: v for k, v in settings.items() if v is not None})
        self.consumer.subscribe(
            [name], on_assign=self._assigned, on_revoke=self._gone, on_lost=self._gone
        )

    def _assigned(self, _consumer, parts):
        self.changes += 1
        self.parts |= {part.partition for part in parts}

    def _gone(self, _consumer, parts):
        self.changes += 1
        self.parts -= {part.partition for part in parts}
        self.revoked += [part.partition for part in parts]

    def pump(self):
        """Takes what is there, waiting a moment for something."""
        message = self.consumer.poll(0.05)
        while message is not None:
            self._take(message)
            message = self.consumer.poll(0)

    def _take(self, message):
        error = message.error()
        if error is None:
            self.found.append(int(message.value()))
        elif error.code() == self.lib.KafkaError._FATAL:
            self.fenced = True
        else:
            # A coordinator that moves is told of, and found again.
            assert error.retriable() or error.code() < 0, error

    def hold(self, count, *others, patience=40):
        """Waits until it has so many partitions, while others go on."""

        def held():
            self.pump()
            for other in others:
                other.pump()
            return len(self.parts) == count

        wait_until(f"a member holds {count} partitions, not {self.parts}", held, patience)

    def read(self, count, patience=60):
        deadline = time.time() + patience
        while len(self.found) < count:
            assert time.time() < deadline, f"{count} records, not {len(self.found)}"
            message = self.consumer.poll(0.05)
            if message is not None:
                self._take(message)

    def commit(self):
        self.consumer.commit(asynchronous=False)

    def close(self):
        self.consumer.close()


class KafkaPythonGroups(KafkaPython):
    name = "kafka-python groups"

    def _make(self, name, count):
        admin = self.admin()
        admin.create_topics([self.lib.admin.NewTopic(name, PARTITIONS, 3)])
        admin.close()
        producer = self.lib.KafkaProducer(bootstrap_servers=self.bootstrap)
        sent = [producer.send(name, b"%d" % n, partition=n % PARTITIONS) for n in range(count)]
        for future in sent:
            future.get(60)
        producer.close()
        return name

    def _consumer(self, group, name, **config):
        return self.lib.KafkaConsumer(
            name,
            bootstrap_servers=self.bootstrap,
            group_id=group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=500,
            **config,
        )

    def _read(self, consumer, count):
        found = []

        def more():
            for records in consumer.poll(200, max_records=count - len(found)).values():
                found.extend(int(record.value) for record in records)
            return len(found) >= count

        wait_until(f"{count} records", more, 60)
        return found

    def commit_and_resume(self):
        name = self._make(topic("python-group"), 200)
        first = self._consumer(name, name)
        found = self._read(first, 80)
        first.commit()
        first.close()
        second = self._consumer(name, name)
        found += self._read(second, 120)
        second.commit()
        equal(sorted(found), list(range(200)))
        equal(second.committed(self.lib.TopicPartition(name, 0)), 50)
        second.close()

    def rebalance(self):
        name = self._make(topic("python-rebalance"), 0)
        first = self._consumer(name, name)

        def holds(count, *members):
            def held():
                for member in members:
                    member.poll(50)
                return all(len(member.assignment()) == count for member in members)

            wait_until(f"{count} partitions each", held, 40)

        holds(4, first)
        stop, second = threading.Event(), []

        def other():
            member = self._consumer(name, name)
            while not stop.is_set():
                member.poll(50)
                second.append(len(member.assignment()))
            member.close()

        thread = threading.Thread(target=other)
        thread.start()
        try:
            holds(2, first)
            wait_until("the other has its half", lambda: first.poll(50) or second[-1:] == [2])
        finally:
            stop.set()
            thread.join()
        holds(4, first)
        first.close()

    def static_member(self):
        name = self._make(topic("python-static"), 0)
        first = self._consumer(name, name, group_instance_id="one")
        wait_until("its partitions", lambda: first.poll(50) or len(first.assignment()) == 4)
        admin = self.admin()
        (member,) = admin.describe_groups([name])[name]["members"]
        equal(member["group_instance_id"], "one")
        # Its administrator makes it leave.
        removed = admin.remove_group_members(name, [self.lib.admin.MemberToRemove(group_instance_id="one")])
        assert removed, removed
        equal(admin.describe_groups([name])[name]["members"], [])
        admin.close()
        first.close()

    def administration(self):
        lib, name = self.lib, self._make(topic("python-group-admin"), 40)
        consumer = self._consumer(name, name)
        self._read(consumer, 40)
        consumer.commit()
        admin = self.admin()
        listed = {group["group_id"]: group for group in admin.list_groups()}
        equal(listed[name]["group_state"], "Stable")
        equal(listed[name]["group_type"], "classic")
        empty = admin.list_groups(states_filter=["Empty"])
        assert name not in [group["group_id"] for group in empty]
        equal(admin.list_groups(types_filter=["consumer"]), [])
        described = admin.describe_groups([name])[name]
        equal((described["group_state"], len(described["members"])), ("Stable", 1))
        part = lib.TopicPartition(name, 0)
        (outcome,) = admin.delete_group_offsets(name, [part]).values()
        equal(outcome.__name__, "GroupSubscribedToTopicError")
        consumer.close()
        offsets = admin.list_group_offsets({name: None})[name]
        equal({part.partition: found.offset for part, found in offsets.items()},
              {n: 10 for n in range(PARTITIONS)})
        (outcome,) = admin.delete_group_offsets(name, [part]).values()
        equal(outcome.__name__, "NoError")
        equal(len(admin.list_group_offsets({name: None})[name]), PARTITIONS - 1)
        other = lib.TopicPartition(name, 1)
        changed = {other: lib.structs.OffsetAndMetadata(7, "by hand", -1)}
        (outcome,) = admin.alter_group_offsets(name, changed).values()
        equal(outcome.__name__, "NoError")
        found = admin.list_group_offsets({name: [other]})[name][other]
        equal((found.offset, found.metadata), (7, "by hand"))
        admin.reset_group_offsets(name, {other: lib.admin.OffsetSpec.EARLIEST})
        equal(admin.list_group_offsets({name: [other]})[name][other].offset, 0)
        admin.delete_groups([name])
        assert name not in [group["group_id"] for group in admin.list_groups()]
        admin.close()


class AiokafkaGroups(Aiokafka):
    name = "aiokafka groups"

    async def _make(self, name, count):
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic

        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic(name, PARTITIONS, 3)])
        await admin.close()
        producer = self.lib.AIOKafkaProducer(bootstrap_servers=self.bootstrap)
        await producer.start()
        for n in range(count):
            await producer.send_and_wait(name, b"%d" % n, partition=n % PARTITIONS)
        await producer.stop()
        return name

    async def _consumer(self, group, name, **config):
        consumer = self.lib.AIOKafkaConsumer(
            name,
            bootstrap_servers=self.bootstrap,
            group_id=group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=500,
            **config,
        )
        await consumer.start()
        return consumer

    def commit_and_resume(self):
        async def run():
            name = await self._make(topic("aio-group"), 100)
            found = []
            for count in (30, 70):
                consumer = await self._consumer(name, name)
                for _ in range(count):
                    message = await asyncio.wait_for(consumer.getone(), 30)
                    found.append(int(message.value))
                await consumer.commit()
                await consumer.stop()
            equal(sorted(found), list(range(100)))

        asyncio.run(run())

    def rebalance(self):
        async def run():
            name = await self._make(topic("aio-rebalance"), 0)

            async def holds(count, *members):
                deadline = time.time() + 40
                while any(len(member.assignment()) != count for member in members):
                    held = [member.assignment() for member in members]
                    assert time.time() < deadline, f"{held} are not {count} each"
                    await asyncio.sleep(0.05)

            first = await self._consumer(name, name)
            await holds(4, first)
            second = await self._consumer(name, name, group_instance_id="a name")
            await holds(2, first, second)
            await second.stop()
            third = await self._consumer(name, name)
            await third.stop()
            await first.stop()

        asyncio.run(run())


class Survival(ConfluentGroups):
    name = "groups, a node killed"

    def __init__(self, cluster):
        super().__init__(cluster)
        if not cluster.is_ours:
            raise Missing("the nodes of a cluster that runs already are not ours to kill")

    def coordinator_killed(self):
        """The group's coordinator dies while it works: it goes on elsewhere, and nothing is lost."""
        name = self._make(topic("survival"), 200)
        members = [self._member(name, name), self._member(name, name)]
        members[0].hold(2, members[1])
        members[1].hold(2, members[0])

        def read(count):
            def there():
                for member in members:
                    member.pump()
                found = [n for member in members for n in member.found]
                return len(set(found)) >= count

            wait_until(f"{count} records", there, 60)

        read(200)
        for member in members:
            member.commit()
        admin = self.admin()
        described = admin.describe_consumer_groups([name])[name].result(30)
        node = described.coordinator.id
        self.cluster.kill(node)
        try:
            self._send(name, range(200, 400))
            read(400)
            wait_until("a commit", lambda: self._try_commit(members), 60)
        finally:
            self.cluster.restart(node)

        def both():
            # One that was missed in the meantime joins again, as it is polled.
            for member in members:
                member.pump()
            return self._count(admin, name) == 2

        wait_until("both are members", both, 90)
        for member in members:
            member.close()
        # Everything is committed: nobody reads anything again.
        asked = [self.lib.ConsumerGroupTopicPartitions(name)]
        found = admin.list_consumer_group_offsets(asked)[name].result(30)
        equal({part.offset for part in found.topic_partitions}, {100})

    def _count(self, admin, group):
        """How many members a group has; while its coordinator moves nobody knows."""
        try:
            described = admin.describe_consumer_groups([group], request_timeout=10)
            return len(described[group].result(30).members)
        except self.lib.KafkaException as error:
            moves = ("COORDINATOR", "IN_PROGRESS", "TIMED_OUT")
            assert error.args[0].name().endswith(moves), error
            return None

    def _try_commit(self, members):
        """Whether all could; while the group moves they may not."""
        try:
            for member in members:
                member.pump()
                member.commit()
        except self.lib.KafkaException as error:
            assert error.args[0].code() != self.lib.KafkaError._FATAL, error
            return False
        return True


CLIENTS = [KcatGroups, ConfluentGroups, KafkaPythonGroups, AiokafkaGroups, Survival]
