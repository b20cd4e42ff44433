"""Our own load, by the stock librdkafka: fixed rates, many small producers, a leader's death."""

import concurrent.futures
import contextlib
import json
import shutil

from shared import HERE, Missing, cache, fetch, tell

MANIFEST = str(HERE / "generator" / "Cargo.toml")
PATIENCE = 240
# Of librdkafka; the rest is at its defaults. It waits 1 ms for a batch to grow, for 5 by default.
PRODUCER = {"linger.ms": 1}


def build():
    """Compiles it, with librdkafka the first time on a machine: minutes."""
    for program in ("cargo", "cc", "c++", "make"):
        if shutil.which(program) is None:
            raise Missing(f"{program} is not installed")
    fetch(["cargo", "fetch", "--locked", "--manifest-path", MANIFEST])
    # librdkafka may be there already, from the checks of real clients.
    target = cache("rdkafka")
    build = ["cargo", "build", "--release", "--locked", "--offline", "--manifest-path", MANIFEST]
    tell([*build, "--target-dir", target], 1200)
    return f"{target}/release/trilog-compare-generator"


class Generator:
    def __init__(self, program):
        self._program = program

    def run(self, command, bootstrap, topic, **given):
        words = {"bootstrap": bootstrap, "topic": topic, **given}
        said = tell([self._program, command, *(f"{key}={value}" for key, value in words.items())], PATIENCE)
        return json.loads(said)

    def create(self, peer, topic, partitions, **config):
        settings = {f"config.{key}": value for key, value in {**peer.topic, **config}.items()}
        self.run("create", peer.bootstrap, topic, partitions=partitions, **settings)

    def delete(self, peer, topic):
        self.run("delete", peer.bootstrap, topic)

    def load(self, command, peer, topic, **given):
        settings = {f"producer.{key}": value for key, value in PRODUCER.items()}
        return self.run(command, peer.bootstrap, topic, **settings, **given)

    @contextlib.contextmanager
    def beside(self, *args, **given):
        """The same while something else is done; gives a function that waits for what it says."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            yield pool.submit(self.load, *args, **given).result
