"""Clients that say who they are, and are held to what they may do.

They get a cluster of their own, whose nodes ask everybody: the development cluster asks nobody.
"""

import asyncio
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import jvm
from cluster import free_ports
from common import RUN, Missing, equal, topic, wait_until
from elsewhere import tell

PASSWORD = "correct-horse-battery"
MECHANISMS = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


class Secured:
    """Three nodes that ask everybody; one for all checks of a run."""

    running = None

    @classmethod
    def of(cls, cluster):
        if not cluster.is_ours:
            raise Missing("the cluster given asks nobody, or is not ours to configure")
        if cls.running is None:
            cls.running = cls(cluster.trilog, free_ports(30))
            if capture := getattr(cluster, "capture", None):
                capture.listen_to(cls.running.kafka_ports)
        return cls.running

    def __init__(self, trilog, port):
        self.trilog = trilog
        self.data = tempfile.mkdtemp(prefix="trilog-interop-access-")
        self.admin_file = self._write("admin", f"admin:{PASSWORD}\n")
        ports = [port + 10 * node for node in range(3)]
        self.kafka_ports = [port + 3 for port in ports]
        self.bootstrap = ",".join(f"127.0.0.1:{port}" for port in self.kafka_ports)
        self.server = ",".join(f"127.0.0.1:{port}" for port in ports)
        seeds = ", ".join(f'"127.0.0.1:{port + 1}"' for port in ports)
        self.nodes = [self._start(node + 1, port, seeds) for node, port in enumerate(ports)]
        wait_until("the cluster serves", lambda: self.trilog_as("admin", "topic", "ls"), 60)

    def _write(self, name, text):
        path = os.path.join(self.data, name)
        with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            file.write(text)
        return path

    def _start(self, number, port, seeds):
        home = os.path.join(self.data, f"node-{number}")
        os.mkdir(home)
        config = self._write(
            f"node-{number}/trilog.toml",
            f'''
[node]
id = {number}
data_dir = "{home}/data"
[cluster]
seeds = [{seeds}]
[listen]
grpc = "127.0.0.1:{port}"
peer = "127.0.0.1:{port + 1}"
http = "127.0.0.1:{port + 2}"
kafka = "127.0.0.1:{port + 3}"
[access]
authentication = "required"
super_users = ["admin"]
admin_file = "{self.admin_file}"
[storage]
wal_file_size = "16MiB"
wal_files = 8
''',
        )
        log = open(os.path.join(home, "log"), "w")
        command = [self.trilog, "server", "-c", config]
        command += ["--set=raft.election_timeout_min=1500ms", "--set=raft.election_timeout_max=2s"]
        return subprocess.Popen(command, stdout=log, stderr=log)

    def trilog_as(self, user, *args, **more):
        """Whether a command of the binary succeeds."""
        env = {**os.environ, "TRILOG_SERVER": self.server, "TRILOG_USER": user,
               "TRILOG_PASSWORD": PASSWORD, **more}
        command = [self.trilog, *args]
        done = subprocess.run(command, env=env, capture_output=True, timeout=60, check=False)
        return done.returncode == 0

    def user(self, name):
        assert self.trilog_as("admin", "user", "add", name, TRILOG_NEW_PASSWORD=PASSWORD)
        return name

    @classmethod
    def stop(cls):
        if cls.running is None:
            return
        for node in cls.running.nodes:
            node.send_signal(signal.SIGTERM)
        for node in cls.running.nodes:
            node.wait(60)
        shutil.rmtree(cls.running.data, ignore_errors=True)
        cls.running = None


