"""Other people's clients: what they put on the wire is what lies in the mailbox, octet for octet."""

import asyncio
import base64
import contextlib
import os
import random
import re
import shutil
import smtplib
import ssl
import subprocess
import threading
from email.message import EmailMessage
from pathlib import Path
from typing import Self

import pytest
from processes import (
    PATIENCE,
    Server,
    Start,
    await_true,
    delivered,
    unstuffed,
    without_trace,
)

NODEMAILER = "7.0.10"


@pytest.fixture
def server(start: Start, mail: Path, tmp_path: Path) -> Server:
    """Spills what is large, and shows its figures."""
    return start(
        *("--workers", "2", "--deliver", f"maildir:{mail}", "--metrics", "127.0.0.1:0"),
        *("--spill-threshold", "300KiB", "--spill-directory", str(tmp_path)),
    )


class Tap:
    """Stands between clients and a server, hands all on, and keeps what each client said."""

    def __init__(self, address: str) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self._target = address.rpartition(":")[::2]
        self._said: list[bytearray] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._listens = threading.Event()
        self._stop = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()

    async def _run(self) -> None:
        server = await asyncio.start_server(self._tap, self.host, 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listens.set()
        await self._stop.wait()
        server.close()
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=PATIENCE)

    async def _tap(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        host, port = self._target
        from_server, to_server = await asyncio.open_connection(host, int(port))
        said = bytearray()
        self._said.append(said)

        async def client_to_server() -> None:
            while data := await from_client.read(1 << 16):
                said.extend(data)
                to_server.write(data)
                await to_server.drain()
            to_server.write_eof()

        async def server_to_client() -> None:
            while data := await from_server.read(1 << 16):
                to_client.write(data)
                await to_client.drain()

        with contextlib.suppress(ConnectionError):  # smtp-source resets when it has said QUIT
            await asyncio.gather(client_to_server(), server_to_client())
        for writer in (to_client, to_server):
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        self._under_way.discard(task)

    def contents(self) -> list[bytes]:
        """The content of each message that went through, as it was before dot-stuffing."""
        found = []
        for said in self._said:
            rest = bytes(said)
            while begin := re.search(rb"\r\ndata\r\n", rest, re.I):
                end = rest.index(b"\r\n.\r\n", begin.end() - 2) + 5
                found.append(unstuffed(rest[begin.end() : end]))
                rest = rest[end - 2 :]
        return found

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listens.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)
        self._loop.close()


def _tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def _lines(size: int) -> str:
    """Mail text of at least ``size`` characters with dots wherever they may hurt."""
    chance = random.Random(size)
    lines = ["Subject: dots", "", ".", "..", ".a", "a.", "", "."]
    while size > 0:
        lines.append(chance.choice(("", ".", "..", "...")) + "text " * chance.randrange(14))
        size -= len(lines[-1]) + 2
    return "\n".join(lines) + "\n"


def _check(tap: Tap, mail: Path, count: int) -> None:
    sent, found = tap.contents(), delivered(mail)
    assert len(sent) == len(found) == count
    assert sorted(map(without_trace, found)) == sorted(sent)


# --- smtplib ------------------------------------------------------------------------------------------------


def test_smtplib(server: Server, mail: Path) -> None:
    with Tap(server.addresses[0]) as tap, smtplib.SMTP(tap.host, tap.port, timeout=PATIENCE) as client:
        assert client.ehlo()[0] == 250
        assert {"size", "8bitmime", "pipelining", "enhancedstatuscodes", "smtputf8"} <= set(
            client.esmtp_features
        )
        for size in (100, 10_000, 1_000_000):
            assert client.sendmail("me@a.example", ["one@b.example", "two@b.example"], _lines(size)) == {}
        client.sendmail("me@a.example", ["one@b.example"], b"")
        message = EmailMessage()
        message["From"], message["To"] = "mé@a.example", "yöu@b.example"
        message["Subject"] = "dots and more"
        message.set_content("Grüße\n.\n..\n")
        message.add_attachment(
            random.Random(1).randbytes(500_000), maintype="application", subtype="octet-stream"
        )
        assert client.send_message(message) == {}
        assert client.docmd("NOOP")[0] == 250
    _check(tap, mail, 5)
    assert server.metrics()["fastsmtp_spilled_messages_total"] == 2
    text = b"".join(delivered(mail))
    assert b"Return-Path: <m\xc3\xa9@a.example>\r\nDelivered-To: y\xc3\xb6u@b.example\r\n" in text
    assert b" with UTF8SMTP id " in text


