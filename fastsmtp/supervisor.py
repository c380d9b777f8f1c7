"""The supervisor: starts the workers, watches them, replaces the dead and the hung, and ends them all in order.

It contains no SMTP, no sockets and nothing of a worker's work: ``run_worker`` is a function that serves until SIGTERM.
It has one thread and no event loop, because fork is safe with neither. ``children`` forks.

Signals only put their number into a queue; a byte in the wake-up pipe ends the wait in ``poll``. One SIGCHLD may stand
for several deaths, so each child is asked about by its pid, never "any child": the program that uses the library may
have children of its own.
"""

import contextlib
import logging
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from types import FrameType

from fastsmtp import children
from fastsmtp.block import Block
from fastsmtp.children import END_NOW, STACKS, STRAYS, Child, Departure, Reporter, WorkerContext, name_of
from fastsmtp.errors import ConfigError
from fastsmtp.logs import Outlet

log = logging.getLogger(__name__)

# So often a replacement that died before it could accept is tried again.
RETRIES = 5

# A worker that has been silent for so many seconds serves nobody: its tick is due every second.
_ABSENT = 3.0

# When this process wakes so many seconds late it was stopped itself, its workers probably as well, by Ctrl-Z for
# example: they get time to show that they go on.
_LATE = 0.25

_STOPS = (signal.SIGTERM, signal.SIGINT)
_SIGNALS = (*_STOPS, signal.SIGHUP, signal.SIGCHLD)


@dataclass(frozen=True)
class Timing:
    """How long the supervisor waits, in seconds."""

    backoff: float = 1.0  # before the second replacement in a row; then twice as long each time
    backoff_limit: float = 30.0
    settled: float = 1.0  # a worker that accepted for so long is replaced at once
    drain_margin: float = 2.0  # beyond the workers' own drain_timeout, before SIGKILL
    grace: float = 1.0  # after the second SIGTERM, or for the stacks of a hung worker, before SIGKILL

    def delay(self, failures: int) -> float:
        """How long a place stays empty after ``failures`` deaths in a row, this one not counted."""
        return min(self.backoff * 2.0 ** min(failures - 1, 32), self.backoff_limit) if failures else 0.0


