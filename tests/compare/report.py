"""What was found, as a table for the terminal and for readers of the repository, as JSON, as a page."""

import json
import tempfile

import figures
import generator
import loads
import machine
import page
import tools
from figures import short, sizes


def with_spread(found):
    if found is None:
        return ""
    median, least, most = found
    return short(median) if least == most else f"{short(median)} [{short(least)} to {short(most)}]"


def bare(measured):
    """The machine itself: the median over the parts of a run."""
    found = {}
    for one in measured:
        if one["load"] == "bare":
            for name, value in one["figures"].items():
                found.setdefault(name, []).append(value)
    return {name: figures.spread(each)[0] for name, each in found.items()}


def against_the_machine(found):
    """What the native client reached of what the machine can do without any of this."""
    said = []
    pairs = {
        "three nodes, 8 producers, 1 KiB": "raw write",
        "one node, 8 producers, 1 KiB": "raw write",
        "tail consume, 1 consumer": "loopback stream",
    }
    for name, of in pairs.items():
        if name in found:
            said.append(
                f"native client, {name}: {short(found[name])} MB/s, {100 * found[name] / found[of]:.0f} % "
                f"of the {of} ({short(found[of])} MB/s)"
            )
    return said


def left_out(disturbed):
    found = {}
    for one in disturbed:
        found.setdefault((one["round"], one["side"]), []).append(f"{one['load']} ({one['others']:.0f} %)")
    return [
        f"round {turn}, {side}: left out, for others used more than {figures.QUIET} % of the machine: {', '.join(each)}"
        for (turn, side), each in found.items()
    ]


def settings(sides):
    shown = {side.title: set_apart(side) for side in sides}
    shown["Kafka's tools"] = {**tools.PRODUCER, "java": tools.HEAP}
    shown["our generator (librdkafka)"] = {"acks": "all", "enable.idempotence": True, **generator.PRODUCER}
    return shown


def set_apart(side):
    """What of a side is not at its default."""
    stages = {f"{stage}: {k}": v for stage, given in side.stages.items() for k, v in given.items()}
    return {**side.settings, **stages, **{f"topic {k}": v for k, v in side.topic.items()}}


def gathered(measured, skipped, sides, commit):
    """All of a report, as a program would want it."""
    counted, disturbed = figures.quiet(measured)
    found = bare(counted)
    rows = figures.judged(counted, [side.name for side in sides], found.get("raw write"))
    rounds = {one["round"] for one in measured if one["round"]}
    return {
        "commit": commit,
        "machine": machine.described(tempfile.gettempdir()),
        "rounds": len(rounds),
        "scale": min([1, *(one["scale"] for one in measured if "scale" in one)]),
        "sides": {side.name: side.title for side in sides},
        "settings": settings(sides),
        "titles": loads.titles(),
        "rows": rows,
        "bare": found,
        "against the machine": against_the_machine(found),
        "skipped": [*sorted(set(skipped)), *left_out(disturbed)],
        "measured": measured,
    }


def cells(row, sides):
    """Of a table: what, the figure of each side, the ratios."""
    found = [loads.titles()[row["load"]], row["figure"]]
    found += [with_spread(row["sides"].get(side)) for side in sides]
    for side in sides:
        if side == figures.OURS:
            continue
        one = row["ratios"].get(side)
        verdict = "" if not one or one["met"] is None else " met" if one["met"] else " MISSED"
        wanted = f" ({one['target']}{verdict})" if one and one["target"] else ""
        found.append(f"{short(one['ratio'][0])} x{wanted}" if one else "")
    return found


def head(sides):
    ratios = [f"Trilog / {side}" for side in sides if side != figures.OURS]
    return ["load", "figure", *sides, *ratios]


def aligned(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def markdown(told):
    sides = list(told["sides"])
    rows = [head(sides), ["---"] * len(head(sides)), *(cells(row, sides) for row in told["rows"])]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    about = ", ".join(f"{key} {value}" for key, value in told["machine"].items())
    parts = [
        "# Side by side",
        f"{told['rounds']} rounds{sizes(told['scale'])}, build {told['commit']}; "
        f"{about}. Median [least to most]. [How to read it](README.md).",
        table,
        *(f"- {line}" for line in told["against the machine"]),
        *(f"- SKIPPED: {line}" for line in told["skipped"]),
    ]
    return "\n\n".join(parts[:3]) + "\n\n" + "\n".join(parts[3:]) + "\n"


def write(folder, measured, skipped, sides, commit):
    """Leaves the report in a folder; gives what is for the terminal."""
    told = gathered(measured, skipped, sides, commit)
    if not told["rows"]:
        return "nothing was measured: no report"
    names = list(told["sides"])
    table = [head(names), *(cells(row, names) for row in told["rows"])]
    said = [aligned(table), *told["against the machine"], *(f"SKIPPED: {line}" for line in told["skipped"])]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(told, indent=1) + "\n")
    (folder / "results.md").write_text(markdown(told))
    (folder / "index.html").write_text(page.page(told, table, figures.quantiles))
    return "\n".join([*said, f"in {folder.name}: results.md, results.json, index.html"])
