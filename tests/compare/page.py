"""The charts: one page that needs nothing else, neither scripts nor a network."""

import html
import math

from figures import quiet, short, sizes

COLOURS = {"trilog": "#0072b2", "kafka": "#d55e00", "kafka-flush": "#cc9a06"}
OTHER = "#777777"
WIDTH, LEFT, RIGHT = 880, 260, 120
BAR, GAP = 15, 12
STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #6b6b6b; --line: #d9d9d9; --back: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --soft: #a3a3a3; --line: #3c3c3c; --back: #151515; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 920px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .soft { fill: var(--soft); } svg .grid { stroke: var(--line); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { text-align: left; padding: 3px 10px 3px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.met { color: #15803d; } .missed { color: #dc2626; font-weight: 600; } .soft { color: var(--soft); }
"""


def text(x, y, what, anchor="start", kind=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{html.escape(what)}</text>'


def svg(height, parts, title):
    inside = "\n".join(parts)
    label = html.escape(title)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{label}">\n{inside}\n</svg>'


def bars(rows, titles, sides, title):
    """A group of bars for each row, each drawn to the largest of its own row, with its spread."""
    parts, y = [], 4
    for row in rows:
        shown = [(side, row["sides"].get(side)) for side in sides if row["sides"].get(side)]
        most = max([found[2] for _, found in shown], default=0) or 1
        scale = (WIDTH - LEFT - RIGHT) / most
        middle = y + len(shown) * BAR / 2
        parts.append(text(LEFT - 10, middle - 2, titles[row["load"]], "end"))
        better = "more is better" if row["better"] == "more" else "less is better"
        parts.append(text(LEFT - 10, middle + 12, f"{row['figure']}, {better}", "end", "soft"))
        for side, (median, least, greatest) in shown:
            parts.append(bar(y, side, median * scale, least * scale, greatest * scale, short(median)))
            y += BAR
        y += max(GAP, 2 * BAR + GAP - len(shown) * BAR)
    return svg(y, parts, title)


def bar(y, side, length, least, most, label):
    colour = COLOURS.get(side, OTHER)
    middle = y + (BAR - 3) / 2
    return (
        f'<rect x="{LEFT}" y="{y}" width="{max(length, 1):.1f}" height="{BAR - 3}" fill="{colour}"/>'
        f'<line x1="{LEFT + least:.1f}" x2="{LEFT + most:.1f}" y1="{middle}" y2="{middle}" '
        'stroke="var(--ink)" stroke-width="1.2"/>'
        + text(LEFT + max(length, most) + 6, y + BAR - 5, label)
    )


def place(quantile, most):
    """Along the axis each further nine takes as much room as the last."""
    nines = -math.log10(max(1 - quantile, 10 ** -most))
    return 60 + nines / most * (WIDTH - 200)


def distribution(lines, title):
    """Latency over quantiles, both logarithmic; `lines` are (side, label, pairs)."""
    height, top, bottom = 300, 12, 262
    values = [value for _, _, pairs in lines for _, value in pairs if value > 0]
    low = math.floor(math.log10(min(values)))
    high = max(math.ceil(math.log10(max(values))), low + 1)
    level = lambda value: bottom - (math.log10(max(value, 10**low)) - low) / (high - low) * (bottom - top)
    parts = []
    for power in range(low, high + 1):
        y = level(10**power)
        parts.append(f'<line class="grid" x1="60" x2="{WIDTH - 140}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(text(52, y + 4, f"{10.0**power:g} ms", "end", "soft"))
    for quantile, name in [(0, "0"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")]:
        x = place(quantile, 4)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(text(x, bottom + 18, name, "middle", "soft"))
    for side, label, pairs in lines:
        points = [(place(quantile, 4), level(value)) for quantile, value in pairs if quantile <= 0.9999]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        colour = COLOURS.get(side, OTHER)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(text(points[-1][0] + 6, points[-1][1] + 4, label))
    return svg(height, parts, title)


def legend(told):
    parts = [
        f'<span style="color:{COLOURS.get(side, OTHER)}">&#9632;</span> {html.escape(title)}'
        for side, title in told["sides"].items()
    ]
    return f"<p>{' &nbsp; '.join(parts)}</p>"


def section(told, title, wanted):
    rows = [row for row in told["rows"] if wanted(row)]
    if not rows:
        return ""
    return f"<h2>{html.escape(title)}</h2>\n{bars(rows, told['titles'], list(told['sides']), title)}"


def distributions(told, quantiles):
    parts = []
    counted, _ = quiet(told["measured"])
    for load, which, title in [
        ("pace-calm", "delivered", "from when it was due until the consumer has it"),
        ("pace-quarter", "delivered", "from when it was due until the consumer has it"),
        ("pace-half", "delivered", "from when it was due until the consumer has it"),
        ("small-50", "acknowledged", "from sending to acknowledgement"),
        ("beside", "delivered", "from when it was due until the consumer has it"),
    ]:
        lines = [(side, side, quantiles(counted, side, load, which)) for side in told["sides"]]
        lines = [line for line in lines if line[2]]
        if lines:
            name = f"{told['titles'][load]}: {title}"
            parts.append(f"<h2>{html.escape(name)}</h2>\n{distribution(lines, name)}")
    return "\n".join(parts)


def table(rows):
    lines = []
    for number, row in enumerate(rows):
        tag = "td" if number else "th"
        lines.append("<tr>" + "".join(f"<{tag}>{marked(cell)}</{tag}>" for cell in row) + "</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def marked(cell):
    said = html.escape(str(cell))
    said = said.replace(" MISSED", ' <span class="missed">MISSED</span>')
    return said.replace(" met)", ' <span class="met">met</span>)')


def page(told, cells, quantiles):
    about = ", ".join(f"{key} {value}" for key, value in told["machine"].items())
    of = f"{told['rounds']} rounds{sizes(told['scale'])}, build {told['commit']}; {about}"
    rate = lambda figure: figure.endswith("/s")
    parts = [
        "<h1>Trilog side by side</h1>",
        f'<p class="soft">{html.escape(of)}. '
        "Bars are medians over the rounds, the line in each from least to most.</p>",
        legend(told),
        section(told, "Throughput", lambda row: rate(row["figure"])),
        distributions(told, quantiles),
        section(told, "Latency", lambda row: row["figure"].endswith("ms")),
        section(told, "Processor and memory", lambda row: row["figure"] in ("servers s/GB", "memory MiB", "cpu %")),
        "<h2>All figures</h2>",
        table(cells),
        "<h2>Against the machine</h2>",
        "".join(f"<p>{html.escape(line)}</p>" for line in told["against the machine"]),
        "<h2>Settings</h2>",
        table([["who", "what is not at its default"], *((who, named(what)) for who, what in told["settings"].items())]),
    ]
    if told["skipped"]:
        parts += ["<h2>Skipped</h2>", "".join(f"<p>{html.escape(line)}</p>" for line in told["skipped"])]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Trilog side by side</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def named(settings):
    return ", ".join(f"{key}={value}" for key, value in settings.items())
