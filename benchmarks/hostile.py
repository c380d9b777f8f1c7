"""What honest clients have to bear beside hostile ones, and what is left of these when they have gone.

It knows the scenarios, and takes the waits of the honest clients and the server's memory, descriptors and spilled
octets before, during and after. How an attacker or an honest client talks is in the programs that it starts.
"""

import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISREG
from typing import Any

from .attackers import ATTACKS
from .beside import Beside
from .client import BenchmarkError
from .compare import Pins
from .contender import Contender
from .contenders import Fastsmtp, FastsmtpMaildir
from .idle import resident
from .process import ROOT, Server, before_exec, children
from .serving import serving

RATE = 50.0  # honest sessions a second
SECONDS = 10.0
WARM_UP, AFTER = 0.1, 0.2  # of a scenario's seconds, or of SECONDS: honest clients alone
READY_SECONDS = 120.0
SETTLE_SECONDS = 10.0
LOOK_SECONDS = 0.25
KILL_SECONDS = 0.5
NICE = 19  # of the attackers: the honest client shares their CPU and is to be woken first

MAILDIR = FastsmtpMaildir("fastsmtp-maildir", "fastsmtp --deliver maildir:, synced before the 250", sync=True)
MAILBOXES = Fastsmtp(
    "fastsmtp-mailboxes",
    "fastsmtp --deliver maildir:, a mailbox for each recipient",
    "--deliver",
    "maildir:{folder}/mail/{{domain}}/{{local}}",
)


@dataclass(frozen=True)
class Scenario:
    """One kind of attack: who is at it, on what server, and what honest clients are to have meanwhile."""

    name: str
    title: str
    attack: str = ""  # of `attackers` or `greedy`
    count: int = 0
    ours: Contender | None = None  # in place of fastsmtp --deliver discard:
    tls: bool = False
    workers: int = 1
    kills: bool = False  # a worker is killed twice a second
    seconds: float = SECONDS

    @property
    def needs(self) -> frozenset[str]:
        """In the words of `Contender.can`."""
        needs = {"starttls": self.tls, "workers": self.workers > 1}
        return frozenset(name for name, needed in needs.items() if needed)


def pipelining(attack: str, what: str) -> list[Scenario]:
    title = f"clients that pipeline {what}"
    goal = "goal: median 10 ms, 99 % 50 ms"
    return [
        Scenario(f"{attack}-20", f"20 {title} ({goal})", attack, 20),
        Scenario(f"{attack}-200", f"200 {title}", attack, 200),
    ]


def slow(attack: str, what: str) -> Scenario:
    title = f"5,000 slow clients, {what} (goal: 99 % 250 ms)"
    return Scenario(f"slow-{attack}", title, attack, 5000, tls=attack == "handshake")


def reset(attack: str, what: str, *counts: int, ours: Contender | None = None) -> list[Scenario]:
    title = "connections with {what} each, reset {end}"
    end = "right behind the end of data" if ours else "within DATA"
    return [
        Scenario(f"{attack}-{count}", f"{count:,} {title.format(what=what, end=end)}", attack, count, ours)
        for count in counts
    ]


SCENARIOS = (
    Scenario("quiet", "Nobody but the honest clients"),
    *pipelining("noops", "NOOP without end"),
    *pipelining("messages", "small messages without end"),
    *pipelining("recipients", "recipients of one message without end"),
    *pipelining("envelopes", "messages for 1,000 recipients without end"),
    slow("greeting", "greeted and silent"),
    slow("command", "half a command"),
    slow("drip", "content of one octet a second"),
    slow("handshake", "in a TLS handshake"),
    *reset("octet", "one octet of content", 512, 4500),
    *reset("60k", "60 kB of content", 512, 4500),
    *reset("60k-ended", "60 kB of content", 512, 4500, ours=MAILDIR),
    *reset("30m", "30 MB of content", 40),
    *reset("30m-ended", "30 MB of content", 40, ours=MAILDIR),
    Scenario(
        "mailboxes",
        "Messages for 1,000 new mailboxes each, one after the other",
        "mailboxes",
        1000,
        MAILBOXES,
        seconds=15.0,
    ),
    Scenario(
        "long-recipients", "20 clients with 1,000 long recipients each, and silent", "long-recipients", 20
    ),
    Scenario("tls-content", "100 connections that have sent 320 kB under TLS", "tls-content", 100, tls=True),
    Scenario(
        "kill",
        "kill -9 of one of 2 workers twice a second (goal: greeting within 1,000 ms)",
        workers=2,
        kills=True,
        seconds=60.0,
    ),
)


