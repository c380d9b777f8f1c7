"""The instruction guard: how many instructions the core needs for a message, held against what it needed before.

Runs ``talks.py`` under callgrind, which counts the same on a busy machine and on an idle one, and compares each
conversation with ``instructions.json``. Knows callgrind's files and how far a count may rise. Refuses to know what
is sent, and how long anything takes: an instruction is not a nanosecond, and the kernel's are not counted.

    python -m benchmarks.instructions [--record] [--functions N]
"""

import dataclasses
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click

from fastsmtp import _core
from fastsmtp._reception import KERNEL

from .talks import TALKS

ROOT = Path(__file__).resolve().parent.parent
CORE = Path(_core.__file__).parent
RECORDED = Path(__file__).with_name("instructions.json")
RECORD = "python -m benchmarks.instructions --record"

# How far a figure may rise above the recorded one. The total has CPython's and libc's instructions in it, which
# change with their patch releases.
OWN_MARGIN, TOTAL_MARGIN = 0.05, 0.10
COSTLIEST = 5
RUN_SECONDS = 300.0

_NAMED = re.compile(r"(c?)(ob|fn)=\((\d+)\)(?: (.*))?")
_RECURSION = re.compile(r"'\d+$")
_COMPILER = re.compile(rb"GCC: \([^)]*\) (\d+)|clang version (\d+)")


class GuardError(Exception):
    """Nothing could be counted; one line that says why."""


class Function(NamedTuple):
    """A function, and the path of the program or library that it is in."""

    library: str
    name: str

    @property
    def own(self) -> bool:
        """Whether it is the compiled core's."""
        path = Path(self.library)
        return path.suffix == ".so" and path.parent == CORE

    def __str__(self) -> str:
        return f"{self.name} ({Path(self.library).name.partition('.')[0]})"


@dataclass(frozen=True)
class Count:
    """Instructions for a message: those of the compiled core itself, and all of the process."""

    own: int
    total: int


class Environment(NamedTuple):
    """What the figures hold for; with another compiler or Python they mean nothing."""

    python: str
    compiler: str
    machine: str
    kernel: str

    def __str__(self) -> str:
        return f"{self.python}, core by {self.compiler}, {self.machine}, {self.kernel}"


def environment() -> Environment:
    """What the guard runs in."""
    optimized = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    version = ".".join(platform.python_version_tuple()[:2])
    built = f"{platform.python_compiler().split('.')[0]}{' with profile' if optimized else ''}"
    found = _COMPILER.search(Path(_core.__file__).read_bytes())
    compiler = "an unknown compiler"
    if found is not None:
        compiler = f"GCC {found[1].decode()}" if found[1] else f"clang {found[2].decode()}"
    return Environment(
        f"{platform.python_implementation()} {version} by {built}", compiler, platform.machine(), KERNEL
    )


# --- counting -----------------------------------------------------------------------------------------------


def count() -> dict[str, Counter[Function]]:
    """Instructions of each function, its callees' not among them, for one message of each conversation.

    Takes some ten seconds. Raises ``GuardError``.
    """
    if shutil.which("valgrind") is None:
        raise GuardError("valgrind is not installed (Debian: apt install valgrind)")
    talks = [sys.executable, "-m", "benchmarks.talks"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "callgrind")
        run(talks)  # leaves the bytecode of all modules, so that from now on memory is laid out alike
        run(
            [
                "valgrind",
                "-q",
                "--tool=callgrind",
                f"--callgrind-out-file={output}",
                "--dump-before=getppid",
                *talks,
            ]
        )
        # Two files for each conversation: what came before the part that counts, and that part.
        parts = [Path(f"{output}.{2 * number}") for number in range(1, len(TALKS) + 1)]
        if not all(part.exists() for part in parts):
            raise GuardError("callgrind wrote too few files; does this libc have a function getppid?")
        counts = {}
        for talk, part in zip(TALKS, parts, strict=True):
            with part.open(encoding="utf-8", errors="replace") as lines:
                spent = spent_in(lines)
            counts[talk.name] = Counter({each: round(spent[each] / talk.messages) for each in spent})
    return counts


