"""What it was measured on, without saying whose or where."""

import os
import pathlib
import platform
import subprocess
import time


def lines(path):
    return pathlib.Path(path).read_text().splitlines()


def value(path, key):
    found = (line.split(":", 1)[1].strip() for line in lines(path) if line.startswith(key))
    return next(found, "unknown")


def described(folder):
    memory = int(value("/proc/meminfo", "MemTotal").split()[0]) / 1024 / 1024
    return {
        "processor": value("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory GiB": round(memory, 1),
        "kernel": platform.release().split("-")[0],
        "file system": file_system(folder),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def file_system(folder):
    """The type of the one that a folder is on."""
    told = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True)
    return told.stdout.strip() or "unknown"


def commit(root):
    """Of the sources; told apart where they were changed."""
    told = ["git", "-C", str(root), "describe", "--always", "--dirty=+changes", "--abbrev=12"]
    found = subprocess.run(told, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"