@dataclass(frozen=True)
class Footprint:
    """What the processes that hold the connections have, all together."""

    resident: int  # octets
    descriptors: int
    spilled: int  # octets on disk of open files


def holders(server: Server) -> list[int]:
    """The processes that hold the connections: the workers, or the only one that there is."""
    return children(server.pid) or [server.pid]


def spilled(pid: int) -> Iterator[int]:
    """Octets on disk by open regular file without a name; the log, on descriptors 0 to 2, is none."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found = descriptor.stat()
            if int(descriptor.name) > 2 and S_ISREG(found.st_mode) and not found.st_nlink:
                yield found.st_blocks * 512


def footprint(server: Server) -> Footprint:
    total = Footprint(0, 0, 0)
    for pid in holders(server):
        with suppress(OSError, KeyError):  # it has just ended
            total = Footprint(
                total.resident + resident(pid)["Rss"],
                total.descriptors + len(os.listdir(f"/proc/{pid}/fd")),
                total.spilled + sum(spilled(pid)),
            )
    return total


@contextmanager
def every(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """`act` is called again and again in a thread."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(seconds):
            act()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def program(module: str, *words: object, cpu: int | None, nice: int = 0) -> "subprocess.Popen[str]":
    prepare = before_exec(cpu)

    def prepare_nicely() -> None:
        prepare()
        os.nice(nice)

    return subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{module}", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare_nicely,
    )


def ended(process: "subprocess.Popen[str]", seconds: float, who: str) -> dict[str, Any]:
    """What a program prints at its end. BenchmarkError if it does not end well and in time."""
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{who} were not done after {seconds:.0f} s") from None
    if process.returncode != 0:
        last = (errors.strip().splitlines() or ["they said nothing"])[-1]
        raise BenchmarkError(f"{who} ended with status {process.returncode}: {last}")
    found: dict[str, Any] = json.loads(output)
    return found


def honest(port: int, seconds: float, cpu: int | None, rate: float = RATE) -> dict[str, Any]:
    """What `benchmarks.honest` tells of its sessions."""
    with program("honest", port, rate, seconds, cpu=cpu) as process:
        try:
            return ended(process, seconds + 60, "the honest clients")
        finally:
            process.kill()


@contextmanager
def attacking(scenario: Scenario, port: int, cpu: int | None) -> Iterator[dict[str, Any]]:
    """The attackers have come as far as they can; what they did is in the dict afterwards."""
    found: dict[str, Any] = {}
    if not scenario.attack:
        yield found
        return
    module = "attackers" if scenario.attack in ATTACKS else "greedy"
    words = (scenario.attack, port, scenario.count)
    with program(module, *words, cpu=cpu, nice=NICE) as process:
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            if not select.select([process.stdout], [], [], READY_SECONDS)[0]:
                raise BenchmarkError(f"the attackers were not ready after {READY_SECONDS:.0f} s")
            if process.stdout.readline() == "ready\n":
                yield found
            found.update(ended(process, 150, "the attackers"))
        finally:
            process.kill()


def kill_one(server: Server, choice: random.Random) -> None:
    workers = children(server.pid)
    if workers:
        with suppress(ProcessLookupError):
            os.kill(choice.choice(workers), signal.SIGKILL)


