"""Applications, handlers and requests: what they see, what they may do, and what their clients are told."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import shutil
import smtplib
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from email.message import EmailMessage
from typing import Any

import pytest
from servers import Client, counted, on_both_loops, port_of, until

import fastsmtp
from fastsmtp import errors
from fastsmtp.requests import SMTPRequest
from fastsmtp.server import SMTPServer
from fastsmtp.smtp import Application, RequestHandler

HELO = b"HELO c.example\r\n"
TO_DATA = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
CONTENT = b"Subject: test\r\n\r\ntext\r\n.\r\n"


@contextlib.asynccontextmanager
async def serving(callback: Any, **settings: Any) -> AsyncIterator[Any]:
    """A server on a free port; it is closed at once in the end."""
    server = SMTPServer(callback, **{"hostname": "mx.example", **settings})
    server.listen(0, "127.0.0.1")
    try:
        yield server
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def greeted(callback: Any, **settings: Any) -> AsyncIterator[Client]:
    """A client that has said HELO."""
    async with serving(callback, **settings) as server:
        with await Client.greeted(server, HELO) as client:
            yield client


async def send(client: Client, content: bytes = CONTENT, to_data: bytes = TO_DATA) -> str:
    """Sends a message; what is said to its end."""
    await client.send(to_data)
    *accepted, ready = await client.codes(3)
    assert (accepted, ready) == ([250, 250], 354)
    return await client.says(content)


def handler(**methods: Any) -> type[RequestHandler]:
    return type("Handler", (RequestHandler,), methods)


def raises(error: BaseException) -> Callable[..., Any]:
    def method(*_: object) -> None:
        raise error

    return method


def later(method: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """The same, after a turn of the loop."""

    async def waits(*arguments: Any) -> Any:
        await asyncio.sleep(0)
        return method(*arguments)

    return waits


plain_or_async = pytest.mark.parametrize("kind", [lambda method: method, later], ids=["plain", "async"])


# --- requests -----------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_request_tells_all_of_its_message() -> None:
    seen: list[Any] = []

    class Handler(RequestHandler):
        async def data(self) -> None:
            request = self.request
            seen.extend([request.connection.remote_ip, request.remote_ip, request.command, request.hostname])
            seen.extend(
                [request.mail, request.rcpt, request.data, bytes(request.body), request.message["Subject"]]
            )
            seen.extend([request.mail_options, request.rcpt_options, request.smtp_utf8])
            seen.extend([request.tls, request.authenticated, repr(request)])

    async with greeted(Application(Handler)) as client:
        assert (await client.says(b"EHLO other.example\r\n")).startswith("250-mx.example")
        commands = b"MAIL FROM:<> SIZE=30 BODY=8BITMIME\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
        assert await send(client, b"Subject: test\r\n\r\n..dot\r\n.\r\n", commands) == "250 Ok"
    assert seen[:4] == ["127.0.0.1", "127.0.0.1", "DATA", "other.example"]
    assert seen[4:7] == ["<>", ["c@d.example"], "Subject: test\n\n.dot"]
    assert seen[7:9] == [b"Subject: test\r\n\r\n.dot\r\n", "test"]
    assert seen[9:12] == [["SIZE=30", "BODY=8BITMIME"], [], False]
    assert seen[12:14] == [False, False]
    assert seen[14] == (
        "SMTPRequest (remote_ip='127.0.0.1', hostname='other.example', mail='<>', rcpt='['c@d.example']')"
    )


def test_a_request_made_by_hand() -> None:
    request = SMTPRequest(None, "192.0.2.1", "DATA", "c", "a@b", ["c@d"], "Subject: é\n\ntext")  # type: ignore[arg-type]
    assert request.data == "Subject: é\n\ntext"
    assert bytes(request.body) == "Subject: é\n\ntext".encode()
    assert request.message.get_payload() == "text"


@pytest.mark.parametrize(
    "text",
    [
        "   Toner low on unit 3.\nPlease refill.",
        "\t(added); Mon, 1 Jan 2001 00:00:00 +0000\nSubject: x\n\ny",
        "From now on we meet at noon.\nBring cake.",
        ": text",
    ],
)
def test_the_message_of_content_without_a_header_has_all_its_text(text: str) -> None:
    request = SMTPRequest(None, "192.0.2.7", "DATA", data=text)  # type: ignore[arg-type]
    assert request.data == text
    assert request.message.items() == []
    assert request.message.get_payload() == text
    assert (request.mail_options, request.rcpt_options) == ([], [])
    assert (request.tls, request.authenticated, request.smtp_utf8) == (False, False, False)
    request.data = "other"
    assert (request.data, request.body.size) == ("other", 5)
    assert SMTPRequest(None, "192.0.2.1", "DATA").rcpt == []  # type: ignore[arg-type]


@on_both_loops
async def test_a_large_message_lies_in_a_file() -> None:
    seen: list[tuple[bool, int, int]] = []

    class Handler(RequestHandler):
        def data(self) -> None:
            body = self.request.body
            seen.append((body.spilled, body.size, len(self.request.data)))

    async with greeted(Application(Handler), spill_threshold=1000) as client:
        assert await send(client, b"x" * 70 + b"\r\n" + b"y" * 5000 + b"\r\n.\r\n") == "250 Ok"
    assert seen == [(True, 5074, 5071)]


# --- how a message is finished ------------------------------------------------------------------------------


@on_both_loops
async def test_a_handler_is_made_for_each_message_and_called_in_order() -> None:
    calls: list[tuple[str, int]] = []
    handlers: list[RequestHandler] = []

    class Handler(RequestHandler):
        def __init__(self, application: Application, request: SMTPRequest) -> None:
            super().__init__(application, request)
            handlers.append(self)
            self.note("made")

        def note(self, what: str) -> None:
            calls.append((what, handlers.index(self)))

        async def prepare(self) -> None:
            await asyncio.sleep(0)
            self.note("prepare")

        def data(self) -> None:
            self.note(f"data {self.settings['key']}")

        def on_finish(self) -> None:
            self.note("finish")

    application = Application(Handler, key="value")
    async with greeted(application) as client:
        for _ in range(2):
            assert await send(client) == "250 Ok"
    each = ["made", "prepare", "data value", "finish"]
    assert calls == [(what, number) for number in range(2) for what in each]
    assert all(each.application is application for each in handlers)
    assert application.settings == {"key": "value"}


@plain_or_async
@on_both_loops
async def test_the_text_of_success_may_be_chosen(kind: Any) -> None:
    async with greeted(Application(handler(data=kind(lambda self: self.finish("queued as 7"))))) as client:
        assert await send(client) == "250 queued as 7"
        assert await send(client) == "250 queued as 7"


@on_both_loops
async def test_finish_async_and_what_comes_after_it() -> None:
    done = asyncio.Event()
    order: list[str] = []

    class Handler(RequestHandler):
        async def data(self) -> None:
            await self.finish_async("kept")
            order.append("kept")
            await done.wait()
            order.append("done")

        def on_finish(self) -> None:
            order.append("told")

    async with greeted(Application(Handler)) as client:
        assert await send(client) == "250 kept"
        assert set(order) == {"told", "kept"}
        assert (await client.says(b"NOOP\r\n")) == "250 Ok"
        done.set()
        await until(lambda: order[-1] == "done")


@pytest.mark.parametrize("finishes", [True, False])
@on_both_loops
async def test_a_request_that_is_cancelled(finishes: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Its client has an answer, and no other client gets that."""
    requests: list[SMTPRequest] = []

    class Handler(RequestHandler):
        async def data(self) -> None:
            requests.append(self.request)
            if len(requests) == 1:
                if finishes:
                    self.finish("kept")
                raise asyncio.CancelledError
            self.finish("next")

    async with greeted(Application(Handler)) as client:
        assert await send(client) == ("250 kept" if finishes else "451 Internal confusion")
        assert requests[0].handler is None
        assert await send(client) == "250 next"
    (record,) = caplog.records
    assert record.exc_info
    assert record.exc_info[0] is asyncio.CancelledError


