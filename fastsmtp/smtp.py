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
import tempfile
import time
import warnings
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

from fastsmtp._engine import Engine
from fastsmtp._rules import ASKS, Rules
from fastsmtp._version import __version__
from fastsmtp.body import Spill
from fastsmtp.connection import LATER, Connection, Site
from fastsmtp.envelope import Envelope, Session
from fastsmtp.errors import SMTPError
from fastsmtp.legacy import Legacy
from fastsmtp.proxy_protocol import ProxyData, ProxyParser
from fastsmtp.replies import native
from fastsmtp.sasl import CLIENT_AUTH_B as CLIENT_AUTH_B
from fastsmtp.sasl import VALID_AUTHMECH as VALID_AUTHMECH
from fastsmtp.sasl import (
    BAD_BASE64,
    FAILED,
    MISSING,
    SUCCEEDED,
    AuthResult,
    LoginPassword,
    Missing,
    auth_mechanism,
    decode,
    login,
    plain,
    sanitize,
    sanitized_log,
)
from fastsmtp.terms import Parameters, Terms, agree, built_in, ehlo_arity, hooks_of

__all__ = [
    "MISSING",
    "SMTP",
    "AuthCallbackType",
    "AuthMechanismType",
    "AuthResult",
    "AuthenticatorType",
    "Envelope",
    "LoginPassword",
    "Session",
    "TLSSetupException",
    "__version__",
    "auth_mechanism",
    "sanitize",
    "sanitized_log",
    "syntax",
]

AuthCallbackType: TypeAlias = Callable[[str, bytes, bytes], bool]
AuthenticatorType: TypeAlias = "Callable[[SMTP, Session, Envelope, str, Any], AuthResult]"
AuthMechanismType: TypeAlias = "Callable[[SMTP, list[str]], Awaitable[Any]]"
F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger("mail.log")

__ident__ = f"Python SMTP {__version__}"
BOGUS_LIMIT = 5
CALL_LIMIT_DEFAULT = 20
DATA_SIZE_DEFAULT = 2**25  # bytes
EMPTYBYTES = b""
EMPTY_BARR = bytearray()
ALLOWED_BEFORE_STARTTLS = {"NOOP", "EHLO", "STARTTLS", "QUIT"}

_SPILL = 4 << 20  # bytes of a message beyond which it goes to a temporary file
_TICK = 1.0  # seconds between looks at the deadlines
_DATA = ASKS.index("DATA")
_MAY_BE_SILENT = frozenset({ASKS.index("AUTH"), ASKS.index("COMMAND")})
_NO_REPLY = b"451 4.3.0 Error: local error in processing\r\n"


class TLSSetupException(Exception):
    """Raised by a hook that found TLS wanting: the connection is closed."""


def syntax(text: str, extended: str | None = None, when: str | None = None) -> Callable[[F], F]:
    """Gives a ``smtp_`` method what HELP says of it.

    ``extended`` is added to ``text`` after EHLO. ``when`` names an attribute of the server that must be true for
    the command to be listed.
    """

    def decorate(method: F) -> F:
        method.__smtp_syntax__ = text  # type: ignore[attr-defined]
        method.__smtp_syntax_extended__ = extended  # type: ignore[attr-defined]
        method.__smtp_syntax_when__ = when  # type: ignore[attr-defined]
        return method

    return decorate


def login_always_fail(mechanism: str, login: bytes, password: bytes) -> bool:
    """The ``auth_callback`` of those who have none."""
    return False


def is_int(o: object) -> bool:
    """Whether ``o`` is an ``int``."""
    return isinstance(o, int)


