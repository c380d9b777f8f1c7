"""A worker: takes mail on given sockets, in one process and one event loop.

Knows what its connections share, whether it holds its part of them, the coarse clock, and how to leave. Refuses to know
where sockets, processes and settings come from.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import inf
from operator import methodcaller
from typing import TYPE_CHECKING, cast

from fastsmtp._engine import Counters, Engine
from fastsmtp._rules import Book, Rules
from fastsmtp.accepting import Accepting
from fastsmtp.block import HEARTBEAT
from fastsmtp.certificate import tls_context
from fastsmtp.children import END_NOW, STRAYS, WorkerContext, ignore, note_stray
from fastsmtp.connection import Connection, Site, expire_all, to_each
from fastsmtp.hooks import Plan
from fastsmtp.logs import Outlet
from fastsmtp.maillog import MailLog
from fastsmtp.replies import native
from fastsmtp.sockets import close as close_listeners
from fastsmtp.spills import Spilling, Spills

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

    from fastsmtp._core import Dialogue
    from fastsmtp._stream import Stream
    from fastsmtp.config import Config
    from fastsmtp.sinks.base import Sink
    from fastsmtp.sockets import Listener

log = logging.getLogger("fastsmtp")

# Connections are short where this many times those that are open have come lately.
_SHORT = 4

# While draining: how often to look, and how long a client may stay silent between messages before it is told.
_DRAIN_STEP = 0.05
_DRAIN_SILENCE = 1.0

# At the end: turns of the loop that closed transports get to go, and seconds that handle_DISCONNECT hooks get.
_TURNS_TO_GO = 10
_GOODBYES = 1.0

_FIRST = asyncio.FIRST_COMPLETED


class Worker:
    """Serves ``listeners`` with a handler or a sink. Made by ``start``; ends with ``close`` or ``drain``.

    ``loads`` gives the connections that each worker on these sockets holds, this one included. ``tls`` is for a
    context that is not made of the configuration. ``connection`` and ``book`` are for another interface: what is
    made for each client, and what makes the replies it gives.
    """

    def __init__(
        self,
        config: Config,
        listeners: Sequence[Listener],
        *,
        handler: object | None = None,
        sink: Sink | None = None,
        counters: Counters | None = None,
        loads: Callable[[], Sequence[int]] | None = None,
        tls: ssl.SSLContext | None = None,
        connection: type[Connection] = Connection,
        book: Callable[..., Book] = native,
    ) -> None:
        self._config = config
        self._listeners = list(listeners)
        self._sink = sink
        self._loads = loads
        self._tls = tls or tls_context(config)
        self._connection = connection
        self._executor = ThreadPoolExecutor(config.blocking_threads, thread_name_prefix="fastsmtp-blocking")
        self._ticking: asyncio.TimerHandle | None = None
        self._closed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._accepting = Accepting(self._loop, self._begin, self._crowded if loads is not None else None)
        self._left = False
        self._lately = 0  # connections that came: half as many count with each tick
        keeps = sink is not None and sink.keeps
        plan = Plan(handler, deliver=_deliver(sink) if sink and keeps else None, discard=sink is not None)
        rules = Rules(
            book=book(
                config.hostname,
                max_message_size=config.max_message_size,
                smtputf8=config.smtputf8,
                starttls=self._tls is not None,
            ),
            hooks=plan.mask,
            max_message_size=config.max_message_size,
            max_recipients=config.max_recipients,
            max_command_line=config.max_command_line,
            max_line_length=config.max_line_length,
            max_errors=config.max_errors,
            max_junk_commands=config.max_junk_commands,
            min_data_rate=config.min_data_rate,
            addresses=config.addresses,
            bare_newline=config.bare_newline,
            smtputf8=config.smtputf8,
            starttls=self._tls is not None,
            require_starttls=config.require_starttls,
            idle_timeout=config.idle_timeout,
            transaction_timeout=config.transaction_timeout,
            handler_timeout=config.handler_timeout,
            log_mail=MailLog.wanted(config.log_mail),
        )
        self._spills = Spills(config.spill_directory, self._loop)
        self._engine = Engine(
            rules=rules,
            counters=counters,
            open_spill=self._open_spill,
            spill_threshold=config.spill_threshold,
            memory_budget=config.memory_budget,
        )
        self._site = Site(
            plan,
            self._loop,
            hostname=config.hostname,
            queues=keeps,
            executor=self._executor,
            tls=self._tls,
            tls_timeout=config.tls_handshake_timeout,
            mail=MailLog(self._loop, config.log_format),
        )
        # Deadlines are kept to a quarter of the shortest, and to a second.
        timeouts = (
            config.idle_timeout,
            config.transaction_timeout,
            config.handler_timeout,
            config.worker_timeout or inf,
        )
        self._tick_interval = min(1.0, *(timeout / 4 for timeout in timeouts))

    @property
    def addresses(self) -> list[str]:
        """Where this worker listens, with the real ports: ``HOST:PORT`` or ``unix:PATH``."""
        return [listener.address for listener in self._listeners]

    @property
    def sockets(self) -> list[socket.socket]:
        """The listening sockets."""
        return [listener.socket for listener in self._listeners]

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._engine.live)

    # --- accepting ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Opens the sink and accepts. Raises ``ConfigError``."""
        if self._sink is not None:
            with self._config.naming("deliver"):
                await self._sink.open()
        self._engine.now = time.monotonic()
        self._tick()
        self._accepting.add(self._listeners)

    async def listen(self, listeners: Sequence[Listener]) -> None:
        """Accepts on more sockets, once it has started. At its end they are closed."""
        if self._left:
            close_listeners(listeners)
            return
        self._listeners += listeners
        self._accepting.add(listeners)

    def _begin(self, stream: Stream, tls: bool) -> None:
        self._lately += 1
        connection = self._connection(self._engine, self._site, tls)
        if tls:
            connection.session.peer = stream.get_extra_info("peername")
            stream.begin(connection, self._tls, self._config.tls_handshake_timeout)
        else:
            stream.begin(connection)

    def _crowded(self) -> bool:
        """Whether this worker took more than its share of connections that stay.

        All workers wait on the same sockets, and the kernel tends to wake the same one: without this, 400
        connections a millisecond apart were spread 189, 128, 80 and 3 over four workers. Short connections are
        best left like that: each goes to a worker that is idle, and who is seldom idle wakes seldom.
        """
        assert self._loads is not None
        live = len(self._engine.live)
        if live < 2 or self._lately > _SHORT * live:
            return False
        loads = self._loads()
        return len(loads) > 1 and live > sum(loads) / len(loads) * 17 / 16 + 1

    # --- time -----------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        try:
            self._lately //= 2
            Outlet.drain_all()
            expire_all(self._engine.tick(time.monotonic()), self._site.noise)
        finally:  # without the next tick there is no deadline, and the supervisor kills this worker as hung
            self._ticking = self._loop.call_later(self._tick_interval, self._tick)

    # --- storing --------------------------------------------------------------------------------------------

    def _open_spill(self, dialogue: Dialogue, beginning: bytes) -> Spilling:
        head = b""
        if self._sink is not None:
            connection = cast("Connection", dialogue)
            connection.know_peer()
            assert dialogue.envelope is not None
            head = self._sink.head(dialogue.session, dialogue.envelope, beginning)
        return self._spills.open(dialogue, head)

    # --- leaving --------------------------------------------------------------------------------------------

    async def drain(self, patience: float) -> None:
        """Stops accepting, lets messages under way finish for at most ``patience`` seconds, and closes.

        A client is told 421 4.3.2 at its next command, unless that is for a message it has begun or for its
        first; one that is silent between two messages, after a second.
        """
        self.leave()
        self._engine.draining = True
        began = self._loop.time()
        while self._engine.live and self._loop.time() - began < patience:
            if self._loop.time() - began >= _DRAIN_SILENCE:
                self._shut_down([dialogue for dialogue in self._engine.live if dialogue.quiet])
            await asyncio.sleep(_DRAIN_STEP)
        await self.close()

    def leave(self) -> None:
        """Stops accepting, as ``drain`` and ``close`` do first."""
        self._left = True
        self._accepting.take_waiting()
        self._accepting.stop()
        # While this worker holds them open, clients wait in a queue that nobody looks at once all others are closed.
        close_listeners(self._listeners)

    async def close(self) -> None:
        """Stops accepting and ends all connections at once: each is told 421 4.3.2."""
        self.leave()
        if self._sink is not None:
            # A message that the sink has may be safe already: its client gets the reply first.
            self._shut_down([dialogue for dialogue in self._engine.live if not dialogue.asked])
            await self._sink.close()
            await asyncio.sleep(0)
        rest = list(self._engine.live)
        self._shut_down(rest)
        await asyncio.sleep(0)  # what was closed gets its turn to go
        to_each(rest, methodcaller("abort"), "abort", self._site.noise)
        for _ in range(_TURNS_TO_GO):
            if self._engine.live:
                await asyncio.sleep(0)
        if self._site.goodbyes:
            await asyncio.wait(self._site.goodbyes, timeout=_GOODBYES)
        if self._ticking is not None:
            self._ticking.cancel()
            self._engine.counters.set(HEARTBEAT, 0)
        self._site.noise.tell()
        if self._site.mail is not None:
            self._site.mail.tell()
        self._accepting.close()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._closed.set()

    def _shut_down(self, dialogues: Sequence[Dialogue]) -> None:
        to_each(dialogues, methodcaller("shut_down"), "shut down", self._site.noise)

    async def serve_forever(self) -> None:
        """Waits until the worker is closed; if cancelled, closes it."""
        try:
            await self._closed.wait()
        finally:
            if not self._closed.is_set():
                await self.close()

    async def __aenter__(self) -> Worker:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _deliver(sink: Sink) -> Callable[..., object]:
    """A sink as the call that answers DATA."""
    return lambda connection, argument, options: sink.deliver(connection.session, connection.envelope)


