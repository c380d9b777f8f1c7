"""Log lines that nobody can forge, that do not fill the disk, and that wait for no reader.

Knows how text of a client or of an exception is shown, how many lines of one kind are written in a time, and how a line
reaches standard error without a wait. The words of a line are the caller's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import reprlib
import select
import socket
import stat
import sys
import time
import traceback
from collections import deque
from typing import ClassVar

_LONGEST_VALUE = 200  # characters of a value that somebody else chose
_LONGEST_LINE = 1000  # characters of a line of a traceback
_LONGEST_TRACEBACK = 100  # lines
# Lines of one kind in one period; the rest of the period is a number.
_BURST = 5
_PERIOD = 10.0  # seconds
_KINDS = 256  # of lines counted in one period

_NOT_ID = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST_ID = 64

_REPR = reprlib.Repr()  # cuts nested containers, also one that contains itself
_REPR.maxlevel = 3
_REPR.maxlist = _REPR.maxtuple = _REPR.maxset = _REPR.maxfrozenset = _REPR.maxdict = _BURST
_REPR.maxstring = _REPR.maxother = _LONGEST_VALUE

_WAITING = 1 << 20  # octets of lines that nobody reads; beyond it lines are lost, and counted
_LAST_WAIT = 1.0  # seconds that they get at the end
_AT_ONCE = select.PIPE_BUF  # octets that a pipe takes whole, so that lines of several processes do not mix

# Lines of a traceback that are the interpreter's own; all others may have text of a client.
_FRAME = re.compile(
    r'[ |+]*(File "|Traceback \(|Exception Group Traceback|-+|\+)|[ |]*\n[ |]*(During handling|The above exception) '
)


def brief(value: object, most: int = _LONGEST_VALUE) -> str:
    """``value`` as text of one line: at most ``most`` characters, what cannot be printed as escapes."""
    try:
        text = value if isinstance(value, str) else str(value)
    except Exception:
        text = f"<{type(value).__name__} without a text>"
    cut = text[:most]
    if not cut.isprintable():
        cut = _escaped(cut)
    return cut if len(text) <= most else f"{cut}... ({len(text):,} characters)"


def brief_repr(value: object, most: int = _LONGEST_VALUE) -> str:
    """As ``brief``, of what ``value`` looks like in a program."""
    if isinstance(value, (str, bytes, bytearray)):
        more = f"... ({len(value):,})" if len(value) > most else ""
        return f"{value[:most]!r}{more}"
    if isinstance(value, (list, tuple, set, frozenset)) and len(value) > _BURST:
        return f"a {type(value).__name__} of {len(value):,}"
    try:
        return brief(_REPR.repr(value), most)
    except Exception:
        return f"<{type(value).__name__}>"


def safe_id(given: object) -> str:
    """The id of a session or an envelope as one word, which cannot end a line or lead out of a folder.

    A program may assign any value: at most 64 characters are left, and all but ASCII letters, digits, ``.``, ``_`` and
    ``-`` are ``_``.
    """
    if type(given) is str and given.isascii() and given.isalnum() and len(given) <= _LONGEST_ID:
        return given
    try:
        text = str(given)
    except Exception:
        text = type(given).__name__
    return _NOT_ID.sub("_", text[:_LONGEST_ID]) or "_"


def peer_name(peer: object) -> str:
    """A client's address as people write it."""
    if isinstance(peer, tuple) and len(peer) >= 2:
        host, port = brief(peer[0]), brief(peer[1])  # a program may have assigned it
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return "a local client" if peer == "" else "an unknown client"


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def describe(error: BaseException) -> str:
    """An exception in one line."""
    try:
        text = brief(" ".join(str(error).split()))
    except Exception:
        text = "it has no text"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def traceback_of(error: BaseException) -> str:
    """The traceback of an exception, whose texts are cut and are of one line each: a client's words may stand in them,
    and a line end there would begin a record of its own in the log.
    """
    lines: list[str] = []
    for part in traceback.TracebackException.from_exception(error).format():
        lines += part.splitlines() if _FRAME.match(part) else [part.rstrip("\n")]
    if len(lines) > _LONGEST_TRACEBACK:
        half = _LONGEST_TRACEBACK // 2
        lines[half:-half] = [f"  ... {len(lines) - 2 * half} lines"]
    return "\n".join(brief(line, _LONGEST_LINE) for line in lines)


