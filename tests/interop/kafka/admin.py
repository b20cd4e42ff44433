"""What operators do with the clients' tools: quotas, moves, elections, and looking at a cluster."""

import json
import pathlib
import time

from clients import Confluent, KafkaPython
from common import RUN, Missing, equal, topic, wait_until
from elsewhere import tell
from jvm import Jvm


class ToolsAdmin(Jvm):
    name = "Apache Kafka 4.1 tools, admin"

    def _configs(self, *args):
        command = self._java("kafka.admin.ConfigCommand", "--bootstrap-server", self.bootstrap)
        return tell([*command, *args], cwd=self._dir)

    def _file(self, name, content):
        path = pathlib.Path(self._dir) / name
        path.write_text(json.dumps(content))
        return str(path)

    def _write(self, name, client, count):
        """How long records of 1,000 bytes took, and for how long the client was held back."""
        began = time.time()
        said = self._tool(
            "ProducerPerformance", "--topic", name, "--num-records", str(count),
            "--record-size", "1000", "--throughput", "-1", "--print-metrics", "--producer-props",
            f"bootstrap.servers={self.bootstrap}", "acks=all", f"client.id={client}",
        )
        assert f"{count} records sent" in said, said
        throttled = [line for line in said.split("\n") if "produce-throttle-time-max" in line]
        return time.time() - began, max(float(line.rsplit(":", 1)[1]) for line in throttled)

    def quotas(self):
        name, client = topic("quota"), f"quota-{RUN}"
        self._create(name, 1)
        _, held = self._write(name, client, 2_000)
        equal(held, 0.0)
        # Ten seconds' worth is there at once; the rest takes its time.
        of_client = ["--entity-type", "clients", "--entity-name", client]
        rate = "producer_byte_rate=200000,request_percentage=150.5"
        self._configs("--alter", *of_client, "--add-config", rate)
        said = self._configs("--describe", *of_client)
        assert "producer_byte_rate=200000.0" in said and "request_percentage=150.5" in said, said
        took, held = self._write(name, client, 3_000)
        assert took > 4 and held > 100, (took, held)
        self._configs("--alter", *of_client, "--delete-config", "producer_byte_rate,request_percentage")
        assert "producer_byte_rate" not in self._configs("--describe", *of_client)
        _, held = self._write(name, client, 3_000)
        equal(held, 0.0)

    def quotas_of_users(self):
        of_both = ["--entity-type", "users", "--entity-name", f"ann-{RUN}"]
        of_both += ["--entity-type", "clients", "--entity-default"]
        self._configs("--alter", *of_both, "--add-config", "consumer_byte_rate=12345")
        said = self._configs("--describe", *of_both)
        assert "consumer_byte_rate=12345.0" in said, said
        said = self._configs("--describe", "--entity-type", "users")
        assert "12345" not in said, said
        self._configs("--alter", *of_both, "--delete-config", "consumer_byte_rate")
        try:
            wrong = ["--add-config", "controller_mutation_rate=3"]
            self._configs("--alter", *of_both, *wrong)
        except AssertionError as refused:
            assert "not held to" in str(refused), refused
        else:
            raise AssertionError("a quota that nothing is held to was taken")

    def moves_and_elections(self):
        name = topic("moved")
        self._create(name, 2)
        moved = {"topic": name, "partition": 0, "replicas": [3, 2]}
        plan = ["--reassignment-json-file", self._file("moves.json", {"version": 1, "partitions": [moved]})]
        move = "reassign.ReassignPartitionsCommand"
        self._admin(move, *plan, "--execute")
        done = lambda: f"{name}-0 is completed" in self._admin(move, *plan, "--verify")
        wait_until("it is moved", done, 60)
        said = self._admin("TopicCommand", "--describe", "--topic", name)
        assert "Partition: 0\tLeader: 3\tReplicas: 3,2" in said, said
        partitions = {"partitions": [{"topic": name, "partition": index} for index in (0, 1)]}
        wanted = ["--path-to-json-file", self._file("elections.json", partitions)]
        said = self._admin("LeaderElectionCommand", "--election-type", "preferred", *wanted)
        assert "Error" not in said, said
        assert "No partition reassignments" in self._admin(move, "--list")

    def log_dirs(self):
        name = topic("sized")
        self._create(name, 1)
        self._write(name, "sized", 100)
        said = self._admin("LogDirsCommand", "--describe", "--topic-list", name)
        told = json.loads(said[said.index("{"):])
        equal(len(told["brokers"]), 3)
        sizes = [
            partition["size"]
            for broker in told["brokers"]
            for directory in broker["logDirs"]
            for partition in directory["partitions"]
        ]
        assert len(sizes) == 3 and min(sizes) >= 100_000, told

    def quorum(self):
        said = self._admin("MetadataQuorumCommand", "describe", "--status")
        assert "LeaderId:" in said and "CurrentVoters:" in said, said
        rows = self._admin("MetadataQuorumCommand", "describe", "--replication").split("\n")
        rows = [row.split() for row in rows if row[:1].isdigit()]
        equal(sum(row[-1] == "Leader" for row in rows), 1)
        equal(sorted(row[0] for row in rows), ["1", "2", "3"])

    def features(self):
        said = self._admin("FeatureCommand", "describe")
        assert "group.version" in said and "FinalizedVersionLevel: 1" in said, said
        self._admin("FeatureCommand", "upgrade", "--feature", "group.version=1")
        for wrong in [["downgrade", "--feature", "group.version=0"],
                      ["upgrade", "--feature", "metadata.version=27"]]:
            try:
                self._admin("FeatureCommand", *wrong)
            except AssertionError as refused:
                assert "Invalid update version" in str(refused), refused
            else:
                raise AssertionError(f"{wrong} was taken")

    def config_resources(self):
        name = topic("configured")
        self._create(name, 1)
        said = self._configs("--describe", "--entity-type", "topics")
        assert name in said, said
        assert not self._admin("ClientMetricsCommand", "--list").strip()

    def hanging_transactions(self):
        name = topic("hanging")
        self._create(name, 1)
        said = self._admin("TransactionsCommand", "find-hanging", "--broker-id", "1")
        assert name not in said, said


    def transaction_ended_by_hand(self):
        try:
            import confluent_kafka
        except ImportError as error:
            raise Missing(f"nobody to leave one open: {error}")
        name = topic("left-open")
        self._create(name, 1)
        producer = confluent_kafka.Producer(
            {"bootstrap.servers": self.bootstrap, "transactional.id": topic("left-open-id")}
        )
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce(name, b"never read")
        producer.flush(30)
        place = ["--topic", name, "--partition", "0"]
        tell_of = lambda: self._admin("TransactionsCommand", "describe-producers", *place)
        row = tell_of().strip().split("\n")[-1].split()
        equal(row[-1], "0")
        self._admin("TransactionsCommand", "abort", *place, "--start-offset", "0")
        equal(tell_of().strip().split("\n")[-1].split()[-1], "None")