@on_both_loops
async def test_without_auto_finish_it_waits() -> None:
    waiting: list[RequestHandler] = []

    class Handler(RequestHandler):
        async def data(self) -> None:
            self._auto_finish = False
            waiting.append(self)

    class Plain(Handler):
        def data(self) -> None:  # type: ignore[override]
            self._auto_finish = False
            waiting.append(self)

    for kind in (Handler, Plain):
        async with greeted(Application(kind)) as client:
            await client.send(TO_DATA + CONTENT + b"NOOP\r\n")
            assert await client.codes(3) == [250, 250, 354]
            await until(lambda: waiting)
            waiting.pop().finish("at last")
            assert [reply.lines[0] for reply in await client.replies(2)] == ["250 at last", "250 Ok"]


@plain_or_async
@on_both_loops
async def test_what_prepare_finishes_has_no_data(kind: Any) -> None:
    methods = {"prepare": kind(lambda self: self.finish("no need")), "data": raises(AssertionError())}
    async with greeted(Application(handler(**methods))) as client:
        assert await send(client) == "250 no need"


@plain_or_async
@pytest.mark.parametrize("method", ["finish", "finish_async"])
@on_both_loops
async def test_finishing_twice_is_an_error_and_the_message_is_taken(
    caplog: pytest.LogCaptureFixture, kind: Any, method: str
) -> None:
    class Handler(RequestHandler):
        async def data(self) -> None:
            for _ in range(2):
                if method == "finish":
                    self.finish()
                else:
                    await self.finish_async()

    def twice(self: RequestHandler) -> None:
        self.finish()
        self.finish()

    made = Handler if kind is later or method == "finish_async" else handler(data=twice)
    async with greeted(Application(made)) as client:
        assert await send(client) == "250 Ok"
        assert await client.says(b"NOOP\r\n") == "250 Ok"
        await until(lambda: caplog.records)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("fastsmtp.application", "ERROR")
    assert record.getMessage().startswith("Uncaught exception")
    assert "RuntimeError: finish() called twice." in caplog.text


