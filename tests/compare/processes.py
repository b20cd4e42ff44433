"""What processes use of the machine, as the kernel tells it."""

import os
import pathlib
import time

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids):
    """Processor time that these have used, in the kernel and outside."""
    total = 0
    for pid in pids:
        # The name of a program may hold anything, but it ends with the last parenthesis.
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def memory_mib(pids):
    """Resident memory: what is theirs alone, and of what is shared their part of it."""
    total = 0
    for pid in pids:
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def busy_seconds():
    """Processor time that anybody on this machine has used."""
    fields = [int(field) for field in pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    # Of user, nice, system, idle, iowait, irq, softirq, steal.
    return (sum(fields[:8]) - fields[3] - fields[4]) / TICKS


class Others:
    """What share of the machine was taken by those who have no part in it."""

    def __init__(self, pids):
        self._used = Used(pids)
        self._before = self._now()

    def _now(self):
        return time.monotonic(), busy_seconds(), sum(os.times()[:2])

    def share(self):
        """In per cent; nothing where a process of the sides has ended meanwhile."""
        try:
            used = self._used.stop()
        except FileNotFoundError:
            return None
        elapsed, busy, own = (b - a for a, b in zip(self._before, self._now()))
        others = busy - own - used.servers - used.clients
        return max(0.0, 100 * others / elapsed / os.cpu_count())


class Used:
    """Processor time that servers and their clients take while something is done."""

    def __init__(self, pids):
        self._pids = list(pids)
        self._before = self._now()
        self.servers = self.clients = 0.0

    def _now(self):
        times = os.times()
        # Clients are children that have ended meanwhile.
        return cpu_seconds(self._pids), times.children_user + times.children_system

    def stop(self):
        now = self._now()
        self.servers, self.clients = (b - a for a, b in zip(self._before, now))
        return self
