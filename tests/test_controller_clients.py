"""Other people's clients against a ``Controller``: whatever way they come, what they sent is what the handler gets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import email.policy
import ipaddress
import logging
import re
import shutil
import smtplib
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import EmailMessage
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import aiosmtplib
import pytest
import trustme
from processes import stuffed
from servers import LOOPS, on_both_loops, until

from fastsmtp.controller import (
    Controller,
    UnixSocketController,
    UnthreadedController,
)
from fastsmtp.lmtp import LMTP
from fastsmtp.proxy_protocol import V2_SIGNATURE, ProxyData
from fastsmtp.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

PATIENCE = 20.0  # seconds for what takes milliseconds
ME, YOU, YOUR_FRIEND = "me@a.example", "you@b.example", "friend@b.example"
HELLO = "client.example"
NAME = "localhost"  # in the server's certificate
USER, PASSWORD = "me", "correct horse"
CREDENTIALS = LoginPassword(USER.encode(), PASSWORD.encode())
MESSAGE = b"Subject: short\r\n\r\ntext\r\n"
DOTS = "Subject: dötted\r\n\r\n.\r\n..\r\n.a\r\na.\r\n\r\n..\r\n".encode()
OCTETS = b"Subject: octets\r\n\r\n" + bytes({*range(1, 256)} - {10, 13}) * 3 + b"\r\n"
LARGE = b"Subject: large\r\n\r\n" + (b".\r\n\r\n." + b"text " * 15 + b"\r\n") * (20 * 2**20 // 83)

SOURCES = {0: None, 1: ("192.0.2.7", 40007), 2: ("2001:db8::7", 40007)}  # by version of the PROXY header
TARGETS = {1: "198.51.100.1", 2: "2001:db8::1"}
_ADDRESSES = b"".join(ipaddress.ip_address(ip).packed for ip in (SOURCES[2][0], TARGETS[2]))  # type: ignore[index]
HEADERS = {
    0: b"",
    1: b"PROXY TCP4 192.0.2.7 198.51.100.1 40007 25\r\n",
    2: V2_SIGNATURE + b"\x21\x21" + struct.pack("!H32sHH", 36, _ADDRESSES, 40007, 25),
}


class Tls(NamedTuple):
    """Contexts of a server and of a client that trusts it, and the authority's certificate in a file."""

    authority: trustme.CA
    server: ssl.SSLContext
    client: ssl.SSLContext
    trusted: Path


class Way(NamedTuple):
    """How a client comes: with ``"starttls"``, ``"implicit"`` or no TLS, with a mechanism of AUTH or none, with a
    PROXY header of a version or none, over TCP or over a UNIX socket.
    """

    tls: str = ""
    auth: str = ""
    proxy: int = 0
    unix: bool = False

    def __str__(self) -> str:
        words = (self.tls, self.auth, self.proxy and f"PROXY {self.proxy}", self.unix and "UNIX")
        return " ".join(str(word) for word in words if word) or "clear"

    def settings(self, tls: Tls) -> dict[str, Any]:
        """What makes a controller take who comes this way, and nobody who comes without."""
        found: dict[str, Any] = {}
        if self.tls == "starttls":
            found |= {"tls_context": tls.server, "require_starttls": True}
        elif self.tls:
            found |= {"ssl_context": tls.server}
        if self.auth:
            secure = bool(self.tls)  # else there is a warning
            found |= {"authenticator": authenticate, "auth_required": secure, "auth_require_tls": secure}
        if self.proxy:
            found |= {"proxy_protocol_timeout": PATIENCE}
        return found


CLEAR = Way()


@dataclass
class Kept:
    """A message, and what the handler could know of its client."""

    content: Any
    original_content: bytes | None
    mail_from: str | None
    rcpt_tos: list[str]
    mail_options: list[str]
    smtp_utf8: bool
    peer: Any
    host_name: str | None
    tls: bool
    cipher: Any
    authenticated: bool
    auth_data: Any
    source: tuple[str, int] | None


