"""The plan of a handler: which hooks it has and how each is called, found out once.

A handler is any object with ``handle_*`` methods, as aiosmtpd's handlers are. Knows their names, arguments
and kinds (plain, ``async``, ``@blocking``). Refuses to know when a hook is called and what its result means.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Coroutine, Sequence
from difflib import get_close_matches
from inspect import getattr_static
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, cast

from fastsmtp._rules import ASKS, HOOKS
from fastsmtp.errors import ConfigError, SMTPError
from fastsmtp.logs import describe as describe

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
T = TypeVar("T")

# Called with the connection, the argument and the options of an ask; gives a status or an awaitable of one.
Call: TypeAlias = "Callable[[Caller, Any, Any], Any]"

_ASKED_ELSEWHERE = frozenset({"AUTH", "COMMAND"})
_NAMES = {f"handle_{name}": kind for kind, name in enumerate(ASKS) if name and name not in _ASKED_ELSEWHERE}
_DISCONNECT = "handle_DISCONNECT"
_STARTTLS = "handle_STARTTLS"
_EXCEPTION = "handle_exception"
_ALL = (*_NAMES, _DISCONNECT, _STARTTLS, _EXCEPTION)
_NO_HOOK = frozenset({"handle_message"})  # what aiosmtpd's Message handlers call themselves
_NOT_OFFERED = frozenset({"handle_AUTH", "handle_PROXY", "handle_LHLO"})
_FIRST = ("server", "session", "envelope")
# What hooks take behind these; those that are not here take nothing more.
_MORE = {
    "handle_HELO": ("hostname",),
    "handle_EHLO": ("hostname", "responses"),
    "handle_MAIL": ("address", "mail_options"),
    "handle_RCPT": ("address", "rcpt_options"),
    "handle_NOOP": ("arg",),
    "handle_VRFY": ("address",),
    "handle_AUTH": ("args",),
    "handle_PROXY": ("proxy_data",),
}


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
                raise ConfigError(f"cannot make a {_name(handler)}: {describe(error)}") from error
        self.handler = handler
        self.calls: list[Call | None] = [None] * len(ASKS)
        self.disconnect: Call | None = None
        self.starttls: Call | None = None
        rescue = getattr(handler, _EXCEPTION, None)
        for name in dir(handler) if handler is not None else ():
            hook = getattr(handler, name) if name.startswith("handle_") else None
            if callable(hook) and name not in _NO_HOOK:
                if (name in _ALL) and (wrong := misfit(handler, name)):
                    raise ConfigError(f"{_name(handler)}: {wrong}")
                if name != _EXCEPTION:
                    self._add(name, hook, rescue)
        data = ASKS.index("DATA")
        if deliver is not None or discard:
            if self.calls[data] is not None:
                raise ConfigError(
                    f"{_name(handler)} has a handle_DATA, and there is a sink as well; remove one"
                )
            self.calls[data] = deliver
        elif self.calls[data] is None:
            raise ConfigError(
                f"{_name(handler)} has no handle_DATA, so its messages would be lost; "
                "define one, or set deliver to a sink such as maildir:./mail"
            )
        self.mask: int = sum(HOOKS[ASKS[kind]] for kind, call in enumerate(self.calls) if call is not None)

    def _add(self, name: str, hook: Callable[..., Any], rescue: Callable[..., Any] | None) -> None:
        if name == _STARTTLS:
            self.starttls = adapt(name, hook)
        elif name == _DISCONNECT:
            self.disconnect = adapt(name, hook)
        elif name in _NAMES:
            call = adapt(name, hook)
            self.calls[_NAMES[name]] = _rescued(call, rescue) if rescue is not None else call
        elif name in _NOT_OFFERED:
            raise ConfigError(f"{_name(self.handler)} has a {name}, but this server does not offer that")
        else:
            names = {known.lower(): known for known in _ALL}
            near = names[get_close_matches(name.lower(), names, n=1, cutoff=0.0)[0]]
            raise ConfigError(f'{_name(self.handler)}: no hook is called "{name}"; did you mean "{near}"?')


def _name(handler: object) -> str:
    kind = handler if isinstance(handler, type) else type(handler)
    return f"handler {kind.__module__}.{kind.__qualname__}"


def misfit(owner: object, name: str, parameters: Sequence[str] | None = None) -> str:
    """What is wrong with the parameters of the method ``name`` of ``owner``, an object or a class of them; empty if
    it can be called with ``parameters``, by default those of the hook of that name.
    """
    if parameters is None:
        parameters = ("error",) if name == _EXCEPTION else (*_FIRST, *_MORE.get(name, ()))
    method: Any = owner if name == "__call__" else getattr(owner, name)
    own = (owner,) if isinstance(owner, type) and inspect.isfunction(getattr_static(owner, name)) else ()
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):
        return ""  # compiled, and without a signature
    # EHLO's last parameter may be missing, as aiosmtpd had it.
    for given in (parameters, parameters[:-1]) if name == "handle_EHLO" else (parameters,):
        try:
            signature.bind(*own, *given)
        except TypeError:
            continue
        return ""
    shown = signature.replace(parameters=list(signature.parameters.values())[len(own) :])
    return f"{name}{shown} cannot be called; it is to take ({', '.join(parameters)})"


def adapt(name: str, hook: Callable[..., Any]) -> Call:
    """A hook as the connection calls it; the shapes are written out, as this is the way of every message."""
    plain = hook
    if getattr(hook, "__fastsmtp_blocking__", False):

        def hook(server: Caller, *args: Any) -> Any:
            return server.in_thread(plain, server, *args)

    if name == "handle_EHLO":
        return _adapt_ehlo(hook, plain)
    more = len(_MORE.get(name, ()))
    if more == 2:
        return lambda server, argument, options: hook(
            server, server.session, server.envelope, argument, options
        )
    if more == 1:
        return lambda server, argument, options: hook(server, server.session, server.envelope, argument)
    return lambda server, argument, options: hook(server, server.session, server.envelope)


def _adapt_ehlo(hook: Callable[..., Any], plain: Callable[..., Any]) -> Call:
    signature = inspect.signature(plain)
    arguments = range(6 if "self" in signature.parameters else 5)  # self: of a class that is only looked at
    try:
        signature.bind(*arguments)
    except TypeError:
        warnings.warn(
            "Use the 5-argument handle_EHLO() hook instead of the 4-argument handle_EHLO() hook",
            DeprecationWarning,
            stacklevel=2,
        )
        return _adapt_old_ehlo(hook)
    return lambda server, argument, options: hook(
        server, server.session, server.envelope, argument, server.ehlo_lines
    )


def _adapt_old_ehlo(hook: Callable[..., Any]) -> Call:
    """The 4-argument hook gives only the last line."""

    async def call(server: Caller, argument: Any, options: Any) -> Any:
        status = await settled(hook(server, server.session, server.envelope, argument))
        accepted = isinstance(status, str) and status.startswith("250")
        return [*server.ehlo_lines[:-1], status] if accepted else status

    return call


def _rescued(call: Call, rescue: Callable[..., Any]) -> Call:
    """A call whose exceptions become the status that ``handle_exception(error)`` returns, if it returns one."""

    async def rescued(server: Caller, argument: Any, options: Any) -> Any:
        try:
            return await settled(call(server, argument, options))
        except (SMTPError, Raised):
            raise
        except Exception as error:
            status = await settled(rescue(error))
            if status is None:
                raise
            return status

    return rescued


async def settled(result: Any) -> Any:
    """What a hook gives, whether it is to be awaited or not."""
    return await result if inspect.isawaitable(result) else result


# --- hooks that raise what is no Exception --------------------------------------------------------------------
# asyncio ends the loop, and with it the worker, for SystemExit and KeyboardInterrupt in a task; it takes
# CancelledError for a cancellation, which nobody hears of; and a future refuses StopIteration.


class Raised(Exception):
    """What a hook raised that is no ``Exception``, carried as one: ``error``."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


