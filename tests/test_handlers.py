"""The ready-made handlers: what they print, store and send on, and that a message is safe before it is answered."""

import asyncio
import contextlib
import email.message
import io
import logging
import mailbox
import os
import re
import smtplib
import socket
import sys
import threading
from argparse import ArgumentParser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from disks import small_disk
from servers import CONTENT, Client, Keeps, on_both_loops, port_of, serve, until

import fastsmtp.body
import fastsmtp.sinks.commit
from fastsmtp import Envelope, Session, handlers
from fastsmtp.handlers import AsyncMessage, Debugging, Mailbox, Message, Proxy, Sink, _with_peer
from fastsmtp.worker import Worker

PEER = ("192.0.2.7", 40000)
ADDED = "X-Peer: ('192.0.2.7', 40000)\nX-MailFrom: a@b.example\nX-RcptTo: c@d.example, e@d.example\n\n"


class Hook:
    """A handler's hook alone: fastsmtp's own server takes a ``handle_`` method that is no hook for a mistake."""

    def __init__(self, handler: Any) -> None:
        self.handle_DATA = handler.handle_DATA


def a_session() -> Session:
    session = Session()
    session.peer = PEER
    return session


def an_envelope(content: object = CONTENT) -> Envelope:
    envelope = Envelope()
    envelope.mail_from = "a@b.example"
    envelope.rcpt_tos = ["c@d.example", "e@d.example"]
    envelope.content = content
    envelope.original_content = (
        content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    )
    return envelope


async def submit(
    server: Worker,
    content: bytes = CONTENT,
    *,
    mail_from: str = "a@b.example",
    rcpt_tos: tuple[str, ...] = ("c@d.example",),
    options: tuple[str, ...] = (),
) -> str:
    """Sends a message with smtplib; the reply to its content."""

    def send() -> str:
        with smtplib.SMTP("127.0.0.1", port_of(server), timeout=10) as client:
            client.ehlo("c.example")
            assert client.mail(mail_from, options)[0] == 250
            for recipient in rcpt_tos:
                assert client.rcpt(recipient)[0] == 250
            code, text = client.data(content)
            return f"{code} {text.decode()}"

    return await asyncio.to_thread(send)


