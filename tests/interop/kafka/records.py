"""Records, as each client writes and reads them; topics, configuration, times, compaction."""

import asyncio
import os
import shutil
import tempfile
import time

from clients import Aiokafka, Confluent, KafkaPython, Kcat
from common import RUN, equal, topic

CODECS = ["gzip", "snappy", "lz4", "zstd"]
LARGE = 900_000


class KcatRecords(Kcat):
    name = "kcat records"

    def _consume(self, name, form):
        return self.kcat("-C", "-q", "-t", name, "-o", "beginning", "-e", "-f", form)

    def metadata(self):
        assert b"broker" in self.kcat("-L")

    def produce_and_consume(self):
        lines = b"".join(b"k%d:value %d\n" % (n, n) for n in range(100))
        self.kcat("-P", "-t", topic("kcat"), "-K:", input=lines)
        found = self._consume(topic("kcat"), "%o %k %s\n")
        equal(found, b"".join(b"%d k%d value %d\n" % (n, n, n) for n in range(100)))

    def headers(self):
        name = topic("kcat-headers")
        self.kcat("-P", "-t", name, "-H", "a=1", "-H", "a=2", "-H", "b=", input=b"x\n")
        equal(self._consume(name, "%h\n"), b"a=1,a=2,b=\n")

    def nulls(self):
        name = topic("kcat-nulls")
        self.kcat("-P", "-t", name, "-K:", "-Z", input=b"k:\n")
        equal(self._consume(name, "%k %S\n"), b"k -1\n")

    def large(self):
        name = topic("kcat-large")
        with tempfile.NamedTemporaryFile() as file:
            file.write(os.urandom(LARGE))
            file.flush()
            self.kcat("-P", "-t", name, file.name)
        equal(self._consume(name, "%S\n"), b"%d\n" % LARGE)

    def codecs(self):
        for codec in CODECS:
            name = topic(f"kcat-{codec}")
            self.kcat("-P", "-t", name, "-z", codec, input=b"x" * 5000)
            equal(self._consume(name, "%S\n"), b"5000\n")

    def time_lookup(self):
        name = topic("kcat-times")
        self.kcat("-P", "-t", name, input=b"one\n")
        time.sleep(0.05)
        middle = int(time.time() * 1000)
        time.sleep(0.05)
        self.kcat("-P", "-t", name, input=b"two\n")
        found = self.kcat("-Q", "-t", f"{name}:0:{middle}")
        assert b"offset 1" in found, found