@plain_or_async
@on_both_loops
async def test_a_text_that_cannot_be_sent(caplog: pytest.LogCaptureFixture, kind: Any) -> None:
    async with greeted(Application(handler(data=kind(lambda self: self.finish("\ud800"))))) as client:
        assert await send(client) == "451 Internal confusion"
        assert await send(client) == "451 Internal confusion"


@on_both_loops
async def test_lines_of_a_text_are_lines_of_the_reply() -> None:
    async with greeted(Application(handler(data=lambda self: self.finish("one\r\n354 two")))) as client:
        assert await send(client) == "250-one\n250 354 two"


@plain_or_async
@pytest.mark.parametrize("early", [False, True])
@on_both_loops
async def test_a_message_is_forgotten_at_once(kind: Any, early: bool) -> None:
    """Its memory must not wait for the collector."""
    seen: list[weakref.ref[SMTPRequest]] = []
    methods: dict[str, Any] = {
        "data": kind(lambda self: seen.append(weakref.ref(self.request))),
        "on_connection_close": lambda self: None,
        "on_finish": lambda self: None,
    }
    if early:
        methods["rcpt"] = kind(lambda self, address: None)
    gc.disable()
    try:
        async with greeted(Application(handler(**methods))) as client:
            assert await send(client) == "250 Ok"
            assert await client.says(b"NOOP\r\n") == "250 Ok"
            await until(lambda: seen[0]() is None)
    finally:
        gc.enable()


@on_both_loops
async def test_a_whole_call_of_the_application() -> None:
    seen: list[str] = []

    class Logged(Application):
        async def __call__(self, request: SMTPRequest) -> None:
            seen.append("before")
            await super().__call__(request)
            seen.append("after")

    async with greeted(Logged(handler(data=later(lambda self: seen.append("data"))))) as client:
        assert await send(client) == "250 Ok"
        await until(lambda: seen == ["before", "data", "after"])


# --- what is raised -----------------------------------------------------------------------------------------


@plain_or_async
@pytest.mark.parametrize("method", ["prepare", "data"])
@on_both_loops
async def test_what_is_raised_is_the_reply(kind: Any, method: str) -> None:
    error = errors.SMTPError(452, "nope")
    async with greeted(Application(handler(**{method: kind(raises(error))}))) as client:
        assert await send(client) == "452 nope"
        assert await send(client) == "452 nope"


