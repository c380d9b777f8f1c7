"""Hooks that raise what is no ``Exception``: their client alone hears of it, and no loop, worker or thread ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import smtplib
import socket
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from controllers import HEADERS
from servers import MAIL, Client, Keeps, on_both_loops, serve, until
from test_application import greeted, later, plain_or_async, send
from test_hooks import FAILED, Recorder, handler_of
from test_tls import STARTTLS, Certificates, certificates, settings_of, with_smtplib  # noqa: F401
from wires import HELLO, TO_DATA

from fastsmtp import Envelope, Session, blocking, sockets
from fastsmtp.config import Config
from fastsmtp.controller import Controller
from fastsmtp.proxy_protocol import ProxyData
from fastsmtp.smtp import SMTP, Application, AuthResult, RequestHandler
from fastsmtp.worker import Worker


class Odd(BaseException):
    """What no ``except Exception`` catches."""


ERRORS = [asyncio.CancelledError, GeneratorExit, SystemExit, KeyboardInterrupt, StopIteration, Odd]
KINDS = ["plain", "async", "waiting", "blocking"]
each_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
each_kind = pytest.mark.parametrize("kind", KINDS)


def of_async(kind: str, error: type[BaseException]) -> bool:
    """Whether Python itself makes a RuntimeError of it."""
    return error is StopIteration and kind in ("async", "waiting")


def the_record(caplog: pytest.LogCaptureFixture, error: type[BaseException] | tuple[type, ...]) -> str:
    """The one line in the log, which has a traceback and names the session."""
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info
    assert isinstance(record.exc_info[1], error)
    assert record.exc_text
    assert "session " in record.getMessage()
    return record.getMessage()


# --- fastsmtp.serve -------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize(
    ("hook", "error"),
    [(hook, SystemExit) for hook in ("HELO", "EHLO", "MAIL", "RCPT", "RSET", "NOOP", "VRFY")]
    + [("DATA", error) for error in ERRORS],
)
@on_both_loops
async def test_a_hook_that_raises_it_is_answered_451_at_once(
    caplog: pytest.LogCaptureFixture, kind: str, hook: str, error: type[BaseException]
) -> None:
    handler = handler_of(kind, Recorder(**{hook: error()}), tuple({hook, "DATA"}))
    if hook == "EHLO":

        def raises(
            self: object, server: object, session: Session, envelope: Envelope, n: str, r: list[str]
        ) -> str:
            raise error

        async def raises_later(*arguments: Any) -> str:
            await asyncio.sleep(0)
            return raises(*arguments)

        methods = {
            "plain": raises,
            "async": later(raises),
            "waiting": raises_later,
            "blocking": blocking(raises),
        }
        type(handler).handle_EHLO = methods[kind]  # type: ignore[attr-defined]
    command = {"HELO": b"HELO x\r\n", "EHLO": b"EHLO x\r\n", "DATA": b".\r\n", "VRFY": b"VRFY x\r\n"}
    before = {"RCPT": (b"MAIL FROM:<>\r\n", 1), "DATA": (TO_DATA, 3)}.get(hook, (b"", 0))
    commands = {**command, "MAIL": b"MAIL FROM:<a@b.example>\r\n", "RCPT": b"RCPT TO:<c@d.example>\r\n"}
    async with await serve(handler) as server:
        hello = b"EHLO c.example\r\n" if hook == "HELO" else b"HELO c.example\r\n"
        with await Client.greeted(server, hello) as client, await Client.greeted(server, hello) as bystander:
            await client.send(before[0])
            await client.replies(before[1])
            assert await client.says(commands.get(hook, f"{hook}\r\n".encode())) == FAILED
            assert (await client.ask(b"HELP\r\n")).code == 214
            assert (await bystander.ask(b"HELP\r\n")).code == 214
    kinds = RuntimeError if of_async(kind, error) else error
    assert the_record(caplog, kinds).startswith(f"handle_{hook} failed: {kinds.__name__}")


@each_error
@each_kind
@on_both_loops
async def test_the_end_of_a_connection_that_raises_it_ends_nothing_else(
    caplog: pytest.LogCaptureFixture, kind: str, error: type[BaseException]
) -> None:
    async with await serve(handler_of(kind, Recorder(DISCONNECT=error()), ("DISCONNECT", "DATA"))) as server:
        with await Client.greeted(server) as bystander:
            (await Client.greeted(server)).socket.close()
            await until(lambda: caplog.records)
            assert server.connections == 1
            assert (await bystander.ask(b"NOOP\r\n")).code == 250
            assert the_record(caplog, RuntimeError if of_async(kind, error) else error)
            caplog.clear()
            server._site.plan.disconnect = None  # the bystander's end is not of interest


@each_error
@pytest.mark.parametrize("kind", ["plain", "async", "waiting", "blocking"])
@on_both_loops
async def test_a_judge_of_tls_who_raises_it_trusts_nobody(
    certificates: Certificates,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    kind: str,
    error: type[BaseException],
) -> None:
    handler = handler_of(kind, Recorder(STARTTLS=error()), ("STARTTLS", "DATA"))

    def talk(client: smtplib.SMTP) -> int:
        client.starttls(context=certificates.client)
        return client.ehlo("c.example")[0]

    async with await serve(handler, **settings_of(certificates)) as server:
        assert await with_smtplib(server, None, talk) == 554
        with await Client.greeted(server) as client:
            assert (await client.ask(b"NOOP\r\n")).code == 250
    the_record(caplog, RuntimeError if of_async(kind, error) else error)


@each_error
@on_both_loops
async def test_handle_exception_is_not_asked_about_it_and_may_raise_it(
    caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    asked: list[BaseException] = []

    class Rescues(Keeps):
        def handle_VRFY(self, server: object, session: Session, envelope: Envelope, address: str) -> str:
            raise error if address == "it" else ZeroDivisionError

        async def handle_exception(self, raised: Exception) -> str:
            asked.append(raised)
            raise error

    async with await serve(Rescues()) as server:
        with await Client.greeted(server) as client:
            assert await client.says(b"VRFY it\r\n") == FAILED
            assert [type(raised) for raised in asked] == ([StopIteration] if error is StopIteration else [])
            assert await client.says(b"VRFY other\r\n") == FAILED
            assert type(asked[-1]) is ZeroDivisionError
    assert len(caplog.records) == 2


class Delivers:
    """A sink that raises."""

    keeps = True

    def __init__(self, deliver: Callable[..., Any]) -> None:
        self.deliver = deliver

    async def open(self) -> None: ...

    def head(self, session: Session, envelope: Envelope) -> bytes:
        return b""

    async def close(self) -> None: ...


@each_error
@plain_or_async
@on_both_loops
async def test_a_sink_that_raises_it_defers_the_message(
    caplog: pytest.LogCaptureFixture, kind: Any, error: type[BaseException]
) -> None:
    def deliver(session: Session, envelope: Envelope) -> str:
        raise error

    config = Config.of(listen=["127.0.0.1:0"], hostname="mx.example", deliver="discard:")
    listeners = sockets.bind(config.listen, config.backlog)
    worker = Worker(config, listeners, sink=Delivers(kind(deliver)))  # type: ignore[arg-type]
    await worker.start()
    async with worker:
        with await Client.greeted(worker) as client:
            await client.send(MAIL.removeprefix(HELLO))
            assert await client.codes(4) == [250, 250, 354, 451]
            assert (await client.ask(b"NOOP\r\n")).code == 250
    the_record(caplog, RuntimeError if kind is later and error is StopIteration else error)


@on_both_loops
async def test_a_hook_that_the_end_of_the_server_cancels_is_cancelled_without_a_line() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    class Waits(Keeps):
        async def handle_DATA(  # type: ignore[override]
            self, server: object, session: Session, envelope: Envelope
        ) -> str:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return "250 never"

    server = await serve(Waits())
    with await Client.connect(server) as client:
        await client.send(MAIL)
        await begun.wait()
        await server.close()
        await cancelled.wait()
        assert 421 in [reply.code for reply in await client.rest()]


# --- a controller ---------------------------------------------------------------------------------------------


class Dial(NamedTuple):
    """Makes clients of a controller."""

    port: int

    def __call__(self) -> smtplib.SMTP:
        return smtplib.SMTP("127.0.0.1", self.port, "c.example", timeout=10)


@contextlib.contextmanager
def controlled(
    handler: object, factory: Callable[[Any], SMTP] | None = None, **settings: Any
) -> Iterator[Dial]:
    """A controller, in whose thread the handler's hooks are called."""

    class Made(Controller):
        def factory(self) -> SMTP:
            return factory(self) if factory is not None else SMTP(self.handler, **self.SMTP_kwargs)

    controller = Made(handler, "127.0.0.1", 0, **settings)
    controller.start()
    try:
        yield Dial(controller.port)
        assert controller._thread is not None
        assert controller._thread.is_alive()
    finally:
        controller.stop(no_assert=True)