def test_smtplib_without_esmtp_and_with_refusals(server: Server, mail: Path) -> None:
    with smtplib.SMTP(*_place(server), timeout=PATIENCE) as client:
        assert client.helo("old.example")[0] == 250
        refused = client.sendmail("me@a.example", ["good@b.example", "bad@@b.example"], "Subject: x\n\nx\n")
        assert list(refused) == ["bad@@b.example"]
        assert refused["bad@@b.example"][0] == 501
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            client.sendmail("me@a.example", ["bad@@b.example"], "Subject: x\n\nx\n")
    (message,) = delivered(mail)
    assert b"Delivered-To: good@b.example\r\nReceived: from old.example ([127.0.0.1])\r\n" in message
    assert b" with SMTP id " in message


def test_smtplib_meets_the_limit_of_size(start: Start, mail: Path) -> None:
    server = start("--deliver", f"maildir:{mail}", "--max-message-size", "1MiB")
    with smtplib.SMTP(*_place(server), timeout=PATIENCE) as client:
        with pytest.raises(smtplib.SMTPSenderRefused) as announced:  # MAIL with SIZE
            client.sendmail("me@a.example", ["you@b.example"], "x" * ((1 << 20) + 1))
        assert announced.value.smtp_code == 552
        client.mail("me@a.example")
        client.rcpt("you@b.example")
        code, _ = client.data("x" * (1 << 20))
        assert code == 552
        assert client.sendmail("me@a.example", ["you@b.example"], "A:" + "x" * ((1 << 20) - 4) + "\r\n") == {}
    (message,) = delivered(mail)
    assert len(without_trace(message)) == 1 << 20


def test_smtplib_over_tls(start: Start, mail: Path, certificate: Path) -> None:
    trust = ssl.create_default_context(cafile=certificate.with_name("ca.pem"))
    server = start(
        *("--listen", "127.0.0.1:0", "--listen", "tls:127.0.0.1:0", "--tls-certificate", str(certificate)),
        *("--deliver", f"maildir:{mail}", "--spill-threshold", "300KiB", "--metrics", "127.0.0.1:0"),
    )
    messages = [_lines(size) for size in (100, 1_000_000)]
    assert server.addresses[1].startswith("tls:")
    server.addresses[1] = server.addresses[1].removeprefix("tls:")
    with smtplib.SMTP(*_place(server), timeout=PATIENCE) as client:
        client.ehlo()
        assert client.has_extn("starttls")
        assert client.starttls(context=trust)[0] == 220
        client.ehlo()
        assert not client.has_extn("starttls")
        for message in messages:
            assert client.sendmail("me@a.example", ["you@b.example"], message) == {}
    with smtplib.SMTP_SSL(*_place(server, 1), timeout=PATIENCE, context=trust) as client:
        for message in messages:
            assert client.sendmail("me@a.example", ["you@b.example"], message) == {}
    found = delivered(mail)
    expected = [message.replace("\n", "\r\n").encode() for message in messages]
    assert sorted(map(without_trace, found)) == sorted(expected * 2)
    assert all(b" with ESMTPS id " in message for message in found)
    assert server.metrics()['fastsmtp_tls_handshakes_total{result="ok"}'] == 2
    assert server.end() == 0
    assert "Traceback" not in server.err


def _place(server: Server, number: int = 0) -> tuple[str, int]:
    host, _, port = server.addresses[number].rpartition(":")
    return host, int(port)


# --- swaks --------------------------------------------------------------------------------------------------


def test_swaks(server: Server, mail: Path, tmp_path: Path) -> None:
    swaks = _tool("swaks")
    (tmp_path / "message").write_text(_lines(500_000))
    addresses = ("--from", "me@a.example", "--to", "one@b.example,two@b.example")
    with Tap(server.addresses[0]) as tap:
        to = (swaks, "--server", tap.host, "--port", str(tap.port), *addresses)
        _run(*to, cwd=tmp_path)  # its own text
        _run(*to, "--data", "@message", "--pipeline", cwd=tmp_path)
        _run(*to, "--protocol", "SMTP", "--attach", "@message", "--body", ".\n..\n", cwd=tmp_path)
    _check(tap, mail, 3)


