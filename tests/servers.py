"""A server on a real socket, on either event loop, and a client that sends just the octets it is told to.

Knows how to wait for replies, for the end, and for a condition, always with a deadline; and that neither the server
nor the loop may complain unless a test expects it. Refuses to know what is right.
"""

import asyncio
import functools
import inspect
import logging
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Self

import pytest
import uvloop
from dialogs import Message, Reply, read_replies
from oracle import Result
from script import HOSTNAME
from wires import HELLO, TO_DATA

import fastsmtp
from fastsmtp import Envelope, Session
from fastsmtp._engine import index
from fastsmtp.worker import Worker

DEADLINE = 20.0  # seconds for a test that takes milliseconds; an eighth of it for one condition
MAIL = HELLO + TO_DATA + b"Subject: test\r\n\r\ntext\r\n.\r\n"
CONTENT = b"Subject: test\r\n\r\ntext\r\n"
LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


class _Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if not line.startswith("a PROXY header came where none is expected"):  # as some dialogs want it
            self.lines.append(line)


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Runs an async test on uvloop and on asyncio's own loop, with a deadline.

    The test fails if anything is logged as a warning or worse, unless it has ``caplog`` and looks for itself.
    """

    @pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], **arguments: Any) -> None:
        async def limited() -> None:
            async with asyncio.timeout(DEADLINE):
                await test(**arguments)

        complaints = _Complaints()
        logging.getLogger().addHandler(complaints)
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.run(limited())
        finally:
            logging.getLogger().removeHandler(complaints)
        if "caplog" not in arguments:
            assert complaints.lines == []

    functools.update_wrapper(run, test)
    del run.__wrapped__  # type: ignore[attr-defined]
    parameters = inspect.signature(test).parameters.values()
    first = inspect.Parameter("loop_factory", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
    run.pytestmark = [*run.pytestmark, *getattr(test, "pytestmark", [])]  # type: ignore[attr-defined]
    return run


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Waits until the condition holds."""
    end = time.monotonic() + DEADLINE / 8
    while not condition():
        assert time.monotonic() < end, what or inspect.getsource(condition)
        await asyncio.sleep(0.001)


class Keeps:
    """A handler that takes every message."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
        self.messages.append(Message(str(envelope.mail_from), list(envelope.rcpt_tos), envelope.content))
        return "250 2.0.0 Ok"


async def serve(handler: object | None = None, **settings: object) -> Worker:
    """A server on a free port, which many tests send a lot of NOOPs to."""
    settings = {"listen": ["127.0.0.1:0"], "hostname": HOSTNAME, "max_junk_commands": 0, **settings}
    return await fastsmtp.serve(handler, **settings)


def port_of(server: Worker) -> int:
    return int(server.addresses[0].rpartition(":")[2])


def counted(server: Worker, name: str, value: str = "") -> int:
    """What one of the server's counters stands at."""
    return server._engine.counters.get(index(f"fastsmtp_{name}", value))


class Client:
    """A client's connection. The greeting is the first reply."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.loop = asyncio.get_running_loop()
        self.unread = b""
        self.came: deque[Reply] = deque()

    @classmethod
    async def connect(cls, server: Worker, *, receive_buffer: int = 0) -> Self:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client = cls(sock)
        await client.loop.sock_connect(sock, ("127.0.0.1", port_of(server)))
        return client

    @classmethod
    async def greeted(cls, server: Worker, hello: bytes = HELLO, *, receive_buffer: int = 0) -> Self:
        """A client that has been greeted and has said ``hello``, if any."""
        client = await cls.connect(server, receive_buffer=receive_buffer)
        assert (await client.reply()).code == 220
        if hello:
            assert (await client.ask(hello)).code == 250
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    async def send(self, octets: bytes) -> None:
        await self.loop.sock_sendall(self.socket, octets)

    def send_what_fits(self, octets: bytes) -> int:
        """Sends as much as the kernels take; returns how much that was."""
        sent = 0
        try:
            while sent < len(octets):
                sent += self.socket.send(octets[sent : sent + 65536])
        except BlockingIOError:
            pass
        return sent

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    async def _receive(self) -> bool:
        try:
            octets = await self.loop.sock_recv(self.socket, 262144)
        except ConnectionResetError:
            octets = b""
        replies, self.unread = read_replies(self.unread + octets)
        self.came += replies
        return octets != b""

    async def reply(self) -> Reply:
        """The next reply."""
        while not self.came:
            assert await self._receive(), f"the server hung up; it had said {self.unread!r}"
        return self.came.popleft()

    async def replies(self, count: int) -> list[Reply]:
        return [await self.reply() for _ in range(count)]

    async def codes(self, count: int) -> list[int]:
        return [reply.code for reply in await self.replies(count)]

    async def ask(self, octets: bytes) -> Reply:
        """Sends, and gives the one reply to it."""
        await self.send(octets)
        return await self.reply()

    async def says(self, octets: bytes) -> str:
        """Sends, and gives the one reply to it as text, lines parted by LF."""
        return "\n".join((await self.ask(octets)).lines)

    async def rest(self) -> list[Reply]:
        """All replies until the server hangs up."""
        while await self._receive():
            pass
        assert self.unread == b""
        replies = list(self.came)
        self.came.clear()
        return replies


def summary(replies: list[Reply], messages: list[Message], closed: bool) -> Result:
    """What came of a connection, as the oracle tells it."""
    from oracle import Message as OracleMessage

    return Result(
        [(reply.code, reply.enhanced) for reply in replies],
        [OracleMessage(*message) for message in messages],
        closed,
    )
