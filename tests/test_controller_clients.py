"""Other people's clients against a ``Controller``: whatever way they come, what they sent is what the handler gets."""

from __future__ import annotations

import asyncio
import email.policy
import re
import smtplib
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from itertools import product
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest
from controllers import (
    CLEAR,
    CLIENTS,
    CREDENTIALS,
    DOTS,
    HELLO,
    LARGE,
    ME,
    MESSAGE,
    MESSAGES,
    OCTETS,
    PATIENCE,
    SOURCES,
    YOU,
    YOUR_FRIEND,
    Keeps,
    Serve,
    Served,
    Tls,
    Way,
    aiosmtplib_client,
    aiosmtplib_login,
    by_aiosmtplib,
    by_smtplib,
    each_client,
    smtplib_client,
    smtplib_login,
    swaks,
)
from processes import stuffed
from servers import on_both_loops

from fastsmtp.controller import UnthreadedController
from fastsmtp.smtp import SMTP, Envelope, Session

# --- all ways -----------------------------------------------------------------------------------------------


INET = [Way(*parts) for parts in product(("", "starttls", "implicit"), ("", "PLAIN", "LOGIN"), (0, 1, 2))]
UNIX = [Way(unix=True), Way("starttls", "PLAIN", unix=True), Way("implicit", "LOGIN", 2, unix=True)]


@pytest.mark.parametrize("way", INET + UNIX, ids=str)
@each_client
def test_a_handler_gets_what_was_sent_and_knows_who_sent_it(serve: Serve, client: str, way: Way) -> None:
    handler = Keeps()
    messages = MESSAGES[client]
    with serve(handler, way) as served:
        CLIENTS[client](served, way, messages)
    assert handler.contents == messages
    for message, kept in zip(messages, handler.kept, strict=True):
        assert kept.original_content == message
        assert (kept.mail_from, kept.rcpt_tos, kept.smtp_utf8) == (ME, [YOU, YOUR_FRIEND], False)
        announced = [f"SIZE={len(message)}", "BODY=8BITMIME"] if client != "swaks" else []
        assert [option.upper() for option in kept.mail_options] == announced
        assert kept.host_name == HELLO
        assert kept.peer == "" if way.unix else kept.peer[0] == "127.0.0.1"
        assert (kept.tls, kept.cipher is not None) == (bool(way.tls), bool(way.tls))
        assert kept.authenticated == bool(way.auth)
        assert kept.auth_data == ((way.auth, CREDENTIALS) if way.auth else None)
        assert kept.source == SOURCES[way.proxy]
    assert len(handler.headers) == (len(messages) if client == "swaks" else 1) * bool(way.proxy)


# --- what is sent -------------------------------------------------------------------------------------------


def test_smtputf8(serve: Serve) -> None:
    sender, recipient = "mé@bücher.example", "yöu@例え.example"
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, recipient, "Grüße"
    message.set_content("Ünïcödé\n.\n..\n", cte="8bit")
    expected = message.as_bytes(policy=email.policy.SMTPUTF8)
    handler = Keeps()

    async def by_aiosmtplib() -> None:
        async with aiosmtplib_client(served) as client:
            refused, _ = await client.send_message(message)
            assert refused == {}

    with serve(handler) as served:
        with smtplib_client(served) as client:
            assert client.send_message(message) == {}
        asyncio.run(by_aiosmtplib())
    assert handler.contents == [expected, expected]
    for kept in handler.kept:
        assert (kept.mail_from, kept.rcpt_tos, kept.smtp_utf8) == (sender, [recipient], True)
        assert "SMTPUTF8" in kept.mail_options


def test_no_smtputf8_where_it_is_switched_off(serve: Serve) -> None:
    with serve(Keeps(), enable_SMTPUTF8=False) as served, smtplib_client(served) as client:
        client.ehlo()
        assert not client.has_extn("smtputf8")
        with pytest.raises(smtplib.SMTPNotSupportedError):
            client.sendmail("mé@a.example", YOU, MESSAGE, ["SMTPUTF8"])
        assert client.docmd("MAIL FROM:<me@a.example> SMTPUTF8")[0] == 501


