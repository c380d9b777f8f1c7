"""The plan of a handler: which hooks it has and how each is called, found out once.

A handler is any object with ``handle_*`` methods, as aiosmtpd's handlers are. Knows their names, arguments
and kinds (plain, ``async``, ``@blocking``). Refuses to know when a hook is called and what its result means.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, cast

from fastsmtp._engine import ASKS, HOOKS
from fastsmtp.errors import ConfigError

if TYPE_CHECKING:
    from asyncio import Future

    from fastsmtp.envelope import Envelope, Session

    class Caller(Protocol):
        """What a hook call needs of the connection that makes it."""

        @property
        def session(self) -> Session: ...
        @property
        def envelope(self) -> Envelope | None: ...
        @property
        def ehlo_lines(self) -> list[str]: ...
        def in_thread(self, function: Callable[..., object], *args: object) -> Future[object]: ...


F = TypeVar("F", bound=Callable[..., Any])

# Called with the connection, the argument and the options of an ask; gives a status or an awaitable of one.
Call: TypeAlias = "Callable[[Caller, Any, Any], Any]"

_NAMES = {f"handle_{name}": kind for kind, name in enumerate(ASKS) if name}
_DISCONNECT = "handle_DISCONNECT"
# Hooks that take one argument more than server, session and envelope; MAIL and RCPT take two.
_ONE_ARGUMENT = frozenset({"handle_HELO", "handle_NOOP", "handle_VRFY"})
_TWO_ARGUMENTS = frozenset({"handle_MAIL", "handle_RCPT"})


def blocking(function: F) -> F:
    """Marks a plain (not ``async``) hook that waits, for a disk or a database say: it is run on the worker's
    thread pool, and its connection waits for it while all others go on.
    """
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{function.__qualname__} is async; @blocking is for hooks that are not")
    function.__fastsmtp_blocking__ = True  # type: ignore[attr-defined]
    return function


class Plan:
    """What a handler wants to be asked: ``mask`` for the dialogue, ``calls`` by kind of ask.

    ``handler`` is an object or a class, which is then called without arguments. ``deliver`` is what takes the
    messages of a handler that does not; ``discard`` says that nobody has to. Without ``make`` a class is only
    looked at, which is for a process that will not use it. Raises ``ConfigError`` for a handler that cannot
    be made, with a ``handle_`` method that is no hook, or whose messages nobody would take.
    """

    def __init__(
        self,
        handler: object | None,
        *,
        deliver: Call | None = None,
        discard: bool = False,
        make: bool = True,
    ) -> None:
        if isinstance(handler, type) and make:
            try:
                handler = handler()
            except Exception as error:
                raise ConfigError(
                    f"cannot make a {_name(handler)}: {describe(error)}"
                ) from error
        self.handler = handler
        self.calls: list[Call | None] = [None] * len(ASKS)
        self.disconnect: Call | None = None
        for name in dir(handler) if handler is not None else ():
            if name.startswith("handle_") and name != "handle_exception":
                self._add(name, getattr(handler, name))
        data = ASKS.index("DATA")
        if deliver is not None or discard:
            if self.calls[data] is not None:
                raise ConfigError(f"{_name(handler)} has a handle_DATA, and there is a sink as well; remove one")
            self.calls[data] = deliver
        elif self.calls[data] is None:
            raise ConfigError(
                f"{_name(handler)} has no handle_DATA, so its messages would be lost; "
                "define one or set where to deliver"
            )
        self.mask: int = sum(HOOKS[ASKS[kind]] for kind, call in enumerate(self.calls) if call is not None)

    def _add(self, name: str, hook: Any) -> None:
        if not callable(hook):
            return
        if name == _DISCONNECT:
            self.disconnect = _adapt(name, hook)
        elif name in _NAMES:
            self.calls[_NAMES[name]] = _adapt(name, hook)
        else:
            near = get_close_matches(name, [*_NAMES, _DISCONNECT], n=1, cutoff=0.0)[0]
            raise ConfigError(f'{_name(self.handler)}: no hook is called "{name}"; did you mean "{near}"?')


def _name(handler: object) -> str:
    kind = handler if isinstance(handler, type) else type(handler)
    return f"handler {kind.__module__}.{kind.__qualname__}"


def _adapt(name: str, hook: Callable[..., Any]) -> Call:
    """A hook as the connection calls it; the shapes are written out, as this is the way of every message."""
    if getattr(hook, "__fastsmtp_blocking__", False):
        plain = hook

        def hook(server: Caller, *args: Any) -> Any:
            return server.in_thread(plain, server, *args)

    if name == "handle_EHLO":
        return _adapt_ehlo(hook)
    if name in _TWO_ARGUMENTS:
        return lambda server, argument, options: hook(
            server, server.session, server.envelope, argument, options
        )
    if name in _ONE_ARGUMENT:
        return lambda server, argument, options: hook(server, server.session, server.envelope, argument)
    return lambda server, argument, options: hook(server, server.session, server.envelope)


def _adapt_ehlo(hook: Callable[..., Any]) -> Call:
    arguments = len(inspect.signature(hook).parameters)
    if arguments == 4 and getattr(hook, "__self__", None) is not None:
        raise ConfigError(
            f"{hook.__qualname__} takes 4 arguments; handle_EHLO takes 5: "
            "server, session, envelope, hostname, responses"
        )
    return lambda server, argument, options: hook(
        server, server.session, server.envelope, argument, server.ehlo_lines
    )


def load_handler(path: str) -> object:
    """What ``MODULE:NAME`` names: a handler, or a class of handlers, which is left for ``Plan`` to call.

    Also finds modules in the current folder. Raises ``ConfigError``, in one line, for whatever goes wrong.
    """
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name):
        raise ConfigError(f'handler "{path}" is not of the form MODULE:NAME')
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        raise ConfigError(f'cannot load handler "{path}": {describe(error)}') from error
    return cast("object", found)


def describe(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
