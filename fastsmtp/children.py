"""The children of a supervisor: how each is forked, what it reports, and how it ends.

* A status pipe for each child. A worker writes one byte into it when it accepts, or why it never will, another one when
  it begins to drain, and its Python stacks, when ``STACKS`` asks for them.
* The lifeline, a pipe that nobody writes to. The supervisor alone holds its write end, so all children read
  EOF when the supervisor is gone, even by SIGKILL. The kernel bounds the life of a child that does not
  look (see ``_signals``).

When a child is started, replaced or told to end is decided in ``supervisor``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import selectors
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import ceil, inf
from types import FrameType

from fastsmtp import _signals
from fastsmtp.errors import ConfigError

log = logging.getLogger(__name__)

# What a worker gets instead of a second SIGTERM: systemd, by default, and `pkill` send SIGTERM to the
# supervisor and to its workers, which must not take that and the supervisor's own for two.
END_NOW = signal.SIGQUIT

# Asks a worker for its Python stacks. The default action of SIGURG is to do nothing, so that it harms no process which
# has another use for it or none.
STACKS = signal.SIGURG


# Signals whose default action ends a process and that mean nothing to a server: another process was meant.
_STRAYS = ("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR", "SIGSTKFLT")
STRAYS = frozenset(
    [
        *(int(getattr(signal, name)) for name in _STRAYS if hasattr(signal, name)),
        *range(getattr(signal, "SIGRTMIN", 0), getattr(signal, "SIGRTMAX", -1) + 1),
    ]
)

_READY, _LEAVING = b"\0", b"\1"
# A complaint must fit into the pipe as a whole.
_LONGEST_COMPLAINT = 2048
_LONGEST_STACKS = 1 << 16

# A terminal sends SIGINT and SIGHUP to the whole process group: the supervisor passes on what they mean.
_ACTIONS = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.SIG_IGN,
    signal.SIGHUP: signal.SIG_IGN,
    signal.SIGCHLD: signal.SIG_DFL,
}


@dataclass
class WorkerContext:
    """What a worker gets from its supervisor.

    ``index`` is its number, from 0. ``slot`` is where it counts (see ``metrics.Block``). ``lifeline`` is a
    descriptor that reads EOF when the supervisor is gone. ``ready`` is called once, when the worker accepts
    and handles SIGTERM, and ``leaving`` after that, when it accepts no more.
    """

    index: int
    slot: memoryview
    lifeline: int
    ready: Callable[[], None]
    leaving: Callable[[], None]


class Departure(BaseException):
    """Raised by the body of a child: takes the child back out of ``Supervisor.run``, to whoever called that.

    There it is a process of its own, with a worker's signal actions, what its ``context`` names, and nothing
    else of the supervisor's. Not an ``Exception``: nothing on the way may take it for a fault.
    """

    def __init__(self, context: WorkerContext) -> None:
        super().__init__(context)
        self.context = context


@dataclass(eq=False)
class Child:
    """A process that was forked and whose end ``waitpid`` has not told yet."""

    name: str
    pid: int
    status: int  # read end of its status pipe; -1: closed
    slot: int | None = None  # of the block; None: the exporter
    roll: int = 0  # how many rolls had begun when it was forked
    since: float = inf  # when it was ready
    drains: bool = False  # has begun to, whoever told it
    leaving: bool = False  # was told to end, or drains
    deadline: float = inf  # when it is killed
    suspected: float = inf  # since when its event loop is known to stand still
    killed: bool = False
    complaint: str = ""  # what it found wrong with its configuration
    stacks: bytearray = field(default_factory=bytearray)

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"

    def hear(self) -> bool | None:
        """Reads from the status pipe: whether it says now that it is ready; ``None`` at the end of the pipe."""
        try:
            text = os.read(self.status, _LONGEST_STACKS)
        except BlockingIOError:
            return False
        if not text:
            return None
        ready = self.since == inf and text.startswith(_READY)
        if ready:
            text = text[len(_READY) :]
        elif self.since == inf:
            self.complaint = text.decode("utf-8", "replace")
            return False
        self.drains = self.drains or _LEAVING in text  # faulthandler writes no such octet
        self.stacks += text.replace(_LEAVING, b"")[: _LONGEST_STACKS - len(self.stacks)]
        return ready

    def kill(self, number: signal.Signals) -> None:
        """Sends it a signal. Its pid is not another's until ``waitpid`` has told of its end."""
        with contextlib.suppress(ProcessLookupError):  # only if another part of this process waited for it
            os.kill(self.pid, number)