class Parser(ArgumentParser):
    """A parser whose errors can be caught."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


# --- the command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "arguments", "message"),
    [
        (Debugging, ("stdfoo",), "Debugging usage: [stdout|stderr]"),
        (Debugging, ("stdout", "stderr"), "Debugging usage: [stdout|stderr]"),
        (Sink, ("foo",), "Sink handler does not accept arguments"),
        (Mailbox, (), "The directory for the maildir is required"),
        (Mailbox, ("a", "b"), "Too many arguments for Mailbox handler"),
    ],
)
def test_wrong_arguments_are_told(handler: Any, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        handler.from_cli(Parser(), *arguments)


def test_handlers_are_made_of_arguments(tmp_path: Path) -> None:
    folder = str(tmp_path / "mail")
    assert Debugging.from_cli(Parser()).stream is sys.stdout
    assert Debugging.from_cli(Parser(), "stdout").stream is sys.stdout
    assert Debugging.from_cli(Parser(), "stderr").stream is sys.stderr
    assert isinstance(Sink.from_cli(Parser()), Sink)
    assert Mailbox.from_cli(Parser(), folder).mail_dir == folder


# --- Debugging and Sink -------------------------------------------------------------------------------------


@on_both_loops
async def test_debugging_prints_the_message_and_its_parameters() -> None:
    stream = io.StringIO()
    async with await serve(Debugging(stream)) as server:
        with await Client.greeted(server) as client:
            peer = client.socket.getsockname()
            await client.send(
                b"MAIL FROM:<a@b.example> SIZE=10 BODY=8BITMIME\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
            )
            await client.send("Subject: t\r\nX: é\r\n\r\n..line\r\n\r\nlast\r\n.\r\n".encode())
            assert (await client.codes(4))[3] == 250
    assert stream.getvalue() == (
        "---------- MESSAGE FOLLOWS ----------\n"
        "mail options: ['SIZE=10', 'BODY=8BITMIME']\n"
        "\n"
        "Subject: t\n"
        "X: é\n"
        f"X-Peer: {peer!r}\n"
        "\n"
        ".line\n"
        "\n"
        "last\n"
        "------------ END MESSAGE ------------\n"
    )


@pytest.mark.parametrize("content", ["A: b\r\n\r\né\r\n", "A: b\r\n\r\né\r\n".encode(), b"A: b\n\n\xc3\xa9"])
def test_debugging_prints_octets_and_text(content: object) -> None:
    stream = io.StringIO()
    envelope = an_envelope(content)
    envelope.rcpt_options = ["NOTIFY=NEVER"]
    assert asyncio.run(Debugging(stream).handle_DATA(None, a_session(), envelope)) == "250 OK"
    assert stream.getvalue().splitlines()[1:-1] == [
        "rcpt options: ['NOTIFY=NEVER']",
        "",
        "A: b",
        "X-Peer: ('192.0.2.7', 40000)",
        "",
        "é",
    ]


def test_debugging_takes_what_the_stream_cannot_show(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    with io.TextIOWrapper(io.BytesIO(), encoding="ascii") as stream:
        assert asyncio.run(Debugging(stream).handle_DATA(None, a_session(), an_envelope("é\n"))) == "250 OK"
        stream.flush()
        assert b"\n\\xe9\n" in stream.buffer.getvalue()  # type: ignore[attr-defined]
    assert asyncio.run(Debugging().handle_DATA(None, a_session(), an_envelope("\udcff\n"))) == "250 OK"
    assert b"\n\\udcff\n" in capsysbinary.readouterr().out


@on_both_loops
async def test_sink_leaves_messages_to_the_server() -> None:
    async with await serve(Sink(), deliver="discard:") as server:
        assert (await submit(server)).startswith("250 ")
    assert [name for name in dir(Sink()) if name.startswith("handle_")] == []


# --- Message ------------------------------------------------------------------------------------------------


class Takes(Message):
    """A handler that keeps messages, or raises."""

    def __init__(self, error: Exception | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.error = error
        self.messages: list[email.message.Message] = []

    def handle_message(self, message: email.message.Message) -> None:
        if self.error is not None:
            raise self.error
        self.messages.append(message)


class Awaits(AsyncMessage):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.messages: list[email.message.Message] = []

    async def handle_message(self, message: email.message.Message) -> None:
        await asyncio.sleep(0)
        self.messages.append(message)


@pytest.mark.parametrize("content", [b"", bytearray(), ""], ids=["bytes", "bytearray", "str"])
def test_an_empty_message_has_the_added_fields(content: object) -> None:
    message = Takes().prepare_message(a_session(), an_envelope(content))
    assert type(message) is email.message.Message
    assert message.items() == [
        ("X-Peer", str(PEER)),
        ("X-MailFrom", "a@b.example"),
        ("X-RcptTo", "c@d.example, e@d.example"),
    ]
    assert message.get_payload() == ""


@pytest.mark.parametrize("kind", [bytes, bytearray, str])
@pytest.mark.parametrize(
    "text",
    [
        "   Toner low on unit 3.\r\nPlease refill.\r\n",
        "\t(added by the client); Mon, 1 Jan 2001 00:00:00 +0000\r\nSubject: x\r\n\r\ny\r\n",
        "From now on we meet at noon.\r\nBring cake.\r\n",
        "From now on\n\nSubject: x\n",
        ">From Ann:\nhello\n",
        ": text\r\n",
        "text without a colon\r\n\r\nmore\r\n",
        "Grüße: an alle\r\n",
    ],
)
def test_content_without_a_header_is_text_to_its_first_octet(text: str, kind: Any) -> None:
    content = kind(text, "utf-8") if kind is not str else text
    message = Takes().prepare_message(a_session(), an_envelope(content))
    assert message.keys() == ["X-Peer", "X-MailFrom", "X-RcptTo"]
    assert message.get_unixfrom() is None
    assert message.get_payload(decode=kind is not str) == (text.encode() if kind is not str else text)


@pytest.mark.parametrize("kind", [bytes, bytearray, str])
def test_no_cr_ends_a_line_of_the_header(kind: Any) -> None:
    text = "Subject: é\r\r\nTo: c@d.example\rBcc: x@d.example\r\n\r\r\r\nbo\rdy\r\r\n"
    content = kind(text, "utf-8") if kind is not str else text
    message = Takes().prepare_message(a_session(), an_envelope(content))
    assert message.keys() == ["Subject", "To", "X-Peer", "X-MailFrom", "X-RcptTo"]
    assert message["To"] == "c@d.example Bcc: x@d.example"
    assert message.get_payload() == "bo\rdy\r\r\n"


@pytest.mark.parametrize(
    ("content", "payload"),
    [
        (b"A: b\r\n\r\ntext\r\n", "text\r\n"),
        (b"A: b\n\ntext\n", "text\n"),
        (b"A: b\r\r\n\r\ntext\r\n", "text\r\n"),
        (b"A: b\r\r\n\r\r\ntext\r\n", "text\r\n"),
        (b"A: b\r\n\r\n\r\r\ntext\r\n", "\r\r\ntext\r\n"),
        (b"A: b\r\ntext\r\r\n", "text\r\r\n"),
        (b"A: b\r", ""),
        (b"\r\r\ntext\r\n", "text\r\n"),
    ],
)
def test_the_text_is_what_follows_the_empty_line(content: bytes, payload: str) -> None:
    assert Takes().prepare_message(a_session(), an_envelope(content)).get_payload() == payload


@pytest.mark.parametrize("line", ["From ann@a.example Thu Nov 20 11:43:00 2025", ">From ann"])
def test_a_line_of_an_mbox_before_the_header_is_a_field(line: str) -> None:
    message = Takes().prepare_message(a_session(), an_envelope(f"{line}\nSubject: x\n\ntext\n"))
    assert message.items()[:2] == [("X-Mailbox-Line", line), ("Subject", "x")]
    assert message.get_payload() == "text\n"


@pytest.mark.parametrize("content", [None, [], {}, ()])
def test_content_of_another_kind_is_refused(content: object) -> None:
    with pytest.raises(TypeError, match=re.escape(f"Expected str or bytes, got {type(content)}")):
        Takes().prepare_message(a_session(), an_envelope(content))


def test_messages_are_of_the_class_that_is_asked_for() -> None:
    handler = Takes(message_class=email.message.EmailMessage)
    assert asyncio.run(handler.handle_DATA(None, a_session(), an_envelope())) == "250 OK"
    assert type(handler.messages[0]) is email.message.EmailMessage
    assert handler.messages[0]["subject"] == "test"


@pytest.mark.parametrize("kind", [Takes, Awaits])
@on_both_loops
async def test_messages_come_to_handle_message(kind: type[Takes | Awaits]) -> None:
    handler = kind()
    async with await serve(Hook(handler)) as server:
        assert await submit(server, rcpt_tos=("c@d.example", "e@d.example")) == "250 2.0.0 OK"
    (message,) = handler.messages
    assert message["X-Peer"].startswith("('127.0.0.1', ")
    assert (message["X-MailFrom"], message["X-RcptTo"]) == ("a@b.example", "c@d.example, e@d.example")
    assert (message["subject"], message.get_payload()) == ("test", "text\r\n")


@on_both_loops
async def test_what_handle_message_raises_goes_to_the_server(caplog: pytest.LogCaptureFixture) -> None:
    async with await serve(Hook(Takes(fastsmtp.SMTPError(550, "5.7.1", "no")))) as server:
        assert await submit(server) == "550 5.7.1 no"
    with pytest.raises(ZeroDivisionError):
        await Takes(ZeroDivisionError()).handle_DATA(None, a_session(), an_envelope())
    assert caplog.records == []


def test_the_loop_of_an_async_handler() -> None:
    async def running() -> bool:
        return Awaits().loop is asyncio.get_running_loop()

    assert asyncio.run(running())
    with asyncio.Runner() as runner:
        handler = Awaits(loop=runner.get_loop())
        assert handler.loop is runner.get_loop()
        handler = Awaits()
        handler.loop = runner.get_loop()
        assert handler.loop is runner.get_loop()


@pytest.mark.parametrize("abstract", [handlers.MessageBase, Message, AsyncMessage])
def test_handle_message_must_be_defined(abstract: Any) -> None:
    with pytest.raises(TypeError, match="abstract"):
        abstract()


# --- Proxy: what is sent on ---------------------------------------------------------------------------------


class Remote(Keeps):
    """A server that refuses what it is told to. ``options`` are those of the last MAIL."""

    def __init__(self, data: str = "250 2.0.0 Ok", mail: str = "250 2.1.0 Ok", **refusals: str) -> None:
        super().__init__()
        self.data, self.mail, self.refusals = data, mail, refusals
        self.options: list[str] = []

    def handle_MAIL(
        self, server: object, session: Session, envelope: Envelope, address: str, mail_options: list[str]
    ) -> str:
        self.options = mail_options
        return self.mail

    def handle_RCPT(
        self, server: object, session: Session, envelope: Envelope, address: str, rcpt_options: list[str]
    ) -> str:
        reply = self.refusals.get(address.partition("@")[0], "250 2.1.5 Ok")
        if reply.startswith("250"):
            envelope.rcpt_tos.append(address)
        return reply

    def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
        super().handle_DATA(server, session, envelope)
        return self.data


@asynccontextmanager
async def behind_a_proxy(remote: object, **settings: object) -> AsyncIterator[Worker]:
    async with (
        await serve(remote) as next_server,
        await serve(Proxy("127.0.0.1", port_of(next_server)), **settings) as server,
    ):
        yield server


@on_both_loops
async def test_a_message_is_sent_on_with_its_envelope() -> None:
    remote = Remote()
    async with behind_a_proxy(remote) as server:
        content = b"Subject: t\r\nX: \xc3\xa9\r\n\r\n.one\r\n..two\r\n.\r\n\r\nend\r\n"
        recipients = ("c@d.example", '"q> p"@d.example')
        assert await submit(server, content, rcpt_tos=recipients) == "250 2.0.0 OK"
        assert await submit(server, mail_from="<>") == "250 2.0.0 OK"
    first, second = remote.messages
    with_peer = content.replace(b"\r\n\r\n", b"\r\nX-Peer: 127.0.0.1\r\n\r\n", 1)
    assert first == ("a@b.example", list(recipients), with_peer)
    assert second.mail_from == "<>"


@pytest.mark.parametrize(
    ("mail_from", "options", "sent"),
    [
        ("a@b.example", (), []),
        ("a@b.example", ("BODY=8BITMIME",), ["BODY=8BITMIME"]),
        ("a@b.example", ("SMTPUTF8", "BODY=8BITMIME"), ["BODY=8BITMIME", "SMTPUTF8"]),
        ("é@b.example", ("SMTPUTF8",), ["SMTPUTF8"]),
    ],
)
@on_both_loops
async def test_what_the_content_needs_is_told_to_the_remote(
    mail_from: str, options: tuple[str, ...], sent: list[str]
) -> None:
    remote = Remote()
    async with behind_a_proxy(remote) as server:
        assert await submit(server, mail_from=mail_from, options=options) == "250 2.0.0 OK"
    assert [option for option in remote.options if not option.upper().startswith("SIZE=")] == sent
    assert remote.messages[0].mail_from == mail_from


@on_both_loops
async def test_large_content_arrives_as_it_is() -> None:
    remote = Remote()
    # Dots at the start of lines, lines that the ends of pieces fall into at every place.
    content = b"Subject: t\r\n\r\n" + b"".join(b".%d\r\n..\r\n" % number for number in range(150_000))
    async with behind_a_proxy(remote) as server:
        assert await submit(server, content) == "250 2.0.0 OK"
    assert remote.messages[0].content == content.replace(b"\r\n\r\n", b"\r\nX-Peer: 127.0.0.1\r\n\r\n", 1)


@pytest.mark.parametrize("line_end", [b"\n", b"\r"])
@pytest.mark.parametrize("offset", range(-3, 2))
def test_no_line_end_of_any_kind_lets_content_end_early(line_end: bytes, offset: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, handlers._Remote() as remote:
        remote.sock = ours
        theirs.sendall(b"354 go on\r\n250 ok\r\n221 bye\r\n")
        sent = bytearray()
        reader = threading.Thread(target=lambda: sent.extend(theirs.makefile("rb").read()))
        reader.start()
        before = b"x" * (handlers._PIECE + offset)  # so that the ends of pieces fall on all places
        assert remote.data(before + line_end + b".\r\nRSET\r\n") == (250, b"ok")
        ours.shutdown(socket.SHUT_WR)
        reader.join()
    assert sent == b"DATA\r\n" + before + line_end + b"..\r\nRSET\r\n.\r\n"


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        (b"A: b\r\n\r\ntext\r\n", b"A: b\r\nX-Peer: 192.0.2.7\r\n\r\ntext\r\n"),
        (b"A: b\n\ntext\n", b"A: b\nX-Peer: 192.0.2.7\n\ntext\n"),
        (b"A: b\r\n\r\n", b"A: b\r\nX-Peer: 192.0.2.7\r\n\r\n"),
        (b"A: b\r\n c\r\n", b"A: b\r\n c\r\nX-Peer: 192.0.2.7\r\n"),
        (b"A: b", b"A: b\r\nX-Peer: 192.0.2.7\r\n"),
        (b"", b"X-Peer: 192.0.2.7\r\n\r\n"),
        (
            b"A: b\r\ntext\r\nC: d\r\n\r\nmore\r\n",
            b"A: b\r\nX-Peer: 192.0.2.7\r\ntext\r\nC: d\r\n\r\nmore\r\n",
        ),
        (b"A: b\ntext\n", b"A: b\nX-Peer: 192.0.2.7\ntext\n"),
        (b"\n\ntext\n", b"X-Peer: 192.0.2.7\r\n\n\ntext\n"),
        (b" text: a\r\nA: b\r\n\r\n", b"X-Peer: 192.0.2.7\r\n\r\n text: a\r\nA: b\r\n\r\n"),
        (b"\tb\r\n\r\ntext\r\n", b"X-Peer: 192.0.2.7\r\n\r\n\tb\r\n\r\ntext\r\n"),
        (b"From now on\r\n\r\nA: b\r\n", b"X-Peer: 192.0.2.7\r\n\r\nFrom now on\r\n\r\nA: b\r\n"),
        (b"\r\ntext\r\n\r\nmore\r\n", b"X-Peer: 192.0.2.7\r\n\r\ntext\r\n\r\nmore\r\n"),
        (b"text\r\n", b"X-Peer: 192.0.2.7\r\n\r\ntext\r\n"),
        (b"text\r\n\r\nmore: text\r\n", b"X-Peer: 192.0.2.7\r\n\r\ntext\r\n\r\nmore: text\r\n"),
        (b"From a\r\nA: b\r\n\r\n", b"X-Mailbox-Line: From a\r\nA: b\r\nX-Peer: 192.0.2.7\r\n\r\n"),
        (b">From a\nA: b\n\n", b"X-Mailbox-Line: >From a\nA: b\nX-Peer: 192.0.2.7\n\n"),
    ],
)
def test_the_peer_is_the_last_field_of_the_header(content: bytes, sent: bytes) -> None:
    assert _with_peer(content, PEER) == sent


@pytest.mark.parametrize(
    ("peer", "field"),
    [
        (("2001:db8::1", 1, 0, 0), b"2001:db8::1"),
        ("", b"unknown"),
        (None, b"unknown"),
        ("/a\r\nX: y\xe9", b"/a??X: y?"),
    ],
)
def test_a_peer_of_any_kind_is_one_field(peer: object, field: bytes) -> None:
    assert _with_peer(b"\r\n", peer) == b"X-Peer: %b\r\n\r\n" % field


@on_both_loops
async def test_a_proxy_may_deliver_in_its_own_way(caplog: pytest.LogCaptureFixture) -> None:
    class Mine(Proxy):
        def _deliver(self, mail_from: Any, rcpt_tos: Any, data: Any) -> Any:
            calls.append((mail_from, rcpt_tos, data))
            return {"e@d.example": (550, "no such user")} if len(calls) == 1 else None

    calls: list[Any] = []
    proxy = Mine("192.0.2.1", 25)
    reply = await proxy.handle_DATA(None, a_session(), an_envelope("A: é\r\n\r\n"))
    assert reply == "250 2.0.0 Ok, but 1 of 2 recipients refused: 550 no such user"
    assert await proxy.handle_DATA(None, a_session(), an_envelope(b"")) == "250 OK"
    assert calls[0] == (
        "a@b.example",
        ["c@d.example", "e@d.example"],
        "A: é\r\nX-Peer: 192.0.2.7\r\n\r\n".encode(),
    )


# --- Proxy: what the remote says ----------------------------------------------------------------------------

NOBODY = "550 5.1.1 No such user"
BUSY = "450 4.2.0 Mailbox busy"


@pytest.mark.parametrize(
    ("remote", "reply"),
    [
        (Remote(c=NOBODY, e=NOBODY), NOBODY),
        (Remote(c=NOBODY, e=BUSY), f"451 4.0.0 All 2 recipients refused: {BUSY}"),
        (Remote(c=NOBODY, e="552 5.2.2 Full"), f"550 5.0.0 All 2 recipients refused: {NOBODY}"),
        (Remote(mail="550 5.7.1 Not you"), "550 5.7.1 Not you"),
        (Remote(mail="451 4.7.1 Not yet"), "451 4.7.1 Not yet"),
        (Remote(data="554 5.6.0 Spam"), "554 5.6.0 Spam"),
        (Remote(data="452 4.3.1 No room"), "452 4.3.1 No room"),
        (Remote(data="554 5.6.0 two\nlin\u00e9s"), "554 5.6.0 two lin?s"),
        (Remote(data="550 5.7.1 " + "long " * 100), f"550 {('5.7.1 ' + 'long ' * 100)[:400].rstrip()}"),
        (Remote(data="421 4.3.2 Going down"), "451 4.3.2 Going down"),
        (Remote(c="421 4.3.2 Going down"), "451 4.3.2 Going down"),
    ],
)
@on_both_loops
async def test_a_refusal_of_the_remote_is_the_reply(remote: Remote, reply: str) -> None:
    async with behind_a_proxy(remote) as server:
        assert await submit(server, rcpt_tos=("c@d.example", "e@d.example")) == reply


@on_both_loops
async def test_a_refusal_of_some_is_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    remote = Remote(c=NOBODY)
    async with behind_a_proxy(remote) as server:
        reply = await submit(server, rcpt_tos=("c@d.example", "e@d.example"))
    assert reply == f"250 2.0.0 Ok, but 1 of 2 recipients refused: {NOBODY}"
    assert [message.rcpt_tos for message in remote.messages] == [["e@d.example"]]
    logged = "we got some refusals: {'c@d.example': (550, b'5.1.1 No such user')}"
    assert caplog.record_tuples == [("mail.debug", logging.WARNING, logged)]


LATER = "451 4.4.1 No answer from the next server"
GOOD = (b"220 hi", b"250 hi", b"250 ok", b"250 ok", b"250 ok")  # to the content, with two recipients


@asynccontextmanager
async def scripted(*replies: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that says these, one for each line that it reads, then hangs up; its port, and the lines."""
    lines: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            for reply in replies:
                writer.write(reply + b"\r\n")
                lines.append(await reader.readuntil(b"\r\n.\r\n" if reply.startswith(b"354") else b"\n"))
        writer.close()
        ended.set()

    ended = asyncio.Event()
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], lines
        await ended.wait()


