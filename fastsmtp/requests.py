"""A request is a message as bonzo's programs are given it, and what its client is told when they are done.

Knows how a request is finished: at once, later, never, or by an exception. Refuses to know handlers of requests and
applications, and the rules of SMTP, which are the dialogue's.
"""

from __future__ import annotations

import asyncio
import email
import logging
from collections.abc import Callable
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeAlias

from fastsmtp._engine import STAGES, Engine, index
from fastsmtp._rules import ASKS
from fastsmtp.body import Body
from fastsmtp.connection import Connection, Site
from fastsmtp.errors import ConfigError, InternalConfusion, SMTPError
from fastsmtp.hooks import cause_of, guarded, misfit, settled
from fastsmtp.logs import brief, brief_repr
from fastsmtp.replies import NotAReply, plain, refusal
from fastsmtp.sinks.trace import parsable

if TYPE_CHECKING:
    from email.message import Message

    from fastsmtp.envelope import Envelope, Session

RequestCallback: TypeAlias = "Callable[[SMTPRequest], Any]"

# For exceptions that nobody caught, and for what an SMTPError says to the log.
application_log = logging.getLogger("fastsmtp.application")
general_log = logging.getLogger("fastsmtp.general")

_DATA = ASKS.index("DATA")
_HANDLER_ERRORS = index("fastsmtp_handler_errors_total", STAGES[0])
_OK = plain("250 Ok")
_NO_ADDRESS = "0.0.0.0"  # of a client on a UNIX socket


class SMTPRequest:
    """One message. ``mail`` and ``rcpt`` are addresses, ``hostname`` is what the client called itself; ``mail`` is
    ``<>`` for the empty reverse-path.

    ``command`` is ``DATA``, or ``MAIL`` and ``RCPT`` while these are asked about: then there is no content yet.
    Programs may add attributes of their own.
    """

    # What is the same for most requests is not set for each.
    handler: Any = None  # an application's, until its client was told; beyond that it would be a cycle
    finished = False
    waiting = False  # for somebody who finishes it later
    _data: str | None = None
    _message: Message | None = None

    def __init__(
        self,
        connection: SMTPConnection,
        remote_ip: str,
        command: str,
        hostname: str | None = None,
        mail: str | None = None,
        rcpt: list[str] | None = None,
        data: str | None = None,
        session: Session | None = None,
        envelope: Envelope | None = None,
    ) -> None:
        self.connection = connection
        self.remote_ip = remote_ip
        self.command = command
        self.hostname = hostname
        self.mail = mail
        self.rcpt = [] if rcpt is None else rcpt
        self.session = session
        self.envelope = envelope
        if data is not None:
            self._data = data

    @property
    def body(self) -> Body:
        """The content as it was sent, without a copy; see docs/handlers.md."""
        if self.envelope is not None and self.envelope.body is not None:
            return self.envelope.body
        return Body.in_memory((self._data or "").encode("utf-8", "surrogateescape"))

    @property
    def data(self) -> str:
        """The content as text: lines end with LF, the last one with nothing. Octets that are no UTF-8 are
        surrogates (``surrogateescape``). Made when first asked for.
        """
        if self._data is None:
            self._data = self._lines().decode("utf-8", "surrogateescape")
        return self._data

    @data.setter
    def data(self, data: str) -> None:
        self._data = data

    @property
    def message(self) -> Message:
        """The message, parsed from the lines of ``data`` as octets. Made when first asked for."""
        if self._message is None:
            self._message = email.message_from_bytes(parsable(self._lines()))
        return self._message

    def _lines(self) -> bytes:
        if self._data is not None:
            return self._data.encode("utf-8", "surrogateescape")
        return bytes(self.body).removesuffix(b"\r\n").replace(b"\r\n", b"\n")

    @property
    def mail_options(self) -> list[str]:
        """The parameters of MAIL, such as ``SIZE=10``, as they were sent."""
        return self.envelope.mail_options if self.envelope is not None else []

    @property
    def rcpt_options(self) -> list[str]:
        """The parameters of all RCPT, as they were sent."""
        return self.envelope.rcpt_options if self.envelope is not None else []

    @property
    def smtp_utf8(self) -> bool:
        """Whether the client said SMTPUTF8 (RFC 6531): addresses and headers may be beyond ASCII."""
        return self.envelope is not None and self.envelope.smtp_utf8

    @property
    def tls(self) -> bool:
        """Whether there is TLS, from the first octet or by STARTTLS; ``session.ssl`` tells which."""
        return self.session is not None and self.session.tls

    @property
    def authenticated(self) -> bool:
        """Whether the client gave AUTH; ``session.auth_data`` is what is known of it then."""
        return self.session is not None and bool(self.session.authenticated)

    def finish(self, text: str = "Ok") -> None:
        """Takes the message: its client is told ``250`` and ``text``.

        May be called at any time, also long after the callback; a client that is gone, or was told that it took
        too long (``handler_timeout``), hears nothing of it. Raises ``RuntimeError`` the second time and before there
        is a message, ``ValueError`` for a text that cannot be sent.
        """
        if self.finished:
            raise RuntimeError("finish() called twice.")
        if self.command != "DATA":
            raise RuntimeError("finish() called before there is a message.")
        reply = _OK if text == "Ok" else plain(f"250 {text}")
        self.finished = True
        self.connection.take(self, reply)

    async def finish_async(self, text: str = "Ok") -> None:
        """As ``finish``."""
        self.finish(text)

    def explain(self, error: BaseException) -> object:
        """The reply to an exception: an ``SMTPError``, or a code with a text."""
        if self.handler is not None:
            return self.handler.write_error(error)
        return error if isinstance(error, SMTPError) else InternalConfusion()

    def __repr__(self) -> str:
        names = ("remote_ip", "hostname", "mail", "rcpt")
        told = ", ".join(f"{name}='{getattr(self, name)}'" for name in names)
        return f"{type(self).__name__} ({told})"