class ConfluentAccess:
    name = "confluent-kafka, asked"
    fixture = "confluent-kafka"

    def __init__(self, cluster):
        try:
            import confluent_kafka
            import confluent_kafka.admin
        except ImportError as error:
            raise Missing(str(error))
        self._lib = confluent_kafka
        self._kept = None
        self._cluster = Secured.of(cluster)

    def _config(self, user, mechanism="SCRAM-SHA-256", password=PASSWORD, **more):
        return {
            "bootstrap.servers": self._cluster.bootstrap,
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": mechanism,
            "sasl.username": user,
            "sasl.password": password,
            **more,
        }

    def _admin(self):
        # Kept: what is asked of one that is gone is not answered.
        if self._kept is None:
            self._kept = self._lib.admin.AdminClient(self._config("admin"))
        return self._kept

    def _allow(self, user, kind, name, operation, pattern="LITERAL", permission="ALLOW"):
        admin = self._lib.admin
        rule = admin.AclBinding(
            getattr(admin.ResourceType, kind), name, getattr(admin.ResourcePatternType, pattern),
            f"User:{user}", "*", getattr(admin.AclOperation, operation),
            getattr(admin.AclPermissionType, permission),
        )
        for made in self._admin().create_acls([rule]).values():
            made.result(30)
        return rule

    def _produce(self, user, name, **config):
        """The error of one record, if there is one."""
        outcome = []
        producer = self._lib.Producer(self._config(user, **config))
        producer.produce(name, b"value", on_delivery=lambda error, _: outcome.append(error))
        producer.flush(30)
        assert outcome, "no outcome"
        return outcome[0]

    def mechanisms(self):
        user, name = self._cluster.user(f"lib-{RUN}"), topic("access-lib")
        self._allow(user, "TOPIC", name, "WRITE")
        self._allow(user, "TOPIC", name, "CREATE")
        for mechanism in MECHANISMS:
            equal(self._produce(user, name, mechanism=mechanism), None)

    def wrong_passwords(self):
        errors = []
        config = self._config("admin", password="wrong", error_cb=errors.append)
        client = self._lib.Producer(config)
        deadline = time.time() + 30
        while not errors and time.time() < deadline:
            client.poll(0.1)
        assert errors and errors[0].code() == self._lib.KafkaError._AUTHENTICATION, errors

    def rules(self):
        user, name = self._cluster.user(f"rules-{RUN}"), topic("access-rules")
        futures = self._admin().create_topics([self._lib.admin.NewTopic(name, 3)])
        futures[name].result(30)
        denied = self._lib.KafkaError.TOPIC_AUTHORIZATION_FAILED
        equal(self._produce(user, name, **{"message.timeout.ms": 20000}).code(), denied)
        self._allow(user, "TOPIC", topic("access"), "WRITE", pattern="PREFIXED")
        wait_until("the rule counts", lambda: self._produce(user, name) is None)
        group = topic("access-group")
        consumer = self._lib.Consumer(
            self._config(user, **{"group.id": group, "auto.offset.reset": "earliest"})
        )
        consumer.subscribe([name])

        def refusal():
            message = consumer.poll(1)
            return message and message.error() and message.error().code()

        denied = self._lib.KafkaError.GROUP_AUTHORIZATION_FAILED
        wait_until("the group is refused", lambda: refusal() == denied)
        consumer.close()
        self._allow(user, "GROUP", group, "READ")
        self._allow(user, "TOPIC", name, "READ")
        consumer = self._lib.Consumer(
            self._config(user, **{"group.id": group, "auto.offset.reset": "earliest"})
        )
        consumer.subscribe([name])
        read = wait_until("it reads", lambda: consumer.poll(1))
        equal((read.error(), read.value()), (None, b"value"))
        consumer.close()
        deny = self._allow(user, "TOPIC", name, "WRITE", permission="DENY")
        wait_until("what denies wins", lambda: self._produce(user, name) is not None)
        filter_ = self._lib.admin.AclBindingFilter(
            deny.restype, deny.name, deny.resource_pattern_type, deny.principal, deny.host,
            deny.operation, deny.permission_type,
        )
        for gone in self._admin().delete_acls([filter_]).values():
            equal(len(gone.result(30)), 1)
        wait_until("it is taken back", lambda: self._produce(user, name) is None)

    def users(self):
        admin, kafka = self._lib.admin, self._admin()
        user, name = f"made-{RUN}", topic("access-made")
        info = admin.ScramCredentialInfo(admin.ScramMechanism.SCRAM_SHA_512, 8192)
        made = admin.UserScramCredentialUpsertion(user, info, PASSWORD.encode())
        for done in kafka.alter_user_scram_credentials([made]).values():
            done.result(30)
        described = kafka.describe_user_scram_credentials([user])[user].result(30)
        [found] = described.scram_credential_infos
        equal((found.mechanism, found.iterations), (info.mechanism, 8192))
        self._allow(user, "TOPIC", name, "ALL")
        equal(self._produce(user, name, mechanism="SCRAM-SHA-512"), None)
        gone = admin.UserScramCredentialDeletion(user, admin.ScramMechanism.SCRAM_SHA_512)
        for done in kafka.alter_user_scram_credentials([gone]).values():
            done.result(30)


