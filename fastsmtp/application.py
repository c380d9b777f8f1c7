"""An application hands each message to a handler of its own: bonzo's ``Application`` and ``RequestHandler``.

Knows the order in which a handler's methods are called, and what they may return. Refuses to know connections,
sockets and loops, and how a request is answered.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

from fastsmtp.errors import ConfigError, InternalConfusion, SMTPError
from fastsmtp.hooks import misfit
from fastsmtp.replies import plain
from fastsmtp.requests import Hooked, Requests, SMTPConnection, SMTPRequest

if TYPE_CHECKING:
    from fastsmtp.envelope import Envelope, Session
    from fastsmtp.server import SMTPServer

__all__ = ["Application", "RequestHandler"]

_ACCEPTED = plain("250 Ok")
# What a handler's methods take.
_METHODS: dict[str, tuple[str, ...]] = {
    "prepare": (),
    "data": (),
    "on_finish": (),
    "on_connection_close": (),
    "mail": ("address",),
    "rcpt": ("address",),
    "write_error": ("error",),
}
# What Application.listen hands on to SMTPServer.listen; all else is the constructor's.
_WHERE = ("family", "backlog", "flags", "reuse_port")


class RequestHandler:
    """To be subclassed with ``data``. There is a handler for each message.

    ``data`` and ``prepare`` are plain or async, and return ``None``. When ``data`` is done, the message is taken;
    what it raises is the reply. A subclass may also have ``mail(address)`` and ``rcpt(address)``, plain or async:
    they are called for each MAIL and RCPT, before there is a message, and refuse it with an ``SMTPError``. With one
    of them the handler is made at MAIL, and may go without an end when its client gives up the message.
    """

    def __init__(self, application: Application, request: SMTPRequest) -> None:
        self.application = application
        self.request = request
        self._finished = False
        self._auto_finish = True
        if type(self).on_connection_close is not RequestHandler.on_connection_close:
            request.connection.set_close_callback(self.on_connection_close)

    @property
    def settings(self) -> dict[str, Any]:
        """The application's settings."""
        return self.application.settings

    def prepare(self) -> Awaitable[None] | None:
        """Called before ``data``. What finishes the request here keeps ``data`` from being called."""

    def data(self) -> Awaitable[None] | None:
        """Called with the message in ``request``: to be overridden, for by itself it takes all and keeps none."""

    def on_finish(self) -> None:
        """Called when the message was taken and its client was told."""

    def on_connection_close(self) -> None:
        """Called when the client goes, or ends its side, before the request is finished."""

    def write_error(self, error: BaseException) -> SMTPError | str:
        """What the client is told of an exception: an ``SMTPError``, or a text that begins with its code.

        By itself it gives an ``SMTPError`` as it is, and anything else, which is logged, as 451.
        """
        return error if isinstance(error, SMTPError) else InternalConfusion()

    def finish(self, text: str = "Ok") -> None:
        """Takes the message: its client is told ``250`` and ``text``. Where ``_auto_finish`` is false, it has to be
        called, at any time; else this is done when ``data`` is.

        Raises ``RuntimeError`` the second time, ``ValueError`` for a text that cannot be sent.
        """
        if self._finished:
            raise RuntimeError("finish() called twice.")
        self.request.finish(text)
        self._finished = True
        if type(self).on_finish is not RequestHandler.on_finish:
            self.request.connection.afterwards(self.on_finish)

    async def finish_async(self, text: str = "Ok") -> None:
        """As ``finish``."""
        self.finish(text)

    # --- for the application --------------------------------------------------------------------------------

    def _execute(self) -> Coroutine[Any, Any, None] | None:
        """Goes as far as it can without waiting; what is left is returned."""
        prepared = self.prepare()
        if prepared is not None:
            return self._prepared(prepared)
        return self._take()

    async def _prepared(self, prepared: object) -> None:
        await _nothing(prepared)
        rest = self._take()
        if rest is not None:
            await rest

    def _take(self) -> Coroutine[Any, Any, None] | None:
        if self._finished:
            return None
        try:
            result = self.data()
        except Exception as error:
            self._failed(error)
            return None
        if result is not None:
            return self._taken(result)
        if self._auto_finish and not self._finished:
            self.finish()
        return None

    async def _taken(self, result: object) -> None:
        try:
            if inspect.isawaitable(result):
                result = await result
            _expect_none(result)
        except Exception as error:
            self._failed(error)
            return
        if self._auto_finish and not self._finished:
            self.finish()

    def _failed(self, error: Exception) -> None:
        if not self._finished:
            raise error
        self.request.connection.complain(error)  # its client has been told that the message was taken


