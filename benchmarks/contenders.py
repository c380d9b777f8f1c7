"""The servers that are compared: how each is started, and how many messages it says that it took."""

import importlib.util
import os
import shutil
import subprocess
import sys
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence

from prometheus_client.parser import text_string_to_metric_families

from .client import BenchmarkError
from .process import ROOT, Server, children
from .source import postfix_tool

# More than any benchmark here opens, so that no server is measured at its own limit.
MOST_CONNECTIONS = 20_000
BACKLOG = 4096


class Contender(ABC):
    """One server, or one way of running it.

    `share` is the part of a row's messages that it is given: slow ones get fewer, so that a round takes
    seconds; CPU per message does not depend on it.
    """

    name: str
    title: str
    share: float = 1.0

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot run here, in one line; None if it can."""

    @abstractmethod
    def command(self, port: int, *, counters: int | None, settings: Sequence[str]) -> list[str]:
        """The program and its arguments. `counters` is a port for its counters, `settings` are fastsmtp's."""

    def count(self, server: Server, counters: int) -> int | None:
        """Messages that it has accepted since its start; None if it does not tell. May stop it."""
        return None

    def worker(self, server: Server) -> int:
        """The process that holds the connections."""
        return server.pid


def said_at_its_end(server: Server) -> int:
    """The count of a server that prints "messages N" when it is stopped."""
    words = server.stop().split()
    if words[:1] != ["messages"] or not words[1].isdigit():
        raise BenchmarkError(f"{server.name} ended without its count of messages")
    return int(words[1])


class Floor(Contender):
    name = "floor"
    title = "C, epoll, no parser, stores nothing"

    def missing(self) -> str | None:
        return (
            None if shutil.which("cc") else "no C compiler: cc is not on the PATH (Debian: apt install gcc)"
        )

    def command(self, port: int, *, counters: int | None, settings: Sequence[str]) -> list[str]:
        return [str(build_floor()), str(port)]

    def count(self, server: Server, counters: int) -> int:
        return said_at_its_end(server)


def build_floor() -> os.PathLike[str]:
    """Compile floor.c unless the program is newer; returns its path."""
    source = ROOT / "benchmarks" / "floor.c"
    program = ROOT / "benchmarks" / "build" / "floor"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(exist_ok=True)
        compiler = ["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)]
        result = subprocess.run(compiler, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BenchmarkError(f"cc could not build floor.c: {result.stderr.strip().splitlines()[0]}")
    return program


class SmtpSink(Contender):
    name = "smtp-sink"
    title = "Postfix's test server (C), stores nothing"
    share = 0.5

    def missing(self) -> str | None:
        return (
            None if postfix_tool("smtp-sink") else "smtp-sink is not installed (Debian: apt install postfix)"
        )

    def command(self, port: int, *, counters: int | None, settings: Sequence[str]) -> list[str]:
        program = postfix_tool("smtp-sink") or "smtp-sink"
        user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to run as root
        return [program, *user, "-m", str(MOST_CONNECTIONS), f"inet:127.0.0.1:{port}", str(BACKLOG)]


class Program(Contender):
    """A server of one's own made of a library: a module of `benchmarks.servers`, with arguments before the port."""

    def __init__(
        self, name: str, title: str, library: str, module: str, *arguments: str, share: float = 1.0
    ) -> None:
        self.name = name
        self.title = title
        self.share = share
        self._library = library
        self._program = (f"benchmarks.servers.{module}", *arguments)

    def missing(self) -> str | None:
        if importlib.util.find_spec(self._library):
            return None
        return f"{self._library} is not installed (pip install {self._library})"

    def command(self, port: int, *, counters: int | None, settings: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", *self._program, str(port)]

    def count(self, server: Server, counters: int) -> int:
        return said_at_its_end(server)


class Fastsmtp(Contender):
    """fastsmtp serve with one worker; `where` are the flags that say where the messages go."""

    def __init__(self, name: str, title: str, *where: str) -> None:
        self.name = name
        self.title = title
        self._where = where

    def missing(self) -> str | None:
        for module in ("fastsmtp._core", "fastsmtp.cli", "uvloop"):
            try:
                if importlib.util.find_spec(module) is None:
                    return f"fastsmtp is not built: no module {module} (make build)"
            except ImportError as error:
                return f"fastsmtp is not built: {error} (make build)"
        return None

    def command(self, port: int, *, counters: int | None, settings: Sequence[str]) -> list[str]:
        metrics = [] if counters is None else ["--metrics", f"127.0.0.1:{counters}"]
        sets = [word for setting in settings for word in ("--set", setting)]
        flags = ["--listen", f"127.0.0.1:{port}", "--workers", "1", *self._where, *metrics, *sets]
        return [sys.executable, "-m", "fastsmtp", "serve", *flags]

    def count(self, server: Server, counters: int) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{counters}/metrics", timeout=10) as page:
            families = text_string_to_metric_families(page.read().decode())
        for family in families:
            for sample in family.samples:
                if sample.name == "fastsmtp_messages_total" and sample.labels.get("result") == "accepted":
                    return int(sample.value)
        raise BenchmarkError("fastsmtp's metrics have no fastsmtp_messages_total for accepted messages")

    def worker(self, server: Server) -> int:
        workers = children(server.pid)
        if len(workers) != 1:
            raise BenchmarkError(
                f"{self.name} has {len(workers)} child processes where its one worker was due"
            )
        return workers[0]


HANDLERS = "benchmarks.servers.handlers"
CONTENDERS: tuple[Contender, ...] = (
    Floor(),
    SmtpSink(),
    Program(
        "aiosmtpd",
        "aiosmtpd on asyncio, handle_DATA returns at once",
        "aiosmtpd",
        "smtp_protocol",
        "aiosmtpd",
        share=0.1,
    ),
    Fastsmtp("fastsmtp", "fastsmtp --deliver discard:", "--deliver", "discard:"),
    Fastsmtp("fastsmtp-sync", "fastsmtp, handle_DATA as def", "--handler", f"{HANDLERS}:SyncHandler"),
    Fastsmtp("fastsmtp-async", "fastsmtp, handle_DATA as async def", "--handler", f"{HANDLERS}:AsyncHandler"),
    Program(
        "fastsmtp-smtp",
        "fastsmtp.smtp.SMTP on uvloop, the same program as aiosmtpd's",
        "fastsmtp",
        "smtp_protocol",
        "fastsmtp",
    ),
    Program("fastsmtp-application", "an Application whose data is async", "fastsmtp", "application"),
)
