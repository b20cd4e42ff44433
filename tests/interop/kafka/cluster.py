"""The cluster that is checked: one that runs already, or a development cluster of our own."""

import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time

NODES = 3
# Of the ten ports that each node of a development cluster takes, from the first.
PORTS_EACH = 10
KAFKA = 3
# Below those that the system gives to clients.
LOWEST, HIGHEST = 20_000, 32_000
START_SECONDS = 90
# On a machine that is crowded with clients, a node that gets no turn for a moment is not dead.
PATIENT = ["raft.election_timeout_min=1500ms", "raft.election_timeout_max=2s"]


class Given:
    """A cluster that runs already."""

    is_ours = False

    def __init__(self, bootstrap):
        self.bootstrap = bootstrap

    def stop(self):
        pass


class Cluster:
    """A development cluster for the time of the run."""

    is_ours = True

    def __init__(self, trilog, settings=PATIENT):
        self.trilog = str(pathlib.Path(trilog).resolve())
        self._kept = pathlib.Path(tempfile.mkdtemp(prefix="trilog-interop-"))
        self.data = str(self._kept / "data")
        self.settings = [f"--set={setting}" for setting in settings]
        for _ in range(3):
            if self._start(free_ports(NODES * PORTS_EACH)):
                return
        said = self._log.read_text().strip()[-2000:]
        raise SystemExit(f"the development cluster did not start:\n{said}")

    def _start(self, first):
        """Whether it runs; a port may have been taken meanwhile."""
        self.ports = [first + PORTS_EACH * node + KAFKA for node in range(NODES)]
        # Any of its nodes will do.
        self.bootstrap = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        self.server = f"127.0.0.1:{first}"
        self._log = self._kept / "dev.log"
        command = [self.trilog, "dev", "--clean", "--data", self.data, "--base-port", str(first)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen([*command, *self.settings], stdout=log, stderr=log)
        deadline = time.time() + START_SECONDS
        while self.process.poll() is None and time.time() < deadline:
            if "nodes are up" in self._log.read_text():
                return True
            time.sleep(0.1)
        self._end()
        return False

    def kill(self, node):
        self._tell("kill", node)

    def restart(self, node):
        self._tell("restart", node)

    def _tell(self, command, node):
        told = [self.trilog, "dev", "--data", self.data, command, str(node)]
        subprocess.run(told, check=True, timeout=60, stdout=subprocess.DEVNULL)

    def _end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def stop(self):
        self._end()
        shutil.rmtree(self._kept, ignore_errors=True)


def free_ports(count):
    """The first of so many ports in a row that nobody has."""
    for _ in range(200):
        first = random.randrange(LOWEST, HIGHEST - count)
        if all(is_free(first + n) for n in range(count)):
            return first
    raise SystemExit(f"no {count} free ports in a row between {LOWEST} and {HIGHEST}")


def is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
