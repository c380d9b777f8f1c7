"""``SMTP`` as aiosmtpd has it: names, parameters, commands and their order; and as a protocol fed by hand."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import aiosmtpd_mail_rows
import aiosmtpd_rows
import pytest
from aiosmtpd_names import CONSTRUCTIONS, EXPRESSIONS, Construction
from aiosmtpd_player import DEADLINE, GREETING, Caller, Wire, by_hand, construct, play, play_octets, tell
from aiosmtpd_rows import Looks, Row
from servers import on_both_loops, until

from fastsmtp import smtp

EHLO = b"EHLO c.example\r\n"
HELLO = b"250-mx.example\r\n250-SIZE 33554432\r\n250-8BITMIME\r\n250 HELP\r\n"
MAIL = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
OK = b"250 OK\r\n"
END = b"354 End data with <CR><LF>.<CR><LF>\r\n"
LATE = b"421 4.4.2 "
ROWS = [*aiosmtpd_rows.ROWS, *aiosmtpd_mail_rows.ROWS]


def serving(handler: object | None = None, **settings: Any) -> tuple[smtp.SMTP, Wire]:
    """A server on a wire, which has greeted."""
    loop = asyncio.get_running_loop()
    settings = {"hostname": "mx.example", "ident": "test", "loop": loop, **settings}
    server = smtp.SMTP(handler if handler is not None else Looks(smtp), **settings)
    wire = Wire(loop)
    wire.set_protocol(server)
    server.connection_made(wire)
    return server, wire


async def says(wire: Wire, expected: bytes) -> None:
    """Waits until just that was written since the last time."""
    await until(lambda: len(wire.written) >= len(expected), f"{bytes(wire.written)!r}")
    assert bytes(wire.written) == expected
    wire.written.clear()


# --- the rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=str)
@on_both_loops
async def test_a_command_is_answered_as_its_row_says(row: Row, caplog: pytest.LogCaptureFixture) -> None:
    await play(smtp, row)


@pytest.mark.parametrize("row", by_hand(ROWS), ids=str)
def test_a_command_is_answered_octet_by_octet(row: Row) -> None:
    asyncio.run(play_octets(smtp, row))


@pytest.mark.parametrize(("expression", "value"), EXPRESSIONS)
def test_a_name_is_what_people_know(expression: str, value: str) -> None:
    assert tell(smtp, expression) == value


@pytest.mark.parametrize("construction", CONSTRUCTIONS, ids=str)
@on_both_loops
async def test_a_server_is_made_or_refused(
    construction: Construction, caplog: pytest.LogCaptureFixture
) -> None:
    expected = construction.raises, construction.warns, construction.logs
    assert await construct(smtp, construction) == expected


@on_both_loops
async def test_a_row_that_is_wrong_fails() -> None:
    with pytest.raises(AssertionError, match="250 OK"):
        await play(smtp, Row("wrong", ("NOOP", "250 Ok")))
    with pytest.raises(AssertionError, match=r"True.*False"):
        await play_octets(smtp, Row("not the end", ("QUIT", "221 Bye")))


# --- what is said unasked -----------------------------------------------------------------------------------


@on_both_loops
async def test_the_greeting_names_host_and_program() -> None:
    _, wire = serving(hostname=None, ident=None)
    await says(wire, f"220 {socket.getfqdn()} {smtp.__ident__}\r\n".encode())
    wire.close()


@on_both_loops
async def test_replies_to_what_came_together_go_out_together() -> None:
    server, wire = serving()
    await says(wire, GREETING)
    wire.writes = 0
    server.data_received(EHLO + b"NOOP\r\nRSET\r\n")
    await says(wire, HELLO + OK + OK)
    assert wire.writes <= 2  # a hook was waited for
    wire.writes = 0
    server.data_received(EHLO)
    await says(wire, HELLO)
    assert wire.writes == 1
    wire.close()


@on_both_loops
async def test_who_says_nothing_is_told_so_and_put_out(caplog: pytest.LogCaptureFixture) -> None:
    server, wire = serving(timeout=0.1)
    await says(wire, GREETING)
    await until(lambda: wire.closing)
    assert wire.written.startswith(LATE)
    assert wire.written.endswith(b"\r\n")
    assert server.transport is None or server.transport.is_closing()


@on_both_loops
async def test_a_slow_upload_is_not_late_while_it_goes_on() -> None:
    server, wire = serving(timeout=0.3)
    server.data_received(EHLO + MAIL)
    await says(wire, GREETING + HELLO + OK + OK + END)
    begun = time.monotonic()
    while time.monotonic() < begun + 0.9:
        server.data_received(b"text\r\n")
        await asyncio.sleep(0.02)
    server.data_received(b".\r\n")
    await says(wire, OK)
    wire.close()


@on_both_loops
async def test_an_upload_that_stops_is_late(caplog: pytest.LogCaptureFixture) -> None:
    server, wire = serving(timeout=0.1)
    server.data_received(EHLO + MAIL + b"text\r\n")
    await says(wire, GREETING + HELLO + OK + OK + END)
    await until(lambda: wire.closing)
    assert wire.written.startswith(LATE)


# --- a protocol that one feeds oneself ----------------------------------------------------------------------


@on_both_loops
async def test_a_message_by_hand() -> None:
    server, wire = serving()
    assert (server.transport, server.session.peer) == (wire, ("192.0.2.1", 2525))
    server.data_received(EHLO + MAIL)
    await says(wire, GREETING + HELLO + OK + OK + END)
    for octet in b"Subject: x\r\n\r\n..text\r\n.\r\n":
        server.data_received(bytes([octet]))
    await says(wire, OK)
    assert server.event_handler.taken.content == b"Subject: x\r\n\r\n.text\r\n"
    server.data_received(b"QUIT\r\n")
    await says(wire, b"221 Bye\r\n")
    assert wire.closing


@on_both_loops
async def test_a_buffered_protocol_by_hand() -> None:
    server, wire = serving()
    await says(wire, GREETING)
    for octets in (b"EHLO c.exa", b"mple\r", b"\nNO", b"OP\r\n"):
        server.get_buffer(len(octets))[: len(octets)] = octets
        server.buffer_updated(len(octets))
    await says(wire, HELLO + OK)
    wire.close()


@on_both_loops
async def test_a_connection_lost_amid_content_gives_no_message() -> None:
    server, wire = serving()
    server.data_received(EHLO + MAIL + b"half of")
    await says(wire, GREETING + HELLO + OK + OK + END)
    server.connection_lost(ConnectionResetError())
    assert server.event_handler.taken is None
    assert server.transport is None
    server.connection_lost(None)  # some transports tell twice


@on_both_loops
async def test_who_shuts_his_side_gets_his_replies() -> None:
    gate = asyncio.Event()

    class Waits(Looks):
        async def handle_NOOP(self, server: Any, session: Any, envelope: Any, argument: str | None) -> str:
            await gate.wait()
            return "250 OK"

    server, wire = serving(Waits(smtp))
    await says(wire, GREETING)
    server.data_received(EHLO + b"NOOP\r\n")
    assert server.eof_received()  # the hook's answer is awaited
    gate.set()
    await until(lambda: wire.closing)
    await says(wire, HELLO + OK)


@on_both_loops
async def test_who_shuts_his_side_in_peace_is_let_go() -> None:
    server, wire = serving()
    await says(wire, GREETING)
    assert not server.eof_received()
    wire.close()
    await until(lambda: server.transport is None)


@on_both_loops
async def test_servers_share_nothing_that_one_of_them_changes() -> None:
    one, one_wire = serving()
    two, two_wire = serving()
    one.data_size_limit, one.command_size_limit = 10, 100
    for server, wire, size in ((one, one_wire, 10), (two, two_wire, 33554432)):
        wire.written.clear()
        server.data_received(EHLO)
        await says(wire, HELLO.replace(b"33554432", b"%d" % size))
        assert server.data_size_limit == size
        wire.close()
    assert (one.command_size_limit, two.command_size_limit, smtp.SMTP.command_size_limit) == (100, 512, 512)


@on_both_loops
async def test_a_server_on_a_path() -> None:
    """What ``loop.create_unix_server`` makes has no address of a client."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    transport, server = await loop.connect_accepted_socket(
        lambda: smtp.SMTP(Looks(smtp), hostname="mx.example", ident="test"), ours
    )
    theirs.setblocking(False)
    with theirs:
        caller = Caller(theirs)
        async with asyncio.timeout(DEADLINE):
            assert await caller.read() == GREETING
            await caller.send(b"NOOP session.peer\r\n")
            assert await caller.read() in (b"250 ''\r\n", b"250 None\r\n")
    transport.close()
    await until(lambda: server.transport is None)
