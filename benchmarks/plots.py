"""The pictures of the results: SVG, with text as text, and the same octets for the same figures.

It knows colours, axes and which rows make a picture; it draws what the JSON holds, and leaves out a picture
that has nothing to show. White ground, so that they read on dark pages, too.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .latency import QUANTILES, STAGES
from .report import Json, measured
from .rows import FLOOR, KIB, MIB

PLOTS = "plots"  # beside README.md
STYLE: Any = {  # matplotlib wants the names as literals
    "svg.hashsalt": "fastsmtp",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.edgecolor": "#57606a",
    "axes.grid": True,
    "axes.grid.which": "major",
    "axes.axisbelow": True,
    "grid.color": "#d8dee4",
    "grid.linewidth": 0.7,
    "text.color": "#1f2328",
    "axes.labelcolor": "#1f2328",
    "xtick.color": "#1f2328",
    "ytick.color": "#1f2328",
    "legend.frameon": False,
}
OURS, BARE, PEER = "#0969da", "#6e7781", "#d4a72c"
# Of lines, by server: what must be told apart by those who see no red and green, too.
COLOURS = {
    FLOOR: BARE,
    "fastsmtp": OURS,
    "smtp-sink": "#1b1f24",
    "go-smtp": "#009e73",
    "nodemailer": "#e69f00",
    "haraka": "#cc79a7",
    "aiosmtpd": "#d55e00",
    "bonzo": "#56b4e9",
    "postfix": "#8250df",
}
MARKERS = "os^Dv<>P*X"
SUMMARY = ("kept-4k", "new-4k", "kept-1m")
MAIN = ("kept-4k", "new-4k", "kept-100k", "kept-1m", "pipelined-4k", "tls-new")
SHORT = {
    "kept-4k": "4 KiB, kept connections",
    "new-4k": "4 KiB, new connection each",
    "kept-100k": "100 KiB, kept connections",
    "kept-1m": "1 MiB, kept connections",
    "pipelined-4k": "4 KiB, pipelined",
    "tls-new": "4 KiB, new TLS session each",
}


def short_number(value: float) -> str:
    """Three digits, as far as they tell something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def octets(value: float) -> str:
    return f"{value / MIB:g} MiB" if value >= MIB else f"{value / KIB:g} KiB"


def colour(name: str) -> str:
    if name == FLOOR:
        return BARE
    return OURS if name.startswith("fastsmtp") else PEER


def bar_panel(axes: Axes, title: str, values: Mapping[str, float]) -> None:
    """Horizontal bars on a logarithmic scale, the smallest on top, each with its figure; a line by power of ten."""
    names = sorted(values, key=lambda name: -values[name])
    least, most = min(values.values()), max(values.values())
    bars = axes.barh(names, [values[name] for name in names], color=[colour(name) for name in names])
    axes.bar_label(bars, labels=[short_number(values[name]) for name in names], padding=3, fontsize=9)
    axes.set_xscale("log")
    # A third of the smallest, so that every bar can be seen; the figures need room at the end.
    axes.set_xlim(least / 3, most * (most / least * 3) ** 0.25)
    axes.xaxis.set_major_locator(LogLocator(base=10, numticks=20))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(title)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=0, labelbottom=False)


def plain_numbers(axes: Axes, *which: str, text: Callable[[float], str] = plain) -> None:
    for each in which:
        axis = axes.xaxis if each == "x" else axes.yaxis
        axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
        axis.set_minor_locator(NullLocator())


def bars(panels: Mapping[str, Mapping[str, float]], title: str, columns: int) -> Figure:
    lines = -(-len(panels) // columns)
    most = max(len(values) for values in panels.values())
    figure = Figure(figsize=(9.5, lines * (0.7 + 0.26 * most) + 0.5), layout="constrained")
    for number, (name, values) in enumerate(panels.items(), 1):
        bar_panel(figure.add_subplot(lines, columns, number), name, values)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure


def line(axes: Axes, name: str, points: Mapping[float, float]) -> None:
    number = list(COLOURS).index(name) if name in COLOURS else len(COLOURS)
    axes.plot(
        list(points),
        list(points.values()),
        label=name,
        color=COLOURS.get(name, BARE),
        marker=MARKERS[number],
        markersize=5,
        linewidth=2.5 if name == "fastsmtp" else 1.3,
        zorder=3 if name == "fastsmtp" else 2,
    )


def legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6)


def costs(row: Json) -> dict[str, float]:
    """CPU per message in microseconds by server."""
    return {name: cell["cpu"] for name, cell in measured(row).items()}


def cost_bars(rows: Mapping[str, Json], names: Sequence[str], columns: int) -> Figure | None:
    panels = {SHORT[name]: found for name in names if name in rows and (found := costs(rows[name]))}
    title = "Server CPU per message, µs (shorter is better; a line for each power of ten)"
    return bars(panels, title, columns) if panels else None