class _Kind:
    """Lines of one kind in the present period."""

    __slots__ = ("arguments", "count", "left_out", "level", "logger", "message")

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self.level = logging.NOTSET
        self.count = 0
        self.left_out = 0
        self.message = ""
        self.arguments: tuple[object, ...] = ()


class Noise:
    """What the connections of one event loop have to say that strangers can make them say.

    Of each kind a few lines are written at once; how many more there were is said when the period is over.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._kinds: dict[tuple[str, object], _Kind] = {}
        self._began = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def say(
        self,
        logger: logging.Logger,
        level: int,
        kind: object,
        message: str,
        *args: object,
        error: BaseException | None = None,
    ) -> None:
        """Logs a line of ``kind``, which is hashable, or counts it. Texts and exceptions among ``args`` are made
        ``brief``; the traceback of ``error`` comes with it.
        """
        if not logger.isEnabledFor(level):
            return
        now = time.monotonic()
        if now - self._began >= _PERIOD or len(self._kinds) > _KINDS:
            self.tell()
            self._began = now
        of_kind = self._kinds.get((logger.name, kind))
        if of_kind is None:
            of_kind = self._kinds[logger.name, kind] = _Kind(logger)
        of_kind.count += 1
        args = tuple(brief(arg) if isinstance(arg, (str, bytes, BaseException)) else arg for arg in args)
        if of_kind.count > _BURST:
            of_kind.left_out += 1
            of_kind.level = level
            of_kind.message, of_kind.arguments = message, args
            if self._timer is None:
                self._timer = self._loop.call_later(_PERIOD, self.tell)
            return
        file, line, function, _ = logger.findCaller(stacklevel=2)
        info = (type(error), error, error.__traceback__) if error is not None else None
        record = logger.makeRecord(logger.name, level, file, line, message, args, info, function)
        if error is not None:
            record.exc_text = traceback_of(error)
        logger.handle(record)

    def tell(self) -> None:
        """Says how many lines were left out, if any were; a new period begins."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        kinds, self._kinds = self._kinds, {}
        for of_kind in kinds.values():
            if of_kind.left_out:
                more = f" (and {of_kind.left_out - 1:,} more like it)" if of_kind.left_out > 1 else ""
                of_kind.logger.log(of_kind.level, f"{of_kind.message}%s", *of_kind.arguments, more)


# --- standard error -------------------------------------------------------------------------------------------


