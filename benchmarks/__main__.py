"""The command line of the benchmarks; README.md says what is measured and how."""

import dataclasses
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from . import report, source
from .beside import Beside
from .client import BenchmarkError
from .compare import Pins, Terms, as_json, compare, minutes, missing, scale_for
from .contender import Contender, make_certificate
from .contenders import CONTENDERS
from .hostile import SCENARIOS, storms
from .idle import idle, need_descriptors
from .large import large
from .latency import RATES, SECONDS, latencies
from .lifetime import ROLLS, STARTS, rolls, starts
from .machine import describe, versions
from .rows import EVERYONE, FASTER, GROUPS, ROWS, Row
from .tuning import SWEEPS

IDLE = (1_000, 15_000)
STARTED = (*EVERYONE, "postfix")
Tables = list[dict[str, Any]]


def say(line: str) -> None:
    """Progress, which is no result."""
    print(line, file=sys.stderr, flush=True)


def known(names: str, what: str, all_names: Sequence[str]) -> list[str]:
    """The names of a comma-separated option."""
    wanted = names.split(",")
    unknown = [name for name in wanted if name not in all_names]
    if unknown:
        raise click.BadParameter(f"no {what} {unknown[0]!r}; there are {', '.join(all_names)}")
    return wanted


def available(
    only: str | None, else_these: Sequence[str] | None = None
) -> tuple[list[Contender], dict[str, str]]:
    """The servers that are asked for and can run, in their order, and why the others cannot."""
    wanted = known(only, "server", NAMES) if only else else_these or NAMES
    gaps = {each.name: gap for each in CONTENDERS if each.name in wanted and (gap := each.missing())}
    for name, gap in gaps.items():
        print(f"not measured: {name}: {gap}", flush=True)
    contenders = [each for each in CONTENDERS if each.name in wanted and each.name not in gaps]
    if not contenders:
        raise click.ClickException("no server is left to measure")
    return contenders, gaps


def with_builds(
    found: tuple[list[Contender], dict[str, str]], tree: Path | None
) -> tuple[list[Contender], dict[str, str]]:
    """What `available` found, and ours once more if another tree is given."""
    contenders, gaps = found
    return [*contenders, *(builds(contenders, tree) if tree else ())], gaps


def builds(contenders: Sequence[Contender], tree: Path) -> list[Contender]:
    """Ours once more, of another tree."""
    found = [Beside(each, tree) for each in contenders if each.name.startswith("fastsmtp")]
    for each in found:
        if gap := each.missing():
            raise click.BadParameter(gap, param_hint="--beside")
    return [*found]


def pinned(pin: bool) -> Pins:
    if pin and not {0, 1} <= os.sched_getaffinity(0):
        raise click.ClickException("--pin needs the CPUs 0 and 1, and this process may not use both")
    return Pins(0, 1) if pin else Pins()


def facts(contenders: Sequence[Contender], pins: Pins) -> dict[str, dict[str, str]]:
    """What belongs to any result; printed, too."""
    machine = describe()
    if pins.server is not None:
        machine["placement"] = f"server on CPU {pins.server}, client on CPU {pins.client}"
    found = {"machine": machine, "versions": versions(contenders)}
    print(report.facts_text(found), flush=True)
    return found


def finish(result: dict[str, Any], json_path: Path | None, failed: bool) -> NoReturn:
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    sys.exit(1 if failed else 0)


NAMES = [each.name for each in CONTENDERS]
ROW_NAMES = [*GROUPS, *(row.name for row in ROWS)]
option_only = click.option("--only", metavar="SERVER,…", help=f"Just these of {', '.join(NAMES)}.")
option_repeat = click.option(
    "--repeat", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds."
)
option_patience = click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds that each run may wait for other programs to be quiet, or be repeated if they were not.",
)
option_pin = click.option("--pin", is_flag=True, help="Server on CPU 0, client on CPU 1, as README.md says.")
option_beside = click.option(
    "--beside",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="TREE",
    help="Measure fastsmtp as it was built in another tree, too, in turn.",
)
option_json = click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the results there, too.",
)


