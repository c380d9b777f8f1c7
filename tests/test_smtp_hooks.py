"""Hooks, subclasses and attributes of ``SMTP``, as aiosmtpd has them; STARTTLS; LMTP."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiosmtpd_hook_rows
import aiosmtpd_subclass_rows
import pytest
from aiosmtpd_player import GREETING, Certificates, Wire, by_hand, play, play_octets
from aiosmtpd_rows import Looks, Row
from servers import on_both_loops, until

from fastsmtp import smtp
from fastsmtp.lmtp import LMTP

ROWS = [*aiosmtpd_hook_rows.ROWS, *aiosmtpd_subclass_rows.ROWS]
HELLO = b"EHLO c.example\r\n"
MAIL = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"


def serving(server: Any) -> Wire:
    """The wire of a server that is about to greet."""
    wire = Wire(server.loop)
    wire.set_protocol(server)
    server.connection_made(wire)
    return wire


@pytest.mark.parametrize("row", ROWS, ids=str)
@on_both_loops
async def test_a_hook_is_called_as_its_row_says(row: Row, caplog: pytest.LogCaptureFixture) -> None:
    await play(smtp, row)


@pytest.mark.parametrize("row", by_hand(ROWS), ids=str)
def test_a_hook_is_called_octet_by_octet(row: Row) -> None:
    asyncio.run(play_octets(smtp, row))


@on_both_loops
async def test_a_hook_that_waits_holds_up_nobody_else() -> None:
    gate = asyncio.Event()

    class Waits(Looks):
        async def handle_VRFY(self, server: Any, session: Any, envelope: Any, address: str) -> str:
            await gate.wait()
            return f"252 {address}"

    handler = Waits(smtp)
    one, two = (serving(smtp.SMTP(handler, hostname="mx.example", ident="test")) for _ in range(2))
    one.protocol.data_received(b"VRFY a\r\nVRFY b\r\nRSET\r\n")
    two.protocol.data_received(b"NOOP\r\n")
    await until(lambda: two.written == GREETING + b"250 OK\r\n")
    assert one.written == GREETING
    gate.set()
    await until(lambda: one.written == GREETING + b"252 a\r\n252 b\r\n250 OK\r\n")
    one.close()
    two.close()


@on_both_loops
async def test_a_hook_that_returns_nothing_is_told_of_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    wire = serving(smtp.SMTP(aiosmtpd_hook_rows.hooks(VRFY=None)(smtp), hostname="mx.example", ident="test"))
    wire.protocol.data_received(b"VRFY a\r\n")
    await until(lambda: wire.written.endswith(f"{aiosmtpd_hook_rows.LOCAL_ERROR}\r\n".encode()))
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.name == "mail.log"
    assert "VRFY" in record.getMessage()
    wire.close()


@on_both_loops
async def test_an_exception_is_told_of_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    error = KeyError("x")
    wire = serving(smtp.SMTP(aiosmtpd_hook_rows.hooks(VRFY=error)(smtp), hostname="mx.example", ident="test"))
    wire.protocol.data_received(b"VRFY a\r\n")
    await until(lambda: wire.written.endswith(b"500 Error: (KeyError) 'x'\r\n"))
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert (record.name, record.exc_info and record.exc_info[1]) == ("mail.log", error)
    assert record.getMessage().startswith("SMTP session exception (session ")
    wire.close()


@pytest.mark.parametrize(
    ("status", "replies"),
    [
        ("250 all", ["250 all", "250 all", "250 all"]),
        (["250 one", "550 two", "452 three"], ["250 one", "550 two", "452 three"]),
    ],
)
@on_both_loops
async def test_lmtp_answers_for_each_recipient(status: object, replies: list[str]) -> None:
    wire = serving(LMTP(aiosmtpd_hook_rows.hooks(DATA=status)(smtp), hostname="mx.example", ident="test"))
    wire.protocol.data_received(
        b"LHLO c\r\nMAIL FROM:<>\r\n" + b"".join(b"RCPT TO:<%c@d>\r\n" % name for name in b"abc")
    )
    wire.protocol.data_received(b"DATA\r\n")
    await until(lambda: b"354" in wire.written)
    wire.written.clear()
    wire.protocol.data_received(b"text\r\n.\r\n")
    await until(lambda: wire.written.count(b"\n") == 3)
    assert wire.written.decode().splitlines() == replies
    wire.close()


@on_both_loops
async def test_connection_made_is_called_once() -> None:
    """Not again after STARTTLS: what a subclass does there is done for a connection."""
    made: list[object] = []

    class Counts(smtp.SMTP):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.append(transport)
            super().connection_made(transport)

    row = Row(
        "STARTTLS",
        ("STARTTLS", "220 Ready to start TLS"),
        ("NOOP", "250 OK"),
        server=lambda _: Counts,
        tls_context=Certificates.one().server,
    )
    await play(smtp, row)
    assert len(made) == 1


@on_both_loops
async def test_tls_within_tls_is_refused() -> None:
    row = Row(
        "STARTTLS",
        ("STARTTLS", "220 Ready to start TLS"),
        ("STARTTLS", "503 5.5.1 Error: TLS already active"),
        ("NOOP", "250 OK"),
        tls_context=Certificates.one().server,
    )
    await play(smtp, row)
