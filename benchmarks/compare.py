"""Side by side: a row of load, run by each of its servers in turn, round after round.

The servers take turns inside a round, and every ratio is taken within its round, so that whatever slows the
machine for a while slows all of them. A server lives for one run: start, warm-up, measured run, count, stop.
It knows how a run is made, proved and summed up; it refuses to know which rows there are and how they look.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import bench, segments, source
from .client import BenchmarkError
from .contender import Contender
from .process import busy_seconds, cpu_between
from .rows import Row
from .serving import serving

QUIET_SECONDS = 0.3
DISTURBED = 0.1  # CPUs busy with other programs; beyond it the small figures change by half
RUN_SECONDS = 2.0  # at most, for a measured run
OTHER_SECONDS = 1.5  # start, warm-up, rests and stop of one run, about
CLIENTS = {"smtp-source": source.send, "bench": bench.send, "segments": segments.send}


@dataclass(frozen=True)
class Pins:
    """CPUs for the server and its client; None leaves it to the scheduler."""

    server: int | None = None
    client: int | None = None


@dataclass(frozen=True)
class Terms:
    """How all rows are run.

    A measured run gets `messages` if given. Else it gets the row's own count times `scale`, and fewer if the
    warm-up says that they would take longer than RUN_SECONDS times `scale`; CPU per message does not depend
    on it. Each run may take `patience` seconds to wait for other programs to be quiet and to be done again if
    they were not; whether it counts depends on their CPU time alone, never on what it gave.
    """

    certificate: Path | None = None
    key: Path | None = None
    rounds: int = 3
    messages: int | None = None
    scale: float = 1.0
    patience: float = 0.0
    pins: Pins = field(default_factory=Pins)


@dataclass(frozen=True)
class Run:
    """One verified run."""

    messages: int
    cpu: int  # nanoseconds, all processes of the server
    seconds: float  # that the client took
    sleeps: int  # how often the server waited for work
    others: float  # CPUs, on average, that were busy with neither the server nor its client
    wait: float | None = None  # milliseconds of one message, median, where the client measures it

    @property
    def cpu_per_message(self) -> float:
        """Microseconds."""
        return self.cpu / self.messages / 1e3

    @property
    def disturbed(self) -> bool:
        return self.others > DISTURBED


@dataclass
class Cell:
    """What one server did in one row: by round a run, or None where it failed, and why."""

    runs: list[Run | None] = field(default_factory=list)
    repeated: list[Run] = field(default_factory=list)  # disturbed ones that another run stands for
    failures: list[str] = field(default_factory=list)

    @property
    def good(self) -> list[Run]:
        return [run for run in self.runs if run is not None]

    def ratio(self, other: "Cell") -> float | None:
        """Median over the rounds of this CPU per message by the other's; None without a common round."""
        pairs = [
            mine.cpu_per_message / theirs.cpu_per_message
            for mine, theirs in zip(self.runs, other.runs, strict=False)
            if mine is not None and theirs is not None
        ]
        return statistics.median(pairs) if pairs else None

    def figures(self, cells: dict[str, "Cell"]) -> dict[str, Any]:
        """What the reports need, ready for JSON; `cells` are those of the whole row, this one included.

        `cpu` is in microseconds by message, `wait` in milliseconds; `ratios` are by the names of all servers that it
        can be divided by.
        """
        figures: dict[str, Any] = {
            "failures": self.failures,
            "runs": [None if run is None else asdict(run) for run in self.runs],
            "repeated": [asdict(run) for run in self.repeated],
        }
        if not self.good:
            return figures
        costs = [run.cpu_per_message for run in self.good]
        waits = [run.wait for run in self.good if run.wait is not None]
        ratios = {name: self.ratio(other) for name, other in cells.items()}
        return {
            "messages": round(statistics.median(run.messages for run in self.good)),
            "cpu": statistics.median(costs),
            "lowest": min(costs),
            "highest": max(costs),
            "sleeps": statistics.median(run.sleeps / run.messages for run in self.good),
            "rate": statistics.median(run.messages / run.seconds for run in self.good),
            **({"wait": statistics.median(waits)} if waits else {}),
            "others": [run.others for run in self.good],
            "disturbed": sum(run.disturbed for run in self.good),
            "ratios": {name: ratio for name, ratio in ratios.items() if ratio is not None},
            **figures,
        }