@dataclass(eq=False)
class _Place:
    """A place to fill: a worker's index, or the exporter."""

    name: str
    index: int | None  # None: the exporter
    current: Child | None = None
    successor: Child | None = None  # in a roll: starts, to take over from current
    due: float = 0.0  # when the next child is to start; inf: not at all
    urgent: float = 0.0  # when it is to start if no worker serves
    started: bool = False  # a child was forked here once
    served: bool = False  # a child here was ready once
    failures: int = 0  # deaths in a row, for the back-off
    early: int = 0  # deaths before ready in a row
    given_up: bool = False


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

    A worker whose heartbeat in ``block`` is older than ``worker_timeout`` seconds (0: for ever) is killed and replaced.
    With ``ends_process`` the caller exits after ``run``: what SIGTERM, SIGINT and SIGHUP mean then is done already, so
    they stay ignored.
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
        worker_timeout: float = 0.0,
        ends_process: bool = False,
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
        self._patience = drain_timeout + self._timing.drain_margin
        self._max_restarts = max_restarts
        self._worker_timeout = worker_timeout or inf
        self._ends_process = ends_process

        self._workers = [_Place(f"worker {index}", index) for index in range(workers)]
        self._places = self._workers + ([_Place("exporter", None)] if exporter else [])
        self._children: dict[Child, _Place] = {}
        self._rolls = 0  # how many have begun
        self._rolling = False

        self._signals: deque[int] = deque()
        self._strays: list[int] = []
        self._selector = selectors.PollSelector()  # unlike epoll, nothing that a child would share
        self._wakeup = (-1, -1)
        self._lifeline = (-1, -1)
        self._undo = contextlib.ExitStack()

        self._crashes = 0
        self._announced = False
        self._stopping = False
        self._hurried = False
        self._failed = False
        self._complaint = ""

    def run(self) -> int:
        """Forks, watches, and returns the exit status: 0 after an end on request in which no worker failed.

        To be called in the main thread while there is no other. Puts the signal handlers back that it found, unless
        the process ends. Raises the ``ConfigError`` of a worker that could not begin, if none could, and, in a child,
        the ``Departure`` that its ``run_worker`` raised.
        """
        with self._undo:
            self._open_pipes()
            self._take_signals()
            self._undo.callback(self._abandon)
            while True:
                self._act_on_signals()
                self._reap()
                self._fill_in()
                self._kill_overdue()
                self._watch()
                self._start_due()
                self._roll()
                self._announce()
                if self._stopping and not self._children:
                    if self._complaint and not self._announced:
                        raise ConfigError(self._complaint)
                    log.info("all workers have ended")
                    return 1 if self._failed else 0
                self._wait()

    # --- what happens ---------------------------------------------------------------------------------------

    def _wait(self) -> None:
        soonest = self._soonest()
        if Outlet.drain_all():
            soonest = min(soonest, time.monotonic() + 1.0)
        for key, _ in self._selector.select(None if soonest == inf else max(0.0, soonest - time.monotonic())):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeup[0], 4096)
            else:
                self._hear(key.data)
        if time.monotonic() - soonest > _LATE:
            for child in self._children:
                child.suspected = inf

    def _soonest(self) -> float:
        """When something is to be done of which no signal and no child tells."""
        now = time.monotonic()
        serves = self._serves
        times = [self._due(place, serves) for place in self._places]
        times += [child.deadline for child in self._children]
        if any(place.due < inf for place in self._workers):
            times.append(now + _ABSENT / 2)  # do the others still serve?
        for child, slot in self._watched():
            stale = now - self._block.silence(slot) + self._worker_timeout
            times.append(stale if child.suspected == inf else child.suspected + self._timing.grace)
        return min(times, default=inf)

    def _act_on_signals(self) -> None:
        while self._signals:
            number = self._signals.popleft()
            if number in STRAYS:
                children.note_stray(number)
            elif number in _STOPS:
                if not self._stopping:
                    log.info(
                        "%s: the workers drain, at most %g s; a second signal ends them now",
                        name_of(number),
                        self._drain_timeout,
                    )
                    self._stop(self._patience)
                elif not self._hurried:
                    self._hurried = True
                    log.info("%s again: the workers end now", name_of(number))
                    for child in self._children:
                        if child.slot is not None and not child.killed:
                            self._terminate(child, self._timing.grace, END_NOW)
            elif number == signal.SIGHUP and not self._stopping:
                log.info(
                    "SIGHUP: the workers are replaced one after another; "
                    "the configuration is not read again, a restart does that"
                )
                self._rolls += 1
                self._rolling = True
                for place in self._workers:
                    if place.given_up:
                        place.given_up = False
                        place.early = 0
                        place.due = place.urgent = time.monotonic()

    def _hear(self, child: Child) -> None:
        """Reads the status pipe of ``child``. What it says counts unless it was told to end."""
        ready = child.hear() if child.status >= 0 else False
        if ready is None:
            self._close_status(child)
        elif ready:
            place = self._children[child]
            child.since = time.monotonic()
            place.served = True
            place.early = 0
            if not child.leaving:
                if child.slot is not None:
                    self._block.note_up(child.slot)
                log.info("%s accepts", child)

    def _announce(self) -> None:
        if self._announced or self._stopping:
            return
        if all(place.served or place.given_up for place in self._workers):
            self._announced = True
            self._on_ready()

    def _reap(self) -> None:
        dead: list[tuple[Child, _Place, str, bool]] = []
        for child in list(self._children):
            try:
                pid, status = os.waitpid(child.pid, os.WNOHANG)
            except ChildProcessError:
                how, clean = "was waited for by another part of this process", False
            else:
                if pid == 0:
                    continue
                how, clean = children.describe(status)
            self._hear(child)  # it may have been ready, and died before we looked
            self._close_status(child)
            if child.slot is not None:
                self._block.note_down(child.slot)
            how += " before it could accept" if child.since == inf else ""
            how += f": {child.complaint}" if child.complaint else ""
            if child.slot is not None:
                self._complaint = self._complaint or child.complaint
            dead.append((child, self._children.pop(child), f"{child} {how}", clean))
        for each in dead:  # only now it is known who is left
            self._act_on_death(*each)

        if self._stopping and all(child.slot is None for child in self._children):
            for child in self._children:  # the exporter shows the drain until its end
                if not child.leaving:
                    self._terminate(child, self._timing.grace)

    def _act_on_death(self, child: Child, place: _Place, what: str, clean: bool) -> None:
        if child.leaving or self._stopping:
            if child.slot is not None and not clean:
                # One that hung and was killed did not fail to drain.
                self._failed = self._failed or (self._stopping and child.leaving)
                if child.since < inf and not child.killed:
                    log.warning("%s while it was draining", what)
        else:
            self._vacate(child, place, what, clean)

    def _fill_in(self) -> None:
        """Replaces workers that drain though only somebody else has told them to: they accept no more."""
        for child, place in list(self._children.items()):
            if child.drains and not (child.leaving or self._stopping):
                child.leaving = True
                child.deadline = time.monotonic() + self._patience
                self._vacate(
                    child, place, f"{child} drains, and was not told to by its supervisor", clean=True
                )

    def _vacate(self, child: Child, place: _Place, what: str, clean: bool) -> None:
        """Decides what becomes of the place of a child that is dead or drains."""
        if child is place.successor:
            place.successor = None
            self._rolling = False
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
        place.early += early
        if self._max_restarts is not None and place.index is not None:
            self._crashes += early or not clean  # somebody may have sent it a SIGTERM: that is no crash
            if self._crashes > self._max_restarts:
                line = f"{what}; max_restarts={self._max_restarts:g} is used up, so the server ends"
                self._fail(line, self._patience)
                return
        elif early:
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
        place.due = place.urgent = now + delay
        if place.index is not None:
            # The last place waits for nobody, unless it died twice in a row of what the next one will meet, too.
            place.urgent = now + (min(delay, self._timing.backoff) if place.early > 1 else 0.0)
            if not self._serves:
                delay = place.urgent - now
        log.warning("%s; replaced %s", what, f"in {delay:g} s" if delay else "at once")

    # --- what is done about it ------------------------------------------------------------------------------

    @property
    def _serves(self) -> bool:
        """Whether a worker accepts or is about to."""
        return any(
            child.since == inf or self._block.silence(child.slot) < _ABSENT
            for child in self._children
            if child.slot is not None and not child.leaving and not child.killed
        )

    def _due(self, place: _Place, serves: bool) -> float:
        """When the next child of ``place`` is to start, which needs a free slot."""
        if sum(its is place for its in self._children.values()) > 1:
            return inf
        return place.due if serves else min(place.due, place.urgent)

    def _start_due(self) -> None:
        serves = self._serves
        for place in self._places:
            if self._due(place, serves) <= time.monotonic() and not self._stopping:
                place.due = place.urgent = inf
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
        self._rolling = False
        for place in self._places:
            place.due = place.urgent = inf
        self._on_stop()
        for child in self._children:
            if child.slot is not None and not (child.leaving or child.killed):
                self._terminate(child, patience)

    def _fail(self, line: str, patience: float | None = None) -> None:
        log.error("%s", line)
        self._failed = True
        self._stop(self._timing.grace if patience is None else patience)

    def _terminate(self, child: Child, patience: float, number: signal.Signals = signal.SIGTERM) -> None:
        child.leaving = True
        child.deadline = min(child.deadline, time.monotonic() + patience)
        child.kill(number)

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.deadline <= now:
                child.deadline = inf
                child.killed = True
                child.kill(signal.SIGKILL)
                log.warning("%s did not end in time; SIGKILL", child)

    def _watched(self) -> list[tuple[Child, int]]:
        """The workers whose event loops have to turn, and their slots. Those that start or drain take their time."""
        return [
            (child, child.slot)
            for child in self._children
            if child.slot is not None and child.since < inf and not (child.leaving or child.killed)
        ]

    def _watch(self) -> None:
        """Kills workers whose event loop stands still, once they had time to tell where."""
        for child, slot in self._watched():
            silence = self._block.silence(slot)
            if silence < self._worker_timeout:
                child.suspected = inf
            elif child.suspected == inf:
                child.suspected = time.monotonic()
                child.stacks.clear()
                child.kill(STACKS)
            elif time.monotonic() - child.suspected >= self._timing.grace:
                self._hear(child)
                child.killed = True
                child.kill(signal.SIGKILL)
                stacks = child.stacks.decode("utf-8", "replace").rstrip()
                log.error(
                    "%s: its event loop has stood still for %.1f s, worker_timeout is %g; SIGKILL. %s",
                    child,
                    silence,
                    self._worker_timeout,
                    f"It was here:\n{stacks}" if stacks else "It did not tell where it was",
                )

    def _abandon(self) -> None:
        """After a fault here or in a callback: no child outlives the supervisor. Else there is none left."""
        for child in self._children:
            child.kill(signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, 0)
            self._close_status(child)
            if child.slot is not None:
                self._block.note_down(child.slot)

    # --- rolling --------------------------------------------------------------------------------------------

    def _roll(self) -> None:
        """Has a successor that accepts take over, and starts the next one. One at a time."""
        if not self._rolling:
            return
        whole = True
        for place in self._workers:
            if place.successor is not None:
                if place.successor.since == inf:
                    return
                self._take_over(place)
            child = place.current
            if child is None or child.roll == self._rolls:
                # Who is started meanwhile is new anyway.
                whole = whole and (place.given_up or (child is not None and child.since < inf))
                continue
            if child.since < inf and not any(
                other.leaving for other, its in self._children.items() if its is place
            ):
                try:
                    place.successor = self._fork(place)
                except OSError as error:
                    self._rolling = False
                    log.error("%s: no replacement could be forked (%s); it goes on", child, error)
            return
        if whole:
            self._rolling = False
            log.info("all workers are replaced; old ones may still drain")

    def _take_over(self, place: _Place) -> None:
        assert place.current is not None
        self._terminate(place.current, self._patience)
        place.current, place.successor = place.successor, None

    # --- processes ------------------------------------------------------------------------------------------

    def _fork(self, place: _Place) -> Child:
        """Starts a child. Raises ``OSError`` when there are no processes or descriptors left."""
        slot = None
        body = self._be_exporter
        if place.index is not None:
            taken = {child.slot for child in self._children}
            slot = place.index if place.index not in taken else place.index + len(self._workers)
            body = partial(self._be_worker, place.index, slot)
        try:
            child = children.fork(
                place.name,
                body,
                drop=[*self._wakeup, self._lifeline[1], *(child.status for child in self._children)],
                strays=self._strays,
                patience=self._patience,
            )
        except Departure:
            self._undo.pop_all()  # all that run() would undo is the supervisor's
            raise
        child.slot = slot
        child.roll = self._rolls
        if slot is None:
            child.since = time.monotonic()  # an exporter is not asked whether it is ready
        self._children[child] = place
        self._selector.register(child.status, selectors.EVENT_READ, child)
        return child

    def _be_worker(self, index: int, slot: int, reporter: Reporter) -> int:
        lifeline = self._lifeline[0]
        context = WorkerContext(index, self._block.slot(slot), lifeline, reporter.ready, reporter.leaving)
        return int(self._run_worker(context))

    def _be_exporter(self, reporter: Reporter) -> int:
        assert self._run_exporter is not None
        children.serve_lifeline(self._lifeline[0])
        self._run_exporter()
        return 0

    def _close_status(self, child: Child) -> None:
        if child.status >= 0:
            self._selector.unregister(child.status)
            os.close(child.status)
            child.status = -1

    # --- set-up ---------------------------------------------------------------------------------------------

    def _open_pipes(self) -> None:
        self._undo.callback(self._selector.close)
        self._wakeup = self._keep(children.pipe())
        self._lifeline = self._keep(children.pipe())
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
        self._strays = [number for number in STRAYS if signal.getsignal(number) is signal.SIG_DFL]
        for number in (*_SIGNALS, *self._strays):
            found = signal.signal(number, queue)
            if self._ends_process and number != signal.SIGCHLD:
                found = signal.SIG_IGN
            self._undo.callback(signal.signal, number, signal.SIG_DFL if found is None else found)
