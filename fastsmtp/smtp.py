"""aiosmtpd's ``SMTP``: one connection, as a protocol for any asyncio loop and to be subclassed.

Knows aiosmtpd's names: parameters, attributes, methods that may be overridden. Refuses to know the rules of SMTP,
which are the compiled dialogue's: a command that no subclass has overridden never comes here.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
import ssl
import warnings
from collections.abc import Awaitable, Callable, Iterable
from functools import cache
from typing import Any, TypeAlias, TypeVar, cast

from fastsmtp._rules import ASKS
from fastsmtp._version import __version__
from fastsmtp.application import Application, RequestHandler
from fastsmtp.authentication import AuthCallbackType, AuthenticatorType, login_always_fail
from fastsmtp.envelope import Envelope, Session
from fastsmtp.errors import SMTPError
from fastsmtp.hooks import cause_of, give_up, guarded, settled
from fastsmtp.house import House, forget_prepared, house_of, make_loop
from fastsmtp.introduced import Introduced
from fastsmtp.legacy import Legacy
from fastsmtp.logs import brief_repr
from fastsmtp.maillog import MailLog, Wanted
from fastsmtp.replies import NotAReply, as_status, part, plain, plain_lines, refusal
from fastsmtp.sasl import CLIENT_AUTH_B as CLIENT_AUTH_B
from fastsmtp.sasl import MISSING, AuthResult, LoginPassword, auth_mechanism, sanitize, sanitized_log
from fastsmtp.sasl import VALID_AUTHMECH as VALID_AUTHMECH
from fastsmtp.terms import Parameters, agree, check_hook, ehlo_arity, hooks_of
from fastsmtp.verbs import Verbs, syntax
from fastsmtp.watched import Term, Watched

__all__ = [
    "MISSING",
    "SMTP",
    "Application",
    "AuthCallbackType",
    "AuthMechanismType",
    "AuthResult",
    "AuthenticatorType",
    "Envelope",
    "LoginPassword",
    "RequestHandler",
    "Session",
    "TLSSetupException",
    "__version__",
    "auth_mechanism",
    "sanitize",
    "sanitized_log",
    "syntax",
]

AuthMechanismType: TypeAlias = "Callable[[SMTP, list[str]], Awaitable[Any]]"
T = TypeVar("T")

log = logging.getLogger("mail.log")

__ident__ = f"Python SMTP {__version__}"
BOGUS_LIMIT = 5
CALL_LIMIT_DEFAULT = 20
DATA_SIZE_DEFAULT = 2**25  # bytes
EMPTYBYTES = b""
EMPTY_BARR = bytearray()
ALLOWED_BEFORE_STARTTLS = {"NOOP", "EHLO", "STARTTLS", "QUIT"}

_RCPT = ASKS.index("RCPT")
_AUTH = ASKS.index("AUTH")
_DATA = ASKS.index("DATA")
_EHLO = ASKS.index("EHLO")
_MAY_BE_SILENT = frozenset({_AUTH, ASKS.index("COMMAND")})


class TLSSetupException(Exception):
    """Raised by a hook that found TLS wanting: the connection is closed."""


def is_int(o: object) -> bool:
    """Whether ``o`` is an ``int``."""
    return isinstance(o, int)


@cache
def _fqdn() -> str:
    return socket.getfqdn()  # may ask a name server for seconds: once a process, not once a connection


class _Sizes(dict[str, int]):
    """A dictionary whose changes hold at once."""

    def __init__(self, smtp: SMTP) -> None:
        self._agree = smtp._agree

    def __setitem__(self, command: str, size: int) -> None:
        super().__setitem__(command, size)
        self._agree()


class SMTP(Verbs, Introduced, Legacy, metaclass=Watched):
    """One connection that takes mail for ``handler``, as aiosmtpd's ``SMTP`` does.

    A protocol factory for ``loop.create_server(lambda: SMTP(handler))`` on any asyncio loop. The parameters and
    hooks are aiosmtpd's, see docs/from-aiosmtpd.md; sizes are in bytes, times in seconds.

    ``esmtp_parameters`` is ``"refuse"`` (unknown parameters of MAIL and RCPT are answered 555) or ``"pass"``
    (hooks get them). Raises ``TypeError`` and ``ValueError`` as aiosmtpd does, ``TypeError`` for a hook that
    cannot be called with its arguments, ``RuntimeError`` for an EHLO hook of neither shape.
    """

    command_size_limit: int = cast("int", Term(512))
    line_length_limit: int = cast("int", Term(1001))
    local_part_limit: int = cast("int", Term(0))
    event_handler: Any = Term()
    data_size_limit: int | None = cast("int | None", Term())
    enable_SMTPUTF8: bool = cast("bool", Term(False))
    hostname: str = cast("str", Term(""))
    require_starttls: bool = cast("bool", Term(False))
    tls_context: ssl.SSLContext | None = cast("ssl.SSLContext | None", Term())
    __ident__: str = cast("str", Term(__ident__))

    log_mail: Wanted = cast("Wanted", Term("off"))
    """Which replies the logger ``fastsmtp.mail`` writes: ``"off"``, ``"refusals"`` or ``"all"``."""

    _log = log
    _proxy_advice = "set proxy_protocol_timeout, or have the load balancer send no header"
    replies_to_each = False  # recipient after DATA, as LMTP does

    _house: House
    _handler: Any
    _encoding: str
    _traced: bool
    _decode_data: bool
    _timeout_duration: float
    _auth_require_tls: bool
    _auth_exclude: frozenset[str]
    _call_limits: tuple[tuple[str, int], ...] | None
    _esmtp_parameters: str
    _proxy_timeout: float | None
    _writable: asyncio.Future[None] | None = None
    _over: asyncio.Future[None] | None = None
    _sizes: _Sizes | None = None
    _foreword = b""  # lines of a reply that come before the next that is pushed

    def __init__(
        self,
        handler: Any,
        *,
        data_size_limit: int | None = DATA_SIZE_DEFAULT,
        enable_SMTPUTF8: bool = False,
        decode_data: bool = False,
        hostname: str | None = None,
        ident: str | None = None,
        tls_context: ssl.SSLContext | None = None,
        require_starttls: bool = False,
        timeout: float = 300,
        auth_required: bool = False,
        auth_require_tls: bool = True,
        auth_exclude_mechanism: Iterable[str] | None = None,
        auth_callback: AuthCallbackType | None = None,
        command_call_limit: int | dict[str, int] | None = None,
        authenticator: AuthenticatorType | None = None,
        proxy_protocol_timeout: float | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        esmtp_parameters: str = "refuse",
    ) -> None:
        house = house_of(loop if loop is not None else make_loop())
        self.join(house.engine)
        alike = (
            type(self), type(handler), len(vars(type(handler))), data_size_limit, enable_SMTPUTF8, decode_data,
            hostname, ident, tls_context, require_starttls, timeout, auth_required, auth_require_tls,
            proxy_protocol_timeout, esmtp_parameters,
            self.line_length_limit, self.command_size_limit, self.local_part_limit, self.log_mail,
        )  # fmt: skip
        # Terms that only one connection has are made each time. Faults that many connections share are logged once.
        same = not (
            auth_exclude_mechanism or command_call_limit is not None
            or log.isEnabledFor(logging.INFO) or isinstance(handler, type) or hooks_of(handler)
        )  # fmt: skip
        own = self.__dict__
        own["_house"] = house
        own["event_handler"] = own["_handler"] = _an_instance(handler)
        own["_authenticator"] = authenticator
        own["_auth_callback"] = None if authenticator is not None else auth_callback or login_always_fail
        prepared = house.prepared.get(alike) if same else None
        if prepared is not None:
            own.update(prepared)
            self.rules = own["_terms"].rules
            super().__init__(house.engine, own["_alike"])
            return
        assert data_size_limit is None or isinstance(data_size_limit, int)
        parameters: dict[str, Any] = {
            "data_size_limit": data_size_limit,
            "enable_SMTPUTF8": enable_SMTPUTF8,
            "hostname": hostname or _fqdn(),
            "__ident__": ident or __ident__,
            "tls_context": tls_context,
            "require_starttls": bool(tls_context and require_starttls),
            "_decode_data": decode_data,
            "_timeout_duration": timeout,
            "_auth_required": auth_required,
            "_auth_require_tls": auth_require_tls,
            "_auth_exclude": frozenset(auth_exclude_mechanism or ()),
            "_call_limits": None if command_call_limit is None else _call_limits(command_call_limit),
            "_esmtp_parameters": esmtp_parameters,
            "_proxy_timeout": proxy_protocol_timeout,
        }
        own.update(parameters)
        self._agree()
        super().__init__(house.engine, self._site)
        self._say_what_is_odd()
        if same:
            names = (*parameters, "_terms", "_encoding", "_traced", "_pushes")
            house.prepare(alike, {name: own[name] for name in names} | {"_alike": self._site})

    def _say_what_is_odd(self) -> None:
        """Warns of parameters that may be a mistake, and tells the mechanisms. Raises ``ValueError`` for those that are
        one.
        """
        if self.tls_context is not None:
            _look_at(self.tls_context)
        if self._auth_required and not self._auth_require_tls:
            warnings.warn(
                "Requiring AUTH while not requiring TLS can lead to security vulnerabilities!", stacklevel=3
            )
            log.warning("auth_required == True but auth_require_tls == False")
        if self._proxy_timeout is not None:
            if self._proxy_timeout <= 0:
                raise ValueError("proxy_protocol_timeout must be > 0")
            if self._proxy_timeout < 3.0:
                log.warning("proxy_protocol_timeout < 3.0")
        if self._esmtp_parameters not in ("refuse", "pass"):
            raise ValueError(f'esmtp_parameters must be "refuse" or "pass", not {self._esmtp_parameters!r}')
        if self._terms.old_ehlo:
            warnings.warn(
                "Use the 5-argument handle_EHLO() hook instead of the 4-argument handle_EHLO() hook; "
                "support for the 4-argument handle_EHLO() hook will be removed in version 2.0",
                DeprecationWarning,
                stacklevel=3,
            )
        if self._traced:
            names = sorted(self._terms.mechanisms.items())
            log.info(
                "Available AUTH mechanisms: %s",
                " ".join(name + "(builtin)" if server else name for name, (server, _) in names),
            )

    def _agree(self) -> None:
        """Finds the terms of its parameters, which hold from the next command on."""
        own = self.__dict__  # descriptors and defaults cost, and all of these are there
        handler = own["event_handler"]
        pushes, calls_hooks, makes_facts = _overridden(cast("Any", type(self)))
        terms = agree(
            Parameters(
                server=type(self),
                handler=type(handler) if not isinstance(handler, type) else handler,
                hooks=hooks_of(handler),
                handler_size=len(vars(type(handler))),
                ehlo_arity=ehlo_arity(handler),
                data_size_limit=own["data_size_limit"] or 0,
                smtputf8=bool(own["enable_SMTPUTF8"]),
                decode_data=bool(own["_decode_data"]),
                hostname=own["hostname"],
                ident=own["__ident__"],
                starttls=own["tls_context"] is not None,
                require_starttls=bool(own["require_starttls"]),
                timeout=own["_timeout_duration"],
                auth_required=bool(own["_auth_required"]),
                auth_require_tls=bool(own["_auth_require_tls"]),
                auth_exclude_mechanism=own["_auth_exclude"],
                command_call_limit=own["_call_limits"],
                line_length_limit=self.line_length_limit,
                command_size_limit=self.command_size_limit,
                command_size_limits=tuple(sorted(self._sizes.items())) if self._sizes else (),
                local_part_limit=self.local_part_limit or 0,
                calls_hooks=calls_hooks,
                makes_facts=makes_facts,
                traced=log.isEnabledFor(logging.INFO),
                log_mail=MailLog.wanted(self.log_mail),
                esmtp_parameters=own["_esmtp_parameters"],
            )
        )
        for name in hooks_of(handler) if not calls_hooks else ():
            check_hook(handler, name)
        own["_terms"] = terms
        own["_handler"] = handler
        own["_traced"] = terms.rules.traced
        own["_pushes"] = pushes
        own["_encoding"] = "utf-8" if own["enable_SMTPUTF8"] else "ascii"
        self.rules = terms.rules
        self._site = own["_house"].site(terms)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that serves this connection. Another may be set before it is made."""
        return self._house.loop

    @loop.setter
    def loop(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._house.loop:
            self._house = house_of(loop)
            self.join(self._house.engine)
            self._agree()

    @property
    def takes_streams(self) -> bool:
        return self._terms.takes_streams

    # --- the transport's calls ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes a client's connection: greets it, after its PROXY header if there is to be one."""
        self.transport = cast("asyncio.Transport", transport)
        encrypted = transport.get_extra_info("ssl_object")
        if isinstance(encrypted, ssl.SSLObject):
            self.session.tls = True
            self.session.ssl = _facts(transport, encrypted)
        self.session.loop = self.loop
        self.know_peer()
        if self._traced:
            log.info("Peer: %r", self.session.peer)
        self._house.wind(self._timeout_duration)
        if self._proxy_timeout is None:
            self.connect(self.writer(self.transport))
        else:
            self.be_introduced(self._proxy_timeout)

    def data_received(self, data: bytes) -> None:
        """Takes octets from the client, for those who call a protocol by hand."""
        self.feed(data)

    def trace(self, line: bytes) -> None:
        log.info("%r >> %r", self.session.peer, sanitize(line))

    def shut_down(self) -> None:
        # Without a word, as aiosmtpd stops: smtplib's `with` raises for a 421 that answers its QUIT.
        self.end()

    def eof_received(self) -> bool:
        if self._traced:
            log.info("%r EOF received", self.session.peer)
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._traced:
            log.info("%r connection lost", self.session.peer)
        super().connection_lost(exc)
        for waited in (self._response, self._performance, self._command, self._introduction):
            if isinstance(waited, asyncio.Future):
                give_up(waited)
            elif waited is not None:
                waited.cancel()
        self.resume_waiting()
        self._tell_of_the_end()

    @property
    def _handler_coroutine(self) -> asyncio.Future[None]:
        """Done when the connection is over; what aiosmtpd's tests wait for."""
        if self._over is None:
            self._over = self.loop.create_future()
            if self.closed:
                self._over.set_result(None)
        return self._over

    def hang_up(self) -> None:
        super().hang_up()
        self._tell_of_the_end()

    def _tell_of_the_end(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    # --- TLS ------------------------------------------------------------------------------------------------

    def secured(self, ssl: Any, write: Any) -> None:
        assert self.transport is not None
        self.session.note_login(None)
        super().secured(_facts(self.transport, ssl), self.writer(self.transport))

    def tls_failed(self, error: Exception) -> None:
        super().tls_failed(error)
        if self.transport is None:
            return  # TLS came before the connection
        failure = TLSSetupException()
        failure.__cause__ = error
        future = self.loop.create_task(self._status_of(failure))
        self._site.goodbyes.add(future)
        future.add_done_callback(self._site.goodbyes.discard)

    # --- what hooks and subclasses use ----------------------------------------------------------------------

    async def push(self, status: str | bytes) -> None:
        """Says a line, or some, to the client: adds CRLF, writes, and waits while the client does not read."""
        if self._pushes:
            self._pushes_by_us = True
            self._pushed += asyncio.current_task() is not self._pusher
        else:
            self._pushed += 1
        octets = part(status, self._encoding)
        if self._foreword:
            octets, self._foreword = self._foreword + octets, b""
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%r << %r", self.session.peer, octets)
        if self._pushes:
            await self.pushed()
            if self.transport is not None and not self.transport.is_closing():
                self.transport.write(octets)
        else:
            self.tell(octets)
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def writer(self, transport: asyncio.Transport) -> Callable[[bytes], object]:
        """What the dialogue writes with."""
        return self.write_by_pushing if self._pushes else transport.write

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writable = self.loop.create_future()

    def resume_writing(self) -> None:
        self.resume_waiting()
        super().resume_writing()

    def resume_waiting(self) -> None:
        """Lets those go on who wait in ``push``."""
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    async def handle_exception(self, error: Exception) -> str:
        """The status that an exception in a hook or command is answered with; to be overridden.

        Asks the handler's ``handle_exception`` if it has one.
        """
        if hasattr(self.event_handler, "handle_exception"):
            return cast("str", await settled(self.event_handler.handle_exception(error)))
        self._say(logging.ERROR, type(error), "SMTP session exception", error=error)
        return _status_of_error(error)

    async def check_helo_needed(self, helo: str = "HELO") -> bool:
        """Whether the client has not said hello; it is told so."""
        if self.session.host_name:
            return False
        await self.push(f"503 Error: send {helo} first")
        return True

    @property
    def max_command_size_limit(self) -> int:
        """The longest command line there may be, in bytes."""
        return self.longest_command

    @property
    def command_size_limits(self) -> dict[str, int]:
        """The longest line of a command, in bytes, where it is not ``command_size_limit``. MAIL may be longer after
        EHLO, by what its parameters take.
        """
        if self._sizes is None:
            self._sizes = _Sizes(self)
        return self._sizes

    def _create_session(self) -> Session:
        """Makes the session of a connection; to be overridden."""
        return Session(self.loop)

    def _create_envelope(self) -> Envelope:
        """Makes the envelope of a transaction; to be overridden."""
        return Envelope()

    def make_session(self) -> Session:
        return _of_kind(Session, self._create_session(), "_create_session")

    def make_envelope(self) -> Envelope:
        return _of_kind(Envelope, self._create_envelope(), "_create_envelope")

    @property
    def _handler_object(self) -> object:
        return self.event_handler

    def _set_rset_state(self) -> None:
        self.envelope = self._create_envelope()

    _set_post_data_state = _set_rset_state

    # --- answers --------------------------------------------------------------------------------------------

    def _reply(self, kind: int, result: object) -> bytes | None:
        if result is None and kind in _MAY_BE_SILENT:
            return self.unanswered() if kind == _AUTH else b""
        try:
            if isinstance(result, (str, bytes)):
                reply = plain(result, self._encoding)
                if kind == _RCPT:
                    self._look_for_recipients(reply)
            elif kind == _EHLO and isinstance(result, Iterable):
                return plain_lines(list(result), self._encoding)
            elif kind == _DATA and self.replies_to_each and isinstance(result, Iterable):
                statuses = list(result)
                if len(statuses) != self.recipients or not all(isinstance(s, (str, bytes)) for s in statuses):
                    raise NotAReply(f"{brief_repr(statuses)} has not one status for each recipient")
                return b"".join(plain(status, self._encoding) for status in statuses)
            else:
                raise NotAReply(f"{brief_repr(result)} is no status")
        except (NotAReply, UnicodeEncodeError) as error:
            return self._failure(kind, error)
        return reply * self.recipients if kind == _DATA and self.replies_to_each else reply

    def _failure(self, kind: int, error: BaseException) -> bytes | None:
        error = cause_of(error)
        if isinstance(error, (SMTPError, NotAReply)) or not isinstance(error, Exception):
            reply = super()._failure(kind, error)
            return reply * self.recipients if reply and kind == _DATA and self.replies_to_each else reply
        if isinstance(error, (ConnectionResetError, TLSSetupException)):
            self.end()
            return b"" if kind in _MAY_BE_SILENT else self.rules.book["HANDLER_FAILED"]
        self._pending = self.loop.create_task(self._status_of(error))
        self._pending.add_done_callback(self._done)
        return None

    def _refused(self, kind: int, error: SMTPError) -> bytes | None:
        return plain(refusal(error), self._encoding)

    async def _status_of(self, error: Exception) -> str | bytes:
        try:
            status = await guarded(self.handle_exception(error))
        except Exception as raised:
            inner = cause_of(raised)
            try:
                self._say(logging.ERROR, "handle_exception", "Exception in handle_exception()", error=inner)
                return self._surely(_status_of_error(inner))
            except Exception:
                return "500 Error: Cannot describe error"
        if status is None:
            self._say(logging.ERROR, "no status", "handle_exception gave no status for %s", brief_repr(error))
            return as_status(self.rules.book, "HANDLER_FAILED")
        return self._surely(status)

    def _surely(self, status: str | bytes) -> bytes:
        """A status that is about an error, so that it must not be another."""
        return status.encode(self._encoding, "backslashreplace") if isinstance(status, str) else status


def _status_of_error(error: BaseException) -> str:
    return f"500 Error: ({type(error).__name__}) {' '.join(str(error).splitlines())}"


def _of_kind(kind: type[T], made: object, by: str) -> T:
    if isinstance(made, kind):
        return made
    raise TypeError(f"{by}() gave a {type(made).__name__}; it must be a fastsmtp.smtp.{kind.__name__}")


@cache
def _overridden(server: Any) -> tuple[bool, bool, bool]:
    """Whether a class has another way to push, to call hooks, and to make sessions or envelopes."""
    return (
        server.push is not SMTP.push,
        server._call_handler_hook is not SMTP._call_handler_hook,
        server._create_session is not SMTP._create_session
        or server._create_envelope is not SMTP._create_envelope,
    )


def _forget() -> None:
    agree.cache_clear()
    _overridden.cache_clear()
    forget_prepared()


Watched.forget = staticmethod(_forget)


@cache
def _instance(handler: type) -> Any:
    return handler()


def _an_instance(handler: Any) -> Any:
    """``handler``, or one made of it if it is a class whose hooks want a ``self``: one for all connections."""
    if isinstance(handler, type) and any(
        inspect.isfunction(inspect.getattr_static(handler, name))
        for name in dir(handler)
        if name.startswith(("handle_", "auth_", "process_message"))
    ):
        return _instance(handler)
    return handler


def _look_at(context: ssl.SSLContext) -> None:
    """Warns of a context for STARTTLS that may be a mistake."""
    if context.verify_mode not in (ssl.CERT_NONE, ssl.CERT_OPTIONAL):
        log.warning(
            "tls_context.verify_mode not in {CERT_NONE, CERT_OPTIONAL}; "
            "this might cause client connection problems"
        )
    elif context.check_hostname:
        log.warning("tls_context.check_hostname == True; this might cause client connection problems")


def _call_limits(limits: int | dict[str, int]) -> tuple[tuple[str, int], ...]:
    if isinstance(limits, int):
        return (("*", limits),)
    if not isinstance(limits, dict):
        raise TypeError("command_call_limit must be int or Dict[str, int]")
    if not all(map(is_int, limits.values())):
        raise TypeError("All command_call_limit values must be int")
    return tuple(sorted({"*": CALL_LIMIT_DEFAULT, **limits}.items()))


def _facts(transport: asyncio.BaseTransport, encrypted: ssl.SSLObject) -> dict[str, Any]:
    """What aiosmtpd's ``session.ssl`` tells of TLS."""
    names = ("sslcontext", "peercert", "cipher", "compression")
    return {"ssl_object": encrypted, **{name: transport.get_extra_info(name) for name in names}}
