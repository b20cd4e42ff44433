"""Transactions, as each client does them: whole or not at all, whoever dies meanwhile."""

import asyncio
import threading
import time

from clients import Aiokafka, Confluent
from common import Missing, equal, topic, wait_until

TRANSACTION_SECONDS = 60


class ConfluentTransactions(Confluent):
    name = "confluent-kafka transactions"

    def _make(self, name, partitions=1):
        self.create(name, partitions)
        return name

    def _producer(self, id, **config):
        millis = TRANSACTION_SECONDS * 1000
        settings = {"transactional.id": id, "transaction.timeout.ms": millis, **config}
        producer = self.producer(**settings)
        producer.init_transactions(30)
        return producer

    def _transact(self, producer, name, values, commit=True):
        producer.begin_transaction()
        for value in values:
            producer.produce(name, value=value)
        # Aborted records are to be in the log, too.
        equal(producer.flush(30), 0)
        if commit:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)

    def _consumer(self, isolation, group="unused", **config):
        return self.lib.Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": group,
                "enable.auto.commit": False,
                "isolation.level": isolation,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                **config,
            }
        )

    def _read(self, name, isolation, partitions=1):
        """All that there is to read, as (partition, value)."""
        messages = self._messages(name, isolation, partitions)
        return [(message.partition(), message.value()) for message in messages]

    def _messages(self, name, isolation, partitions=1):
        consumer = self._consumer(isolation)
        each = [self.lib.TopicPartition(name, index, 0) for index in range(partitions)]
        consumer.assign(each)
        found, ends = [], set()
        deadline = time.time() + 60
        while len(ends) < partitions:
            assert time.time() < deadline, f"only {len(found)} messages"
            message = consumer.poll(1)
            if message is None:
                continue
            if message.error():
                equal(message.error().code(), self.lib.KafkaError._PARTITION_EOF)
                ends.add(message.partition())
            else:
                found.append(message)
        consumer.close()
        return found

    def _values(self, name, isolation):
        return [value for _, value in self._read(name, isolation)]

    def commit_and_abort(self):
        name = self._make(topic("txn"))
        producer = self._producer(topic("txn-id"))
        self._transact(producer, name, [b"a", b"b"])
        self._transact(producer, name, [b"c"], commit=False)
        self._transact(producer, name, [b"d"])
        wait_until(
            "the last commit", lambda: self._values(name, "read_committed") == [b"a", b"b", b"d"]
        )
        equal(self._values(name, "read_uncommitted"), [b"a", b"b", b"c", b"d"])

    def open_is_unseen(self):
        name = self._make(topic("txn-open"))
        producer = self._producer(topic("txn-open-id"))
        self._transact(producer, name, [b"before"])
        producer.begin_transaction()
        producer.produce(name, value=b"open")
        equal(producer.flush(30), 0)
        plain = self.producer()
        plain.produce(name, value=b"behind")
        equal(plain.flush(30), 0)
        wait_until("the first", lambda: self._values(name, "read_committed") == [b"before"])
        equal(self._values(name, "read_uncommitted"), [b"before", b"open", b"behind"])
        reader = self._consumer("read_committed")
        stable = reader.get_watermark_offsets(self.lib.TopicPartition(name, 0), timeout=30)[1]
        equal(stable, 2)
        reader.close()
        producer.commit_transaction(30)
        wait_until(
            "the commit",
            lambda: self._values(name, "read_committed") == [b"before", b"open", b"behind"],
        )

    def many_partitions_and_codecs(self):
        partitions = 6
        for codec in ["none", "zstd", "lz4"]:
            name = self._make(topic(f"txn-many-{codec}"), partitions)
            producer = self._producer(topic(f"txn-many-{codec}"), **{"compression.type": codec})
            for round in range(6):
                producer.begin_transaction()
                for n in range(30):
                    producer.produce(name, value=b"%d/%d" % (round, n), partition=n % partitions)
                equal(producer.flush(30), 0)
                if round % 2 == 0:
                    producer.commit_transaction(30)
                else:
                    producer.abort_transaction(30)
            expected = sorted(b"%d/%d" % (round, n) for round in (0, 2, 4) for n in range(30))
            read = lambda: sorted(v for _, v in self._read(name, "read_committed", partitions))
            wait_until("all that was committed", lambda: read() == expected)
            equal(len(self._read(name, "read_uncommitted", partitions)), 6 * 30)

    def a_compacted_topic_shrinks(self):
        """Of what transactions wrote the newest of each key stays, of aborted ones nothing."""
        name = topic("txn-compact")
        config = {
            "cleanup.policy": "compact",
            "segment.bytes": "1048576",
            "segment.ms": "2000",
            "min.cleanable.dirty.ratio": "0.01",
            "delete.retention.ms": "0",
        }
        self.create(name, config=config)
        producer = self._producer(topic("txn-compact-id"))
        newest = {}

        def turn(round, keys):
            producer.begin_transaction()
            values = {b"%d" % key: b"%d/%d/" % (round, key) + b"." * 10_000 for key in keys}
            for key, value in values.items():
                producer.produce(name, key=key, value=value)
            equal(producer.flush(30), 0)
            if round % 3:
                producer.commit_transaction(30)
                newest.update(values)
            else:
                producer.abort_transaction(30)

        for round in range(30):
            turn(round, range(20))
        end = self._messages(name, "read_uncommitted")[-1].offset()

        def shrunk():
            # A segment is closed by what is written next, and time goes on with it.
            turn(3 * 100, range(20))
            turn(3 * 100 + 1, [0])
            old = [m for m in self._messages(name, "read_uncommitted") if m.offset() <= end]
            time.sleep(2)
            return len(old) < 20 and old

        wait_until("what is superseded or aborted to be gone", shrunk, 200)
        values = {m.key(): m.value() for m in self._messages(name, "read_committed")}
        equal(values, newest)

    def a_zombie_is_shut_out(self):
        name = self._make(topic("txn-zombie"))
        zombie = self._producer(topic("txn-zombie-id"))
        zombie.begin_transaction()
        zombie.produce(name, value=b"zombie")
        equal(zombie.flush(30), 0)
        heir = self._producer(topic("txn-zombie-id"))
        self._transact(heir, name, [b"heir"])
        try:
            zombie.commit_transaction(30)
            raise AssertionError("the zombie committed")
        except self.lib.KafkaException as error:
            equal(error.args[0].code(), self.lib.KafkaError._FENCED)
            assert error.args[0].fatal()
        wait_until("the heir's", lambda: self._values(name, "read_committed") == [b"heir"])

    def a_time_out_aborts(self):
        name = self._make(topic("txn-late"))
        producer = self._producer(topic("txn-late-id"), **{"transaction.timeout.ms": 2_000})
        producer.begin_transaction()
        producer.produce(name, value=b"late")
        equal(producer.flush(30), 0)
        plain = self.producer()
        plain.produce(name, value=b"behind")
        equal(plain.flush(30), 0)
        wait_until("the abort", lambda: self._values(name, "read_committed") == [b"behind"])
        try:
            producer.commit_transaction(30)
            raise AssertionError("it was committed after its time")
        except self.lib.KafkaException:
            pass
        again = self._producer(topic("txn-late-id"))
        self._transact(again, name, [b"again"])
        wait_until(
            "the next", lambda: self._values(name, "read_committed") == [b"behind", b"again"]
        )

    def consume_transform_produce(self):
        """Each number comes out once, though every third transaction is aborted and done again."""
        source, sink = self._make(topic("ctp-in"), 2), self._make(topic("ctp-out"), 2)
        group, count = topic("ctp-group"), 60
        plain = self.producer()
        for n in range(count):
            plain.produce(source, value=b"%d" % n, partition=n % 2)
        equal(plain.flush(30), 0)
        producer = self._producer(topic("ctp-id"))
        consumer = self._consumer("read_committed", group, **{"enable.partition.eof": False})
        consumer.subscribe([source])
        done, turn = 0, 0
        deadline = time.time() + 90
        while done < count:
            assert time.time() < deadline, f"only {done} are done"
            messages = [m for m in consumer.consume(7, 1) if not m.error()]
            if not messages:
                continue
            turn += 1
            producer.begin_transaction()
            for message in messages:
                producer.produce(sink, value=b"x" + message.value(), partition=message.partition())
            producer.send_offsets_to_transaction(
                consumer.position(consumer.assignment()), consumer.consumer_group_metadata(), 30
            )
            if turn % 3 == 0:
                producer.abort_transaction(30)
                for known in consumer.committed(consumer.assignment(), 30):
                    known.offset = max(known.offset, 0)
                    consumer.seek(known)
                continue
            producer.commit_transaction(30)
            done += len(messages)
        consumer.close()
        expected = sorted(b"x%d" % n for n in range(count))
        read = lambda: sorted(v for _, v in self._read(sink, "read_committed", 2))
        wait_until("each once", lambda: read() == expected)
        offsets = self._consumer("read_committed", group)
        parts = [self.lib.TopicPartition(source, index) for index in range(2)]
        equal([p.offset for p in offsets.committed(parts, 30)], [count // 2, count // 2])
        offsets.close()

    def listed_and_described(self):
        """What is open is listed and described."""
        name = self._make(topic("txn-admin"))
        producer = self._producer(topic("txn-admin-id"))
        producer.begin_transaction()
        producer.produce(name, value=b"open")
        equal(producer.flush(30), 0)
        try:
            from kafka.admin import KafkaAdminClient
        except ImportError as error:
            raise Missing(f"kafka-python: {error}")
        admin = KafkaAdminClient(bootstrap_servers=self.servers)
        if not hasattr(admin, "list_transactions"):
            producer.abort_transaction(30)
            raise Missing("kafka-python's admin has no list_transactions")
        listed = str(admin.list_transactions())
        assert topic("txn-admin-id") in listed and "Ongoing" in listed, listed
        described = str(admin.describe_transactions([topic("txn-admin-id")]))
        assert name in described, described
        producer.abort_transaction(30)
        admin.close()

    def nodes_die_in_commits(self):
        """Each node in turn is killed while transactions are committed, coordinators among them."""
        if not self.cluster.is_ours:
            raise Missing("not a cluster of its own: no node may be killed")
        partitions, producers = 3, 4
        name = self._make(topic("txn-deaths"), partitions)
        committed, unknown, failures = [], [], []
        stop = threading.Event()

        def work(number):
            try:
                self._work(name, partitions, number, stop, committed, unknown)
            except Exception as error:
                failures.append(error)

        workers = [threading.Thread(target=work, args=[n]) for n in range(producers)]
        for worker in workers:
            worker.start()
        for node in (1, 2, 3):
            time.sleep(2)
            self.cluster.kill(node)
            time.sleep(3)
            self.cluster.restart(node)
            time.sleep(3)
        stop.set()
        for worker in workers:
            worker.join(180)
            assert not worker.is_alive(), "a producer hangs"
        equal(failures, [])
        assert len(committed) > 20, f"only {len(committed)} commits"

        def whole():
            found = [value.decode() for _, value in self._read(name, "read_committed", partitions)]
            equal(len(found), len(set(found)))
            of = {}
            for value in found:
                of.setdefault(value.rsplit("/", 1)[0], set()).add(value)
            torn = {one for one, values in of.items() if len(values) != partitions}
            equal(torn, set())
            lost = set(committed) - set(of)
            more = set(of) - set(committed) - set(unknown)
            equal((lost, more), (set(), set()))
            return True

        # What is open still is aborted by the producers' successors.
        for number in range(producers):
            self._producer(f"{name}-{number}")
        whole()

    def _work(self, name, partitions, number, stop, committed, unknown):
        producer, turn = self._producer(f"{name}-{number}"), 0
        while not stop.is_set():
            turn += 1
            mark = f"{number}/{turn}"
            began = time.time()
            try:
                producer.begin_transaction()
                for index in range(partitions):
                    producer.produce(name, value=f"{mark}/{index}".encode(), partition=index)
                self._commit(producer)
                committed.append(mark)
            except self.lib.KafkaException as error:
                fatal = self._abort(producer, error)
                if fatal is None:
                    continue
                # Its transaction outlived its time while coordinators were dead; nothing else
                # shuts a producer out that nobody follows.
                took = time.time() - began
                shut_out = fatal.code() == self.lib.KafkaError._FENCED
                assert not shut_out or took >= TRANSACTION_SECONDS, f"{fatal} after {took:.1f} s"
                unknown.append(mark)
                producer = self._producer(f"{name}-{number}")

    def _abort(self, producer, error):
        """Nothing, or the error after which a producer is of no use."""
        try:
            if error.args[0].txn_requires_abort():
                self._again(lambda: producer.abort_transaction(30))
                return None
        except self.lib.KafkaException as later:
            error = later
        assert error.args[0].fatal(), error
        return error.args[0]

    def _commit(self, producer):
        self._again(lambda: producer.commit_transaction(30))

    def _again(self, call):
        """As librdkafka wants it: what may be tried again is."""
        deadline = time.time() + 120
        while True:
            try:
                return call()
            except self.lib.KafkaException as error:
                if not error.args[0].retriable() or time.time() > deadline:
                    raise


class AiokafkaTransactions(Aiokafka):
    name = "aiokafka transactions"

    async def _read(self, name, isolation, count):
        from aiokafka import TopicPartition

        consumer = self.lib.AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap,
            isolation_level=isolation,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await consumer.start()
        try:
            place = TopicPartition(name, 0)
            consumer.assign([place])
            await consumer.seek_to_beginning(place)
            found = []
            while len(found) < count:
                got = await asyncio.wait_for(consumer.getmany(timeout_ms=1000), 30)
                found += [message.value for messages in got.values() for message in messages]
            # And nothing after them.
            got = await consumer.getmany(timeout_ms=500)
            return found + [message.value for messages in got.values() for message in messages]
        finally:
            await consumer.stop()

    def commit_and_abort(self):
        async def run():
            name = topic("aio-txn")
            producer = self.lib.AIOKafkaProducer(
                bootstrap_servers=self.bootstrap, transactional_id=topic("aio-txn-id")
            )
            await producer.start()
            try:
                async with producer.transaction():
                    await producer.send_and_wait(name, b"a")
                try:
                    async with producer.transaction():
                        await producer.send_and_wait(name, b"b")
                        raise ValueError
                except ValueError:
                    pass
                async with producer.transaction():
                    await producer.send_and_wait(name, b"c")
            finally:
                await producer.stop()
            equal(await self._read(name, "read_committed", 2), [b"a", b"c"])
            equal(await self._read(name, "read_uncommitted", 3), [b"a", b"b", b"c"])

        asyncio.run(run())

    def offsets_in_a_transaction(self):
        async def run():
            from aiokafka import TopicPartition

            source, sink, group = topic("aio-in"), topic("aio-out"), topic("aio-group")
            producer = self.lib.AIOKafkaProducer(
                bootstrap_servers=self.bootstrap, transactional_id=topic("aio-ctp-id")
            )
            await producer.start()
            try:
                async with producer.transaction():
                    for n in range(10):
                        await producer.send_and_wait(source, b"%d" % n)
                place = TopicPartition(source, 0)
                async with producer.transaction():
                    await producer.send_and_wait(sink, b"done")
                    await producer.send_offsets_to_transaction({place: 10}, group)
                try:
                    async with producer.transaction():
                        await producer.send_offsets_to_transaction({place: 3}, group)
                        raise ValueError
                except ValueError:
                    pass
            finally:
                await producer.stop()
            equal(await self._read(sink, "read_committed", 1), [b"done"])
            consumer = self.lib.AIOKafkaConsumer(
                bootstrap_servers=self.bootstrap, group_id=group, enable_auto_commit=False
            )
            await consumer.start()
            try:
                equal(await consumer.committed(place), 10)
            finally:
                await consumer.stop()

        asyncio.run(run())


CLIENTS = [ConfluentTransactions, AiokafkaTransactions]