@click.group(invoke_without_command=True)
@option_only
@click.option("--rows", "row_names", metavar="ROW,…", help="Just these rows, or groups of rows; see `list`.")
@option_repeat
@click.option(
    "--messages", type=click.IntRange(min=1), help="Messages a run, instead of each row's own count."
)
@option_patience
@option_pin
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="About how long all may take: shorter or longer runs.",
)
@option_beside
@option_json
@click.pass_context
def main(
    context: click.Context,
    only: str | None,
    row_names: str | None,
    repeat: int,
    messages: int | None,
    patience: float,
    pin: bool,
    budget: float | None,
    beside: Path | None,
    json_path: Path | None,
) -> None:
    """Compare servers, row by row: CPU per message and messages per second."""
    if context.invoked_subcommand is not None:
        return
    wanted = known(row_names, "row", ROW_NAMES) if row_names else GROUPS
    rows = [row for row in ROWS if row.name in wanted or row.group in wanted]
    terms = Terms(rounds=repeat, messages=messages, patience=patience, pins=pinned(pin))
    need_client(rows)
    contenders, gaps = with_builds(available(only), beside)
    plan = [(row, [each for each in contenders if each.like in row.servers]) for row in rows]
    runnable = [(row, each) for row, those in plan for each in those if not missing(row, each)]
    if not runnable:
        raise click.ClickException("none of these servers is in any of these rows")
    if budget:
        terms = dataclasses.replace(terms, scale=scale_for(len(runnable), terms, budget))
    result: dict[str, Any] = {
        "benchmark": "compare",
        **facts(contenders, terms.pins),
        "gaps": gaps,
        "rows": {},
    }
    about = minutes(len(runnable), terms)
    say(f"{len(rows)} rows, {len(runnable) * terms.rounds} runs; about {about:.0f} minutes without patience")
    failed = False
    with certified(terms, rows) as terms:
        for row, those in plan:
            lacks = {each.name: gap for each in those if (gap := missing(row, each))}
            cells = compare(row, [each for each in those if each.name not in lacks], terms, say)
            result["rows"][row.name] = as_json(row, cells, lacks)
            failed = failed or any(cell.failures for cell in cells.values())
            print(f"\n{report.row_text(row.name, result['rows'][row.name])}", flush=True)
    print(f"\n{report.summary_text(result['rows'])}", flush=True)
    finish(result, json_path, failed)


def need_client(rows: Sequence[Row]) -> None:
    gap = source.missing()
    if gap and any(row.load.client == "smtp-source" for row in rows):
        raise click.ClickException(gap)
    try:
        need_descriptors(max(row.load.connections for row in rows))
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def certificate(needed: bool) -> Iterator[tuple[Path | None, Path | None]]:
    """A certificate and its key, made for this run."""
    if not needed:
        yield None, None
        return
    with tempfile.TemporaryDirectory(prefix="fastsmtp-bench-") as folder:
        os.chmod(folder, 0o755)  # as in `serving`
        try:
            files = make_certificate(Path(folder))
        except BenchmarkError as error:
            raise click.ClickException(str(error)) from None
        yield files


@contextmanager
def certified(terms: Terms, rows: Sequence[Row]) -> Iterator[Terms]:
    """The terms with a certificate if a row needs one."""
    with certificate(any(row.load.tls != "none" for row in rows)) as (pem, key):
        yield dataclasses.replace(terms, certificate=pem, key=key)


def each_server(
    benchmark: str,
    title: str,
    key: int,
    contenders: Sequence[Contender],
    one: Callable[[Contender], dict[str, float]],
) -> dict[str, Any]:
    """The table of one measurement, made once for each server."""
    servers: dict[str, dict[str, float]] = {}
    failures: dict[str, str] = {}
    for contender in contenders:
        say(f"{benchmark}: {key:,}: {contender.name}")
        try:
            servers[contender.name] = one(contender)
        except (BenchmarkError, OSError) as error:
            failures[contender.name] = str(error)
    return {"title": title, "key": key, "servers": servers, "failures": failures}


