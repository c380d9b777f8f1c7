"""The command line of the benchmarks; README.md says what is measured and how."""

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from . import report
from .client import BenchmarkError
from .compare import ROWS, Cell, Pins, Row, compare
from .contenders import CONTENDERS, Contender
from .idle import idle, need_descriptors
from .large import large
from .machine import describe
from .source import postfix_tool


def say(line: str) -> None:
    """Progress, which is no result."""
    print(line, file=sys.stderr, flush=True)


def chosen(names: str | None, what: str, all_names: Sequence[str]) -> list[str]:
    """The names of a comma-separated option, in the declared order; everything without the option."""
    wanted = names.split(",") if names else all_names
    unknown = [name for name in wanted if name not in all_names]
    if unknown:
        raise click.BadParameter(f"no {what} {unknown[0]!r}; there are {', '.join(all_names)}")
    return [name for name in all_names if name in wanted]


def available(only: str | None, names: Sequence[str]) -> tuple[list[Contender], dict[str, str]]:
    """The servers that are asked for and can run, and why the others cannot."""
    wanted = chosen(only, "server", names)
    gaps = {each.name: gap for each in CONTENDERS if each.name in wanted and (gap := each.missing())}
    for name, gap in gaps.items():
        print(f"not measured: {name}: {gap}", flush=True)
    return [each for each in CONTENDERS if each.name in wanted and each.name not in gaps], gaps


def need_smtp_source() -> None:
    if postfix_tool("smtp-source") is None:
        raise click.ClickException(
            "smtp-source is not installed; it is part of Postfix (Debian: apt install postfix)"
        )


def finish(result: dict[str, Any], json_path: Path | None, failed: bool) -> NoReturn:
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    sys.exit(1 if failed else 0)


NAMES = [each.name for each in CONTENDERS]
ALL_NAMES = ", ".join(NAMES)
option_only = click.option("--only", metavar="SERVER,…", help=f"Just these of {ALL_NAMES}.")
option_json = click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the results there, too.",
)


@click.group(invoke_without_command=True)
@option_only
@option_json
@click.option("--rows", metavar="ROW,…", help=f"Just these of {', '.join(row.name for row in ROWS)}.")
@click.option("--repeat", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds.")
@click.option(
    "--messages", type=click.IntRange(min=1), help="Messages a run, instead of each row's own count."
)
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds that each run may wait for other programs to be quiet, or be repeated if they were not.",
)
@click.option("--pin", is_flag=True, help="Server on CPU 0, client on CPU 1, as README.md says.")
@click.pass_context
def main(
    context: click.Context,
    only: str | None,
    json_path: Path | None,
    rows: str | None,
    repeat: int,
    messages: int | None,
    patience: float,
    pin: bool,
) -> None:
    """Compare servers under Postfix's smtp-source: CPU per message and messages per second."""
    if context.invoked_subcommand is not None:
        return
    need_smtp_source()
    if pin and not {0, 1} <= os.sched_getaffinity(0):
        raise click.ClickException("--pin needs the CPUs 0 and 1, and this process may not use both")
    names = chosen(rows, "row", [row.name for row in ROWS])
    pins = Pins(0, 1) if pin else Pins()
    machine = describe()
    machine["placement"] = "server on CPU 0, smtp-source on CPU 1" if pin else "left to the scheduler"
    print(report.machine_text(machine), flush=True)
    contenders, gaps = available(only, NAMES)
    if not contenders:
        raise click.ClickException("no server is left to measure")
    texts, measured, failed = [], {}, False
    for row in (row for row in ROWS if row.name in names):
        cells = compare(
            row,
            contenders,
            rounds=range(1, repeat + 1),
            messages=messages,
            pins=pins,
            patience=patience,
            say=say,
        )
        texts.append(report.row_text(row, cells))
        measured[row.name] = row_json(row, cells)
        failed = failed or any(cell.failures for cell in cells.values())
        print(f"\n{texts[-1]}", flush=True)
    text = report.paragraphs(*texts, report.gaps_text(gaps))
    result = {"benchmark": "compare", "machine": machine, "rows": measured, "gaps": gaps, "text": text}
    finish(result, json_path, failed)


def row_json(row: Row, cells: dict[str, Cell]) -> dict[str, Any]:
    return {
        **dataclasses.asdict(row),
        "servers": {name: dataclasses.asdict(cell) for name, cell in cells.items()},
    }


def measure_each(
    benchmark: str,
    title: str,
    only: str | None,
    json_path: Path | None,
    one: Callable[[Contender], dict[str, float]],
) -> NoReturn:
    """Run a memory benchmark once for each server, print and write what it gave."""
    machine = describe()
    print(report.machine_text(machine), flush=True)
    contenders, gaps = available(only, NAMES)
    servers: dict[str, dict[str, float]] = {}
    failures: dict[str, str] = {}
    for contender in contenders:
        say(f"{benchmark}: {contender.name}")
        try:
            servers[contender.name] = one(contender)
        except (BenchmarkError, OSError) as error:
            failures[contender.name] = str(error)
    text = report.memory_text(title, servers, failures)
    print(f"\n{text}", flush=True)
    text = report.paragraphs(text, report.gaps_text(gaps))
    measured = {"benchmark": benchmark, "machine": machine, "servers": servers}
    finish({**measured, "failures": failures, "gaps": gaps, "text": text}, json_path, bool(failures))


@main.command("idle")
@option_only
@option_json
@click.option("--connections", type=click.IntRange(min=1), default=10_000, show_default=True)
def idle_command(only: str | None, json_path: Path | None, connections: int) -> None:
    """Idle connections after EHLO: memory of each, and how fast a new client is answered."""
    try:
        need_descriptors(connections)
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from None
    title = f"{connections:,} idle connections after EHLO, one worker"
    measure_each("idle", title, only, json_path, lambda contender: idle(contender, connections))


@main.command("large")
@option_only
@option_json
@click.option("--clients", type=click.IntRange(min=1), default=20, show_default=True)
@click.option(
    "--size", type=click.IntRange(min=1), default=20_000_000, show_default=True, help="Octets of a message."
)
def large_command(only: str | None, json_path: Path | None, clients: int, size: int) -> None:
    """Large messages at once: peak memory, and the longest wait of a NOOP meanwhile."""
    title = f"{clients} clients, {size:,} octets each, at once, one worker"
    measure_each("large", title, only, json_path, lambda contender: large(contender, clients, size))


@main.command("report")
def report_command() -> None:
    """Put the results of benchmarks/results/*.json into benchmarks/README.md."""
    files = sorted(report.RESULTS.glob("*.json"))
    if not files:
        raise click.ClickException(f"no results in {report.RESULTS}; make some with --json")
    report.write_readme([json.loads(file.read_text()) for file in files])
    print(f"{report.README}: {', '.join(file.stem for file in files)}")


def end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)  # so that a server under test is stopped on the way out
    main(prog_name="python -m benchmarks")
