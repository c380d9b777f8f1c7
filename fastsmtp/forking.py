"""Forking from the middle of a program: the caller goes on in every child, the parent stays a supervisor.

Knows when it is safe to fork, how a child comes back out of the supervisor, and how its worker hangs on the
event loop that the caller runs later. Refuses to know sockets, handlers and the interface that asks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

from fastsmtp._engine import index
from fastsmtp.block import HEARTBEAT, Block
from fastsmtp.children import Departure, WorkerContext
from fastsmtp.errors import ConfigError
from fastsmtp.supervisor import Supervisor, Timing
from fastsmtp.worker import Worker, live

log = logging.getLogger("fastsmtp")

_ACTIVE = index("fastsmtp_connections_active")

# A worker whose event loop ticked no later than so many nanoseconds ago accepts; ticks are due every second.
_PRESENT = 2_000_000_000


@dataclass(frozen=True)
class Child:
    """A worker process, as the caller of ``start`` finds itself in it.

    ``number`` is its place, from 0; a replacement has that of the dead. ``slot`` is where it counts, for
    ``_engine.Counters``. ``loads`` gives the connections that each worker holds; ``None``: there is one.
    """

    number: int
    slot: memoryview
    loads: Callable[[], Sequence[int]] | None
    _context: WorkerContext
    _drain_timeout: float

    def attach(
        self,
        open_worker: Callable[[], Awaitable[Worker]],
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        stop: Callable[[], object] | None = None,
    ) -> asyncio.Task[None]:
        """Has the worker that ``open_worker`` makes and starts live in ``loop``, else in ``event_loop()``.

        The supervisor hears that it accepts. SIGTERM, or the end of the supervisor, drains it, and a second
        SIGTERM there closes it at once; then ``stop`` is called. By default that stops a loop which does not
        run yet, so that ``run_forever`` returns; in one that runs already, who waits for the worker goes on.
        If the worker cannot be opened, ``SystemExit`` leaves the loop. To end the worker otherwise, cancel
        the task and close it.
        """
        if loop is None:
            loop = event_loop()
        if stop is None and not loop.is_running():
            stop = loop.stop
        return loop.create_task(self._live(open_worker, stop))

    async def _live(
        self, open_worker: Callable[[], Awaitable[Worker]], stop: Callable[[], object] | None
    ) -> None:
        try:
            await live(open_worker, self._context, self._drain_timeout)
        except ConfigError as error:
            log.error("%s", error)
            self._exit(os.EX_CONFIG)
        except Exception:
            log.exception("worker %d failed", self.number)
            self._exit(os.EX_SOFTWARE)
        else:
            if stop is not None:
                stop()

    def _exit(self, status: int) -> None:
        # From a callback: in a task it would be reported once more, as an exception that nobody retrieved.
        asyncio.get_running_loop().call_soon(sys.exit, status)


def start(
    num_processes: int | None = 0,
    max_restarts: int | None = None,
    *,
    drain_timeout: float,
    on_ready: Callable[[], None] = lambda: None,
    on_stop: Callable[[], None] = lambda: None,
    exporter: Callable[[Block], None] | None = None,
    timing: Timing | None = None,
    worker_timeout: float = 0.0,
) -> Child | None:
    """Forks ``num_processes`` workers (0 or ``None``: one for each CPU) and returns in each of them.

    The parent never returns: it replaces workers that die, waiting longer each time, drains all on SIGTERM or
    SIGINT, rolls them on SIGHUP, and leaves by ``sys.exit``. When workers crashed more than ``max_restarts``
    times (``None``: no limit), it drains the others and its status is 1. A worker that ends by itself with
    status 0 is replaced too, but has not crashed unless it never accepted. ``drain_timeout`` and ``worker_timeout``
    (seconds), ``on_ready`` and ``on_stop``, both called in the parent, are those of ``Supervisor``; ``exporter``,
    called in a process of its own with the counters of all, is the metrics page.

    With 1 nothing is forked, and the result is ``None``. Raises ``ValueError`` for fewer processes than none,
    and ``RuntimeError`` in another thread than the main one or if there is an event loop already, which
    processes cannot share.
    """
    if num_processes == 1:
        return None
    workers = num_processes or cpus()
    if workers < 0 or (max_restarts is not None and max_restarts < 0):
        raise ValueError("neither num_processes nor max_restarts can be negative")
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("processes can be forked in the main thread only")
    if _current_loop() is not None:
        raise RuntimeError("processes cannot share an event loop; fork them before there is one")
    block = Block(workers)
    supervisor = Supervisor(
        _depart,
        workers=workers,
        block=block,
        drain_timeout=drain_timeout,
        on_ready=on_ready,
        on_stop=on_stop,
        exporter=partial(exporter, block) if exporter is not None else None,
        timing=timing,
        max_restarts=inf if max_restarts is None else max_restarts,
        worker_timeout=worker_timeout,
        ends_process=True,
    )
    try:
        status = supervisor.run()
    except Departure as departure:
        context = departure.context
    else:
        sys.exit(status)
    return Child(context.index, context.slot, loads(block) if workers > 1 else None, context, drain_timeout)


def _depart(context: WorkerContext) -> int:
    raise Departure(context)


def cpus() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def loads(block: Block) -> Callable[[], Sequence[int]]:
    """A function that gives the connections of each worker of ``block`` whose event loop turns, for ``Worker``."""
    slots = [block.slot(number).cast("Q") for number in range(block.slots)]

    def each() -> list[int]:
        # One that hangs must not count: nobody can be as idle as it is, so all others would rest all the time.
        oldest = time.monotonic_ns() - _PRESENT
        return [
            slot[_ACTIVE]
            for up, slot in zip(block.up_since(), slots, strict=True)
            if up and (slot[HEARTBEAT] > oldest or up > oldest)
        ]

    return each


def event_loop() -> asyncio.AbstractEventLoop:
    """The loop that ``asyncio.get_event_loop`` gives; if it has none that is open, from now on a new uvloop."""
    loop = _current_loop()
    if loop is None:
        import uvloop  # only where it is wanted: it is the largest import of all

        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
    return loop


def _current_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs here, or that would be run next; ``None`` if there is none that is open."""
    with contextlib.suppress(RuntimeError):
        return asyncio.get_running_loop()
    # get_event_loop cannot be asked: up to Python 3.11 it makes the loop that it does not find.
    local = getattr(asyncio.get_event_loop_policy(), "_local", None)
    loop: asyncio.AbstractEventLoop | None = getattr(local, "_loop", None)
    return None if loop is None or loop.is_closed() else loop