@each_error
@plain_or_async
@pytest.mark.parametrize("hook", ["handle_VRFY", "auth_ODD", "handle_AUTH", "authenticator", "smtp_VRFY"])
def test_a_controller_goes_on(
    caplog: pytest.LogCaptureFixture, hook: str, kind: Any, error: type[BaseException]
) -> None:
    def raises(*_: Any) -> Any:
        raise error

    class Hooks:
        pass

    settings: dict[str, Any] = {"auth_require_tls": False}
    server: Any = SMTP
    if hook == "authenticator":
        settings["authenticator"] = kind(raises)
    elif hook == "smtp_VRFY":
        server = type("Server", (SMTP,), {hook: kind(raises)})
    else:
        setattr(Hooks, hook, kind(raises))
    handler = Hooks()
    plain = b64encode(b"\0me\0word").decode()
    command = {"auth_ODD": "AUTH ODD", "handle_VRFY": "VRFY a@b.example", "smtp_VRFY": "VRFY a@b.example"}
    with (
        controlled(handler, lambda self: server(self.handler, **self.SMTP_kwargs), **settings) as dial,
        dial() as bystander,
        dial() as client,
    ):
        client.ehlo()
        said = client.docmd(command.get(hook, f"AUTH PLAIN {plain}"))
        # StopIteration is an Exception, or Python makes one of it.
        assert said[0] == 500 if error is StopIteration else said == (451, FAILED.encode()[4:])
        assert client.noop()[0] == 250
        assert bystander.noop()[0] == 250
    the_record(caplog, (error, RuntimeError))


