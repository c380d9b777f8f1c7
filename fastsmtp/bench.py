"""``fastsmtp bench``: a load for any SMTP server, from one process or several, and a report of what it took.

Knows the command's options, which server may be put under load, and the processes. Refuses to know how the load is
sent and how figures are shown.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import multiprocessing
import re
import signal
import socket
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import click

from fastsmtp import display, sockets
from fastsmtp._load import Histogram
from fastsmtp.generator import Generator, explain
from fastsmtp.load import LEAST_SIZE, Figures, Plan, Progress

_DURATION = 10.0  # seconds, if nothing else is said
_SECOND = 1.0  # between two lines on how it goes
_TOGETHER = (
    0.02  # seconds: all processes begin at the same time, which must still lie ahead when they hear of it
)
_PROBE = 10.0  # seconds in which one of several addresses must take a connection
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Target(NamedTuple):
    """The server: how to connect, its name for TLS, and whether it is this machine."""

    family: int
    address: str | tuple[str | int, ...]
    name: str
    local: bool


@click.command()
@click.argument("target", metavar="HOST:PORT")
@click.option("--messages", type=click.IntRange(1), metavar="N", help="Send N messages.")
@click.option(
    "--duration",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help=f"Or send for so long.  [default: {_DURATION:g}]",
)
@click.option("--connections", type=click.IntRange(1), default=20, show_default=True, metavar="N")
@click.option(
    "--size",
    type=click.IntRange(LEAST_SIZE),
    default=4096,
    show_default=True,
    metavar="OCTETS",
    help="Of a whole message.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    metavar="R",
    help="R messages a second are due at fixed times, and latency counts from then. Without it each connection"
    " sends the next message when the last was answered.",
)
@click.option("--new", is_flag=True, help="A new connection for each message.")
@click.option(
    "--pipeline", is_flag=True, help="Commands in one write, and the next message's behind a content."
)
@click.option("--tls", type=click.Choice(["none", "starttls", "implicit"]), default="none", show_default=True)
@click.option("--resume", is_flag=True, help="Resume TLS sessions.")
@click.option("--ca", type=click.Path(), metavar="FILE", help="Trust these authorities, and verify.")
@click.option("--insecure", is_flag=True, help="Verify no certificate, as on this machine without --ca.")
@click.option("--auth", metavar="USER:PASSWORD", help="Log in with AUTH PLAIN.")
@click.option("--sender", default="bench@fastsmtp.invalid", show_default=True, metavar="ADDRESS")
@click.option("--recipient", default="bench@fastsmtp.invalid", show_default=True, metavar="ADDRESS")
@click.option(
    "--recipients",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Of each message: name@domain, name+2@domain and so on.",
)
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, metavar="N")
@click.option(
    "--warm-up",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Messages to send before anything is counted.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="For the server to do anything at all.",
)
@click.option(
    "--json", "file", metavar="FILE", help='The report as JSON; "-" for stdout instead of the table.'
)
@click.option("--quiet", is_flag=True, help="Show nothing while it runs.")
@click.option("--remote", is_flag=True, help="The server is not this machine, and I may put it under load.")
def bench(target: str, file: str | None, quiet: bool, remote: bool, **options: Any) -> int:
    """Puts an SMTP server under load and reports rate and latency.

    HOST:PORT may be unix:PATH. The status is 0 if every message was accepted.
    """
    plan = _plan(target, remote, options)
    figures, interrupted = _run(plan, target, quiet)
    if figures.stopped and not figures.accepted:
        raise click.ClickException(f"{target}: {figures.stopped}")
    if file != "-":
        click.echo(display.report(target, plan, figures))
    if file is not None:
        options["auth"] = plan.login and plan.login[0]  # without the password
        _write(file, json.dumps(display.as_json(plan, figures, {"target": target, **options}), indent=1))
    if figures.stopped:
        raise click.ClickException(f"{target}: {figures.stopped}")
    return _INTERRUPTED if interrupted else 1 if figures.failures else 0


# --- the plan -----------------------------------------------------------------------------------------------


def _plan(spec: str, remote: bool, options: dict[str, Any]) -> Plan:
    """What the options say. Raises ``UsageError`` if they do not go together."""
    options = dict(options)
    for needed, names in {"--tls": ("resume", "insecure", "ca")}.items():
        for name in names:
            if options[name] and options["tls"] == "none":
                raise click.UsageError(f"--{name} needs {needed}")
    if options["messages"] is not None and options["duration"] is not None:
        raise click.UsageError("--messages and --duration are given; keep one")
    if options["messages"] is None and options["duration"] is None:
        options["duration"] = _DURATION
    if options["processes"] > min(options["connections"], options["messages"] or options["connections"]):
        raise click.UsageError("--processes is more than there are connections or messages for them")
    insecure, login = options.pop("insecure"), options.pop("auth")
    if insecure and options["ca"]:
        raise click.UsageError("--insecure and --ca are given; keep one")
    if login is not None and not re.fullmatch(r"[^:\0]+:[^\0]+", login):
        raise click.UsageError("--auth is not USER:PASSWORD")
    recipients = _recipients(options.pop("recipient"), options.pop("recipients"))
    _check_address("--sender", options["sender"])
    found = _find(spec, remote)
    plan = Plan(
        family=found.family,
        address=found.address,
        name=found.name,
        verify=options["ca"] is not None or not (found.local or insecure),
        login=tuple(login.split(":", 1)) if login is not None else None,
        recipients=recipients,
        **options,
    )
    if plan.tls != "none":
        try:
            plan.context()
        except OSError as error:
            raise click.UsageError(f"--ca: cannot use {plan.ca}: {explain(error)}") from None
    return plan


def _recipients(address: str, count: int) -> tuple[str, ...]:
    _check_address("--recipient", address)
    name, at, domain = address.rpartition("@")
    return (address, *(f"{name}+{number}{at}{domain}" for number in range(2, count + 1)))


def _check_address(option: str, address: str) -> None:
    # What is written into a command must not become two.
    if not re.fullmatch(r"[!-;=?-~]+@[!-;=?-~]+", address):
        raise click.UsageError(f'{option}: "{address}" is not an address')


def _find(spec: str, remote: bool) -> Target:
    """The server that ``spec`` names: of several addresses the first that takes a connection."""
    address = sockets.parse(spec)
    if address.tls:
        raise click.UsageError(f'"{spec}": say --tls implicit instead of tls:')
    if address.path is not None:
        return Target(socket.AF_UNIX, address.path, "localhost", True)
    if not address.host or not address.port:
        raise click.UsageError(f'"{spec}" is not one server; write HOST:PORT or unix:PATH')
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = explain(error) if isinstance(error, OSError) else "that is no host name"
        raise click.ClickException(f"{spec}: {why}") from None
    targets = [
        Target(
            family,
            (str(place[0]), address.port, *(int(part) for part in place[2:])),
            address.host,
            ipaddress.ip_address(str(place[0]).partition("%")[0]).is_loopback,
        )
        for family, _, _, _, place in found
    ]
    if not remote and not all(target.local for target in targets):
        raise click.UsageError(
            f"{spec} is not this machine, and a load is an attack on a server that is not yours;"
            " give --remote if you may do that"
        )
    return next((target for target in targets if _answers(target)), targets[0]) if targets[1:] else targets[0]


def _answers(target: Target) -> bool:
    with socket.socket(target.family, socket.SOCK_STREAM) as sock:
        sock.settimeout(_PROBE)
        return sock.connect_ex(target.address) == 0


def _write(file: str, text: str) -> None:
    if file == "-":
        click.echo(text)
        return
    try:
        Path(file).write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"--json: cannot write {file}: {explain(error)}") from None


# --- the processes ------------------------------------------------------------------------------------------


def _run(plan: Plan, title: str, quiet: bool) -> tuple[Figures, bool]:
    """Plays the plan in its processes; the figures of all, and whether SIGINT ended it early."""
    with _crew(plan) as crew, display.shown(title, quiet=quiet) as show:
        why = crew.prepare()
        if why:
            raise click.ClickException(f"{title}: {why}")
        return crew.measure(show), crew.interrupted


class _Member:
    """A process of the crew, and what it has told."""

    def __init__(self, plan: Plan, index: int) -> None:
        self.pipe, other = multiprocessing.Pipe()
        self._process = multiprocessing.Process(
            target=_play, args=(plan, index, other, self.pipe), daemon=True, name=f"generator {index}"
        )
        self._process.start()
        other.close()
        self.prepared: str | None = None
        self.progress = Progress(0, 0, Histogram())
        self.figures: Figures | None = None

    def hear(self) -> None:
        """Takes what it tells. Raises ``ClickException`` if it is dead."""
        try:
            told = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise click.ClickException(
                f"a process that sends ended with status {self._process.exitcode}"
            ) from None
        if isinstance(told, Progress):
            self.progress = told
        elif isinstance(told, Figures):
            self.figures = told
        else:
            self.prepared = told

    def tell(self, start: int | None) -> None:
        """When to begin, or that it is to end."""
        with contextlib.suppress(OSError):  # it is dead: hear() tells that
            self.pipe.send(start)

    def end(self) -> None:
        self.pipe.close()
        self._process.join()


class _Crew:
    """All processes of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.interrupted = False
        self._members = [_Member(plan, index) for index in range(plan.processes)]
        self._told_to_end = False

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """What SIGINT does: the first ends the load, the second all."""
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def prepare(self) -> str:
        """Waits until all can begin; why they cannot, if so. Raises ``Abort`` if SIGINT came first."""
        while waiting := [member for member in self._members if member.prepared is None]:
            self._hear(waiting)
            why = next((member.prepared for member in self._members if member.prepared), "")
            if why or self.interrupted:
                self._end()
            if why:
                return why
        if self.interrupted:
            raise click.Abort
        return ""

    def measure(self, show: display.Show) -> Figures:
        """Begins, shows how it goes, and waits for the figures of all."""
        start = time.monotonic_ns() + int(_TOGETHER * 1e9)
        for member in self._members:
            member.tell(start)
        shown = time.monotonic()
        while waiting := [member for member in self._members if member.figures is None]:
            self._hear(waiting)
            if self.interrupted or any(member.figures and member.figures.stopped for member in self._members):
                self._end()
            if time.monotonic() - shown >= _SECOND:
                shown = time.monotonic()
                show(self._progress())
        total = Figures()
        for member in self._members:
            assert member.figures is not None
            total.add(member.figures)
        return total

    def close(self) -> None:
        for member in self._members:
            member.end()

    def _hear(self, members: list[_Member]) -> None:
        ready = wait([member.pipe for member in members], _SECOND / 4)
        for member in members:
            if member.pipe in ready:
                member.hear()

    def _end(self) -> None:
        if not self._told_to_end:
            self._told_to_end = True
            for member in self._members:
                member.tell(None)

    def _progress(self) -> Progress:
        latency = Histogram()
        for member in self._members:
            latency.add(member.progress.latency)
        accepted = sum(member.progress.accepted for member in self._members)
        return Progress(accepted, sum(member.progress.failed for member in self._members), latency)


@contextlib.contextmanager
def _crew(plan: Plan) -> Iterator[_Crew]:
    crew = _Crew(plan)
    before = signal.signal(signal.SIGINT, crew.interrupt)
    try:
        yield crew
    finally:
        signal.signal(signal.SIGINT, before)
        crew.close()


def _play(plan: Plan, index: int, pipe: Connection, other: Connection) -> None:
    """What a process does. It ends with the one that started it, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the crew's owner decides
    other.close()
    generator = Generator(plan, index, report=pipe.send, told=pipe.fileno())
    with contextlib.suppress(EOFError, OSError), contextlib.closing(generator):
        pipe.send(generator.prepare())
        start = pipe.recv()
        if start is not None:
            pipe.send(generator.measure(start))
