"""What Apache Kafka itself runs on the Java clients: its tools, Kafka Streams, Kafka Connect."""

import contextlib
import json
import pathlib
import subprocess
import time
import urllib.error
import urllib.request

from cluster import free_ports
from common import Missing, equal, topic, wait_until
from elsewhere import Elsewhere, fetch, tell


class Jvm(Elsewhere):
    fixture = "java"
    deadline = 420
    _needs = ["java", "javac", "mvn"]
    _sources = "jvm"

    def _prepare(self):
        copy = ["dependency:copy-dependencies", "-DoutputDirectory=lib"]
        fetch(["mvn", "-q", "-B", *copy], cwd=self._dir)
        tell(["javac", "-cp", "lib/*", "-d", ".", "Words.java"], cwd=self._dir)

    def _java(self, *args):
        quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        return ["java", "-Xmx256m", "-XX:+UseSerialGC", quiet, "-cp", "lib/*:.", *args]

    def _tool(self, tool, *args):
        return tell(self._java(f"org.apache.kafka.tools.{tool}", *args), cwd=self._dir)

    def _admin(self, tool, *args):
        return self._tool(tool, "--bootstrap-server", self.bootstrap, *args)

    def _create(self, name, partitions=3):
        self._admin("TopicCommand", "--create", "--topic", name, "--partitions", str(partitions))

    @contextlib.contextmanager
    def _running(self, name, *args):
        """A program while something is done; what it said is told when that fails."""
        path = pathlib.Path(self._dir) / f"{name}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(self._java(*args), cwd=self._dir, stdout=log, stderr=log)
        try:
            yield process
        except BaseException as error:
            error.add_note(f"{name}: {path.read_text()[-1500:]}")
            raise
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Tools(Jvm):
    name = "Apache Kafka 4.1 tools"

    def _produce(self, name, count, *args):
        properties = ["--producer-props", f"bootstrap.servers={self.bootstrap}", "acks=all"]
        return self._tool(
            "ProducerPerformance", "--topic", name, "--num-records", str(count),
            "--record-size", "1000", "--throughput", "-1", *args, *properties,
        )

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
        said = self._admin("TransactionsCommand", "describe", "--transactional-id", id)
        assert "CompleteCommit" in said, said
        said = self._admin("TransactionsCommand", "describe-producers", "--topic", name, "--partition", "0")
        assert "ProducerId" in said, said
        read = ["--isolation-level", "read_committed", "--timeout-ms", "30000"]
        read += ["--from-beginning", "--max-messages", "5000"]
        said = self._admin("consumer.ConsoleConsumer", "--topic", name, *read)
        equal(len(said.split()), 5_000)


