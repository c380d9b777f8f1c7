"""Replies that programs give: each is one reply, of lines that any client can read, whatever stands in it."""

from __future__ import annotations

import asyncio
import re
import resource
import smtplib
from typing import Any

import pytest
from servers import Client, Keeps, on_both_loops, serve
from test_application import greeted, handler, later, raises, send
from test_hooks import FAILED
from test_raised import controlled

from fastsmtp import Envelope, Session, SMTPError
from fastsmtp._rules import ASKS
from fastsmtp.replies import NotAReply, from_status, part, plain
from fastsmtp.smtp import SMTP, Application, AuthResult

NOOP, DATA = ASKS.index("NOOP"), ASKS.index("DATA")
INJECTED = "250 OK\r\n550 injected"
REFUSED = (451, b"4.3.0 Error: local error in processing")
HUGE = "250 " + "x" * 10_000_000


def lines_of(reply: bytes) -> list[bytes]:
    """The lines of a reply, which is one, and which RFC 5321 allows."""
    assert reply.endswith(b"\r\n")
    lines = reply.split(b"\r\n")[:-1]
    assert all(len(line) + 2 <= 512 for line in lines)
    assert not re.search(rb"[\0-\x08\x0a-\x1f\x7f]", b"".join(lines))
    assert len({line[:3] for line in lines}) == 1
    assert [line[3:4] for line in lines] == [b"-"] * (len(lines) - 1) + [b" "]
    return lines


# --- texts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "lines"),
    [
        (INJECTED, [b"250-OK", b"250 550 injected"]),
        ("250 OK\n250 injected", [b"250-OK", b"250 injected"]),
        ("250 a\rb", [b"250-a", b"250 b"]),
        ("250-a", [b"250 a"]),
        ("250 \0\x1b[2J\x7f\x08\x85\x9b2J", [b"250 ??[2J????2J"]),
        ("250 a\x0b\x0c\x1c\x1d\x1eb", [b"250 a?????b"]),
        ("250 a\u2028b", [b"250 a\xe2\x80\xa8b"]),
        (b"250 \x1b\xe4", [b"250 ?\xe4"]),
        (b"250 \xc2\x9b", [b"250 ?"]),
        ("250 a\tb", [b"250 a\tb"]),
    ],
    ids=ascii,
)
def test_a_status_is_one_reply_without_control_characters(status: str | bytes, lines: list[bytes]) -> None:
    assert lines_of(plain(status)) == lines
    assert lines_of(from_status(status, NOOP)) == [line[:4] + b"2.0.0 " + line[4:] for line in lines]


@pytest.mark.parametrize("status", ["354 go on", "150 x", "334 ", "650 x", "25", "", b"999 x"])
def test_codes_that_are_no_answer_are_none(status: str | bytes) -> None:
    with pytest.raises(NotAReply):
        plain(status)
    with pytest.raises(NotAReply):
        from_status(status, NOOP)


@pytest.mark.parametrize("letter", ["x", "é", "\N{PILE OF POO}"])
@pytest.mark.parametrize("before", range(4))
def test_a_long_line_becomes_several(letter: str, before: int) -> None:
    text = "y" * before + letter * 1500
    for reply in (plain(f"250 {text}"), from_status(f"250 2.0.0 {text}", DATA)):
        lines = lines_of(reply)
        texts = [line[4:].removeprefix(b"2.0.0 ").decode() for line in lines]
        assert "".join(texts) == text


def test_a_huge_status_is_shortened_and_not_kept() -> None:
    plain("250 warm")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(60):
        status = f"250 {number}" + HUGE
        assert len(plain(status)) < 20_000
        assert len(from_status(status, DATA)) < 20_000
    lines_of(plain(HUGE))
    lines_of(plain("250 x" + "\n" * 100_000 + "y"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; 60 of them are 600 MB


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("250-one", b"250-one\r\n"),
        ("250-one\r\n250-two", b"250-one\r\n250-two\r\n"),
        (INJECTED, b"250-OK\r\n250 550 injected\r\n"),
        ("354 go on", b"354 go on\r\n"),
        ("no code\r\n550 injected\x1b", b"no code?550 injected?\r\n"),
        ("250-" + "x" * 600, b"250-" + b"x" * 506 + b"\r\n250-" + b"x" * 94 + b"\r\n"),
    ],
)
def test_what_is_pushed_is_of_one_code(status: str, said: bytes) -> None:
    assert part(status) == said


