"""The log of mail: a line for each message and each refusal, what it tells, and what it must not."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import select
import smtplib
import socket
import time
from collections.abc import Callable
from contextlib import closing
from email.headerregistry import Address
from pathlib import Path
from typing import Any

import pytest
from processes import Start
from servers import Client, Keeps, on_both_loops, serve, until
from test_application import handler, raises
from test_application import serving as bonzo
from test_raised import controlled
from test_tls import Certificates, certificates, settings_of, with_smtplib  # noqa: F401

from fastsmtp import Envelope, Session, SMTPError
from fastsmtp.lmtp import LMTP
from fastsmtp.maillog import _SHORTER, _as_json, _as_text
from fastsmtp.smtp import SMTP, Application

NAME = "fastsmtp.mail"
WORD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^\s"]+)')


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, str]]]:
    """What was logged, as fields; ``event`` is the first word."""
    caplog.set_level(logging.INFO, NAME)

    def fields() -> list[dict[str, str]]:
        found = []
        for record in caplog.records:
            if record.name == NAME and "421 4.3.2" not in record.getMessage():  # the end of the server
                assert record.getMessage().isprintable()
                event, _, rest = record.getMessage().partition(" ")
                assert WORD.sub("", rest).strip() == ""  # nothing but fields
                found.append({"event": event, **dict(WORD.findall(rest))})
        return found

    return fields


class Some(Keeps):
    """Takes some recipients."""

    def handle_RCPT(
        self, server: object, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("no"):
            raise SMTPError(550, "5.1.1", "no such user")
        envelope.rcpt_tos.append(address)
        return "250 OK"


class SomeLater(Some):
    async def handle_RCPT(  # type: ignore[override]
        self, server: object, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        await asyncio.sleep(0)
        return super().handle_RCPT(server, session, envelope, address, options)


@pytest.mark.parametrize("kind", [Some, SomeLater])
@on_both_loops
async def test_a_message_and_a_refusal_are_a_line_each(
    kind: type[Some], lines: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with await serve(kind(), log_mail="all") as server:
        with await Client.greeted(server, b"EHLO c.example\r\n") as client:
            port = client.socket.getsockname()[1]
            await client.send(
                b"MAIL FROM:<a@b.example>\r\nRCPT TO:<no@d.example>\r\n"
                b"RCPT TO:<c@d.example>\r\nRCPT TO:<bad\r\nDATA\r\n"
            )
            assert await client.codes(5) == [250, 550, 250, 501, 354]
            assert (await client.ask(b"text\r\n.\r\n")).code == 250
    refused, malformed, accepted = lines()
    assert refused["event"] == malformed["event"] == "rejected"
    assert (refused["stage"], malformed["stage"], accepted["stage"]) == ("rcpt", "rcpt", "data")
    assert refused["reply"] == '"550 5.1.1 no such user"'
    assert refused["command"] == '"RCPT no@d.example"'
    assert malformed["command"] == '"RCPT TO:<bad"'
    assert accepted["event"] == "accepted"
    assert accepted["from"] == "<a@b.example>"
    assert accepted["to"] == "<c@d.example>"
    assert accepted["size"] == "6"
    assert float(accepted["ms"]) < 2000
    assert accepted["hello"] == "c.example"
    assert accepted["tls"] == "-"
    assert {line["peer"] for line in lines()} == {f"127.0.0.1:{port}"}
    assert len({line["session"] for line in lines()}) == len({line["id"] for line in lines()}) == 1


@pytest.mark.parametrize(
    ("commands", "codes", "settings"),
    [
        (b"MAIL FROM:bad\r\n", ["501"], {}),
        (b"RCPT TO:<a@b.example>\r\n", ["503"], {}),
        (b"MAIL FROM:<a@b.example> SIZE=99999999999\r\n", ["552"], {}),
        (b"MAIL FROM:<a@b.example> X=Y\r\n", ["555"], {}),
        (b"MAIL FROM:<>\r\n" + b"RCPT TO:<a@b.example>\r\n" * 101, ["452"], {"max_recipients": 100}),
        (b"X\r\nX\r\n", ["500", "421"], {"max_errors": 2}),
        (b"GET / HTTP/1.0\r\n", ["421"], {}),
        (b"MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\nxx\r\n.\r\n", ["552"], {"max_message_size": 1}),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:30],
)
@on_both_loops
async def test_what_the_server_refuses_by_itself_is_told(
    commands: bytes, codes: list[str], settings: dict[str, Any], lines: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with await serve(Keeps(), **settings) as server:
        with await Client.greeted(server, b"EHLO c.example\r\n") as client:
            await client.send(commands + b"QUIT\r\n")
            await client.rest()
    assert [line["reply"][1:4] for line in lines()] == codes


@on_both_loops
async def test_silence_and_a_client_who_leaves_are_told(lines: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with await serve(Keeps(), idle_timeout=0.2) as server:
        with await Client.greeted(server) as client:
            assert [reply.code for reply in await client.rest()] == [421]
        with await Client.greeted(server) as client:
            await client.send(b"MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\nhalf")
            assert await client.codes(3) == [250, 250, 354]
        await until(lambda: server.connections == 0)
    silent, gone = lines()
    assert silent["reply"].startswith('"421 4.4.2')
    assert (gone["event"], gone["stage"], gone["reply"]) == ("lost", "data", '""')


@on_both_loops
async def test_a_message_whose_client_left_is_told_of(lines: Any, caplog: pytest.LogCaptureFixture) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Waits:
        async def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
            begun.set()
            await go_on.wait()
            return "250 2.0.0 kept"

    async with await serve(Waits(), log_mail="all") as server:
        with await Client.greeted(server) as client:
            await client.send(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\ntext\r\n.\r\n")
            await begun.wait()
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await until(lambda: server.connections == 0)
        go_on.set()
        await until(lines)
    (line,) = lines()
    assert (line["event"], line["told"], line["to"], line["size"]) == ("accepted", "no", "<c@d.example>", "6")
    assert line["reply"] == '"250 2.0.0 kept"'


@pytest.mark.parametrize(
    ("setting", "events"), [("off", []), ("refusals", ["rejected"]), ("all", ["rejected", "accepted"])]
)
@on_both_loops
async def test_what_is_logged_is_a_setting(
    setting: str, events: list[str], lines: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with await serve(Some(), log_mail=setting) as server:
        with await Client.greeted(server) as client:
            await client.send(
                b"MAIL FROM:<>\r\nRCPT TO:<no@b.example>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n.\r\n"
            )
            assert await client.codes(5) == [250, 550, 250, 354, 250]
    assert [line["event"] for line in lines()] == events


@on_both_loops
async def test_nothing_is_asked_where_nobody_would_see_it() -> None:
    async with await serve(Keeps(), log_mail="all") as server:  # at level WARNING, as tests are
        assert server._engine.rules.log_mail == 0


@on_both_loops
async def test_secrets_are_not_logged(lines: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with await serve(Keeps()) as server:
        with await Client.greeted(server) as client:
            await client.send(b"AUTH PLAIN AHNlY3JldA==\r\nAHNlY3JldA==\r\n")
            await client.codes(2)
    assert len(lines()) == 2
    assert "AHNl" not in caplog.text


HOSTILE = [
    'x" from=<forged> y="',
    "a\x1b[2J\x7f",
    "\u2028\x85",
    "é",
    "a\\",
    "=",
    " ",
    "x" * 1000,
    "\U0001f600" * 1000,
    "\U000e0001" * 1000,
    '"',
    "\udce4",
]


@pytest.mark.parametrize("cut", [1, _SHORTER])
@pytest.mark.parametrize("words", HOSTILE, ids=lambda words: ascii(words[:5]))
def test_no_value_can_look_like_several(words: str, cut: int) -> None:
    class Fake:
        session = Session()
        envelope = Envelope()
        message_size = 1
        transport = object()
        message_began = time.monotonic()
        refused_command = words

        def know_peer(self) -> None: ...

    Fake.session.peer = ("127.0.0.1", 25)
    Fake.session.host_name = words
    Fake.envelope.mail_from = words
    Fake.envelope.rcpt_tos = [words] * 1000
    reply = b"550 " + words.encode("utf-8", "surrogateescape")[:300] + b"\r\n"
    text = _as_text(Fake(), "rcpt", "rejected", reply, time.monotonic(), cut)  # type: ignore[arg-type]
    assert text.isprintable()
    if cut == _SHORTER:
        assert len(text.encode()) + 100 < select.PIPE_BUF
    names = [
        "stage",
        "session",
        "peer",
        "hello",
        "tls",
        "from",
        "to",
        "more",
        "size",
        "id",
        "ms",
        "command",
        "reply",
    ]
    assert [name for name, _ in WORD.findall(text)] == names
    assert WORD.sub("", text).strip() == "rejected"
    line = _as_json(Fake(), "rcpt", "rejected", reply, time.monotonic(), cut)  # type: ignore[arg-type]
    if cut == _SHORTER:
        assert len(line) < select.PIPE_BUF
    parsed = json.loads(line)
    assert parsed["recipients"] == 1000
    assert len(parsed["to"]) == 5
    assert parsed["hello"].isprintable()
    assert parsed["event"] == "rejected"


@on_both_loops
async def test_no_more_are_written_than_a_disk_can_take(lines: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with await serve(Keeps(), max_errors=1_000_000) as server:
        with await Client.greeted(server) as client:
            await client.send(b"RCPT TO:<a@b.example>\r\n" * 3000)
            assert set(await client.codes(3000)) == {503}
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    left_out = sum(int(message.split()[0].replace(",", "")) for message in told)
    written = sum(record.levelno == logging.INFO for record in caplog.records if record.name == NAME)
    assert 3000 <= written + left_out <= 3001  # with the 421 at the end
    assert written <= 100 * (len(told) + 1)


@on_both_loops
async def test_tls_is_told(
    certificates: Certificates,  # noqa: F811
    lines: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def talk(client: smtplib.SMTP) -> None:
        client.starttls(context=certificates.client)
        client.sendmail("a@b.example", ["c@d.example"], "x")

    async with await serve(Keeps(), log_mail="all", **settings_of(certificates)) as server:
        await with_smtplib(server, None, talk)
    (line,) = lines()
    assert line["tls"] == "TLSv1.3"


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_queue_id_is_the_sinks(start: Start, mail: Path, form: str) -> None:
    from processes import Client as Plain

    server = start("--deliver", f"maildir:{mail}", "--log-mail", "all", "--log-format", form, ready=False)
    with closing(Plain(server.expect(r"^fastsmtp listens on (\S+) ", "out")[1])) as client:
        assert client.reply().startswith("220 ")
        assert client.say("RCPT TO:<x@y>").startswith("503 ")
        queue_id = client.send(b"Subject: x\r\n\r\ntext\r\n").rpartition(" ")[2]
    assert server.end() == 0
    if form == "json":
        found = [json.loads(line) for line in server.err.splitlines()]
        refused, accepted = (line for line in found if line["logger"] == NAME)
        assert (refused["event"], refused["stage"], refused["from"], refused["ms"]) == (
            "rejected",
            "rcpt",
            None,
            None,
        )
        assert accepted["id"] == queue_id
        assert accepted["reply"].endswith(queue_id)
        assert (accepted["to"], accepted["size"]) == (["you@b.example"], 20)
    else:
        refused, accepted = re.findall(r"^[\d-]+ [\d:,]+ INFO fastsmtp\.mail\[\d+\] (.*)$", server.err, re.M)
        assert refused.startswith("rejected stage=rcpt ")
        assert f" id={queue_id} " in accepted
        assert accepted.endswith(f'queued as {queue_id}"')


@on_both_loops
async def test_an_applications_mail_is_logged_too(lines: Any, caplog: pytest.LogCaptureFixture) -> None:
    application = Application(handler(data=raises(SMTPError(452, "full"))))
    async with bonzo(application, log_mail="all") as server:
        with await Client.greeted(server) as client:
            await client.send(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n.\r\n")
            assert await client.codes(4) == [250, 250, 354, 452]
            await client.ask(b"QUIT\r\n")
    (line,) = lines()
    assert (line["event"], line["from"], line["to"], line["reply"]) == (
        "deferred",
        "<a@b.example>",
        "<c@d.example>",
        '"452 full"',
    )


@pytest.mark.parametrize("asked", [False, True])
def test_a_controller_logs_mail_where_it_is_asked_to(
    asked: bool, lines: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Logs(SMTP):
        log_mail = "all"

    kind = Logs if asked else SMTP
    with controlled(Keeps(), lambda self: kind(self.handler, **self.SMTP_kwargs)) as dial, dial() as client:
        client.sendmail("a@b.example", ["c@d.example"], "x")
        assert client.docmd("X")[0] == 500
    events = [line["event"] for line in lines()]
    assert events == (["accepted", "rejected"] if asked else [])


# --- what programs put into sessions and envelopes ------------------------------------------------------------


class Unspeakable:
    def __str__(self) -> str:
        raise ValueError("no text")


ODD = [Address("A B", "c", "d.example"), b"c@d.example", 5, None, Unspeakable(), "a\nb", ["x"]]


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("odd", ODD, ids=lambda odd: type(odd).__name__)
@on_both_loops
async def test_whatever_a_hook_leaves_is_logged_and_answered(
    odd: Any, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, NAME)

    class Odd:
        def handle_RCPT(
            self, server: object, session: Any, envelope: Any, address: str, options: list[str]
        ) -> str:
            envelope.rcpt_tos.append(odd)
            session.host_name = odd
            envelope.mail_from = odd
            session.peer = (odd, 25)
            session.id = envelope.id = odd
            return "250 OK"

        def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
            return "250 2.0.0 kept"

    async with await serve(Odd(), log_mail="all", log_format=form) as server:
        with await Client.greeted(server, b"EHLO c.example\r\n") as client:
            await client.send(
                b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\ntext\r\n.\r\nX\r\n"
            )
            assert await client.codes(5) == [250, 250, 354, 250, 500]
    told = [record for record in caplog.records if record.name == NAME]
    assert told == caplog.records
    assert len(told) >= 2
    for record in told:
        assert record.getMessage().isprintable()
        if form == "json":
            json.loads(record.getMessage())
        else:
            assert WORD.sub("", record.getMessage().partition(" ")[2]).strip() == ""


@on_both_loops
async def test_a_hook_that_fails_is_told_of_whatever_it_made_of_the_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Fails(Keeps):
        def handle_RCPT(
            self, server: object, session: Any, envelope: Any, address: str, options: list[str]
        ) -> str:
            session.peer = (Unspeakable(), 25)
            session.id = Unspeakable()
            raise ZeroDivisionError

    async with await serve(Fails()) as server:
        with await Client.greeted(server) as client:
            await client.send(b"MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nNOOP\r\n")
            assert await client.codes(3) == [250, 451, 250]
    (message,) = caplog.messages
    assert message.endswith("(session Unspeakable of <Unspeakable without a text>:25)")


@on_both_loops
async def test_a_log_that_fails_costs_no_reply_and_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)

    def fails(record: logging.LogRecord) -> bool:
        raise ZeroDivisionError

    logging.getLogger(NAME).addFilter(fails)
    try:
        async with await serve(Keeps(), idle_timeout=0.3) as server:
            with await Client.greeted(server) as client:
                assert (await client.ask(b"X\r\n")).code == 500
                assert [reply.code for reply in await client.rest()] == [421]  # by a timer
            with await Client.greeted(server) as client:
                await client.send(b"MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\nhalf")
                assert await client.codes(3) == [250, 250, 354]
            await until(lambda: server.connections == 0)
    finally:
        logging.getLogger(NAME).removeFilter(fails)
    assert caplog.messages == ["the log of mail lacks a line: ZeroDivisionError"] * 3


@pytest.mark.parametrize("form", ["text", "json"])
@on_both_loops
async def test_an_id_of_a_programs_forges_no_line(form: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)

    class Names:
        def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
            session.id = envelope.id = '7" from=<forged>\r\n2026-11-29 22:00:00,000 INFO forged'
            return "250 2.0.0 kept"

    async with await serve(Names(), log_mail="all", log_format=form) as server:
        with await Client.greeted(server, b"HELO c.example\r\n") as client:
            await client.send(b"MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n.\r\n")
            assert await client.codes(4) == [250, 250, 354, 250]
    message = next(record.getMessage() for record in caplog.records if record.name == NAME)
    assert message.isprintable()
    fields = json.loads(message) if form == "json" else dict(WORD.findall(message))
    shown = "7__from__forged___2026-11-29_22_00_00_000_INFO_forged"
    assert (fields["id"], fields["session"]) == (shown, shown)
    assert fields["from"] in ("<>", '"<>"')


# --- replies that have no code, or several --------------------------------------------------------------------


def test_text_without_a_code_is_no_refusal(lines: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Chats(SMTP):
        log_mail = "all"

        async def smtp_XHELLO(self, arg: str) -> None:
            await self.push("Hello, this is text")
            await self.push("5 things")
            await self.push("550 no")

    with (
        controlled(Keeps(), lambda self: Chats(self.handler, **self.SMTP_kwargs)) as dial,
        socket.create_connection(("127.0.0.1", dial.port), timeout=10) as sock,
        sock.makefile("rb") as file,
    ):
        file.readline()
        sock.sendall(b"HELO c.example\r\nXHELLO\r\n")
        said = [file.readline() for _ in range(4)]
    assert said[1:] == [b"Hello, this is text\r\n", b"5 things\r\n", b"550 no\r\n"]
    assert [(line["event"], line["reply"]) for line in lines()] == [("rejected", '"550 no"')]


@pytest.mark.parametrize(
    ("statuses", "event"),
    [
        (["250 ok", "250 ok", "250 ok"], "accepted"),
        (["250 ok", "550 no", "250 ok"], "rejected"),
        (["250 ok", "250 ok", "452 full"], "deferred"),
        (["452 full", "250 ok", "550 no"], "rejected"),
        (["550 no", "452 full", "250 ok"], "rejected"),
    ],
)
@pytest.mark.parametrize("wanted", ["refusals", "all"])
def test_of_the_replies_of_lmtp_the_worst_is_logged(
    statuses: list[str], event: str, wanted: Any, lines: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Logs(LMTP):
        log_mail = wanted

    class Mixed:
        async def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> list[str]:
            return statuses

    with controlled(Mixed(), lambda self: Logs(self.handler, **self.SMTP_kwargs)) as dial:
        assert lmtp_data(dial.port, b"x\r\n.\r\n") == statuses
    told = [(line["event"], line["reply"]) for line in lines()]
    assert told == (
        [] if (event, wanted) == ("accepted", "refusals") else [(event, f'"{" / ".join(statuses)}"')]
    )


def test_content_that_lmtp_refuses_is_one_line(lines: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Logs(LMTP):
        log_mail = "all"

    def small(self: Any) -> Logs:
        return Logs(self.handler, data_size_limit=10, **self.SMTP_kwargs)

    with controlled(Keeps(), small) as dial:
        told = lmtp_data(dial.port, b"x" * 50 + b"\r\n.\r\n")
    assert [reply[:3] for reply in told] == ["552"] * 3
    (line,) = lines()
    assert (line["event"], line["reply"]) == ("rejected", f'"{" / ".join(told)}"')


def lmtp_data(port: int, content: bytes) -> list[str]:
    """The three replies to ``content``."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock, sock.makefile("rb") as file:
        sock.sendall(b"LHLO c.example\r\nMAIL FROM:<a@b.example>\r\n")
        sock.sendall(b"RCPT TO:<c@d.example>\r\n" * 3 + b"DATA\r\n")
        while not file.readline().startswith(b"354"):
            pass
        sock.sendall(content)
        return [file.readline().decode().rstrip() for _ in range(3)]
