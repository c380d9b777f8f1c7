"""Handlers: each hook with its arguments, whatever its kind, and what becomes of what it returns or raises."""

import asyncio
import os
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disks import open_files
from script import HOSTNAME
from servers import CONTENT, MAIL, Client, Keeps, counted, on_both_loops, serve, until
from wires import TO_DATA

from fastsmtp import ConfigError, Envelope, Session, SMTPError, blocking
from fastsmtp.connection import Connection

HOOKS = ("CONNECT", "HELO", "EHLO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT", "VRFY", "DISCONNECT")


class Recorder:
    """What hooks were called with. ``replies`` answers by the hook's name."""

    def __init__(self, **replies: object) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.replies = {
            "CONNECT": "220 mine",
            "HELO": "250 helo",
            "MAIL": "250 2.1.0 mail",
            "RCPT": "250 2.1.5 rcpt",
            "DATA": "250 2.0.0 data",
            "RSET": "250 2.0.0 rset",
            "NOOP": "250 2.0.0 noop",
            "QUIT": "221 2.0.0 quit",
            "VRFY": "252 2.0.0 vrfy",
        } | replies

    def record(self, name: str, *arguments: Any) -> Any:
        self.calls.append((name, arguments))
        _server, _session, envelope, *more = arguments
        if name == "EHLO":
            return [*more[1][:-1], "250-X-MINE", more[1][-1]]
        if name == "MAIL":
            envelope.mail_from = more[0]
        elif name == "RCPT":
            envelope.rcpt_tos.append(more[0])
        reply = self.replies.get(name)
        if isinstance(reply, BaseException):
            raise reply
        return reply


def handler_of(kind: str, recorder: Recorder, hooks: tuple[str, ...] = HOOKS) -> object:
    """A handler that has ``hooks`` of one kind: plain, async, waiting or blocking."""

    def method(name: str) -> Callable[..., Any]:
        def plain(self: object, *arguments: Any) -> Any:
            return recorder.record(name, *arguments)

        async def at_once(self: object, *arguments: Any) -> Any:
            return recorder.record(name, *arguments)

        async def waiting(self: object, *arguments: Any) -> Any:
            await asyncio.sleep(0.001)
            return recorder.record(name, *arguments)

        @blocking
        def threaded(self: object, *arguments: Any) -> Any:
            return recorder.record(name, *arguments)

        return {"plain": plain, "async": at_once, "waiting": waiting, "blocking": threaded}[kind]

    return type("Handler", (), {f"handle_{name}": method(name) for name in hooks})()


each_kind = pytest.mark.parametrize("kind", ["plain", "async", "waiting", "blocking"])


# --- arguments ----------------------------------------------------------------------------------------------


@each_kind
@on_both_loops
async def test_each_hook_is_called_with_its_arguments_and_answers(kind: str) -> None:
    recorder = Recorder()
    async with await serve(handler_of(kind, recorder)) as server:
        with await Client.connect(server) as client:
            peer = client.socket.getsockname()
            assert (await client.reply()).lines == ("220 mine",)
            assert await client.says(b"HELO h.example\r\n") == "250 helo"
            ehlo = (await client.ask(b"EHLO e.example\r\n")).lines
            assert ehlo[0] == f"250-{HOSTNAME}"
            assert ehlo[-2] == "250-X-MINE"
            assert (
                await client.says(b"MAIL FROM:<a@b.example> SIZE=100 BODY=8BITMIME\r\n") == "250 2.1.0 mail"
            )
            assert await client.says(b"RCPT TO:<c@d.example>\r\n") == "250 2.1.5 rcpt"
            assert await client.says(b"VRFY v@d.example\r\n") == "252 2.0.0 vrfy"
            assert await client.says(b"NOOP some thing\r\n") == "250 2.0.0 noop"
            assert (await client.ask(b"DATA\r\n")).code == 354
            assert await client.says(b"text\r\n.\r\n") == "250 2.0.0 data"
            assert await client.says(b"RSET\r\n") == "250 2.0.0 rset"
            assert await client.says(b"QUIT\r\n") == "221 2.0.0 quit"
            assert await client.rest() == []
        await until(lambda: len(recorder.calls) == len(HOOKS))
    names = [name for name, _ in recorder.calls]
    assert names == [
        "CONNECT",
        "HELO",
        "EHLO",
        "MAIL",
        "RCPT",
        "VRFY",
        "NOOP",
        "DATA",
        "RSET",
        "QUIT",
        "DISCONNECT",
    ]
    calls = dict(recorder.calls)
    connections, sessions = ({arguments[at] for arguments in calls.values()} for at in (0, 1))
    (session,) = sessions
    (connection,) = connections
    assert isinstance(connection, Connection)
    assert isinstance(session, Session)
    assert connection.hostname == HOSTNAME
    assert session.peer == peer
    assert (session.host_name, session.extended_smtp, session.tls, session.ssl) == (
        "e.example",
        True,
        False,
        None,
    )
    assert len({calls[name][2] for name in ("MAIL", "RCPT", "VRFY", "NOOP", "DATA")}) == 1  # one transaction
    assert {name: arguments[3:] for name, arguments in calls.items() if name != "EHLO"} == {
        "CONNECT": (),
        "HELO": ("h.example",),
        "MAIL": ("a@b.example", ["SIZE=100", "BODY=8BITMIME"]),
        "RCPT": ("c@d.example", []),
        "VRFY": ("v@d.example",),
        "NOOP": ("some thing",),
        "DATA": (),
        "RSET": (),
        "QUIT": (),
        "DISCONNECT": (),
    }
    hostname, responses = calls["EHLO"][3:]
    assert hostname == "e.example"
    assert responses == [line for line in ehlo if line != "250-X-MINE"]