def cause_of(error: BaseException) -> BaseException:
    """What the hook itself raised."""
    return error.error if isinstance(error, Raised) else error


def is_cancellation(error: BaseException) -> bool:
    """Whether ``error``, caught in a task, is the cancellation of that task and not the hook's own mistake."""
    if not isinstance(error, asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def guarded(hook: Coroutine[Any, Any, T]) -> T:
    """What a coroutine of a hook gives. Raises ``Raised`` in place of what is no ``Exception``; a task of it can be
    cancelled, by ``give_up`` if that may be before its first step.
    """
    try:
        return await hook
    except Exception:
        raise
    except GeneratorExit as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is None:
            raise  # it comes from outside: the coroutine is closed
        raise Raised(error) from None
    except BaseException as error:
        if is_cancellation(error):
            raise
        raise Raised(error) from None


def give_up(task: asyncio.Future[Any]) -> None:
    """Cancels a task of a hook. One that has not begun would be told of as never awaited."""
    guard: Any = task.get_coro() if isinstance(task, asyncio.Task) else None
    is_guard = getattr(guard, "cr_code", None) is guarded.__code__
    if is_guard and inspect.getcoroutinestate(guard) == inspect.CORO_CREATED:
        guard.cr_frame.f_locals["hook"].close()
    task.cancel()


def contained(function: Callable[..., T], *args: object) -> T:
    """What a function gives in a thread. Raises ``Raised`` in place of what no future takes."""
    try:
        return function(*args)
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise
        raise Raised(error) from None


def find_hook(handler: object, name: str) -> Callable[..., Any] | None:
    """A hook that the handler really has: mocks, and what passes everything on, seem to have any."""
    # Most have none, and dir() makes a list of all names each time, as for each AUTH.
    return getattr(handler, name) if hasattr(handler, name) and name in dir(handler) else None


def load_handler(path: str) -> object:
    """What ``MODULE:NAME`` names: a handler, or a class of handlers, which is left for ``Plan`` to call.

    Also finds modules in the current folder. Raises ``ConfigError``, in one line, for whatever goes wrong.
    """
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name):
        raise ConfigError(f'"{path}" is not of the form MODULE:NAME')
    if "/" in module_name:
        raise ConfigError(f'"{path}" names a file; {_by_module(module_name, name)}')
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        if isinstance(error, ImportError) and module_name.endswith(".py"):
            raise ConfigError(f'"{path}" names a file; {_by_module(module_name, name)}') from None
        raise ConfigError(f'cannot load "{path}": {describe(error)}') from error
    return cast("object", found)


def _by_module(file: str, name: str) -> str:
    """How the module in this file is to be named."""
    folder, base = os.path.split(os.path.normpath(file.removesuffix(".py")))
    if os.path.isabs(folder) or folder.startswith(os.pardir):
        return f"write the module's name, {base}:{name}, and start in {folder}"
    return f"write the module's name, {'.'.join([*folder.split('/'), base] if folder else [base])}:{name}"