@on_both_loops
async def test_replies_with_enhanced_codes_and_lines() -> None:
    queue = [
        fastsmtp.SMTPError(554, "5.7.1", "No programs"),
        errors.SMTPError(550, "one\ntwo"),
        errors.SMTPError(421, "Enough"),
    ]

    async with greeted(Application(handler(data=lambda self: raises(queue.pop(0))()))) as client:
        assert await send(client) == "554 5.7.1 No programs"
        assert await send(client) == "550-one\n550 two"
        assert await send(client) == "421 Enough"
        assert await client.rest() == []


@plain_or_async
@on_both_loops
async def test_what_an_error_says_to_the_log(caplog: pytest.LogCaptureFixture, kind: Any) -> None:
    error = errors.SMTPError(452, "nope", "disk %s is full", "a")
    async with greeted(Application(handler(data=kind(raises(error))))) as client:
        assert await send(client) == "452 nope"
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("fastsmtp.general", "WARNING")
    assert record.getMessage() == "452 disk a is full"


@plain_or_async
@pytest.mark.parametrize("method", ["prepare", "data"])
@on_both_loops
async def test_other_exceptions_are_logged_and_451(
    caplog: pytest.LogCaptureFixture, kind: Any, method: str
) -> None:
    async with serving(Application(handler(**{method: kind(raises(ZeroDivisionError("here")))}))) as server:
        with await Client.greeted(server, HELO) as client:
            assert await send(client) == "451 Internal confusion"
            assert await client.says(b"NOOP\r\n") == "250 Ok"
        assert counted(server._worker, "handler_errors_total", "data") == 1
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("fastsmtp.application", "ERROR")
    assert re.fullmatch(
        r"Uncaught exception in a request of session \S+ of 127\.0\.0\.1:\d+", record.getMessage()
    )
    assert record.exc_info is not None
    assert "ZeroDivisionError: here" in caplog.text


@plain_or_async
@pytest.mark.parametrize("method", ["prepare", "data"])
@on_both_loops
async def test_what_returns_something_is_confused(
    caplog: pytest.LogCaptureFixture, kind: Any, method: str
) -> None:
    async with greeted(Application(handler(**{method: kind(lambda self: (1, 2))}))) as client:
        assert await send(client) == "451 Internal confusion"
    assert "ValueError: Expected None, got (1, 2)" in caplog.text


@on_both_loops
async def test_a_handler_that_cannot_be_made(caplog: pytest.LogCaptureFixture) -> None:
    async with greeted(Application(handler(__init__=raises(KeyError("no"))))) as client:
        assert await send(client) == "451 Internal confusion"
    assert "KeyError: 'no'" in caplog.text


@on_both_loops
async def test_an_exception_at_the_very_end(caplog: pytest.LogCaptureFixture) -> None:
    for data in (lambda self: None, later(lambda self: None)):
        caplog.clear()
        async with greeted(Application(handler(data=data, on_finish=raises(KeyError("late"))))) as client:
            assert await send(client) == "250 Ok"
            assert await client.says(b"NOOP\r\n") == "250 Ok"
            await until(lambda: caplog.records)
        assert "KeyError: 'late'" in caplog.text


@plain_or_async
@on_both_loops
async def test_replies_to_errors_may_be_chosen(caplog: pytest.LogCaptureFixture, kind: Any) -> None:
    def write_error(self: RequestHandler, error: BaseException) -> object:
        if isinstance(error, OSError):
            return errors.SMTPError(452, "4.3.1", "No room")
        return f"450 {type(error).__name__}" if isinstance(error, KeyError) else 7

    queue = [OSError(), KeyError(), ValueError()]
    data = kind(lambda self: raises(queue.pop(0))())
    async with greeted(Application(handler(data=data, write_error=write_error))) as client:
        replies = [await send(client) for _ in range(3)]
    assert replies == ["452 4.3.1 No room", "450 KeyError", "451 Internal confusion"]


# --- before there is a message ------------------------------------------------------------------------------