def make_loop() -> asyncio.AbstractEventLoop:
    """The running loop, else the current one, else a new one that is then the current one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 says so when there is none
            return asyncio.get_event_loop()
    except RuntimeError:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        return loop


@cache
def _fqdn() -> str:
    return socket.getfqdn()  # may ask a name server for seconds: once a process, not once a connection


class _House:
    """What all connections of one event loop share: the engine with its memory, and the coarse clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.sites: dict[Terms, Site] = {}
        spills = Path(tempfile.gettempdir())
        rules = Rules(book=native("localhost"))  # until each connection has its own
        self.engine = Engine(rules=rules, open_spill=lambda dialogue: Spill(spills), spill_threshold=_SPILL)
        self._ticking: asyncio.TimerHandle | None = None
        self._interval = _TICK

    def site(self, terms: Terms) -> Site:
        site = self.sites.get(terms)
        if site is None:
            if len(self.sites) > 256:
                self.sites.clear()
            site = self.sites[terms] = Site(terms.plan, self.loop, hostname="")
        return site

    def wind(self, timeout: float) -> None:
        """Lets the clock run while there are connections; ``timeout`` is the shortest of the new one's."""
        self._interval = min(self._interval, timeout / 4)
        if self._ticking is None:
            self.engine.now = time.monotonic()
            self._ticking = self.loop.call_later(self._interval, self._tick)

    def _tick(self) -> None:
        for dialogue, state in self.engine.tick(time.monotonic()):
            connection = cast("Connection", dialogue)
            connection.expire(state)
            if connection.closed and connection.unsent:
                connection.abort()
        self._ticking = None
        if self.engine.live:
            self._ticking = self.loop.call_later(self._interval, self._tick)
        else:
            self._interval = _TICK


_houses: dict[asyncio.AbstractEventLoop, _House] = {}


def _house(loop: asyncio.AbstractEventLoop) -> _House:
    house = _houses.get(loop)
    if house is None:
        for other in list(_houses):
            if other.is_closed():
                _houses.pop(other, None)
        house = _houses[loop] = _House(loop)
    return house


class _Term:
    """A parameter that may be changed on the class, in a subclass, and on a connection while it runs."""

    def __init__(self, default: Any = None) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, smtp: SMTP | None, owner: type) -> Any:
        return self.default if smtp is None else smtp.__dict__.get(self.name, self.default)

    def __set__(self, smtp: SMTP, value: Any) -> None:
        smtp.__dict__[self.name] = value
        smtp._agree()


class _Sizes(dict[str, int]):
    """A dictionary whose changes hold at once."""

    def __init__(self, smtp: SMTP) -> None:
        self._agree = smtp._agree

    def __setitem__(self, command: str, size: int) -> None:
        super().__setitem__(command, size)
        self._agree()