def fork(
    name: str,
    body: Callable[[Reporter], int],
    *,
    drop: Iterable[int],
    strays: Iterable[int],
    patience: float,
) -> Child:
    """Forks ``body(reporter)``, which returns its exit status, as a child that is called ``name``.

    The child closes the descriptors ``drop`` and ignores the signals ``strays``. If this process dies, the child has
    ``patience`` seconds to end. Raises ``OSError`` when there are no processes or descriptors left, and in the child
    the ``Departure`` of its body.
    """
    status, report = pipe()
    _flush()
    parent = os.getpid()
    # Until the child has its own actions, a signal to it would run a copy of our handler, wake us by the
    # pipe that we still share, and be lost to the child.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(report)
        os.close(status)
        raise
    if pid == 0:
        reporter = Reporter(report, parent, max(1, ceil(patience)))
        _be_child(name, body, reporter, [status, *drop], strays, mask)
    os.close(report)  # else no EOF would come, and later children would hold it too
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return Child(name, pid, status)


def describe(status: int) -> tuple[str, bool]:
    """How a process ended, by what ``waitpid`` says, and whether that is an end on request."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended with status {code}", code == 0
    return f"was killed by {name_of(-code)}", -code in (signal.SIGTERM, END_NOW)


def name_of(number: int) -> str:
    """The name of a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def note_stray(number: int) -> None:
    """Logs that a signal of ``STRAYS`` came."""
    log.warning("%s means nothing to this server: ignored", name_of(number))


def ignore(number: int, frame: FrameType | None) -> None:
    """A signal's action: nothing. Unlike ``SIG_IGN`` it does not outlive ``exec``."""


def serve_lifeline(lifeline: int) -> None:
    """From a thread, ends this process when its supervisor is gone, and logs strays: for a body without a loop."""
    strays, wakeup = pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)

    def follow() -> None:
        with selectors.PollSelector() as selector:
            selector.register(lifeline, selectors.EVENT_READ)
            selector.register(strays, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fd == lifeline:
                        os._exit(0)
                    for number in os.read(strays, 4096):
                        note_stray(number)

    threading.Thread(target=follow, daemon=True).start()


def pipe() -> tuple[int, int]:
    """A pipe whose read end does not block."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    return read, write


class Reporter:
    """A child's end of the status pipe. It stays open: stacks come later."""

    def __init__(self, report: int, parent: int, patience: int) -> None:
        self.report = report
        self._parent = parent
        self._patience = patience
        self._first = True

    def bound(self) -> None:
        _signals.bound_orphan(self._parent, self._patience)

    def ready(self) -> None:
        if self._first:
            self.bound()  # again, as the program may have changed its user
            self._tell(_READY)

    def complain(self, text: str) -> None:
        if self._first:
            self._tell(text.encode("utf-8", "backslashreplace")[:_LONGEST_COMPLAINT])

    def leaving(self) -> None:
        self._tell(_LEAVING)

    def _tell(self, message: bytes) -> None:
        self._first = False
        with contextlib.suppress(BrokenPipeError):  # the supervisor is gone: the lifeline tells
            os.write(self.report, message)


def _be_child(
    name: str,
    body: Callable[[Reporter], int],
    reporter: Reporter,
    drop: Iterable[int],
    strays: Iterable[int],
    mask: Iterable[int],
) -> None:
    """Never returns: ends the process, unless a ``Departure`` takes it elsewhere."""
    code: int | None = os.EX_SOFTWARE
    try:
        signal.set_wakeup_fd(-1)
        for number, action in _ACTIONS.items():
            signal.signal(number, action)
        for stray in strays:
            signal.signal(stray, ignore)
        for descriptor in drop:
            if descriptor >= 0:
                os.close(descriptor)
        reporter.bound()
        faulthandler.register(STACKS, reporter.report)
        _signals.use_large_stack()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = body(reporter) & 0xFF
    except Departure:
        code = None
        raise
    except ConfigError as error:
        reporter.complain(str(error))
        code = os.EX_CONFIG
    except SystemExit as error:
        code = error.code & 0xFF if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        log.exception("%s failed", name)
    finally:
        if code is not None:
            try:
                _flush()
                logging.shutdown()
            finally:
                os._exit(code)


def _flush() -> None:
    """Empties stdio's buffers: a fork copies what is in them, and ``os._exit`` loses it."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