@plain_or_async
@on_both_loops
async def test_senders_and_recipients_may_be_refused_early(kind: Any) -> None:
    seen: list[object] = []

    def mail(self: RequestHandler, address: str) -> None:
        seen.append((self.request.command, address, self.request.mail, self.request.mail_options))
        if address.startswith("bad"):
            raise errors.SMTPError(550, "No spam")

    def rcpt(self: RequestHandler, address: str) -> None:
        seen.append((self.request.command, address, list(self.request.rcpt)))
        if address.startswith("no"):
            raise errors.SMTPError(550, "5.1.1", "No such user")
        if address.startswith("odd"):
            self.request.finish()

    def data(self: RequestHandler) -> None:
        seen.append((self.request.command, self.request.rcpt, self.request.data))

    async with greeted(Application(handler(mail=kind(mail), rcpt=kind(rcpt), data=data))) as client:
        assert await client.says(b"EHLO c.example\r\n")
        assert await client.says(b"MAIL FROM:<bad@b.example>\r\n") == "550 No spam"
        assert await client.says(b"RCPT TO:<c@d.example>\r\n") == "503 Error: need MAIL command"
        assert await client.says(b"MAIL FROM:<a@b.example> SIZE=9\r\n") == "250 Ok"
        assert await client.says(b"RCPT TO:<no@d.example>\r\n") == "550 5.1.1 No such user"
        assert await client.says(b"DATA\r\n") == "503 Error: need RCPT command"
        assert await client.says(b"RCPT TO:<c@d.example>\r\n") == "250 Ok"
        assert await client.says(b"RCPT TO:<no@d.example>\r\n") == "550 5.1.1 No such user"
        assert await client.says(b"DATA\r\n") == "354 End data with <CR><LF>.<CR><LF>"
        assert await client.says(b"x\r\n.\r\n") == "250 Ok"
    assert seen == [
        ("MAIL", "bad@b.example", "bad@b.example", []),
        ("MAIL", "a@b.example", "a@b.example", ["SIZE=9"]),
        ("RCPT", "no@d.example", []),
        ("RCPT", "c@d.example", []),
        ("RCPT", "no@d.example", ["c@d.example"]),
        ("DATA", ["c@d.example"], "x"),
    ]


@on_both_loops
async def test_one_of_both_is_enough_and_a_handler_lives_for_a_transaction() -> None:
    made: list[RequestHandler] = []
    took: list[RequestHandler] = []
    only_mail = handler(mail=lambda self, address: made.append(self), data=lambda self: took.append(self))
    async with greeted(Application(only_mail)) as client:
        assert await client.says(b"MAIL FROM:<a@b.example>\r\n") == "250 Ok"
        assert await client.says(b"RSET\r\n") == "250 Ok"
        assert await send(client) == "250 Ok"
        assert await send(client) == "250 Ok"
    assert len(made) == 3
    assert took == made[1:]
    only_rcpt = handler(rcpt=lambda self, address: made.append(self), data=lambda self: took.append(self))
    async with greeted(Application(only_rcpt)) as client:
        assert await send(client) == "250 Ok"
    assert took[-1] is made[-1]


@on_both_loops
async def test_confusion_before_there_is_a_message(caplog: pytest.LogCaptureFixture) -> None:
    queue = [KeyError("x"), "something", None]

    def rcpt(self: RequestHandler, address: str) -> object:
        value = queue.pop(0)
        if isinstance(value, KeyError):
            raise value
        return value

    async with greeted(Application(handler(rcpt=rcpt, mail=lambda self, address: None))) as client:
        assert await client.says(b"MAIL FROM:<a@b.example>\r\n") == "250 Ok"
        for reply in ("451 Internal confusion", "451 Internal confusion", "250 Ok"):
            assert await client.says(b"RCPT TO:<c@d.example>\r\n") == reply
    assert "Expected None, got 'something'" in caplog.text
    caplog.clear()
    early = handler(mail=lambda self, address: self.finish())
    async with greeted(Application(early)) as client:
        assert await client.says(b"MAIL FROM:<a@b.example>\r\n") == "451 Internal confusion"
    assert "finish() called before there is a message" in caplog.text


# --- clients that go, and time ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "half", "reset"])
@on_both_loops
async def test_a_client_that_goes_meanwhile(how: str) -> None:
    gone = asyncio.Event()
    taken = asyncio.Event()

    class Handler(RequestHandler):
        async def data(self) -> None:
            taken.set()
            await gone.wait()

        def on_connection_close(self) -> None:
            gone.set()

    async with greeted(Application(Handler)) as client:
        await client.send(TO_DATA + CONTENT)
        await taken.wait()
        if how == "half":
            client.half_close()
            await gone.wait()
            assert [reply.code for reply in await client.rest()] == [250, 250, 354, 250]
        else:
            if how == "reset":
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.socket.close()
            await gone.wait()
    assert gone.is_set()


