"""TLS behind a PROXY header: however the octets come, the header is read in clear and the rest is left to TLS."""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Self, cast

import pytest
import trustme
from disks import no_descriptors
from servers import DEADLINE, on_both_loops, until

from fastsmtp import accepting
from fastsmtp.proxy_protocol import AF, V2_SIGNATURE, ProxyData
from fastsmtp.streams import StreamServer, listen, listen_unix

pytestmark = pytest.mark.usefixtures("closes_what_it_opens")

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 465\r\n"
INET = IPv4Address("192.0.2.1").packed + IPv4Address("198.51.100.2").packed + b"\xc3\x50\x01\xd1"
V2 = V2_SIGNATURE + b"\x21\x11" + (12).to_bytes(2) + INET
LONG = V2_SIGNATURE + b"\x21\x11" + (65535).to_bytes(2) + INET + b"\x04" + (65520).to_bytes(2) + bytes(65520)
UNKNOWN = b"PROXY UNKNOWN\r\n"
HEADERS = {"v1": V1, "v2": V2, "long": LONG, "unknown": UNKNOWN}


class Contexts:
    """TLS for a server, and for clients who trust it."""

    def __init__(self) -> None:
        authority = trustme.CA()
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(self.server)
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    return Contexts()


class Echo(asyncio.Protocol):
    """Says what it hears."""

    data: ProxyData

    def __init__(self) -> None:
        self.ended = False

    def proxied(self, data: ProxyData) -> None:
        self.data = data

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True


class Served:
    """A server and the protocols that it made."""

    server: StreamServer

    def __init__(self) -> None:
        self.protocols: list[Echo] = []

    def __call__(self) -> Echo:
        protocol = Echo()
        self.protocols.append(protocol)
        return protocol

    @property
    def address(self) -> Any:
        return self.server.sockets[0].getsockname()


@asynccontextmanager
async def served(tls: ssl.SSLContext | None, **settings: Any) -> AsyncIterator[Served]:
    """A server on a free port, all of whose connections must be over in the end."""
    loop = asyncio.get_running_loop()
    path, host = settings.pop("path", None), settings.pop("host", "127.0.0.1")
    listeners = await listen(loop, host, 0) if path is None else listen_unix(str(path))
    factory = Served()
    made = settings.pop("factory", factory)
    factory.server = StreamServer(loop, made, listeners, tls=tls, **{"proxy_timeout": 10.0, **settings})
    try:
        yield factory
    finally:
        factory.server.close()
        await factory.server.wait_closed()
        for protocol in factory.protocols:
            if hasattr(protocol, "transport"):
                protocol.transport.abort()
                await until(lambda protocol=protocol: protocol.ended, "a protocol does not end")
        assert not factory.server.arrivals


