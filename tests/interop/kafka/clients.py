"""The clients of Debian and Python: what each needs, and what all checks of it do alike."""

import shutil
import subprocess

from common import Missing, equal


class Client:
    """A client that is there, and the cluster it works on."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.bootstrap = cluster.bootstrap
        self.servers = cluster.bootstrap.split(",")
        try:
            self.lib = self._load()
        except ImportError as error:
            raise Missing(str(error))


class Kcat(Client):
    fixture = "kcat"

    def _load(self):
        if not shutil.which("kcat"):
            raise Missing("kcat is not installed (Debian package kcat)")

    def kcat(self, *args, input=None):
        command = ["kcat", "-b", self.bootstrap, *args]
        done = subprocess.run(command, input=input, capture_output=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr.decode()}"
        return done.stdout


class Confluent(Client):
    fixture = "confluent-kafka"

    def _load(self):
        import confluent_kafka.admin

        return confluent_kafka

    def producer(self, **config):
        return self.lib.Producer({"bootstrap.servers": self.bootstrap, **config})

    def admin(self):
        return self.lib.admin.AdminClient({"bootstrap.servers": self.bootstrap})

    def create(self, name, partitions=1, replication=3, config={}):
        made = self.lib.admin.NewTopic(name, partitions, replication, config=config)
        # It gives up what it does when nobody holds it.
        admin = self.admin()
        admin.create_topics([made])[name].result(30)

    def produce(self, name, records, **config):
        """Sends them, and waits until each is acknowledged."""
        failed = []
        told = lambda error, _: failed.append(error) if error else None
        producer = self.producer(**{"acks": "all", **config})
        for record in records:
            producer.produce(name, on_delivery=told, **record)
        equal(producer.flush(60), 0)
        equal(failed, [])


class KafkaPython(Client):
    fixture = "kafka-python"

    def _load(self):
        import kafka.admin

        return kafka

    def admin(self):
        return self.lib.admin.KafkaAdminClient(bootstrap_servers=self.servers)


class Aiokafka(Client):
    fixture = "aiokafka"

    def _load(self):
        import aiokafka

        return aiokafka
