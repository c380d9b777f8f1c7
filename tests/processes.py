"""Real servers for tests, each a process in a session of its own, and clients on plain sockets.

Knows what the command prints, and how to end all of its processes. Refuses to know what is right.
"""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

import pytest

PATIENCE = 20.0  # seconds that a test waits for what must happen

Start = Callable[..., "Server"]

# A handler to use beside a sink: NOOP tells which worker serves a connection.
WHO = """\
import os

class Who:
    async def handle_NOOP(self, server, session, envelope, argument):
        return f"250 2.0.0 {os.getpid()}"
"""


def await_true(condition: Callable[[], object], what: str) -> None:
    """Waits until ``condition`` holds: for what no descriptor and no line tells."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not in {PATIENCE:g} s: {what}"
        time.sleep(0.005)


class Server:
    """``fastsmtp serve ARGUMENTS`` on a free port of 127.0.0.1, or a Python ``script`` that serves.

    Returns when it takes connections. ``interpreter`` are options of Python itself.
    """

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        script: str | None = None,
        interpreter: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        ready: bool = True,
    ) -> None:
        if script is None:
            listen = () if "--listen" in arguments else ("--listen", "127.0.0.1:0")
            what = ("-m", "fastsmtp", "serve", *listen, "--hostname", "mx.example", *arguments)
        else:
            (cwd / "script.py").write_text(script)
            what = ("script.py", *arguments)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTSMTP_")}
        with interruptible():
            self.process = subprocess.Popen(
                [sys.executable, *interpreter, *what],
                cwd=cwd,
                env={**kept, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        self.out = ""
        self.err = ""
        self._news = threading.Condition()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=("out", self.process.stdout)),
            threading.Thread(target=self._read, args=("err", self.process.stderr)),
        ]
        for reader in self._readers:
            reader.start()
        if ready:
            try:
                found = self.expect(r"^fastsmtp listens on (.*) with (\d+) workers?\n", "out")
                self.expect(r"worker \d+ \(pid \d+\) accepts\n", count=int(found[2]))  # the other pipe
                self.expect(r"^mail goes to .*\n", "out")
                self.addresses = found[1].split(", ")
                if "--metrics" in arguments:
                    self.page = self.expect(r"^metrics are on http://(.*)/metrics\n", "out")[1]
            except BaseException:
                self.close()
                raise

    def _read(self, name: str, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._news:
                    setattr(self, name, getattr(self, name) + line)
                    self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def expect(self, pattern: str, stream: str = "err", count: int = 1) -> re.Match[str]:
        """Waits until ``pattern`` was printed ``count`` times; the last of these."""
        deadline = time.monotonic() + PATIENCE
        with self._news:
            while len(found := list(re.finditer(pattern, getattr(self, stream), re.M))) < count:
                alive = any(reader.is_alive() for reader in self._readers)
                left = deadline - time.monotonic()
                assert alive, f"the server ended without {pattern!r}:\n{self.out}{self.err}"
                assert left > 0, f"the server did not print {pattern!r}:\n{self.out}{self.err}"
                self._news.wait(min(left, 0.5))
        return found[count - 1]

    @property
    def workers(self) -> dict[int, int]:
        """The pid of each worker by its index, as the log tells of those who accept."""
        return {int(i): int(pid) for i, pid in re.findall(r"worker (\d+) \(pid (\d+)\) accepts", self.err)}

    def connect(self, number: int = 0) -> "Client":
        """A client that has read the greeting."""
        client = Client(self.addresses[number])
        assert client.reply().startswith("220 ")
        return client

    def metrics(self) -> dict[str, float]:
        """The page's samples, by name with labels as they stand there."""
        status, page = self.get("/metrics")
        assert status == 200
        lines = [line.rpartition(" ") for line in page.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def get(self, path: str) -> tuple[int, str]:
        with contextlib.closing(http.client.HTTPConnection(self.page, timeout=PATIENCE)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self, number: signal.Signals | None = signal.SIGTERM) -> int:
        """Sends a signal and waits for the end of all processes; the exit status."""
        if number is not None:
            self.send(number)
        deadline = time.monotonic() + PATIENCE
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the server did not end:\n{self.out}{self.err}")
        for reader in self._readers:  # the pipes end with the last process that holds them
            reader.join(max(0.0, deadline - time.monotonic()))
            assert not reader.is_alive(), f"a process outlived the server:\n{self.out}{self.err}"
        return status

    def close(self) -> None:
        """Leaves no process behind, whatever happened."""
        if any(reader.is_alive() for reader in self._readers):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """What is started within heeds SIGINT, though this process may have to ignore it: a script's ``&`` makes its
    command do so, children inherit that, and Python then leaves the signal alone.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def starter(folder: Path) -> Iterator[Start]:
    """Starts servers in ``folder`` and ends those that a test left."""
    (folder / "who.py").write_text(WHO)
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, **options: object) -> Server:
            server = Server(*arguments, cwd=folder, **options)  # type: ignore[arg-type]
            stack.callback(server.close)
            return server

        yield start


def dial(address: str) -> socket.socket:
    """Connects to ``HOST:PORT``, ``[V6]:PORT`` or ``unix:PATH``."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(address.removeprefix("unix:"))
        except BaseException:
            sock.close()
            raise
        return sock
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE)


