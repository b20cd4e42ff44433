"""Clients of other languages, where the machine has the language and can fetch the client."""

import pathlib
import shutil
import subprocess
import tempfile

from common import Missing, equal, topic

HERE = pathlib.Path(__file__).parent
PATIENCE = 180


def tell(command, **options):
    """Runs a command; what it printed, or why it failed."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said.strip()[-400:]
    return done.stdout


class Elsewhere:
    """A client whose sources are copied aside, where what it needs is fetched."""

    def __init__(self, cluster):
        self.bootstrap = cluster.bootstrap
        self.cluster = cluster
        for tool in self._needs:
            if shutil.which(tool) is None:
                raise Missing(f"{tool} is not installed")
        # Gone with this object.
        self._kept = tempfile.TemporaryDirectory(prefix="trilog-interop-")
        self._dir = self._kept.name
        shutil.copytree(HERE / self._sources, self._dir, dirs_exist_ok=True)
        try:
            tell(self._fetch, cwd=self._dir)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            raise Missing(f"cannot be fetched: {str(error)[-120:]}")


class Kafkajs(Elsewhere):
    name = "kafkajs"
    _needs = ["node", "npm"]
    _sources = "kafkajs"
    _fetch = ["npm", "install", "--no-audit", "--no-fund"]

    def group_and_transactions(self):
        tell(["node", "check.js", self.bootstrap, topic("kafkajs")], cwd=self._dir)


class FranzGo(Elsewhere):
    name = "franz-go"
    _needs = ["go"]
    _sources = "franz-go"
    _fetch = ["go", "build", "-o", "check", "."]

    def groups_and_exactly_once(self):
        tell(["./check", self.bootstrap, topic("franz")], cwd=self._dir)


class KafkaTools(Elsewhere):
    name = "Apache Kafka 4.1 tools"
    _needs = ["java", "mvn"]
    _sources = "kafka-tools"
    _fetch = ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib"]

    def _tool(self, tool, *args):
        command = ["java", "-Xmx256m", "-cp", "lib/*", f"org.apache.kafka.tools.{tool}", *args]
        return tell(command, cwd=self._dir)

    def _admin(self, tool, *args):
        return self._tool(tool, "--bootstrap-server", self.bootstrap, *args)

    def _produce(self, name, count, *args):
        properties = ["--producer-props", f"bootstrap.servers={self.bootstrap}", "acks=all"]
        return self._tool(
            "ProducerPerformance", "--topic", name, "--num-records", str(count),
            "--record-size", "1000", "--throughput", "-1", *args, *properties,
        )

    def _create(self, name):
        self._admin("TopicCommand", "--create", "--topic", name, "--partitions", "3")

    def perf_tools(self):
        name = topic("java-perf")
        self._create(name)
        said = self._produce(name, 50_000)
        assert "50000 records sent" in said, said
        said = self._admin("ConsumerPerformance", "--topic", name, "--messages", "50000")
        equal(int(said.strip().split("\n")[-1].split(",")[4]), 50_000)

    def topics(self):
        name = topic("java-topic")
        self._create(name)
        said = self._admin("TopicCommand", "--describe", "--topic", name)
        assert "PartitionCount: 3" in said and "ReplicationFactor: 3" in said, said
        said = self._admin("GetOffsetShell", "--topic", name)
        equal(sorted(said.split()), [f"{name}:{n}:0" for n in range(3)])
        self._admin("TopicCommand", "--delete", "--topic", name)

    def _groups(self, protocol):
        name, group = topic(f"java-{protocol}"), topic(f"java-{protocol}-group")
        self._create(name)
        self._produce(name, 300)
        said = self._admin(
            "consumer.ConsoleConsumer", "--topic", name, "--from-beginning",
            "--max-messages", "300", "--timeout-ms", "60000",
            "--consumer-property", f"group.protocol={protocol}",
            "--consumer-property", f"group.id={group}",
        )
        equal(len(said.split()), 300)
        of_group = ["--group", group]
        manage = "consumer.group.ConsumerGroupCommand"
        said = self._admin(manage, "--describe", *of_group)
        lag = [int(line.split()[5]) for line in said.split("\n") if line.startswith(group)]
        equal(sum(lag), 0)
        back = ["--reset-offsets", "--to-earliest", "--topic", name, "--execute"]
        self._admin(manage, *back, *of_group)
        said = self._admin(manage, "--describe", *of_group)
        lag = [int(line.split()[5]) for line in said.split("\n") if line.startswith(group)]
        equal(sum(lag), 300)
        self._admin(manage, "--delete", *of_group)
        assert group not in self._admin(manage, "--list")

    def classic_group(self):
        self._groups("classic")

    def consumer_group(self):
        self._groups("consumer")

    def transactions(self):
        name, id = topic("java-tx"), topic("java-tx-id")
        self._create(name)
        self._produce(name, 5_000, "--transactional-id", id, "--transaction-duration-ms", "100")
        said = self._admin("TransactionsCommand", "list")
        assert any(id in line and "CompleteCommit" in line for line in said.split("\n")), said
        read = ["--isolation-level", "read_committed", "--timeout-ms", "30000"]
        read += ["--from-beginning", "--max-messages", "5000"]
        said = self._admin("consumer.ConsoleConsumer", "--topic", name, *read)
        equal(len(said.split()), 5_000)


CLIENTS = [Kafkajs, FranzGo, KafkaTools]
