"""A server on streams: which transport a protocol gets, where it listens, how it and its connections end."""

import asyncio
import errno
import gc
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from controllers import NAME, Keeps, Tls
from disks import no_descriptors, open_files
from servers import LOOPS, on_both_loops, until

from fastsmtp import streams
from fastsmtp._stream import HAS_SETS, Stream
from fastsmtp.controller import Controller, UnthreadedController
from fastsmtp.smtp import SMTP
from fastsmtp.streams import StreamServer, listen, listen_unix

pytestmark = pytest.mark.usefixtures("closes_what_it_opens")

TO_DATA = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
ALL = b"EHLO me\r\n" + TO_DATA + b"hi\r\n.\r\nQUIT\r\n"
CODES = ["220", *["250"] * 5, "250", "250", "354", "250", "221"]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls.issued(tmp_path_factory.mktemp("tls"))


class Made:
    """A factory that knows what it made."""

    def __init__(self, kind: Callable[..., Any] = SMTP, **settings: Any) -> None:
        self.handler = Keeps()
        self.all: list[Any] = []
        self._kind = kind
        self._settings = settings

    def __call__(self) -> Any:
        self.all.append(self._kind(self.handler, **self._settings))
        return self.all[-1]


@asynccontextmanager
async def served(
    factory: Callable[[], Any], host: Any = "127.0.0.1", **settings: Any
) -> AsyncIterator[StreamServer]:
    loop = asyncio.get_running_loop()
    server = StreamServer(loop, factory, await listen(loop, host, 0), **settings)
    async with server:
        yield server