def run(command: list[str]) -> None:
    """Runs a program of ours; ``GuardError`` unless it ends well."""
    # With other hashes and variables sets, dicts and CPython's caches would differ, and the count with them.
    fixed = {
        "PATH": os.environ["PATH"],
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": f"{CORE.parent}{os.pathsep}{ROOT}",
    }
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=fixed, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise GuardError(f"{command[0]} was not done after {RUN_SECONDS:.0f} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise GuardError(f"{command[0]} ended with status {done.returncode}: {last}")


def spent_in(lines: Iterable[str]) -> Counter[Function]:
    """What a file of callgrind says of each function, its callees' instructions not among them."""
    spent: Counter[Function] = Counter()
    names: dict[tuple[str, str], str] = {}  # a name stands where it comes first, then only its number
    now = {"ob": "", "fn": ""}
    callee = False
    for line in lines:
        if match := _NAMED.match(line):
            called, kind, number, name = match.groups()
            if name is not None:
                names[kind, number] = name
            if not called:
                now[kind] = names[kind, number]
        elif line.startswith("calls="):
            callee = True  # the next line is what the call took with all that it called
        elif line[:1].isdigit() or line[:1] in "+-*":
            if not callee:
                spent[Function(now["ob"], _RECURSION.sub("", now["fn"]))] += int(line.split()[1])
            callee = False
    return spent


def summed(spent: Counter[Function]) -> Count:
    """The two figures that are guarded."""
    return Count(sum(n for function, n in spent.items() if function.own), spent.total())


# --- what was recorded --------------------------------------------------------------------------------------


def recordings() -> dict[Environment, dict[str, Count]]:
    """All of ``instructions.json``."""
    found = json.loads(RECORDED.read_text())
    return {
        Environment(**each["environment"]): {name: Count(**row) for name, row in each["rows"].items()}
        for each in found
    }


def record(rows: dict[str, Count]) -> None:
    """Writes these figures in place of those for this environment; the others stay."""
    kept = recordings() if RECORDED.exists() else {}
    every = {**kept, environment(): rows}
    written = [
        {
            "environment": where._asdict(),
            "rows": {name: dataclasses.asdict(row) for name, row in rows.items()},
        }
        for where, rows in sorted(every.items())
    ]
    RECORDED.write_text(json.dumps(written, indent=1) + "\n")


class Excess(NamedTuple):
    """A row that may not be as it is: its figure, ``own`` or ``total``, and the sentence that says why."""

    row: str
    figure: str
    sentence: str


def excesses(rows: dict[str, Count], bounds: dict[str, Count]) -> Iterator[Excess]:
    """Each figure that is too high, and each row that was never recorded."""
    for name, row in rows.items():
        if name not in bounds:
            yield Excess(name, "total", f"{name}: nothing is recorded")
            continue
        for figure, is_now, was, margin in (
            ("own", row.own, bounds[name].own, OWN_MARGIN),
            ("total", row.total, bounds[name].total, TOTAL_MARGIN),
        ):
            if is_now > was * (1 + margin):
                figures = f"{is_now:,} instructions a message, recorded {was:,}"
                yield Excess(name, figure, f"{name}: {figure}: {figures}: more than {margin:.0%} above")


# --- the command --------------------------------------------------------------------------------------------


def table(rows: dict[str, Count], bounds: dict[str, Count]) -> str:
    """All figures, and how far each is from the recorded one."""

    def beside(is_now: int, was: int | None) -> str:
        return f"{is_now:12,} {f'{is_now / was - 1:+8.1%}' if was else ''.rjust(8)}"

    lines = [f"{'instructions a message':24} {'own':>12} {'':8} {'total':>12}"]
    for name, row in rows.items():
        bound = bounds.get(name)
        own, total = (bound.own, bound.total) if bound else (None, None)
        lines.append(f"{name:24} {beside(row.own, own)} {beside(row.total, total)}".rstrip())
    return "\n".join(lines)


def costliest(spent: Counter[Function], number: int, figure: str = "total") -> str:
    """The functions of a figure that cost most, a line each."""
    counted = Counter({each: n for each, n in spent.items() if figure == "total" or each.own})
    return "\n".join(f"{n:12,}  {function}" for function, n in counted.most_common(number))


@click.command()
@click.option("--record", "recording", is_flag=True, help="Make what is counted now the bound from now on.")
@click.option(
    "--functions", type=click.IntRange(min=1), metavar="N", help="Also list the N costliest of each row."
)
def main(recording: bool, functions: int | None) -> None:
    """Count the core's instructions for a message, and compare them with instructions.json."""
    where = environment()
    bounds = recordings().get(where) if RECORDED.exists() else None
    if bounds is None and not recording and functions is None:
        click.echo(f"not compared: nothing is recorded for {where}; {RECORD} does it")
        return
    try:
        counts = count()
    except GuardError as error:
        raise click.ClickException(str(error)) from None
    rows = {name: summed(spent) for name, spent in counts.items()}
    click.echo(f"{where}\n{table(rows, bounds or {})}")
    if functions is not None:
        for name, spent in counts.items():
            click.echo(
                f"\n{name}, where its {rows[name].total:,} instructions are\n{costliest(spent, functions)}"
            )
    if recording:
        record(rows)
        click.echo(f"recorded in {RECORDED.name}")
        return
    if bounds is None:
        return
    found = list(excesses(rows, bounds))
    for row, figure, sentence in found:
        click.echo(f"\n{sentence}; it goes to\n{costliest(counts[row], COSTLIEST, figure)}")
    if found:
        click.echo(f"\nIf that is what the change is worth, record it: {RECORD}")
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.instructions")
