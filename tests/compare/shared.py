"""What the checks of real clients have already: a development cluster, fetching, waiting."""

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.append(str(HERE.parent / "interop" / "kafka"))

from cluster import Cluster, free_ports  # noqa: E402
from common import Missing, end_when_told, wait_until  # noqa: E402
from elsewhere import cache, fetch, tell  # noqa: E402

__all__ = [
    "HERE", "ROOT", "Cluster", "Missing", "cache", "end_when_told", "fetch", "free_ports", "tell",
    "wait_until",
]
