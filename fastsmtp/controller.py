"""Controllers: a server around the protocol, started and stopped by a program that does something else.

Knows aiosmtpd's controllers by name: in a thread with a loop of its own (``Controller``), in a loop that the
program runs (``UnthreadedController``), on TCP or on a UNIX socket. Knows when a server is there, why it is not,
and how it leaves. Refuses to know what is said on a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import ssl
import threading
import time
import warnings
from abc import ABCMeta, abstractmethod
from pathlib import Path
from socket import AF_INET6, SOCK_STREAM, has_ipv6
from socket import socket as makesock
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, cast

from fastsmtp.guests import Guests
from fastsmtp.house import house_of
from fastsmtp.logs import describe
from fastsmtp.smtp import SMTP
from fastsmtp.streams import StreamServer, listen, listen_unix

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator, Sequence
    from types import TracebackType
    from typing import Self

    from fastsmtp.sockets import Listener

__all__ = [
    "DEFAULT_GRACE",
    "DEFAULT_READY_TIMEOUT",
    "IP6_IS",
    "BaseController",
    "BaseThreadedController",
    "BaseUnthreadedController",
    "Controller",
    "InetMixin",
    "UnixSocketController",
    "UnixSocketMixin",
    "UnixSocketUnthreadedController",
    "UnthreadedController",
    "get_localhost",
]

log = logging.getLogger("mail.log")

Server: TypeAlias = asyncio.Server | StreamServer

DEFAULT_READY_TIMEOUT = 5.0
"""Seconds that ``start()`` waits for the thread to serve."""

DEFAULT_GRACE = 5.0
"""Seconds that messages under way get to finish when a server is stopped."""

_TIMEOUT_VARIABLES = ("FASTSMTP_CONTROLLER_TIMEOUT", "AIOSMTPD_CONTROLLER_TIMEOUT")

_LAST_WAIT = 1.0  # seconds that cancelled tasks get at the end


class IP6_IS:
    """What ``bind`` to ``::1`` fails with when this machine has no IPv6 (``NO``) and when it has (``YES``)."""

    NO: ClassVar[set[int]] = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
    YES: ClassVar[set[int]] = {errno.EADDRINUSE}


def _has_ipv6() -> bool:
    return has_ipv6


def get_localhost() -> Literal["::1", "127.0.0.1"]:
    """The numeric address of the loopback interface: ``::1`` if this machine has IPv6.

    Raises ``OSError`` for a failure that ``IP6_IS`` does not know.
    """
    if not _has_ipv6():
        return "127.0.0.1"
    try:
        # Compiled in is not switched on: only a bind tells.
        with makesock(AF_INET6, SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError as error:
        if error.errno in IP6_IS.NO:
            return "127.0.0.1"
        if error.errno not in IP6_IS.YES:
            raise
    return "::1"


def _server_to_client_ssl_ctx(server_ctx: ssl.SSLContext) -> ssl.SSLContext:
    """A context for a client of the server that has ``server_ctx``; it believes any certificate."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.options = server_ctx.options
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # only when a loop is wanted: it is the largest import of all
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class _Done:
    """What ``start()`` and ``stop()`` return in a running loop: done already, so that it may be awaited or not."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


def _done() -> _Done | None:
    return _Done() if _a_loop_runs() else None


def _a_loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _FakeServer(asyncio.Protocol):
    """In place of a protocol that the factory could not make: sends its client away."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.WriteTransport", transport).write(
            b"421 4.3.0 Service not available; closing connection\r\n"
        )
        transport.close()