async def _nothing(result: Any) -> None:
    """Waits for what there is to wait for. Raises ``ValueError`` if something comes of it."""
    if inspect.isawaitable(result):
        result = await result
    _expect_none(result)


def _expect_none(result: object) -> None:
    if result is not None:
        raise ValueError(f"Expected None, got {result!r}")


class Application(Hooked):
    """Makes a ``handler_class(application, request)`` for each message; ``SMTPServer`` takes it as a callback.

    ``settings`` are for its handlers. Two mean something here: ``autoreload`` starts the program again when its code
    changes, and ``debug`` is for ``autoreload``, unless that is given.
    """

    def __init__(self, handler_class: Callable[[Application, SMTPRequest], Any], **settings: Any) -> None:
        self.handler_class = handler_class
        self.settings = settings
        if settings.get("debug"):
            settings.setdefault("autoreload", True)

    async def __call__(self, request: SMTPRequest) -> None:
        """Has a handler take the request."""
        rest = self.execute(request)
        if rest is not None:
            await rest

    def execute(self, request: SMTPRequest) -> Coroutine[Any, Any, None] | None:
        """Has a handler take the request as far as that goes without waiting; what is left is to be awaited."""
        handler = request.handler or self.handler_for(request)
        return cast("Coroutine[Any, Any, None] | None", handler._execute())

    def handler_for(self, request: SMTPRequest) -> Any:
        """A new handler for the request."""
        handler = request.handler = self.handler_class(self, request)
        return handler

    def listen(self, port: int | str, address: str = "", **options: Any) -> SMTPServer:
        """Takes mail on a port: in the running loop, or in the one that is current and has yet to run.

        The options are those of ``SMTPServer.listen``, and of ``SMTPServer``. Returns the server, which can be
        stopped. Raises as they do.
        """
        from fastsmtp.server import SMTPServer  # brings the configuration with it: a quarter of a second

        where = {name: options.pop(name) for name in _WHERE if name in options}
        server = SMTPServer(self, **options)
        server.listen(port, address, **where)
        return server

    # --- for the server -------------------------------------------------------------------------------------

    @property
    def autoreload(self) -> bool:
        """Whether the program starts again when its code changes."""
        return bool(self.settings.get("autoreload"))

    def hooks(self) -> Requests:
        """The hooks that its server asks. Raises ``ConfigError`` for a method that cannot be called."""
        # A __call__ that was overridden is what is to be called; else there is a shorter way.
        callback = self.execute if type(self).__call__ is Application.__call__ else self
        kind = self.handler_class
        asks = {name: hasattr(kind, name) for name in ("mail", "rcpt")}
        if isinstance(kind, type):
            for name, parameters in _METHODS.items():
                if hasattr(kind, name) and (wrong := misfit(kind, name, parameters)):
                    raise ConfigError(f"{kind.__module__}.{kind.__qualname__}: {wrong}")
        return _Early(callback, self, **asks) if any(asks.values()) else Requests(callback)


class _Early(Requests):
    """The hooks of an application whose handlers are asked before there is a message."""

    def __init__(
        self, callback: Callable[[SMTPRequest], Any], application: Application, mail: bool, rcpt: bool
    ) -> None:
        super().__init__(callback)
        self._application = application
        self._mail = mail
        self._rcpt = rcpt

    def handle_MAIL(
        self, server: SMTPConnection, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        request = server.begin(session, envelope, "MAIL")
        handler = self._application.handler_for(request)
        return _asked(handler.mail(address)) if self._mail else _ACCEPTED

    def handle_RCPT(
        self, server: SMTPConnection, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        request = cast("SMTPRequest", server.request)
        request.command = "RCPT"

        def accept() -> None:
            envelope.rcpt_tos.append(address)
            envelope.rcpt_options.extend(options)

        if self._rcpt:
            return _asked(request.handler.rcpt(address), accept)
        accept()
        return _ACCEPTED

    def handle_DATA(self, server: SMTPConnection, session: Session, envelope: Envelope) -> Any:
        request = cast("SMTPRequest", server.request)
        request.command = "DATA"
        return server.outcome(self.callback(request))


def _asked(result: object, accept: Callable[[], None] = lambda: None) -> Any:
    if result is not None:
        return _answered(result, accept)
    accept()
    return _ACCEPTED


async def _answered(result: object, accept: Callable[[], None]) -> bytes:
    await _nothing(result)
    accept()
    return _ACCEPTED