@on_both_loops
async def test_a_client_that_goes_afterwards_is_not_told_of() -> None:
    told: list[str] = []
    application = Application(handler(on_connection_close=lambda self: told.append("gone")))
    async with serving(application) as server:
        with await Client.greeted(server, HELO) as client:
            assert await send(client) == "250 Ok"
        await until(lambda: server._worker.connections == 0)
    assert told == []


@on_both_loops
async def test_a_handler_that_takes_too_long(caplog: pytest.LogCaptureFixture) -> None:
    late: list[RequestHandler] = []

    class Handler(RequestHandler):
        async def data(self) -> None:
            if not late:
                late.append(self)
                await asyncio.get_running_loop().create_future()

    async with greeted(Application(Handler), handler_timeout=0.05) as client:
        assert await send(client) == "451 Error: processing took too long"
        late[0].finish("never heard")
        assert await send(client) == "250 Ok"


# --- plain callbacks ----------------------------------------------------------------------------------------


@on_both_loops
async def test_callbacks_finish_at_once_or_later_in_any_way() -> None:
    waiting: list[SMTPRequest] = []

    def at_once(request: SMTPRequest) -> None:
        request.finish()

    async def in_time(request: SMTPRequest) -> None:
        await asyncio.sleep(0)
        await request.finish_async("in time")

    def by_another(request: SMTPRequest) -> asyncio.Future[None]:
        asyncio.get_running_loop().call_soon(request.finish, "by another")
        future = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    class Awaitable:
        def __init__(self, request: SMTPRequest) -> None:
            self.request = request

        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            self.request.finish("awaited")

    replies = []
    for callback in (at_once, in_time, by_another, Awaitable, waiting.append):
        async with greeted(callback) as client:
            await client.send(TO_DATA + CONTENT)
            assert await client.codes(3) == [250, 250, 354]
            if callback == waiting.append:
                await until(lambda: waiting)
                waiting[0].finish("late")
            replies.append((await client.reply()).lines[0])
    assert replies == ["250 Ok", "250 in time", "250 by another", "250 awaited", "250 late"]


@plain_or_async
@on_both_loops
async def test_callbacks_that_fail_before_and_after(caplog: pytest.LogCaptureFixture, kind: Any) -> None:
    def fails(request: SMTPRequest) -> None:
        if request.mail == "a@b.example":
            request.finish()
        raise errors.SMTPError(452, "nope") if request.mail == "<>" else ValueError("here")

    async with greeted(kind(fails)) as client:
        assert await send(client) == "250 Ok"
        assert await send(client, to_data=TO_DATA.replace(b"a@b.example", b"")) == "452 nope"
        assert await send(client, to_data=TO_DATA.replace(b"a@b", b"b@b")) == "451 Internal confusion"
        assert await client.says(b"NOOP\r\n") == "250 Ok"
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


# --- what bonzo does wrong ----------------------------------------------------------------------------------


@plain_or_async
@on_both_loops
async def test_after_an_error_commands_are_commands(kind: Any) -> None:
    """bonzo took the next command for a message, with the old recipients."""
    seen: list[str] = []

    def data(self: RequestHandler) -> None:
        seen.append(self.request.data)
        raise errors.SMTPError(452, "nope")

    async with greeted(Application(handler(data=kind(data)))) as client:
        assert await send(client) == "452 nope"
        assert await client.says(b"NOOP\r\n") == "250 Ok"
        assert await client.says(b"RCPT TO:<c@d.example>\r\n") == "503 Error: need MAIL command"
        assert await send(client, b"again\r\n.\r\n") == "452 nope"
    assert seen == ["Subject: test\n\ntext", "again"]


@on_both_loops
async def test_an_empty_message_does_not_hang() -> None:
    seen: list[tuple[str, int]] = []
    took = handler(data=lambda self: seen.append((self.request.data, self.request.body.size)))
    async with greeted(Application(took)) as client:
        assert await send(client, b".\r\n") == "250 Ok"
        assert await send(client, b"\r\n.\r\n") == "250 Ok"
    assert seen == [("", 0), ("", 2)]


