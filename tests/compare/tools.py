"""Apache Kafka's own performance tools, unmodified, and what they say."""

import datetime
import re

from shared import tell

# As its scripts start them (kafka-producer-perf-test.sh and others).
HEAP = "-Xmx512M"
# The client's defaults but for these, which its documentation names for throughput; librdkafka's have
# the same names.
PRODUCER = {"acks": "all", "batch.size": 65536, "linger.ms": 5}
PATIENCE = 300
NUMBER = r"([\d.,]+)"
PRODUCED = re.compile(
    rf"^(\d+)(?: steady state)? records sent, {NUMBER} records/sec \({NUMBER} MB/sec\), "
    rf"{NUMBER} ms avg latency, {NUMBER} ms max latency, "
    r"(\d+) ms 50th, (\d+) ms 95th, (\d+) ms 99th, (\d+) ms 99.9th",
    re.M,
)


def produced(said):
    """The last summary of ProducerPerformance: the one without warming up, where there is one."""
    rows = PRODUCED.findall(said)
    assert rows, f"no summary in: {said[-500:]}"
    number = lambda text: float(text.replace(",", "."))
    names = ["records", "rate", "mib", "average", "max", "p50", "p95", "p99", "p99.9"]
    return dict(zip(names, map(number, rows[-1])))


def consumed(said):
    """Records a second of ConsumerPerformance, from when the first have come until all have."""
    rows = [line.split(", ") for line in said.split("\n") if re.match(r"\d{4}-", line)]
    when = lambda row: datetime.datetime.strptime(row[0] + "000", "%Y-%m-%d %H:%M:%S:%f")
    counted = [(when(row).timestamp(), int(row[4])) for row in rows if int(row[4]) > 0]
    assert len(counted) > 1, f"too few rows in: {said[-500:]}"
    (began, first), (ended, last) = counted[0], counted[-1]
    return (last - first) / (ended - began)


def answered(said):
    """Milliseconds that EndToEndLatency found."""
    average = re.search(rf"Avg latency: {NUMBER} ms", said)
    rest = re.search(r"50th = (\d+), 99th = (\d+), 99.9th = (\d+)", said)
    assert average and rest, f"no summary in: {said[-500:]}"
    parts = [float(average.group(1).replace(",", ".")), *map(float, rest.groups())]
    return dict(zip(["average", "p50", "p99", "p99.9"], parts))


class Tools:
    """The Java tools, from a folder of jars."""

    def __init__(self, jars):
        self._java = ["java", HEAP, "-cp", f"{jars}/*"]

    def _run(self, tool, *args):
        return tell([*self._java, f"org.apache.kafka.tools.{tool}", *map(str, args)], PATIENCE)

    def produce(self, bootstrap, topic, records, size, warm, rate=-1):
        settings = {"bootstrap.servers": bootstrap, **PRODUCER}
        return produced(self._run(
            "ProducerPerformance", "--topic", topic, "--num-records", warm + records,
            "--warmup-records", warm, "--record-size", size, "--throughput", rate,
            "--command-property", *(f"{key}={value}" for key, value in settings.items()),
        ))

    def consume(self, bootstrap, topic, records):
        return consumed(self._run(
            "ConsumerPerformance", "--bootstrap-server", bootstrap, "--topic", topic,
            "--num-records", records, "--show-detailed-stats", "--reporting-interval", 20,
            "--timeout", 60000,
        ))

    def end_to_end(self, bootstrap, topic, records, size):
        return answered(self._run(
            "EndToEndLatency", "--bootstrap-server", bootstrap, "--topic", topic,
            "--num-records", records, "--producer-acks", "all", "--record-size", size,
        ))
