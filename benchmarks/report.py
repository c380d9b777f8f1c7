"""Results as Markdown tables, which read well in a terminal, too; and their place in README.md."""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .compare import GOALS, SESSIONS, Cell, Row
from .process import ROOT

RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "benchmarks" / "README.md"
BEGIN, END = "<!-- results: written by `python -m benchmarks report` -->", "<!-- end of results -->"


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


def machine_text(machine: dict[str, str]) -> str:
    return "\n".join(f"* {name}: {value}" for name, value in machine.items())


def row_text(row: Row, cells: dict[str, Cell]) -> str:
    """One row of the comparison as a headed table, failures below it."""
    lines, failures = [], []
    rounds = max(len(cell.runs) for cell in cells.values())
    for name, cell in cells.items():
        counted = Counter(cell.failures).items()
        failures += [f"* failed: {name}, {count} of {rounds} runs: {failure}" for failure, count in counted]
        if not cell.good:
            lines.append([name, f"{cell.messages:,}", "failed", "", "", "", "", ""])
            continue
        costs = [run.cpu_per_message for run in cell.good]
        ratio = cell.ratio(cells["floor"]) if "floor" in cells else None
        goal = GOALS.get((row.name, name))
        lines.append(
            [
                name,
                f"{cell.messages:,}",
                f"{statistics.median(costs):,.1f}",
                f"{min(costs):,.1f} to {max(costs):,.1f}",
                f"{statistics.median(run.sleeps_per_message for run in cell.good):.2f}",
                f"{statistics.median(run.rate for run in cell.good):,.0f}",
                "" if ratio is None else f"{ratio:.2f}",
                "" if goal is None else f"{goal:.2f}",
            ]
        )
    head = [
        "server",
        "messages",
        "CPU µs/message",
        "lowest to highest",
        "sleeps/message",
        "messages/s",
        "floor = 1",
        "goal",
    ]
    title = f"### {row.name}: {row.title}"
    settings = f"; fastsmtp with {', '.join(row.settings)}" if row.settings else ""
    method = f"{SESSIONS} sessions at once; median of {rounds}{settings}."
    others = [run.others for cell in cells.values() for run in cell.good]
    if others:
        repeated = sum(len(cell.repeated) for cell in cells.values())
        disturbed = sum(run.disturbed for cell in cells.values() for run in cell.good)
        method += f" Other programs took {statistics.median(others):.2f} CPUs (highest {max(others):.2f})"
        method += f"; {repeated} disturbed runs were repeated." if repeated else "."
        if disturbed:
            failures.append(
                f"* disturbed: {disturbed} of {len(others)} runs; do not trust this row's figures."
            )
    return paragraphs(title, method, table(head, lines), "\n".join(failures))


def number(value: float) -> str:
    return f"{value:,.2f}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"


def memory_text(title: str, servers: dict[str, dict[str, float]], failures: dict[str, str]) -> str:
    """The table of `idle` or `large`: one line for each server, one column for each figure."""
    head = list(dict.fromkeys(column for figures in servers.values() for column in figures))
    lines = [[name, *(number(figures[column]) for column in head)] for name, figures in servers.items()]
    failed = "\n".join(f"* failed: {name}: {failure}" for name, failure in failures.items())
    return paragraphs(f"### {title}", table(["server", *head], lines) if lines else "", failed)


def gaps_text(gaps: dict[str, str]) -> str:
    return "\n".join(f"* not measured: {name}: {gap}" for name, gap in gaps.items())


def paragraphs(*parts: str) -> str:
    """The parts that are not empty, with an empty line between them."""
    return "\n\n".join(part for part in parts if part)


def write_readme(results: Sequence[dict[str, Any]]) -> None:
    """Put the given results between the marks in README.md, in place of those that were there."""
    sections = [f"{each['text']}\n\nMeasured on:\n\n{machine_text(each['machine'])}" for each in results]
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(before + BEGIN + "\n\n" + "\n\n".join(sections) + "\n\n" + END + after)