class BaseController(metaclass=ABCMeta):
    """What all controllers share. ``SMTP_parameters`` go to ``SMTP``, with ``enable_SMTPUTF8`` on by default.

    ``ssl_context`` means TLS from the first octet. ``server_hostname`` is the name that the server greets with.
    ``grace`` is how long, in seconds, messages under way may take to finish when the server is stopped.
    ``server_kwargs``, a dict of ``SMTP_parameters``, is deprecated.

    Without ``loop``, ``self.loop`` is a new loop of uvloop, made when it is first needed.

    ``async with`` any controller serves in the running loop, without a thread, and stops at the end of the block.
    """

    smtpd: Any = None
    """What ``factory()`` made last: at the start, and then for the latest connection."""

    server: Server | None = None
    """What accepts, on its ``sockets``; ``None`` when not serving."""

    server_coro: Awaitable[Server] | None = None
    _thread_exception: BaseException | None = None

    _loop: asyncio.AbstractEventLoop | None
    _given_loop: asyncio.AbstractEventLoop | None
    _own_loop: asyncio.AbstractEventLoop | None

    def __init__(
        self,
        handler: Any,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        grace: float = DEFAULT_GRACE,
        **SMTP_parameters: Any,
    ) -> None:
        self.handler = handler
        self._loop = self._given_loop = loop
        self._own_loop = None
        self.ssl_context = ssl_context
        self.grace = grace
        self.SMTP_kwargs: dict[str, Any] = {}
        if "server_kwargs" in SMTP_parameters:
            warnings.warn(
                "server_kwargs will be removed in version 2.0. "
                "Just specify the keyword arguments to forward to SMTP "
                "as kwargs to this __init__ method.",
                DeprecationWarning,
                stacklevel=4,  # who makes one of the concrete controllers below
            )
            self.SMTP_kwargs.update(SMTP_parameters.pop("server_kwargs") or {})
        self.SMTP_kwargs.update(SMTP_parameters)
        if server_hostname:
            self.SMTP_kwargs["hostname"] = server_hostname
        self.SMTP_kwargs.setdefault("enable_SMTPUTF8", True)
        self._factory_invoked = threading.Event()
        self._guests = Guests()

    # --- the loop -------------------------------------------------------------------------------------------

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that serves."""
        if self._loop is None:
            self._loop = self._own_loop = _new_event_loop()
        return self._loop

    @loop.setter
    def loop(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = self._given_loop = loop
        self._own_loop = None

    def _take_running_loop(self) -> None:
        running = asyncio.get_running_loop()
        if self._loop is running:
            return
        if self._given_loop is not None:
            raise RuntimeError("the controller was given another event loop than the one that runs")
        if self._own_loop is not None:
            self._own_loop.close()
            self._own_loop = None
        self._loop = running

    def _leave_used_loop(self) -> None:
        """Before a loop is run: not the last start's, which is closed or somebody else's. A given one stays."""
        if self._given_loop is None and (self._own_loop is None or self._own_loop.is_closed()):
            self._loop = None

    def cancel_tasks(self, stop_loop: bool = True) -> None:
        """Cancels all tasks of the loop, and stops the loop first unless ``stop_loop`` is false.

        Only for the loop's own thread; from elsewhere, ``loop.call_soon_threadsafe(controller.cancel_tasks)``.
        """
        if stop_loop:
            self.loop.stop()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()

    # --- the factory ----------------------------------------------------------------------------------------

    def factory(self) -> asyncio.BaseProtocol:
        """Makes the protocol of a connection; for subclasses to override, to serve LMTP say.

        Called once at the start, so that its errors are raised there, and then for each connection.
        """
        return SMTP(self.handler, **self.SMTP_kwargs)

    def _factory_invoker(self) -> asyncio.BaseProtocol:
        """Calls the factory as the loop wants it, which loses exceptions; they are kept."""
        try:
            smtpd: Any = self.factory()
            self.smtpd = smtpd
            if smtpd is None:
                raise RuntimeError("factory() returned None")
        except BaseException as error:
            self._thread_exception = error
            if self._factory_invoked.is_set():  # else start() raises it
                text = describe(error)
                house_of(self.loop).noise.say(
                    log,
                    logging.ERROR,
                    "factory",
                    "factory() failed, a client is sent away: %s",
                    text,
                    error=error,
                )
            return _FakeServer(self.loop)
        finally:
            self._factory_invoked.set()
        self._guests.add(smtpd)
        return smtpd  # type: ignore[no-any-return]

    def _trigger_server(self) -> None:
        """Has the factory called once in the loop's thread, for a protocol that is never connected: no handler
        sees a client that is none.
        """
        self.loop.call_soon_threadsafe(self._factory_invoker)

    def _check_factory(self) -> None:
        if self._thread_exception is not None:
            raise self._thread_exception
        if self.smtpd is None:
            raise RuntimeError("Unknown Error, failed to init SMTP server")

    def _serve(self, listeners: Sequence[Listener]) -> StreamServer:
        """A server on these sockets."""
        # A balancer writes its header in clear, before the TLS that it passes on.
        timeout = self.SMTP_kwargs.get("proxy_protocol_timeout") if self.ssl_context is not None else None
        return StreamServer(
            self.loop, self._factory_invoker, listeners, tls=self.ssl_context, proxy_timeout=timeout
        )

    @abstractmethod
    def _create_server(self) -> Awaitable[Server]:
        """Makes the server, which listens and calls ``_factory_invoker()`` for each connection."""

    # --- serving and leaving, in the loop -------------------------------------------------------------------

    async def _open(self) -> None:
        """Tries the factory and listens, in the running loop."""
        assert self.server is None, "SMTP daemon already running"
        self._take_running_loop()
        self._factory_invoked.clear()
        try:
            self._factory_invoker()  # see _trigger_server
            self._check_factory()
            self.server_coro = self._create_server()
            self.server = await self.server_coro
        except BaseException:
            self._cleanup()
            raise

    def _cleanup(self) -> None:
        """Forgets what belongs to one start."""
        self._thread_exception = None
        self._factory_invoked.clear()
        self.server_coro = None
        self.server = None
        self.smtpd = None
        self._guests.forget()

    async def _serve_no_more(self, grace: float | None) -> None:
        """The opposite of ``_open``."""
        assert self.server is not None, "SMTP daemon not running"
        await self._guests.leave(self.server, self.grace if grace is None else grace)
        await self._guests.end(self.server)
        house_of(self.loop).tell()
        self._cleanup()

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.server is not None:  # else it was stopped inside the block
            await self._serve_no_more(None)


class BaseThreadedController(BaseController, metaclass=ABCMeta):
    """Serves in a thread of its own, with a loop of its own.

    ``ready_timeout`` is how long ``start()`` may take, in seconds; the environment variable
    ``FASTSMTP_CONTROLLER_TIMEOUT``, or else ``AIOSMTPD_CONTROLLER_TIMEOUT``, wins over it. Raises ``ValueError``
    for a variable that is no number of seconds.
    """

    _thread: threading.Thread | None = None

    def __init__(
        self,
        handler: Any,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        ready_timeout: float = DEFAULT_READY_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(handler, loop, **kwargs)
        self.ready_timeout = _ready_timeout(ready_timeout)
        self._stop_asked = False
        self._leaving: asyncio.Task[None] | None = None

    def start(self) -> Any:
        """Starts the thread and waits until it serves.

        Raises what went wrong, at once: ``OSError`` if the address cannot be had, whatever ``factory()`` raised,
        ``RuntimeError`` if that made nothing; and ``TimeoutError`` after ``ready_timeout``. ``stop()`` must be
        called then as well. ``AssertionError`` if it runs already.

        In a running loop the result may be awaited, and need not: the thread serves when this returns.
        """
        assert self._thread is None, "SMTP daemon already running"
        assert self.server is None, "SMTP daemon already running"
        self._leave_used_loop()
        self._factory_invoked.clear()
        self._stop_asked = False
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(ready,), name="fastsmtp-controller", daemon=True
        )
        self._thread.start()
        began = time.monotonic()
        came = ready.wait(self.ready_timeout)
        if self._thread_exception is not None:
            raise self._thread_exception
        if not came:
            raise TimeoutError(
                "SMTP server failed to start within allotted time. "
                "This might happen if the system is too busy. "
                "Try increasing the `ready_timeout` parameter."
            )
        self._trigger_server()
        if not self._factory_invoked.wait(self.ready_timeout - (time.monotonic() - began)):
            raise TimeoutError(
                "SMTP server started, but not responding within allotted time. "
                "This might happen if the system is too busy. "
                "Try increasing the `ready_timeout` parameter."
            )
        self._check_factory()
        return _done()

    def _run(self, ready_event: threading.Event) -> None:
        """The life of the thread. ``ready_event`` is set when it serves, and when it cannot."""
        loop = self.loop
        asyncio.set_event_loop(loop)
        try:
            if loop.is_closed():
                raise RuntimeError("Event loop is closed")
            self.server_coro = self._create_server()
            self.server = server = loop.run_until_complete(self.server_coro)
        except Exception as error:
            self._thread_exception = error
            if self._given_loop is None:
                loop.close()
            ready_event.set()
            return
        try:
            if not self._stop_asked:
                loop.call_soon(ready_event.set)
                loop.run_forever()
        finally:
            self.server = None
            loop.run_until_complete(self._wind_up(server))
            loop.close()

    async def _wind_up(self, server: Server) -> None:
        """Leaves nothing behind in a loop that is about to be closed."""
        await self._guests.end(server)
        house_of(self.loop).tell()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_WAIT)
        await self.loop.shutdown_asyncgens()

    def stop(self, no_assert: bool = False, *, grace: float | None = None) -> Any:
        """Stops accepting, lets messages under way finish, ends the loop with all its tasks, and joins the thread.

        Connections that are idle are closed at once, those with a message under way when that is done, within
        ``grace`` seconds (``self.grace`` by default; 0 waits for nobody). Closes the loop. Raises
        ``AssertionError`` if there was no ``start()``, unless ``no_assert``.

        In a running loop the result may be awaited, and need not: all is done when this returns.
        """
        assert no_assert or self._thread is not None, "SMTP daemon not running"
        if self._thread is not None:
            self._stop_asked = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended by itself
                self.loop.call_soon_threadsafe(self._leave, self.grace if grace is None else grace)
            self._thread.join()
            self._thread = None
            self._cleanup()
        return _done()

    def _leave(self, grace: float) -> None:
        if self.server is not None:  # else _run has not come so far, or is past it
            self._leaving = self.loop.create_task(self._drain_and_end(grace))

    async def _drain_and_end(self, grace: float) -> None:
        try:
            assert self.server is not None
            await self._guests.leave(self.server, grace)
        finally:
            self.cancel_tasks()


def _ready_timeout(parameter: float) -> float:
    for name in _TIMEOUT_VARIABLES:
        text = os.environ.get(name)
        if text is not None:
            try:
                seconds = float(text)
            except ValueError:
                seconds = math.nan
            if not 0 <= seconds <= threading.TIMEOUT_MAX:
                raise ValueError(f'{name} is "{text}"; set it to a number of seconds')
            return seconds
    return float(parameter)


class BaseUnthreadedController(BaseController, metaclass=ABCMeta):
    """Serves in a loop that the program runs.

    Either in a loop that runs, with ``await start()`` and ``await stop()`` or with ``async with``; or in one that
    does not run yet, with ``begin()`` before and ``end()`` after. ``ended`` is set when ``end()`` is through.
    """

    def __init__(self, handler: Any, loop: asyncio.AbstractEventLoop | None = None, **kwargs: Any) -> None:
        super().__init__(handler, loop, **kwargs)
        self.ended = threading.Event()
        self._finalizing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serves in the running loop, from now on.

        Raises ``OSError`` if the address cannot be had, whatever ``factory()`` raised, ``RuntimeError`` if that
        made nothing or if another loop was given, ``AssertionError`` if it serves already.
        """
        await self._open()

    async def stop(self, no_assert: bool = False, *, grace: float | None = None) -> None:
        """Stops accepting, lets messages under way finish for at most ``grace`` seconds, and ends all connections.

        ``self.grace`` by default. The loop and its other tasks go on. Raises ``AssertionError`` if it does not
        serve, unless ``no_assert``.
        """
        if self.server is None and no_assert:
            return
        await self._serve_no_more(grace)

    def begin(self) -> None:
        """Listens; connections wait until the loop is run, which is left to the program.

        Raises what ``start()`` raises, and ``RuntimeError`` if the loop runs.
        """
        if _a_loop_runs():
            raise RuntimeError("This event loop is already running; use `await controller.start()`")
        self._leave_used_loop()
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._open())

    async def finalize(self) -> None:
        """What ``end()`` does: as ``stop()``, then sets ``ended``."""
        self.ended.clear()
        await self._serve_no_more(None)
        self.ended.set()

    def end(self) -> None:
        """Stops serving: at once if the loop is not running, else as a task; ``ended`` is set when it is done.

        Only for the loop's own thread; from elsewhere, ``loop.call_soon_threadsafe(controller.end)``.
        """
        self.ended.clear()
        if self.loop.is_running():
            self._finalizing = self.loop.create_task(self.finalize())
        else:
            self.loop.run_until_complete(self.finalize())


