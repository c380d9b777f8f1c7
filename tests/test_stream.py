"""Accepted sockets without a transport of the loop: in a set of the system, and each watched by the loop."""

import asyncio
import logging
import selectors
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import uvloop
from dialogs import Dialog, load_all
from disks import no_descriptors, open_files
from servers import CONTENT, HELLO, LOOPS, MAIL, Client, Keeps, counted, on_both_loops, port_of, serve, until
from test_connection import allowed

import fastsmtp
from fastsmtp import Envelope, Session, accepting, sockets
from fastsmtp._stream import HAS_SETS, Entrance, Poller, Stream
from fastsmtp.config import Config
from fastsmtp.connection import Connection
from fastsmtp.worker import Worker

DIALOGS = [dialog for dialog in load_all() if allowed(dialog)]


@pytest.fixture(params=[True, False], ids=["set", "loop"])
def sets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether servers use a set of the system."""
    monkeypatch.setattr(accepting, "Poller", partial(Poller, sets=request.param))
    return bool(request.param)


@pytest.fixture
def each_watched_by_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "Poller", partial(Poller, sets=False))


def reset(client: Client) -> None:
    """Ends a connection with RST."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.close()


# --- without a set ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("each_watched_by_the_loop")
@pytest.mark.parametrize("dialog", DIALOGS, ids=str)
@on_both_loops
async def test_a_dialog_goes_as_it_is_written(dialog: Dialog) -> None:
    handler = Keeps()
    async with await serve(handler, **dialog.settings) as server:
        with await Client.connect(server) as client:
            await client.send(dialog.wire)
            client.half_close()
            replies = await client.rest()
    expected = [reply for exchange in dialog.exchanges for reply in exchange.replies]
    assert len(replies) == len(expected)
    assert all(one.matches(reply) for one, reply in zip(expected, replies, strict=True))
    assert handler.messages == dialog.messages