@pytest.mark.parametrize(
    "replies",
    [
        (),
        (b"554 no service",),
        (b"220 hi", b"500 what", b"500 what"),
        (b"220 hi", b"250 hi"),
        (*GOOD[:4], b"421 4.3.2 going"),
        (*GOOD, b"354 go on"),
        (*GOOD, b"354 go on", b"nonsense"),
        (b"220 " + b"x" * 10_000,),
    ],
    ids=["closed", "greeting", "hello", "mail", "421", "content", "nonsense", "long"],
)
@on_both_loops
async def test_a_remote_that_fails_is_tried_again_later(
    replies: tuple[bytes, ...], caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted(*replies) as (port, _):
        reply = await Proxy("127.0.0.1", port).handle_DATA(None, a_session(), an_envelope())
    assert reply == ("451 4.3.2 going" if b"421" in b"".join(replies) else LATER)
    assert [record.getMessage() for record in caplog.records if "\n" in record.getMessage()] == []
    assert [record for record in caplog.records if record.exc_info] == []


@on_both_loops
async def test_a_remote_that_is_not_there_or_says_nothing_is_tried_again_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        proxy = Proxy("127.0.0.1", port, timeout=0.05)
        assert await proxy.handle_DATA(None, a_session(), an_envelope()) == LATER
    assert await proxy.handle_DATA(None, a_session(), an_envelope()) == LATER
    messages = [record.getMessage() for record in caplog.records]
    assert [message.partition(": message deferred: ")[0] for message in messages] == [
        f"127.0.0.1 port {port}"
    ] * 2


@pytest.mark.parametrize("end", [(), (b"451 what",)])
@on_both_loops
async def test_a_message_that_was_taken_stays_so_whatever_follows(end: tuple[bytes, ...]) -> None:
    async with scripted(*GOOD, b"354 go on", b"251 taken", *end) as (port, lines):
        assert await Proxy("127.0.0.1", port).handle_DATA(None, a_session(), an_envelope()) == "250 OK"
    # smtplib's own words are in capitals or not, by the version of Python.
    assert [line.lower() for line in lines[1:5]] == [
        b"mail from:<a@b.example>\r\n",
        b"rcpt to:<c@d.example>\r\n",
        b"rcpt to:<e@d.example>\r\n",
        b"data\r\n",
    ]
    assert lines[5] == CONTENT.replace(b"\r\n\r\n", b"\r\nX-Peer: 192.0.2.7\r\n\r\n") + b".\r\n"


@pytest.mark.parametrize("hello", [b"250-hi\r\n250 SIZE", b"500 what"], ids=["ehlo", "helo"])
@pytest.mark.parametrize(
    ("mail_from", "content", "taken"),
    [
        ("a@b.example", b"A: b\r\n\r\n\xc3\xa9\r\n", True),
        ("a@b.example", b"A: \xc3\xa9\r\n\r\n\r\n", False),
        ("\u00e9@b.example", b"A: b\r\n\r\n\r\n", False),
        ("\udcff@b.example", b"A: b\r\n\r\n\r\n", False),
    ],
)
@on_both_loops
async def test_internationalized_mail_goes_only_where_it_is_understood(
    hello: bytes, mail_from: str, content: bytes, taken: bool
) -> None:
    envelope = an_envelope(content)
    envelope.mail_from = mail_from
    envelope.smtp_utf8 = True
    envelope.mail_options = ["SMTPUTF8", "BODY=8BITMIME"]
    greetings = [b"220 hi", hello, *([b"250 hi"] if hello.startswith(b"5") else [])]
    rest = (
        [b"250 ok", b"250 ok", b"250 ok", b"354 go on", b"250 taken", b"221 bye"] if taken else [b"221 bye"]
    )
    async with scripted(*greetings, *rest) as (port, lines):
        reply = await Proxy("127.0.0.1", port).handle_DATA(None, a_session(), envelope)
    if taken:
        assert reply == "250 OK"
        assert b"UTF8" not in b"".join(lines)
        assert b"BODY" not in b"".join(lines)
    else:
        assert reply == "550 5.6.7 The next server takes no internationalized mail"


@on_both_loops
async def test_a_message_for_nobody_is_sent_to_nobody() -> None:
    envelope = an_envelope()
    envelope.rcpt_tos = []
    async with scripted(*GOOD) as (port, lines):
        assert await Proxy("127.0.0.1", port).handle_DATA(None, a_session(), envelope) == "250 OK"
    assert b"DATA\r\n" not in lines


@on_both_loops
async def test_others_are_served_while_a_remote_is_slow() -> None:
    class Slow(Keeps):
        async def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:  # type: ignore[override]
            came.set()
            await go_on.wait()
            return "250 2.0.0 Ok"

    came, go_on = asyncio.Event(), asyncio.Event()
    async with behind_a_proxy(Slow()) as server:
        sending = asyncio.create_task(submit(server))
        await came.wait()
        with await Client.greeted(server) as client:
            assert (await client.ask(b"NOOP\r\n")).code == 250
            assert not sending.done()
        go_on.set()
        assert await sending == "250 2.0.0 OK"


# --- Mailbox ------------------------------------------------------------------------------------------------


def stored(folder: Path, subfolder: str = "new") -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / subfolder).iterdir())]