@on_both_loops
async def test_every_hook_of_a_connection_gets_an_envelope() -> None:
    """Handlers written for aiosmtpd look into it, or note something there, in any hook."""
    recorder = Recorder()
    hooks = tuple(name for name in HOOKS if name not in ("CONNECT", "DISCONNECT"))
    async with await serve(handler_of("plain", recorder, hooks)) as server:
        with await Client.connect(server) as client:
            await client.send(b"NOOP\r\nHELO h.example\r\n" + MAIL + b"RSET\r\nVRFY x\r\nQUIT\r\n")
            assert len(await client.rest()) == 11
    assert [name for name, arguments in recorder.calls if not isinstance(arguments[2], Envelope)] == []


@on_both_loops
async def test_a_disconnect_hook_alone_knows_who_was_there() -> None:
    recorder = Recorder()
    async with await serve(handler_of("plain", recorder, ("DISCONNECT",)), deliver="discard:") as server:
        with await Client.greeted(server) as client:
            peer = client.socket.getsockname()
        await until(lambda: recorder.calls)
    assert recorder.calls[0][1][1].peer == peer


@on_both_loops
async def test_sessions_and_envelopes_are_told_apart_and_carry_what_handlers_put_there() -> None:
    class Handler:
        def handle_MAIL(
            self, server: object, session: Session, envelope: Envelope, address: str, mail_options: list[str]
        ) -> str:
            session.count = getattr(session, "count", 0) + 1
            envelope.mine = address
            return "250 2.1.0 Ok"  # does not set mail_from: it is set all the same

        def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
            assert envelope.mine == envelope.mail_from
            return f"250 2.0.0 {session.count} {envelope.mine} {envelope.rcpt_tos}"

    async with await serve(Handler()) as server:
        with await Client.greeted(server) as one, await Client.greeted(server) as two:
            for client, count in ((one, 1), (one, 2), (two, 1), (one, 3)):
                await client.send(TO_DATA + b"text\r\n.\r\n")
                replies = await client.replies(4)
                assert replies[3].lines == (f"250 2.0.0 {count} a@b.example ['c@d.example']",)


@on_both_loops
async def test_a_refused_hello_keeps_the_name_before() -> None:
    class Handler(Keeps):
        session: Session

        def handle_HELO(self, server: object, session: Session, envelope: Envelope, hostname: str) -> str:
            self.session = session
            assert session.host_name == hostname
            return "550 5.7.1 Not you" if hostname == "bad.example" else "250 hello"

    handler = Handler()
    async with await serve(handler) as server:
        with await Client.greeted(server, b"HELO good.example\r\n") as client:
            assert await client.says(b"HELO bad.example\r\n") == "550 5.7.1 Not you"
            assert handler.session.host_name == "good.example"
            assert (await client.ask(b"MAIL FROM:<>\r\n")).code == 250


