"""Time: silent clients, slow clients, slow hooks, and clients that will not even read that their time is over."""

import asyncio
import contextlib
import socket
import threading
import time

import pytest
from script import every
from servers import MAIL, Client, Keeps, counted, on_both_loops, serve, until
from wires import HELLO, TO_DATA

from fastsmtp import Envelope, Session, blocking

IDLE = (421, "4.4.2")


async def end_of(client: Client) -> tuple[int, str]:
    """The code of the last reply before the server hangs up."""
    reply = (await client.rest())[-1]
    return reply.code, reply.enhanced


@pytest.mark.parametrize("sent", [b"", HELLO, HELLO + b"MAIL FROM:<>\r\n", HELLO + b"NOO"], ids=repr)
@on_both_loops
async def test_a_silent_client_is_told_and_left(sent: bytes) -> None:
    async with await serve(Keeps(), idle_timeout=0.2) as server:
        with await Client.greeted(server, b"") as client:
            began = time.monotonic()
            await client.send(sent)
            assert await end_of(client) == IDLE
            assert 0.14 < time.monotonic() - began < 3  # the clock is kept to a quarter
        await until(lambda: server.connections == 0)
        assert counted(server, "timeouts_total", "command") == 1


@on_both_loops
async def test_a_client_that_speaks_is_not_silent() -> None:
    async with await serve(Keeps(), idle_timeout=0.4) as server:
        with await Client.greeted(server) as client:
            end = time.monotonic() + 1
            while time.monotonic() < end:
                assert (await client.ask(b"NOOP\r\n")).code == 250
                await asyncio.sleep(0.05)


@on_both_loops
async def test_a_client_that_is_silent_in_a_message_is_told_and_left() -> None:
    handler = Keeps()
    async with await serve(handler, idle_timeout=0.2) as server:
        with await Client.greeted(server) as client:
            await client.send(TO_DATA + b"te")
            assert await client.codes(3) == [250, 250, 354]
            assert await end_of(client) == IDLE
        assert counted(server, "timeouts_total", "data") == 1
        assert counted(server, "messages_total", "aborted") == 1
    assert handler.messages == []


@pytest.mark.parametrize("wire", [TO_DATA + b"text\r\n" * 1000, b"MAIL FROM:<>\r\n" + b"NOOP\r\n" * 1000])
@on_both_loops
async def test_a_client_that_drips_has_a_deadline_for_its_transaction(wire: bytes) -> None:
    async with await serve(Keeps(), idle_timeout=5, transaction_timeout=0.3) as server:
        with await Client.greeted(server) as client:
            began = time.monotonic()
            end = asyncio.ensure_future(end_of(client))
            for piece in every(wire, 20):
                if end.done():
                    break
                await client.send(piece)
                await asyncio.sleep(0.01)
            assert await end == IDLE
            assert 0.2 < time.monotonic() - began < 3
        assert counted(server, "timeouts_total", "transaction") == 1


@on_both_loops
async def test_each_transaction_has_a_deadline_of_its_own() -> None:
    handler = Keeps()
    async with await serve(handler, transaction_timeout=0.4) as server:
        with await Client.greeted(server) as client:
            end = time.monotonic() + 0.8
            while time.monotonic() < end:
                await client.send(TO_DATA + b"text\r\n.\r\n")
                assert await client.codes(4) == [250, 250, 354, 250]
                await asyncio.sleep(0.05)
            await client.send(b"MAIL FROM:<>\r\nRSET\r\n")
            assert await client.codes(2) == [250, 250]
            await asyncio.sleep(0.6)  # no transaction: no deadline
            assert (await client.ask(b"NOOP\r\n")).code == 250