def settle(server: Server, before: Footprint) -> None:
    """Wait until the attackers' descriptors are gone, for as long as that may take."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while footprint(server).descriptors > before.descriptors and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)


def hostile(contender: Contender, scenario: Scenario, tls: dict[str, Any], pins: Pins) -> dict[str, float]:
    """The figures of one server under one attack, by column; `tls` are the fields of `Setup` for a certificate.

    BenchmarkError if the server or a program fails; a client that is refused is a figure.
    """
    pins = Pins() if scenario.workers > 1 else pins
    alone = min(scenario.seconds, SECONDS)
    options = {"tls": "starttls", **tls} if scenario.tls else {}
    with serving(contender, cpu=pins.server, workers=scenario.workers, **options) as (server, setup):
        honest(setup.port, WARM_UP * alone, pins.client)
        server.cpu()  # waits for rest
        looks = [before := footprint(server)]
        with attacking(scenario, setup.port, pins.client) as attack:
            looks.append(footprint(server))
            with every(LOOK_SECONDS, lambda: looks.append(footprint(server))):
                if scenario.kills:
                    choice = random.Random(1)
                    with every(KILL_SECONDS, lambda: kill_one(server, choice)):
                        found = honest(setup.port, scenario.seconds, pins.client)
                else:
                    found = honest(setup.port, scenario.seconds, pins.client)
        settle(server, before)
        later = honest(setup.port, AFTER * alone, pins.client)
        settle(server, before)
        after = footprint(server)
    return figures(found, later, attack, before, looks, after)


def figures(
    found: dict[str, Any],
    later: dict[str, Any],
    attack: dict[str, Any],
    before: Footprint,
    looks: Sequence[Footprint],
    after: Footprint,
) -> dict[str, float]:
    """By column. What did not happen in any way has no column."""
    waits, greetings = sorted(found["waits"]), found["greetings"]
    most = {name: max(getattr(look, name) for look in looks) for name in Footprint.__annotations__}
    columns: dict[str, float | None] = {
        "honest ms, median": statistics.median(waits) if waits else None,
        "99 %": waits[len(waits) * 99 // 100] if waits else None,
        "longest": waits[-1] if waits else None,
        "greeting, longest": max(greetings, default=None),
        "sessions": found["sessions"],
        "failed": sum(found["failures"].values()),
        "made again": found["again"] or None,
        "failed afterwards": sum(later["failures"].values()),
        "RSS MiB before": before.resident / 2**20,
        "most": most["resident"] / 2**20,
        "afterwards": after.resident / 2**20,
        "descriptors before": before.descriptors,
        "most of them": most["descriptors"],
        "left": after.descriptors,
        "spilled MiB, most": (most["spilled"] - before.spilled) / 2**20 or None,
        "spilled MiB, left": (after.spilled - before.spilled) / 2**20 or None,
        "attackers": attack.get("open", attack.get("opened")),
        "refused": sum(attack.get("refused", {}).values()) or None,
        "ended by the server": attack.get("ended") or None,
        "MB sent": attack.get("octets", 0) / 1e6 or None,
        "their messages": attack.get("messages"),
        "longest of them, s": attack.get("longest message, s"),
    }
    return {name: value for name, value in columns.items() if value is not None}


def median(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Column by column, of the rounds that have it."""
    columns = dict.fromkeys(column for each in rounds for column in each)
    return {
        column: statistics.median(each[column] for each in rounds if column in each) for column in columns
    }


def attacked(scenario: Scenario, contenders: Sequence[Contender], tree: Path | None) -> list[Contender]:
    """Those that are measured in that scenario; `tree` has another build of ours."""
    found = []
    for each in contenders:
        if each.name == "fastsmtp":
            ours = scenario.ours or each
            found += [ours] if tree is None else [ours, Beside(ours, tree)]
        elif scenario.ours is None and not scenario.kills:
            found.append(each)
    return found


def storms(
    contenders: Sequence[Contender],
    scenarios: Sequence[Scenario],
    *,
    tree: Path | None,
    tls: dict[str, Any],
    seconds: float | None,
    rounds: int,
    pins: Pins,
    say: Callable[[str], None],
    show: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """A table for each scenario, shown when it is there: medians over the rounds, in which the servers take turns."""
    tables = []
    for scenario in scenarios:
        if seconds is not None:
            scenario = replace(scenario, seconds=seconds)
        those = attacked(scenario, contenders, tree)
        gaps = {each.name: "it cannot do what this needs" for each in those if scenario.needs - each.can}
        found: dict[str, list[dict[str, float]]] = {}
        failures: dict[str, str] = {}
        for number in range(1, rounds + 1):
            for each in (one for one in those if one.name not in gaps | failures):
                say(f"hostile: {scenario.name}: round {number} of {rounds}, {each.name}")
                try:
                    found.setdefault(each.name, []).append(hostile(each, scenario, tls, pins))
                except (BenchmarkError, OSError) as error:
                    failures[each.name] = str(error)
        servers = {name: median(those) for name, those in found.items() if name not in failures}
        table = {
            "title": f"{scenario.title}, {scenario.seconds:.0f} s",
            "key": scenario.name,
            "servers": servers,
            "failures": failures,
            "gaps": gaps,
        }
        show(table)
        tables.append(table)
    return tables