class SMTP(Legacy, Connection):
    """One connection that takes mail for ``handler``, as aiosmtpd's ``SMTP`` does.

    A protocol factory for ``loop.create_server(lambda: SMTP(handler))`` on any asyncio loop. The parameters and
    hooks are aiosmtpd's, see docs/from-aiosmtpd.md; sizes are in bytes, times in seconds.

    ``esmtp_parameters`` is ``"refuse"`` (unknown parameters of MAIL and RCPT are answered 555) or ``"pass"``
    (hooks get them). Raises ``TypeError`` and ``ValueError`` as aiosmtpd does, ``RuntimeError`` for an EHLO hook
    of neither shape.
    """

    command_size_limit: int = cast("int", _Term(512))
    line_length_limit: int = cast("int", _Term(1001))
    local_part_limit: int = cast("int", _Term(0))
    event_handler: Any = _Term()
    data_size_limit: int | None = cast("int | None", _Term())
    enable_SMTPUTF8: bool = cast("bool", _Term(False))
    hostname: str = cast("str", _Term(""))
    require_starttls: bool = cast("bool", _Term(False))
    tls_context: ssl.SSLContext | None = cast("ssl.SSLContext | None", _Term())
    __ident__: str = cast("str", _Term(__ident__))

    AuthLoginUsernameChallenge = "User Name\x00"
    AuthLoginPasswordChallenge = "Password\x00"

    replies_to_each = False  # recipient after DATA, as LMTP does

    _house: _House
    _terms: Terms
    _decode_data: bool
    _timeout_duration: float
    _auth_required: bool
    _auth_require_tls: bool
    _auth_exclude: frozenset[str]
    _auth_callback: AuthCallbackType | None
    _authenticator: AuthenticatorType | None
    _call_limits: tuple[tuple[str, int], ...] | None
    _esmtp_parameters: str
    _proxy_timeout: float | None
    _parser: ProxyParser
    _proxy_timer: asyncio.TimerHandle | None = None
    # what is waited for: a command that Python does, the client's answer, the dialogue, and the client's reading
    _command: asyncio.Future[Any] | None = None
    _response: asyncio.Future[bytes | None] | None = None
    _performance: asyncio.Future[None] | None = None
    _writable: asyncio.Future[None] | None = None
    _over: asyncio.Future[None] | None = None
    _sizes: _Sizes | None = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name, term in vars(SMTP).items():
            if isinstance(term, _Term) and name in vars(cls) and not isinstance(vars(cls)[name], _Term):
                own = _Term(vars(cls)[name])
                own.__set_name__(cls, name)
                setattr(cls, name, own)

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
        house = _house(loop if loop is not None else make_loop())
        self.join(house.engine)
        assert data_size_limit is None or isinstance(data_size_limit, int)
        if tls_context is not None:
            _look_at(tls_context)
        if auth_required and not auth_require_tls:
            warnings.warn(
                "Requiring AUTH while not requiring TLS can lead to security vulnerabilities!", stacklevel=2
            )
            log.warning("auth_required == True but auth_require_tls == False")
        if proxy_protocol_timeout is not None:
            if proxy_protocol_timeout <= 0:
                raise ValueError("proxy_protocol_timeout must be > 0")
            if proxy_protocol_timeout < 3.0:
                log.warning("proxy_protocol_timeout < 3.0")
        if esmtp_parameters not in ("refuse", "pass"):
            raise ValueError(f'esmtp_parameters must be "refuse" or "pass", not {esmtp_parameters!r}')
        self.__dict__.update(
            _house=house,
            event_handler=_an_instance(handler),
            data_size_limit=data_size_limit,
            enable_SMTPUTF8=enable_SMTPUTF8,
            hostname=hostname or _fqdn(),
            __ident__=ident or __ident__,
            tls_context=tls_context,
            require_starttls=bool(tls_context and require_starttls),
            _decode_data=decode_data,
            _timeout_duration=timeout,
            _auth_required=auth_required,
            _auth_require_tls=auth_require_tls,
            _auth_exclude=frozenset(auth_exclude_mechanism or ()),
            _auth_callback=None if authenticator is not None else auth_callback or login_always_fail,
            _authenticator=authenticator,
            _call_limits=None if command_call_limit is None else _call_limits(command_call_limit),
            _esmtp_parameters=esmtp_parameters,
            _proxy_timeout=proxy_protocol_timeout,
        )
        self._agree()
        super().__init__(house.engine, self._site)
        if self._terms.old_ehlo:
            warnings.warn(
                "Use the 5-argument handle_EHLO() hook instead of the 4-argument handle_EHLO() hook; "
                "support for the 4-argument handle_EHLO() hook will be removed in version 2.0",
                DeprecationWarning,
                stacklevel=2,
            )
        if log.isEnabledFor(logging.INFO):
            names = sorted(self._terms.mechanisms.items())
            log.info(
                "Available AUTH mechanisms: %s",
                " ".join(name + "(builtin)" if server else name for name, (server, _) in names),
            )

    def _agree(self) -> None:
        """Finds the terms of its parameters, which hold from the next command on."""
        own = self.__dict__  # descriptors and defaults cost, and all of these are there
        handler = own["event_handler"]
        terms = agree(
            Parameters(
                server=type(self),
                handler=type(handler) if not isinstance(handler, type) else handler,
                hooks=hooks_of(handler),
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
                traced=log.isEnabledFor(logging.INFO),
                esmtp_parameters=own["_esmtp_parameters"],
            )
        )
        own["_terms"] = terms
        self.rules = terms.rules
        self._site = own["_house"].site(terms)

    # --- the transport's calls ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes a client's connection: greets it, after its PROXY header if there is to be one."""
        self.transport = cast("asyncio.Transport", transport)
        encrypted = transport.get_extra_info("ssl_object")
        if isinstance(encrypted, ssl.SSLObject):
            self.session.tls = True
            self.session.ssl = _facts(transport, encrypted)
        self.know_peer()
        if log.isEnabledFor(logging.INFO):
            log.info("Peer: %r", self.session.peer)
        self._house.wind(min(self._timeout_duration, _TICK * 4))
        if self._proxy_timeout is None:
            self.connect(self.transport.write)
        elif self.session.proxy_data is not None:
            self._prefaced(self.session.proxy_data)
        else:
            self.expect_preface()
            self._parser = ProxyParser()
            self._proxy_timer = self.loop.call_later(self._proxy_timeout, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        """Takes octets from the client, for those who call a protocol by hand."""
        self.feed(data)

    def trace(self, line: bytes) -> None:
        log.info("%r >> %r", self.session.peer, sanitize(line))

    def shut_down(self) -> None:
        # Without a word, as aiosmtpd stops: smtplib's `with` raises for a 421 that answers its QUIT.
        self.end()

    def eof_received(self) -> bool:
        if log.isEnabledFor(logging.INFO):
            log.info("%r EOF received", self.session.peer)
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if log.isEnabledFor(logging.INFO):
            log.info("%r connection lost", self.session.peer)
        super().connection_lost(exc)
        for waited in (self._response, self._performance, self._command, self._proxy_timer):
            if waited is not None:
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

    # --- PROXY ----------------------------------------------------------------------------------------------

    def proxied(self, proxy_data: ProxyData) -> None:
        """Gives a PROXY header that somebody else has read, before ``connection_made``."""
        self.session.proxy_data = proxy_data

    def preface(self, octets: bytes) -> int:
        taken = self._parser.feed(octets)
        if self._parser.data is None:
            return -1
        assert self._proxy_timer is not None
        self._proxy_timer.cancel()
        self._prefaced(self._parser.data)
        return taken

    def _prefaced(self, data: ProxyData) -> None:
        self.session.proxy_data = data
        hook = getattr(self.event_handler, "handle_PROXY", None)
        if not data or hook is None:
            log.warning(
                "%r %s PROXY handshake",
                self.session.peer,
                "no handle_PROXY for the" if data else "invalid",
            )
            self._end_preface(False)
            return
        if self.envelope is None:
            self.envelope = self.make_envelope()
        try:
            result = hook(self, self.session, self.envelope, data)
        except Exception as error:
            self._complain("handle_PROXY", error, 0)
            self._end_preface(False)
            return
        if asyncio.iscoroutine(result) or asyncio.isfuture(result):
            future = asyncio.ensure_future(result, loop=self.loop)
            self._command = future
            future.add_done_callback(self._proxy_decided)
        else:
            self._end_preface(bool(result))

    def _proxy_decided(self, future: asyncio.Future[Any]) -> None:
        self._command = None
        accepted = False
        if not future.cancelled():
            error = future.exception()
            if error is not None:
                self._complain("handle_PROXY", error, 0)
            else:
                accepted = bool(future.result())
        self._end_preface(accepted)
        self.go_on()

    def _end_preface(self, accepted: bool) -> None:
        if self.transport is None:
            return
        if accepted:
            self.connect(self.transport.write)
        else:
            log.info("%r rejected by handle_PROXY", self.session.peer)
            self.transport.close()

    # --- TLS ------------------------------------------------------------------------------------------------

    def secured(self, ssl: Any, write: Any) -> None:
        assert self.transport is not None
        self.session.note_login(None)
        super().secured(_facts(self.transport, ssl), write)

    def tls_failed(self, error: Exception) -> None:
        super().tls_failed(error)
        failure = TLSSetupException()
        failure.__cause__ = error
        future = self.loop.create_task(self._status_of(failure))
        self._site.goodbyes.add(future)
        future.add_done_callback(self._site.goodbyes.discard)

    # --- what hooks and subclasses use ----------------------------------------------------------------------

    async def push(self, status: str | bytes) -> None:
        """Says a line, or some, to the client: adds CRLF, writes, and waits while the client does not read."""
        octets = status if isinstance(status, bytes) else self._encode(status)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%r << %r", self.session.peer, octets)
        self.tell(octets + b"\r\n")
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def _encode(self, status: str) -> bytes:
        return status.encode("utf-8" if self.enable_SMTPUTF8 else "ascii", "surrogateescape")

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
            status = self.event_handler.handle_exception(error)
            return cast("str", await status if asyncio.iscoroutine(status) else status)
        log.error("%r SMTP session exception", self.session.peer, exc_info=error)
        return f"500 Error: ({type(error).__name__}) {error}"

    async def check_helo_needed(self, helo: str = "HELO") -> bool:
        """Whether the client has not said hello; it is told so."""
        if self.session.host_name:
            return False
        await self.push(f"503 Error: send {helo} first")
        return True

    async def check_auth_needed(self, caller_method: str) -> bool:
        """Whether the client has to authenticate before ``caller_method``; it is told so."""
        if self.session.authenticated or not self._auth_required:
            return False
        log.info("%s: Authentication required", caller_method)
        await self.push("530 5.7.0 Authentication required")
        return True

    @property
    def max_command_size_limit(self) -> int:
        """The longest command line there may be, in bytes."""
        return max(self.command_size_limits.values(), default=self.command_size_limit)

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
        return self._create_session()

    def make_envelope(self) -> Envelope:
        return self._create_envelope()

    def _set_rset_state(self) -> None:
        self.envelope = self._create_envelope()

    _set_post_data_state = _set_rset_state

    # --- commands that a subclass has overridden ------------------------------------------------------------

    def _begin_command(self, verb: str, argument: str | None) -> object:
        method = getattr(self, self._terms.commands[verb])
        result = method(argument)
        if asyncio.iscoroutine(result):
            task = self.loop.create_task(result)
            self._command = task
            task.add_done_callback(self._command_done)
            return LATER
        return None

    def _command_done(self, task: asyncio.Task[Any]) -> None:
        if task is not self._command:
            return
        self._command = None
        if task.cancelled():
            self.end()
        elif (error := task.exception()) is None:
            self.answered(b"")
        else:
            reply = self._failure(self.asked, error)
            if reply is not None:
                self.answered(reply)

    async def _perform(self, verb: str, argument: str | None) -> None:
        if not self.perform(verb, argument):
            performance = self.loop.create_future()
            self._performance = performance
            await performance

    def performed(self) -> None:
        performance, self._performance = self._performance, None
        if performance is not None and not performance.done():
            performance.set_result(None)

    def expire(self, state: str) -> None:
        command = self._command
        if command is not None and state == "handler":
            self._command = None
            command.cancel()
        super().expire(state)

    # --- answers --------------------------------------------------------------------------------------------

    def _reply(self, kind: int, result: object) -> bytes:
        if isinstance(result, str):
            octets = _status(result, "utf-8" if self.enable_SMTPUTF8 else "ascii")
        elif result is None and kind in _MAY_BE_SILENT:
            return b""
        elif isinstance(result, bytes):
            octets = result + b"\r\n"
        elif isinstance(result, list):
            octets = b"".join(self._reply(kind, line) for line in result)
            if kind == _DATA and self.replies_to_each and len(result) == self._recipients():
                return octets
        else:
            octets = b""
        if not octets[:3].isdigit():
            log.error("handle_%s gave no status but %r", ASKS[kind], result)
            octets = _NO_REPLY
        if kind == _DATA and self.replies_to_each:
            return octets * self._recipients()
        return octets

    def _recipients(self) -> int:
        assert self.envelope is not None
        return len(self.envelope.rcpt_tos)

    def _failure(self, kind: int, error: BaseException) -> bytes | None:
        if isinstance(error, SMTPError):
            return self._reply(kind, str(error))
        if isinstance(error, (ConnectionResetError, TLSSetupException)):
            self.end()
            return b"" if kind in _MAY_BE_SILENT else _NO_REPLY
        self._pending = self.loop.create_task(self._status_of(cast("Exception", error)))
        self._pending.add_done_callback(self._done)
        return None

    async def _status_of(self, error: Exception) -> str | bytes:
        try:
            status = await self.handle_exception(error)
        except Exception as inner:
            try:
                log.error("%r Exception in handle_exception()", self.session.peer, exc_info=inner)
                return f"500 Error: ({type(inner).__name__}) {inner}"
            except Exception:
                return "500 Error: Cannot describe error"
        if status is None:
            log.error("handle_exception gave no status for %r", error)
            return _NO_REPLY[:-2]
        return status

    # --- AUTH -----------------------------------------------------------------------------------------------

    async def challenge_auth(
        self, challenge: str | bytes, encode_to_b64: bool = True, log_client_response: bool = False
    ) -> bytes | Missing:
        """Asks the client within AUTH, and returns its answer, decoded from base64.

        ``MISSING``: it gave up, or answered something else, and was told so. With ``log_client_response`` the
        answer, a password as a rule, is logged.
        """
        octets = challenge.encode() if isinstance(challenge, str) else challenge
        response = self.loop.create_future()
        self._response = response
        self.challenge(b"334 " + (b64encode(octets) if encode_to_b64 else octets) + b"\r\n")
        line = await response
        if line is None:
            log.warning("%r aborted AUTH with '*'", self.session.peer)
            return MISSING
        if log_client_response:
            warnings.warn("AUTH interaction logging is enabled!", stacklevel=2)
            warnings.warn("Sensitive information might be leaked!", stacklevel=2)
            log.debug("%r >> %r", self.session.peer, line)
        decoded = decode(line.strip())
        if decoded is None:
            log.debug("%r can't decode base64: %s", self.session.peer, line)
            await self.push(BAD_BASE64)
            return MISSING
        return decoded

    def responded(self, line: bytes | None) -> None:
        response, self._response = self._response, None
        if response is not None and not response.done():
            response.set_result(line)

    async def auth_PLAIN(self, _: object, args: list[str]) -> AuthResult:
        """AUTH PLAIN; to be overridden."""
        return self._authenticate("PLAIN", await plain(self, args))

    async def auth_LOGIN(self, _: object, args: list[str]) -> AuthResult:
        """AUTH LOGIN; to be overridden."""
        return self._authenticate("LOGIN", await login(self, args))

    def _authenticate(self, mechanism: str, auth_data: Any) -> AuthResult:
        """Has the program judge credentials; ``None`` are those that the client was told are malformed."""
        if auth_data is None:
            return AuthResult(success=False, handled=True)
        if self._authenticator is not None:
            assert self.envelope is not None
            return self._authenticator(self, self.session, self.envelope, mechanism, auth_data)
        assert self._auth_callback is not None
        if self._auth_callback(mechanism, *auth_data):
            return AuthResult(success=True, handled=True, auth_data=auth_data)
        return AuthResult(success=False, handled=False)

    async def _authenticate_by(self, words: list[str]) -> Any:
        handler = self.event_handler
        if hasattr(handler, "handle_AUTH"):
            status = handler.handle_AUTH(self, self.session, self.envelope, words)
            status = await status if asyncio.iscoroutine(status) else status
            if status is not MISSING:
                return status
        ours, method = self._terms.mechanisms[words[0]]
        result = getattr(self if ours else handler, method)(self, words)
        if asyncio.iscoroutine(result):
            result = await result
        log.debug("auth_%s returned %r", words[0], result)
        session = self.session
        if isinstance(result, AuthResult):
            if result.success:
                session.authenticated = True
                session.auth_data = result.auth_data
                session.note_login(getattr(result.auth_data, "login", None))
                return result.message or SUCCEEDED
            return None if result.handled else result.message or FAILED
        if result is None:
            return None
        if result is MISSING or result is False:
            return FAILED
        session.authenticated = True
        session.note_login(result)
        return SUCCEEDED

    # --- the commands ---------------------------------------------------------------------------------------
    # None of these is called unless a subclass has one of its own: the dialogue does them.

    @built_in
    @syntax("HELO hostname")
    async def smtp_HELO(self, hostname: str) -> None:
        """HELO; to be overridden, as all of these."""
        await self._perform("HELO", hostname)

    @built_in
    @syntax("EHLO hostname")
    async def smtp_EHLO(self, hostname: str) -> None:
        """EHLO."""
        await self._perform("EHLO", hostname)

    @built_in
    @syntax("NOOP [ignored]")
    async def smtp_NOOP(self, arg: str | None) -> None:
        """NOOP."""
        await self._perform("NOOP", arg)

    @built_in
    @syntax("QUIT")
    async def smtp_QUIT(self, arg: str | None) -> None:
        """QUIT."""
        await self._perform("QUIT", arg)

    @built_in
    @syntax("STARTTLS", when="tls_context")
    async def smtp_STARTTLS(self, arg: str | None) -> None:
        """STARTTLS (RFC 3207)."""
        await self._perform("STARTTLS", arg)

    @built_in
    @syntax("AUTH <mechanism>")
    async def smtp_AUTH(self, arg: str | None) -> None:
        """AUTH (RFC 4954)."""
        await self._perform("AUTH", arg)

    @built_in
    @syntax("VRFY <address>")
    async def smtp_VRFY(self, arg: str | None) -> None:
        """VRFY."""
        await self._perform("VRFY", arg)

    @built_in
    @syntax("MAIL FROM: <address>", extended=" [SP <mail-parameters>]")
    async def smtp_MAIL(self, arg: str | None) -> None:
        """MAIL."""
        await self._perform("MAIL", arg)

    @built_in
    @syntax("RCPT TO: <address>", extended=" [SP <mail-parameters>]")
    async def smtp_RCPT(self, arg: str | None) -> None:
        """RCPT."""
        await self._perform("RCPT", arg)

    @built_in
    @syntax("RSET")
    async def smtp_RSET(self, arg: str | None) -> None:
        """RSET."""
        await self._perform("RSET", arg)

    @built_in
    @syntax("DATA")
    async def smtp_DATA(self, arg: str | None) -> None:
        """DATA, to the reply after its content."""
        await self._perform("DATA", arg)

    @built_in
    async def smtp_EXPN(self, arg: str | None) -> None:
        """EXPN."""
        await self._perform("EXPN", arg)

    @syntax("HELP [command]")
    async def smtp_HELP(self, arg: str | None) -> None:
        """HELP: the commands that have a ``@syntax``, or that of one."""
        if await self.check_auth_needed("HELP"):
            return
        known = {verb: getattr(self, name) for verb, name in self._terms.commands.items()}
        listed = {verb: method for verb, method in known.items() if self._syntax_available(method)}
        method = listed.get(arg.upper()) if arg else None
        if method is not None:
            extended = method.__smtp_syntax_extended__ if self.session.extended_smtp else None
            await self.push(f"250 Syntax: {method.__smtp_syntax__}{extended or ''}")
            return
        await self.push(f"{501 if arg else 250} Supported commands: {' '.join(sorted(listed))}")

    def _syntax_available(self, method: Callable[..., Any]) -> bool:
        if not hasattr(method, "__smtp_syntax__"):
            return False
        when = method.__smtp_syntax_when__  # type: ignore[attr-defined]
        return when is None or bool(getattr(self, when))


@lru_cache(maxsize=1024)
def _status(status: str, encoding: str) -> bytes:
    return status.encode(encoding, "surrogateescape") + b"\r\n"


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