class Client:
    """One connection. Every reply is read whole; the end of the connection is ``ConnectionError``."""

    def __init__(self, address: str | socket.socket) -> None:
        """Connects to ``address``, or takes a socket over."""
        self.sock = dial(address) if isinstance(address, str) else address
        self._file = self.sock.makefile("rb")

    def reply(self) -> str:
        lines = []
        while True:
            line = self._file.readline()
            if not line.endswith(b"\r\n"):
                raise ConnectionResetError("the server closed the connection")
            lines.append(line.decode().rstrip("\r\n"))
            if line[3:4] != b"-":
                return "\n".join(lines)

    def say(self, line: str) -> str:
        self.sock.sendall(f"{line}\r\n".encode())
        return self.reply()

    def who(self) -> int:
        """The pid of the worker, from the handler ``who:Who``."""
        return int(self.say("NOOP").removeprefix("250 2.0.0 "))

    def to_data(self, recipient: str = "you@b.example") -> None:
        """From anywhere between two transactions to the 354."""
        assert self.say("EHLO client.example").startswith("250-")
        assert self.say("MAIL FROM:<me@a.example>").startswith("250 ")
        assert self.say(f"RCPT TO:<{recipient}>").startswith("250 ")
        assert self.say("DATA").startswith("354 ")

    def send(self, content: bytes) -> str:
        """Sends a message of ``content``; the reply to its end."""
        self.to_data()
        self.sock.sendall(stuffed(content))
        return self.reply()

    def at_end(self) -> bool:
        """Waits for something: whether it is the end of the connection."""
        try:
            return self._file.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self._file.close()
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def stuffed(content: bytes) -> bytes:
    """``content``, which is empty or ends in CRLF, as it goes over the wire, with the final dot."""
    return open_ended(content) + b".\r\n"


def open_ended(content: bytes) -> bytes:
    """As ``stuffed``, without the final dot: more may follow."""
    return re.sub(rb"^\.", b"..", content, flags=re.M)


def unstuffed(wire: bytes) -> bytes:
    """The content that stands on the wire, without the final dot."""
    assert wire.endswith(b"\r\n.\r\n") or wire == b".\r\n"
    return re.sub(rb"^\.", b"", wire[:-3], flags=re.M)