@on_both_loops
async def test_mail_of_eight_bits_is_received() -> None:
    seen: list[tuple[bytes, str, Any]] = []

    def data(self: RequestHandler) -> None:
        request = self.request
        seen.append((bytes(request.body), request.data, request.message.get_payload(decode=True)))

    content = b"Content-Type: text/plain; charset=latin-1\r\n\r\ncaf\xe9\r\n"
    async with greeted(Application(handler(data=data))) as client:
        assert await send(client, content + b".\r\n") == "250 Ok"
        assert await client.says(b"NOOP\r\n") == "250 Ok"
        assert await send(client, "Subject: x\r\n\r\nça\r\n.\r\n".encode()) == "250 Ok"
    assert seen[0] == (
        content,
        content.decode("utf-8", "surrogateescape")[:-2].replace("\r\n", "\n"),
        b"caf\xe9",
    )
    assert seen[1][1:] == ("Subject: x\n\nça", "ça".encode())


@on_both_loops
async def test_the_extended_hello_is_there_and_may_come_again() -> None:
    async with serving(Application(RequestHandler), max_message_size=1000) as server:
        with await Client.greeted(server, b"") as client:
            extensions = ["250-PIPELINING", "250-SIZE 1000", "250-8BITMIME", "250-SMTPUTF8", "250 HELP"]
            for _ in range(2):
                assert (await client.ask(b"EHLO c.example\r\n")).lines == ("250-mx.example", *extensions)
            assert await client.says(b"HELO c.example\r\n") == "250 Hello 127.0.0.1"
            assert await client.says(b"MAIL FROM:<a@b.example>\r\n") == "250 Ok"
            assert await client.says(b"HELO c.example\r\n") == "250 Hello 127.0.0.1"
            assert await client.says(b"RCPT TO:<c@d.example>\r\n") == "503 Error: need MAIL command"


@on_both_loops
async def test_parameters_are_not_in_the_address() -> None:
    seen: list[tuple[str | None, list[str]]] = []
    took = handler(data=lambda self: seen.append((self.request.mail, self.request.mail_options)))
    commands = TO_DATA.replace(b"example>\r\nRCPT", b"example> SIZE=10 BODY=8BITMIME\r\nRCPT")
    async with greeted(Application(took)) as client:
        assert await client.says(b"EHLO c.example\r\n")
        assert await send(client, to_data=commands) == "250 Ok"
    assert seen == [("a@b.example", ["SIZE=10", "BODY=8BITMIME"])]


@on_both_loops
async def test_the_octets_are_kept_as_they_were_sent() -> None:
    content = b"A: b\r\n\r\n one \r\n\r\n..two\t\r\n\r\n"
    bodies: list[memoryview] = []
    took = handler(data=later(lambda self: bodies.append(self.request.body.view())))
    async with greeted(Application(took)) as client:
        assert await send(client, content + b".\r\n") == "250 Ok"
    assert bytes(bodies[0]) == content.replace(b"..", b".")
    assert bodies[0].readonly


@on_both_loops
async def test_there_are_limits_and_times_and_answers_about_size() -> None:
    settings = {"max_message_size": 100, "max_recipients": 100, "max_errors": 3, "idle_timeout": 0.3}
    async with greeted(Application(RequestHandler), **settings) as client:
        assert await client.says(b"EHLO c.example\r\n")
        refused = "552 Error: message size exceeds the fixed maximum"
        assert await client.says(b"MAIL FROM:<a@b.example> SIZE=101\r\n") == refused
        assert await send(client, b"x" * 101 + b"\r\n.\r\n") == "552 Error: too much mail data"
        await client.send(b"MAIL FROM:<a@b.example>\r\n" + b"RCPT TO:<c@d.example>\r\n" * 101)
        assert await client.codes(102) == [250] * 101 + [452]
        assert await client.says(b"EXPN x\r\n") == '502 Error: command "EXPN" not implemented'
        assert [reply.lines[0] for reply in await client.rest()] == [
            "421 Error: timeout exceeded; closing connection"
        ]