@each_error
@plain_or_async
def test_a_judge_of_headers_who_raises_it_lets_nobody_in(
    caplog: pytest.LogCaptureFixture, kind: Any, error: type[BaseException]
) -> None:
    judged: list[ProxyData] = []

    def judge(self: object, server: object, session: Session, envelope: Envelope, data: ProxyData) -> bool:
        judged.append(data)
        if len(judged) == 1:
            raise error
        return True

    handler = type("Judge", (), {"handle_PROXY": kind(judge)})()
    with controlled(handler, proxy_protocol_timeout=10.0) as dial:
        for said in (b"", b"220 "):
            with socket.create_connection(("127.0.0.1", dial.port), timeout=10) as sock:
                sock.sendall(HEADERS[1])
                assert sock.recv(100)[:4] == said
    the_record(caplog, (error, RuntimeError))


@each_error
def test_a_push_that_raises_it_ends_its_connection(
    caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    class Pushes(SMTP):
        async def push(self, status: str | bytes) -> None:
            if b"VRFY" in (status if isinstance(status, bytes) else status.encode()):
                raise error
            await super().push(status)

    with (
        controlled(Keeps(), lambda self: Pushes(self.handler, **self.SMTP_kwargs)) as dial,
        contextlib.closing(dial()) as client,
        dial() as bystander,
    ):
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.docmd("VRFY", "a@b.example")
        assert bystander.noop()[0] == 250
    the_record(caplog, (error, RuntimeError))


@each_error
def test_a_factory_that_raises_it_sends_its_client_away(
    caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    made: list[SMTP] = []

    def factory(self: Any) -> SMTP:
        if len(made) == 1:
            made.clear()
            raise error
        made.append(SMTP(self.handler))
        return made[-1]

    with controlled(Keeps(), factory) as dial:
        with pytest.raises(smtplib.SMTPConnectError) as refused:
            dial()
        assert refused.value.smtp_code == 421
        with dial() as client:
            assert client.noop()[0] == 250
    (record,) = caplog.records
    assert record.exc_info
    assert record.exc_info[0] is error


def test_a_factory_that_raises_it_at_the_start_raises_it_there() -> None:
    def factory(self: Any) -> SMTP:
        raise SystemExit(3)

    with pytest.raises(SystemExit), controlled(Keeps(), factory):
        pass


@each_error
@plain_or_async
def test_handle_exception_of_a_controller_may_raise_it(
    caplog: pytest.LogCaptureFixture, kind: Any, error: type[BaseException]
) -> None:
    def raises(*_: Any) -> Any:
        raise error

    def fails(*_: Any) -> Any:
        raise ZeroDivisionError

    handler = type("Handler", (), {"handle_VRFY": fails, "handle_exception": kind(raises)})()
    with controlled(handler) as dial, dial() as client:
        client.ehlo()
        assert client.docmd("VRFY", "a@b.example")[0] in (451, 500)
        assert client.noop()[0] == 250
    the_record(caplog, (error, RuntimeError))


@on_both_loops
async def test_a_client_who_leaves_within_auth_leaves_no_line() -> None:
    asked = asyncio.Event()

    class Asks:
        async def auth_ASK(self, server: SMTP, args: list[str]) -> AuthResult:
            asked.set()
            await server.challenge_auth("who")
            return AuthResult(success=False, handled=False)

    async def factory() -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: SMTP(Asks(), auth_require_tls=False), "127.0.0.1", 0)

    async with await factory() as server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"EHLO me\r\nAUTH ASK\r\n")
        await asked.wait()
        writer.transport.abort()
        await asyncio.sleep(0)
        await until(lambda: len(asyncio.all_tasks()) == 1)


