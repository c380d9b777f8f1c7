"""Plays the rows of ``aiosmtpd_rows`` against a server class: on a socket, or on a transport that is none.

Knows sockets, TLS and how a client may cut what it sends. Takes the module under test as a parameter and refuses
to know whose it is; what is right is in the row.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import socket
import ssl
import warnings
from collections.abc import Iterator
from typing import Any, Self

import trustme
from aiosmtpd_names import Construction
from aiosmtpd_rows import CLOSED, HANGS, Row, Smtp, With

GREETING = b"220 mx.example test\r\n"
DEADLINE = 2.0  # seconds for a reply that takes milliseconds


class Certificates:
    """A context of the server's, and one of clients who trust it."""

    def __init__(self) -> None:
        authority = trustme.CA()
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("mx.example").configure_cert(self.server)
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)

    @classmethod
    @functools.cache
    def one(cls) -> Self:
        """The same for all rows: a key costs milliseconds."""
        return cls()


class Wire(asyncio.Transport):
    """A transport without a socket, which keeps what is written."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__({"peername": ("192.0.2.1", 2525)})
        self.loop = loop
        self.protocol: Any = None
        self.written = bytearray()
        self.writes = 0
        self.closing = False
        self.changed = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closing, f"{bytes(data)!r} was written behind the end"
        self.written += data
        self.writes += 1
        self.changed.set()

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.changed.set()
            self.loop.call_soon(self.protocol.connection_lost, None)

    abort = close

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol  # type: ignore[no-any-return]

    def pause_reading(self) -> None:
        """What is paused here is the one who sends, and it waits for each octet's effect anyway."""

    def resume_reading(self) -> None: ...

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


class Caller:
    """A client's end of a socket, in clear or secured."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.loop = asyncio.get_running_loop()
        self.tls: ssl.SSLObject | None = None
        self.came, self.to_send = ssl.MemoryBIO(), ssl.MemoryBIO()

    @classmethod
    async def connect(cls, port: int) -> Self:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        caller = cls(sock)
        await caller.loop.sock_connect(sock, ("127.0.0.1", port))
        return caller

    async def secure(self) -> None:
        """The handshake."""
        self.tls = Certificates.one().client.wrap_bio(self.came, self.to_send, server_hostname="mx.example")
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                self.came.write(await self._receive())
            else:
                await self._flush()
                return

    async def send(self, octets: bytes) -> None:
        if self.tls is None:
            await self.loop.sock_sendall(self.socket, octets)
        elif octets:
            self.tls.write(octets)
            await self._flush()

    async def read(self) -> bytes:
        """Some octets, or none at the end."""
        if self.tls is None:
            return await self._receive(at_end=b"")
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                octets = await self._receive(at_end=b"")
                if octets == b"":
                    return b""
                self.came.write(octets)
            except ssl.SSLZeroReturnError:
                return b""

    async def _flush(self) -> None:
        await self.loop.sock_sendall(self.socket, self.to_send.read())

    async def _receive(self, at_end: bytes | None = None) -> bytes:
        try:
            octets = await self.loop.sock_recv(self.socket, 65536)
        except ConnectionResetError:
            octets = b""
        assert octets or at_end is not None, "the server hung up in the midst of the handshake"
        return octets


def given(smtp: Smtp, settings: dict[str, object]) -> dict[str, object]:
    """Settings as the server gets them."""
    return {name: value.make(smtp) if isinstance(value, With) else value for name, value in settings.items()}


def make(smtp: Smtp, row: Row, loop: asyncio.AbstractEventLoop) -> Any:
    """A factory of the row's server."""
    handler = row.handler(smtp)
    kind = row.server(smtp) if row.server else smtp.SMTP
    settings = {"hostname": "mx.example", "ident": "test", "loop": loop, **given(smtp, row.settings)}
    return functools.partial(kind, handler, **settings)


def exchanges(row: Row, ours: bool) -> list[tuple[bytes, bytes, bool]]:
    """What is sent, what comes back, and whether that is the end."""
    result = []
    for sent, *replies in row.talk:
        lines = replies[-1 if ours else 0].split("\n")
        closed = lines[-1] == CLOSED
        octets = "".join(f"{line}\r\n" for line in (lines[:-1] if closed else lines)).encode()
        result.append((sent if isinstance(sent, bytes) else f"{sent}\r\n".encode(), octets, closed))
        if closed:
            break
    return result


