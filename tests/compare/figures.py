"""From what was measured to rows of a report: medians, spreads, ratios, targets."""

import statistics
from dataclasses import dataclass

import peers

OURS = peers.OURS.name
MORE, LESS = "more", "less"
# Per cent of all cores that others may use meanwhile; with more, a measurement does not count.
QUIET = 10


@dataclass(frozen=True)
class Row:
    """One figure of one load; better is MORE of it or LESS; `targets` are ratios to a peer."""

    load: str
    figure: str
    better: str
    targets: dict = None
    # A peer beside which what the bare disk allows is enough, too.
    or_disk: str = ""

    def reached(self, peer, ratio):
        """Whether a ratio is as asked for; None where nothing is asked for."""
        wanted = (self.targets or {}).get(peer)
        if wanted is None or ratio is None:
            return None
        return ratio >= wanted if self.better == MORE else ratio <= wanted

    def wanted(self, peer):
        wanted = (self.targets or {}).get(peer)
        if wanted is None:
            return ""
        return f">= {wanted:g} x" if self.better == MORE else f"<= 1/{1 / wanted:g}"


PRODUCED = {"kafka": 2, "kafka-flush": 5}
HALF = {"kafka": 1 / 2}
ROWS = [
    Row("produce-1k-10", "MB/s", MORE, PRODUCED, "kafka"),
    Row("produce-1k-1", "MB/s", MORE, PRODUCED, "kafka"),
    Row("produce-1k-100", "MB/s", MORE, PRODUCED, "kafka"),
    Row("produce-100-1", "records/s", MORE),
    Row("produce-100-10", "records/s", MORE),
    Row("produce-100-100", "records/s", MORE),
    Row("small-1", "records/s", MORE),
    Row("small-1", "ack p99 ms", LESS),
    Row("small-50", "records/s", MORE, {"kafka": 2}),
    Row("small-50", "ack p99 ms", LESS),
    Row("lone", "average ms", LESS),
    Row("lone", "p99 ms", LESS),
    *(Row(load, f"{which} ms", LESS) for load in ("pace-calm", "pace-quarter") for which in ("p50", "p99")),
    Row("pace-half", "p50 ms", LESS),
    Row("pace-half", "p99 ms", LESS, {"kafka": 1 / 4}),
    Row("pace-half", "p99.9 ms", LESS),
    Row("tail", "MB/s", MORE, {"kafka": 1.5}),
    Row("cold", "MB/s", MORE, {"kafka": 1.5}),
    Row("beside", "MB/s", MORE),
    Row("beside", "p99 ms", LESS),
    Row("retention", "p99 ms", LESS),
    Row("retention", "p99.9 ms", LESS),
    Row("produce-1k-10", "servers s/GB", LESS, HALF),
    Row("small-50", "servers s/GB", LESS, HALF),
    Row("tail", "servers s/GB", LESS, HALF),
    Row("rest", "memory MiB", LESS, {"kafka": 1 / 5}),
    Row("idle", "memory MiB", LESS),
    Row("idle", "cpu %", LESS),
    Row("produce-1k-10", "memory MiB", LESS),
    Row("outage", "ms", LESS, {"kafka": 1 / 3}),
]


def short(value):
    """Three digits that matter."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def sizes(scale):
    """How much of a full run's sizes it was, in words."""
    return "" if scale == 1 else f", {scale:g} of the full sizes"


def quiet(measured):
    """What was measured while nobody else used much of the machine, and the rest."""
    disturbed = [one for one in measured if (one.get("others") or 0) > QUIET]
    return [one for one in measured if one not in disturbed], disturbed


def values(measured, side, load, figure):
    """A figure by round."""
    found = {}
    for one in measured:
        if (one["side"], one["load"]) == (side, load) and figure in one.get("figures", {}):
            found[one["round"]] = one["figures"][figure]
    return found


def spread(numbers):
    """Median, least and most; None where there is nothing."""
    numbers = list(numbers)
    return (statistics.median(numbers), min(numbers), max(numbers)) if numbers else None


def ratio(ours, theirs):
    """The median of what each round that has both says."""
    pairs = [(ours[turn], theirs[turn]) for turn in ours if turn in theirs]
    return spread(a / b for a, b in pairs if b)


def quantiles(measured, side, load, which):
    """A distribution: the median over the rounds at each quantile."""
    found = [
        one["quantiles"][which]
        for one in measured
        if (one["side"], one["load"]) == (side, load) and which in one.get("quantiles", {})
    ]
    merged = {}
    for pairs in found:
        for quantile, value in pairs:
            merged.setdefault(quantile, []).append(value)
    return [(quantile, statistics.median(each)) for quantile, each in sorted(merged.items())]


def judged(measured, sides, raw=None):
    """A dictionary for each row that has anything: of each side its spread, of others the ratio.

    `raw` is what the bare disk writes, in MB/s.
    """
    rows = []
    for row in ROWS:
        each = {side: values(measured, side, row.load, row.figure) for side in sides}
        if not any(each.values()):
            continue
        ours = spread(each.get(OURS, {}).values())
        ratios = {}
        for side in sides:
            found = side != OURS and ratio(each.get(OURS, {}), each[side])
            if found:
                ratios[side] = {"ratio": found, **verdict(row, side, found[0], ours, raw)}
        rows.append({
            "load": row.load, "figure": row.figure, "better": row.better,
            "sides": {side: spread(found.values()) for side, found in each.items()},
            "ratios": ratios,
        })
    return rows


def verdict(row, side, found, ours, raw):
    wanted, met = row.wanted(side), row.reached(side, found)
    if row.or_disk == side and raw:
        enough = share_of_disk(raw)
        wanted, met = f"{wanted} or {short(enough)} MB/s", met or ours[0] >= enough
    return {"target": wanted, "met": met}


def share_of_disk(raw):
    """What is asked for on a bare disk: each byte is written twice, on three nodes."""
    return 0.75 * raw / (2 * 3)