def test_content_as_text(serve: Serve) -> None:
    handler = Keeps()
    with serve(handler, decode_data=True) as served:
        assert swaks(served, CLEAR, DOTS)[0] == 0
    (kept,) = handler.kept
    assert (kept.content, kept.original_content) == (DOTS.decode(), DOTS)


@each_client
def test_20_mb(serve: Serve, client: str) -> None:
    handler = Keeps()
    message = (
        LARGE[: LARGE.index(b"\r\n", 5_000_000) + 2] if client == "swaks" else LARGE
    )  # it takes its time
    with serve(handler, Way("starttls")) as served:
        CLIENTS[client](served, Way("starttls"), [message])
    (content,) = handler.contents
    assert content == message


@pytest.mark.parametrize("tls_way", ["", "implicit"])
def test_20_mb_by_another_way(serve: Serve, tls_way: str) -> None:
    handler = Keeps()
    with serve(handler, Way(tls_way)) as served:
        by_smtplib(served, Way(tls_way), [LARGE])
    (content,) = handler.contents
    assert content == LARGE


def test_what_is_too_large_is_refused(serve: Serve) -> None:
    handler = Keeps()
    fits = MESSAGE + b"x" * (998 - len(MESSAGE)) + b"\r\n"
    large = fits[:-2] + b"x\r\n"

    async def by_aiosmtplib() -> None:
        async with aiosmtplib_client(served) as client:
            with pytest.raises(aiosmtplib.SMTPSenderRefused) as refusal:
                await client.sendmail(ME, [YOU], large)
            assert refusal.value.code == 552
            await client.sendmail(ME, [YOU], fits)

    with serve(handler, data_size_limit=1000) as served:
        with smtplib_client(served) as client:
            with pytest.raises(smtplib.SMTPSenderRefused) as announced:
                client.sendmail(ME, YOU, large)
            assert announced.value.smtp_code == 552
            client.sendmail(ME, YOU, fits)
        with smtplib_client(served) as client:
            client.helo(HELLO)  # and so it announces nothing
            with pytest.raises(smtplib.SMTPDataError) as sent:
                client.sendmail(ME, YOU, large)
            assert sent.value.smtp_code == 552
            client.sendmail(ME, YOU, fits)
        asyncio.run(by_aiosmtplib())
        code, said = swaks(served, CLEAR, large)
        assert (code, "<** 552 " in said) == (26, True), said
        assert swaks(served, CLEAR, fits)[0] == 0
    assert handler.contents == [fits] * 4


# --- what is said -------------------------------------------------------------------------------------------


def test_many_messages_on_one_connection(serve: Serve) -> None:
    handler = Keeps()
    messages = [b"Subject: %d\r\n\r\n" % number + b".dot\r\n" * number for number in range(300)]
    with serve(handler) as served:
        by_smtplib(served, CLEAR, messages)
        assert handler.contents == messages
        by_aiosmtplib(served, CLEAR, messages)
    assert handler.contents == messages * 2
    assert {tuple(kept.rcpt_tos) for kept in handler.kept} == {(YOU, YOUR_FRIEND)}


