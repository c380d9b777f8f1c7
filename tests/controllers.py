"""Controllers for other people's clients, the ways in which these come, and the clients: smtplib, aiosmtplib, swaks.

Knows what makes a server take those who come one way and nobody who comes without, and keeps what a handler can know
of a message and of its client. Refuses to know what is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import shutil
import smtplib
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import aiosmtplib
import pytest
import trustme
from servers import until

from fastsmtp.controller import Controller, UnixSocketController
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

    @classmethod
    def issued(cls, folder: Path) -> Tls:
        """Contexts of a new authority, its certificate in ``folder``."""
        authority = trustme.CA()
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(NAME).configure_cert(server)
        client = ssl.create_default_context()
        authority.configure_trust(client)
        trusted = folder / "trusted.pem"
        authority.cert_pem.write_to_path(trusted)
        return cls(authority, server, client, trusted)


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


class LmtpController(Controller):
    """Serves LMTP on TCP."""

    def factory(self) -> LMTP:
        return LMTP(self.handler, **self.SMTP_kwargs)


class UnixLmtpController(UnixSocketController):
    """Serves LMTP on a UNIX socket."""

    def factory(self) -> LMTP:
        return LMTP(self.handler, **self.SMTP_kwargs)


Serve = Callable[..., contextlib.AbstractContextManager[Served]]


@contextlib.contextmanager
def serving(
    tls: Tls, folder: Path, handler: object, way: Way = CLEAR, *, lmtp: bool = False, **settings: Any
) -> Iterator[Served]:
    """Serves a handler for those who come one way, in a thread."""
    settings |= way.settings(tls)
    controller: Any
    if way.unix:
        kind = UnixLmtpController if lmtp else UnixSocketController
        controller = kind(handler, folder / "socket", **settings)
    else:
        controller = (LmtpController if lmtp else Controller)(handler, "127.0.0.1", 0, **settings)
    try:
        controller.start()
        if way.unix:
            yield Served(tls, folder, path=controller.unix_socket)
        else:
            yield Served(tls, folder, (controller.hostname, controller.port))
    finally:
        controller.stop(no_assert=True)


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
