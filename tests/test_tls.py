"""TLS, begun by STARTTLS or at once: what it carries over, what it must not, and who gets no TLS at all."""

import asyncio
import smtplib
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import trustme
from dialogs import Dialog, Reply, load_all, read_replies
from oracle import Limits, oracle
from script import HOSTNAME
from servers import MAIL, Client, Keeps, counted, on_both_loops, port_of, serve, summary, until
from wires import HELLO, TO_DATA

from fastsmtp import ConfigError, Envelope, Session
from fastsmtp.config import Config
from fastsmtp.worker import Worker

STARTTLS = b"STARTTLS\r\n"


class Certificates:
    """A certificate of the server's, as the settings want it, and a context of clients who trust it."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", HOSTNAME)
        self.path = folder / "server.pem"
        certificate.private_key_and_cert_chain_pem.write_to_path(str(self.path))
        self.authority = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


async def with_smtplib(server: Worker, tls: Certificates | None, talk: Callable[[smtplib.SMTP], Any]) -> Any:
    """Runs ``talk`` with a client of smtplib, which has spoken TLS from the beginning if ``tls`` says so."""

    def run() -> Any:
        port = port_of(server)
        if tls is not None:
            client: smtplib.SMTP = smtplib.SMTP_SSL("localhost", port, timeout=10, context=tls.client)
        else:
            client = smtplib.SMTP("localhost", port, timeout=10)
        with client:
            return talk(client)

    return await asyncio.to_thread(run)


class TLSClient:
    """A client that speaks TLS from the beginning."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer, self.came = reader, writer, b""

    async def replies(self, count: int) -> list[Reply]:
        """At least so many replies."""
        while len(replies := read_replies(self.came)[0]) < count:
            octets = await self.reader.read(65536)
            assert octets, f"the server hung up after {replies}"
            self.came += octets
        self.came = b""
        return replies

    async def rest(self) -> list[Reply]:
        """All replies until the server hangs up."""
        self.came += await self.reader.read(-1)
        return read_replies(self.came)[0]


@asynccontextmanager
async def tls_client(server: Worker, certificates: Certificates) -> AsyncIterator[TLSClient]:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port_of(server), ssl=certificates.client, server_hostname="localhost"
    )
    try:
        yield TLSClient(reader, writer)
    finally:
        writer.transport.abort()


def settings_of(certificates: Certificates, begun: str = "STARTTLS", **more: object) -> dict[str, Any]:
    listen = ["127.0.0.1:0" if begun == "STARTTLS" else "tls:127.0.0.1:0"]
    return {"tls_certificate": certificates.path, "listen": listen, **more}


# --- STARTTLS -----------------------------------------------------------------------------------------------


@on_both_loops
async def test_starttls_keeps_the_session_and_forgets_what_was_said(certificates: Certificates) -> None:
    sessions: list[tuple[Session, str | None, bool, Any]] = []
    ids: list[str] = []

    class Handler(Keeps):
        def handle_NOOP(self, server: object, session: Session, envelope: Envelope, argument: str) -> str:
            session.marks = [*getattr(session, "marks", []), argument]
            ids.append(session.id)
            cipher = session.ssl.cipher() if session.ssl is not None else None
            sessions.append((session, session.host_name, session.tls, cipher))
            return "250 2.0.0 Ok"

    handler = Handler()

    def talk(client: smtplib.SMTP) -> None:
        client.ehlo("c.example")
        assert client.has_extn("STARTTLS")
        client.docmd("NOOP", "clear")
        assert client.docmd("MAIL", "FROM:<injected@b.example>")[0] == 250
        assert client.docmd("RCPT", "TO:<injected@b.example>")[0] == 250
        assert client.starttls(context=certificates.client)[0] == 220
        assert client.docmd("NOOP", "secret")[0] == 250
        assert client.docmd("MAIL", "FROM:<a@b.example>")[0] == 503
        client.ehlo("c.example")
        assert client.docmd("RCPT", "TO:<injected@b.example>")[0] == 503
        assert not client.has_extn("STARTTLS")
        assert client.has_extn("PIPELINING")
        assert client.docmd("STARTTLS") == (503, b"5.5.1 Error: TLS already active")
        client.sendmail("a@b.example", ["c@d.example"], b"text\r\n")

    async with await serve(handler, **settings_of(certificates)) as server:
        await with_smtplib(server, None, talk)
        assert counted(server, "tls_handshakes_total", "ok") == 1
        await until(lambda: server.connections == 0)
    assert handler.messages == [("a@b.example", ["c@d.example"], b"text\r\n")]
    (clear, clear_name, clear_tls, clear_cipher), (secret, secret_name, secret_tls, secret_cipher) = sessions
    assert clear is secret
    assert ids == [clear.id, clear.id]
    assert clear.marks == ["clear", "secret"]
    assert (clear_name, clear_tls, clear_cipher) == ("c.example", False, None)
    assert (secret_name, secret_tls) == (None, True)
    assert secret_cipher[2] >= 128