class Keeps:
    """Takes every message and every PROXY header."""

    def __init__(self) -> None:
        self.kept: list[Kept] = []
        self.headers: list[ProxyData] = []

    async def handle_PROXY(self, server: SMTP, session: Session, envelope: Envelope, data: ProxyData) -> bool:
        self.headers.append(data)
        return True

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        header = session.proxy_data
        kept = Kept(
            content=envelope.content,
            original_content=envelope.original_content,
            mail_from=envelope.mail_from,
            rcpt_tos=list(envelope.rcpt_tos),
            mail_options=list(envelope.mail_options),
            smtp_utf8=envelope.smtp_utf8,
            peer=session.peer,
            host_name=session.host_name,
            tls=session.tls,
            cipher=session.ssl["cipher"] if isinstance(session.ssl, dict) else None,
            authenticated=bool(session.authenticated),
            auth_data=session.auth_data,
            source=None if header is None else (str(header.src_addr), header.src_port),
        )
        self.kept.append(kept)
        return "250 2.0.0 kept"

    @property
    def contents(self) -> list[Any]:
        return [kept.content for kept in self.kept]


def authenticate(
    server: SMTP, session: Session, envelope: Envelope, mechanism: str, auth_data: LoginPassword
) -> AuthResult:
    return AuthResult(success=auth_data == CREDENTIALS, handled=False, auth_data=(mechanism, auth_data))


class Served:
    """A running controller, and what clients need to come to it."""

    def __init__(self, tls: Tls, folder: Path, address: tuple[str, int] = ("", 0), path: str = "") -> None:
        self.tls = tls
        self.folder = folder
        self.address = address
        self.path = path

    def dial(self, header: bytes = b"") -> socket.socket:
        """A connection that began with a PROXY header."""
        sock = socket.socket(socket.AF_UNIX if self.path else socket.AF_INET)
        sock.settimeout(PATIENCE)
        sock.connect(self.path or self.address)
        sock.sendall(header)
        return sock


Serve = Callable[..., contextlib.AbstractContextManager[Served]]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(NAME).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    trusted = tmp_path_factory.mktemp("authority") / "trusted.pem"
    authority.cert_pem.write_to_path(trusted)
    return Tls(authority, server, client, trusted)


@pytest.fixture(params=LOOPS.values(), ids=LOOPS)
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    made = request.param()
    yield made
    made.close()


@pytest.fixture
def serve(loop: asyncio.AbstractEventLoop, tls: Tls, tmp_path: Path) -> Serve:
    """Serves a handler for those who come one way, in a thread with either loop."""

    @contextlib.contextmanager
    def serve(handler: object, way: Way = CLEAR, *, lmtp: bool = False, **settings: Any) -> Iterator[Served]:
        settings |= {"loop": loop, **way.settings(tls)}
        controller: Any
        if way.unix:
            kind = UnixLmtpController if lmtp else UnixSocketController
            controller = kind(handler, tmp_path / "socket", **settings)
        else:
            controller = (LmtpController if lmtp else Controller)(handler, "127.0.0.1", 0, **settings)
        try:
            controller.start()
            if way.unix:
                yield Served(tls, tmp_path, path=controller.unix_socket)
            else:
                yield Served(tls, tmp_path, (controller.hostname, controller.port))
        finally:
            controller.stop(no_assert=True)

    return serve