class ConfluentRecords(Confluent):
    name = "confluent-kafka records"

    def _send(self, name, records, **config):
        rows = [{"key": key, "value": value, "headers": headers} for key, value, headers in records]
        self.produce(name, rows, **config)

    def _read(self, name, count):
        consumer = self.lib.Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": f"unused-{RUN}",
                "enable.auto.commit": False,
                "fetch.message.max.bytes": 2_000_000,
            }
        )
        consumer.assign([self.lib.TopicPartition(name, 0, 0)])
        found = []
        deadline = time.time() + 60
        while len(found) < count and time.time() < deadline:
            message = consumer.poll(1.0)
            if message is not None:
                assert message.error() is None, message.error()
                found.append(message)
        consumer.close()
        equal(len(found), count)
        return found

    def produce_and_consume(self):
        name = topic("confluent")
        sent = [(b"k%d" % n, b"value %d" % n, None) for n in range(1000)]
        self._send(name, sent)
        found = self._read(name, 1000)
        equal([(m.offset(), m.key(), m.value()) for m in found],
              [(n, k, v) for n, (k, v, _) in enumerate(sent)])

    def idempotent(self):
        name = topic("confluent-idempotent")
        sent = [(None, b"%d" % n, None) for n in range(500)]
        self._send(name, sent, **{"enable.idempotence": True, "linger.ms": 0, "batch.num.messages": 10})
        equal([m.value() for m in self._read(name, 500)], [v for _, v, _ in sent])

    def headers_and_nulls(self):
        name = topic("confluent-headers")
        headers = [("a", b"1"), ("a", b"2"), ("b", None)]
        self._send(name, [(b"k", None, headers), (None, b"v", None)])
        first, second = self._read(name, 2)
        equal((first.key(), first.value(), first.headers()), (b"k", None, headers))
        equal((second.key(), second.value()), (None, b"v"))

    def large(self):
        name = topic("confluent-large")
        value = os.urandom(LARGE)
        self._send(name, [(None, value, None)])
        equal(self._read(name, 1)[0].value(), value)

    def too_large(self):
        name = topic("confluent-too-large")
        errors = []
        producer = self.producer(**{"message.max.bytes": 5_000_000})
        producer.produce(name, os.urandom(2_000_000), on_delivery=lambda e, _: errors.append(e))
        producer.flush(60)
        equal([error.name() for error in errors], ["MSG_SIZE_TOO_LARGE"])

    def codecs(self):
        for codec in CODECS:
            name = topic(f"confluent-{codec}")
            self._send(name, [(None, b"x" * 5000, None)], **{"compression.type": codec})
            equal(self._read(name, 1)[0].value(), b"x" * 5000)

    def acks(self):
        for acks in ["0", "1", "all"]:
            name = topic(f"confluent-acks-{acks}")
            self._send(name, [(None, b"x", None)], acks=acks)
            equal(self._read(name, 1)[0].value(), b"x")

    def topics(self):
        from confluent_kafka.admin import NewPartitions

        admin, name = self.admin(), topic("confluent-admin")
        self.create(name, 2, replication=1, config={"retention.ms": "60000"})
        equal(len(admin.list_topics(name, timeout=30).topics[name].partitions), 2)
        try:
            self.create(name, 2)
            raise AssertionError("a topic was made twice")
        except self.lib.KafkaException as error:
            equal(error.args[0].name(), "TOPIC_ALREADY_EXISTS")
        admin.create_partitions([NewPartitions(name, 4)])[name].result(30)
        equal(len(admin.list_topics(name, timeout=30).topics[name].partitions), 4)
        admin.delete_topics([name])[name].result(30)

    def configs(self):
        from confluent_kafka import admin as lib

        admin, name = self.admin(), topic("confluent-configs")
        self.create(name)

        def described():
            resource = lib.ConfigResource(lib.ConfigResource.Type.TOPIC, name)
            return admin.describe_configs([resource])[resource].result(30)

        equal(described()["retention.ms"].value, "604800000")
        entry = lib.ConfigEntry(
            "retention.ms", "1000", incremental_operation=lib.AlterConfigOpType.SET
        )
        resource = lib.ConfigResource(
            lib.ConfigResource.Type.TOPIC, name, incremental_configs=[entry]
        )
        admin.incremental_alter_configs([resource])[resource].result(30)
        found = described()["retention.ms"]
        equal((found.value, found.source), ("1000", lib.ConfigSource.DYNAMIC_TOPIC_CONFIG.value))
        entry = lib.ConfigEntry("no.such.key", "1", incremental_operation=lib.AlterConfigOpType.SET)
        resource = lib.ConfigResource(
            lib.ConfigResource.Type.TOPIC, name, incremental_configs=[entry]
        )
        try:
            admin.incremental_alter_configs([resource])[resource].result(30)
            raise AssertionError("an unknown key was taken")
        except self.lib.KafkaException as error:
            equal(error.args[0].name(), "INVALID_CONFIG")

    def delete_records(self):
        name = topic("confluent-delete-records")
        self._send(name, [(None, b"%d" % n, None) for n in range(10)])
        partition = self.lib.TopicPartition(name, 0, 4)
        admin = self.admin()
        done = admin.delete_records([partition])
        equal(list(done.values())[0].result(30).low_watermark, 4)
        consumer = self.lib.Consumer(
            {"bootstrap.servers": self.bootstrap, "group.id": f"unused-{RUN}"}
        )
        equal(consumer.get_watermark_offsets(self.lib.TopicPartition(name, 0), 30), (4, 10))
        consumer.close()

    def _refusal(self, name, **record):
        """The error that a record is refused with."""
        errors = []
        producer = self.producer()
        producer.produce(name, on_delivery=lambda e, _: errors.append(e), **record)
        producer.flush(60)
        return [error and error.name() for error in errors]

    def append_time(self):
        name = topic("confluent-append-time")
        self.create(name, config={"message.timestamp.type": "LogAppendTime"})
        told = []
        producer = self.producer()
        before = time.time()
        producer.produce(name, b"v", timestamp=5, on_delivery=lambda _, m: told.append(m.timestamp()))
        equal(producer.flush(60), 0)
        ((kind, millis),) = told
        equal(kind, self.lib.TIMESTAMP_LOG_APPEND_TIME)
        assert before - 2 < millis / 1000 < time.time() + 2, (before, millis)
        equal(self._read(name, 1)[0].timestamp(), (kind, millis))

    def refused_records(self):
        name = topic("confluent-times")
        self.create(name, config={"message.timestamp.before.max.ms": "60000"})
        now = int(time.time() * 1000)
        equal(self._refusal(name, value=b"v", timestamp=now + 7_200_000), ["INVALID_TIMESTAMP"])
        equal(self._refusal(name, value=b"v", timestamp=now - 120_000), ["INVALID_TIMESTAMP"])
        equal(self._refusal(name, value=b"v", timestamp=now), [None])
        name = topic("confluent-keyless")
        self.create(name, config={"cleanup.policy": "compact"})
        equal(self._refusal(name, value=b"v"), ["INVALID_RECORD"])
        equal(self._refusal(name, key=b"k", value=b"v"), [None])

    def compaction(self):
        name = topic("confluent-compacted")
        often = {"segment.ms": "1000", "min.cleanable.dirty.ratio": "0.01"}
        self.create(name, config={"cleanup.policy": "compact", **often})
        # Segments end by their age, and reach their files after two seconds.
        last = {}
        for turn in range(6):
            records = [(b"k%d" % (n % 20), b"%d of %d" % (n, turn), None) for n in range(100)]
            records.append((b"k0", None, None))
            codec = CODECS[turn % len(CODECS)]
            self._send(name, records, **{"compression.type": codec})
            last.update((key, value) for key, value, _ in records)
            time.sleep(3)
        deadline = time.time() + 90
        while True:
            found = self._read_to_end(name)
            view = {}
            for message in found:
                view[message.key()] = message.value()
            equal(view, last)
            offsets = [message.offset() for message in found]
            equal(offsets, sorted(set(offsets)))
            if len(found) <= 300:
                break
            assert time.time() < deadline, f"{len(found)} records are left"
            time.sleep(2)
        if shutil.which("kcat"):
            out = Kcat(self.cluster).kcat("-C", "-t", name, "-e", "-q", "-f", "%o %k\n")
            rows = [line.split() for line in out.decode().splitlines()]
            equal([key for _, key in rows][-1], "k0")
            assert {key.encode() for _, key in rows} == set(last), rows
            assert len(rows) <= 300, len(rows)

    def _read_to_end(self, name):
        consumer = self.lib.Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": f"unused-{RUN}",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
            }
        )
        consumer.assign([self.lib.TopicPartition(name, 0, 0)])
        found = []
        while True:
            message = consumer.poll(30)
            assert message is not None, "no end is reached"
            if message.error() is None:
                found.append(message)
                continue
            equal(message.error().name(), "_PARTITION_EOF")
            consumer.close()
            return found

    def describe_cluster(self):
        admin = self.admin()
        described = admin.describe_cluster().result(30)
        assert described.cluster_id and described.nodes, described


