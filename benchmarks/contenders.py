"""The servers that are compared: how each of ours is started, and the whole list with its peers.

It knows fastsmtp's command line, the floor, and the programs made of a library. What is run of others' making
is in `benchmarks.peers`.
"""

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from .client import BenchmarkError
from .contender import BUILD, Contender, Setup, first_line, flags, said_at_its_end
from .peers.install import GO_SMTP, PYTHON
from .peers.nodejs import Haraka, Nodemailer
from .peers.postfix import Postfix, SmtpSink
from .process import ROOT, Server, children

TRACE_LINES = (
    b"Return-Path:",
    b"Delivered-To:",
    b"Received:",
)  # what a Maildir puts before a message, in this order
OUR_DISTRIBUTION = "fastsmtpd"  # of the package fastsmtp
FIND_VERSION = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"


class Floor(Contender):
    name = "floor"
    title = "C, epoll, no parser, stores nothing"
    can = frozenset({"pipelining", "count"})

    def missing(self) -> str | None:
        return (
            None if shutil.which("cc") else "no C compiler: cc is not on the PATH (Debian: apt install gcc)"
        )

    def version(self) -> str:
        return first_line("cc", "--version")

    def command(self, setup: Setup) -> list[str]:
        return [str(build_floor()), str(setup.port)]

    def count(self, server: Server, setup: Setup) -> int:
        return said_at_its_end(server)