# --- fastsmtp.serve -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    ["354 go on", "150 x", SMTPError(250, "2.0.0", "fine"), SMTPError(354, "", "x"), SMTPError(250, "fine")],
    ids=str,
)
@on_both_loops
async def test_what_says_neither_yes_nor_no_is_a_mistake_of_the_hook(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Handler(Keeps):
        def handle_NOOP(self, server: object, session: Session, envelope: Envelope, argument: str) -> str:
            if isinstance(answer, SMTPError):
                raise answer
            return str(answer)

    async with await serve(Handler()) as server:
        with await Client.greeted(server) as client:
            assert await client.says(b"NOOP\r\n") == FAILED
    (record,) = caplog.records
    assert record.getMessage().startswith("handle_NOOP gave no reply: ")
    assert not record.exc_info


@on_both_loops
async def test_a_huge_result_that_is_no_reply_is_no_huge_line(caplog: pytest.LogCaptureFixture) -> None:
    class Handler(Keeps):
        def handle_NOOP(self, server: object, session: Session, envelope: Envelope, argument: str) -> Any:
            return {"text": HUGE[4:], "list": [HUGE[4:]], "error": HUGE[4:]}[argument]

        def handle_VRFY(self, server: object, session: Session, envelope: Envelope, address: str) -> str:
            raise ValueError(f"{address}\n2026-11-29 ERROR forged \x1b[2J" + HUGE)

    async with await serve(Handler()) as server:
        with await Client.greeted(server) as client:
            for command in (b"NOOP text\r\n", b"NOOP list\r\n", b"VRFY x\r\n"):
                assert await client.says(command) == FAILED
    for record in caplog.records:
        assert len(record.getMessage()) < 1000
        assert record.getMessage().isprintable()
        assert len(record.exc_text or "") < 10_000
        assert "\x1b" not in (record.exc_text or "")
        assert not re.search("^2026", record.exc_text or "", re.M)


# --- a controller ---------------------------------------------------------------------------------------------


class Answers:
    """Gives what it is told to."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def handle_VRFY(self, server: SMTP, session: Session, envelope: Envelope, address: str) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def auth_MESSAGE(self, server: SMTP, args: list[str]) -> AuthResult:
        return AuthResult(success=False, handled=False, message=self.answer)

    async def auth_PUSHES(self, server: SMTP, args: list[str]) -> AuthResult:
        await server.push(self.answer)
        return AuthResult(success=False)

    async def auth_ASKS(self, server: SMTP, args: list[str]) -> AuthResult:
        await server.challenge_auth(self.answer, encode_to_b64=False)
        return AuthResult(success=False)


@pytest.mark.parametrize("pushes", [False, True])
@pytest.mark.parametrize("command", ["VRFY a@b.example", "AUTH MESSAGE", "AUTH PUSHES"])
def test_a_status_answers_one_command(command: str, pushes: bool) -> None:
    class Pushes(SMTP):
        async def push(self, status: str | bytes) -> None:
            await super().push(status)

    kind = Pushes if pushes else SMTP
    settings = {"auth_require_tls": False}
    with (
        controlled(
            Answers("550 no\r\n250 injected\u2028x"),
            lambda self: kind(self.handler, **self.SMTP_kwargs),
            **settings,
        ) as dial,
        dial() as client,
    ):
        client.ehlo()
        assert client.docmd(command) == (550, "no\n250 injected\u2028x".encode())
        assert client.docmd("NOOP") == (250, b"OK")


@pytest.mark.parametrize(
    "answer", ["354 go on", "150 x", SMTPError(250, "fine"), SMTPError(354, "", "")], ids=str
)
def test_what_says_neither_yes_nor_no_is_a_mistake_there_too(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with controlled(Answers(answer)) as dial, dial() as client:
        client.ehlo()
        assert client.docmd("VRFY a@b.example") == REFUSED
    assert len(caplog.records) == 1


def test_a_challenge_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with controlled(Answers("who\r\n235 you"), auth_require_tls=False) as dial, dial() as client:
        client.ehlo()
        assert client.docmd("AUTH ASKS") == REFUSED
        assert client.docmd("NOOP") == (250, b"OK")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["250-a\r\n550 x", "250 b"], (250, b"a\n550 x\nb")),
        (["250-a", "550 b"], REFUSED),
        ("550 no\r\n250 yes", (550, b"no\n250 yes")),
    ],
)
def test_the_lines_of_ehlo_are_one_reply(
    lines: Any, said: tuple[int, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    class Handler:
        async def handle_EHLO(
            self, server: SMTP, session: Session, envelope: Envelope, name: str, responses: list[str]
        ) -> Any:
            return lines

    with controlled(Handler()) as dial, dial() as client:
        assert client.docmd("EHLO c.example") == said
        assert client.docmd("NOOP") == (250, b"OK")


@pytest.mark.filterwarnings("ignore:Use the 5-argument")
@pytest.mark.parametrize("pushes", [False, True])
def test_an_old_ehlo_hook_that_refuses_says_nothing_else(pushes: bool) -> None:
    class Handler:
        async def handle_EHLO(self, server: SMTP, session: Session, envelope: Envelope, name: str) -> Any:
            if pushes:
                await server.push("250-MINE")
            return "550 no\r\n250 yes"

    with controlled(Handler()) as dial, dial() as client:
        if pushes:  # begun with 250-, it cannot become a refusal
            with pytest.raises(smtplib.SMTPServerDisconnected):
                client.docmd("EHLO c.example")
        else:
            assert client.docmd("EHLO c.example") == (550, b"no\n250 yes")
            assert client.docmd("NOOP") == (250, b"OK")


def test_words_of_a_client_come_back_without_control_characters() -> None:
    with controlled(Keeps()) as dial, dial() as client:
        client.ehlo()
        assert client.docmd("X\x1bY") == (500, b'Error: command "X?Y" not recognized')
        assert client.docmd("VRFY \x1b[2J") == (502, b"Could not VRFY ?[2J")
        client.sock.sendall(b"X" * 490 + b"\r\n")  # type: ignore[union-attr]
        reply = client.sock.recv(4096)  # type: ignore[union-attr]
        assert len(reply) <= 512
        assert reply.endswith(b"\r\n")


# --- an application -------------------------------------------------------------------------------------------


@on_both_loops
async def test_an_application_gives_one_reply(caplog: pytest.LogCaptureFixture) -> None:
    for method, said in (
        (raises(SMTPError(452, "Later\r\n250 Ok")), "452-Later\n452 250 Ok"),
        (raises(SMTPError(250, "Ok")), "451 Internal confusion"),
        (later(raises(SMTPError(354, "go"))), "451 Internal confusion"),
        (lambda self: self.finish("kept\r\n550 no"), "250-kept\n250 550 no"),
        (lambda self: self.finish("\x1b" + "x" * 600), "250-?" + "x" * 505 + "\n250 " + "x" * 95),
    ):
        async with greeted(Application(handler(data=method))) as client:
            assert await send(client) == said
            assert (await client.says(b"NOOP\r\n")) == "250 Ok"
    await asyncio.sleep(0)