class KafkaPythonRecords(KafkaPython):
    name = "kafka-python records"

    def _send(self, name, records, **config):
        producer = self.lib.KafkaProducer(bootstrap_servers=self.bootstrap, **config)
        futures = [producer.send(name, **record) for record in records]
        for future in futures:
            future.get(60)
        producer.close()

    def _read(self, name, count):
        partition = self.lib.TopicPartition(name, 0)
        consumer = self.lib.KafkaConsumer(
            bootstrap_servers=self.bootstrap, consumer_timeout_ms=30_000, group_id=None
        )
        consumer.assign([partition])
        consumer.seek(partition, 0)
        found = []
        for record in consumer:
            found.append(record)
            if len(found) == count:
                break
        consumer.close()
        equal(len(found), count)
        return found

    def produce_and_consume(self):
        name = topic("python")
        self._send(name, [{"key": b"k%d" % n, "value": b"%d" % n} for n in range(200)])
        equal([(r.offset, r.key, r.value) for r in self._read(name, 200)],
              [(n, b"k%d" % n, b"%d" % n) for n in range(200)])

    def headers_and_nulls(self):
        name = topic("python-headers")
        headers = [("a", b"1"), ("a", b"2")]
        self._send(name, [{"key": b"k", "value": None, "headers": headers}])
        (found,) = self._read(name, 1)
        equal((found.key, found.value, list(found.headers)), (b"k", None, headers))

    def large(self):
        name = topic("python-large")
        value = os.urandom(LARGE)
        self._send(name, [{"value": value}])
        equal(self._read(name, 1)[0].value, value)

    def codecs(self):
        for codec in CODECS:
            name = topic(f"python-{codec}")
            self._send(name, [{"value": b"x" * 5000}], compression_type=codec)
            equal(self._read(name, 1)[0].value, b"x" * 5000)

    def time_lookup(self):
        name = topic("python-times")
        for n in range(5):
            self._send(name, [{"value": b"%d" % n, "timestamp_ms": 1_700_000_000_000 + n * 1000}])
        consumer = self.lib.KafkaConsumer(bootstrap_servers=self.bootstrap, group_id=None)
        partition = self.lib.TopicPartition(name, 0)
        found = consumer.offsets_for_times({partition: 1_700_000_001_500})[partition]
        equal((found.offset, found.timestamp), (2, 1_700_000_002_000))
        equal(consumer.offsets_for_times({partition: 1_800_000_000_000})[partition], None)
        equal(consumer.beginning_offsets([partition])[partition], 0)
        equal(consumer.end_offsets([partition])[partition], 5)
        consumer.close()


