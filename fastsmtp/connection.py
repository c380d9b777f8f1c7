"""One connection: a dialogue on a transport of an event loop.

Knows transports, tasks, TLS and both directions of back-pressure: a client that does not read, a hook that
is slow. Refuses to know the rules of SMTP, which are the dialogue's, and how hooks are found, which is the
plan's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Executor
from operator import methodcaller
from typing import Any, ClassVar, cast
from weakref import WeakSet

from fastsmtp._core import Dialogue
from fastsmtp._engine import STAGES, Block, Engine, index
from fastsmtp._rules import ASKS
from fastsmtp._stream import Stream
from fastsmtp._wire import HELD_BY_VERDICT, HELD_UNREAD
from fastsmtp.body import Body
from fastsmtp.envelope import Envelope
from fastsmtp.errors import SMTPError
from fastsmtp.hooks import Call, Plan, cause_of, contained, give_up, guarded, is_cancellation, settled
from fastsmtp.logs import Noise, brief_repr, describe, peer_name, safe_id
from fastsmtp.maillog import MailLog
from fastsmtp.replies import NotAReply, from_lines, from_status, refusal
from fastsmtp.spills import Spilling

_MAIL = ASKS.index("MAIL")
_RCPT = ASKS.index("RCPT")
_SHOWN = frozenset({b"HELO", b"EHLO", b"LHLO", b"MAIL", b"RCPT", b"VRFY", b"EXPN", b"DATA"})
_DATA = ASKS.index("DATA")
_EHLO = ASKS.index("EHLO")
_CONNECT = ASKS.index("CONNECT")
_TLS_OK = index("fastsmtp_tls_handshakes_total", "ok")
_TLS_FAILED = index("fastsmtp_tls_handshakes_total", "failed")
_HANDLER_ERRORS = index("fastsmtp_handler_errors_total", STAGES[0])

_forgetful: WeakSet[type] = WeakSet()  # classes of handlers whose RCPT hook was warned of

LATER = object()  # what a call gives when it will have the ask answered itself


class Site:
    """What all connections of a worker share beyond the engine.

    ``queues`` says that what answers DATA is a sink, whose result is a queue id. ``tls`` is the context of TLS,
    whose handshake takes at most ``tls_timeout`` seconds. ``noise`` takes what the connections have to say in the log,
    ``mail`` keeps the log of mail, if the rules want one.
    """

    def __init__(
        self,
        plan: Plan,
        loop: asyncio.AbstractEventLoop,
        *,
        hostname: str,
        queues: bool = False,
        executor: Executor | None = None,
        tls: ssl.SSLContext | None = None,
        tls_timeout: float = 30.0,
        noise: Noise | None = None,
        mail: MailLog | None = None,
    ) -> None:
        self.plan = plan
        self.loop = loop
        self.hostname = hostname
        self.queues = queues
        self.executor = executor
        self.tls = tls
        self.tls_timeout = tls_timeout
        self.noise = noise if noise is not None else Noise(loop)
        self.mail = mail
        self.goodbyes: set[asyncio.Future[Any]] = set()  # the loop itself keeps no task alive


class Connection(Dialogue, asyncio.BufferedProtocol):
    """A client's connection; hooks get it as ``server``."""

    __slots__ = ("_about", "_at_eof", "_implicit_tls", "_paused", "_pending", "_site", "transport")

    _log: ClassVar[logging.Logger] = logging.getLogger("fastsmtp")
    _proxy_advice: ClassVar[str] = (
        "the setting proxy_protocol is not there yet; have the load balancer send no header, or use a "
        "fastsmtp.controller with proxy_protocol_timeout"
    )

    def __init__(self, engine: Engine, site: Site, implicit_tls: bool = False) -> None:
        self._site = site
        self._implicit_tls = implicit_tls
        self._pending: asyncio.Future[Any] | None = None
        self._paused = False
        self._at_eof = False
        self._about: Any = None  # what was last asked about
        self.transport: asyncio.Transport | None = None  # or a Stream, which has the methods

    @property
    def tls_context(self) -> ssl.SSLContext | None:
        """What STARTTLS begins TLS with."""
        return self._site.tls

    @property
    def hostname(self) -> str:
        """The name this server goes by in greetings."""
        return self._site.hostname

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that serves this connection."""
        return self._site.loop

    @property
    def takes_streams(self) -> bool:
        """Whether a ``Stream`` will do as its transport."""
        return True

    @property
    def ehlo_lines(self) -> list[str]:
        """The lines that EHLO is answered with, for the EHLO hook to change."""
        name = "EHLO_TLS" if self.session.tls else "EHLO"
        return self.rules.book[name].decode().split("\r\n")[:-1]

    # --- the transport's calls ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self._implicit_tls:
            self.engine.counters.add(_TLS_OK)
            self.session.ssl = transport.get_extra_info("ssl_object")
            self.session.tls = True
        self.connect(self.transport.write)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is None:
            return
        self.disconnect()
        call = self._site.plan.disconnect
        if call is not None:
            try:
                result = self._call_unasked(call)
                if asyncio.iscoroutine(result):
                    result = self._site.loop.create_task(guarded(result))
                if asyncio.isfuture(result):
                    # Not in _pending: a hook for the message may be under way and is heard to its end.
                    self._site.goodbyes.add(result)
                    result.add_done_callback(self._disconnected)
            except BaseException as error:
                self._complain("handle_DISCONNECT", error, STAGES.index("disconnect"))
        self.transport = None

    def _disconnected(self, future: asyncio.Future[Any]) -> None:
        self._site.goodbyes.discard(future)
        if not future.cancelled() and (error := future.exception()) is not None:
            self._complain("handle_DISCONNECT", error, STAGES.index("disconnect"))

    def eof_received(self) -> bool:
        # A client may shut its sending side and read on: what it asked before gets its answer.
        self._at_eof = True
        if self.session.tls or self.responding:  # TLS has no half of a connection, and no line will come
            return False
        return self.pending

    def pause_writing(self) -> None:
        self.hold_back(HELD_UNREAD)

    def resume_writing(self) -> None:
        self.go_on(HELD_UNREAD)
        self._hang_up_if_done()

    # --- the dialogue's calls -------------------------------------------------------------------------------

    def hang_up(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def pause_reading(self) -> None:
        if not self._paused and self.transport is not None and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._paused and self.transport is not None:
            self._paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def give_way(self) -> None:
        if isinstance(self.transport, Stream):
            self._paused = True
            self.transport.yield_turn()
            return
        # Under TLS, libuv reads on, up to 32 times, while reads fill their buffer: 20 clients with 20 MB each
        # kept all others waiting for 145 ms; so it is 20.
        self.pause_reading()
        self._site.loop.call_soon(self.take_turn)

    def failed(self, error: Exception) -> None:
        self._say(logging.ERROR, "spill", "cannot spill a message: %s", describe(error))

    def ask(self, kind: int, argument: Any, options: list[str] | None) -> bytes | None:
        call = self._site.plan.calls[kind]
        assert call is not None, ASKS[kind]
        self.know_peer()
        if type(argument) is Spilling:
            if argument.busy:
                self._wait_for_disk(argument)
                return None
            if argument.error is not None:
                argument.close()
                self.failed(argument.error)
                return self.rules.book["NO_ROOM"] * (self.recipients if self.rules.lmtp else 1)
        try:
            if kind == _DATA:
                assert self.envelope is not None
                self.envelope.body = _body(argument)
            else:
                self._about = argument
            result = call(self, argument, options)
        except BaseException as error:  # whatever it is, it is this client's alone, and no worker ends for it
            return self._failure(kind, error)
        if type(result) is str:
            return self._reply(kind, result)
        if asyncio.iscoroutine(result):
            future: asyncio.Future[Any] = self.task_of(guarded(result))
        elif asyncio.isfuture(result):
            future = result
        elif result is LATER:
            return None
        else:
            return self._reply(kind, result)
        if future.done():
            return self._result(kind, future)
        self._pending = future
        future.add_done_callback(self._done)
        return None

    def _wait_for_disk(self, spilling: Spilling) -> None:
        """The content is whole, but a slow disk has not taken it yet: asks for it then."""
        written = self._pending = self._site.loop.create_future()

        def ask() -> None:
            if self._pending is not written:  # it was given up
                spilling.close()
                return
            self._pending = None
            if self.closed:
                spilling.close()
                self.answer(self.rules.book["HANDLER_FAILED"])
                return
            reply = self.ask(_DATA, spilling, None)
            if reply is not None:
                self.answered(reply)

        spilling.when_written(ask)

    if sys.version_info >= (3, 12):

        def task_of(self, hook: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
            """A task of a coroutine. It has begun, and may be done already: a hook that need not wait costs no turn
            of the loop.
            """
            return asyncio.Task(hook, loop=self._site.loop, eager_start=True)

    else:

        def task_of(self, hook: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
            """A task of a coroutine."""
            return self._site.loop.create_task(hook)

    def expire(self, state: str) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            took = time.monotonic() - self.asked_at
            hook = f"handle_{ASKS[self.asked]}" if self.asked else "TLS"
            self._say(
                logging.ERROR,
                "time",
                "%s took %.1f s, longer than handler_timeout, and was cancelled",
                hook,
                took,
            )
            give_up(pending)
        super().expire(state)
        if self._at_eof:
            self.hang_up()
        if self.closed and self.unsent:
            self.abort()  # it does not read either: nothing will ever be flushed

    @property
    def unsent(self) -> bool:
        """Whether there are replies that the client has not read."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    def abort(self) -> None:
        """Ends the connection now, whatever is unsent."""
        if self._pending is not None:
            give_up(self._pending)
            self._pending = None
        if self.transport is not None:
            self.transport.abort()

    def in_thread(self, function: Callable[..., object], *args: object) -> asyncio.Future[object]:
        """Runs a blocking hook on the worker's threads."""
        return self._site.loop.run_in_executor(self._site.executor, contained, function, *args)

    def secure(self) -> None:
        transport, context = self.transport, self.tls_context
        if transport is None or context is None:
            return
        if isinstance(transport, Stream):
            transport.begin_tls(context, self._site.tls_timeout)
            return
        transport.pause_reading()  # what lies behind STARTTLS in clear fails as TLS; start_tls reads again
        self._pending = self._site.loop.create_task(self._start_tls(transport, context))

    async def _start_tls(self, transport: asyncio.Transport, context: ssl.SSLContext) -> None:
        if transport.is_closing():
            return
        secured: asyncio.Transport | None = None
        self.handshake()
        try:
            secured = await self._site.loop.start_tls(
                transport, self, context, server_side=True, ssl_handshake_timeout=self._site.tls_timeout
            )
        except OSError as error:  # ssl.SSLError and TimeoutError are, too
            self.tls_failed(error)
        finally:
            self._pending = None
            if secured is None or self.closed:
                # The loops do not always tell of the end of a connection in the midst of a handshake.
                transport.abort()
                self._site.loop.call_soon(self.connection_lost, None)
        if secured is not None and not self.closed:
            self.transport = secured
            self._paused = False
            self.tls_begun()

    def tls_begun(self) -> None:
        """Called when the handshake after STARTTLS is done."""
        assert self.transport is not None
        self.engine.counters.add(_TLS_OK)
        self.secured(self.transport.get_extra_info("ssl_object"), self.transport.write)
        hook = self._site.plan.starttls
        if hook is None:
            self.go_on()
        else:
            self.hold_back(HELD_BY_VERDICT)  # nothing is done for a client that may not be trusted
            self._pending = self._site.loop.create_task(self._judge_tls(hook))

    async def _judge_tls(self, hook: Call) -> None:
        if not await self._accepts_tls(hook):
            self.distrust()
        self._pending = None
        self.go_on(HELD_BY_VERDICT)

    def tls_failed(self, error: Exception) -> None:
        """Called when the handshake came to nothing; the connection is closed."""
        self.engine.counters.add(_TLS_FAILED)
        self.know_peer()
        peer = peer_name(self.session.peer)
        why = describe(error)
        self._site.noise.say(self._log, logging.INFO, "TLS", "TLS handshake with %s failed: %s", peer, why)

    async def _accepts_tls(self, call: Call) -> bool:
        try:
            return bool(await settled(self._call_unasked(call)))
        except BaseException as error:
            if is_cancellation(error):
                raise
            self._complain("handle_STARTTLS", error, STAGES.index("connect"))
            return False

    def _call_unasked(self, call: Call) -> Any:
        """Calls a hook that is none of the dialogue's asks, with what every hook finds."""
        self.know_peer()
        if self.envelope is None:
            self.envelope = Envelope()
        return call(self, None, None)

    # --- answers --------------------------------------------------------------------------------------------

    def _done(self, future: asyncio.Future[Any]) -> None:
        if future is not self._pending:  # it was given up: its client has an answer
            if not future.cancelled():
                future.exception()
            return
        self._pending = None
        reply = self._result(self.asked, future)
        if reply is not None:
            self.answered(reply)

    def _result(self, kind: int, future: asyncio.Future[Any]) -> bytes | None:
        """The reply by a future that is done."""
        if future.cancelled():
            if not self.closed:
                self._say(logging.WARNING, "cancelled", "handle_%s was cancelled", ASKS[kind])
            return self.rules.book["HANDLER_FAILED"]
        if (error := future.exception()) is not None:
            return self._failure(kind, error)
        return self._reply(kind, future.result())

    def answered(self, reply: bytes) -> None:
        """Gives the answer to a hook that took its time."""
        self.answer(reply)
        self._hang_up_if_done()

    def _hang_up_if_done(self) -> None:
        """Closes when a client that sends no more has all its answers."""
        if self._at_eof and not self.pending:
            self.hang_up()

    def _reply(self, kind: int, result: object) -> bytes | None:
        try:
            if kind == _DATA and self._site.queues:
                return _queued(cast("str", result))
            if isinstance(result, (str, bytes)):
                reply = from_status(result, kind)
                if kind == _RCPT:
                    self._look_for_recipients(reply)
                return reply
            if kind == _EHLO and isinstance(result, list):
                return from_lines(result)
            if kind == _CONNECT and result is None:
                return self.rules.book["GREETING"]
            if isinstance(result, SMTPError):
                return from_status(refusal(result), kind)
            raise NotAReply(f"{brief_repr(result)} is no reply")
        except NotAReply as error:
            return self._failure(kind, error)

    def _look_for_recipients(self, reply: bytes) -> None:
        """Warns, once for a class of handlers, if a hook took a recipient and did not say which."""
        handler = type(self._handler_object)
        if reply[:1] != b"2" or self.envelope is None or self.envelope.rcpt_tos or handler in _forgetful:
            return
        _forgetful.add(handler)
        name = f"{handler.__module__}.{handler.__qualname__}"
        self._log.warning(
            "handle_RCPT of %s answers 2yz and appends nothing to envelope.rcpt_tos: "
            "there is no recipient, and DATA is refused; append the address",
            name,
        )

    @property
    def _handler_object(self) -> object:
        return self._site.plan.handler

    def _failure(self, kind: int, error: BaseException) -> bytes | None:
        """The reply to a hook that failed, or ``None`` if ``answered`` will be called."""
        error = cause_of(error)
        if isinstance(error, SMTPError):
            try:
                return self._refused(kind, error)
            except NotAReply as bad:
                error = bad
        if not self._was_left(error):
            self._complain(f"handle_{ASKS[kind]}", error, kind - 1)
        return self.rules.book["HANDLER_FAILED"]

    def _refused(self, kind: int, error: SMTPError) -> bytes | None:
        """The reply that an ``SMTPError`` is. Raises ``NotAReply``."""
        return from_status(refusal(error), kind)

    def _was_left(self, error: BaseException) -> bool:
        """Whether a hook ended because what it waited for, the client, is gone."""
        return self.closed and isinstance(error, asyncio.CancelledError)

    def _complain(self, hook: str, error: BaseException, stage: int) -> None:
        self.engine.counters.add(_HANDLER_ERRORS + stage)
        error = cause_of(error)
        if isinstance(error, NotAReply):
            self._say(logging.ERROR, (hook, NotAReply), "%s gave no reply: %s", hook, str(error))
        else:
            text = describe(error)
            self._say(logging.ERROR, (hook, type(error)), "%s failed: %s", hook, text, error=error)

    def _say(
        self,
        level: int,
        kind: object,
        message: str,
        *args: object,
        error: BaseException | None = None,
    ) -> None:
        """Logs a line that names the session, unless there are too many of its kind."""
        self.know_peer()
        self._site.noise.say(self._log, level, kind, f"{message} (%s)", *args, self.who, error=error)

    def log_reply(self, stage: str, reply: bytes) -> None:
        if self._site.mail is None:
            return
        try:
            self._site.mail.add(self, stage, reply)
        except Exception as error:
            # The core has not sent the reply yet: an exception would lose it, and from a timer end the worker.
            with contextlib.suppress(Exception):
                kind = ("log of mail", type(error))
                self._site.noise.say(
                    self._log,
                    logging.ERROR,
                    kind,
                    "the log of mail lacks a line: %s",
                    describe(error),
                    error=error,
                )

    @property
    def refused_command(self) -> str:
        """The command that is being answered, for the log; empty for those that may have secrets in them."""
        if self.asked in (_MAIL, _RCPT):
            return f"{ASKS[self.asked]} {self._about}"
        line: bytes | None = self.command_line
        if line is None or line[:4].upper() not in _SHOWN:
            return ""
        return line.decode("utf-8", "backslashreplace")

    def foreign(self, what: str) -> None:
        if what == "PROXY":
            self._say(
                logging.WARNING,
                what,
                "a PROXY header came where none is expected, and the connection is closed: %s",
                self._proxy_advice,
            )
        else:
            self._say(logging.INFO, what, "%s came where SMTP is spoken, and the connection is closed", what)

    @property
    def who(self) -> str:
        """The session and its client, for the log."""
        return f"session {safe_id(self.session.id)} of {peer_name(self.session.peer)}"

    def know_peer(self) -> None:
        """Looks the client's address up, once, when somebody is about to be told of the session."""
        session = self.session
        if session.peer is None and self.transport is not None:
            session.peer = self.transport.get_extra_info("peername")


def to_each(
    dialogues: Iterable[Dialogue], act: Callable[[Dialogue], object], what: str, noise: Noise
) -> None:
    """Calls ``act`` with each connection. One that raises is logged, and aborted; the others have their turn."""
    for dialogue in dialogues:
        try:
            act(dialogue)
        except Exception as error:
            text = describe(error)
            noise.say(
                Connection._log, logging.ERROR, what, "cannot %s a connection: %s", what, text, error=error
            )
            with contextlib.suppress(Exception):
                cast("Connection", dialogue).abort()


def expire_all(due: Iterable[tuple[Dialogue, str]], noise: Noise) -> None:
    """Ends what ``Engine.tick`` found to be over, as ``to_each``."""
    for dialogue, state in due:
        to_each([dialogue], methodcaller("expire", state), "expire", noise)


def _body(argument: bytes | Block | Spilling) -> Body:
    return argument.body() if isinstance(argument, Spilling) else Body.in_memory(argument)


def _queued(name: str) -> bytes:
    reply = f"250 2.0.0 Ok: queued as {name}\r\n"
    if len(reply) <= 512 and name.isascii() and name.isprintable():
        return reply.encode()
    return from_status(reply, _DATA)