class KafkaPythonAccess:
    name = "kafka-python, asked"
    fixture = "kafka-python"

    def __init__(self, cluster):
        try:
            import kafka.admin
        except ImportError as error:
            raise Missing(str(error))
        self._lib = kafka
        self._cluster = Secured.of(cluster)

    def _config(self, mechanism, password=PASSWORD):
        return {
            "bootstrap_servers": self._cluster.bootstrap.split(","),
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": mechanism,
            "sasl_plain_username": "admin",
            "sasl_plain_password": password,
        }

    def mechanisms(self):
        for mechanism in MECHANISMS:
            name = topic(f"access-py-{mechanism}")
            producer = self._lib.KafkaProducer(**self._config(mechanism))
            producer.send(name, b"value").get(30)
            producer.close()
            consumer = self._lib.KafkaConsumer(
                name, auto_offset_reset="earliest", consumer_timeout_ms=20000,
                **self._config(mechanism),
            )
            equal(next(consumer).value, b"value")
            consumer.close()


    def users_and_rules(self):
        admin, user = self._lib.admin, f"py-{RUN}"
        kafka = admin.KafkaAdminClient(**self._config("SCRAM-SHA-256"))
        kind = admin.ScramMechanism.SCRAM_SHA_256
        made = admin.UserScramCredentialUpsertion(user, kind, PASSWORD, iterations=8192)
        equal(kafka.alter_user_scram_credentials([made]), {user: None})
        assert "8192" in str(kafka.describe_user_scram_credentials([user]))
        pattern = admin.ResourcePattern(admin.ResourceType.TOPIC, topic("ruled-py"))
        read, allow = admin.ACLOperation.READ, admin.ACLPermissionType.ALLOW
        rule = [f"User:{user}", "*", read, allow, pattern]
        equal(kafka.create_acls([admin.ACL(*rule)])["failed"], [])
        found, _ = kafka.describe_acls(admin.ACLFilter(*rule))
        equal(len(found), 1)
        kafka.delete_acls([admin.ACLFilter(*rule)])
        equal(kafka.describe_acls(admin.ACLFilter(*rule))[0], [])
        gone = admin.UserScramCredentialDeletion(user, kind)
        equal(kafka.alter_user_scram_credentials([gone]), {user: None})
        kafka.close()


class AiokafkaAccess:
    name = "aiokafka, asked"
    fixture = "aiokafka"

    def __init__(self, cluster):
        try:
            import aiokafka
        except ImportError as error:
            raise Missing(str(error))
        self._lib = aiokafka
        self._cluster = Secured.of(cluster)

    def mechanisms(self):
        async def run():
            for mechanism in MECHANISMS:
                config = {
                    "bootstrap_servers": self._cluster.bootstrap,
                    "security_protocol": "SASL_PLAINTEXT",
                    "sasl_mechanism": mechanism,
                    "sasl_plain_username": "admin",
                    "sasl_plain_password": PASSWORD,
                }
                name = topic(f"access-aio-{mechanism}")
                producer = self._lib.AIOKafkaProducer(**config)
                await producer.start()
                await producer.send_and_wait(name, b"value")
                await producer.stop()
                consumer = self._lib.AIOKafkaConsumer(name, auto_offset_reset="earliest", **config)
                await consumer.start()
                read = await asyncio.wait_for(consumer.getone(), 30)
                equal(read.value, b"value")
                await consumer.stop()

        asyncio.run(run())