class ConfluentAdmin(Confluent):
    name = "confluent-kafka, admin"

    def elections(self):
        name = topic("elected-lib")
        self.create(name, 2)
        kafka, lib = self.admin(), self.lib
        partitions = [lib.TopicPartition(name, index) for index in range(2)]
        kind = lib.ElectionType.PREFERRED
        for partition, error in kafka.elect_leaders(kind, partitions).result(30).items():
            needless = lib.KafkaError.ELECTION_NOT_NEEDED
            assert error is None or error.code() == needless, (partition, error)


class KafkaPythonAdmin(KafkaPython):
    name = "kafka-python, admin"

    def _load(self):
        lib = super()._load()
        if not hasattr(lib.KafkaAdminClient, "describe_topic_partitions"):
            raise Missing("kafka-python is older than 3")
        return lib

    def topics_by_page(self):
        name, admin = topic("paged"), self.admin()
        admin.create_topics({name: {"num_partitions": 3, "replication_factor": 3}}, wait_for_metadata=True)
        first = admin.describe_topic_partitions([name], response_partition_limit=2)
        cursor = first["next_cursor"]
        equal((cursor["topic_name"], cursor["partition_index"]), (name, 2))
        rest = admin.describe_topic_partitions([name], cursor=cursor)
        equal(rest["next_cursor"], None)
        pages = [page["topics"][0]["partitions"] for page in (first, rest)]
        told = [partition["partition_index"] for page in pages for partition in page]
        equal(told, [0, 1, 2])
        admin.close()

    def moves_and_elections(self):
        name, admin = topic("moved-py"), self.admin()
        admin.create_topics({name: {"num_partitions": 1, "replication_factor": 3}}, wait_for_metadata=True)
        partition = self.lib.TopicPartition(name, 0)
        equal(admin.alter_partition_reassignments({partition: [2, 1]}), {partition: None})
        wait_until("it is moved", lambda: not admin.list_partition_reassignments([partition]), 60)
        admin.list_partition_reassignments()
        admin.elect_leaders(0, {name: [0]})
        admin.close()

    def looking(self):
        admin = self.admin()
        quorum = lambda: admin.describe_metadata_quorum()["topics"][0]["partitions"][0]
        wait_until("all three vote", lambda: len(quorum()["current_voters"]) == 3)
        assert quorum()["leader_id"] in (1, 2, 3), quorum()
        assert "group.version" in str(admin.describe_features())
        admin.update_features({"group.version": 1}, validate_only=True)
        [brokers] = admin.list_config_resources(["BROKER"]).values()
        equal(sorted(brokers), ["1", "2", "3"])
        equal(len(admin.describe_log_dirs()), 3)
        admin.list_transactions()
        admin.close()


CLIENTS = [ToolsAdmin, ConfluentAdmin, KafkaPythonAdmin]