# --- hooks --------------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_hook_that_takes_too_long_is_cancelled_and_the_connection_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cancelled = []

    class Handler:
        async def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
            if envelope.content == b"quick\r\n":
                return "250 2.0.0 Ok"
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(envelope.content)
                raise
            return "250 2.0.0 Late"

    async with await serve(Handler(), handler_timeout=0.2, idle_timeout=10) as server:
        with await Client.greeted(server) as client:
            await client.send(
                TO_DATA + b"slow\r\n.\r\nRCPT TO:<c@d.example>\r\n" + TO_DATA + b"quick\r\n.\r\n"
            )
            replies = await client.replies(9)
            assert [reply.code for reply in replies] == [250, 250, 354, 451, 503, 250, 250, 354, 250]
            assert replies[3].enhanced == "4.4.5"
            await until(lambda: cancelled == [b"slow\r\n"])
        assert counted(server, "timeouts_total", "handler") == 1
        assert counted(server, "messages_total", "deferred") == 1
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@on_both_loops
async def test_what_a_hook_that_was_given_up_says_later_is_heard_by_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go = asyncio.Event()
    ended = []

    class Handler(Keeps):
        async def handle_VRFY(
            self, server: object, session: Session, envelope: Envelope, address: str
        ) -> str:
            while not go.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await go.wait()
            ended.append(address)
            if address == "raises":
                raise ZeroDivisionError
            return "252 2.0.0 Late"

    async with await serve(Handler(), handler_timeout=0.1) as server:
        with await Client.greeted(server) as client:
            for address in (b"returns", b"raises"):
                assert (await client.says(b"VRFY " + address + b"\r\n")).startswith("451 4.4.5")
            go.set()
            await until(lambda: sorted(ended) == ["raises", "returns"])
            assert (await client.ask(b"NOOP\r\n")).code == 250


@on_both_loops
async def test_a_blocking_hook_that_takes_too_long_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    go, ended = threading.Event(), threading.Event()

    class Handler:
        @blocking
        def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
            go.wait(10)
            ended.set()
            return "250 2.0.0 Late"

    async with await serve(Handler(), handler_timeout=0.1) as server:
        with await Client.greeted(server) as client:
            await client.send(TO_DATA + b"text\r\n.\r\nNOOP\r\n")
            assert await client.codes(5) == [250, 250, 354, 451, 250]
            go.set()
            await until(ended.is_set)
            assert (await client.ask(b"NOOP\r\n")).code == 250


@on_both_loops
async def test_a_client_that_waits_for_a_hook_is_not_silent() -> None:
    class Handler:
        async def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
            await asyncio.sleep(0.6)
            return "250 2.0.0 Ok"

    async with await serve(Handler(), idle_timeout=0.3, transaction_timeout=0.3) as server:
        with await Client.greeted(server) as client:
            await client.send(TO_DATA + b"text\r\n.\r\n")
            assert await client.codes(4) == [250, 250, 354, 250]
            assert (await client.ask(b"NOOP\r\n")).code == 250
            assert await end_of(client) == IDLE


@on_both_loops
async def test_a_connect_hook_that_takes_too_long_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Handler(Keeps):
        async def handle_CONNECT(self, server: object, session: Session, envelope: Envelope) -> str:
            await asyncio.sleep(60)
            return "220 late"

    async with await serve(Handler(), handler_timeout=0.1) as server:
        with await Client.connect(server) as client:
            assert await end_of(client) == (451, "4.4.5")


# --- clients that do not read -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "last",
    [b"NOOP\r\n", b"QUIT\r\n", b"GET / HTTP/1.1\r\n", b"X\r\n" * 20],
    ids=["no end", "QUIT", "a foreign protocol", "errors"],
)
@pytest.mark.parametrize("amount", [7_000, 500_000], ids=["a little", "a flood"])
@on_both_loops
async def test_a_client_that_neither_reads_nor_sends_is_dropped(amount: int, last: bytes) -> None:
    """Whether its commands were done or kept, and whether the connection was to end anyway."""
    async with await serve(Keeps(), idle_timeout=0.3) as server:
        server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        with await Client.greeted(server, b"", receive_buffer=2048) as client:
            client.send_what_fits(b"NOOP\r\n" * (amount // 6) + last)
            await until(lambda: any(item.unsent for item in server._engine.live))
            await until(lambda: server.connections == 0, "the connection is kept for ever")


@on_both_loops
async def test_a_client_that_reads_late_but_in_time_gets_everything() -> None:
    async with await serve(Keeps(), idle_timeout=2) as server:
        server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        with await Client.greeted(server, receive_buffer=2048) as client:
            await client.send(b"NOOP\r\n" * 5000 + MAIL[len(HELLO) :] + b"QUIT\r\n")
            await until(lambda: any(item.unsent for item in server._engine.live))
            assert [reply.code for reply in await client.rest()] == [250] * 5000 + [250, 250, 354, 250, 221]