class ToolsAccess(jvm.Jvm):
    name = "Apache Kafka 4.1 tools, asked"

    def __init__(self, cluster):
        secured = Secured.of(cluster)
        super().__init__(cluster)
        self._secured = secured

    def _as(self, user, mechanism):
        module = "plain.PlainLoginModule" if mechanism == "PLAIN" else "scram.ScramLoginModule"
        text = (
            "security.protocol=SASL_PLAINTEXT\n"
            f"sasl.mechanism={mechanism}\n"
            f"sasl.jaas.config=org.apache.kafka.common.security.{module} required "
            f'username="{user}" password="{PASSWORD}";\n'
        )
        path = pathlib.Path(self._dir) / f"{user}-{mechanism}.properties"
        path.write_text(text)
        return str(path)

    def _perf(self, name, config, records=100):
        return self._tool(
            "ProducerPerformance", "--topic", name, "--num-records", str(records),
            "--record-size", "100",
            "--throughput", "-1", "--producer.config", config,
            "--producer-props", f"bootstrap.servers={self._secured.bootstrap}",
        )

    def users_and_their_quotas(self):
        user, name = f"configs-{RUN}", topic("access-configs")
        admin = self._as("admin", "SCRAM-SHA-256")
        command = ["kafka.admin.ConfigCommand", "--bootstrap-server", self._secured.bootstrap]
        command += ["--command-config", admin, "--entity-type", "users"]
        configs = lambda *args: tell(self._java(*command, *args), cwd=self._dir)
        of_user = ["--entity-name", user]
        scram = f"SCRAM-SHA-512=[iterations=8192,password={PASSWORD}]"
        configs("--alter", *of_user, "--add-config", scram)
        configs("--alter", *of_user, "--add-config", "producer_byte_rate=5000")
        said = configs("--describe", *of_user)
        assert "SCRAM-SHA-512=iterations=8192" in said, said
        assert "producer_byte_rate=5000.0" in said, said
        assert user in configs("--describe")
        self._tool(
            "AclCommand", "--bootstrap-server", self._secured.bootstrap, "--command-config", admin,
            "--add", "--allow-principal", f"User:{user}", "--producer", "--topic", name,
        )
        # The first ten seconds' worth and a half: a second and more of them late.
        began = time.time()
        said = self._perf(name, self._as(user, "SCRAM-SHA-512"), 750)
        assert "750 records sent" in said, said
        assert time.time() - began > 2, said
        for key in ["SCRAM-SHA-512", "producer_byte_rate"]:
            configs("--alter", *of_user, "--delete-config", key)
        assert user not in configs("--describe")

    def kafka_acls(self):
        user, name = self._secured.user(f"java-{RUN}"), topic("access-java")
        admin = self._as("admin", "SCRAM-SHA-512")
        acls = ["AclCommand", "--bootstrap-server", self._secured.bootstrap,
                "--command-config", admin]
        said = self._tool(
            *acls, "--add", "--allow-principal", f"User:{user}", "--operation", "Write",
            "--operation", "Create", "--operation", "Describe", "--topic", name,
        )
        assert "WRITE" in said and "ALLOW" in said, said
        for mechanism in MECHANISMS:
            said = self._perf(name, self._as(user, mechanism))
            assert "100 records sent" in said, said
        said = self._tool(*acls, "--list", "--topic", name)
        equal(said.count(f"principal=User:{user}"), 3)
        self._tool(*acls, "--remove", "--force", "--topic", name)
        assert f"User:{user}" not in self._tool(*acls, "--list", "--topic", name)
        said = self._perf(name, self._as(user, "SCRAM-SHA-256"))
        assert "100 records sent" not in said, said


CLIENTS = [ConfluentAccess, KafkaPythonAccess, AiokafkaAccess, ToolsAccess]