def delivered(maildir: Path) -> list[bytes]:
    """The messages in new/, oldest first. Nothing may lie anywhere else."""
    assert list((maildir / "tmp").iterdir()) == []
    assert list((maildir / "cur").iterdir()) == []
    files = sorted((maildir / "new").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return [path.read_bytes() for path in files]


_TRACE = re.compile(
    rb"Return-Path: <[^\r\n]*>\r\n(?:Delivered-To: [^\r\n]+\r\n)+"
    rb"Received: from [^\r\n]+\r\n(?:[\t ][^\r\n]+\r\n)*"
)


def without_trace(message: bytes) -> bytes:
    """What follows the trace lines, which have to be there."""
    trace = _TRACE.match(message)
    assert trace is not None, message[:500]
    return message[trace.end() :]


class Load:
    """Clients in threads that send message after message until the block ends, and know what became of each.

    ``answered``: 250. ``unknown``: sent whole, or in part, and the connection broke before a reply.
    ``told_421`` counts polite ends, ``broken`` others, ``refused`` the times that the port was closed,
    ``faults`` are what no client should see.
    """

    def __init__(self, address: str, clients: int, sizes: Sequence[int] = (300, 4000, 100_000)) -> None:
        self.answered: set[str] = set()
        self.unknown: set[str] = set()
        self.told_421 = self.broken = self.refused = 0
        self.faults: list[str] = []
        self._address = address
        self._sizes = sizes
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]

    def content(self, name: str) -> bytes:
        """What the message ``name`` is, and no other."""
        size = self._sizes[int(name.partition("-")[2]) % len(self._sizes)]
        line = f"{name} . .. filler\r\n.{name}\r\n".encode()
        return f"Subject: {name}\r\n\r\n".encode() + line * (size // len(line) + 1)

    def _run(self, number: int) -> None:
        names = (f"{number}-{count}" for count in range(1_000_000))
        while not self._done.is_set():
            try:
                client = Client(self._address)
            except ConnectionRefusedError:
                with self._lock:
                    self.refused += 1
                continue
            except OSError as error:
                with self._lock:
                    self.faults.append(repr(error))
                continue
            with client:
                self._converse(client, names)

    def _converse(self, client: Client, names: Iterator[str]) -> None:
        name = ""
        try:
            # 421 may be the reply to any command; the connection is over then.
            if not self._polite(client.reply()) or not self._polite(client.say("EHLO client.example")):
                return
            while not self._done.is_set():
                commands = "MAIL FROM:<me@a.example>\r\nRCPT TO:<you@b.example>\r\nDATA"
                if not all(self._polite(reply) for reply in self._three(client, commands)):
                    return
                name = next(names)
                client.sock.sendall(stuffed(self.content(name)))
                reply = client.reply()
                if reply.startswith("250 "):
                    with self._lock:
                        self.answered.add(name)
                name = ""
                if not self._polite(reply):
                    return
        except (ConnectionError, BrokenPipeError):
            with self._lock:
                self.broken += 1
                if name:
                    self.unknown.add(name)
        except TimeoutError:
            with self._lock:
                self.faults.append(f"no reply in {PATIENCE:g} s")

    def _three(self, client: Client, commands: str) -> Iterator[str]:
        yield client.say(commands)
        yield client.reply()
        yield client.reply()

    def _polite(self, reply: str) -> bool:
        with self._lock:
            if reply.startswith("421 4.3.2 "):
                self.told_421 += 1
                return False
            if not reply.startswith(("220 ", "250 ", "250-", "354 ")):
                self.faults.append(reply)
        return True

    def await_more(self, count: int) -> None:
        """Waits until ``count`` more messages are answered 250."""
        goal = len(self.answered) + count
        await_true(lambda: len(self.answered) >= goal, f"{count} more messages")

    def check(self, maildir: Path) -> None:
        """Each message that was answered is there, whole and once; none that was refused."""
        found = delivered(maildir)
        names = [message[9 : message.index(b"\r\n")].decode() for message in found]
        for name, message in zip(names, found, strict=True):
            assert message == self.content(name), f"{name} is not what was sent"
        assert len(names) == len(set(names)), "a message was delivered twice"
        assert self.answered - set(names) == set(), "lost after the 250"
        assert set(names) - self.answered - self.unknown == set(), "delivered and never answered 250"
        assert self.faults == []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()


class Prober:
    """Connects and reads the greeting, again and again until the block ends."""

    def __init__(self, address: str) -> None:
        self.greeted = self.broken = self.refused = 0
        self._address = address
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._done.wait(0.001):
            try:
                with Client(self._address) as client:
                    self.greeted += client.reply().startswith("220 ")
            except ConnectionRefusedError:
                self.refused += 1
            except ConnectionError:  # it was with a worker that died
                self.broken += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