async def connect(server: Any, **settings: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if settings:
        settings["server_hostname"] = NAME
    return await asyncio.open_connection(*server.sockets[0].getsockname()[:2], **settings)


async def talk(server: Any, octets: bytes = ALL, **settings: Any) -> list[str]:
    """What is answered to ``octets``, up to the end of the connection."""
    reader, writer = await connect(server, **settings)
    writer.write(octets)
    said = (await reader.read()).decode().splitlines()
    writer.close()
    await writer.wait_closed()
    return said


def codes(said: list[str]) -> list[str]:
    return [line[:3] for line in said if line[3:4] == " "]


# --- which transport ----------------------------------------------------------------------------------------


class Knows(SMTP):
    """Knows the transports that it had."""

    transports: list[Any]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transports = [*getattr(self, "transports", []), transport]
        super().connection_made(transport)


class GetsBuffers(Knows):
    def get_buffer(self, sizehint: int) -> memoryview:
        return super().get_buffer(sizehint)


class IsTold(Knows):
    def buffer_updated(self, nbytes: int) -> None:
        super().buffer_updated(nbytes)


class BeginsTls(Knows):
    async def smtp_STARTTLS(self, arg: str | None) -> None:
        await super().smtp_STARTTLS(arg)


class Says(asyncio.Protocol):
    """A protocol that is no dialogue."""

    def __init__(self, handler: object) -> None:
        self.ended = False

    def connection_made(self, transport: Any) -> None:
        self.transports = [transport]
        transport.write(b"220 hello\r\n")

    def data_received(self, data: bytes) -> None:
        self.transports[0].write(data)
        self.transports[0].close()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True


@pytest.mark.parametrize("secure", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("kind", [Knows, GetsBuffers, IsTold, BeginsTls])
@on_both_loops
async def test_who_receives_by_himself_gets_a_transport_of_the_loop(
    kind: type[Knows], secure: bool, tls: Tls
) -> None:
    made = Made(kind)
    client: dict[str, Any] = {"ssl": tls.client} if secure else {}
    async with served(made, tls=tls.server if secure else None) as server:
        assert codes(await talk(server, **client)) == ["220", "250", "250", "250", "354", "250", "221"]
        await until(lambda: made.all[0].transport is None)
    (transport,) = made.all[0].transports
    assert isinstance(transport, Stream) == (kind is Knows)
    assert made.handler.contents == [b"hi\r\n"]
    assert made.handler.kept[0].tls == secure


@pytest.mark.parametrize("secure", [False, True], ids=["clear", "tls"])
@on_both_loops
async def test_what_is_no_dialogue_gets_a_transport_of_the_loop(secure: bool, tls: Tls) -> None:
    made = Made(Says)
    client: dict[str, Any] = {"ssl": tls.client} if secure else {}
    async with served(made, tls=tls.server if secure else None) as server:
        assert await talk(server, b"echo\r\n", **client) == ["220 hello", "echo"]
        await until(lambda: made.all[0].ended)
    assert not isinstance(made.all[0].transports[0], Stream)


@pytest.mark.parametrize("kind", [Knows, BeginsTls])
@on_both_loops
async def test_starttls(kind: type[Knows], tls: Tls) -> None:
    made = Made(kind, tls_context=tls.server, require_starttls=True)
    async with served(made) as server:
        reader, writer = await connect(server)
        writer.write(b"EHLO me\r\nSTARTTLS\r\n")
        while not (await reader.readline()).startswith(b"220 Ready"):
            pass
        await writer.start_tls(tls.client, server_hostname=NAME)
        writer.write(ALL)
        assert codes((await reader.read()).decode().splitlines())[-2:] == ["250", "221"]
        writer.close()
        await writer.wait_closed()
        await until(lambda: made.all[0].transport is None)
    assert made.handler.kept[0].tls


# --- what a stream is asked as a transport ------------------------------------------------------------------


@on_both_loops
async def test_a_stream_is_asked_what_transports_are() -> None:
    seen: list[Any] = []

    class Asks(SMTP):
        async def smtp_NOOP(self, arg: str | None) -> None:
            stream: Any = self.transport
            seen.extend([stream.is_reading(), stream.get_protocol() is self, stream.can_write_eof()])
            stream.pause_reading()
            seen.append(stream.is_reading())
            stream.resume_reading()
            stream.writelines([b"250 one\r\n", memoryview(b"250 two\r\n")])
            stream.write_eof()
            await super().smtp_VRFY("a")  # nobody hears that

    made = Made(Asks)
    async with served(made) as server:
        said = await talk(server, b"NOOP\r\n")
        assert said[1:] == ["250 one", "250 two"]
        await until(lambda: made.all[0].transport is None)
    assert seen == [True, True, True, False]


@on_both_loops
async def test_the_end_of_what_is_said_comes_after_what_is_unsent() -> None:
    much = b"250 " + b"x" * (8 << 20) + b"\r\n"

    class Says(SMTP):
        async def smtp_NOOP(self, arg: str | None) -> None:
            assert self.transport is not None
            self.transport.write(much)
            self.transport.write_eof()

    made = Made(Says)
    async with served(made) as server:
        reader, writer = await connect(server)
        await reader.readline()
        writer.write(b"NOOP\r\n")
        await until(lambda: made.all[0].unsent)
        assert await reader.read() == much
        writer.close()
        await writer.wait_closed()
        await until(lambda: made.all[0].transport is None)


@on_both_loops
async def test_tls_has_no_half_of_a_connection(tls: Tls) -> None:
    made = Made()
    async with served(made, tls=tls.server) as server:
        reader, writer = await connect(server, ssl=tls.client)
        assert (await reader.readline())[:3] == b"220"
        stream = made.all[0].transport
        assert not stream.can_write_eof()
        with pytest.raises(NotImplementedError, match="half"):
            stream.write_eof()
        writer.close()
        await writer.wait_closed()
        await until(lambda: made.all[0].transport is None)


# --- handshakes ---------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_handshake_that_fails_is_no_error_of_the_program(
    tls: Tls, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mail.log")

    class Told(Keeps):
        async def handle_exception(self, error: Exception) -> str:
            raise AssertionError(error)

    class Ends(SMTP):
        def connection_lost(self, exc: Exception | None) -> None:
            raise AssertionError("it was never made")

    made = Made(Ends)
    made.handler = Told()
    async with served(made, tls=tls.server) as server:
        reader, writer = await connect(server)
        host, port = writer.get_extra_info("sockname")[:2]
        writer.write(b"EHLO me\r\n")
        assert b"220" not in await reader.read()
        writer.close()
        await writer.wait_closed()
    (line,) = [message for message in caplog.messages if "handshake" in message]
    assert line.startswith(f"TLS handshake with {host}:{port} failed: ")


@pytest.mark.parametrize("kind", [SMTP, Says])
@on_both_loops
async def test_a_handshake_has_its_time(kind: Callable[..., Any], tls: Tls) -> None:
    loop = asyncio.get_running_loop()
    async with served(Made(kind), tls=tls.server, handshake_timeout=0.05) as server:
        began = loop.time()
        assert await talk(server, b"") == []
        assert 0.04 < loop.time() - began < 2


@pytest.mark.parametrize("kind", [SMTP, Says])
@on_both_loops
async def test_close_ends_a_handshake(kind: Callable[..., Any], tls: Tls) -> None:
    made = Made(kind)
    async with served(made, tls=tls.server) as server:
        reader, writer = await connect(server)
        await until(lambda: made.all)
        server.close()
        await server.wait_closed()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


# --- the end ------------------------------------------------------------------------------------------------


@on_both_loops
async def test_connections_outlive_their_server() -> None:
    made = Made()
    async with served(made) as server:
        assert (server.get_loop(), server.is_serving()) == (asyncio.get_running_loop(), True)
        reader, writer = await connect(server)
        assert (await reader.readline())[:3] == b"220"
        server.close()
        assert (server.sockets, server.is_serving()) == ((), False)
        writer.write(ALL)
        assert codes((await reader.read()).decode().splitlines())[-1] == "221"
        writer.close()
        await writer.wait_closed()
        await until(lambda: made.all[0].transport is None)
    assert made.handler.contents == [b"hi\r\n"]


@on_both_loops
async def test_it_serves_until_it_is_closed_or_cancelled() -> None:
    for end in (lambda server, task: server.close(), lambda server, task: task.cancel()):
        async with served(Made()) as server:
            await server.start_serving()
            task = asyncio.ensure_future(server.serve_forever())
            await talk(server)
            end(server, task)
            await asyncio.wait([task])
            assert not server.is_serving()
            await server.wait_closed()


@on_both_loops
async def test_the_first_of_many_connections_may_close_the_server() -> None:
    """All of the sockets are ready in the same look."""

    def factory() -> Any:
        server.close()
        gc.collect()
        return made()

    made = Made()
    hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    async with served(factory, hosts) as server:
        clients = [socket.create_connection(sock.getsockname()) for sock in server.sockets]
        await server.wait_closed()
        for client in clients:
            client.setblocking(False)
            with suppress(ConnectionResetError):
                assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
            client.close()
    assert len(made.all) == 1


@on_both_loops
async def test_a_hook_may_close_the_server() -> None:
    class Closes(Keeps):
        def handle_VRFY(self, *arguments: object) -> str:
            server.close()
            return "252 closed"

    made = Made()
    made.handler = Closes()
    async with served(made) as server:
        assert codes(await talk(server, b"EHLO me\r\nVRFY a\r\nNOOP\r\nQUIT\r\n"))[-3:] == [
            "252",
            "250",
            "221",
        ]
        await until(lambda: made.all[0].transport is None)


@on_both_loops
async def test_it_starts_and_stops_again_and_again() -> None:
    controllers = [UnthreadedController(Keeps(), "127.0.0.1", 0) for _ in range(3)]
    before = 0
    for _ in range(5):
        for controller in controllers:
            await controller.start()
        for controller in controllers:
            reader, writer = await connect(controller.server)
            writer.write(ALL[:-6])
            while not (await reader.readline()).startswith(b"250 2"):
                pass
            await controller.stop()
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
        gc.collect()
        assert before in (0, open_files())
        before = open_files()


@pytest.mark.parametrize("make_loop", LOOPS.values(), ids=LOOPS)
def test_threads_start_and_stop_again_and_again(make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    before = 0
    for _ in range(5):
        controllers = [Controller(Keeps(), "127.0.0.1", 0, make_loop()) for _ in range(3)]
        for controller in controllers:
            controller.start()
        clients = [socket.create_connection((each.hostname, each.port)) for each in controllers]
        for client, controller in zip(clients, controllers, strict=True):
            assert client.recv(3) == b"220"
            controller.stop()
            while client.recv(100):
                pass
            client.close()
        gc.collect()
        assert before in (0, open_files())
        before = open_files()


# Sockets that nobody closes complain; those of the loop as well.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("make_loop", LOOPS.values(), ids=LOOPS)
def test_a_loop_that_is_closed_leaves_nothing_behind(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    loop = make_loop()
    controller: Any = UnthreadedController(Keeps(), "127.0.0.1", 0, loop)
    controller.begin()
    with socket.create_connection((controller.hostname, controller.port)) as client:
        client.setblocking(False)
        assert loop.run_until_complete(loop.sock_recv(client, 3)) == b"220"
        loop.close()
        del controller, loop
        SMTP(Keeps(), loop=make_loop()).loop.close()  # the next one has the last one's house forgotten
        gc.collect()
        client.setblocking(True)
        while client.recv(100):
            pass


@pytest.mark.skipif(not HAS_SETS, reason="this system has no sets of sockets")
@on_both_loops
async def test_without_descriptors_there_is_no_server() -> None:
    loop = asyncio.get_running_loop()
    listeners = await listen(loop, "127.0.0.1", 0)
    with no_descriptors(), pytest.raises(OSError, match=r"(?i)too many open files"):
        StreamServer(loop, Made(), listeners)
    assert listeners[0].socket.fileno() == -1


# --- where it listens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["", None, ["127.0.0.1", "127.0.0.2"], "localhost"])
@on_both_loops
async def test_hosts_mean_what_they_mean_to_the_loop(host: Any) -> None:
    loop = asyncio.get_running_loop()
    model = await loop.create_server(asyncio.Protocol, host, 0)
    async with served(Made(), host) as server:
        shown, expected = (
            sorted((sock.family, sock.getsockname()[0]) for sock in each.sockets) for each in (server, model)
        )
        assert shown == expected
        assert len({sock.getsockname()[1] for sock in server.sockets}) == 1
    model.close()
    await model.wait_closed()


@on_both_loops
async def test_a_port_that_is_taken_on_another_address_is_not_tried_for_ever() -> None:
    tried: list[int] = []
    loop = asyncio.get_running_loop()
    create_server = loop.create_server

    async def taken(factory: Any, host: Any, port: int, **settings: Any) -> Any:
        tried.append(port)
        if port:
            raise OSError(errno.EADDRINUSE, "taken")
        while True:
            server = await create_server(factory, host, port, **settings)
            if len({sock.getsockname()[1] for sock in server.sockets}) == 2:  # as it nearly always is
                return server
            server.close()

    class Loop:
        create_server = staticmethod(taken)

    with pytest.raises(OSError, match="taken"):
        await listen(Loop(), ["127.0.0.1", "127.0.0.2"], 0)  # type: ignore[arg-type]
    assert len(tried) == 2 * streams._PORT_ZERO_TRIES


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1"])
@on_both_loops
async def test_what_cannot_be_had_fails_as_in_the_loop(host: str) -> None:
    loop = asyncio.get_running_loop()
    async with served(Made()) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(OSError, match=r".") as models:
            await loop.create_server(asyncio.Protocol, host, port)
        with pytest.raises(OSError, match=r".") as raised:
            await listen(loop, host, port)
    assert type(raised.value) is type(models.value)
    assert (raised.value.errno, str(raised.value)) == (models.value.errno, str(models.value))


@on_both_loops
async def test_a_path_that_cannot_be_had_fails_as_in_the_loop(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "none" / "socket", tmp_path / ("long" * 30), tmp_path):
        with pytest.raises(OSError, match=r".") as models:
            await loop.create_unix_server(asyncio.Protocol, str(path))
        with pytest.raises(OSError, match=r".") as raised:
            listen_unix(str(path))
        assert (raised.value.errno, str(raised.value)) == (models.value.errno, str(models.value))
    assert (tmp_path / "file").read_text() == "mine"


@on_both_loops
async def test_a_path_is_taken_over_and_removed_by_the_last(tmp_path: Path) -> None:
    loop, path = asyncio.get_running_loop(), tmp_path / "socket"
    made = Made()
    first = StreamServer(loop, made, listen_unix(str(path)))
    second = StreamServer(loop, made, listen_unix(str(path)))
    first.close()
    assert path.is_socket()
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(ALL)
    assert codes((await reader.read()).decode().splitlines())[-1] == "221"
    writer.close()
    await writer.wait_closed()
    await until(lambda: made.all[-1].transport is None)
    second.close()
    assert not path.exists()


def test_a_path_that_may_not_be_looked_at_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    (tmp_path / "socket").touch()
    with monkeypatch.context() as patched:
        patched.setattr("fastsmtp.streams.os.stat", fails)
        with pytest.raises(OSError, match="already in use"):
            listen_unix(str(tmp_path / "socket"))
    assert "Permission denied" in caplog.text
