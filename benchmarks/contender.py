"""What a contender is: a server, or one way of running it, that can be set up, started and asked what it took.

It knows what may be asked of any server and what a run wants of it. It does not know any server, nor what is measured.
"""

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .client import BenchmarkError
from .process import ROOT, Server

BUILD = ROOT / "benchmarks" / "build"
# More than any benchmark here opens, so that no server is measured at its own limit.
MOST_CONNECTIONS = 20_000
BACKLOG = 4096
CERTIFICATE_DAYS = "30"
TOOL_SECONDS = 900.0


@dataclass(frozen=True)
class Setup:
    """What a server is to be for one run."""

    port: int
    folder: Path  # empty, its own, removed after the run: queue, mailboxes, configuration
    counters: int | None = None  # a port for its counters, if it has some
    tls: Literal["none", "starttls", "implicit"] = "none"
    certificate: Path | None = None  # PEM; both are there if `tls` is not "none"
    key: Path | None = None
    login: tuple[str, str] | None = None  # what AUTH PLAIN must give to be accepted; None: no AUTH
    workers: int = 1
    keep: bool = False  # mail is safe (fsync) before the 250, and `kept` gives it back
    settings: tuple[str, ...] = ()  # fastsmtp's own, NAME=VALUE


class Contender(ABC):
    """One server, or one way of running it.

    `share` is the part of a row's messages that it is given: slow ones get fewer, so that a round takes
    seconds; CPU per message does not depend on it. `can` is what it can be measured at, of "tls", "starttls",
    "auth", "pipelining", "keep", "workers" and "count".
    """

    name: str
    title: str
    share: float = 1.0
    can: frozenset[str] = frozenset()

    @property
    def like(self) -> str:
        """The contender in whose rows it is."""
        return self.name

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot run here, in one line; None if it can."""

    @abstractmethod
    def version(self) -> str:
        """Its version, of what is installed here; "unknown" if that cannot be told."""

    @abstractmethod
    def command(self, setup: Setup) -> list[str]:
        """The program and its arguments; what it needs is written into the setup's folder.

        BenchmarkError if that cannot be done.
        """

    def count(self, server: Server, setup: Setup) -> int | None:
        """Messages that it has accepted since its start; None if it does not tell. May stop it."""
        return None

    def worker(self, server: Server) -> int:
        """The process that holds the connections. BenchmarkError if that is not just one."""
        return server.pid

    def kept(self, setup: Setup) -> Iterator[bytes] | None:
        """The contents that it keeps, in any order, as they were sent; None if it keeps none.

        Header lines that the server itself has added are left out, and so is dot-stuffing.
        """
        return None


def said_at_its_end(server: Server) -> int:
    """The count of a server whose processes print "messages N" when it is stopped."""
    said = [line.split() for line in server.stop().splitlines()]
    counts = [int(words[1]) for words in said if words[:1] == ["messages"] and len(words) == 2]
    if not counts:
        raise BenchmarkError(f"{server.name} ended without its count of messages")
    return sum(counts)


def first_line(*command: str) -> str:
    """The first line that a program prints; "unknown" if it cannot be run or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return (done.stdout.splitlines() or ["unknown"])[0]


def last_words(command: Sequence[str], folder: Path = ROOT) -> str | None:
    """Run a tool; None if it succeeds, else its name and the last line of what it complained of."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TOOL_SECONDS,
            check=False,
        )
    except OSError as error:
        return f"{name}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{name} was not done after {TOOL_SECONDS:.0f} s"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    told = [
        line for line in lines if "complete log of this run" not in line
    ]  # npm's last line, which tells nothing
    return f"{name}: {told[-1] if told else f'status {done.returncode}'}"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Files with a certificate for localhost and 127.0.0.1 (ECDSA, P-256, signed by itself) and its key, in the folder.

    Both are PEM. BenchmarkError if openssl is missing or fails.
    """
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    usage = "keyUsage=critical,digitalSignature,keyCertSign"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", CERTIFICATE_DAYS]
    what = [
        "-subj",
        "/CN=localhost",
        "-addext",
        names,
        "-addext",
        usage,
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    failed = last_words(["openssl", "req", "-x509", *kind, *what])
    if failed:
        raise BenchmarkError(f"no certificate for TLS: {failed}")
    return certificate, key


def flags(setup: Setup) -> list[str]:
    """The arguments that each server of our own takes: see `benchmarks.servers.arguments`."""
    tls = [] if setup.tls == "none" else ["--tls", setup.tls]
    files = [("--certificate", setup.certificate), ("--key", setup.key)] if tls else []
    login = ["--login", ":".join(setup.login)] if setup.login else []
    return [*tls, *(word for name, path in files for word in (name, str(path))), *login, str(setup.port)]