@pytest.fixture(autouse=True)
def _nobody_complains(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    records = caplog.get_records("call")
    assert [record.getMessage() for record in records if record.levelno >= logging.WARNING] == []


class LmtpController(Controller):
    """Serves LMTP on TCP."""

    def factory(self) -> LMTP:
        return LMTP(self.handler, **self.SMTP_kwargs)


class UnixLmtpController(UnixSocketController):
    """Serves LMTP on a UNIX socket."""

    def factory(self) -> LMTP:
        return LMTP(self.handler, **self.SMTP_kwargs)


# --- the clients --------------------------------------------------------------------------------------------


def smtplib_client(
    served: Served, way: Way = CLEAR, header: bytes | None = None, kind: type[smtplib.SMTP] = smtplib.SMTP
) -> smtplib.SMTP:
    """A client of smtplib that comes this way, except for AUTH; ``kind`` may be ``smtplib.LMTP``."""
    sock = served.dial(HEADERS[way.proxy] if header is None else header)
    with contextlib.ExitStack() as stack:
        stack.callback(sock.close)
        if way.tls == "implicit":
            sock = served.tls.client.wrap_socket(sock, server_hostname=NAME)
            stack.callback(sock.close)

        class Dialled(kind):  # type: ignore[misc,valid-type]
            def _get_socket(self, *_: object) -> socket.socket:
                return sock

        client: smtplib.SMTP = Dialled(NAME, local_hostname=HELLO)
        if way.tls == "starttls":
            assert client.starttls(context=served.tls.client)[0] == 220
        stack.pop_all()
    return client


def smtplib_login(client: smtplib.SMTP, mechanism: str, password: str = PASSWORD) -> None:
    client.ehlo_or_helo_if_needed()
    client.user, client.password = USER, password
    client.auth(mechanism, getattr(client, f"auth_{mechanism.lower()}"))


def by_smtplib(served: Served, way: Way, messages: list[bytes]) -> None:
    with smtplib_client(served, way) as client:
        if way.auth:
            smtplib_login(client, way.auth)
        for message in messages:
            assert client.sendmail(ME, [YOU, YOUR_FRIEND], message, ["BODY=8BITMIME"]) == {}


@contextlib.asynccontextmanager
async def aiosmtplib_client(served: Served, way: Way = CLEAR) -> AsyncIterator[aiosmtplib.SMTP]:
    """A client of aiosmtplib that comes this way, except for AUTH, and that is gone at the end."""
    sock = served.dial(HEADERS[way.proxy])
    sock.setblocking(False)
    client = aiosmtplib.SMTP(
        hostname=NAME,
        sock=sock,
        local_hostname=HELLO,
        timeout=PATIENCE,
        use_tls=way.tls == "implicit",
        start_tls=way.tls == "starttls",
        tls_context=served.tls.client,
    )
    async with client:
        yield client
    await until(lambda: sock.fileno() == -1, "aiosmtplib does not wait for the end of TLS")


async def aiosmtplib_login(client: aiosmtplib.SMTP, mechanism: str, password: str = PASSWORD) -> None:
    await client.ehlo()
    await getattr(client, f"auth_{mechanism.lower()}")(USER, password)


def by_aiosmtplib(served: Served, way: Way, messages: list[bytes]) -> None:
    async def send() -> None:
        async with aiosmtplib_client(served, way) as client:
            if way.auth:
                await aiosmtplib_login(client, way.auth)
            for message in messages:
                options = ["BODY=8BITMIME"]
                refused, _ = await client.sendmail(ME, [YOU, YOUR_FRIEND], message, mail_options=options)
                assert refused == {}

    asyncio.run(send())


def swaks(
    served: Served, way: Way, message: bytes, *arguments: str, password: str = PASSWORD
) -> tuple[int, str]:
    """What swaks ends with, and what it says."""
    program = shutil.which("swaks")
    if program is None:
        pytest.skip("swaks is not installed")
    (served.folder / "message").write_bytes(message.removesuffix(b"\r\n"))  # it adds the last CRLF
    command = [program, "--helo", HELLO, "--from", ME, "--to", f"{YOU},{YOUR_FRIEND}", "--data", "@message"]
    host, port = served.address
    command += ["--socket", served.path] if served.path else ["--server", host, "--port", str(port)]
    if way.tls:
        trust = ("--tls-verify", "--tls-ca-path", str(served.tls.trusted))
        command += ["--tls" if way.tls == "starttls" else "--tls-on-connect", *trust]
    if way.auth:
        command += ["--auth", way.auth, "--auth-user", USER, "--auth-password", password]
    source = SOURCES[way.proxy]
    if source is not None:
        family = {1: "TCP4", 2: "AF_INET6"}[way.proxy]
        command += ["--proxy-version", str(way.proxy), "--proxy-family", family]
        command += ["--proxy-source", source[0], "--proxy-source-port", str(source[1])]
        command += ["--proxy-dest", TARGETS[way.proxy], "--proxy-dest-port", "25"]
    done = subprocess.run(
        [*command, *arguments], cwd=served.folder, capture_output=True, timeout=PATIENCE, check=False
    )
    return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")


def by_swaks(served: Served, way: Way, messages: list[bytes]) -> None:
    for message in messages:
        code, said = swaks(served, way, message)
        assert code == 0, said


Send = Callable[[Served, Way, list[bytes]], None]
CLIENTS: dict[str, Send] = {"smtplib": by_smtplib, "aiosmtplib": by_aiosmtplib, "swaks": by_swaks}
# What swaks sends by itself: it announces nothing, and it has no 8BITMIME.
MESSAGES = {"smtplib": [DOTS, OCTETS], "aiosmtplib": [DOTS, OCTETS], "swaks": [DOTS]}
each_client = pytest.mark.parametrize("client", CLIENTS)


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


def test_the_peer_is_the_proxy_and_the_source_its_client(serve: Serve) -> None:
    handler = Keeps()
    way = Way("starttls", "PLAIN", 1)
    with serve(handler, way) as served, smtplib_client(served, way) as client:
        assert client.sock is not None
        own = client.sock.getsockname()
        smtplib_login(client, "PLAIN")
        client.sendmail(ME, YOU, MESSAGE)
    (kept,) = handler.kept
    assert (kept.peer, kept.source, kept.auth_data) == (own, SOURCES[1], ("PLAIN", CREDENTIALS))
    (header,) = handler.headers
    assert (str(header.dst_addr), header.dst_port) == (TARGETS[1], 25)


# --- PROXY --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls_way", ["", "starttls", "implicit"])
@pytest.mark.parametrize(
    ("header", "source"),
    [
        (b"PROXY UNKNOWN\r\n", (None, None)),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\n", ("2001:db8::7", 1)),
        (V2_SIGNATURE + b"\x20\x00\x00\x00", (None, None)),  # LOCAL: a balancer that looks whether we live
        (
            V2_SIGNATURE + b"\x21\x11\x00\x12\xc0\x00\x02\x07\xc6\x33\x64\x01\x9c\x47\x00\x19\x05\x00\x03abc",
            SOURCES[1],
        ),
    ],
    ids=["UNKNOWN", "TCP6", "LOCAL", "vectors"],
)
def test_headers_of_other_kinds(
    serve: Serve, tls_way: str, header: bytes, source: tuple[str | None, int | None]
) -> None:
    handler = Keeps()
    way = Way(tls_way, "", 2)
    with serve(handler, way) as served, smtplib_client(served, way, header) as client:
        assert client.sendmail(ME, YOU, DOTS) == {}
    assert handler.contents == [DOTS]
    (data,) = handler.headers
    assert (data.src_addr and str(data.src_addr), data.src_port) == source
    assert bytes(data.whole_raw) == header
    if b"abc" in header:
        assert data.tlv is not None
        assert data.tlv.UNIQUE_ID == b"abc"


@contextlib.contextmanager
def balancer(served: Served, header: bytes) -> Iterator[Served]:
    """Takes one client to the server, and puts a header in one piece with the first that the client says."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(PATIENCE)

    def carry(source: socket.socket, target: socket.socket, first: bytes = b"") -> None:
        with contextlib.suppress(OSError):
            while octets := source.recv(1 << 16):
                target.sendall(first + octets)
                first = b""
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def balance() -> None:
        client, _ = listener.accept()
        with client, served.dial() as server:
            back = threading.Thread(target=carry, args=(server, client))
            back.start()
            carry(client, server, header)
            back.join()

    thread = threading.Thread(target=balance)
    thread.start()
    try:
        with listener:
            yield Served(served.tls, served.folder, listener.getsockname())
            thread.join(PATIENCE)
    finally:
        assert not thread.is_alive()


@pytest.mark.parametrize("version", [1, 2])
@each_client
def test_a_header_may_come_in_one_piece_with_the_first_octets_of_tls(
    serve: Serve, client: str, version: int
) -> None:
    handler = Keeps()
    with (
        serve(handler, Way("implicit", "PLAIN", version)) as served,
        balancer(served, HEADERS[version]) as there,
    ):
        CLIENTS[client](there, Way("implicit", "PLAIN"), MESSAGES[client])
    assert handler.contents == MESSAGES[client]
    assert {kept.source for kept in handler.kept} == {SOURCES[version]}
    assert {kept.auth_data for kept in handler.kept} == {("PLAIN", CREDENTIALS)}


def test_a_handler_may_refuse_a_header(serve: Serve) -> None:
    class Refuses(Keeps):
        async def handle_PROXY(self, *arguments: Any) -> bool:
            return False

    handler = Refuses()
    with serve(handler, Way(proxy=1)) as served:
        with pytest.raises(smtplib.SMTPServerDisconnected):
            smtplib_client(served, Way(proxy=1))
        code, said = swaks(served, Way(proxy=1), MESSAGE)
    assert code != 0
    assert "<-" not in said
    assert handler.kept == []


# --- AUTH ---------------------------------------------------------------------------------------------------

MECHANISMS = ["PLAIN", "LOGIN"]


@pytest.mark.parametrize(
    "way", [Way(*parts) for parts in product(("", "starttls", "implicit"), MECHANISMS)], ids=str
)
def test_a_wrong_password_is_refused_and_the_right_one_taken_after_it(serve: Serve, way: Way) -> None:
    handler = Keeps()

    async def by_aiosmtplib() -> None:
        async with aiosmtplib_client(served, way) as client:
            with pytest.raises(aiosmtplib.SMTPAuthenticationError) as refusal:
                await aiosmtplib_login(client, way.auth, "wrong")
            assert refusal.value.code == 535
            await aiosmtplib_login(client, way.auth)
            await client.sendmail(ME, [YOU], OCTETS)

    with serve(handler, way) as served:
        with smtplib_client(served, way) as client:
            for password in ("wrong", "", "correct horse "):
                with pytest.raises(smtplib.SMTPAuthenticationError) as refusal:
                    smtplib_login(client, way.auth, password)
                assert refusal.value.smtp_code == 535
            smtplib_login(client, way.auth)
            assert client.docmd("AUTH", "PLAIN")[0] == 503
            client.sendmail(ME, YOU, DOTS)
        asyncio.run(by_aiosmtplib())
        code, said = swaks(served, way, MESSAGE, password="wrong")
        assert (code, "535 5.7.8 Authentication credentials invalid" in said) == (28, True), said
    assert handler.contents == [DOTS, OCTETS]
    assert {kept.auth_data for kept in handler.kept} == {(way.auth, CREDENTIALS)}


@pytest.mark.parametrize("way", [Way("starttls", "PLAIN"), Way("implicit", "PLAIN")], ids=str)
def test_nobody_sends_without_auth_where_it_is_required(serve: Serve, way: Way) -> None:
    handler = Keeps()
    without = way._replace(auth="")

    async def by_aiosmtplib() -> None:
        async with aiosmtplib_client(served, without) as client:
            with pytest.raises(aiosmtplib.SMTPSenderRefused) as refusal:
                await client.sendmail(ME, [YOU], MESSAGE)
            assert refusal.value.code == 530

    with serve(handler, way) as served:
        with smtplib_client(served, without) as client:
            with pytest.raises(smtplib.SMTPSenderRefused) as refusal:
                client.sendmail(ME, YOU, MESSAGE)
            assert refusal.value.smtp_code == 530
            smtplib_login(client, "PLAIN")
            client.sendmail(ME, YOU, MESSAGE)
        asyncio.run(by_aiosmtplib())
        code, said = swaks(served, without, MESSAGE)
        assert (code, "530 5.7.0 Authentication required" in said) == (23, True), said
    assert handler.contents == [MESSAGE]


def test_a_password_is_asked_for_only_under_tls(serve: Serve) -> None:
    handler = Keeps()
    way = Way("starttls", "PLAIN")
    with serve(handler, way) as served, smtplib_client(served) as client:
        client.ehlo()
        assert "auth" not in client.esmtp_features
        with pytest.raises(smtplib.SMTPNotSupportedError):
            client.login(USER, PASSWORD)
        with pytest.raises(smtplib.SMTPSenderRefused) as refusal:
            client.sendmail(ME, YOU, MESSAGE)
        assert (refusal.value.smtp_code, refusal.value.smtp_error) == (
            530,
            b"Must issue a STARTTLS command first",
        )
        client.starttls(context=served.tls.client)
        client.ehlo()
        assert "starttls" not in client.esmtp_features
        assert client.login(USER, PASSWORD, initial_response_ok=False)[0] == 235
        client.sendmail(ME, YOU, MESSAGE)
    assert handler.contents == [MESSAGE]


@pytest.mark.parametrize("initial", [True, False])
def test_auth_callback(serve: Serve, initial: bool) -> None:
    asked: list[tuple[str, bytes, bytes]] = []

    def callback(mechanism: str, login: bytes, password: bytes) -> bool:
        asked.append((mechanism, login, password))
        return mechanism == "LOGIN"

    handler = Keeps()
    way = Way("implicit")
    with serve(handler, way, auth_callback=callback) as served, smtplib_client(served, way) as client:
        client.login(USER, PASSWORD, initial_response_ok=initial)  # tries PLAIN before LOGIN
        client.sendmail(ME, YOU, MESSAGE)
    assert asked == [("PLAIN", *CREDENTIALS), ("LOGIN", *CREDENTIALS)]
    assert handler.kept[0].authenticated


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_no_log_tells_a_clients_password(
    serve: Serve, mechanism: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    way = Way("starttls", mechanism)
    with serve(Keeps(), way) as served:
        for client, send in CLIENTS.items():
            send(served, way, MESSAGES[client])
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "AUTH" in told
    encoded = [base64.b64encode(text.encode()).decode() for text in (PASSWORD, f"\0{USER}\0{PASSWORD}")]
    assert not any(secret in told for secret in (PASSWORD, *encoded))


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


# --- LMTP ---------------------------------------------------------------------------------------------------


class Delivers(Keeps):
    """Gives each recipient a status of its own, and does not know one."""

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("unknown"):
            return "550 5.1.1 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(  # type: ignore[override]
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> list[str]:
        await super().handle_DATA(server, session, envelope)
        return [
            f"452 4.2.2 {address} is full" if address.startswith("full") else f"250 2.0.0 {address} has it"
            for address in envelope.rcpt_tos
        ]


LMTP_WAYS = [CLEAR, Way(unix=True), Way("starttls", "PLAIN"), Way("starttls", "LOGIN", 2, unix=True)]


@pytest.mark.parametrize("way", LMTP_WAYS, ids=str)
def test_lmtp_tells_of_each_recipient(serve: Serve, way: Way) -> None:
    handler = Delivers()
    with serve(handler, way, lmtp=True) as served, smtplib_client(served, way, kind=smtplib.LMTP) as client:
        if way.auth:
            smtplib_login(client, way.auth)
        for message in (DOTS, OCTETS):
            client.ehlo_or_helo_if_needed()
            assert client.mail(ME)[0] == 250
            recipients = (YOU, "unknown@b.example", "full@b.example", YOUR_FRIEND)
            assert [client.rcpt(recipient)[0] for recipient in recipients] == [250, 550, 250, 250]
            replies = [client.data(message), client.getreply(), client.getreply()]
            assert replies == [
                (250, b"2.0.0 you@b.example has it"),
                (452, b"4.2.2 full@b.example is full"),
                (250, b"2.0.0 friend@b.example has it"),
            ]
    assert handler.contents == [DOTS, OCTETS]
    for kept in handler.kept:
        assert kept.rcpt_tos == [YOU, "full@b.example", YOUR_FRIEND]
        assert kept.auth_data == ((way.auth, CREDENTIALS) if way.auth else None)
        assert (kept.source, kept.host_name, kept.tls) == (SOURCES[way.proxy], HELLO, bool(way.tls))


@pytest.mark.parametrize("way", LMTP_WAYS, ids=str)
def test_swaks_by_lmtp(serve: Serve, way: Way) -> None:
    handler = Delivers()
    everyone = f"{YOU},unknown@b.example,full@b.example,{YOUR_FRIEND}"
    with serve(handler, way, lmtp=True) as served:
        code, said = swaks(served, way, DOTS, "--protocol", "LMTP", "--to", everyone)
        assert code == 0, said
    assert handler.contents == [DOTS]
    told = [line for line in said.splitlines() if "has it" in line or "is full" in line]
    assert [line.partition(" ")[2].strip() for line in told] == [
        "250 2.0.0 you@b.example has it",
        "452 4.2.2 full@b.example is full",
        "250 2.0.0 friend@b.example has it",
    ]


@pytest.mark.parametrize("unix", [False, True])
def test_one_status_holds_for_all_recipients(serve: Serve, unix: bool) -> None:
    handler = Keeps()
    with serve(handler, Way(unix=unix), lmtp=True) as served:
        code, said = swaks(served, CLEAR, DOTS, "--protocol", "LMTP")
    assert (code, said.count("250 2.0.0 kept")) == (0, 2), said
    assert handler.contents == [DOTS]


def test_smtplib_lmtp_finds_a_socket_file(serve: Serve) -> None:
    handler = Keeps()
    with (
        serve(handler, Way(unix=True), lmtp=True) as served,
        smtplib.LMTP(served.path, local_hostname=HELLO) as client,
    ):
        assert client.sendmail(ME, YOU, DOTS) == {}
        assert client.sendmail(ME, YOU, OCTETS) == {}
    assert handler.contents == [DOTS, OCTETS]


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