class Streams(Jvm):
    name = "Kafka Streams, exactly_once_v2"
    # Half before a node and the application die, half while they are dead.
    lines = 3_000

    def _words(self, mode, *args):
        return tell(self._java("Words", mode, self.bootstrap, *args), cwd=self._dir)

    def deaths_in_a_word_count(self):
        """Each count comes once, though a node and then the application are killed in the middle."""
        if not self.cluster.is_ours:
            raise Missing("not a cluster of its own: no node may be killed")
        source, sink, id = topic("words"), topic("counts"), topic("word-count")
        self._create(source)
        self._create(sink)
        half, all = str(self.lines // 2), str(self.lines)
        with self._count(id, source, sink) as application:
            self._words("feed", source, "0", half)
            feeding = subprocess.Popen(
                self._java("Words", "feed", self.bootstrap, source, half, all), cwd=self._dir
            )
            try:
                time.sleep(1.5)
                self.cluster.kill(2)
                time.sleep(4)
                self.cluster.restart(2)
                application.kill()
                application.wait()
                with self._count(id, source, sink):
                    equal(feeding.wait(120), 0)
                    self._words("check", sink, all)
            finally:
                feeding.kill()
                feeding.wait()

    def _count(self, id, source, sink):
        return self._running("words", "Words", "count", self.bootstrap, id, source, sink, "state")


class Connect(Jvm):
    name = "Kafka Connect"

    def standalone(self):
        """Lines of a file become records, and lines of another file."""
        name = topic("connect-alone")
        source, sink = self._files(name)
        worker = {"offset.storage.file.filename": "offsets", "offset.flush.interval.ms": "500"}
        files = [self._properties("worker", {**self._worker(), **worker})]
        files.append(self._properties("source", source))
        files.append(self._properties("sink", sink))
        with self._running("alone", "org.apache.kafka.connect.cli.ConnectStandalone", *files):
            self._lines(source, sink, 0, 100)
        # It goes on where it was.
        with self._running("again", "org.apache.kafka.connect.cli.ConnectStandalone", *files):
            self._lines(source, sink, 100, 200)

    def distributed(self):
        """Two workers, one of which is killed, on topics that hold what they have to know."""
        name = topic("connect-group")
        source, sink = self._files(name)
        with self._member(name, "one") as (first, rest), self._member(name, "two") as (_, other):
            for connector in (source, sink):
                self._put(rest, connector)
            self._lines(source, sink, 0, 100)
            first.kill()
            first.wait()
            for connector in (source, sink):
                self._await_running(other, connector["name"])
            self._lines(source, sink, 100, 200)

    def _files(self, name):
        source, sink = (str(pathlib.Path(self._dir) / f"{name}.{end}") for end in ("in", "out"))
        pathlib.Path(source).touch()
        common = {"tasks.max": "1"}
        reader = {"name": f"{name}-source", "connector.class": "FileStreamSource", "file": source}
        writer = {"name": f"{name}-sink", "connector.class": "FileStreamSink", "file": sink}
        return {**common, **reader, "topic": name}, {**common, **writer, "topics": name}

    def _worker(self):
        converter = "org.apache.kafka.connect.storage.StringConverter"
        return {
            "bootstrap.servers": self.bootstrap,
            "key.converter": converter,
            "value.converter": converter,
            # Looking through all jars takes more than a minute.
            "plugin.discovery": "service_load",
            "listeners": f"http://127.0.0.1:{free_ports(1)}",
            "consumer.auto.offset.reset": "earliest",
        }

    @contextlib.contextmanager
    def _member(self, group, which):
        settings = {**self._worker(), "group.id": group, "offset.flush.interval.ms": "500"}
        # So that a worker that is killed is missed soon.
        settings |= {"session.timeout.ms": "6000", "heartbeat.interval.ms": "1000"}
        settings |= {"scheduled.rebalance.max.delay.ms": "1000"}
        for kind in ("offset", "config", "status"):
            settings[f"{kind}.storage.topic"] = f"{group}-{kind}"
            settings[f"{kind}.storage.replication.factor"] = "3"
        file = self._properties(which, settings)
        rest = settings["listeners"]
        main = "org.apache.kafka.connect.cli.ConnectDistributed"
        with self._running(which, main, file) as process:
            wait_until("a worker answers", lambda: ask(f"{rest}/connectors") is not None, 120)
            yield process, rest

    def _properties(self, name, settings):
        path = pathlib.Path(self._dir) / f"{name}.properties"
        path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        return str(path)

    def _put(self, rest, connector):
        config = {key: value for key, value in connector.items() if key != "name"}
        url = f"{rest}/connectors/{connector['name']}/config"
        # While the workers rebalance they answer that they do.
        wait_until("it is taken", lambda: ask(url, config) is not None, 60)
        self._await_running(rest, connector["name"])

    def _await_running(self, rest, name):
        def runs():
            status = ask(f"{rest}/connectors/{name}/status") or {}
            parts = [status.get("connector"), *status.get("tasks", [])]
            return len(parts) == 2 and all(part and part["state"] == "RUNNING" for part in parts)

        wait_until(f"{name} runs", runs, 90)

    def _lines(self, source, sink, first, end):
        with open(source["file"], "a") as file:
            file.writelines(f"line {n}\n" for n in range(first, end))
        out = pathlib.Path(sink["file"])
        wanted = [f"line {n}" for n in range(end)]
        # A worker that is killed may do its last lines again.
        distinct = lambda: sorted(set(out.read_text().split("\n")[:-1])) if out.exists() else []
        wait_until(f"{end} lines", lambda: distinct() == sorted(wanted), 90)


def ask(url, config=None):
    """What a worker answers, if it can already."""
    body = None if config is None else json.dumps(config).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, body, headers, method="PUT" if body else "GET")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        assert error.code in (404, 409, 500, 503), error.read()
        return None
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return None


CLIENTS = [Tools, Streams, Connect]