@on_both_loops
async def test_messages_lie_in_the_maildir_when_they_are_answered(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("box") / "mail"
    handler = Mailbox(folder)
    async with await serve(Hook(handler)) as server:
        replies = await asyncio.gather(
            *[submit(server, b"Subject: %d\r\n\r\n.text\r\n" % number) for number in range(20)]
        )
        assert replies == ["250 2.0.0 OK"] * 20
    messages = list(mailbox.Maildir(folder))
    assert sorted(int(message["subject"]) for message in messages) == list(range(20))
    assert {message["x-mailfrom"] for message in messages} == {"a@b.example"}
    assert stored(folder, "tmp") == []
    handler.reset()
    assert stored(folder) == []


@pytest.mark.parametrize(
    ("content", "octets"),
    [
        (CONTENT, "Subject: test\n" + ADDED + "text\n"),
        (CONTENT.decode(), "Subject: test\n" + ADDED + "text\n"),
        (b"A: \xc3\xa9\r\n\r\n\xff\0", b"A: \xc3\xa9\n" + ADDED.encode() + b"\xff\0"),
        ("A: \u00e9\r\n\r\n\udcff", b"A: \xc3\xa9\n" + ADDED.encode() + b"\xff"),
        (b"", ADDED),
        (
            b"Content-Type: multipart/mixed; boundary=b\r\n\r\nno part\xff\r\n",
            b"Content-Type: multipart/mixed; boundary=b\n" + ADDED.encode() + b"no part\xff\n",
        ),
    ],
)
def test_a_message_of_any_kind_is_stored(tmp_path: Path, content: object, octets: str | bytes) -> None:
    handler = Mailbox(tmp_path)  # a folder that is there, and is no Maildir yet
    assert asyncio.run(handler.handle_DATA(None, a_session(), an_envelope(content))) == "250 OK"
    assert stored(tmp_path) == [octets.encode() if isinstance(octets, str) else octets]


def test_a_file_is_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        handler = Mailbox(tmp_path / "mail")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    handler.handle_message(email.message.Message())
    (path,) = (tmp_path / "mail" / "new").iterdir()
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_a_message_says_of_itself_holds(tmp_path: Path) -> None:
    """As it does for ``mailbox.Maildir``, which this is; also of messages that are not ``email.message``."""
    box = Mailbox(tmp_path / "mail", mailbox.MaildirMessage).mailbox
    message = mailbox.MaildirMessage("Subject: seen\n\n")
    message.set_subdir("cur")
    message.set_flags("S")
    message.set_date(1_000_000)
    found = box[box.add(message)]
    assert (found["subject"], found.get_subdir(), found.get_flags(), found.get_date()) == (
        "seen",
        "cur",
        "S",
        1e6,
    )
    assert box[box.add("Subject: text\n\n")]["subject"] == "text"
    assert box[box.add(b"Subject: octets\n\n")]["subject"] == "octets"
    assert len(box) == 3


def test_a_message_is_synced_before_its_folder_and_both_before_the_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = Mailbox(tmp_path / "mail")
    steps: list[object] = []

    def sync_file(fd: int) -> None:
        steps.append((os.fstat(fd).st_size, stored(tmp_path / "mail")))

    def sync_folder(path: bytes) -> None:
        steps.append((os.fsdecode(path), len(stored(tmp_path / "mail"))))

    monkeypatch.setattr(fastsmtp.body, "sync_file", sync_file)
    monkeypatch.setattr(fastsmtp.sinks.commit, "sync_folder", sync_folder)
    assert asyncio.run(handler.handle_DATA(None, a_session(), an_envelope())) == "250 OK"
    (message,) = stored(tmp_path / "mail")
    assert steps == [(len(message), []), (str(tmp_path / "mail" / "new"), 1)]


def test_a_message_whose_folder_cannot_be_synced_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: bytes) -> NoReturn:
        raise OSError(5, "Input/output error")

    handler = Mailbox(tmp_path / "mail")
    monkeypatch.setattr(fastsmtp.sinks.commit, "sync_folder", fail)
    reply = asyncio.run(handler.handle_DATA(None, a_session(), an_envelope()))
    assert reply == "451 4.3.0 Cannot deliver now"
    assert stored(tmp_path / "mail") == stored(tmp_path / "mail", "tmp") == []
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{tmp_path / 'mail'}: message deferred: OSError: [Errno 5]")


