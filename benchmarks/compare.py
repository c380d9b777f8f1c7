"""Side by side: rows of load, each run by each server in turn, round after round.

The servers take turns inside a round, and every ratio is taken within its round, so that whatever slows the
machine for a while slows all of them. A server lives for one run: start, warm-up, measured run, count, stop.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .client import BenchmarkError
from .contenders import Contender
from .process import busy_seconds, free_ports, running
from .source import Load, send

SESSIONS = 20
QUIET_SECONDS = 0.3
DISTURBED = 0.1  # CPUs busy with other programs; beyond it the small figures change by half


@dataclass(frozen=True)
class Row:
    """One kind of load, and the settings that fastsmtp is given for it."""

    name: str
    title: str
    size: int
    keep: bool
    messages: int
    settings: tuple[str, ...] = ()


KIB, MIB = 1024, 1024 * 1024
ROWS = (
    Row("new-4k", "4 KiB, a new connection for each message", 4 * KIB, False, 10_000),
    Row("kept-4k", "4 KiB, kept connections", 4 * KIB, True, 20_000),
    Row("kept-100k", "100 KiB, kept connections", 100 * KIB, True, 4_000),
    Row("kept-1m", "1 MiB in memory, kept connections", MIB, True, 600, ("spill_threshold=4MiB",)),
    Row("kept-1m-spilled", "1 MiB spilled, kept connections", MIB, True, 600, ("spill_threshold=256KiB",)),
)

# CPU per message, as a multiple of the floor's, that fastsmtp sets itself as its upper bound.
GOALS = {
    ("new-4k", "fastsmtp"): 1.5,
    ("kept-4k", "fastsmtp"): 1.35,
    ("kept-4k", "fastsmtp-async"): 1.6,
    ("kept-1m", "fastsmtp"): 2.5,
    ("kept-1m-spilled", "fastsmtp"): 5.0,
}


@dataclass(frozen=True)
class Run:
    """One verified run."""

    messages: int
    cpu: int  # nanoseconds, all processes of the server
    wall: int  # nanoseconds, from the start of smtp-source to its end
    sleeps: int  # how often the server waited for work
    others: float  # CPUs, on average, that were busy with neither the server nor its client

    @property
    def cpu_per_message(self) -> float:
        """Microseconds."""
        return self.cpu / self.messages / 1e3

    @property
    def disturbed(self) -> bool:
        return self.others > DISTURBED

    @property
    def sleeps_per_message(self) -> float:
        return self.sleeps / self.messages

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / (self.wall / 1e9)


@dataclass
class Cell:
    """What one server did in one row: by round a run, or None where it failed, and why."""

    messages: int
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


@dataclass(frozen=True)
class Pins:
    """CPUs for the server and its client; None leaves it to the scheduler."""

    server: int | None = None
    client: int | None = None


def measure(contender: Contender, row: Row, messages: int, pins: Pins) -> Run:
    """Start the server, warm it up, run the load, check the counts, stop it. BenchmarkError if any fails."""
    port, counters = free_ports(2)
    command = contender.command(port, counters=counters, settings=row.settings)
    warm_up = Load(max(SESSIONS, messages // 10), row.size, row.keep, SESSIONS)
    load = Load(messages, row.size, row.keep, SESSIONS)
    with running(contender.name, command, port, pins.server) as server:
        send(warm_up, port, pins.client)
        before, slept, elsewhere = server.cpu(), server.sleeps(), work_elsewhere(0)
        wall = send(load, port, pins.client)
        after, slept = server.cpu(), server.sleeps() - slept
        elsewhere = work_elsewhere(sum(after.values()) - sum(before.values())) - elsewhere
        if before.keys() != after.keys():
            raise BenchmarkError(f"{contender.name} began the run with other processes than it ended with")
        counted = contender.count(server, counters)
        if counted not in (None, warm_up.messages + messages):
            sent = warm_up.messages + messages
            raise BenchmarkError(f"{contender.name} counted {counted} messages where {sent} were sent")
    used = sum(after.values()) - sum(before.values())
    return Run(messages, used, wall, slept, max(0.0, elsewhere / (wall / 1e9)))


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


def compare(
    row: Row,
    contenders: Sequence[Contender],
    *,
    rounds: Iterable[int],
    messages: int | None,
    pins: Pins,
    patience: float,
    say: Callable[[str], None],
) -> dict[str, Cell]:
    """All rounds of one row. Keys are the servers' names.

    `messages` overrides the row's own count. Each run may take `patience` seconds to wait for other
    programs to be quiet and to be done again if they were not; whether it counts depends on their CPU time
    alone, never on what it gave.
    """
    cells = {each.name: Cell(messages or round(row.messages * each.share)) for each in contenders}
    for number in rounds:
        for contender in contenders:
            cell = cells[contender.name]
            say(f"{row.name}: round {number}, {contender.name}, {cell.messages} messages")
            try:
                deadline = time.monotonic() + patience
                wait_for_quiet(deadline)
                run = measure(contender, row, cell.messages, pins)
                while run.disturbed and time.monotonic() < deadline:
                    cell.repeated.append(run)
                    wait_for_quiet(deadline)
                    run = measure(contender, row, cell.messages, pins)
                cell.runs.append(run)
            except (BenchmarkError, OSError) as error:
                cell.runs.append(None)
                cell.failures.append(str(error))
    return cells