class AiokafkaRecords(Aiokafka):
    name = "aiokafka records"

    async def _send(self, name, values, **config):
        producer = self.lib.AIOKafkaProducer(bootstrap_servers=self.bootstrap, **config)
        await producer.start()
        try:
            for value in values:
                await producer.send_and_wait(name, value)
        finally:
            await producer.stop()

    async def _read(self, name, count):
        consumer = self.lib.AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap, group_id=None, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            partition = self.lib.TopicPartition(name, 0)
            consumer.assign([partition])
            await consumer.seek_to_beginning(partition)
            found = []
            while len(found) < count:
                found.append(await asyncio.wait_for(consumer.getone(), 30))
            return found
        finally:
            await consumer.stop()

    def produce_and_consume(self):
        async def run():
            name = topic("aio")
            await self._send(name, [b"%d" % n for n in range(50)], enable_idempotence=True)
            equal([(m.offset, m.value) for m in await self._read(name, 50)],
                  [(n, b"%d" % n) for n in range(50)])

        asyncio.run(run())

    def codecs(self):
        async def run():
            for codec in CODECS:
                name = topic(f"aio-{codec}")
                await self._send(name, [b"x" * 5000], compression_type=codec)
                equal((await self._read(name, 1))[0].value, b"x" * 5000)

        asyncio.run(run())


CLIENTS = [KcatRecords, ConfluentRecords, KafkaPythonRecords, AiokafkaRecords]
