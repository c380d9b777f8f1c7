"""Results as Markdown, which reads well in a terminal, too; and their place in README.md.

It works from what was written as JSON, so that a result from last week reads as one from now. It knows how
figures are laid out and who is first; it refuses to know how they came about.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .process import ROOT
from .rows import FLOOR

RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "benchmarks" / "README.md"
TUNING = ROOT / "docs" / "tuning.md"
BEGIN, END = "<!-- results: written by `python -m benchmarks report` -->", "<!-- end of results -->"
CLIENTS = {
    "smtp-source": "smtp-source",
    "bench": "`fastsmtp bench`",
    "segments": "a client of small segments",
}

Json = Mapping[str, Any]


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned for the eye: the first column to the left, all others to the right."""
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]

    def draw(cells: Sequence[str]) -> str:
        first, *others = (
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |"

    rule = (
        "|"
        + "|".join("-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths))
        + "|"
    )
    return "\n".join([draw(head), rule, *(draw(line) for line in lines)])


def paragraphs(*parts: str) -> str:
    """The parts that are not empty, with an empty line between them."""
    return "\n\n".join(part for part in parts if part)


def number(value: float) -> str:
    return f"{value:,.2f}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}"


def gaps_text(gaps: Mapping[str, str]) -> str:
    return "\n".join(f"* not measured: {name}: {gap}" for name, gap in gaps.items())


def facts_text(result: Json) -> str:
    """The machine and the versions of what was measured on it, one a line."""
    facts = {**result["machine"], **result.get("versions", {})}
    return "\n".join(f"* {name}: {value}" for name, value in facts.items())


# --- side by side ---------------------------------------------------------------------------------------------


def is_peer(name: str) -> bool:
    return name != FLOOR and not name.startswith("fastsmtp")


def measured(row: Json) -> dict[str, Json]:
    """The servers of a row that have figures."""
    return {name: cell for name, cell in row["cells"].items() if "cpu" in cell}


def best_peer(row: Json, server: str) -> str | None:
    """The peer with the least CPU per message beside that server, round by round."""
    beside = {
        name: cell["ratios"][server]
        for name, cell in measured(row).items()
        if is_peer(name) and server in cell["ratios"]
    }
    return min(beside, key=lambda name: beside[name]) if beside else None


def yardstick(row: Json) -> str | None:
    """What costs are divided by: the floor's, or where it cannot be the cheapest peer's, or the first server's."""
    if FLOOR in row["servers"]:
        return FLOOR
    cells = measured(row)
    peers = {name: cell["cpu"] for name, cell in cells.items() if is_peer(name)}
    if peers:
        return min(peers, key=lambda name: peers[name])
    return next(iter(cells), None)


@dataclass(frozen=True)
class Standing:
    """Where one of fastsmtp's servers stands in a row. What cannot be told is None."""

    row: str
    server: str
    cpu: float | None  # microseconds by message
    floor: float | None  # this cost by the floor's
    goal: float | None
    to_goal: float | None  # what the goal bounds
    peer: str | None  # the best one
    lead: float | None  # its cost by this one's

    @property
    def misses(self) -> bool:
        """Without a figure, too; but not where only what it is compared with has none."""
        if self.goal is None:
            return False
        return self.cpu is None or (self.to_goal is not None and self.to_goal > self.goal)


def standings(rows: Mapping[str, Json]) -> list[Standing]:
    found = []
    for name, row in rows.items():
        cells = measured(row)
        for server in row["ours"]:
            if server not in row["cells"]:
                continue
            cell = cells.get(server, {"ratios": {}})
            peer = best_peer(row, server)
            floor = cell["ratios"].get(FLOOR)
            to_goal = floor if FLOOR in row["servers"] else cell["ratios"].get(peer)
            lead = None if peer is None else cells[peer]["ratios"].get(server)
            goal = row["goals"].get(server)
            found.append(Standing(name, server, cell.get("cpu"), floor, goal, to_goal, peer, lead))
    return found


def summary_text(rows: Mapping[str, Json]) -> str:
    """Who is first in each row, by how much, and whether the goals are met."""
    lines = []
    for each in standings(rows):
        goal = "" if each.goal is None else f"{each.goal:.2f}"
        if goal and FLOOR not in rows[each.row]["servers"]:
            goal += " of the peer"
        lines.append(
            [
                each.row,
                each.server,
                "failed" if each.cpu is None else f"{each.cpu:,.1f}",
                ratio(each.floor),
                goal + (" missed" if each.misses else ""),
                each.peer or "",
                ratio(each.lead),
            ]
        )
    if not lines:
        return ""
    head = ["row", "server", "CPU µs/message", "floor = 1", "goal", "best peer", "its CPU by ours"]
    return paragraphs(
        "### Who is first", table(head, lines), "\n".join(f"* {line}" for line in verdicts(rows))
    )


def verdicts(rows: Mapping[str, Json]) -> list[str]:
    found = standings(rows)
    rivals = [each for each in found if each.lead is not None]
    lines = []
    if rivals:
        first = [each.row for each in rivals if each.lead is not None and each.lead >= 1]
        lines.append(f"First of all peers in {len(first)} of {len(rivals)} lines.")
    lines += [
        f"Not first: {each.server} in {each.row}; {each.peer} takes {each.lead:.2f} of its CPU."
        for each in rivals
        if each.lead is not None and each.lead < 1
    ]
    lines += [
        f"Goal missed: {each.server} in {each.row}, "
        f"{'no figure' if each.to_goal is None else format(each.to_goal, '.2f')} where {each.goal:.2f} is due."
        for each in found
        if each.misses
    ]
    lines += [
        f"Goal missed: {server} in {name}, {wait:.2f} ms a message where {row['waits'][server]:.2f} ms are due."
        for name, row in rows.items()
        for server, cell in measured(row).items()
        if (wait := cell.get("wait")) is not None and wait > row.get("waits", {}).get(server, wait)
    ]
    return lines


def row_text(name: str, row: Json) -> str:
    """One row of the comparison as a headed table, failures and gaps below it."""
    cells, unit = measured(row), yardstick(row)
    timed = any("wait" in cell for cell in cells.values())
    lines = []
    for server, cell in row["cells"].items():
        if server not in cells:
            lines.append([server, "", "failed", "", "", *[""] * timed, "", "", ""])
            continue
        goal = row["goals"].get(server)
        lines.append(
            [
                server,
                f"{cell['messages']:,}",
                f"{cell['cpu']:,.1f}",
                f"{cell['lowest']:,.1f} to {cell['highest']:,.1f}",
                f"{cell['sleeps']:.2f}",
                *([f"{cell['wait']:.2f}" if "wait" in cell else ""] if timed else []),
                number(cell["rate"]),
                ratio(cell["ratios"].get(unit)),
                "" if goal is None else f"{goal:.2f}",
            ]
        )
    head = [
        "server",
        "messages",
        "CPU µs/message",
        "lowest to highest",
        "sleeps/message",
        *["ms/message"] * timed,
        "messages/s",
        f"{unit} = 1" if unit else "ratio",
        "goal",
    ]
    remarks = [
        f"* failed: {server}, {times} of {len(cell['runs'])} runs: {failure}"
        for server, cell in row["cells"].items()
        for failure, times in Counter(cell["failures"]).items()
    ]
    return paragraphs(
        f"### {name}: {row['title']}",
        paragraphs(method_text(row), table(head, lines)) if lines else "",
        "\n".join([*remarks, *later_text(row), *disturbed_text(cells.values())]),
        gaps_text(row["gaps"]),
    )


def with_rows(result: Json, later: Json) -> Json:
    """A result with the rows of a later one in place of its own; each says in what its measurement was different."""
    facts = later["machine"] | later["versions"]
    before = result["machine"] | result["versions"]
    differs = {name: fact for name, fact in facts.items() if fact != before.get(name)}
    rows = {name: {**row, "later": differs} for name, row in later["rows"].items()}
    return {**result, "rows": {**result["rows"], **rows}}


def method_text(row: Json) -> str:
    cells = measured(row).values()
    rounds = max((len(cell["runs"]) for cell in row["cells"].values()), default=0)
    count = row["load"]["connections"]
    at_once = f"{count:,} connections at once" if count > 1 else "one connection"
    settings = f"; fastsmtp with {', '.join(row['settings'])}" if row["settings"] else ""
    text = f"{at_once} by {CLIENTS[row['load']['client']]}; median of {rounds}{settings}."
    others = [each for cell in cells for each in cell["others"]]
    if others:
        text += f" Other programs took {statistics.median(others):.2f} CPUs (highest {max(others):.2f})"
        repeated = sum(len(cell["repeated"]) for cell in cells)
        text += f"; {repeated} disturbed runs were repeated." if repeated else "."
    return text[0].upper() + text[1:]


def later_text(row: Json) -> list[str]:
    facts = [f"{name} {fact}" for name, fact in row.get("later", {}).items()]
    return [f"* measured again: {', '.join(facts)}."] if facts else []


def disturbed_text(cells: Iterable[Json]) -> list[str]:
    disturbed, runs = 0, 0
    for cell in cells:
        disturbed += cell["disturbed"]
        runs += len(cell["others"])
    return [f"* disturbed: {disturbed} of {runs} runs; do not trust these figures."] if disturbed else []


# --- the others: tables of figures by server --------------------------------------------------------------------


def figures_text(each: Json) -> str:
    """A table with one line for each server, one column for each figure."""
    servers = each["servers"]
    head = list(dict.fromkeys(column for figures in servers.values() for column in figures))
    lines = [
        [name, *(number(figures[column]) if column in figures else "" for column in head)]
        for name, figures in servers.items()
    ]
    return paragraphs(
        f"### {each['title']}",
        table(["server", *head], lines) if lines else "",
        "\n".join(f"* failed: {name}: {failure}" for name, failure in each["failures"].items()),
        gaps_text(each.get("gaps", {})),
    )


# --- the pages --------------------------------------------------------------------------------------------------


def result_text(result: Json) -> str:
    """All of one result: its tables, its gaps, and what it was measured on."""
    tables = [row_text(name, row) for name, row in result.get("rows", {}).items()]
    tables += [figures_text(each) for each in result.get("tables", ())]
    return paragraphs(
        summary_text(result.get("rows", {})),
        *tables,
        gaps_text(result["gaps"]),
        f"Measured on:\n\n{facts_text(result)}",
    )


def write_page(page: Path, results: Sequence[Json], plots: Mapping[str, str]) -> None:
    """Put results and pictures between the marks of a page, in place of those that were there.

    `plots` are titles by path, seen from the page.
    """
    pictures = "\n\n".join(f"![{title}]({path})" for path, title in plots.items())
    text = paragraphs(pictures, *(result_text(each) for each in results))
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