@pytest.mark.usefixtures("each_watched_by_the_loop")
@on_both_loops
async def test_a_client_that_reads_late_gets_all_without_a_set() -> None:
    async with await serve(Keeps()) as server:
        server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        with await Client.greeted(server, receive_buffer=8192) as client:
            sent = client.send_what_fits(b"HELP\r\n" * 100_000)
            await until(lambda: counted(server, "commands_total", "HELP") > 0)
            client.half_close()
            assert {reply.code for reply in (await client.rest())[: sent // 6]} == {214}


# --- what a stream tells ------------------------------------------------------------------------------------


@on_both_loops
async def test_a_hook_is_told_the_peer_though_it_is_gone(sets: bool) -> None:
    told: list[object] = []

    class Handler(Keeps):
        def handle_DISCONNECT(self, server: object, session: Session, envelope: Envelope) -> None:
            told.append(session.peer)

    async with await serve(Handler()) as server:
        client = await Client.greeted(server)
        name = client.socket.getsockname()
        reset(client)
        await until(lambda: told)
    assert told == [name]


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 in this Python")
@on_both_loops
async def test_an_ipv6_peer_is_told_with_flow_and_scope() -> None:
    told: list[object] = []

    class Handler(Keeps):
        async def handle_EHLO(
            self, server: Connection, session: Session, envelope: Envelope, name: str, lines: list[str]
        ) -> list[str]:
            assert isinstance(server.transport, Stream)
            told.append(session.peer)
            told.append(server.transport.get_extra_info("sockname"))
            told.append(server.transport.get_extra_info("socket").getpeername())
            told.append(server.transport.get_extra_info("ssl_object", "nothing"))
            return lines

    try:
        server = await serve(Handler(), listen=["[::1]:0"])
    except fastsmtp.ConfigError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    async with server:
        with socket.create_connection(("::1", port_of(server))) as sock:
            sock.setblocking(False)
            client = Client(sock)
            assert (await client.reply()).code == 220
            assert (await client.ask(b"EHLO c.example\r\n")).code == 250
            assert told == [sock.getsockname(), sock.getpeername(), sock.getsockname(), "nothing"]


@on_both_loops
async def test_a_unix_peer_has_no_name(tmp_path: Path) -> None:
    keeps = Keeps()
    async with await serve(keeps, listen=[f"unix:{tmp_path}/smtp"]):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            sock.connect(f"{tmp_path}/smtp")
            client = Client(sock)
            await client.send(MAIL + b"QUIT\r\n")
            assert [reply.code for reply in await client.rest()] == [220, 250, 250, 250, 354, 250, 221]
    assert [message.content for message in keeps.messages] == [CONTENT]


# --- what goes wrong ----------------------------------------------------------------------------------------


@on_both_loops
async def test_a_server_without_descriptors_says_so_and_recovers(
    sets: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accepting, "_RECOVERY", 0.01)
    async with await serve(Keeps()) as server:
        with await Client.greeted(server) as first:
            waiting = socket.socket()
            waiting.setblocking(False)
            with no_descriptors():
                await asyncio.get_running_loop().sock_connect(waiting, ("127.0.0.1", port_of(server)))
                await until(lambda: "cannot accept a connection" in caplog.text)
                assert (await first.ask(b"NOOP\r\n")).code == 250  # the others go on
            with Client(waiting) as client:
                assert (await client.reply()).code == 220
    assert {record.levelno for record in caplog.records if "accept" in record.message} == {logging.ERROR}


@on_both_loops
async def test_a_server_long_without_descriptors_says_so_a_few_times(
    sets: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accepting, "_RECOVERY", 0.001)
    tried = 0
    failed = accepting.Accepting._failed

    def counted(self: accepting.Accepting, error: OSError) -> None:
        nonlocal tried
        tried += 1
        failed(self, error)

    monkeypatch.setattr(accepting.Accepting, "_failed", counted)
    async with await serve(Keeps()) as server:
        with socket.socket() as waiting:
            waiting.setblocking(False)
            with no_descriptors():
                await asyncio.get_running_loop().sock_connect(waiting, ("127.0.0.1", port_of(server)))
                await until(lambda: tried > 50)
            assert [message.partition(":")[0] for message in caplog.messages] == [
                "cannot accept a connection"
            ] * 5
    assert caplog.messages[5].endswith(f" (and {tried - 6} more like it)")
    assert len(caplog.messages) == 6


@on_both_loops
async def test_who_waits_when_a_server_leaves_is_served(sets: bool) -> None:
    """The system may have woken nobody else for that client."""
    handler = Keeps()
    async with await serve(handler) as server:
        with socket.create_connection(("127.0.0.1", port_of(server))) as waiting:
            waiting.setblocking(False)
            server.leave()
            with Client(waiting) as client:
                assert (await client.reply()).code == 220
                await client.send(HELLO + MAIL + CONTENT)
                await until(lambda: handler.messages)


@pytest.mark.skipif(not HAS_SETS, reason="this system has no sets of sockets")
def test_a_loop_that_waits_on_no_set_of_the_system_serves() -> None:
    async def send() -> int:
        handler = Keeps()
        async with await serve(handler) as server:
            with await Client.greeted(server) as client:
                await client.send(MAIL + CONTENT)
                await until(lambda: handler.messages)
        return len(handler.messages)

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        assert runner.run(send()) == 1


# --- workers that share a socket ----------------------------------------------------------------------------


@asynccontextmanager
async def one_of_two(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    """A worker whose fellow has no connection, and that rests for an hour when it has more than its share."""
    monkeypatch.setattr(accepting, "_REST", 3600.0)
    config = Config.of(listen=["127.0.0.1:0"])
    listeners = sockets.bind(config.listen, config.backlog)
    async with Worker(config, listeners, handler=Keeps(), loads=lambda: [server.connections, 0]) as server:
        await server.start()
        yield server


@on_both_loops
async def test_connections_that_stay_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with one_of_two(monkeypatch) as server:
        with ExitStack() as stack:
            mine = [stack.enter_context(await Client.greeted(server)) for _ in range(3)]
            stack.enter_context(await Client.connect(server))
            for client in mine:
                assert (await client.ask(b"NOOP\r\n")).code == 250
            assert server.connections == 3


@on_both_loops
async def test_short_connections_are_not_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with one_of_two(monkeypatch) as server:
        for _ in range(20):
            with await Client.greeted(server) as client:
                assert (await client.ask(b"QUIT\r\n")).code == 221
        await until(lambda: server.connections == 0)
        with ExitStack() as stack:
            mine = [stack.enter_context(await Client.greeted(server)) for _ in range(4)]
            assert server.connections == len(mine)


# --- what fails ---------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_connection_that_fails_ends_alone(sets: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A fault in what serves it, such as a want of memory."""

    class Fails(Connection):
        def preface(self, octets: bytes) -> int:
            raise MemoryError("no room for it")

        def connection_made(self, transport: object) -> None:
            self.transport = transport  # type: ignore[assignment]
            self.expect_preface()

    async with await serve(Keeps()) as server:
        with await Client.greeted(server) as first:
            server._connection = Fails
            before = open_files()
            with await Client.connect(server) as client:
                await client.send(b"what comes first")
                assert await client.rest() == []
            server._connection = Connection
            assert (await first.ask(b"NOOP\r\n")).code == 250
            await until(lambda: open_files() == before, "a descriptor leaked")
    assert "no room for it" in caplog.text


@on_both_loops
async def test_a_connection_that_cannot_be_made_is_closed(
    sets: bool, caplog: pytest.LogCaptureFixture
) -> None:

    class Fails(Connection):
        def connection_made(self, transport: object) -> None:
            raise MemoryError("no room for it")

    async with await serve(Keeps()) as server:
        server._connection = Fails
        before = open_files()
        with await Client.connect(server) as client:
            assert await client.rest() == []
        server._connection = Connection
        with await Client.greeted(server):
            await until(lambda: open_files() == before + 2, "a descriptor leaked")
    assert "no room for it" in caplog.text


@on_both_loops
async def test_what_a_reset_leaves_behind(sets: bool) -> None:
    """Clients that go in the midst of anything, also while nothing is read of them."""
    if HAS_SETS and not sets and isinstance(asyncio.get_running_loop(), uvloop.Loop):
        pytest.skip("libuv on epoll gives up a watched socket that was reset; no worker has that combination")
    go = asyncio.Event()
    done: list[int] = []

    class Handler(Keeps):
        async def handle_VRFY(self, server: object, session: Session, envelope: Envelope, name: str) -> str:
            await go.wait()
            done.append(1)
            return "252 2.0.0 Perhaps"

    async with await serve(Handler()) as server:
        before = open_files()
        for octets in (b"", b"NOO", MAIL[:-5], b"VRFY a\r\n", b"VRFY a\r\n" + b"NOOP\r\n" * 40_000):
            client = await Client.greeted(server)
            client.send_what_fits(octets)
            await until(lambda octets=octets: counted(server, "received_bytes_total") >= min(len(octets), 1))
            reset(client)
        go.set()
        await until(lambda: len(done) == 2, "a hook is heard to its end")
        await until(lambda: server.connections == 0)
        await until(lambda: open_files() == before, "a descriptor leaked")


@pytest.mark.parametrize("make", LOOPS.values(), ids=LOOPS)
def test_who_has_left_is_seen_off_though_the_loop_is_interrupted(
    make: Callable[[], asyncio.AbstractEventLoop], sets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SIGINT does in a loop that is not asyncio.run's: the program may run the loop on, to stop its server."""

    class Leaves(Keeps):
        def handle_NOOP(self, server: Connection, session: Session, envelope: Envelope, argument: str) -> str:
            server.abort()
            return "250 2.0.0 Ok"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt  # as a signal's handler may, when the hook is done; within it, it is the hook's

    monkeypatch.setattr(Connection, "_reply", interrupt)

    async def greeted() -> Client:
        return await Client.greeted(server)

    async def until_nobody_is_there() -> None:
        await until(lambda: server.connections == 0)

    with asyncio.Runner(loop_factory=make) as runner:
        server = runner.run(serve(Leaves()))
        with runner.run(greeted()) as leaves, runner.run(greeted()) as interrupts:
            leaves.send_what_fits(b"QUIT\r\n")  # both are ready when the loop looks
            interrupts.send_what_fits(b"NOOP\r\n")
            with pytest.raises(KeyboardInterrupt):
                runner.get_loop().run_forever()
            runner.run(until_nobody_is_there())
        runner.run(server.close())


# --- poller and stream by themselves -------------------------------------------------------------------------


@pytest.mark.skipif(not HAS_SETS, reason="this system has no sets of sockets")
@on_both_loops
async def test_a_closed_poller_leaves_the_loop_alone() -> None:
    loop = asyncio.get_running_loop()
    before = open_files()
    poller = Poller(loop)
    assert open_files() == before + 1
    poller.close()
    poller.close()
    assert open_files() == before


@on_both_loops
async def test_a_stream_that_nobody_begins_is_closed(sets: bool) -> None:
    loop = asyncio.get_running_loop()
    poller = Poller(loop, sets=sets)
    streams: list[Stream] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        entrance = Entrance(poller, listening, streams.append, pytest.fail)
        entrance.open()
        with socket.create_connection(listening.getsockname()[:2]) as client:
            client.setblocking(False)
            await until(lambda: streams)
            entrance.shut()
            assert streams[0].get_extra_info("peername") == client.getsockname()
            streams.clear()
            assert await loop.sock_recv(client, 1) == b""
    poller.close()


# --- TLS from the first octet -------------------------------------------------------------------------------


@on_both_loops
async def test_a_failed_handshake_is_counted(sets: bool, certificate: Path) -> None:
    async with await serve(Keeps(), listen=["tls:127.0.0.1:0"], tls_certificate=certificate) as server:
        with await Client.connect(server) as client:
            await client.send(b"EHLO c.example\r\n")
            await until(lambda: counted(server, "tls_handshakes_total", "failed") == 1)
        before = open_files()
        with await Client.connect(server):  # which says nothing
            await until(lambda: open_files() > before + 1)
            await server.close()
    assert counted(server, "tls_handshakes_total", "failed") == 1