def build_floor() -> Path:
    """Compile floor.c unless the program is newer; returns its path."""
    source = ROOT / "benchmarks" / "floor.c"
    program = BUILD / "floor"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(exist_ok=True)
        compiler = ["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)]
        result = subprocess.run(compiler, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BenchmarkError(f"cc could not build floor.c: {result.stderr.strip().splitlines()[0]}")
    return program


class Program(Contender):
    """A server of one's own made of a library in Python: a module of `benchmarks.servers`."""

    def __init__(
        self, name: str, title: str, library: str, module: str, *can: str, share: float = 1.0
    ) -> None:
        self.name = name
        self.title = title
        self.share = share
        self.can = frozenset({"count", "tls", *can})
        self._library = library
        self._module = f"benchmarks.servers.{module}"

    def missing(self) -> str | None:
        if self._version() is not None:
            return None
        if self._library == "fastsmtp":
            return "fastsmtp is not installed (make build)"
        return f"{self._library} is not installed (python -m benchmarks peers)"

    def version(self) -> str:
        return self._version() or "unknown"

    def command(self, setup: Setup) -> list[str]:
        return [self._python(), "-m", self._module, self._library, *flags(setup)]

    def count(self, server: Server, setup: Setup) -> int:
        return said_at_its_end(server)

    def _python(self) -> str:
        """The peers' own Python if they are installed there, else this one."""
        theirs = PYTHON / "bin" / "python"
        return str(theirs) if self._library != "fastsmtp" and theirs.exists() else sys.executable

    def _version(self) -> str | None:
        python = self._python()
        if python != sys.executable:
            found = first_line(python, "-c", FIND_VERSION, self._library)
            return None if found == "unknown" else found
        try:
            return importlib.metadata.version(
                OUR_DISTRIBUTION if self._library == "fastsmtp" else self._library
            )
        except importlib.metadata.PackageNotFoundError:
            return None


class GoSmtp(Contender):
    name = "go-smtp"
    title = "emersion's go-smtp, the message is read and forgotten; GOMAXPROCS is the number of workers"
    share = 0.5
    can = frozenset({"tls", "starttls", "auth", "pipelining", "workers", "count"})

    def missing(self) -> str | None:
        return None if GO_SMTP.exists() else "go-smtp is not built (python -m benchmarks peers)"

    def version(self) -> str:
        manifest = (ROOT / "benchmarks" / "peers" / "go" / "go.mod").read_text().split()
        return manifest[manifest.index("github.com/emersion/go-smtp") + 1]

    def command(self, setup: Setup) -> list[str]:
        return ["env", f"GOMAXPROCS={setup.workers}", str(GO_SMTP), *flags(setup)]

    def count(self, server: Server, setup: Setup) -> int:
        return said_at_its_end(server)


class Fastsmtp(Contender):
    """fastsmtp serve; `where` are the flags that say where the messages go, `{folder}` is the run's own."""

    can = frozenset({"tls", "starttls", "pipelining", "workers", "count"})

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

    def version(self) -> str:
        return importlib.metadata.version(OUR_DISTRIBUTION)

    def command(self, setup: Setup) -> list[str]:
        flags = ["--workers", str(setup.workers)]
        flags += [word.format(folder=setup.folder) for word in self._where]
        if setup.tls != "none":
            flags += ["--tls-certificate", str(setup.certificate), "--tls-key", str(setup.key)]
        if setup.counters is not None:
            flags += ["--metrics", f"127.0.0.1:{setup.counters}"]
        for setting in setup.settings:
            flags += ["--set", setting]
        listen = f"127.0.0.1:{setup.port}"
        flags += ["--listen", f"tls:{listen}" if setup.tls == "implicit" else listen]
        return [sys.executable, "-m", "fastsmtp", "serve", *flags]

    def count(self, server: Server, setup: Setup) -> int | None:
        if setup.counters is None:
            return None
        with urllib.request.urlopen(f"http://127.0.0.1:{setup.counters}/metrics", timeout=10) as page:
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


class FastsmtpMaildir(Fastsmtp):
    """fastsmtp that delivers into one Maildir of the run's own, with trace lines, as it does by itself."""

    def __init__(self, name: str, title: str, *, sync: bool) -> None:
        super().__init__(name, title, "--deliver", f"maildir:{{folder}}/mail?sync={'yes' if sync else 'no'}")
        self.can = Fastsmtp.can | ({"keep"} if sync else set())

    def kept(self, setup: Setup) -> Iterator[bytes]:
        return (without_trace(path.read_bytes()) for path in (setup.folder / "mail" / "new").iterdir())


def without_trace(message: bytes) -> bytes:
    """A message of a Maildir without the trace lines on top. BenchmarkError if they are not there."""
    for name in TRACE_LINES:
        line, end, message = message.partition(b"\r\n")
        if not line.startswith(name):
            raise BenchmarkError(f"a message in the Maildir has no {name.decode()} where it was due")
        while message.startswith((b" ", b"\t")):
            _, end, message = message.partition(b"\r\n")
        if not end:
            raise BenchmarkError(f"a message in the Maildir ends in its {name.decode()}")
    return message


HANDLERS = "benchmarks.servers.handlers"
CONTENDERS: tuple[Contender, ...] = (
    Floor(),
    SmtpSink(),
    Postfix(),
    Program(
        "aiosmtpd",
        "aiosmtpd on asyncio, handle_DATA returns at once",
        "aiosmtpd",
        "smtp_protocol",
        "starttls",
        "auth",
        share=0.1,
    ),
    Program(
        "bonzo", "bonzo on Tornado, an Application whose data is async", "bonzo", "application", share=0.1
    ),
    Haraka(),
    Nodemailer(),
    GoSmtp(),
    Fastsmtp("fastsmtp", "fastsmtp --deliver discard:", "--deliver", "discard:"),
    Fastsmtp("fastsmtp-sync", "fastsmtp, handle_DATA as def", "--handler", f"{HANDLERS}:SyncHandler"),
    Fastsmtp("fastsmtp-async", "fastsmtp, handle_DATA as async def", "--handler", f"{HANDLERS}:AsyncHandler"),
    Fastsmtp(
        "fastsmtp-blocking",
        "fastsmtp, handle_DATA as def on the thread pool",
        "--handler",
        f"{HANDLERS}:BlockingHandler",
    ),
    FastsmtpMaildir("fastsmtp-maildir", "fastsmtp --deliver maildir:, synced before the 250", sync=True),
    FastsmtpMaildir("fastsmtp-maildir-nosync", "fastsmtp --deliver maildir:, never synced", sync=False),
    Program(
        "fastsmtp-smtp",
        "fastsmtp.smtp.SMTP on uvloop, the same program as aiosmtpd's",
        "fastsmtp",
        "smtp_protocol",
        "starttls",
        "auth",
    ),
    Program(
        "fastsmtp-application",
        "an Application whose data is async, the same program as bonzo's",
        "fastsmtp",
        "application",
        "pipelining",
    ),
)
