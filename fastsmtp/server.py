"""A server that asks one callback for each message: bonzo's ``SMTPServer``.

Knows ports, processes, loops that run already and loops that do not yet. Refuses to know what a request is, and who
accepts connections: that is a worker's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from fastsmtp import forking, reloading, sockets
from fastsmtp._engine import Counters
from fastsmtp.certificate import tls_context
from fastsmtp.config import Config
from fastsmtp.errors import ConfigError
from fastsmtp.exporter import serve_pages
from fastsmtp.replies import bonzo
from fastsmtp.requests import Hooked, RequestCallback, Requests, SMTPConnection
from fastsmtp.requests import SMTPRequest as SMTPRequest
from fastsmtp.sockets import Listener, ListenError
from fastsmtp.worker import Worker

__all__ = ["CRLF", "SMTPConnection", "SMTPRequest", "SMTPServer"]

CRLF = "\r\n"

log = logging.getLogger("fastsmtp")

# Settings that say here what a method or an argument says, or what the program itself decides.
_ELSEWHERE = {
    "listen": "listen() and bind() say where",
    "workers": "start() says how many processes",
    "handler": "the request callback takes the mail",
    "deliver": "the request callback takes the mail",
    "log_level": "logging is the program's",
    "loop": "the program chooses its loop",
}
_SSL_OPTIONS = frozenset({"ssl_version", "certfile", "keyfile", "cert_reqs", "ca_certs", "ciphers"})


class SMTPServer:
    """Takes mail, and calls ``request_callback`` with an ``SMTPRequest`` for each message.

    The callback is an ``Application``, or any callable, plain or async, that finishes the request, now or later.
    ``ssl_options``, an ``ssl.SSLContext`` or a mapping with ``certfile``, ``keyfile``, ``ca_certs``, ``cert_reqs``,
    ``ciphers``, is for TLS from the first octet; ``tls_certificate`` offers STARTTLS. ``settings`` are those of
    docs/configuration.md, but for what has a method here. ``max_buffer_size``, in bytes, is ``max_message_size``,
    unless that is given; ``read_chunk_size`` means nothing.

    Raises ``ConfigError`` for settings, and for a callback or a handler whose methods cannot be called;
    ``OSError`` and ``ValueError`` for TLS options that cannot be used.
    """

    def __init__(
        self,
        request_callback: RequestCallback,
        ssl_options: ssl.SSLContext | Mapping[str, Any] | None = None,
        max_buffer_size: int | None = None,
        read_chunk_size: int | None = None,
        **settings: Any,
    ) -> None:
        for key, why in _ELSEWHERE.items():
            if key in settings:
                raise ConfigError(f'"{key}" is no setting of an SMTPServer: {why}')
        if max_buffer_size is not None:
            settings.setdefault("max_message_size", max_buffer_size)
        self.request_callback = request_callback
        self._hooks()  # what cannot be called is found here, and not by the first client
        self._config = Config.of(**settings)
        self._tls = _context(ssl_options)
        if self._tls is not None and tls_context(self._config) is not None:
            raise ConfigError(
                "ssl_options is for TLS from the first octet, tls_certificate for STARTTLS: give one"
            )
        self._listeners: list[Listener] = []
        self._bound: list[Listener] = []  # wait for start()
        self._child: forking.Child | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beginning: asyncio.Handle | None = None
        self._task: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._worker: Worker | None = None
        self._stopped = False
        self._waiting = 0  # how many wait for the end
        self._over = asyncio.Event()
        self._failure: Exception | None = None

    # --- where ----------------------------------------------------------------------------------------------

    def listen(
        self,
        port: int | str,
        address: str | None = None,
        family: int = socket.AF_UNSPEC,
        backlog: int | None = None,
        flags: int | None = None,
        reuse_port: bool = False,
    ) -> None:
        """Takes mail on a port, 0 for a free one: in the running loop, or in the current one as soon as that runs.

        May be called again. ``address`` is a name or an IP address; without one it is every address of the machine.
        ``backlog`` connections may wait. ``reuse_port`` lets other processes bind the port too. ``flags`` means
        nothing. Raises ``OSError``.
        """
        self._serve_on(self._made(port, address, family, backlog, reuse_port))

    def bind(
        self,
        port: int | str,
        address: str | None = None,
        family: int = socket.AF_UNSPEC,
        backlog: int | None = None,
        flags: int | None = None,
        reuse_port: bool = False,
    ) -> None:
        """As ``listen``, but takes mail only after ``start``."""
        self._bound += self._made(port, address, family, backlog, reuse_port)

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Takes mail on sockets that are bound; from now on they are the server's, who closes them."""
        tls = self._tls is not None
        self._serve_on([Listener(sock, _address_of(sock), tls) for sock in sockets])

    def add_socket(self, socket: socket.socket) -> None:
        """As ``add_sockets``, for one."""
        self.add_sockets([socket])

    @property
    def addresses(self) -> list[str]:
        """Where the server listens, with the real ports: ``HOST:PORT`` or ``unix:PATH``."""
        return [listener.address for listener in self._listeners + self._bound]

    @property
    def sockets(self) -> list[socket.socket]:
        """The listening sockets."""
        return [listener.socket for listener in self._listeners + self._bound]

    def _made(
        self, port: int | str, address: str | None, family: int, backlog: int | None, reuse_port: bool
    ) -> list[Listener]:
        backlog = self._config.backlog if backlog is None else backlog
        if reuse_port or family != socket.AF_UNSPEC:
            return self._made_alike(int(port), address, family, backlog, reuse_port)
        host = f"[{address}]" if address and ":" in address else address or "*"
        try:
            made = sockets.bind([f"{'tls:' if self._tls else ''}{host}:{port}"], backlog, option="port")
        except ListenError as error:
            cause = error.__context__
            raise OSError(getattr(cause, "errno", None), str(error)) from None
        return made

    def _made_alike(
        self, port: int, address: str | None, family: int, backlog: int, reuse_port: bool
    ) -> list[Listener]:
        made: list[Listener] = []
        kind, passive = socket.SOCK_STREAM, socket.AI_PASSIVE
        found = socket.getaddrinfo(address or None, port, family, kind, flags=passive)
        try:
            for each, _, _, _, name in dict.fromkeys(found):
                sock = socket.create_server(
                    (str(name[0]), port), family=each, backlog=backlog, reuse_port=reuse_port
                )
                sock.setblocking(False)
                port = sock.getsockname()[1]
                made.append(Listener(sock, _address_of(sock), self._tls is not None))
        except BaseException:
            sockets.close(made)
            raise
        return made

    # --- when -----------------------------------------------------------------------------------------------

    def start(self, num_processes: int | None = 1, max_restarts: int | None = None) -> None:
        """Takes mail where ``bind`` said: in this process, or in as many as are asked for, 0 for one per CPU.

        With more than one it forks, and returns in each child, where the current loop, made on uvloop if there is
        none, serves as soon as it runs: by ``run_forever()``, or by ``await serve_forever()`` in ``asyncio.run``.
        ``metrics`` is then served, too, by one process for all. The parent never returns: it watches the others, and
        replaces those that crash, ``max_restarts`` times. SIGTERM drains and ends them all. To be called
        in the main thread before there is a loop.

        Raises ``RuntimeError`` if that is not so or nothing was bound, and ``ValueError`` for such numbers.
        """
        if not self._bound:
            raise RuntimeError("bind() says where, and start() serves there")
        page = self._metrics_page() if num_processes != 1 else []
        self._child = forking.start(
            num_processes,
            max_restarts,
            drain_timeout=self._config.drain_timeout,
            on_stop=partial(sockets.close, self._bound),
            exporter=partial(serve_pages, page, self._bound) if page else None,
            worker_timeout=self._config.worker_timeout,
        )
        sockets.close(page)
        bound, self._bound = self._bound, []
        self._serve_on(bound)

    def _metrics_page(self) -> list[Listener]:
        if self._config.metrics is None:
            return []
        return sockets.bind([self._config.metrics], 128, option="metrics")

    def _serve_on(self, listeners: list[Listener]) -> None:
        if self._stopped:
            sockets.close(listeners)
            raise RuntimeError("the server was stopped")
        self._listeners += listeners
        if self._loop is None:
            self._attach(forking.event_loop())
        elif self._worker is not None:
            self._loop.create_task(self._worker.listen(listeners))

    def _attach(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._beginning is not None:
            self._beginning.cancel()
        self._loop = loop
        # Not a task yet: in a loop that never runs it would be complained about.
        self._beginning = loop.call_soon(self._begin)

    def _begin(self) -> None:
        assert self._loop is not None
        if self._stopped:
            self._over.set()
        elif self._child is not None:
            if self._reloads:
                log.warning("autoreload is for one process: this one, of several, does not look at its code")
            self._task = self._child.attach(self._open, stop=self._ended)
        else:
            self._task = self._loop.create_task(self._serve())

    async def _serve(self) -> None:
        watching = asyncio.create_task(self._reload()) if self._reloads else None
        try:
            # Cancelled, as asyncio.run does at its end with all tasks, it tells its clients.
            await (await self._open()).serve_forever()
        except Exception as error:
            self._failure = error
            sockets.close(self._listeners)
            log.error("cannot serve: %s", error, exc_info=error)
        finally:
            if watching is not None:
                watching.cancel()
            self._over.set()

    async def _open(self) -> Worker:
        child = self._child
        listeners = list(self._listeners)
        worker = Worker(
            self._config,
            listeners,
            handler=self._hooks(),
            counters=Counters(child.slot) if child is not None else None,
            loads=child.loads if child is not None else None,
            tls=self._tls,
            connection=SMTPConnection,
            book=bonzo,
        )
        await worker.start()
        self._worker = worker
        if self._stopped:
            self._leave()
        await worker.listen(self._listeners[len(listeners) :])
        return worker

    def _hooks(self) -> Requests:
        callback = self.request_callback
        return callback.hooks() if isinstance(callback, Hooked) else Requests(callback)

    @property
    def _reloads(self) -> bool:
        return isinstance(self.request_callback, Hooked) and self.request_callback.autoreload

    async def _reload(self) -> None:
        log.info("%s has changed: the program starts again", await reloading.changed())
        if self._worker is not None:
            await self._worker.close()
        reloading.restart()

    # --- the end --------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Accepts no more, and lets messages under way finish, for at most ``drain_timeout`` seconds: in the
        background, and ``wait_closed`` waits for it. May be called again, and from any thread.
        """
        if self._stopped:
            return
        self._stopped = True
        loop, worker = self._loop, self._worker
        sockets.close(self._bound)
        if worker is None:
            sockets.close(self._listeners)
        if loop is None or loop.is_closed():
            return
        if worker is not None and not _runs_elsewhere(loop):
            worker.leave()
        loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        if self._worker is not None and self._leaving is None:
            assert self._loop is not None
            self._leaving = self._loop.create_task(self._end(self._worker.drain(self._config.drain_timeout)))

    async def _end(self, worker_ends: Coroutine[Any, Any, None]) -> None:
        await worker_ends
        if self._child is not None and self._task is not None and not self._over.is_set():
            self._task.cancel()  # it would wait for the supervisor to end the worker
            await asyncio.wait({self._task})
            self._ended()

    def _ended(self) -> None:
        """The end of a child's worker: those who wait go on, else there is nothing to run the loop for."""
        self._over.set()
        if not self._waiting:
            asyncio.get_running_loop().stop()

    async def close(self) -> None:
        """Accepts no more, and ends all connections at once: each is told 421."""
        if self._worker is None:
            self.stop()
        else:
            self._stopped = True
            sockets.close(self._bound)
            with self._awaited():
                await self._end(self._worker.close())
        await self.wait_closed()

    async def wait_closed(self) -> None:
        """Waits until the server was stopped and all its connections are gone."""
        if self._beginning is not None:
            with self._awaited():
                await self._over.wait()

    @contextlib.contextmanager
    def _awaited(self) -> Iterator[None]:
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def serve_forever(self) -> None:
        """Serves until the server was stopped and all its connections are gone; if cancelled, closes it.

        Raises ``RuntimeError`` if it is to serve nowhere or serves in another loop, and what kept it from serving.
        """
        loop = asyncio.get_running_loop()
        if self._task is None and self._loop not in (None, loop):
            self._attach(loop)
        if self._loop is not loop:
            raise RuntimeError("the server is to listen somewhere, and in one loop, before it serves")
        try:
            await self.wait_closed()
        except asyncio.CancelledError:
            await self.close()
            raise
        if self._failure is not None:
            raise self._failure


def _runs_elsewhere(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is not loop
    except RuntimeError:
        return loop.is_running()


def _address_of(sock: socket.socket) -> str:
    name = sock.getsockname()
    if isinstance(name, tuple):
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"unix:{name}"


def _context(options: ssl.SSLContext | Mapping[str, Any] | None) -> ssl.SSLContext | None:
    if options is None or isinstance(options, ssl.SSLContext):
        return options
    if unknown := options.keys() - _SSL_OPTIONS:
        raise ValueError(f"ssl_options knows {sorted(_SSL_OPTIONS)}, not {sorted(unknown)}")
    context = ssl.SSLContext(options.get("ssl_version", ssl.PROTOCOL_TLS_SERVER))
    if "certfile" in options:
        context.load_cert_chain(options["certfile"], options.get("keyfile"))
    if "cert_reqs" in options:
        context.verify_mode = options["cert_reqs"]
    if "ca_certs" in options:
        context.load_verify_locations(options["ca_certs"])
    if "ciphers" in options:
        context.set_ciphers(options["ciphers"])
    return context