@on_both_loops
async def test_recipients_are_those_that_the_hook_adds() -> None:
    class Handler(Keeps):
        def handle_RCPT(
            self, server: object, session: Session, envelope: Envelope, address: str, rcpt_options: list[str]
        ) -> str:
            if address.startswith("no"):
                return "550 5.1.1 Nobody"
            envelope.rcpt_tos.append(address.upper())
            return "250 2.1.5 Ok"

    handler = Handler()
    async with await serve(handler) as server:
        with await Client.greeted(server) as client:
            await client.send(b"MAIL FROM:<>\r\nRCPT TO:<no@d.example>\r\nDATA\r\n")
            assert await client.codes(3) == [250, 550, 554]
            await client.send(b"RCPT TO:<yes@d.example>\r\nRCPT TO:<no@d.example>\r\nDATA\r\n.\r\n")
            assert await client.codes(4) == [250, 550, 354, 250]
    assert handler.messages == [("<>", ["YES@D.EXAMPLE"], b"")]


# --- what hooks return --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "status", "reply"),
    [
        ("DATA", "250 fine", "250 2.0.0 fine"),
        ("DATA", "250", "250 2.0.0"),
        ("DATA", b"250 octets", "250 2.0.0 octets"),
        ("DATA", "554 no", "554 5.6.0 no"),
        ("DATA", "452 later", "452 4.0.0 later"),
        ("DATA", "550 5.7.1 as it is", "550 5.7.1 as it is"),
        ("DATA", "250 2.0.0 gr\u00fcn", "250 2.0.0 gr\u00fcn"),
        ("DATA", "250 4.0.0 of another class", "250 2.0.0 4.0.0 of another class"),
        (
            "DATA",
            "550 one\ntwo\r\n250 2.0.0 three\r\n",
            "550-5.6.0 one\n550-5.6.0 two\n550 5.6.0 250 2.0.0 three",
        ),
        ("DATA", "550-one\r\n550 two", "550-5.6.0 one\n550 5.6.0 two"),
        ("DATA", "250 a\rb", "250-2.0.0 a\n250 2.0.0 b"),
        ("MAIL", "250 fine", "250 2.1.0 fine"),
        ("MAIL", "550 no", "550 5.0.0 no"),
        ("RCPT", "250 fine", "250 2.1.5 fine"),
        ("NOOP", "250 x\r\n221 2.0.0 Bye", "250-2.0.0 x\n250 2.0.0 221 2.0.0 Bye"),
        ("VRFY", "252 perhaps", "252 2.0.0 perhaps"),
        ("RSET", "250 gone", "250 2.0.0 gone"),
        ("HELO", "250 hello", "250 hello"),
    ],
)
@on_both_loops
async def test_what_a_hook_returns_is_the_reply(hook: str, status: str | bytes, reply: str) -> None:
    await the_answer_is(hook, status, reply)


async def the_answer_is(hook: str, result: object, reply: str) -> None:
    """Whatever the hook's reply, it is one reply, and the next command is answered with its own."""
    commands = {
        "HELO": b"HELO h.example\r\n",
        "EHLO": b"EHLO e.example\r\n",
        "MAIL": b"MAIL FROM:<a@b.example>\r\n",
        "RCPT": b"RCPT TO:<c@d.example>\r\n",
        "DATA": b".\r\n",
        "RSET": b"RSET\r\n",
        "NOOP": b"NOOP\r\n",
        "VRFY": b"VRFY x\r\n",
    }

    class Handler(Keeps):
        pass

    def answers(self: object, *arguments: Any) -> object:
        if hook == "RCPT":
            arguments[2].rcpt_tos.append("c@d.example")
        if isinstance(result, BaseException):
            raise result
        return result

    setattr(Handler, f"handle_{hook}", answers)
    async with await serve(Handler()) as server:
        with await Client.greeted(
            server, b"" if hook in ("HELO", "EHLO") else b"HELO before.example\r\n"
        ) as client:
            before = {"RCPT": [250], "DATA": [250, 250, 354]}.get(hook, [])
            await client.send((TO_DATA if hook == "DATA" else b"MAIL FROM:<>\r\n") if before else b"")
            assert await client.codes(len(before)) == before
            assert await client.says(commands[hook]) == reply
            assert (
                await client.says(b"HELP\r\n")
                == "214 2.0.0 Commands: DATA EHLO HELO HELP MAIL NOOP QUIT RCPT RSET VRFY"
            )


FAILED = "451 4.3.0 Error: local error in processing"


