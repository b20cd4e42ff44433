"""Apache Kafka from its published Java packages: three processes, brokers and controllers at once.

The Java options are those of its own start script (kafka-server-start.sh, kafka-run-class.sh); the
settings are its defaults but for what three on one machine need.
"""

import base64
import pathlib
import re
import shutil
import subprocess
import tempfile
import uuid

from shared import HERE, Missing, cache, fetch, free_ports

NODES = 3
POM = HERE / "kafka" / "pom.xml"
VERSION = re.search(r"<kafka.version>([\d.]+)<", POM.read_text()).group(1)
JAVA = [
    "-Xms1G", "-Xmx1G", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent",
    "-Djava.awt.headless=true",
]
# By stage. Retention looks for the first time after 30 seconds and then every five minutes by default,
# which no short run would see; as often as Trilog does, the sides have the same to do.
STAGES = {"faults": {"log.initial.task.delay.ms": 1000, "log.retention.check.interval.ms": 10_000}}
COMMON = {
    # As many acknowledgements as a majority is.
    "min.insync.replicas": 2,
    # So that a run does not wait for its consumers, and its disk not for a minute.
    "group.initial.rebalance.delay.ms": 0,
    "log.segment.delete.delay.ms": 1000,
}


def jars():
    """The folder of all that a broker and its tools consist of, fetched once."""
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise Missing(f"{program} is not installed")
    folder = cache(f"kafka-{VERSION}")
    copy = ["dependency:copy-dependencies", f"-DoutputDirectory={folder}"]
    fetch(["mvn", "-q", "-B", "-f", str(POM), *copy])
    return folder


class Kafka:
    name = "kafka"
    title = f"Apache Kafka {VERSION}"
    dialect = "kafka"
    settings = {**COMMON, "java": " ".join(JAVA)}
    stages = STAGES
    topic = {}

    @classmethod
    def prepare(cls):
        cls._jars = jars()

    def __init__(self, stage):
        self._java = ["java", *JAVA, "-cp", f"{self._jars}/*"]
        self._kept = tempfile.TemporaryDirectory(prefix="trilog-compare-")
        self.folder = self._kept.name
        first = free_ports(2 * NODES)
        self._ports = {n: first + n - 1 for n in range(1, NODES + 1)}
        self.bootstrap = ",".join(f"127.0.0.1:{port}" for port in self._ports.values())
        self._processes = {}
        files = [self._configured(n, {**COMMON, **self.stages.get(stage, {})}) for n in self._ports]
        self._format(files)
        for n in self._ports:
            self._start(n)

    def _configured(self, n, settings):
        voters = (f"{m}@127.0.0.1:{port + NODES}" for m, port in self._ports.items())
        listeners = f"PLAINTEXT://127.0.0.1:{self._ports[n]}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": n,
            "controller.quorum.voters": ",".join(voters),
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{listeners},CONTROLLER://127.0.0.1:{self._ports[n] + NODES}",
            "log.dirs": pathlib.Path(self.folder) / str(n),
            **settings,
        }
        file = pathlib.Path(self.folder) / f"{n}.properties"
        file.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        return str(file)

    def _format(self, files):
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().strip("=")
        tool = ["java", "-cp", f"{self._jars}/*", "kafka.tools.StorageTool", "format", "-t", cluster]
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        for process in [subprocess.Popen([*tool, "-c", file], **piped) for file in files]:
            said = process.communicate(timeout=120)[0]
            assert process.returncode == 0, f"not formatted, {process.returncode}: {said[-500:]}"

    def _start(self, n):
        with (pathlib.Path(self.folder) / f"{n}.log").open("ab") as log:
            start = [*self._java, "kafka.Kafka", f"{self.folder}/{n}.properties"]
            self._processes[n] = subprocess.Popen(start, stdout=log, stderr=log)

    def pids(self):
        return {n: process.pid for n, process in self._processes.items()}

    def restart(self, n):
        # It was killed; what is left of it is its exit status.
        self._processes[n].wait(60)
        self._start(n)

    def stop(self):
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._kept.cleanup()


class Flushing(Kafka):
    """Syncs each batch before it is acknowledged, as Trilog always does."""

    name = "kafka-flush"
    title = f"Apache Kafka {VERSION}, flush.messages=1"
    topic = {"flush.messages": 1}
