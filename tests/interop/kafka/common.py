"""What the checks of all clients share."""

import signal
import sys
import time
import uuid

RUN = uuid.uuid4().hex[:8]


def topic(name):
    return f"interop-{RUN}-{name}"


def end_when_told():
    """A time limit from outside ends a run as an exception does: what it started is stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))


class Missing(Exception):
    """A client, or a part of it, that this machine has not."""


def equal(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"


def wait_until(what, condition, patience=30.0):
    """Until the condition gives something true, which it answers."""
    deadline = time.time() + patience
    while True:
        found = condition()
        if found:
            return found
        assert time.time() < deadline, f"not within {patience} s: {what}"
        time.sleep(0.05)