@pytest.mark.parametrize("hook", ["HELO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "VRFY"])
@pytest.mark.parametrize("junk", [None, "hello", 42])
@on_both_loops
async def test_what_is_no_reply_is_a_local_error(
    caplog: pytest.LogCaptureFixture, hook: str, junk: object
) -> None:
    await the_answer_is(hook, junk, FAILED)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert f"handle_{hook}" in caplog.text


@pytest.mark.parametrize(
    "junk",
    ["", " ", "\r\n", "2", "950 x", "150 x", "\u0662\u0665\u0660 x", "x" * 5000, b"\xff", True, [], ["250 x"], object(),
     "354 go on", "250 \ud800"],
    ids=ascii,
)  # fmt: skip
@on_both_loops
async def test_strange_results_are_local_errors_too(caplog: pytest.LogCaptureFixture, junk: object) -> None:
    await the_answer_is("DATA", junk, FAILED)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "junk", [[], [1], [None], [b"250 x"], ["250-x", "550 y"], ["x"], None, ["250 \ud800"]], ids=ascii
)
@on_both_loops
async def test_strange_ehlo_results_are_local_errors_too(
    caplog: pytest.LogCaptureFixture, junk: object
) -> None:
    await the_answer_is("EHLO", junk, FAILED)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("lines", "reply"),
    [
        (["250-a", "250 b"], "250-a\n250 b"),
        (["250 a", "250 b"], "250-a\n250 b"),
        (["250-a\r\n550 b", "250 c"], "250-a\n250-550 b\n250 c"),
        ("250 just this", "250 just this"),
        (["550 5.7.1 no"], "550 5.7.1 no"),
    ],
)
@on_both_loops
async def test_what_an_ehlo_hook_may_return(lines: object, reply: str) -> None:
    await the_answer_is("EHLO", lines, reply)


@on_both_loops
async def test_an_ehlo_hook_may_take_the_rest_of_its_arguments_together() -> None:
    class Handler(Keeps):
        def handle_EHLO(self, server: object, session: Session, envelope: Envelope, *more: Any) -> list[str]:
            hostname, responses = more
            return [f"250-hello {hostname}", *responses[1:]]

    async with await serve(Handler()) as server:
        with await Client.greeted(server, b"") as client:
            assert (await client.ask(b"EHLO c.example\r\n")).lines[0] == "250-hello c.example"


@pytest.mark.parametrize("kind", ["plain", "async", "blocking"])
@on_both_loops
async def test_an_ehlo_hook_of_four_arguments_gives_the_last_line(kind: str) -> None:
    class Plain(Keeps):
        def handle_EHLO(self, server: object, session: Session, envelope: Envelope, hostname: str) -> str:
            return "250 MINE"

    class Async(Keeps):
        async def handle_EHLO(
            self, server: object, session: Session, envelope: Envelope, hostname: str
        ) -> str:
            return "250 MINE"

    class Blocking(Keeps):
        @blocking
        def handle_EHLO(self, server: object, session: Session, envelope: Envelope, hostname: str) -> str:
            return "250 MINE"

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        server = await serve({"plain": Plain, "async": Async, "blocking": Blocking}[kind]())
    async with server:
        assert [warning.category for warning in caught] == [DeprecationWarning]
        with await Client.greeted(server, b"") as client:
            lines = (await client.ask(b"EHLO c.example\r\n")).lines
            assert lines[0] == f"250-{HOSTNAME}"
            assert "250-PIPELINING" in lines
            assert lines[-1] == "250 MINE"


@on_both_loops
async def test_hooks_may_be_static_or_given_to_the_object() -> None:
    class Handler(Keeps):
        @staticmethod
        def handle_EHLO(
            server: object, session: Session, envelope: Envelope, hostname: str, responses: list[str]
        ) -> list[str]:
            return responses

    handler: Any = Handler()
    handler.handle_VRFY = lambda server, session, envelope, address: f"252 2.0.0 {address}"
    async with await serve(handler) as server:
        with await Client.greeted(server) as client:
            assert await client.says(b"VRFY x\r\n") == "252 2.0.0 x"


# --- what hooks raise ---------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("hook", ["HELO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "VRFY"])
@on_both_loops
async def test_a_raised_smtp_error_is_the_reply(kind: str, hook: str) -> None:
    recorder = Recorder(**{hook: SMTPError(450, "4.2.1", "Come\nagain")})
    await answers_of(kind, recorder, hook, "450-4.2.1 Come\n450 4.2.1 again")


