#!/usr/bin/env python3
"""kcat and confluent-kafka as people use them: how many records of 1 KiB they move in a second.

    stock.py produce|consume BOOTSTRAP TOPIC COUNT SIZE REST_MS

As a program it is confluent-kafka's part, in a process of its own so that what it uses of the machine
can be told from what the measuring does. Consuming reads the whole topic several times, and says on
stderr how each went.
"""

import importlib.util
import shutil
import sys
import tempfile
import time

from shared import HERE, Missing, tell
from tools import PRODUCER

# A consumer of librdkafka that has 64 MiB waiting for its application rests for a second
# (`fetch.queue.backoff.ms`), and goes on from an empty queue. What it moves in the long run shows only
# after many such turns, or after as much without any. The sooner a server fills the queue, the less of
# it the application takes meanwhile, so with rests this long the slower server is ahead: a turn moves
# 64 MiB and what was taken while they came.
READINGS = 6
READING_SECONDS = 60
PATIENCE = READINGS * READING_SECONDS + 60


class Kcat:
    name = "kcat"
    count = 300_000
    records = {"produce": count, "consume": count}

    def __init__(self, size):
        if shutil.which("kcat") is None:
            raise Missing("kcat is not installed")
        self._lines = tempfile.NamedTemporaryFile(prefix="trilog-perf-")
        line = b"x" * size + b"\n"
        for _ in range(self.count // 1000):
            self._lines.write(line * 1000)
        self._lines.flush()

    def produce(self, bootstrap, topic):
        settings = [part for key, value in PRODUCER.items() for part in ("-X", f"{key}={value}")]
        command = ["kcat", "-P", "-b", bootstrap, "-t", topic, *settings, "-l", self._lines.name]
        return self._timed(command)

    def consume(self, bootstrap, topic):
        return self._timed(["kcat", "-C", "-q", "-b", bootstrap, "-t", topic, "-o", "beginning", "-e"])

    def _timed(self, command):
        begun = time.monotonic()
        with open("/dev/null", "wb") as nowhere:
            tell(command, stdout=nowhere)
        return self.count / (time.monotonic() - begun)


class Confluent:
    name = "confluent-kafka"
    count = 1_000_000
    records = {"produce": count, "consume": READINGS * count}
    # librdkafka's default.
    rest_ms = 1000

    def __init__(self, size):
        if importlib.util.find_spec("confluent_kafka") is None:
            raise Missing("confluent-kafka is not installed")
        self._size = size

    def produce(self, bootstrap, topic):
        return self._told("produce", bootstrap, topic)

    def consume(self, bootstrap, topic):
        return self._told("consume", bootstrap, topic)

    def _told(self, *what):
        numbers = [str(self.count), str(self._size), str(self.rest_ms)]
        return float(tell([sys.executable, str(HERE / "stock.py"), *what, *numbers], PATIENCE))


class ShortRests(Confluent):
    """The same client, awake while there is something to read."""

    name = "confluent-kafka-short-rests"
    rest_ms = 20


def produce(bootstrap, topic, count, size, _):
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": bootstrap, **PRODUCER})
    failed = []
    told = lambda error, _: error and failed.append(error)
    value = b"x" * size
    begun = time.monotonic()
    for _ in range(count):
        while True:
            try:
                producer.produce(topic, value, on_delivery=told)
                break
            except BufferError:
                producer.poll(0.01)
        producer.poll(0)
    assert producer.flush(120) == 0 and not failed, failed[:3]
    return count / (time.monotonic() - begun)


def consume(bootstrap, topic, count, _, rest_ms):
    records, seconds = 0, 0.0
    for _ in range(READINGS):
        read, took = reading(bootstrap, topic, count, rest_ms)
        print(f"{read} records in {took:.2f} s", file=sys.stderr)
        records, seconds = records + read, seconds + took
    return records / seconds


def reading(bootstrap, topic, count, rest_ms):
    """From when the first records have come until all have: how many, and the seconds."""
    from confluent_kafka import Consumer

    consumer = Consumer({
        "bootstrap.servers": bootstrap, "group.id": f"perf-{time.time_ns()}",
        "auto.offset.reset": "earliest", "enable.auto.commit": False,
        "fetch.queue.backoff.ms": rest_ms,
    })
    consumer.subscribe([topic])
    seen, first, begun, deadline = 0, 0, None, time.monotonic() + READING_SECONDS
    while seen < count:
        assert time.monotonic() < deadline, f"{seen} of {count}"
        # No more than there are: it waits for as many as it is asked for.
        found = consumer.consume(min(5000, count - seen), 1.0)
        failed = [str(one.error()) for one in found if one.error()]
        assert not failed, failed[:3]
        seen += len(found)
        # Joining a group is not moving data.
        if begun is None and seen:
            begun, first = time.monotonic(), seen
    took = time.monotonic() - begun
    consumer.close()
    return count - first, took


if __name__ == "__main__":
    mode, where, name, *numbers = sys.argv[1:]
    print({"produce": produce, "consume": consume}[mode](where, name, *map(int, numbers)))