def curves(rows: Sequence[Json], key: Callable[[Json], float]) -> dict[str, dict[float, float]]:
    """Costs by server and by that key of the rows."""
    found: dict[str, dict[float, float]] = {}
    for row in sorted(rows, key=key):
        for name, cost in costs(row).items():
            found.setdefault(name, {})[key(row)] = cost
    return {name: points for name, points in found.items() if len(points) > 1}


def cost_curve(
    found: Mapping[str, Mapping[float, float]],
    title: str,
    *,
    height: float,
    text: Callable[[float], str] = plain,
    label: str = "",
) -> Figure | None:
    """Costs by server over something that doubles; None if there are none."""
    if not found:
        return None
    figure = Figure(figsize=(9.5, height), layout="constrained")
    axes = figure.add_subplot()
    for name, points in found.items():
        line(axes, name, points)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    plain_numbers(axes, "x", text=text)
    plain_numbers(axes, "y")
    axes.set_xticks(sorted({value for points in found.values() for value in points}))
    axes.set_xlabel(label)
    axes.set_title(title)
    legend(figure, axes)
    return figure


def size_curve(rows: Mapping[str, Json]) -> Figure | None:
    chosen = [
        row
        for name, row in rows.items()
        if row["group"] == "size" and row["load"]["kept"] and not name.endswith("-spilled")
    ]
    return cost_curve(
        curves(chosen, lambda row: row["load"]["size"]),
        "Server CPU per message, µs, by size of the message; kept connections",
        height=5.2,
        text=octets,
    )


def worker_curve(rows: Mapping[str, Json]) -> Figure | None:
    return cost_curve(
        curves([row for row in rows.values() if row["group"] == "workers"], lambda row: row["workers"]),
        "Server CPU per message, µs, by workers; 4 KiB, a new connection each",
        height=4,
        label="workers",
    )


def latency_curves(tables: Sequence[Json]) -> Figure | None:
    rates = [each["key"] for each in tables if each["servers"]]
    if not rates:
        return None
    names = list(dict.fromkeys(name for each in tables for name in each["servers"]))
    figure = Figure(figsize=(9.5, 8.5), layout="constrained")
    grid = figure.subplots(len(QUANTILES), len(STAGES), sharex=True, sharey="row", squeeze=False)
    for panels, percent in zip(grid, QUANTILES.values(), strict=True):
        for axes, stage in zip(panels, STAGES.values(), strict=True):
            for name in names:
                points = {
                    each["key"]: each["servers"][name][f"{stage} {percent}"]
                    for each in tables
                    if name in each["servers"]
                }
                line(axes, name, points)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(rates)
            axes.tick_params(axis="x", labelrotation=45)
            plain_numbers(axes, "x", "y")
            axes.set_title(f"{stage}, {percent}")
    figure.suptitle(
        "Waits in ms by messages a second offered, a new connection each",
        x=0.01,
        ha="left",
        fontsize=12,
        fontweight="bold",
    )
    legend(figure, grid[0][0])
    return figure


def idle_bars(tables: Sequence[Json]) -> Figure | None:
    column = "RSS MiB with all"
    panels = {
        f"{each['key']:,} idle connections": {
            name: figures[column] for name, figures in each["servers"].items()
        }
        for each in tables
        if each["servers"]
    }
    title = (
        "Memory of one worker with idle connections, MiB (shorter is better; a line for each power of ten)"
    )
    return bars(panels, title, len(panels)) if panels else None


def tuning_bars(rows: Mapping[str, Json]) -> Figure | None:
    panels = {name: found for name, row in rows.items() if row["group"] == "tuning" and (found := costs(row))}
    return bars(panels, "What settings do: server CPU per message, µs", 2) if panels else None


def draw(results: Sequence[Json], beside: Path) -> dict[str, str]:
    """Write all pictures that the results allow into `plots` of that folder; returns titles by their paths."""
    rows: dict[str, Json] = {}
    tables: dict[str, Sequence[Json]] = {}
    for result in results:
        rows |= result.get("rows", {})
        tables[result["benchmark"]] = result.get("tables", ())
    written = {}
    with matplotlib.rc_context(STYLE):
        pictures = {
            "summary": ("CPU per message beside the peers", cost_bars(rows, SUMMARY, 3)),
            "bars": ("CPU per message by server", cost_bars(rows, MAIN, 2)),
            "sizes": ("CPU per message by size", size_curve(rows)),
            "workers": ("CPU per message by workers", worker_curve(rows)),
            "latency": ("Waits by offered load", latency_curves(tables.get("latency", ()))),
            "tuning": ("What settings do", tuning_bars(rows)),
            "idle": ("Memory of idle connections", idle_bars(tables.get("idle", ()))),
        }
        folder = beside / PLOTS
        folder.mkdir(exist_ok=True)
        for name, (title, figure) in pictures.items():
            if figure is not None:
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
                written[f"{PLOTS}/{name}.svg"] = title
    return written