class Client:
    """A client whose octets are sent as the test wants them."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.socket = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        if context is not None:
            self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    @classmethod
    async def connect(cls, to: Served, context: ssl.SSLContext | None = None) -> Self:
        sock = socket.socket(to.server.sockets[0].family)
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, to.address)
        return cls(sock, context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    async def send(self, octets: bytes) -> None:
        await self.loop.sock_sendall(self.socket, octets)

    async def receive(self) -> bytes:
        end = self.loop.time() + DEADLINE / 4
        while self.loop.time() < end:
            try:
                return self.socket.recv(65536)
            except BlockingIOError:
                await asyncio.sleep(0.001)
            except ConnectionResetError:
                return b""
        raise AssertionError("the server neither spoke nor hung up")

    async def _until_done(self, step: Callable[[], Any], first: bytes = b"") -> Any:
        """Makes a step of TLS, which octets from the server may need; sends ``first`` with its first octets."""
        while True:
            try:
                result, done = step(), True
            except ssl.SSLWantReadError:
                result, done = None, False
            await self.send(first + self.outgoing.read())
            first = b""
            if done:
                return result
            octets = await self.receive()
            assert octets, "the server hung up"
            self.incoming.write(octets)

    async def handshake(self, first: bytes = b"") -> None:
        await self._until_done(self.tls.do_handshake, first)

    async def says(self, octets: bytes) -> bytes:
        """Sends within TLS, and gives what comes back."""
        self.tls.write(octets)
        answer = b""
        while len(answer) < len(octets):
            answer += await self._until_done(lambda: self.tls.read(len(octets)))
        return answer


async def send_at_once(client: Client, header: bytes) -> None:
    await client.handshake(header)


async def send_before(client: Client, header: bytes) -> None:
    await client.send(header)
    await client.handshake()


async def send_octets(client: Client, header: bytes) -> None:
    for at in range(len(header)):
        await client.send(header[at : at + 1])
        await asyncio.sleep(0)
    await client.handshake()


async def send_with_a_piece(client: Client, header: bytes) -> None:
    await client.send(header[:-1])
    await asyncio.sleep(0.001)
    await client.handshake(header[-1:])


WAYS = {"at once": send_at_once, "before": send_before, "octets": send_octets, "piece": send_with_a_piece}


@pytest.mark.parametrize("send", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
@on_both_loops
async def test_tls_begins_behind_the_header(
    contexts: Contexts, header: bytes, send: Callable[[Client, bytes], Any]
) -> None:
    if header is LONG and send is send_octets:
        header = header[:-65000]
        header = header[:14] + (len(header) - 16).to_bytes(2) + header[16:]
    async with served(contexts.server) as to:
        with await Client.connect(to, contexts.client) as client:
            await send(client, header)
            assert await client.says(b"ping") == b"ping"
            assert await client.says(b"x" * 50000) == b"x" * 50000
            (protocol,) = to.protocols
            assert protocol.data.valid
            assert bytes(protocol.data.whole_raw) == header
            if header is UNKNOWN:
                assert protocol.data.family is AF.UNSPEC
            else:
                assert (protocol.data.src_addr, protocol.data.src_port) == (IPv4Address("192.0.2.1"), 50000)
            assert protocol.transport.get_extra_info("ssl_object").cipher() is not None
            assert protocol.transport.get_extra_info("peername") == client.socket.getsockname()
            assert not to.server.arrivals
        await until(lambda: protocol.ended)


@on_both_loops
async def test_without_tls_the_rest_is_the_protocols(contexts: Contexts) -> None:
    async with served(None) as to:
        with await Client.connect(to) as client:
            await client.send(V2 + b"PROXY\r\n")
            assert await client.receive() == b"PROXY\r\n"


@on_both_loops
async def test_many_at_once(contexts: Contexts) -> None:
    async def talk(to: Served, number: int) -> None:
        with await Client.connect(to, contexts.client) as client:
            await client.handshake(b"PROXY TCP4 192.0.2.1 192.0.2.2 %d 465\r\n" % number)
            assert await client.says(b"%d" % number) == b"%d" % number

    async with served(contexts.server) as to:
        await asyncio.gather(*(talk(to, number) for number in range(50)))
        assert sorted(cast("int", protocol.data.src_port) for protocol in to.protocols) == list(range(50))


# --- no protocol for these ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "octets",
    [
        b"EHLO c.example\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"PROXY TCP4 x\r\n",
        b"PROXY " + b"x" * 101,
        V2_SIGNATURE[:5] + b"xxxxxxx",
    ],
)
@on_both_loops
async def test_a_wrong_header_ends_the_connection_without_a_word(
    contexts: Contexts, octets: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(contexts.server) as to:
        with await Client.connect(to) as client:
            await client.send(octets)
            assert await client.receive() == b""
        assert to.protocols == []
        await until(lambda: not to.server.arrivals)
    (complaint,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert complaint.name == "mail.debug"
    assert complaint.getMessage().startswith("PROXY error: ")


@pytest.mark.parametrize("octets", [b"", b"PROXY TCP4 192.0", V2[:20]], ids=["silence", "v1", "v2"])
@on_both_loops
async def test_a_header_must_come_whole_in_time(
    contexts: Contexts, octets: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mail.debug")
    async with served(contexts.server, proxy_timeout=0.05) as to:
        with await Client.connect(to) as client:
            began = client.loop.time()
            await client.send(octets)
            assert await client.receive() == b""
            assert 0.04 < client.loop.time() - began < 2
        assert (to.protocols, to.server.arrivals) == ([], set())
    assert "no PROXY header in time" in caplog.text


@on_both_loops
async def test_octets_now_and_then_buy_no_time(contexts: Contexts) -> None:
    async with served(contexts.server, proxy_timeout=0.1) as to:
        with await Client.connect(to) as client:
            began = client.loop.time()
            client.socket.setblocking(False)
            octets = iter(V1)
            while client.loop.time() < began + 1:
                try:
                    client.socket.send(bytes([next(octets)]))
                    await asyncio.sleep(0.01)
                except (BrokenPipeError, ConnectionResetError):
                    break
            assert client.loop.time() - began < 0.4
        assert to.protocols == []


@pytest.mark.parametrize("octets", [b"", V1[:10], V2[:20]], ids=["nothing", "v1", "v2"])
@on_both_loops
async def test_who_leaves_before_the_end_of_the_header_is_forgotten(
    contexts: Contexts, octets: bytes
) -> None:
    async with served(contexts.server) as to:
        with await Client.connect(to) as client:
            await client.send(octets)
            await until(lambda: to.server.arrivals)
        await until(lambda: not to.server.arrivals)
        assert to.protocols == []


@on_both_loops
async def test_who_resets_within_the_header_is_forgotten(contexts: Contexts) -> None:
    async with served(contexts.server) as to:
        with await Client.connect(to) as client:
            await client.send(V1[:10])
            await until(lambda: to.server.arrivals)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await until(lambda: not to.server.arrivals)
        assert to.protocols == []


@on_both_loops
async def test_a_failed_handshake_ends_the_connection(contexts: Contexts) -> None:
    async with served(contexts.server) as to:
        with await Client.connect(to) as client:
            await client.send(V1 + b"EHLO c.example\r\n")
            while await client.receive():  # an alert may come
                pass
        await until(lambda: not to.server.arrivals)
        assert [hasattr(protocol, "transport") for protocol in to.protocols] == [False]


@on_both_loops
async def test_a_handshake_must_end_in_time(contexts: Contexts) -> None:
    async with served(contexts.server, handshake_timeout=0.05) as to:
        with await Client.connect(to) as client:
            await client.send(V1)
            while await client.receive():
                pass
        await until(lambda: not to.server.arrivals)


@on_both_loops
async def test_a_factory_that_fails_costs_its_connection_only(contexts: Contexts) -> None:
    told: list[dict[str, Any]] = []

    def factory() -> Echo:
        if not made:
            made.append(1)
            raise RuntimeError("not this one")
        return to()

    made: list[int] = []

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    async with served(contexts.server, factory=factory) as to:
        with await Client.connect(to) as client:
            await client.send(UNKNOWN)
            assert await client.receive() == b""
        with await Client.connect(to, contexts.client) as client:
            await client.handshake(V1)
            assert await client.says(b"ping") == b"ping"
    assert [str(context["exception"]) for context in told] == ["not this one"]


# --- close --------------------------------------------------------------------------------------------------


@on_both_loops
async def test_close_ends_what_no_protocol_has_yet(contexts: Contexts) -> None:
    async with served(contexts.server) as to:
        clients = [await Client.connect(to, contexts.client) for _ in range(4)]
        silent, partial, shaking, talking = clients
        await partial.send(V2[:20])
        await shaking.send(V1)
        await talking.handshake(V1)
        assert await talking.says(b"ping") == b"ping"
        await until(lambda: len(to.server.arrivals) == 2 and len(to.protocols) == 2)
        assert to.server.is_serving()
        address = to.address
        waiting = asyncio.ensure_future(to.server.wait_closed())
        to.server.close()
        assert not to.server.is_serving()
        assert to.server.sockets == ()
        await waiting
        assert not to.server.arrivals
        for client in (silent, partial, shaking):
            assert await client.receive() == b""
        assert await talking.says(b"pong") == b"pong"
        to.server.close()
        await to.server.wait_closed()
        with socket.socket() as late:
            assert late.connect_ex(address) == errno.ECONNREFUSED
        for client in clients:
            client.socket.close()


@on_both_loops
async def test_close_before_the_handshake_has_begun(contexts: Contexts) -> None:
    async with served(contexts.server) as to:
        with await Client.connect(to) as client:
            await until(lambda: to.server.arrivals)
            (arrival,) = to.server.arrivals
            await client.send(V1)
            arrival._read()
            assert not to.server.arrivals
            to.server.close()
            await to.server.wait_closed()
            assert await client.receive() == b""
        assert [hasattr(protocol, "transport") for protocol in to.protocols] == [False]


@on_both_loops
async def test_a_factory_may_close_the_server(contexts: Contexts) -> None:
    def factory() -> Echo:
        to.server.close()
        return to()

    async with served(contexts.server, factory=factory) as to:
        with await Client.connect(to) as client:
            await client.send(V1)
            assert await client.receive() == b""
        await to.server.wait_closed()


# --- where it listens ---------------------------------------------------------------------------------------


@on_both_loops
async def test_a_unix_socket(contexts: Contexts, tmp_path: Path) -> None:
    path = tmp_path / "proxied.sock"
    async with served(contexts.server, path=path) as to:
        for send in (send_at_once, send_octets):
            with await Client.connect(to, contexts.client) as client:
                await send(client, V2)
                assert await client.says(b"ping") == b"ping"
    assert not path.exists()


@on_both_loops
async def test_without_descriptors_it_rests_and_then_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accepting, "_RECOVERY", 0.05)
    async with served(None, host=["127.0.0.1", "127.0.0.2"]) as to:
        clients = [Client(socket.socket(), None) for _ in to.server.sockets]
        with no_descriptors():
            began = clients[0].loop.time()
            for client, listener in zip(clients, to.server.sockets, strict=True):
                client.socket.connect(listener.getsockname())
                client.socket.sendall(V1 + b"ping")
                client.socket.setblocking(False)
            await until(lambda: len(caplog.records) == 3, "it tries again and again")
            assert clients[0].loop.time() - began >= 0.1
            assert to.server.is_serving()
        for client in clients:
            assert await client.receive() == b"ping"
            client.socket.close()
    for record in caplog.records:
        assert (record.name, record.levelno) == ("fastsmtp", logging.ERROR)
        assert record.getMessage().startswith("cannot accept a connection: ")


@on_both_loops
async def test_close_while_it_rests(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accepting, "_RECOVERY", 0.05)
    async with served(None) as to:
        with Client(socket.socket(), None) as client:
            with no_descriptors():
                client.socket.connect(to.address)
                await until(lambda: caplog.records)
                to.server.close()
            client.socket.setblocking(False)
            assert await client.receive() == b""
            await asyncio.sleep(0.06)  # longer than it would have rested
    assert len(caplog.records) == 1
