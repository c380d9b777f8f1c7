"""A server whose connections begin with a PROXY header in clear, and only then with TLS.

Knows how to accept, to read a header from a bare socket without one octet of what follows, and to hand the socket to
the loop. Refuses to know what the addresses are used for, and SMTP.

A transport will not do: with ``ssl=`` it takes the header for a handshake, and without, its reads take the client's
first octets of TLS along, which ``start_tls`` then lacks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from selectors import EVENT_READ, DefaultSelector
from ssl import SSLContext
from typing import TypeAlias

from fastsmtp import sockets
from fastsmtp.proxy_protocol import ProxyData, ProxyParser
from fastsmtp.sockets import Listener

log = logging.getLogger("mail.log")
debug = logging.getLogger("mail.debug")

Factory: TypeAlias = Callable[[ProxyData], asyncio.BaseProtocol]

# Connections for one turn of the loop, so that a flood of them does not hold up those that are served.
_ACCEPTS = 16
# Seconds without accepting when it fails: a socket that stays readable would spin.
_REST = 1.0
# A line, and a header of version 2 with the longest addresses but no vectors, are had with one look.
_LOOK = 232


class ProxiedServer:
    """Accepts on its sockets until ``close``. Made by ``create_proxied_server``, used as an ``asyncio.Server``.

    It knows a connection until its protocol has it, after the handshake. A client that sends nothing costs what any
    connection costs, a descriptor and a timer, for ``proxy_timeout`` seconds.
    """

    def __init__(
        self,
        factory: Factory,
        listeners: Sequence[Listener],
        *,
        tls: SSLContext | None,
        proxy_timeout: float,
        handshake_timeout: float | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.factory = factory
        self.tls = tls
        self.proxy_timeout = proxy_timeout
        self.handshake_timeout = handshake_timeout
        self.loop = loop
        self.arrivals: set[_Arrival] = set()
        # The loop watches this one. Of a bare socket that is reset while octets wait in it, uvloop tells once, and
        # then no more: such a connection would stay until its time is up.
        self.selector = DefaultSelector()
        self._listeners = list(listeners)
        self._resting: asyncio.TimerHandle | None = None
        self._closed = asyncio.Event()
        self._start_accepting()
        loop.add_reader(self.selector.fileno(), self._turn)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets; none after ``close``."""
        return tuple(listener.socket for listener in self._listeners)

    def is_serving(self) -> bool:
        """Whether connections are taken: until ``close``."""
        return not self._closed.is_set()

    def close(self) -> None:
        """Stops listening, and ends connections that are still in their header or handshake.

        Those that a protocol has go on. May be called again.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        if self._resting is not None:
            self._resting.cancel()
        for arrival in list(self.arrivals):
            arrival.close()
        self.loop.remove_reader(self.selector.fileno())
        self.selector.close()
        sockets.close(self._listeners)
        self._listeners.clear()

    async def wait_closed(self) -> None:
        """Waits for ``close``, and for the handshakes that it ended; not for connections that a protocol has."""
        await self._closed.wait()
        handshakes = [arrival.handshake for arrival in self.arrivals if arrival.handshake is not None]
        if handshakes:
            await asyncio.wait(handshakes)

    def _turn(self) -> None:
        for key, _ in self.selector.select(0):
            key.data()

    def _start_accepting(self) -> None:
        self._resting = None
        for sock in self.sockets:
            self.selector.register(sock, EVENT_READ, partial(self._accept, sock))

    def _rest(self, why: OSError) -> None:
        if self._resting is not None:
            return  # another socket has failed in this turn too
        log.error("cannot accept connections, trying again in %g s: %s", _REST, why)
        for sock in self.sockets:
            self.selector.unregister(sock)
        self._resting = self.loop.call_later(_REST, self._start_accepting)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue  # gone before it was taken
            except OSError as error:
                self._rest(error)
                return
            sock.setblocking(False)
            self.arrivals.add(_Arrival(self, sock, peer))


class _Arrival:
    """A connection that no protocol has yet: in its header, then in its handshake."""

    def __init__(self, server: ProxiedServer, sock: socket.socket, peer: object) -> None:
        self.handshake: asyncio.Task[None] | None = None
        self._server = server
        self._socket = sock
        self._peer = peer
        self._parser = ProxyParser()
        # Whether the socket is ours to close, and no transport's.
        self._ours = True
        self._timer = server.loop.call_later(server.proxy_timeout, self._give_up, "no PROXY header in time")
        server.selector.register(sock, EVENT_READ, self._read)

    def close(self) -> None:
        """Ends the connection without a word."""
        if self.handshake is not None:
            self.handshake.cancel()
        else:
            self._stop_reading()
            self._server.arrivals.discard(self)
        if self._ours:
            self._socket.close()

    def _stop_reading(self) -> None:
        self._timer.cancel()
        self._server.selector.unregister(self._socket)

    def _give_up(self, why: object) -> None:
        debug.info("connection from %s closed: %s", self._peer, why)
        self.close()

    def _read(self) -> None:
        parser = self._parser
        try:
            try:
                # What lies behind the header must stay in the socket, for TLS.
                octets = self._socket.recv(max(parser.wanted, _LOOK), socket.MSG_PEEK)
            except BlockingIOError:
                return
            self._consume(parser.feed(octets))
        except OSError as error:
            self._give_up(error)
            return
        if not octets:
            self._give_up("it ended before its PROXY header did")
        elif parser.data is None:
            return
        elif parser.data.valid:
            self._stop_reading()
            self.handshake = self._server.loop.create_task(self._connect(parser.data))
            self.handshake.add_done_callback(lambda _: self._server.arrivals.discard(self))
        else:
            self._give_up(parser.data.error)

    def _consume(self, count: int) -> None:
        while count:
            octets = self._socket.recv(count)
            if not octets:
                raise ConnectionResetError("it was reset within its PROXY header")
            count -= len(octets)

    async def _connect(self, data: ProxyData) -> None:
        server = self._server
        self._ours = False
        try:
            protocol = server.factory(data)
        except Exception as error:
            self._socket.close()
            server.loop.call_exception_handler(
                {"message": "no protocol for a connection", "exception": error}
            )
            return
        connect = partial(server.loop.connect_accepted_socket, lambda: protocol, self._socket)
        try:
            if server.tls is None:
                await connect()
            else:
                await connect(ssl=server.tls, ssl_handshake_timeout=server.handshake_timeout)
        except OSError as error:
            debug.info("connection from %s closed: %s", self._peer, error or type(error).__name__)


async def create_proxied_server(
    factory: Factory,
    *,
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    sock: socket.socket | None = None,
    path: str | os.PathLike[str] | None = None,
    ssl: SSLContext | None,
    proxy_timeout: float,
    handshake_timeout: float | None = None,
    backlog: int = 100,
    loop: asyncio.AbstractEventLoop | None = None,
) -> ProxiedServer:
    """Listens on ``host`` and ``port`` as ``loop.create_server`` does, on ``sock``, or on a UNIX socket at ``path``.

    Each connection gets a protocol of ``factory`` with the data of its header, when that is valid, and with ``ssl``
    TLS begins behind it. A header has ``proxy_timeout`` seconds to come whole, a handshake ``handshake_timeout``,
    by default the loop's 60. What fails is closed without a word.

    Raises ``OSError`` for an address that cannot be had, ``ListenError`` for such a path, and ``ValueError`` unless
    one place is given.
    """
    if [sock, path, port if host is None else host].count(None) != 2:
        raise ValueError("give host and port, or sock, or path")
    loop = loop or asyncio.get_running_loop()
    if path is not None:
        listeners = sockets.bind([f"unix:{os.fspath(path)}"], backlog, option="path")
    else:
        bound = [sock] if sock is not None else await _bind(loop, host, port)
        listeners = [Listener(each, str(each.getsockname()), ssl is not None) for each in bound]
        try:
            for each in bound:
                each.setblocking(False)
                each.listen(backlog)
        except BaseException:
            sockets.close(listeners)
            raise
    return ProxiedServer(
        factory,
        listeners,
        tls=ssl,
        proxy_timeout=proxy_timeout,
        handshake_timeout=handshake_timeout,
        loop=loop,
    )


async def _bind(
    loop: asyncio.AbstractEventLoop, host: str | Sequence[str] | None, port: int | None
) -> list[socket.socket]:
    """Sockets that the loop binds: what a host means, and how it fails, is the same as without a header."""
    server = await loop.create_server(asyncio.Protocol, host, port or 0, start_serving=False)
    try:
        return [socket.socket(fileno=os.dup(each.fileno())) for each in server.sockets]
    finally:
        server.close()
        await server.wait_closed()