@pytest.mark.skipif(which("openssl") is None, reason="there is no openssl here")
@pytest.mark.parametrize("begun", ["STARTTLS", "at once"])
@on_both_loops
async def test_openssl_is_a_client(certificates: Certificates, begun: str) -> None:
    async with await serve(Keeps(), **settings_of(certificates, begun)) as server:
        where = ["-connect", f"127.0.0.1:{port_of(server)}", "-servername", "localhost", "-quiet"]
        trust = [
            "-CAfile",
            str(certificates.authority),
            "-verify_return_error",
            "-verify_hostname",
            "localhost",
        ]
        more = ["-starttls", "smtp"] if begun == "STARTTLS" else []
        done = await asyncio.to_thread(
            subprocess.run,
            ["openssl", "s_client", *where, *trust, *more],
            input=b"EHLO c.example\r\nNOOP\r\nQUIT\r\n",
            capture_output=True,
            timeout=15,
        )
        assert done.returncode == 0, done.stderr
        assert b"250 2.0.0 Ok\r\n221 2.0.0 Bye\r\n" in done.stdout


@on_both_loops
async def test_a_client_may_speak_in_the_same_segment_that_ends_the_handshake(
    certificates: Certificates,
) -> None:
    """As any client of TLS 1.3 may, and openssl's does now and then."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = certificates.client.wrap_bio(incoming, outgoing, server_hostname="localhost")
    async with await serve(Keeps(), **settings_of(certificates)) as server:
        with await Client.greeted(server) as client:
            assert (await client.ask(STARTTLS)).code == 220
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    if octets := outgoing.read():
                        await client.send(octets)
                    incoming.write(await receive(client))
            assert tls.version() == "TLSv1.3"
            tls.write(HELLO + b"NOOP\r\n")
            await client.send(outgoing.read())
            came = b""
            while len(read_replies(came)[0]) < 2:
                try:
                    came += tls.read()
                except ssl.SSLWantReadError:
                    octets = await asyncio.wait_for(receive(client), 2)
                    assert octets, "the server hung up"
                    incoming.write(octets)
            assert [reply.code for reply in read_replies(came)[0]] == [250, 250]


class SlowHello(Keeps):
    async def handle_EHLO(
        self, server: object, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        await asyncio.sleep(0.01)
        return responses


@pytest.mark.parametrize("handler", [Keeps, SlowHello])
@pytest.mark.parametrize(
    "injected",
    [b"N", b"EHLO c.example\r\n" + TO_DATA, b"\r\n" * 50_000],
    ids=["one octet", "commands", "much"],
)
@on_both_loops
async def test_what_lies_behind_starttls_is_refused(
    certificates: Certificates, handler: type[Keeps], injected: bytes
) -> None:
    async with await serve(handler(), **settings_of(certificates)) as server:
        with await Client.greeted(server, b"") as client:
            await client.send(HELLO + STARTTLS + injected)
            assert [(reply.code, reply.enhanced) for reply in await client.rest()] == [
                (250, ""),
                (554, "5.5.0"),
            ]
        await until(lambda: server.connections == 0)
        assert counted(server, "protocol_violations_total", "starttls_injection") == 1
        assert counted(server, "tls_handshakes_total", "ok") == 0


@on_both_loops
async def test_what_follows_the_reply_to_starttls_in_clear_is_no_command(certificates: Certificates) -> None:
    handler = Keeps()
    async with await serve(handler, **settings_of(certificates)) as server:
        with await Client.greeted(server) as client:
            assert (await client.ask(STARTTLS)).code == 220
            await client.send(MAIL)
            octets = b""
            while more := await receive(client):
                octets += more
            assert octets[:1] in (b"", b"\x15")  # nothing, or a TLS alert
        await until(lambda: server.connections == 0)
        await until(lambda: counted(server, "tls_handshakes_total", "failed") == 1)
        (await Client.greeted(server)).socket.close()
    assert handler.messages == []


async def receive(client: Client) -> bytes:
    try:
        return await client.loop.sock_recv(client.socket, 65536)
    except ConnectionResetError:
        return b""


@on_both_loops
async def test_starttls_without_a_certificate_is_not_offered() -> None:
    async with await serve(Keeps()) as server:
        with await Client.greeted(server, b"") as client:
            assert "STARTTLS" not in await client.says(HELLO)
            assert (await client.says(STARTTLS)).startswith("502 5.5.1")


@on_both_loops
async def test_starttls_takes_no_argument(certificates: Certificates) -> None:
    async with await serve(Keeps(), **settings_of(certificates)) as server:
        with await Client.greeted(server) as client:
            assert (await client.says(b"STARTTLS now\r\n")).startswith("501 5.5.4")
            assert (await client.ask(b"NOOP\r\n")).code == 250


@on_both_loops
async def test_mail_may_be_refused_until_there_is_tls(certificates: Certificates) -> None:
    handler = Keeps()

    def talk(client: smtplib.SMTP) -> None:
        client.starttls(context=certificates.client)
        client.sendmail("a@b.example", ["c@d.example"], b"text\r\n")

    async with await serve(handler, **settings_of(certificates, require_starttls=True)) as server:
        with await Client.greeted(server, b"") as client:
            for command in (
                b"HELO c.example",
                b"MAIL FROM:<>",
                b"RCPT TO:<c@d.example>",
                b"DATA",
                b"VRFY x",
                b"RSET",
            ):
                assert (await client.says(command + b"\r\n")).startswith("530 5.7.0")
            assert "250-STARTTLS" in await client.says(HELLO) or "250 STARTTLS" in await client.says(HELLO)
            await client.send(TO_DATA + b"NOOP\r\nQUIT\r\n")
            assert [reply.code for reply in await client.rest()] == [530, 530, 530, 250, 221]
        await with_smtplib(server, None, talk)
    assert len(handler.messages) == 1


# --- TLS from the beginning ---------------------------------------------------------------------------------


@on_both_loops
async def test_tls_from_the_beginning(certificates: Certificates) -> None:
    sessions = []

    class Handler(Keeps):
        def handle_CONNECT(self, server: object, session: Session, envelope: Envelope) -> None:
            sessions.append((session, session.tls, session.ssl, session.peer))

    handler = Handler()

    def talk(client: smtplib.SMTP) -> None:
        client.ehlo("c.example")
        assert not client.has_extn("STARTTLS")
        assert client.docmd("STARTTLS")[0] == 503
        client.sendmail("a@b.example", ["c@d.example"], b"text\r\n")

    async with await serve(handler, **settings_of(certificates, "at once", require_starttls=True)) as server:
        await with_smtplib(server, certificates, talk)
        await until(lambda: server.connections == 0)
        assert counted(server, "tls_handshakes_total", "ok") == 1
    assert len(handler.messages) == 1
    ((session, tls, ssl_object, peer),) = sessions
    assert session.tls is tls is True
    assert ssl_object.version().startswith("TLS")
    assert peer[0] == "127.0.0.1"


@on_both_loops
async def test_whoever_does_not_speak_tls_there_is_left_without_a_word(certificates: Certificates) -> None:
    calls = []

    class Handler(Keeps):
        def handle_CONNECT(self, server: object, session: Session, envelope: Envelope) -> None:
            calls.append("CONNECT")

        def handle_DISCONNECT(self, server: object, session: Session, envelope: Envelope) -> None:
            calls.append("DISCONNECT")

    async with await serve(Handler(), **settings_of(certificates, "at once")) as server:
        with await Client.connect(server) as client:
            await client.send(HELLO)
            octets = b""
            while more := await receive(client):
                octets += more
            assert octets[:1] in (b"", b"\x15")
        await asyncio.sleep(0.01)
        assert server.connections == 0
        assert calls == []  # a connection that never was


@on_both_loops
async def test_tls_spoken_to_a_port_in_clear_is_refused_at_once(certificates: Certificates) -> None:
    async with await serve(Keeps(), **settings_of(certificates)) as server:
        with await Client.greeted(server, b"") as client:
            await client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(100)))
            assert [reply.code for reply in await client.rest()] == [421]


# Some speak of STARTTLS as of something that is not there, or of TLS on a port in clear.
DIALOGS = [
    dialog
    for dialog in load_all()
    if not dialog.settings
    and len(dialog.wire) < 10_000
    and b"STARTTLS" not in dialog.wire
    and b"\x16" not in dialog.wire
]


@pytest.mark.parametrize("dialog", DIALOGS, ids=str)
@on_both_loops
async def test_a_dialog_under_tls(certificates: Certificates, dialog: Dialog) -> None:
    handler = Keeps()
    right = oracle(dialog.wire, Limits())
    async with await serve(handler, **settings_of(certificates, "at once")) as server:
        async with tls_client(server, certificates) as client:
            client.writer.write(dialog.wire)
            replies = await client.replies(len(right.replies))
            if right.closed:
                assert await client.rest() == []
        assert summary(replies, handler.messages, right.closed) == right


@pytest.mark.parametrize("begun", ["STARTTLS", "at once"])
@pytest.mark.parametrize("threshold", [100_000, 8_000_000], ids=["spilled", "in memory"])
@on_both_loops
async def test_large_messages_come_whole_under_tls(
    certificates: Certificates, begun: str, threshold: int
) -> None:
    handler = Keeps()
    contents = [b"".join(b".%d %d\r\n" % (n, m) for m in range(200_000)) for n in range(2)]

    def talk(client: smtplib.SMTP) -> None:
        if begun == "STARTTLS":
            client.starttls(context=certificates.client)
        for content in contents:
            client.sendmail("a@b.example", ["c@d.example"], content)

    async with await serve(handler, **settings_of(certificates, begun), spill_threshold=threshold) as server:
        await with_smtplib(server, certificates if begun == "at once" else None, talk)
        assert counted(server, "spilled_messages_total") == (2 if threshold < 1_000_000 else 0)
    assert [message.content for message in handler.messages] == contents


@on_both_loops
async def test_a_client_that_reads_late_under_tls_gets_everything(certificates: Certificates) -> None:
    total = 60_000
    read_now = threading.Event()
    received = bytearray()

    def talk(port: int) -> None:
        """Not one of the loops' clients: uvloop's loses what it has not read when the end comes."""
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1_000_000)  # for all that is sent
        plain.connect(("127.0.0.1", port))
        with certificates.client.wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(b"NOOP\r\n" * total + b"QUIT\r\n")
            read_now.wait(10)
            while octets := client.recv(65536):
                received.extend(octets)

    async with await serve(Keeps(), **settings_of(certificates, "at once")) as server:
        server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        talking = asyncio.create_task(asyncio.to_thread(talk, port_of(server)))
        await until(lambda: server.connections == 1)
        (connection,) = server._engine.live
        await until(lambda: connection.unsent)
        seen = []
        while connection.transport is not None and len(seen) < 50:
            seen.append(connection.transport.get_write_buffer_size())
            await asyncio.sleep(0.002)
        read_now.set()
        await talking
    assert max(seen) < 200_000
    codes = [reply.code for reply in read_replies(bytes(received))[0]]
    assert codes == [220] + [250] * total + [221]


@on_both_loops
async def test_nothing_is_done_until_a_slow_hook_trusts_the_client(certificates: Certificates) -> None:
    decide = asyncio.Event()

    class Handler(Keeps):
        async def handle_STARTTLS(self, server: object, session: Session, envelope: Envelope) -> bool:
            await decide.wait()
            return False

    async with await serve(Handler(), **settings_of(certificates)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
        assert (await reader.readline()).startswith(b"220 ")
        writer.write(STARTTLS)
        assert (await reader.readline()).startswith(b"220 ")
        await writer.start_tls(certificates.client, server_hostname="localhost")
        writer.write(HELLO + b"NOOP\r\n")
        await writer.drain()
        await until(lambda: counted(server, "tls_handshakes_total", "ok") == 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert counted(server, "commands_total", "EHLO") == 0
        decide.set()
        assert (await reader.readline()).startswith(b"554 ")
        writer.close()


# --- clients that go away, and the server that does ---------------------------------------------------------


@pytest.mark.parametrize("begun", ["STARTTLS", "at once"])
@on_both_loops
async def test_a_handshake_has_a_deadline(certificates: Certificates, begun: str) -> None:
    async with await serve(Keeps(), **settings_of(certificates, begun, tls_handshake_timeout=0.2)) as server:
        with await Client.connect(server) as client:
            if begun == "STARTTLS":
                assert await client.codes(1) == [220]
                assert (await client.ask(STARTTLS)).code == 220
            while await receive(client):
                pass
        await until(lambda: server.connections == 0, "the connection is kept for ever")


@on_both_loops
async def test_a_handshake_that_fails_is_counted(certificates: Certificates) -> None:
    async with await serve(Keeps(), **settings_of(certificates)) as server:
        with await Client.connect(server) as client:
            assert await client.codes(1) == [220]
            assert (await client.ask(STARTTLS)).code == 220
            await client.send(HELLO)
            while await receive(client):
                pass
        await until(lambda: counted(server, "tls_handshakes_total", "failed") == 1, "it is not counted")


@pytest.mark.parametrize("end", ["FIN", "RST"])
@on_both_loops
async def test_a_client_may_go_away_during_the_handshake(certificates: Certificates, end: str) -> None:
    async with await serve(Keeps(), **settings_of(certificates)) as server:
        for sent in (b"", b"\x16\x03\x01"):
            with await Client.greeted(server) as client:
                assert (await client.ask(STARTTLS)).code == 220
                await client.send(sent)
                await asyncio.sleep(0.01)  # the handshake has begun, which nobody can see from here
                if end == "RST":
                    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await until(lambda: server.connections == 0, "the connection is kept for ever")


@on_both_loops
async def test_the_server_may_go_away_during_the_handshake(certificates: Certificates) -> None:
    server = await serve(Keeps(), **settings_of(certificates))
    with await Client.greeted(server) as client:
        assert (await client.ask(STARTTLS)).code == 220
        await asyncio.sleep(0.01)
        await server.close()
        await until(lambda: server.connections == 0, "the connection is never given up")
        assert await receive(client) == b""  # and no reply in clear


@on_both_loops
async def test_a_client_that_goes_away_under_tls_leaves_the_hook_to_finish(
    certificates: Certificates,
) -> None:
    go, done = asyncio.Event(), []

    class Handler:
        async def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
            done.append("begun")
            await go.wait()
            done.append("done")
            return "250 2.0.0 Ok"

    async with await serve(Handler(), **settings_of(certificates, "at once")) as server:
        async with tls_client(server, certificates) as client:
            client.writer.write(MAIL)
            await until(lambda: done)
            client.writer.close()
            await until(lambda: server.connections == 0)
        go.set()
        await until(lambda: counted(server, "messages_total", "accepted") == 1)


@pytest.mark.parametrize("how", ["close", "drain"])
@on_both_loops
async def test_clients_under_tls_are_told_that_the_server_goes_away(
    certificates: Certificates, how: str
) -> None:
    server = await serve(Keeps(), **settings_of(certificates, "at once"))
    async with tls_client(server, certificates) as client:
        client.writer.write(HELLO)
        assert len(await client.replies(2)) == 2
        await (server.close() if how == "close" else server.drain(5))
        assert [(reply.code, reply.enhanced) for reply in await client.rest()] == [(421, "4.3.2")]
    await until(lambda: server.connections == 0)


@on_both_loops
async def test_a_silent_client_under_tls_is_told_and_left(certificates: Certificates) -> None:
    settings = settings_of(certificates, "at once", idle_timeout=0.2)
    async with await serve(Keeps(), **settings) as server, tls_client(server, certificates) as client:
        assert [reply.code for reply in await client.rest()] == [220, 421]


# --- certificates that are none -----------------------------------------------------------------------------


@on_both_loops
async def test_a_certificate_that_is_none_is_told_at_once(certificates: Certificates, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(ConfigError, match=r"empty\.pem"):
        await serve(Keeps(), tls_certificate=tmp_path / "empty.pem")
    other = Certificates(tmp_path)
    with pytest.raises(ConfigError, match="tls_key"):
        await serve(Keeps(), tls_certificate=certificates.path, tls_key=other.path)
    with pytest.raises(ConfigError, match="tls_certificate"):
        await serve(Keeps(), listen=["tls:127.0.0.1:0"])
    assert Config.of(tls_certificate=certificates.path).tls_key is None
