"""The supervisor: forks the workers, watches them, replaces the dead, and ends them all in order.

Knows processes, signals and pipes. Refuses to know SMTP, sockets and what a worker does: ``run_worker`` is a
function that serves until SIGTERM, and another may be the body of the exporter. It has one thread and no
event loop, because fork is safe with neither.

How it hears of things:

* Signals. Handlers only queue the number; a byte in the wake-up pipe ends the wait in ``poll``. One SIGCHLD
  may stand for several deaths, so each child is asked about by its pid (never "any child": the host of the
  library may have children of its own). A pid is ours until ``waitpid`` has told of its end, so no signal of
  ours can hit a stranger that got the number anew.
* A status pipe for each child: one byte when the worker accepts. A worker that dies before that byte met a
  fault that the next one will most likely meet too.
* The lifeline, a pipe that nobody writes to. The supervisor alone holds its write end, so all children read
  EOF when the supervisor is gone, even by SIGKILL.
"""

import contextlib
import logging
import os
import selectors
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from types import FrameType

from fastsmtp.block import Block
from fastsmtp.errors import ConfigError

log = logging.getLogger(__name__)

# What a worker gets instead of a second SIGTERM: systemd, by default, and `pkill` send SIGTERM to the
# supervisor and to its workers, which must not take that and the supervisor's own for two.
END_NOW = signal.SIGQUIT

# So often a replacement that died before it could accept is tried again.
RETRIES = 5

# What comes through a status pipe; a complaint must fit into the pipe as a whole.
_READY = b"\0"
_LONGEST_COMPLAINT = 2048

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
# A terminal sends SIGINT and SIGHUP to the whole process group: the supervisor passes on what they mean.
_CHILD_ACTIONS = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.SIG_IGN,
    signal.SIGHUP: signal.SIG_IGN,
    signal.SIGCHLD: signal.SIG_DFL,
}


@dataclass(frozen=True)
class Timing:
    """How long the supervisor waits, in seconds."""

    backoff: float = 1.0  # before the second replacement in a row; then twice as long each time
    backoff_limit: float = 30.0
    settled: float = 60.0  # who accepted for so long is replaced at once again
    drain_margin: float = 2.0  # beyond the workers' own drain_timeout, before SIGKILL
    grace: float = 1.0  # after the second SIGTERM, before SIGKILL

    def delay(self, failures: int) -> float:
        """How long a place stays empty after ``failures`` deaths in a row, this one not counted."""
        return min(self.backoff * 2.0 ** min(failures - 1, 32), self.backoff_limit) if failures else 0.0


@dataclass
class WorkerContext:
    """What a worker gets from its supervisor.

    ``index`` is its number, from 0. ``slot`` is where it counts (see ``metrics.Block``). ``lifeline`` is a
    descriptor that reads EOF when the supervisor is gone. ``ready`` is called once, when the worker accepts
    and handles SIGTERM.
    """

    index: int
    slot: memoryview
    lifeline: int
    ready: Callable[[], None]


class Departure(BaseException):
    """Raised by ``run_worker``: takes the child back out of ``Supervisor.run``, to whoever called that.

    There it is a process of its own, with a worker's signal actions, what its ``context`` names, and nothing
    else of the supervisor's. Not an ``Exception``: nothing on the way may take it for a fault.
    """

    def __init__(self, context: WorkerContext) -> None:
        super().__init__(context)
        self.context = context


@dataclass(eq=False)
class _Place:
    """A place to fill: a worker's index, or the exporter."""

    name: str
    index: int | None  # None: the exporter
    current: "_Child | None" = None
    successor: "_Child | None" = None  # in a roll: starts, to take over from current
    due: float = 0.0  # when the next child is to start; inf: not at all
    started: bool = False  # a child was forked here once
    served: bool = False  # a child here was ready once
    failures: int = 0  # deaths in a row, for the back-off
    early: int = 0  # deaths before ready in a row
    given_up: bool = False