@on_both_loops
async def test_what_bonzo_says_is_said_letter_by_letter() -> None:
    conversation = [
        (b"\r\n", "500 Error: bad syntax"),
        (b"  \r\n", "500 Error: bad syntax"),
        (b"BADCOMMAND x\r\n", '502 Error: command "BADCOMMAND" not implemented'),
        (b"STARTTLS\r\n", '502 Error: command "STARTTLS" not implemented'),
        (b"AUTH PLAIN\r\n", '502 Error: command "AUTH" not implemented'),
        (b"HELO\r\n", "501 Syntax: HELO hostname"),
        (b"MAIL FROM:<a@b.example>\r\n", "503 Error: need HELO command"),
        (b"helo c.example\r\n", "250 Hello 127.0.0.1"),
        (b"NOOP\r\n", "250 Ok"),
        (b"RCPT TO:<c@d.example>\r\n", "503 Error: need MAIL command"),
        (b"MAIL FROM:\r\n", "501 Syntax: MAIL FROM:<address>"),
        (b"mail from:<a@b.example>\r\n", "250 Ok"),
        (b"MAIL FROM:<a@b.example>\r\n", "503 Error: nested MAIL command"),
        (b"DATA\r\n", "503 Error: need RCPT command"),
        (b"RCPT TO:\r\n", "501 Syntax: RCPT TO:<address>"),
        (b"RCPT TO:<c@d.example>\r\n", "250 Ok"),
        (b"DATA x\r\n", "501 Syntax: DATA"),
        (b"RSET x\r\n", "501 Syntax: RSET"),
        (b"RSET\r\n", "250 Ok"),
        (TO_DATA, "250 Ok\n250 Ok\n354 End data with <CR><LF>.<CR><LF>"),
        (CONTENT, "250 Ok"),
        (b"QUIT\r\n", "221 Bye"),
    ]
    async with serving(Application(RequestHandler)) as server:
        with await Client.greeted(server, b"") as client:
            for command, reply in conversation:
                await client.send(command)
                replies = await client.replies(reply.count("\n") + 1)
                assert "\n".join(line for each in replies for line in each.lines) == reply, command
            assert await client.rest() == []


# --- real clients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [lambda method: method, later], ids=["plain", "async"])
@on_both_loops
async def test_smtplib(kind: Any) -> None:
    seen: list[SMTPRequest] = []
    took = handler(
        rcpt=kind(
            lambda self, address: None if address != "no@d.example" else raises(errors.SMTPError(550, "no"))()
        ),
        data=kind(lambda self: seen.append(self.request)),
    )
    message = EmailMessage()
    message["Subject"] = "täst"
    message.set_content("héllo\n", cte="8bit")

    def mail(port: int) -> Any:
        with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
            return client.send_message(message, "a@b.example", ["c@d.example", "no@d.example"])

    async with serving(Application(took)) as server:
        refused = await asyncio.to_thread(mail, port_of(server))
    assert refused == {"no@d.example": (550, b"no")}
    assert seen[0].rcpt == ["c@d.example"]
    assert seen[0].message.get_payload(decode=True) == "héllo\n".encode().removesuffix(b"\n")


@pytest.mark.skipif(shutil.which("swaks") is None, reason="swaks is not installed")
@on_both_loops
async def test_swaks() -> None:
    seen: list[SMTPRequest] = []
    async with serving(Application(handler(data=later(lambda self: seen.append(self.request))))) as server:
        process = await asyncio.create_subprocess_exec(
            *("swaks", "--server", f"127.0.0.1:{port_of(server)}", "--from", "a@b.example", "--pipeline"),
            *("--to", "c@d.example", "--header", "Subject: swaks"),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    assert seen[0].message["Subject"] == "swaks"


def test_debug_is_for_autoreload() -> None:
    assert Application(RequestHandler).autoreload is False
    assert Application(RequestHandler, debug=True).settings == {"debug": True, "autoreload": True}
    assert Application(RequestHandler, debug=True, autoreload=False).autoreload is False
    assert Application(RequestHandler, autoreload=True).autoreload is True


def test_the_logs_are_named_for_what_they_are() -> None:
    assert logging.getLogger("fastsmtp.application").parent is logging.getLogger("fastsmtp")
