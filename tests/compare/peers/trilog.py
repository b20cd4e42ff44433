"""Trilog: three nodes of a development cluster, with the sizes of a server."""

import json
import subprocess

from shared import Cluster

# `trilog dev` makes these smaller, for a crowded machine; here they are as a server has them.
SERVER = {"storage.wal_file_size": "64MiB", "storage.wal_files": "16"}


class Trilog(Cluster):
    name = "trilog"
    title = "Trilog"
    dialect = "kafka"
    settings = {**SERVER, "log.level": "warn"}
    stages = {}
    topic = {}
    # The program that is measured; told by the runner.
    program = "target/release/trilog"

    @classmethod
    def prepare(cls):
        pass

    def __init__(self, stage):
        super().__init__(self.program, [f"{key}={value}" for key, value in self.settings.items()])

    @property
    def folder(self):
        return self.data

    def pids(self):
        told = [self.trilog, "dev", "--data", self.data, "status", "--output", "json"]
        status = subprocess.run(told, check=True, capture_output=True, timeout=60)
        nodes = json.loads(status.stdout)["nodes"]
        return {node["node"]: node["pid"] for node in nodes if node["pid"]}