def show(
    benchmark: str, found: dict[str, Any], tables: Tables, gaps: dict[str, str], path: Path | None
) -> NoReturn:
    for each in tables:
        print(f"\n{report.figures_text(each)}", flush=True)
    failed = any(each["failures"] for each in tables)
    finish({"benchmark": benchmark, **found, "gaps": gaps, "tables": tables}, path, failed)


@main.command("idle")
@option_only
@option_beside
@option_json
@click.option(
    "--connections", "counts", type=click.IntRange(min=1), multiple=True, default=IDLE, show_default=True
)
def idle_command(
    only: str | None, beside: Path | None, json_path: Path | None, counts: Sequence[int]
) -> None:
    """Idle connections after EHLO: memory of each, and how fast a new client is answered."""
    try:
        need_descriptors(max(counts))
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from None
    contenders, gaps = with_builds(available(only, FASTER), beside)
    found = facts(contenders, Pins())
    tables = []
    for count in counts:
        title = f"{count:,} idle connections after EHLO, one worker"
        tables.append(each_server("idle", title, count, contenders, partial(idle, connections=count)))
    show("idle", found, tables, gaps, json_path)


@main.command("large")
@option_only
@option_beside
@option_json
@click.option("--clients", type=click.IntRange(min=1), default=20, show_default=True)
@click.option(
    "--size", type=click.IntRange(min=1), default=50_000_000, show_default=True, help="Octets of a message."
)
def large_command(
    only: str | None, beside: Path | None, json_path: Path | None, clients: int, size: int
) -> None:
    """Large messages at once: peak memory, and the longest wait of a NOOP meanwhile."""
    contenders, gaps = with_builds(available(only, FASTER), beside)
    found = facts(contenders, Pins())
    title = f"{clients} clients, {size:,} octets each, at once, one worker"
    tables = [each_server("large", title, clients, contenders, lambda each: large(each, clients, size))]
    show("large", found, tables, gaps, json_path)


@main.command("latency")
@option_only
@option_repeat
@option_pin
@option_json
@click.option(
    "--rate",
    "rates",
    type=click.IntRange(min=1),
    multiple=True,
    default=RATES,
    show_default=True,
    help="Messages a second.",
)
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), default=float(SECONDS), show_default=True
)
def latency_command(
    only: str | None, repeat: int, pin: bool, json_path: Path | None, rates: Sequence[int], seconds: float
) -> None:
    """Waits of clients at fixed offered loads, in an open loop."""
    pins = pinned(pin)
    contenders, gaps = available(only, FASTER)
    found = facts(contenders, pins)
    tables = latencies(contenders, rates, seconds=seconds, rounds=repeat, pins=pins, say=say)
    show("latency", found, tables, gaps, json_path)


@main.command("lifetime")
@option_only
@option_json
def lifetime_command(only: str | None, json_path: Path | None) -> None:
    """How long a start takes, and a roll of fastsmtp's workers under load."""
    contenders, gaps = available(only, STARTED)
    found = facts(contenders, Pins())
    title = f"Start, from the first process to the end of a first session, {STARTS} times"
    tables = [each_server("start", title, STARTS, contenders, starts)]
    ours = [each for each in contenders if each.name == "fastsmtp"]
    if ours:
        title = "Roll of 2 workers (SIGHUP) under load, from the signal until all are new"
        tables.append(each_server("roll", title, ROLLS, ours, rolls))
    show("lifetime", found, tables, gaps, json_path)


@main.command("tuning")
@click.option(
    "--rows",
    "row_names",
    metavar="ROW,…",
    help=f"Just these of {', '.join(row.name for row, _ in SWEEPS)}; in the file of --json they replace their "
    "predecessors, and the other rows stay.",
)
@option_repeat
@option_patience
@option_pin
@option_json
def tuning_command(
    row_names: str | None, repeat: int, patience: float, pin: bool, json_path: Path | None
) -> None:
    """What fastsmtp's settings do, one at a time."""
    wanted = known(row_names, "row", [row.name for row, _ in SWEEPS]) if row_names else None
    sweeps = [(row, servers) for row, servers in SWEEPS if wanted is None or row.name in wanted]
    rows = [row for row, _ in sweeps]
    terms = Terms(rounds=repeat, patience=patience, pins=pinned(pin))
    need_client(rows)
    ours = next(each for each in CONTENDERS if each.name == "fastsmtp")
    result: dict[str, Any] = {"benchmark": "tuning", **facts([ours], terms.pins), "gaps": {}, "rows": {}}
    with certified(terms, rows) as terms:
        for row, servers in sweeps:
            result["rows"][row.name] = as_json(row, compare(row, servers, terms, say), {})
            print(f"\n{report.row_text(row.name, result['rows'][row.name])}", flush=True)
    failed = any(cell["failures"] for row in result["rows"].values() for cell in row["cells"].values())
    if wanted is not None and json_path is not None and json_path.exists():
        result = report.with_rows(json.loads(json_path.read_text()), result)
    finish(result, json_path, failed)


