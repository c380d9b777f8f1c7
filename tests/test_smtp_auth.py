"""AUTH of ``SMTP``, as aiosmtpd has it; and what the log tells of passwords, which is nothing."""

from __future__ import annotations

import asyncio
import logging

import aiosmtpd_auth_rows
import pytest
from aiosmtpd_auth_rows import GOOD, LET_IN, USER, WORD
from aiosmtpd_player import Wire, by_hand, play, play_octets
from aiosmtpd_rows import Looks, Row
from servers import on_both_loops, until

from fastsmtp import smtp


@pytest.mark.parametrize("row", aiosmtpd_auth_rows.ROWS, ids=str)
@on_both_loops
async def test_auth_goes_as_its_row_says(row: Row, caplog: pytest.LogCaptureFixture) -> None:
    await play(smtp, row)


@pytest.mark.parametrize("row", by_hand(aiosmtpd_auth_rows.ROWS), ids=str)
def test_auth_goes_octet_by_octet(row: Row) -> None:
    asyncio.run(play_octets(smtp, row))


@on_both_loops
async def test_no_password_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for row in aiosmtpd_auth_rows.PLAIN + aiosmtpd_auth_rows.LOGIN:
        await play(smtp, row)
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "AUTH" in text
    assert not any(secret in text for secret in (GOOD, WORD, "word"))


@on_both_loops
async def test_login_data_is_said_to_go_away(caplog: pytest.LogCaptureFixture) -> None:
    session = smtp.Session(asyncio.get_running_loop())
    session.login_data = "me"
    assert session.login_data == "me"
    line = "Session.login_data is deprecated and will be removed in version 2.0"
    assert [(record.name, record.getMessage()) for record in caplog.records] == 2 * [("mail.log", line)]


@on_both_loops
async def test_a_client_that_goes_amid_auth_leaves_nothing_behind() -> None:
    server = smtp.SMTP(Looks(smtp), hostname="mx.example", ident="test", **LET_IN)
    wire = Wire(server.loop)
    wire.set_protocol(server)
    server.connection_made(wire)
    server.data_received(b"EHLO c\r\nAUTH LOGIN\r\n" + USER.encode() + b"\r\n")
    await until(lambda: wire.written.endswith(b"334 UGFzc3dvcmQA\r\n"))
    wire.close()
    await until(lambda: server.transport is None)
    await until(lambda: len(asyncio.all_tasks()) == 1)
    assert server.session.authenticated is None


@on_both_loops
async def test_what_is_odd_is_said_once_for_connections_that_are_alike(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handler = Looks(smtp)
    with pytest.warns(UserWarning, match="Requiring AUTH while not requiring TLS") as warned:
        servers = [
            smtp.SMTP(handler, auth_required=True, auth_require_tls=False, timeout=timeout)
            for timeout in (300, 300, 200, 300)
        ]
    line = "auth_required == True but auth_require_tls == False"
    assert [record.getMessage() for record in caplog.records] == [line, line]
    assert len(warned) == 2
    assert all(server.rules.require_auth for server in servers)
