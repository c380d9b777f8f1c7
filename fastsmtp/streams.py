"""A server on streams: to its owner what ``loop.create_server`` makes, without a transport for each connection.

Knows how to listen where the loop would, and how a connection gets its protocol: at once, after TLS, after a PROXY
header before TLS; and that a protocol which is no dialogue needs a transport of the loop. Refuses to know who made the
factory, and what is said.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable, Sequence
from functools import partial
from ssl import SSLContext
from typing import TYPE_CHECKING

from fastsmtp import sockets
from fastsmtp.accepting import Accepting
from fastsmtp.connection import Connection
from fastsmtp.proxied import Arrival
from fastsmtp.sockets import Listener

if TYPE_CHECKING:
    from fastsmtp._stream import Stream
    from fastsmtp.proxy_protocol import ProxyData

log = logging.getLogger("mail.log")
debug = logging.getLogger("mail.debug")

# As in a server of the loop's: connections that wait to be accepted, and seconds.
_BACKLOG = 100
_HANDSHAKE_TIMEOUT = 60.0

# With several addresses, the port that the kernel picks on the first may be taken on another.
_PORT_ZERO_TRIES = 20


class StreamServer(asyncio.AbstractServer):
    """Accepts on ``listeners`` until ``close``, and gives each connection a protocol of ``factory``.

    With ``tls`` a connection begins with TLS, for whose handshake it has ``handshake_timeout`` seconds. With
    ``proxy_timeout`` a PROXY header comes before that, in clear, and has as many seconds to come whole; the
    protocol gets its data by ``proxied``, if it has such a method. What fails is closed without a word.

    Raises ``OSError`` if the system has no descriptor left; then the listening sockets are closed, too.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: Callable[[], asyncio.BaseProtocol],
        listeners: Sequence[Listener],
        *,
        tls: SSLContext | None = None,
        proxy_timeout: float | None = None,
        handshake_timeout: float = _HANDSHAKE_TIMEOUT,
    ) -> None:
        self.arrivals: set[Arrival] = set()
        self._loop = loop
        self._factory = factory
        self._tls = tls
        self._proxy_timeout = proxy_timeout
        self._handshake_timeout = handshake_timeout
        self._listeners = list(listeners)
        self._attaching: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()
        try:
            self._accepting = Accepting(loop, self._accepted, None)
            self._accepting.add(listeners)
        except BaseException:
            sockets.close(listeners)
            raise

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets; none after ``close``."""
        return tuple(listener.socket for listener in self._listeners)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that serves."""
        return self._loop

    def is_serving(self) -> bool:
        """Whether connections are taken: until ``close``."""
        return not self._closed.is_set()

    async def start_serving(self) -> None:
        """Does nothing: it serves."""

    async def serve_forever(self) -> None:
        """Waits for ``close``; if cancelled, closes."""
        try:
            await self._closed.wait()
        finally:
            self.close()

    def close(self) -> None:
        """Stops listening, and ends connections that are still in the header or handshake before all else.

        Those that a protocol has go on. May be called again.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        for arrival in list(self.arrivals):
            arrival.close()
        if self._tls is not None:
            for task in self._attaching:
                # A task that is cancelled before its first step leaves its socket open.
                self._loop.call_soon(task.cancel)
        self._accepting.close()
        sockets.close(self._listeners)
        self._listeners.clear()

    async def wait_closed(self) -> None:
        """Waits for ``close``, and for the handshakes that it ended; not for connections that a protocol has."""
        await self._closed.wait()
        if self._attaching:
            await asyncio.wait(self._attaching)

    # --- a connection ---------------------------------------------------------------------------------------

    def _accepted(self, stream: Stream, tls: bool) -> None:
        if self._proxy_timeout is None:
            self._connect(stream, None)
        else:
            self.arrivals.add(Arrival(stream, self._loop, self._proxy_timeout, self._introduced))

    def _introduced(self, arrival: Arrival, data: ProxyData | None) -> None:
        self.arrivals.discard(arrival)
        if data is not None:
            self._connect(arrival.stream, data)

    def _connect(self, stream: Stream, data: ProxyData | None) -> None:
        protocol = self._factory()
        if self._closed.is_set():
            stream.abort()  # the factory closed the server
            return
        if data is not None and hasattr(protocol, "proxied"):
            protocol.proxied(data)
        if not isinstance(protocol, Connection) or not protocol.takes_streams:
            peer = stream.get_extra_info("peername")
            task = self._loop.create_task(self._attach(protocol, stream.detach(), peer))
            self._attaching.add(task)
            task.add_done_callback(self._attaching.discard)
        elif self._tls is None:
            stream.begin(protocol)
        else:
            protocol.session.peer = stream.get_extra_info("peername")
            stream.begin(protocol, self._tls, self._handshake_timeout)

    async def _attach(self, protocol: asyncio.BaseProtocol, sock: socket.socket, peer: object) -> None:
        """Has the loop make a transport for a protocol that no stream will do for."""
        connect = partial(self._loop.connect_accepted_socket, lambda: protocol, sock)
        try:
            if self._tls is None:
                await connect()
            else:
                await connect(ssl=self._tls, ssl_handshake_timeout=self._handshake_timeout)
        except OSError as error:
            debug.info("connection from %s closed: %s", peer, error or type(error).__name__)


# --- where it listens ---------------------------------------------------------------------------------------


async def listen(
    loop: asyncio.AbstractEventLoop, host: str | Sequence[str] | None, port: int
) -> list[Listener]:
    """Listens on ``host`` and ``port``: what a host means, and the ``OSError`` if it cannot be had, is the loop's.

    Port 0 is one port for all addresses, which the kernel picks for the first of them.
    """
    for _ in range(_PORT_ZERO_TRIES):
        listeners = await _bind(loop, host, port)
        first, *others = (listener.socket.getsockname()[1] for listener in listeners)
        if port or all(other == first for other in others):
            break
        sockets.close(listeners)
        try:
            listeners = await _bind(loop, host, first)
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            taken = error
    else:
        raise taken
    try:
        for listener in listeners:
            sockets.without_delay(listener.socket)
            listener.socket.listen(_BACKLOG)
    except BaseException:
        sockets.close(listeners)
        raise
    return listeners


async def _bind(
    loop: asyncio.AbstractEventLoop, host: str | Sequence[str] | None, port: int
) -> list[Listener]:
    server = await loop.create_server(asyncio.Protocol, host, port, start_serving=False)
    try:
        bound = [socket.socket(fileno=os.dup(sock.fileno())) for sock in server.sockets]
    finally:
        server.close()
        await server.wait_closed()
    return [Listener(sock, str(sock.getsockname()), tls=False) for sock in bound]


def listen_unix(path: str) -> list[Listener]:
    """Listens on a UNIX socket at ``path``, in place of one that is there, as ``loop.create_unix_server`` does. Raises
    ``OSError``.
    """
    abstract = path.startswith("\0")
    if not abstract:
        _remove_socket(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        made = None if abstract else sockets.identity(path)
        sock.listen(_BACKLOG)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise OSError(errno.EADDRINUSE, f"Address {path!r} is already in use") from None
        raise
    return [Listener(sock, f"unix:{path}", tls=False, made=made)]


def _remove_socket(path: str) -> None:
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.remove(path)
    except FileNotFoundError:
        pass
    except OSError as error:  # bind may do all the same
        log.error("cannot look at or remove the socket %s: %s", path, error)
