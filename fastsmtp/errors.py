"""Errors are words: an ``SMTPError`` is a reply, a ``ConfigError`` is one line for the operator.

Knows how an error reads, also as programs written for bonzo make it. Refuses to know who raises it, or what is
done with it.
"""

from __future__ import annotations

import re
from typing import Any, overload

_ENHANCED = re.compile(r"([245])\.[0-9]{1,3}\.[0-9]{1,3}")
_OURS = ("code", "enhanced", "text")
_BONZO = ("status_code", "message", "log_message")


class SMTPError(Exception):
    """A reply, raised: it refuses what was asked. 4yz asks the client to try again later, 5yz never to.

    ``SMTPError(451, "4.3.0", "Later")`` has a code and an enhanced code as RFC 5321 and RFC 3463 number them, and
    a text for people. ``SMTPError(451, "Later", "disk %s is full", name)`` is bonzo's way: what follows the text
    is for the log. The second argument is an enhanced code if it is empty or looks like one of the same class,
    and a third is given. Whichever way, all attributes are there: ``code`` and ``status_code``, ``text`` and
    ``message``, ``enhanced`` (empty without one), ``log_message`` (``None`` without one).

    Raises ``TypeError`` for other arguments.
    """

    code: int
    enhanced: str
    text: str
    log_message: str | None

    @overload
    def __init__(self, code: int, enhanced: str, text: str) -> None: ...

    @overload
    def __init__(
        self, status_code: int, message: str, log_message: str | None = None, *args: object
    ) -> None: ...

    def __init__(self, *values: Any, **named: Any) -> None:
        names = _OURS if named.keys() & set(_OURS) or _has_enhanced(values) else _BONZO
        given = dict(zip(names, values, strict=False))
        if given.keys() & named.keys() or named.keys() - set(names) or len(given) + len(named) < 2:
            raise TypeError(
                "SMTPError takes (code, enhanced, text) or (status_code, message[, log_message, *args])"
            )
        given |= named
        self._ours = names is _OURS
        self.code = given[names[0]]
        if self._ours:
            self.enhanced, self.text, self.log_message = given["enhanced"], given["text"], None
            self.args = (self.code, self.enhanced, self.text)
        else:
            self.enhanced, self.text, self.log_message = "", given["message"], given.get("log_message")
            self.args = values[3:]

    @property
    def status_code(self) -> int:
        """The code, as bonzo calls it."""
        return self.code

    @property
    def message(self) -> str:
        """The text, as bonzo calls it."""
        return self.text

    @property
    def reply(self) -> str:
        """What the client is told."""
        return " ".join(part for part in (str(self.code), self.enhanced, self.text) if part)

    @property
    def logged(self) -> str:
        """What the log is told, with its arguments filled in; empty if there is nothing for it."""
        if not self.log_message:
            return ""
        return self.log_message % self.args if self.args else self.log_message

    def __str__(self) -> str:
        if self._ours:
            return self.reply
        logged = f" ({self.logged})" if self.log_message else ""
        return f"SMTP {self.code}: {self.text}{logged}"

    def __reduce__(self) -> tuple[Any, ...]:
        # The arguments of a subclass are its own; without this a process pool could not hand the error on.
        return _restore, (type(self), self.args, self.__dict__)


def _has_enhanced(values: tuple[Any, ...]) -> bool:
    if len(values) < 3 or not isinstance(values[1], str):
        return False
    found = _ENHANCED.fullmatch(values[1])
    return values[1] == "" or (found is not None and str(values[0])[:1] == found[1])


def _restore(kind: type[SMTPError], args: tuple[Any, ...], attributes: dict[str, Any]) -> SMTPError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


class InternalConfusion(SMTPError):
    """451: what a client is told of an exception that is no reply."""

    def __init__(self) -> None:
        super().__init__(451, "Internal confusion")


class UnrecognisedCommand(SMTPError):
    """500: no command at all."""

    def __init__(self) -> None:
        super().__init__(500, "Error: bad syntax")


class BadArguments(SMTPError):
    """501: a command whose ``syntax`` is another."""

    def __init__(self, syntax: str) -> None:
        super().__init__(501, f"Syntax: {syntax}")


class NotImplementedCommand(SMTPError):
    """502: a ``command`` that is not there."""

    def __init__(self, command: str) -> None:
        super().__init__(502, f'Error: command "{command}" not implemented')


class BadSequence(SMTPError):
    """503: a command out of order."""

    def __init__(self, message: str) -> None:
        super().__init__(503, message)


class ConfigError(Exception):
    """What is wrong with the configuration or the environment, where, and what to do, in one line."""