class InetMixin(BaseController, metaclass=ABCMeta):
    """Listens on TCP.

    ``hostname`` is a name or an address: ``None`` is ``get_localhost()``, ``""`` is every address of both families.
    With ``port`` 0 the kernel picks one, the same for all addresses; ``self.port`` is the real one once it serves.
    """

    def __init__(
        self,
        handler: Any,
        hostname: str | None = None,
        port: int = 8025,
        loop: asyncio.AbstractEventLoop | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(handler, loop, **kwargs)
        self._localhost = get_localhost()
        self.hostname: str = self._localhost if hostname is None else hostname
        self.port = port

    async def _create_server(self) -> Server:
        listeners = await listen(self.loop, self.hostname, self.port)
        self.port = listeners[0].socket.getsockname()[1]
        return self._serve(listeners)


class UnixSocketMixin(BaseController, metaclass=ABCMeta):
    """Listens on a UNIX socket. A socket file that is there is replaced, and removed at the end."""

    def __init__(
        self,
        handler: Any,
        unix_socket: str | Path,
        loop: asyncio.AbstractEventLoop | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(handler, loop, **kwargs)
        self.unix_socket = str(unix_socket)

    async def _create_server(self) -> Server:
        return self._serve(listen_unix(self.unix_socket))


class Controller(InetMixin, BaseThreadedController):
    """Serves on TCP, in a thread."""


class UnixSocketController(UnixSocketMixin, BaseThreadedController):
    """Serves on a UNIX socket, in a thread."""


class UnthreadedController(InetMixin, BaseUnthreadedController):
    """Serves on TCP, in a loop that the program runs."""


class UnixSocketUnthreadedController(UnixSocketMixin, BaseUnthreadedController):
    """Serves on a UNIX socket, in a loop that the program runs."""
