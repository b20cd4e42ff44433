"""Clients of other languages, where the machine has the language and can fetch the client.

A registry that cannot be reached is no fault of ours: SKIPPED. A file of ours that a tool refuses,
or a program that does not compile, is: FAILED.
"""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile

from common import Missing, topic

HERE = pathlib.Path(__file__).parent
PATIENCE = 180
# How each tool says that it found no way to its registry.
UNREACHABLE = re.compile(
    "ECONNREFUSED|ECONNRESET|ENOTFOUND|ETIMEDOUT|EAI_AGAIN|ENETUNREACH|EHOSTUNREACH|ENOTCACHED"
    "|dial tcp|i/o timeout|TLS handshake timeout|proxyconnect|module lookup disabled"
    "|[Cc]ould not resolve host|[Cc]ould(n't| not) connect|[Cc]onnection (refused|reset|timed out)"
    "|[Uu]nknown ?[Hh]ost|No route to host|Network is unreachable|Could not transfer"
    "|Operation timed out|[Tt]imeout was reached|spurious network error|--offline was specified"
)


def tell(command, patience=PATIENCE, **options):
    """Runs a command; what it printed, or why it failed. None of it outlives its time."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            out, err = process.communicate(timeout=patience)
        except BaseException:
            # With all that it started.
            os.killpg(process.pid, 9)
            raise
    said = f"{out or ''}{err or ''}".strip()
    assert process.returncode == 0, f"{command[0]}: {said[-4000:]}"
    return out


def fetch(command, **options):
    """Gets what a client consists of, from a registry."""
    try:
        tell(command, **options)
    except subprocess.TimeoutExpired as error:
        raise Missing(f"cannot be fetched: {command[0]} was not done within {error.timeout:.0f} s")
    except AssertionError as error:
        for line in str(error).split("\n"):
            if UNREACHABLE.search(line):
                raise Missing(f"cannot be fetched: {line[:120]}")
        raise


def cache(name):
    """A place outside the checkout for what takes long to make."""
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    path = pathlib.Path(root) / "trilog-interop" / name
    path.mkdir(parents=True, exist_ok=True)
    return str(path)


class Elsewhere:
    """A client whose sources are copied aside, where what it needs is fetched and built."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.bootstrap = cluster.bootstrap
        for tool in self._needs:
            if shutil.which(tool) is None:
                raise Missing(f"{tool} is not installed")
        # Gone with this object.
        self._kept = tempfile.TemporaryDirectory(prefix="trilog-interop-")
        self._dir = self._kept.name
        shutil.copytree(HERE / self._sources, self._dir, dirs_exist_ok=True)
        self._prepare()


class Kafkajs(Elsewhere):
    name = fixture = "kafkajs"
    _needs = ["node", "npm"]
    _sources = "kafkajs"

    def _prepare(self):
        fetch(["npm", "install", "--no-audit", "--no-fund"], cwd=self._dir)

    def group_and_transactions(self):
        tell(["node", "check.js", self.bootstrap, topic("kafkajs")], cwd=self._dir)


class FranzGo(Elsewhere):
    name = fixture = "franz-go"
    _needs = ["go"]
    _sources = "franz-go"

    def _prepare(self):
        fetch(["go", "mod", "download"], cwd=self._dir)
        tell(["go", "build", "-o", "check", "."], cwd=self._dir)

    def groups_and_exactly_once(self):
        tell(["./check", self.bootstrap, topic("franz")], cwd=self._dir)


class Rdkafka(Elsewhere):
    """librdkafka is compiled with it: minutes, the first time on a machine."""

    name = fixture = "rdkafka"
    deadline = 1200
    _needs = ["cargo", "bash", "cc", "c++", "make"]
    _sources = "rdkafka"

    def _prepare(self):
        fetch(["cargo", "fetch", "--locked"], cwd=self._dir)
        target = cache("rdkafka")
        build = ["nice", "-n", "10", "cargo", "build", "--release", "--locked", "--offline"]
        tell([*build, "--target-dir", target], 900, cwd=self._dir)
        self._program = f"{target}/release/trilog-interop-rdkafka"

    def groups_and_exactly_once(self):
        tell([self._program, self.bootstrap, topic("rdkafka")])


CLIENTS = [Kafkajs, FranzGo, Rdkafka]