def counts(row: Row, contender: Contender, terms: Terms) -> tuple[int, int]:
    """The messages of the warm-up and of the measured run, before anything is known about its speed."""
    share = 1.0 if row.same_count else contender.share
    messages = terms.messages or max(row.load.connections, round(row.messages * share * terms.scale))
    return max(row.load.connections, messages // 10), messages


def within_time(row: Row, wanted: int, each: float, terms: Terms) -> int:
    """As many messages as may be sent, when each takes that many seconds."""
    if terms.messages is not None or row.same_count:
        return wanted
    return max(row.load.connections, min(wanted, int(RUN_SECONDS * terms.scale / each)))


def measure(contender: Contender, row: Row, terms: Terms) -> Run:
    """Start the server, warm it up, run the load, check what it took, stop it. BenchmarkError if any fails."""
    load, pins = row.load, Pins() if row.spread else terms.pins
    warm_up, wanted = counts(row, contender, terms)
    send = CLIENTS[load.client]
    options: dict[str, Any] = {"workers": row.workers, "keep": row.keep, "settings": row.settings}
    if load.tls != "none":
        options |= {"tls": load.tls, "certificate": terms.certificate, "key": terms.key}
    if load.login:
        options["login"] = bench.LOGIN
    with serving(contender, cpu=pins.server, counted=True, **options) as (server, setup):
        port = setup.port
        warmed = send(load, warm_up, port, pins.client)
        messages = within_time(row, wanted, warmed.seconds / warm_up, terms)
        before, slept = server.cpu(), server.sleeps()
        started, elsewhere = time.perf_counter(), work_elsewhere(0)
        sent = send(load, messages, port, pins.client)
        after, slept = server.cpu(), server.sleeps() - slept
        used = cpu_between(before, after)
        elsewhere = (work_elsewhere(used) - elsewhere) / (time.perf_counter() - started)
        kept = contender.kept(setup)
        if kept is not None:
            bench.check_kept(kept, load.size, [warm_up, messages])
        counted = contender.count(server, setup)
        if counted not in (None, warm_up + messages):
            due = warm_up + messages
            raise BenchmarkError(f"{contender.name} counted {counted} messages where {due} were sent")
    return Run(messages, used, sent.seconds, slept, max(0.0, elsewhere), sent.wait)


def work_elsewhere(server_nanoseconds: int) -> float:
    """CPU seconds of the machine without this process, its clients that ended, and the given server time."""
    times = os.times()
    mine = times.user + times.system + times.children_user + times.children_system
    return busy_seconds() - mine - server_nanoseconds / 1e9


def wait_for_quiet(deadline: float) -> None:
    """Until the whole machine has been idle for a moment, or the deadline (monotonic) is reached."""
    while time.monotonic() < deadline:
        busy = busy_seconds()
        time.sleep(QUIET_SECONDS)
        if busy_seconds() - busy <= DISTURBED * QUIET_SECONDS:
            return


def missing(row: Row, contender: Contender) -> str | None:
    """Why that server cannot be in that row, in one line; None if it can."""
    lacks = sorted(row.needs - contender.can)
    return f"{contender.name} has no {', no '.join(lacks)}" if lacks else None


def minutes(cells: int, terms: Terms) -> float:
    """About how long so many cells take; patience is not in it."""
    return cells * terms.rounds * (OTHER_SECONDS + RUN_SECONDS * terms.scale) / 60


def scale_for(cells: int, terms: Terms, budget: float) -> float:
    """The scale that lets so many cells end within a budget of minutes, if that can be."""
    seconds = budget * 60 / cells / terms.rounds - OTHER_SECONDS
    return max(0.05, seconds / RUN_SECONDS)


def compare(
    row: Row, contenders: Sequence[Contender], terms: Terms, say: Callable[[str], None]
) -> dict[str, Cell]:
    """All rounds of one row. Keys are the servers' names."""
    cells = {each.name: Cell() for each in contenders}
    for number in range(1, terms.rounds + 1):
        for contender in contenders:
            cell = cells[contender.name]
            say(f"{row.name}: round {number} of {terms.rounds}, {contender.name}")
            try:
                deadline = time.monotonic() + terms.patience
                wait_for_quiet(deadline)
                run = measure(contender, row, terms)
                while run.disturbed and time.monotonic() < deadline:
                    cell.repeated.append(run)
                    wait_for_quiet(deadline)
                    run = measure(contender, row, terms)
                cell.runs.append(run)
            except (BenchmarkError, OSError) as error:
                cell.runs.append(None)
                cell.failures.append(str(error))
    return cells


def as_json(row: Row, cells: dict[str, Cell], gaps: dict[str, str]) -> dict[str, Any]:
    """What is kept of a row: its declaration, the figures of its servers, and why others are not there."""
    return {
        **asdict(row),
        "cells": {name: cell.figures(cells) for name, cell in cells.items()},
        "gaps": gaps,
    }
