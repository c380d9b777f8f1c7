"""Log lines that nobody can forge, that do not fill the disk, and that wait for no reader.

Knows how text of a client or of an exception is shown, how many lines of one kind are written in a time, and how a line
reaches standard error without a wait. The words of a line are the caller's.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import traceback

_LONGEST_VALUE = 200  # characters of a value that somebody else chose
_LONGEST_LINE = 1000  # characters of a line of a traceback
_LONGEST_TRACEBACK = 100  # lines
# Lines of one kind in one period; the rest of the period is a number.
_BURST = 5
_PERIOD = 10.0  # seconds
_KINDS = 256  # that are told apart in one period

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
    if isinstance(value, (list, tuple)):
        opening, closing = "[]" if isinstance(value, list) else "()"
        return f"{opening}{', '.join(brief_repr(item, most) for item in value)}{closing}"
    try:
        return brief(repr(value), most)
    except Exception:
        return f"<{type(value).__name__}>"


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