@main.command("hostile")
@option_only
@click.option(
    "--scenarios",
    "names",
    metavar="NAME,…",
    help=f"Just these of {', '.join(each.name for each in SCENARIOS)}.",
)
@click.option("--repeat", type=click.IntRange(min=1), default=1, show_default=True, help="Rounds.")
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), help="Of each scenario, instead of its own."
)
@option_pin
@option_beside
@option_json
def hostile_command(
    only: str | None,
    names: str | None,
    repeat: int,
    seconds: float | None,
    pin: bool,
    beside: Path | None,
    json_path: Path | None,
) -> None:
    """Waits of honest clients beside hostile ones; memory and descriptors before, during and after."""
    wanted = known(names, "scenario", [each.name for each in SCENARIOS]) if names else None
    scenarios = [each for each in SCENARIOS if wanted is None or each.name in wanted]
    try:
        need_descriptors(max(each.count for each in scenarios))
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from None
    pins = pinned(pin)
    contenders, gaps = available(only, ("fastsmtp",))
    others = [] if beside is None else builds(contenders, beside)
    found = facts([*contenders, *others], pins)
    with certificate(any(each.tls for each in scenarios)) as (pem, key):
        tables = storms(
            contenders,
            scenarios,
            tree=beside,
            tls={"certificate": pem, "key": key},
            seconds=seconds,
            rounds=repeat,
            pins=pins,
            say=say,
            show=lambda table: print(f"\n{report.figures_text(table)}", flush=True),
        )
    failed = any(each["failures"] for each in tables)
    finish({"benchmark": "hostile", **found, "gaps": gaps, "tables": tables}, json_path, failed)


@main.command("peers")
def peers_command() -> None:
    """Install the servers to compare with, or find them."""
    from .peers.install import install  # here, as nothing else needs what it needs

    gaps = install(say)
    for name, gap in gaps.items():
        print(f"not installed: {name}: {gap}", flush=True)
    sys.exit(1 if gaps else 0)


@main.command("list")
def list_command() -> None:
    """The rows of the side by side (group, name, title, servers), and the scenarios of `hostile`."""
    lines = [[row.group, row.name, row.title, " ".join(row.servers)] for row in ROWS]
    print(report.table(["group", "row", "title", "servers"], lines))
    print("\n" + report.table(["scenario", "title"], [[each.name, each.title] for each in SCENARIOS]))


@main.command("report")
def report_command() -> None:
    """Put the results of benchmarks/results/*.json into benchmarks/README.md and docs/tuning.md, and draw the plots."""
    from .plots import draw  # here, as nothing else needs matplotlib

    files = sorted(report.RESULTS.glob("*.json"))
    if not files:
        raise click.ClickException(f"no results in {report.RESULTS}; make some with --json")
    results = [json.loads(file.read_text()) for file in files]
    plots = draw(results, report.README.parent)
    tuning = {f"../benchmarks/{path}": title for path, title in plots.items() if "tuning" in path}
    others = {path: title for path, title in plots.items() if "tuning" not in path}
    for page, pictures, those in (
        (report.README, others, [each for each in results if each["benchmark"] != "tuning"]),
        (report.TUNING, tuning, [each for each in results if each["benchmark"] == "tuning"]),
    ):
        report.write_page(page, those, pictures)
    print(f"{report.README}, {report.TUNING}: {', '.join(file.stem for file in files)}")


def end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)  # so that a server under test is stopped on the way out
    main(prog_name="python -m benchmarks")