# --- an application -------------------------------------------------------------------------------------------


@each_error
@plain_or_async
@pytest.mark.parametrize("method", ["prepare", "data", "on_finish", "mail", "rcpt", "write_error"])
@on_both_loops
async def test_an_application_goes_on(
    caplog: pytest.LogCaptureFixture, method: str, kind: Any, error: type[BaseException]
) -> None:
    def raises(*_: object) -> Any:
        raise error

    if method in ("on_finish", "write_error"):
        kind = lambda method: method  # noqa: E731
    methods = {method: kind(raises)}
    if method == "write_error":
        methods["data"] = lambda *_: 1 / 0
    async with greeted(Application(type("Handler", (RequestHandler,), methods))) as client:
        if method == "on_finish":
            assert await send(client) == "250 Ok"
        elif method in ("mail", "rcpt"):
            await client.send(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n")
            codes = await client.codes(2)
            assert codes == ([451, 503] if method == "mail" else [250, 451])
        else:
            assert await send(client) == "451 Internal confusion"
        await until(lambda: caplog.records)
        assert (await client.ask(b"RSET\r\n")).code == 250
    assert {type(record.exc_info[1]) for record in caplog.records if record.exc_info} <= {
        error,
        RuntimeError,
        ZeroDivisionError,
    }
    assert all("session " in record.getMessage() for record in caplog.records)