@pytest.mark.parametrize("way", [CLEAR, Way("starttls", "PLAIN", 1), Way("implicit", "LOGIN", 2)], ids=str)
def test_several_clients_at_once(serve: Serve, way: Way) -> None:
    handler = Keeps()
    sent = [
        [b"Subject: %d-%d\r\n\r\n.\r\n" % (client, number) for number in range(5)] for client in range(24)
    ]

    async def by_aiosmtplib(messages: list[bytes]) -> None:
        async with aiosmtplib_client(served, way) as client:
            if way.auth:
                await aiosmtplib_login(client, way.auth)
            for message in messages:
                await client.sendmail(ME, [YOU], message)

    async def all_of(parts: list[list[bytes]]) -> None:
        await asyncio.gather(*map(by_aiosmtplib, parts))

    with serve(handler, way) as served, ThreadPoolExecutor(9) as threads:
        under_way = [threads.submit(by_smtplib, served, way, messages) for messages in sent[:8]]
        under_way.append(threads.submit(asyncio.run, all_of(sent[8:])))
        for one in under_way:
            one.result(PATIENCE)
    assert sorted(handler.contents) == sorted(message for messages in sent for message in messages)
    by_connection: dict[Any, list[bytes]] = {}
    for kept in handler.kept:
        by_connection.setdefault(kept.peer, []).append(kept.content)
        assert kept.auth_data == ((way.auth, CREDENTIALS) if way.auth else None)
        assert kept.source == SOURCES[way.proxy]
    assert sorted(by_connection.values()) == sorted(sent)


def test_rset_forgets_the_message_and_not_the_client(serve: Serve) -> None:
    handler = Keeps()
    way = Way("starttls", "PLAIN", 1)
    with serve(handler, way) as served, smtplib_client(served, way) as client:
        smtplib_login(client, "PLAIN")
        assert client.mail("other@a.example")[0] == 250
        assert client.rcpt("other@b.example")[0] == 250
        assert client.rset() == (250, b"OK")
        assert client.docmd("DATA")[0] == 503
        assert client.sendmail(ME, YOU, DOTS) == {}
    (kept,) = handler.kept
    assert (kept.content, kept.mail_from, kept.rcpt_tos) == (DOTS, ME, [YOU])
    assert (kept.source, kept.auth_data) == (SOURCES[1], ("PLAIN", CREDENTIALS))


def test_smtplib_asks_this_and_that(serve: Serve) -> None:
    with serve(Keeps()) as served, smtplib_client(served) as client:
        assert client.helo(HELLO)[0] == 250
        assert client.ehlo(HELLO)[0] == 250
        assert client.noop() == (250, b"OK")
        assert client.verify(YOU)[0] == 252
        assert client.expn("list")[0] == 502
        assert client.help().startswith(b"Supported commands: AUTH DATA EHLO")
        assert client.docmd("TURN")[0] == 500
        assert client.quit() == (221, b"Bye")


def test_a_client_that_only_knows_helo(serve: Serve) -> None:
    handler = Keeps()
    with serve(handler) as served:
        code, said = swaks(served, CLEAR, DOTS, "--protocol", "SMTP")
        assert code == 0, said
    assert handler.contents == [DOTS]


# --- pipelining ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls_way", ["", "starttls", "implicit"])
def test_two_messages_in_one_piece(serve: Serve, tls_way: str) -> None:
    handler = Keeps()
    way = Way(tls_way)
    commands = "".join(f"{line}\r\n" for line in (f"MAIL FROM:<{ME}>", f"RCPT TO:<{YOU}>", "DATA"))
    with serve(handler, way) as served, smtplib_client(served, way) as client:
        client.ehlo()
        turns = [commands.encode() + stuffed(message) for message in (DOTS, OCTETS)]
        client.send(b"".join(turns) + b"RSET\r\nNOOP\r\n")
        codes = [client.getreply()[0] for _ in range(10)]
        assert codes == [250, 250, 354, 250] * 2 + [250, 250]
    assert handler.contents == [DOTS, OCTETS]


def test_swaks_pipelines_where_it_is_told_that_it_may(serve: Serve) -> None:
    class Pipelines(Keeps):
        async def handle_EHLO(
            self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
        ) -> list[str]:
            session.host_name = hostname
            return [*responses[:-1], "250-PIPELINING", responses[-1]]

    handler = Pipelines()
    with serve(handler, Way("starttls")) as served:
        code, said = swaks(served, Way("starttls"), DOTS, "--pipeline")
        assert code == 0, said
    assert re.search(r"MAIL FROM.*\n.*RCPT TO.*\n.*RCPT TO.*\n.*DATA\n", said)
    assert handler.contents == [DOTS]