class SMTPConnection(Connection):
    """A client's connection, whose messages are requests."""

    __slots__ = ("_close_callback", "_reply_now", "request")

    def __init__(self, engine: Engine, site: Site, implicit_tls: bool = False) -> None:
        super().__init__(engine, site, implicit_tls)
        self.request: SMTPRequest | None = None  # the one that is under way
        self._close_callback: Callable[[], object] | None = None
        self._reply_now: bytes | None = None  # what the hook that is being called is to return

    @property
    def address(self) -> Any:
        """The client's socket address."""
        self.know_peer()
        return self.session.peer

    @property
    def remote_ip(self) -> str:
        """The client's IP address; ``0.0.0.0`` on a UNIX socket."""
        address = self.address
        return str(address[0]) if address and isinstance(address, tuple) else _NO_ADDRESS

    def set_close_callback(self, callback: Callable[[], object] | None) -> None:
        """What is called, once, when the client goes while its request is under way."""
        self._close_callback = callback

    def close(self) -> None:
        """Ends the connection without a word."""
        self.end()

    def begin(self, session: Session, envelope: Envelope, command: str) -> SMTPRequest:
        """A new request, under way from now on."""
        peer = session.peer
        request = self.request = SMTPRequest(
            self,
            peer[0] if type(peer) is tuple else self.remote_ip,
            command,
            session.host_name,
            envelope.mail_from,
            envelope.rcpt_tos,
            None,
            session,
            envelope,
        )
        return request

    def take(self, request: SMTPRequest, reply: bytes) -> None:
        """Called by a request that is finished; does nothing if it was given up before."""
        if self.request is not request or not self.asked:
            return
        self._forget()
        if self._pending is None and not request.waiting:
            self._reply_now = reply
            return
        self._let_go()
        self.answered(reply)

    def outcome(self, result: Any) -> Any:
        """What a hook gives for what its callback gave."""
        rest = to_await(result)
        if asyncio.iscoroutine(rest):
            rest = self.task_of(guarded(rest))  # which may have finished the request already
        if rest is None or self._reply_now is None:
            return rest
        # The client gets its answer now, and the rest goes on beside the dialogue.
        if rest.done():
            self._done(rest)
        else:
            self._site.goodbyes.add(rest)
            rest.add_done_callback(self._done)
        return None

    def afterwards(self, callback: Callable[[], object]) -> None:
        """Calls ``callback`` when what was answered has been said."""
        if self._reply_now is not None:
            self._site.loop.call_soon(self._call, callback)
        else:
            self._call(callback)

    def _call(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except BaseException as error:
            self.complain(error)

    def _forget(self) -> None:
        if self.request is not None:
            self.request.handler = None
            self.request = None
        self._close_callback = None

    def _let_go(self) -> None:
        """The answer is given; what still runs for it goes on beside the dialogue."""
        pending, self._pending = self._pending, None
        if pending is not None and not pending.done():
            self._site.goodbyes.add(pending)

    # --- the transport's calls ------------------------------------------------------------------------------

    def eof_received(self) -> bool:
        goes_on = super().eof_received()
        self._gone()
        return goes_on

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()
        if not self.asked:
            self._forget()
        super().connection_lost(exc)

    def _gone(self) -> None:
        callback, self._close_callback = self._close_callback, None
        if callback is not None:
            self._call(callback)

    # --- the dialogue's calls -------------------------------------------------------------------------------

    def expire(self, state: str) -> None:
        if self.asked == _DATA:
            self._forget()
        super().expire(state)

    def _done(self, future: asyncio.Future[Any]) -> None:
        if future is self._pending:
            super()._done(future)
            return
        self._site.goodbyes.discard(future)
        if not future.cancelled() and (error := future.exception()) is not None:
            self.complain(error)

    def _result(self, kind: int, future: asyncio.Future[Any]) -> bytes | None:
        if kind == _DATA and future.cancelled():
            self._forget()
        return super()._result(kind, future)

    def _reply(self, kind: int, result: object) -> bytes | None:
        if kind == _DATA:
            if self.request is not None:
                self.request.waiting = True
            reply, self._reply_now = self._reply_now, None
            return reply
        return result if type(result) is bytes else plain(str(result))

    def _failure(self, kind: int, error: BaseException) -> bytes | None:
        error = cause_of(error)
        request = self.request
        if kind == _DATA:
            if request is None:
                self.complain(error)
                reply, self._reply_now = self._reply_now, None
                return reply
            request.finished = True
        if isinstance(error, SMTPError):
            if error.log_message:
                general_log.warning("%d %s", error.code, brief(error.logged))
        elif not self._was_left(error):
            self.complain(error, kind)
        try:
            if isinstance(error, Exception):
                return self._explained(request, error)
            return self.rules.book["HANDLER_FAILED"]
        except BaseException as inner:
            self.complain(inner, kind)
            return self.rules.book["HANDLER_FAILED"]
        finally:
            if kind == _DATA:
                self._forget()

    def _explained(self, request: SMTPRequest | None, error: BaseException) -> bytes:
        if request is not None:
            status = request.explain(error)
        else:
            status = error if isinstance(error, SMTPError) else InternalConfusion()
        if isinstance(status, SMTPError):
            status = refusal(status)
        if not isinstance(status, str):
            raise NotAReply(f"{brief_repr(status)} is no reply")
        return plain(status)

    def complain(self, error: BaseException, kind: int = _DATA) -> None:
        """Logs an exception that nobody caught."""
        self.engine.counters.add(_HANDLER_ERRORS + kind - 1)
        error = cause_of(error)
        self._site.noise.say(
            application_log,
            logging.ERROR,
            type(error),
            "Uncaught exception in a request of %s",
            self.who,
            error=error,
        )


class Requests:
    """The hooks of a server whose messages are requests to ``callback``: plain or async, it finishes them.

    Raises ``ConfigError`` for one that cannot be called with a request.
    """

    def __init__(self, callback: RequestCallback) -> None:
        if wrong := misfit(callback, "__call__", ("request",)):
            raise ConfigError(f"the request callback: {wrong}")
        self.callback = callback

    def handle_HELO(self, server: SMTPConnection, session: Session, envelope: Envelope, name: str) -> str:
        return f"250 Hello {server.remote_ip}"

    def handle_DATA(self, server: SMTPConnection, session: Session, envelope: Envelope) -> Any:
        return server.outcome(self.callback(server.begin(session, envelope, "DATA")))


def to_await(result: Any) -> Any:
    """What a connection is to wait for; what is not to be awaited is of no interest, as in bonzo."""
    if type(result) is CoroutineType or result is None or asyncio.isfuture(result):
        return result
    return settled(result) if hasattr(result, "__await__") else None


class Hooked:
    """A callback that has hooks of its own, and may want the program to start again when its code changes."""

    @property
    def autoreload(self) -> bool:
        """Whether it does."""
        raise NotImplementedError

    def hooks(self) -> Requests:
        """The hooks that a server asks."""
        raise NotImplementedError

    def __call__(self, request: SMTPRequest) -> Any:
        raise NotImplementedError
