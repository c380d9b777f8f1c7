"""Clients that ask for more than their share: others have their turn in between, whatever the busy ones send, and the
connections that are here keep descriptors for their messages.
"""

import asyncio
import contextlib
import resource
import smtplib
import socket
import ssl
import struct
from pathlib import Path

import pytest
import trustme
from processes import Start
from servers import HELLO, MAIL, TO_DATA, Client, counted, on_both_loops, port_of, serve, until

import fastsmtp.sockets
from fastsmtp import Envelope, Session

MANY = 5000


class Order:
    """Notes who said NOOP, and whose message came, in the order of the hooks."""

    def __init__(self) -> None:
        self.came: list[str] = []

    def handle_NOOP(self, server: object, session: Session, envelope: Envelope, argument: str) -> str:
        self.came.append(str(session.host_name))
        return "250 2.0.0 Ok"

    def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
        self.came.append(str(session.host_name))
        return "250 2.0.0 Ok"


@pytest.mark.parametrize("flood", [b"NOOP\r\n", TO_DATA + b"x\r\n.\r\n"], ids=["commands", "small messages"])
@on_both_loops
async def test_a_client_that_pipelines_without_end_lets_others_in_between(flood: bytes) -> None:
    handler = Order()
    async with await serve(handler) as server:
        with (
            await Client.greeted(server, b"HELO busy\r\n") as busy,
            await Client.greeted(server, b"HELO honest\r\n") as honest,
        ):
            # Both lie in their sockets before the server, which shares this loop, looks at any of them.
            busy.send_what_fits(flood * (60_000 // len(flood)))
            honest.send_what_fits(b"NOOP\r\n")
            assert (await honest.reply()).code == 250
            assert handler.came.index("honest") <= 200
            await until(lambda: len(handler.came) == 60_000 // len(flood) + 1)


@on_both_loops
async def test_a_new_client_is_greeted_while_another_pipelines_without_end() -> None:
    handler = Order()
    async with await serve(handler) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                busy = stack.enter_context(await Client.greeted(server, b"HELO busy\r\n"))
                busy.send_what_fits(b"NOOP\r\n" * 10_000)
            with await Client.greeted(server) as client:
                assert len(handler.came) < 80_000
                await client.send(MAIL.removeprefix(HELLO))
                assert await client.codes(4) == [250, 250, 354, 250]


@on_both_loops
async def test_a_busy_client_that_is_reset_leaves_alone() -> None:
    handler = Order()
    async with await serve(handler) as server:
        busy = await Client.greeted(server, b"HELO busy\r\n")
        busy.send_what_fits(b"NOOP\r\n" * 10_000)
        await until(lambda: handler.came)
        busy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        busy.socket.close()
        await until(lambda: not server.connections)
        assert server._engine.held == 0


class NeverGreets:
    def __init__(self) -> None:
        self.asked = False

    async def handle_CONNECT(self, server: object, session: Session, envelope: Envelope) -> str:
        self.asked = True
        await asyncio.Event().wait()
        return ""

    def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
        return "250 2.0.0 Ok"


@pytest.mark.parametrize("early", [b"", b"EH"], ids=["silent", "half a command"])
@on_both_loops
async def test_a_client_that_leaves_before_it_is_greeted_is_not_waited_for(early: bytes) -> None:
    handler = NeverGreets()
    async with await serve(handler) as server:
        with await Client.connect(server) as client:
            await until(lambda: handler.asked)
            await client.send(early)
            client.half_close()
            await until(lambda: not server.connections)
            assert await client.rest() == []


@on_both_loops
async def test_connections_made_before_the_server_starts_have_no_delay() -> None:
    """They lie in the queue of the listening socket, and are accepted with what it had when they came."""
    (listener,) = fastsmtp.sockets.bind(["127.0.0.1:0"], 16)
    try:
        with socket.create_connection(("127.0.0.1", int(listener.address.rpartition(":")[2]))):
            accepted, _ = listener.socket.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    finally:
        fastsmtp.sockets.close([listener])


@on_both_loops
async def test_a_client_that_is_reset_right_behind_its_handshake_leaves_no_traceback(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("mx.example").private_key_and_cert_chain_pem.write_to_path(tmp_path / "mx.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    loop = asyncio.get_running_loop()
    settings = {"listen": ["tls:127.0.0.1:0"], "tls_certificate": tmp_path / "mx.pem", "deliver": "discard:"}
    async with await serve(None, **settings) as server:
        for _ in range(20):
            sock = socket.create_connection(("127.0.0.1", port_of(server)))
            sock.setblocking(False)
            coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = context.wrap_bio(coming, going, server_hostname="mx.example")
            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await loop.sock_sendall(sock, going.read())
                    coming.write(await loop.sock_recv(sock, 65536))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.send(going.read())
            sock.close()
        # No connection is open before the first is accepted, either.
        name = "tls_handshakes_total"
        await until(lambda: counted(server, name, "ok") + counted(server, name, "failed") == 20)
        await until(lambda: not server.connections)


@pytest.mark.parametrize("begun", ["implicit", "STARTTLS"])
@on_both_loops
async def test_a_reset_within_the_handshake_is_a_failed_one(begun: str, tmp_path: Path) -> None:
    trustme.CA().issue_cert("mx.example").private_key_and_cert_chain_pem.write_to_path(tmp_path / "mx.pem")
    listen = "tls:127.0.0.1:0" if begun == "implicit" else "127.0.0.1:0"
    settings = {"listen": [listen], "tls_certificate": tmp_path / "mx.pem", "deliver": "discard:"}
    async with await serve(None, **settings) as server:
        with await Client.connect(server) as client:
            if begun == "STARTTLS":
                await client.send(HELLO + b"STARTTLS\r\n")
                assert await client.codes(3) == [220, 250, 220]
            await client.send(b"\x16\x03\x01\x02")  # a handshake's first octets
            await until(lambda: counted(server, "connections_total") or begun == "implicit")
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await until(lambda: counted(server, "tls_handshakes_total", "failed") == 1)


def test_connections_leave_descriptors_for_their_messages(start: Start, mail: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (160, hard))
    try:
        server = start("--deliver", f"maildir:{mail}", "--spill-threshold", "10000")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    host, _, port = server.addresses[0].rpartition(":")
    with smtplib.SMTP(host, int(port), timeout=20) as client, contextlib.ExitStack() as others:
        for _ in range(200):
            others.enter_context(socket.create_connection((host, int(port)), timeout=20))
        server.expect("cannot accept a connection: Too many open files")
        for _ in range(5):
            assert (
                client.sendmail("a@b.example", ["d@e.example"], "Subject: x\r\n\r\n" + "text\r\n" * 4000)
                == {}
            )
    assert len(list((mail / "new").iterdir())) == 5