def test_a_full_disk_defers_and_leaves_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path) as disk:
        handler = Mailbox(disk / "mail")
        large = an_envelope(b"Subject: large\r\n\r\n" + b"x" * 500_000)
        for _ in range(2):
            reply = asyncio.run(handler.handle_DATA(None, a_session(), large))
            assert reply == "452 4.3.1 Insufficient system storage"
        assert stored(disk / "mail") == stored(disk / "mail", "tmp") == []
        assert asyncio.run(handler.handle_DATA(None, a_session(), an_envelope())) == "250 OK"
    assert len(caplog.records) == 2


@on_both_loops
async def test_a_folder_that_has_gone_defers(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path_factory.mktemp("box")
    handler = Mailbox(folder)
    async with await serve(Hook(handler)) as server:
        for name in ("tmp", "new", "cur"):
            (folder / name).rmdir()
        assert await submit(server) == "451 4.3.0 Cannot deliver now"
    assert [record.exc_info for record in caplog.records] == [None]


@on_both_loops
async def test_others_are_served_while_the_disk_is_slow(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    came, go_on = threading.Event(), threading.Event()

    def sync_file(fd: int) -> None:
        came.set()
        assert go_on.wait(10)

    handler = Mailbox(tmp_path_factory.mktemp("box"))
    monkeypatch.setattr(fastsmtp.body, "sync_file", sync_file)
    async with await serve(Hook(handler)) as server:
        sending = asyncio.create_task(submit(server))
        await until(came.is_set)
        with await Client.greeted(server) as client:
            assert (await client.ask(b"NOOP\r\n")).code == 250
            assert not sending.done()
        go_on.set()
        assert await sending == "250 2.0.0 OK"


@on_both_loops
async def test_the_methods_of_a_subclass_run_on_the_loop(tmp_path_factory: pytest.TempPathFactory) -> None:
    class Mine(Mailbox):
        def prepare_message(self, session: Session, envelope: Envelope) -> email.message.Message:
            assert asyncio.get_running_loop()
            message = super().prepare_message(session, envelope)
            message["X-Mine"] = "yes"
            return message

        def handle_message(self, message: email.message.Message) -> None:
            assert asyncio.get_running_loop()
            if message["subject"] == "bad":
                raise fastsmtp.SMTPError(550, "5.7.1", "bad")
            super().handle_message(message)

    folder = tmp_path_factory.mktemp("box")
    async with await serve(Hook(Mine(folder))) as server:
        assert await submit(server) == "250 2.0.0 OK"
        assert await submit(server, b"Subject: bad\r\n\r\n") == "550 5.7.1 bad"
    (message,) = stored(folder)
    assert b"\nX-Mine: yes\n" in message