@contextlib.contextmanager
def warned(row: Row) -> Iterator[None]:
    """Whether Python's warnings are those of the row, each at least once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeprecationWarning)
        warnings.simplefilter("always", UserWarning)
        yield
    texts = list(dict.fromkeys(str(one.message) for one in caught))
    assert texts == list(row.warns), f"Python warned of {texts}"


def by_hand(rows: list[Row]) -> list[Row]:
    """Those that ``play_octets`` can play."""
    return [row for row in rows if not row.secures]


async def play(smtp: Smtp, row: Row, *, ours: bool = True) -> None:
    """Plays a row on sockets: line by line, and then as one packet unless TLS has to be awaited.

    Raises ``AssertionError`` where the server says anything else.
    """
    loop = asyncio.get_running_loop()
    with warned(row), silent(loop, ours):
        context = Certificates.one().server if row.tls else None
        new = make(smtp, row, loop)
        protocols: list[Any] = []

        def accept() -> Any:
            protocols.append(new())
            return protocols[-1]

        server = await loop.create_server(accept, "127.0.0.1", 0, ssl=context)
        try:
            for whole in (False,) if row.secures else (False, True):
                await _converse(server.sockets[0].getsockname()[1], row, ours, whole)
        finally:
            server.close()
            await _end(protocols)


async def play_octets(smtp: Smtp, row: Row, *, ours: bool = True) -> None:
    """Plays a row octet by octet, without a socket; there, too, it counts whether the server hangs up."""
    loop = asyncio.get_running_loop()
    wire = Wire(loop)
    with warned(row), silent(loop, ours):
        wire.protocol = make(smtp, row, loop)()
        wire.protocol.connection_made(wire)
        expected = bytearray()
        for sent, replies, closed in [(b"", GREETING, False), *exchanges(row, ours)]:
            expected += replies
            for octet in sent:
                if not wire.closing:
                    feed(wire.protocol, bytes([octet]))
                    await asyncio.sleep(0)
            if HANGS.encode() in replies:
                return
            said, wanted = await _said(wire, expected, closed), (bytes(expected), closed)
            assert said == wanted, f"after {sent!r} it was {said!r}, not {wanted!r}"
        await asyncio.sleep(0)  # for what nobody has asked for
        assert wire.written == expected, f"{bytes(wire.written)!r} has more than {bytes(expected)!r}"
        wire.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


@contextlib.contextmanager
def silent(loop: asyncio.AbstractEventLoop, ours: bool) -> Iterator[None]:
    """Whether the loop does not complain, which aiosmtpd has it do."""
    complaints: list[Any] = []
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    yield
    assert not ours or complaints == [], f"the loop complains: {complaints}"


async def _converse(port: int, row: Row, ours: bool, whole: bool) -> None:
    caller = await Caller.connect(port)
    try:
        if row.tls:
            await caller.secure()
        talk = exchanges(row, ours)
        if whole:
            talk = [(b"".join(one[0] for one in talk), b"".join(one[1] for one in talk), talk[-1][2])]
        for sent, expected, closed in [(b"", GREETING, False), *talk]:
            await caller.send(sent)
            if HANGS.encode() in expected:
                return
            await _expect(caller, sent, expected)
            if closed:
                break
            if sent == b"STARTTLS\r\n" and expected.startswith(b"220"):
                await caller.secure()
        else:
            caller.socket.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(DEADLINE):
            more = await caller.read()
            assert more == b"", f"{more!r} was not asked for"
    finally:
        caller.socket.close()


async def _end(protocols: list[Any]) -> None:
    """Lets the ends of connections come to their protocols; a connection that hangs is no other row's trouble."""
    for _ in range(3):
        await asyncio.sleep(0)
    for protocol in protocols:
        if protocol.transport is not None:
            protocol.transport.abort()
    for _ in range(3):
        await asyncio.sleep(0)


async def _expect(caller: Caller, sent: bytes, expected: bytes) -> None:
    """Reads until all is there, or something else."""
    came = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DEADLINE):
            while came != expected and expected.startswith(came) and (octets := await caller.read()):
                came += octets
    assert came == expected, f"{sent!r} was answered {came!r}, not {expected!r}"


async def _said(wire: Wire, expected: bytearray, closed: bool) -> tuple[bytes, bool]:
    """What was written, and whether that is the end: as it is to be, or as soon as it is otherwise."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DEADLINE):
            while expected.startswith(wire.written) and wire.closing <= closed:
                if wire.written == expected and wire.closing == closed:
                    break
                wire.changed.clear()
                await wire.changed.wait()
    return bytes(wire.written), wire.closing


def feed(protocol: Any, octets: bytes) -> None:
    """Octets come in, as users of the class feed it."""
    protocol.data_received(octets)


def tell(smtp: Smtp, expression: str) -> str:
    """What an expression is in the module under test: its ``repr``, or the error that it raises."""
    try:
        return repr(eval(expression, dict(inspect.getmembers(smtp))))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


async def construct(smtp: Smtp, construction: Construction) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """What comes of a server's arguments: the error, Python's warnings, and the log."""
    lines: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: lines.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
    level = smtp.log.level
    smtp.log.addHandler(listener)
    smtp.log.setLevel(logging.INFO)
    error = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            smtp.SMTP(construction.handler, hostname="mx.example", **given(smtp, construction.settings))
        except (TypeError, ValueError, RuntimeError, AssertionError) as raised:
            error = f"{type(raised).__name__}: {raised}"
        finally:
            smtp.log.removeHandler(listener)
            smtp.log.setLevel(level)
    return error, tuple(str(one.message) for one in caught), () if error else tuple(lines)