# --- hooks that refuse and fail -----------------------------------------------------------------------------


class Picky(Keeps):
    """Refuses a recipient, and fails for a sender or a message."""

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("fail"):
            raise LookupError("no such sender")
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address == YOUR_FRIEND:
            return "550 5.1.1 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if envelope.content == MESSAGE:
            raise ValueError("not this one")
        return await super().handle_DATA(server, session, envelope)


def test_a_hook_that_fails_costs_its_message_only(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    handler = Picky()
    said = "500 Error: (ValueError) not this one"

    async def by_aiosmtplib() -> None:
        async with aiosmtplib_client(served) as client:
            with pytest.raises(aiosmtplib.SMTPDataError) as failure:
                await client.sendmail(ME, [YOU], MESSAGE)
            assert f"{failure.value.code} {failure.value.message}" == said
            refused, _ = await client.sendmail(ME, [YOU, YOUR_FRIEND], OCTETS)
            assert refused == {YOUR_FRIEND: (550, "5.1.1 no such mailbox")}

    with serve(handler) as served:
        with smtplib_client(served) as client:
            with pytest.raises(smtplib.SMTPDataError) as failure:
                client.sendmail(ME, YOU, MESSAGE)
            assert (failure.value.smtp_code, failure.value.smtp_error) == (500, said[4:].encode())
            with pytest.raises(smtplib.SMTPSenderRefused) as other:
                client.sendmail("fail@a.example", YOU, DOTS)
            assert other.value.smtp_error == b"Error: (LookupError) no such sender"
            refused = client.sendmail(ME, [YOU, YOUR_FRIEND], DOTS)
            assert refused == {YOUR_FRIEND: (550, b"5.1.1 no such mailbox")}
        asyncio.run(by_aiosmtplib())
        code, told = swaks(served, CLEAR, MESSAGE)
        assert (code, f"<** {said}" in told) == (26, True), told
        assert swaks(served, CLEAR, DOTS)[0] == 0
    assert handler.contents == [DOTS, OCTETS, DOTS]
    assert {tuple(kept.rcpt_tos) for kept in handler.kept} == {(YOU,)}
    logged = [type(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert logged == [ValueError, LookupError, ValueError, ValueError]
    caplog.clear()


def test_no_rset_is_needed_after_a_hook_that_failed(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    handler = Picky()
    with serve(handler) as served, smtplib_client(served) as client:
        client.ehlo()
        for message, code in ((MESSAGE, 500), (DOTS, 250)):
            assert client.mail(ME)[0] == 250
            assert client.rcpt(YOU)[0] == 250
            assert client.data(message)[0] == code
    assert handler.contents == [DOTS]
    caplog.clear()


# --- in the loop of the program -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", [CLEAR, Way("starttls", "PLAIN", 1), Way("implicit", "LOGIN", 2)], ids=str)
@on_both_loops
async def test_client_and_server_in_one_loop(way: Way, tls: Tls, tmp_path: Path) -> None:
    handler = Keeps()
    controller = UnthreadedController(handler, hostname="127.0.0.1", port=0, **way.settings(tls))
    async with controller:
        served = Served(tls, tmp_path, (controller.hostname, controller.port))
        async with aiosmtplib_client(served, way) as client:
            if way.auth:
                await aiosmtplib_login(client, way.auth)
            for message in (DOTS, OCTETS, LARGE):
                assert (await client.sendmail(ME, [YOU], message))[0] == {}
    assert handler.contents == [DOTS, OCTETS, LARGE]
    assert {kept.source for kept in handler.kept} == {SOURCES[way.proxy]}