@dataclass(eq=False)
class _Child:
    """A process that was forked and whose end ``waitpid`` has not told yet."""

    place: _Place
    pid: int
    slot: int | None  # of the block; None: the exporter
    status: int  # read end of its status pipe; -1: closed
    since: float = inf  # when it was ready
    leaving: bool = False  # was told to end
    deadline: float = inf  # when it is killed
    killed: bool = False
    complaint: str = ""  # what it found wrong with its configuration

    def __str__(self) -> str:
        return f"{self.place.name} (pid {self.pid})"


class Supervisor:
    """Runs ``workers`` processes of ``run_worker`` and keeps them running until SIGTERM or SIGINT.

    ``run_worker`` is called in a forked child and returns its exit status. SIGTERM asks it to drain, which
    takes it at most ``drain_timeout`` seconds; ``END_NOW`` asks it to end now. ``block`` has the same
    number of workers (else ``ValueError``). ``exporter`` is the body of one more child, which the workers do
    not depend on.

    ``on_ready`` is called once, when every worker accepts (or was given up while another accepts).
    ``on_stop`` is called once, before the workers are told to drain: the place to close listening sockets,
    which would stay open here otherwise and take connections that nobody serves.

    SIGHUP rolls the workers: each gets a replacement and, once that accepts, is told to drain.

    Without ``max_restarts``, a worker that fails before any accepts ends all, and a replacement that dies
    before it accepts is given up after ``RETRIES``. With it, every worker that dies is replaced, and after so
    many crashes the next one ends all: the others drain, and the exit status is 1.
    """

    def __init__(
        self,
        run_worker: Callable[[WorkerContext], int],
        *,
        workers: int,
        block: Block,
        drain_timeout: float,
        exporter: Callable[[], None] | None = None,
        on_ready: Callable[[], None] = lambda: None,
        on_stop: Callable[[], None] = lambda: None,
        timing: Timing | None = None,
        max_restarts: float | None = None,
    ) -> None:
        if block.workers != workers:
            raise ValueError(f"the block is for {block.workers} workers, not for {workers}")
        self._run_worker = run_worker
        self._run_exporter = exporter
        self._block = block
        self._drain_timeout = drain_timeout
        self._on_ready = on_ready
        self._on_stop = on_stop
        self._timing = timing or Timing()
        self._max_restarts = max_restarts

        self._workers = [_Place(f"worker {index}", index) for index in range(workers)]
        self._places = self._workers + ([_Place("exporter", None)] if exporter else [])
        self._children: list[_Child] = []
        self._rolling: list[_Place] = []  # those whose child is still to be replaced

        self._signals: deque[int] = deque()
        self._selector = selectors.PollSelector()  # unlike epoll, nothing that a child would share
        self._wakeup = (-1, -1)
        self._lifeline = (-1, -1)
        self._undo = contextlib.ExitStack()

        self._crashes = 0
        self._announced = False
        self._stopping = False
        self._failed = False
        self._complaint = ""

    def run(self) -> int:
        """Forks, watches, and returns the exit status: 0 after an end on request in which no worker failed.

        To be called in the main thread while there is no other. Puts the signal handlers back that it found.
        Raises the ``ConfigError`` of a worker that could not begin, if none could, and, in a child, the
        ``Departure`` that its ``run_worker`` raised.
        """
        with self._undo:
            self._open_pipes()
            self._take_signals()
            self._undo.callback(self._abandon)
            while True:
                self._act_on_signals()
                self._reap()
                self._kill_overdue()
                self._start_due()
                self._roll()
                self._announce()
                if self._stopping and not self._children:
                    if self._complaint and not self._announced:
                        raise ConfigError(self._complaint)
                    return 1 if self._failed else 0
                self._wait()

    # --- what happens ---------------------------------------------------------------------------------------

    def _wait(self) -> None:
        now = time.monotonic()
        soonest = min(
            (*(place.due for place in self._places), *(child.deadline for child in self._children)),
            default=inf,
        )
        for key, _ in self._selector.select(None if soonest == inf else max(0.0, soonest - now)):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeup[0], 4096)
            else:
                self._hear(key.data)

    def _act_on_signals(self) -> None:
        while self._signals:
            number = self._signals.popleft()
            name = signal.Signals(number).name
            if number in (signal.SIGTERM, signal.SIGINT):
                if not self._stopping:
                    log.info("%s: the workers drain, at most %g s", name, self._drain_timeout)
                    self._stop(self._drain_timeout + self._timing.drain_margin)
                else:
                    log.info("%s again: the workers end now", name)
                    for child in self._children:
                        if child.slot is not None:
                            self._terminate(child, self._timing.grace, END_NOW)
            elif number == signal.SIGHUP and not self._stopping:
                log.info("%s: the workers are replaced one after another", name)
                self._rolling = list(self._workers)

    def _hear(self, child: _Child) -> None:
        """Reads the status pipe of ``child``: that it is ready, or why it never will be; EOF tells no reason."""
        if child.status < 0:
            return
        try:
            message = os.read(child.status, _LONGEST_COMPLAINT)
        except BlockingIOError:
            return
        self._close_status(child)
        if message != _READY:
            child.complaint = message.decode()
        else:
            place = child.place
            child.since = time.monotonic()
            place.served = True
            place.early = 0
            if child.slot is not None:
                self._block.note_up(child.slot)
            log.info("%s accepts", child)
            if child is place.successor:
                self._take_over(place)

    def _announce(self) -> None:
        if self._announced or self._stopping:
            return
        if all(place.served or place.given_up for place in self._workers):
            self._announced = True
            self._on_ready()

    def _reap(self) -> None:
        for child in list(self._children):
            try:
                pid, status = os.waitpid(child.pid, os.WNOHANG)
            except ChildProcessError:
                how, clean = "was waited for by another part of this process", False
            else:
                if pid == 0:
                    continue
                how, clean = _describe(status)
            self._hear(child)  # it may have been ready, and died before we looked
            self._close_status(child)
            self._children.remove(child)
            if child.slot is not None:
                self._block.note_down(child.slot)
            how += " before it could accept" if child.since == inf else ""
            how += f": {child.complaint}" if child.complaint else ""
            if child.slot is not None:
                self._complaint = self._complaint or child.complaint
            self._act_on_death(child, f"{child} {how}", clean)

        if self._stopping and all(child.slot is None for child in self._children):
            for child in self._children:  # the exporter shows the drain until its end
                if not child.leaving:
                    self._terminate(child, self._timing.grace)

    def _act_on_death(self, child: _Child, what: str, clean: bool) -> None:
        place = child.place
        if child.leaving or self._stopping:
            if child.slot is not None and not clean:
                self._failed = self._failed or self._stopping
                if child.since < inf and not child.killed:
                    log.warning("%s while it was draining", what)
        elif child is place.successor:
            place.successor = None
            self._rolling.clear()
            log.error("%s; the workers that were not replaced yet go on", what)
        elif place.successor is not None:
            place.current, place.successor = place.successor, None
            self._block.note_restart()
            log.warning("%s; its replacement has been started already", what)
        else:
            place.current = None
            self._refill(place, what, child.since, clean)

    def _refill(self, place: _Place, what: str, since: float, clean: bool = False) -> None:
        """Decides what becomes of an empty place: filled at once or later, given up, or the end of all."""
        early = since == inf and place.index is not None
        if self._max_restarts is not None and place.index is not None:
            self._crashes += early or not clean  # somebody may have sent it a SIGTERM: that is no crash
            if self._crashes > self._max_restarts:
                line = f"{what}; max_restarts={self._max_restarts:g} is used up, so the server ends"
                self._fail(line, self._drain_timeout + self._timing.drain_margin)
                return
        elif early:
            place.early += 1
            if not any(other.served for other in self._workers):
                if self._complaint:
                    self._stop(self._timing.grace)  # run() raises it: that is the one line
                else:
                    self._fail(f"{what}; no worker accepts, so the server ends")
                return
            if place.early > RETRIES:
                place.given_up = True
                left = sum(not other.given_up for other in self._workers)
                what += f", {place.early} times in a row; given up"
                if left:
                    log.error(
                        "%s, %d of %d workers go on; SIGHUP tries again", what, left, len(self._workers)
                    )
                else:
                    self._fail(f"{what}, and no worker is left")
                return
        now = time.monotonic()
        if now - since >= self._timing.settled:
            place.failures = 0
        delay = self._timing.delay(place.failures)
        place.failures += 1
        place.due = now + delay
        log.warning("%s; replaced %s", what, f"in {delay:g} s" if delay else "at once")

    # --- what is done about it ------------------------------------------------------------------------------

    def _start_due(self) -> None:
        for place in self._places:
            if place.due <= time.monotonic() and not self._stopping:
                place.due = inf
                if place.started and place.index is not None:
                    self._block.note_restart()
                place.started = True
                try:
                    place.current = self._fork(place)
                except OSError as error:
                    self._refill(place, f"{place.name} could not be forked ({error})", inf)

    def _stop(self, patience: float) -> None:
        """Tells the workers to drain; kills who is still there after ``patience`` seconds."""
        self._stopping = True
        self._block.note_stopping()
        self._rolling.clear()
        for place in self._places:
            place.due = inf
        self._on_stop()
        for child in self._children:
            if child.slot is not None and not child.leaving:
                self._terminate(child, patience)

    def _fail(self, line: str, patience: float | None = None) -> None:
        log.error("%s", line)
        self._failed = True
        self._stop(self._timing.grace if patience is None else patience)

    def _terminate(self, child: _Child, patience: float, number: signal.Signals = signal.SIGTERM) -> None:
        child.leaving = True
        child.deadline = min(child.deadline, time.monotonic() + patience)
        _kill(child.pid, number)

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.deadline <= now:
                child.deadline = inf
                child.killed = True
                log.warning("%s did not end in time; SIGKILL", child)
                _kill(child.pid, signal.SIGKILL)

    def _abandon(self) -> None:
        """After a fault here or in a callback: no child outlives the supervisor. Else there is none left."""
        for child in self._children:
            _kill(child.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, 0)
            self._close_status(child)
            if child.slot is not None:
                self._block.note_down(child.slot)

    # --- rolling --------------------------------------------------------------------------------------------

    def _roll(self) -> None:
        """Starts the next replacement, if none is starting and its second slot is free."""
        while self._rolling:
            place = self._rolling[0]
            if place.current is not None:
                settled = place.current.since < inf and place.successor is None
                if settled and not any(child.place is place and child.leaving for child in self._children):
                    try:
                        place.successor = self._fork(place)
                    except OSError as error:
                        self._rolling.clear()
                        log.error("%s: no replacement could be forked (%s); it goes on", place.current, error)
                return
            if place.given_up:
                place.given_up = False
                place.early = 0
                place.due = time.monotonic()
            self._rolling.pop(0)  # what is started there next is new anyway

    def _take_over(self, place: _Place) -> None:
        assert place.current is not None
        self._terminate(place.current, self._drain_timeout + self._timing.drain_margin)
        place.current, place.successor = place.successor, None
        self._rolling.remove(place)
        if not self._rolling:
            log.info("all workers are replaced; old ones may still drain")

    # --- processes ------------------------------------------------------------------------------------------

    def _fork(self, place: _Place) -> _Child:
        """Starts a child. Raises ``OSError`` when there are no processes or descriptors left."""
        slot = None
        if place.index is not None:
            taken = {child.slot for child in self._children}
            slot = place.index if place.index not in taken else place.index + len(self._workers)
        status, report = _pipe()
        _flush()
        # Until the child has its own actions, a signal to it would run a copy of our handler, wake us by the
        # pipe that we still share, and be lost to the child.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
        except OSError:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(report)
            os.close(status)
            raise
        if pid == 0:
            self._be_child(place, slot, status, report, mask)
        os.close(report)  # else no EOF would come, and later children would hold it too
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        child = _Child(place, pid, slot, status)
        if slot is None:
            child.since = time.monotonic()  # an exporter is not asked whether it is ready
        self._children.append(child)
        self._selector.register(status, selectors.EVENT_READ, child)
        return child

    def _be_child(self, place: _Place, slot: int | None, status: int, report: int, mask: set[int]) -> None:
        """Never returns: ends the process, unless a ``Departure`` takes it elsewhere."""
        code: int | None = os.EX_SOFTWARE
        ready, complain = _reporter(report)
        try:
            signal.set_wakeup_fd(-1)
            for number, action in _CHILD_ACTIONS.items():
                signal.signal(number, action)
            ours = [*self._wakeup, self._lifeline[1], status, *(child.status for child in self._children)]
            for descriptor in ours:
                if descriptor >= 0:
                    os.close(descriptor)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if slot is None:
                self._be_exporter()
                code = 0
            else:
                assert place.index is not None
                context = WorkerContext(place.index, self._block.slot(slot), self._lifeline[0], ready)
                code = int(self._run_worker(context)) & 0xFF
        except Departure:
            self._undo.pop_all()  # all that run() would undo is the supervisor's
            code = None
            raise
        except ConfigError as error:
            complain(str(error))
            code = os.EX_CONFIG
        except SystemExit as error:
            code = error.code & 0xFF if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            log.exception("%s failed", place.name)
        finally:
            if code is not None:
                try:
                    _flush()
                    logging.shutdown()
                finally:
                    os._exit(code)

    def _be_exporter(self) -> None:
        assert self._run_exporter is not None
        lifeline = self._lifeline[0]

        def follow() -> None:
            with selectors.PollSelector() as selector:
                selector.register(lifeline, selectors.EVENT_READ)
                selector.select()
            os._exit(0)

        threading.Thread(target=follow, daemon=True).start()
        self._run_exporter()

    def _close_status(self, child: _Child) -> None:
        if child.status >= 0:
            self._selector.unregister(child.status)
            os.close(child.status)
            child.status = -1

    # --- set-up ---------------------------------------------------------------------------------------------

    def _open_pipes(self) -> None:
        self._undo.callback(self._selector.close)
        self._wakeup = self._keep(_pipe())
        self._lifeline = self._keep(_pipe())
        os.set_blocking(self._wakeup[1], False)
        self._selector.register(self._wakeup[0], selectors.EVENT_READ, None)

    def _keep(self, pipe: tuple[int, int]) -> tuple[int, int]:
        for descriptor in pipe:
            self._undo.callback(os.close, descriptor)
        return pipe

    def _take_signals(self) -> None:
        def queue(number: int, _: FrameType | None) -> None:
            self._signals.append(number)

        wakeup = signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)
        self._undo.callback(signal.set_wakeup_fd, wakeup)
        for number in _SIGNALS:
            found = signal.signal(number, queue)
            self._undo.callback(signal.signal, number, signal.SIG_DFL if found is None else found)


def _pipe() -> tuple[int, int]:
    """A pipe whose read end does not block."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    return read, write


def _reporter(report: int) -> tuple[Callable[[], None], Callable[[str], None]]:
    """How a worker tells that it is ready, or why it never will be; only the first word counts."""
    pipes = [report]

    def tell(message: bytes) -> None:
        while pipes:
            pipe = pipes.pop()
            with contextlib.suppress(BrokenPipeError):  # the supervisor is gone: the lifeline tells
                os.write(pipe, message)
            os.close(pipe)

    def complain(text: str) -> None:
        tell(text.encode("utf-8", "backslashreplace")[:_LONGEST_COMPLAINT])

    return partial(tell, _READY), complain


def _describe(status: int) -> tuple[str, bool]:
    """How a process ended, by what ``waitpid`` says, and whether that is an end on request."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended with status {code}", code == 0
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = f"signal {-code}"
    return f"was killed by {name}", -code in (signal.SIGTERM, END_NOW)


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # only if another part of this process waited for it
        os.kill(pid, number)


def _flush() -> None:
    """Empties stdio's buffers: a fork copies what is in them, and ``os._exit`` loses it."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