def test_swaks_over_a_unix_socket(start: Start, mail: Path, tmp_path: Path) -> None:
    swaks = _tool("swaks")
    server = start("--listen", f"unix:{tmp_path}/sock", "--deliver", f"maildir:{mail}")
    addresses = ("--from", "me@a.example", "--to", "you@b.example")
    _run(swaks, "--socket", f"{tmp_path}/sock", *addresses, "--body", "over a socket file", cwd=tmp_path)
    (message,) = delivered(mail)
    assert b"\r\n\r\nover a socket file\r\n" in message
    assert server.end() == 0


# --- smtp-source --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sessions", "messages", "size", "kept"),
    [(1, 3, 200, False), (10, 300, 4000, False), (10, 300, 4000, True), (4, 12, 1_000_000, True)],
)
def test_smtp_source(
    server: Server, mail: Path, tmp_path: Path, sessions: int, messages: int, size: int, kept: bool
) -> None:
    smtp_source = _tool("smtp-source")
    load = ("-s", str(sessions), "-m", str(messages), "-l", str(size), *(("-d",) if kept else ()))
    with Tap(server.addresses[0]) as tap:
        _run(smtp_source, *load, f"inet:{tap.host}:{tap.port}", cwd=tmp_path)
    _check(tap, mail, messages)
    found = server.metrics()
    assert found['fastsmtp_messages_total{result="accepted"}'] == messages
    assert found["fastsmtp_spilled_messages_total"] == (messages if size > 300_000 else 0)
    await_true(lambda: server.metrics()["fastsmtp_connections_active"] == 0, "all connections over")
    assert server.metrics()["fastsmtp_connections_total"] == (sessions if kept else messages)


def test_smtp_source_with_a_file_of_dots(server: Server, mail: Path, tmp_path: Path) -> None:
    smtp_source = _tool("smtp-source")
    text = _lines(20_000)
    (tmp_path / "message").write_text(text)
    with Tap(server.addresses[0]) as tap:
        place = f"inet:{tap.host}:{tap.port}"
        _run(smtp_source, "-s", "5", "-m", "50", "-r", "3", "-F", "message", place, cwd=tmp_path)
    _check(tap, mail, 50)
    content = text.replace("\n", "\r\n").encode()
    assert all(without_trace(message).startswith(content) for message in delivered(mail))


# --- nodemailer ---------------------------------------------------------------------------------------------

NODE = """\
const nodemailer = require('nodemailer');
const [host, port] = process.argv.slice(2);
const transport = nodemailer.createTransport({host, port: Number(port), pool: true, ignoreTLS: true});
const lines = '.\\n..\\n.a\\n\\u00fc'.repeat(1000);
(async () => {
  const from = 'me@a.example', to = ['one@b.example', 'two@b.example'];
  await transport.sendMail({from, to, subject: 'dots', text: lines});
  await transport.sendMail({from, to, raw: 'Subject: raw\\r\\n\\r\\n.\\r\\n..\\r\\n'});
  await transport.sendMail({from, to, subject: 'large', attachments: [{content: Buffer.alloc(1000000, 46)}]});
  transport.close();
})().catch(error => { console.error(error); process.exit(1); });
"""


def test_nodemailer(server: Server, mail: Path, tmp_path: Path) -> None:
    node, npm = _tool("node"), _tool("npm")
    install = (npm, "install", "--prefix", str(tmp_path), "--ignore-scripts", "--no-audit", "--no-fund")
    try:
        got = subprocess.run(
            [*install, f"nodemailer@{NODEMAILER}"], cwd=tmp_path, capture_output=True, text=True, timeout=15
        )
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not bring nodemailer within 15 s")
    if got.returncode:
        pytest.skip(f"npm cannot bring nodemailer: {got.stderr.strip().splitlines()[-1:]}")
    (tmp_path / "send.js").write_text(NODE)
    with Tap(server.addresses[0]) as tap:
        _run(node, "send.js", tap.host, str(tap.port), cwd=tmp_path)
    _check(tap, mail, 3)
    assert b"Subject: raw\r\n\r\n.\r\n..\r\n" in [without_trace(message) for message in delivered(mail)]
    assert base64.b64encode(b"." * 57) in b"".join(delivered(mail))