def event_loop(config: Config) -> asyncio.AbstractEventLoop:
    """A new event loop of the kind that the configuration names."""
    if config.loop == "uvloop":
        import uvloop  # only where it is wanted: it is the largest import of all

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


async def live(
    open_worker: Callable[[], Awaitable[Worker]], context: WorkerContext, drain_timeout: float
) -> None:
    """The life of a worker in the running loop of its process: opened, reported as ready, ended when told.

    ``open_worker`` gives one that accepts. SIGTERM, or the end of the supervisor, drains it, which takes at
    most ``drain_timeout`` seconds; ``children.END_NOW`` closes it at once. Signals that come later are ignored.
    Cancelled, this lets go of the worker, and the signals have their default actions.
    """
    loop = asyncio.get_running_loop()
    leave, now = loop.create_future(), loop.create_future()
    strays = [number for number in STRAYS if signal.getsignal(number) is ignore]
    handled = (signal.SIGTERM, END_NOW, *strays)
    loop.add_signal_handler(signal.SIGTERM, _tell, leave)
    loop.add_signal_handler(END_NOW, _tell, now)
    for number in strays:
        loop.add_signal_handler(number, note_stray, number)
    loop.add_reader(context.lifeline, _tell, leave)
    try:
        worker = await open_worker()
        context.ready()
        await asyncio.wait({leave, now}, return_when=_FIRST)
    except BaseException:
        _give_back(loop, handled, signal.SIG_DFL)
        raise
    finally:
        loop.remove_reader(context.lifeline)
    worker.leave()
    context.leaving()
    draining = loop.create_task(worker.drain(drain_timeout))
    await asyncio.wait({draining, now}, return_when=_FIRST)
    if not draining.done():
        draining.cancel()
        await worker.close()
    # asyncio closes the descriptor that its handlers write to before it takes them away.
    _give_back(loop, handled, signal.SIG_IGN)


def _give_back(loop: asyncio.AbstractEventLoop, numbers: Sequence[int], action: signal.Handlers) -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        loop.remove_signal_handler(number)
        signal.signal(number, action)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _tell(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def run_worker(
    config: Config,
    listeners: Sequence[Listener],
    context: WorkerContext,
    *,
    make_handler: Callable[[], object | None],
    make_sink: Callable[[], Sink | None],
    loads: Callable[[], Sequence[int]] | None,
) -> int:
    """The life of a worker process, from after the fork to its exit status.

    SIGTERM, or the end of the supervisor, drains; ``children.END_NOW`` ends at once. Raises
    ``ConfigError``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all; the supervisor decides

    async def open_worker() -> Worker:
        worker = Worker(
            config,
            listeners,
            handler=make_handler(),
            sink=make_sink(),
            counters=Counters(context.slot),
            loads=loads,
        )
        await worker.start()
        gc.collect()
        gc.freeze()  # what lives for the process need not be looked at again, nor its pages copied
        return worker

    with asyncio.Runner(loop_factory=partial(event_loop, config)) as runner:
        runner.run(live(open_worker, context, config.drain_timeout))
    return 0