async def answers_of(kind: str, recorder: Recorder, hook: str, reply: str) -> list[str]:
    """Plays a session in which one hook gives ``reply``; returns the replies after it."""
    commands = {
        "HELO": b"HELO h.example\r\n",
        "MAIL": b"MAIL FROM:<a@b.example>\r\n",
        "RCPT": b"RCPT TO:<c@d.example>\r\n",
        "DATA": b"DATA\r\n",
    }
    async with await serve(handler_of(kind, recorder, tuple({hook, "DATA"}))) as server:
        with await Client.greeted(server, b"") as client:
            for name, command in commands.items():
                if hook == name and name != "DATA":
                    break
                if hook in ("RSET", "NOOP", "VRFY") and name == "MAIL":
                    break
                assert (await client.ask(command)).code in (250, 354)
            command = {"DATA": b"text\r\n.\r\n", "VRFY": b"VRFY x\r\n"}.get(
                hook, commands.get(hook, hook.encode() + b"\r\n")
            )
            assert await client.says(command) == reply
            assert (await client.ask(b"HELP\r\n")).code == 214
            if hook in ("MAIL", "DATA"):  # the transaction is over
                assert (await client.ask(b"RCPT TO:<c@d.example>\r\n")).code == 503
    return []


@each_kind
@pytest.mark.parametrize("hook", ["HELO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "VRFY"])
@on_both_loops
async def test_any_other_exception_is_a_local_error_and_one_line_in_the_log(
    caplog: pytest.LogCaptureFixture, kind: str, hook: str
) -> None:
    recorder = Recorder(**{hook: ZeroDivisionError("by\nzero")})
    await answers_of(kind, recorder, hook, FAILED)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage().startswith(f"handle_{hook} failed: ZeroDivisionError")
    assert record.exc_info


@pytest.mark.parametrize(
    "error", [SMTPError(99, "", "x"), SMTPError(250, "2.0.0", ""), SMTPError(354, "", "go")], ids=str
)
@on_both_loops
async def test_an_smtp_error_that_is_no_refusal(caplog: pytest.LogCaptureFixture, error: SMTPError) -> None:
    await the_answer_is("DATA", error, FAILED)
    assert len(caplog.records) == 1


@each_kind
@on_both_loops
async def test_a_handler_may_make_replies_of_exceptions_itself(
    caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    recorder = Recorder(NOOP=ZeroDivisionError(), VRFY=KeyError(), RSET=SMTPError(450, "4.2.1", "Later"))
    handler: Any = handler_of(kind, recorder, ("NOOP", "VRFY", "RSET", "DATA"))

    async def handle_exception(error: Exception) -> str | None:
        return f"554 5.3.0 {type(error).__name__}" if isinstance(error, ZeroDivisionError) else None

    handler.handle_exception = handle_exception
    async with await serve(handler) as server:
        with await Client.greeted(server) as client:
            assert await client.says(b"NOOP\r\n") == "554 5.3.0 ZeroDivisionError"
            assert caplog.records == []
            assert await client.says(b"VRFY x\r\n") == FAILED
            assert await client.says(b"RSET\r\n") == "450 4.2.1 Later"
    assert len(caplog.records) == 1


@on_both_loops
async def test_a_hook_that_cancels_itself_is_a_local_error(caplog: pytest.LogCaptureFixture) -> None:
    class Handler:
        async def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
            raise asyncio.CancelledError

    async with await serve(Handler()) as server:
        with await Client.greeted(server) as client:
            await client.send(TO_DATA + b".\r\nNOOP\r\n")
            assert await client.codes(5) == [250, 250, 354, 451, 250]
    assert len(caplog.records) == 1


@on_both_loops
async def test_a_failing_disconnect_hook_is_logged_and_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(DISCONNECT=ZeroDivisionError())
    for kind in ("plain", "async", "waiting", "blocking"):
        async with await serve(handler_of(kind, recorder, ("DISCONNECT", "DATA"))) as server:
            (await Client.greeted(server)).socket.close()
            await until(lambda: counted(server, "handler_errors_total", "disconnect") == 1)
    assert [record.getMessage().partition(" (session ")[0] for record in caplog.records] == [
        "handle_DISCONNECT failed: ZeroDivisionError"
    ] * 4


# --- the ends of a connection -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "said", "closed"),
    [
        (None, f"220 {HOSTNAME} ESMTP fastsmtp", False),
        ("220 mx two\nlines", "220-mx two\n220 lines", False),
        ("554 5.7.1 Not you", "554 5.7.1 Not you", True),
        (SMTPError(421, "4.7.0", "Later"), "421 4.7.0 Later", True),
    ],
    ids=str,
)  # fmt: skip
@each_kind
@on_both_loops
async def test_what_a_connect_hook_says(kind: str, reply: object, said: str, closed: bool) -> None:
    recorder = Recorder(CONNECT=reply)
    async with await serve(handler_of(kind, recorder, ("CONNECT", "DATA"))) as server:
        with await Client.connect(server) as client:
            assert "\n".join((await client.reply()).lines) == said
            if closed:
                assert await client.rest() == []
            else:
                assert (await client.ask(b"EHLO c.example\r\n")).code == 250


@on_both_loops
async def test_a_failing_connect_hook_turns_the_client_away(caplog: pytest.LogCaptureFixture) -> None:
    async with await serve(
        handler_of("async", Recorder(CONNECT=ZeroDivisionError()), ("CONNECT", "DATA"))
    ) as server:
        with await Client.connect(server) as client:
            assert [reply.lines[0] for reply in await client.rest()] == [FAILED]
    assert len(caplog.records) == 1


@on_both_loops
async def test_what_comes_before_the_greeting_waits_for_it() -> None:
    go = asyncio.Event()

    class Handler(Keeps):
        async def handle_CONNECT(self, server: object, session: Session, envelope: Envelope) -> str:
            await go.wait()
            return "220 welcome"

    handler = Handler()
    async with await serve(handler) as server:
        with await Client.connect(server) as client:
            await client.send(MAIL)
            await until(lambda: counted(server, "received_bytes_total") == len(MAIL))
            go.set()
            assert await client.codes(6) == [220, 250, 250, 250, 354, 250]
    assert [message.content for message in handler.messages] == [CONTENT]


@on_both_loops
async def test_an_async_hook_that_need_not_wait_is_answered_in_the_same_turn() -> None:
    """Since Python 3.12, where a task can begin at once. Before, the loop has a turn for each."""
    order: list[str] = []
    loop = asyncio.get_running_loop()

    class Handler(Keeps):
        async def handle_NOOP(
            self, server: Connection, session: Session, envelope: Envelope, argument: str
        ) -> str:
            assert asyncio.current_task() is not None
            order.append(argument)
            if argument == "one":
                loop.call_soon(order.append, "the loop")
            return f"250 2.0.0 {argument}"

    async with await serve(Handler()) as server:
        with await Client.greeted(server) as client:
            await client.send(b"NOOP one\r\nNOOP two\r\nNOOP three\r\n")
            said = [reply.lines[0] for reply in await client.replies(3)]
    assert said == ["250 2.0.0 one", "250 2.0.0 two", "250 2.0.0 three"]
    if sys.version_info >= (3, 12):
        assert order == ["one", "two", "three", "the loop"]
    else:
        assert order == ["one", "the loop", "two", "three"]


@on_both_loops
async def test_a_421_from_a_hook_ends_the_connection() -> None:
    async with await serve(
        handler_of("plain", Recorder(NOOP="421 4.7.0 Enough"), ("NOOP", "DATA"))
    ) as server:
        with await Client.greeted(server) as client:
            await client.send(b"NOOP\r\nHELP\r\n")
            assert [reply.lines for reply in await client.rest()] == [("421 4.7.0 Enough",)]


@on_both_loops
async def test_a_hook_may_end_the_connection_itself() -> None:
    class Handler(Keeps):
        def handle_VRFY(self, server: Connection, session: Session, envelope: Envelope, address: str) -> str:
            assert server.transport is not None
            server.transport.abort()
            return "252 2.0.0 Never heard"

    async with await serve(Handler()) as server:
        with await Client.greeted(server) as client:
            await client.send(b"VRFY x\r\nNOOP\r\n")
            assert await client.rest() in ([], [(252, "2.0.0", ("252 2.0.0 Never heard",))])
        await until(lambda: server.connections == 0)


# --- handlers that cannot be --------------------------------------------------------------------------------


class Misspelled:
    def handle_data(self, server: object, session: Session, envelope: Envelope) -> str:
        return "250 Ok"


class Unmakable(Keeps):
    def __init__(self, path: str) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("handler", "settings", "words"),
    [
        (object(), {}, ["object", "handle_DATA", "lost"]),
        (None, {}, ["handler", "deliver"]),
        (Misspelled(), {}, ["Misspelled", '"handle_data"', '"handle_DATA"']),
        (Misspelled(), {"deliver": "discard:"}, ['"handle_data"', '"handle_DATA"']),
        (Unmakable, {}, ["Unmakable", "path"]),
        (Keeps(), {"deliver": "discard:"}, ["Keeps", "handle_DATA", "sink"]),
        (Keeps(), {"listne": []}, ['"listne"', '"listen"']),
        (Keeps(), {"workers": 2}, ['"workers"', "run"]),
    ],
    ids=str,
)
@on_both_loops
async def test_a_handler_or_setting_that_cannot_be_is_told_at_once(
    handler: object, settings: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        await serve(handler, **settings)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@on_both_loops
async def test_a_handler_that_cannot_be_leaves_the_port_free() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(ConfigError):
        await serve(object(), listen=[f"127.0.0.1:{port}"])
    async with await serve(Keeps(), listen=[f"127.0.0.1:{port}"]) as server:
        (await Client.greeted(server)).socket.close()


@on_both_loops
async def test_a_class_is_made_into_a_handler() -> None:
    async with await serve(Keeps) as server:
        with await Client.greeted(server) as client:
            await client.send(TO_DATA + b".\r\n")
            assert await client.codes(4) == [250, 250, 354, 250]


def test_blocking_is_not_for_async_hooks() -> None:
    with pytest.raises(TypeError, match="async"):

        @blocking
        async def handle_DATA(self: object) -> None: ...


# --- the body -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 30, 200_000, 400_000], ids=["empty", "one read", "in memory", "spilled"])
@each_kind
@on_both_loops
async def test_a_hook_gets_the_message_in_any_form(tmp_path: Path, kind: str, size: int) -> None:
    content = (b"0123456789" * 7 + b"\r\n") * (size // 72 + 1) if size else b""
    spilled = size > 300_000
    seen: list[Envelope] = []

    class Looks(Recorder):
        def record(self, name: str, *arguments: Any) -> Any:
            envelope = arguments[2]
            seen.append(envelope)
            body = envelope.body
            assert (body.size, body.spilled) == (len(content), spilled)
            assert body.view() == content == bytes(body)
            assert body.view().readonly
            with body.open() as file:
                assert file.read() == content
            body.link_to(tmp_path / "linked", head=b"Head: 1\r\n")
            assert (tmp_path / "linked").read_bytes() == b"Head: 1\r\n" + content
            if spilled:
                body.link_to(tmp_path / "linked itself")
                assert (tmp_path / "linked itself").read_bytes() == content
            assert type(envelope.content) is bytes
            assert envelope.content == envelope.original_content == content
            return "250 2.0.0 Ok"

    (tmp_path / "spill").mkdir()
    settings = {"spill_threshold": 300_000, "spill_directory": tmp_path / "spill"}
    async with await serve(handler_of(kind, Looks(), ("DATA",)), **settings) as server:
        with await Client.greeted(server) as client:
            await client.send(TO_DATA)
            assert await client.codes(3) == [250, 250, 354]
            before = open_files()
            await client.send(content[:50_000])
            await asyncio.sleep(0)
            await client.send(content[50_000:] + b".\r\n")
            assert (await client.reply()).lines == ("250 2.0.0 Ok",)
            assert counted(server, "spilled_messages_total") == spilled
            assert seen[0].content == content  # it outlives the transaction, for those who keep it
            assert bytes(seen[0].body) == content  # type: ignore[arg-type]
            seen.clear()
            await until(lambda: open_files() == before, "the spill file stays open")
            assert os.listdir(tmp_path / "spill") == []


@on_both_loops
async def test_a_message_that_a_handler_keeps_is_not_written_over_by_the_next() -> None:
    kept = []

    class Handler:
        def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
            assert envelope.body is not None
            kept.append(envelope.body.view())
            return "250 2.0.0 Ok"

    contents = [letter * 150_000 + b"\r\n" for letter in (b"a", b"b", b"c")]
    async with await serve(Handler()) as server:
        with await Client.greeted(server) as client:
            for content in contents:
                await client.send(TO_DATA + content + b".\r\n")
                assert await client.codes(4) == [250, 250, 354, 250]
        assert kept == contents
        assert counted(server, "buffered_bytes") >= 450_000
        kept.clear()
        assert counted(server, "buffered_bytes") == 0