class Outlet(logging.Handler):
    """Writes to a descriptor, by default standard error, and never waits for who reads it.

    What cannot be written now waits, up to 1 MiB, for the next line or the next ``drain``; beyond that lines are lost,
    and how many is said. There is no thread: a supervisor forks, and must have one only.
    """

    _all: ClassVar[list[Outlet]] = []

    def __init__(self, descriptor: int | None = None) -> None:
        super().__init__()
        self._descriptor = (
            sys.__stderr__.fileno() if descriptor is None and sys.__stderr__ else descriptor or 2
        )
        self._waiting: deque[bytes] = deque()
        self._octets = 0
        self._lost = 0
        self._socket: socket.socket | None = None
        self._own = -1  # a description of ours: that of others must not be made non-blocking
        mode = os.fstat(self._descriptor).st_mode
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(self._descriptor))
        elif stat.S_ISREG(mode):
            self._own = os.dup(self._descriptor)
        else:
            with contextlib.suppress(OSError):  # another user's pipe, or no /proc
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_APPEND
                self._own = os.open(f"/proc/self/fd/{self._descriptor}", flags)
        self._polled = self._own < 0 and self._socket is None
        self._unread_at = -_LAST_WAIT  # when ``flush`` last waited in vain
        Outlet._all.append(self)

    @classmethod
    def of(cls, logger: logging.Logger) -> Outlet | None:
        """The outlet that is all there is of the handlers of a logger, if it is."""
        handlers: list[logging.Handler] = []
        above: logging.Logger | None = logger
        while above is not None:
            handlers += above.handlers
            above = above.parent if above.propagate else None
        return handlers[0] if len(handlers) == 1 and isinstance(handlers[0], cls) else None

    @classmethod
    def drain_all(cls) -> bool:
        """Writes what waits and can be written, for who has a turn to spare; whether some still waits."""
        for outlet in cls._all:
            if outlet._waiting:
                with outlet.lock or contextlib.nullcontext():
                    outlet.drain()
        return any(outlet._waiting for outlet in cls._all)

    @classmethod
    def after_fork(cls) -> None:
        """In a child: what waits is the parent's to write."""
        for outlet in cls._all:
            outlet._waiting.clear()
            outlet._octets = outlet._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._put(self.format(record))
        except Exception:
            self.handleError(record)

    def put(self, line: str) -> None:
        """Writes a line that is formatted."""
        with self.lock or contextlib.nullcontext():
            self._put(line)

    def _put(self, line: str) -> None:
        octets = line.encode("utf-8", "backslashreplace") + b"\n"
        if not self._waiting and len(octets) <= _AT_ONCE:
            try:
                # The way of nearly all lines.
                written = os.write(self._own, octets) if self._own >= 0 else self._write(octets)
            except OSError:
                written = self._write(octets)
            if written == len(octets):
                return
            octets = octets[written:]
        if self._octets + len(octets) > _WAITING:
            self._lost += 1
        else:
            self._octets += len(octets)
            while octets:
                end = (
                    len(octets)
                    if len(octets) <= _AT_ONCE
                    else octets.rfind(b"\n", 0, _AT_ONCE) + 1 or _AT_ONCE
                )
                self._waiting.append(octets[:end])
                octets = octets[end:]
        self.drain()

    def drain(self) -> None:
        """Writes what waits, as far as that goes at once."""
        waiting = self._waiting
        while waiting:
            written = self._write(waiting[0])
            self._octets -= written
            if written < len(waiting[0]):
                waiting[0] = waiting[0][written:]
                return
            waiting.popleft()
        if self._lost:
            lost, self._lost = self._lost, 0
            self.handle(
                logging.makeLogRecord(
                    {
                        "name": "fastsmtp",
                        "levelno": logging.WARNING,
                        "levelname": "WARNING",
                        "msg": f"{lost:,} lines of the log were lost: nobody read them",
                    }
                )
            )

    def _write(self, octets: bytes) -> int:
        """How many octets were taken; all of them, if there is nobody who could ever take any."""
        try:
            if self._socket is not None:
                return self._socket.send(octets, socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0))
            if self._polled and not _is_writable(self._descriptor, 0.0):
                return 0
            return os.write(self._own if self._own >= 0 else self._descriptor, octets)
        except BlockingIOError:
            return 0
        except OSError:
            return len(octets)  # the reader is gone, or the disk is full

    def flush(self) -> None:
        """Writes what waits; waits for its reader a second at most, and not again in the next second.

        ``logging.shutdown`` calls ``flush`` and then ``close``: the process waits for one second, not for two.
        """
        now = time.monotonic()
        end = now + _LAST_WAIT if now - self._unread_at >= _LAST_WAIT else now
        with self.lock or contextlib.nullcontext():
            self.drain()
            while self._waiting and (left := end - time.monotonic()) > 0:
                if not _is_writable(self._descriptor, left):
                    break
                self.drain()
            if self._waiting and end > now:
                self._unread_at = time.monotonic()

    def close(self) -> None:
        if self in Outlet._all:
            Outlet._all.remove(self)
            self.flush()
            if self._own >= 0:
                os.close(self._own)
            if self._socket is not None:
                self._socket.close()
        super().close()


os.register_at_fork(after_in_child=Outlet.after_fork)


def _is_writable(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


class Text(logging.Formatter):
    """A record as text. Only its first line begins as records do."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s[%(process)d] %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if text.isprintable():
            return text
        return "\n    ".join(line if line.isprintable() else _escaped(line) for line in text.split("\n"))

    def formatException(self, ei: object) -> str:
        error = ei[1] if isinstance(ei, tuple) else None
        return traceback_of(error) if isinstance(error, BaseException) else ""


class Json(logging.Formatter):
    """A record as an object of JSON, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        try:  # of the log of mail, which is JSON already
            if record.name == "fastsmtp.mail" and record.getMessage().startswith("{"):
                return record.getMessage()
        except Exception:
            return super().format(record)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[1] is not None:
            fields["traceback"] = record.exc_text or traceback_of(record.exc_info[1])
        return json.dumps(fields, separators=(",", ":"))


def configure(level: str, form: str) -> None:
    """Has all records from ``level`` on written to standard error, as ``"text"`` or ``"json"``; unless the program has
    configured its logging already.
    """
    root = logging.getLogger()
    if not root.handlers:
        outlet = Outlet()
        outlet.setFormatter(Json() if form == "json" else Text())
        root.addHandler(outlet)
        root.setLevel(level.upper())
