"""Log lines: nobody can forge one, strangers cannot fill the disk with them, and nobody has to read them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from controllers import HEADERS
from processes import PATIENCE, Client, Start, await_true, interruptible
from servers import Client as AsyncClient
from servers import Keeps, on_both_loops, serve, until
from test_raised import controlled
from test_tls import Certificates, certificates, settings_of  # noqa: F401

from fastsmtp import Envelope, Session
from fastsmtp.logs import Json, Noise, Outlet, Text, brief, brief_repr, describe, safe_id, traceback_of

LOG = logging.getLogger("fastsmtp.test")

# --- what a line shows ----------------------------------------------------------------------------------------


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("and again")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("a\r\nb\0\x1b[2J\x7f\x85\u2028", r"a\r\nb\x00\x1b[2J\x7f\x85\u2028"),
        ("x" * 300, "x" * 200 + "... (300 characters)"),
        ("\udce4", r"\udce4"),
        (42, "42"),
    ],
    ids=ascii,
)
def test_a_value_is_one_short_line(value: object, shown: str) -> None:
    assert brief(value) == shown


def test_what_a_value_looks_like_is_short_too() -> None:
    assert brief_repr("x" * 10_000_000) == f"'{'x' * 200}'... (10,000,000)"
    assert brief_repr(["x"] * 1000) == "a list of 1,000"
    assert brief_repr(["250 x", 1]) == "['250 x', 1]"
    assert len(brief_repr({"x" * 1000: 1})) < 300
    circle: list[object] = []
    circle.append(circle)
    assert brief_repr(circle) == "[[[[...]]]]"
    nested: object = 1
    for _ in range(1000):
        nested = [nested] * 5  # 5 to the power of 1,000 items
    began = time.monotonic()
    assert len(brief_repr(nested)) < 300
    assert time.monotonic() - began < 0.5
    assert brief_repr([10**10_000])  # which Python writes for nobody


def test_an_exception_is_one_line_whatever_it_says() -> None:
    assert describe(ValueError("a\nb\x1b")) == r"ValueError: a b\x1b"
    assert describe(ZeroDivisionError()) == "ZeroDivisionError"
    assert describe(Unspeakable()) == "Unspeakable: it has no text"


def test_a_traceback_has_no_line_of_a_clients_making() -> None:
    forged = "2026-11-29 10:00:00,000 ERROR fastsmtp[1] forged"

    def fails(text: str) -> None:
        try:
            raise KeyError(f"inner\n{forged}")
        except KeyError as error:
            raise ValueError(f"{text}\n{forged}\r{forged}\x1b[2J" + "y" * 10_000_000) from error

    for depth in (0, 3):
        try:
            try:
                fails("outer")
            except ValueError as error:
                if depth:
                    raise ExceptionGroup(f"several\n{forged}", [error]) from None
                raise
        except Exception as error:
            text = traceback_of(error)
        assert "in fails\n" in text
        assert "The above exception was the direct cause" in text
        assert not re.search(r"^[ |+]*2026", text, re.M)
        assert "\x1b" not in text
        assert "\r" not in text
        assert len(text) < 20_000


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("1k1e6tqp1jhs0e83e", "1k1e6tqp1jhs0e83e"),
        ("<a.b-c_d@e>", "_a.b-c_d_e_"),
        ("../a\r\nb", ".._a__b"),
        ("", "_"),
        (None, "None"),
        ("é" * 100, "_" * 64),
        (Unspeakable(), "Unspeakable"),
    ],
    ids=ascii,
)
def test_an_id_is_a_word(given: object, shown: str) -> None:
    assert safe_id(given) == shown


@pytest.mark.parametrize("formatter", [Text(), Json()], ids=["text", "json"])
def test_a_record_cannot_look_like_two(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("x\n2026-11-29 forged\x1b")
    except ValueError as error:
        info: Any = (type(error), error, error.__traceback__)
    text = formatter.format(
        LOG.makeRecord("n", logging.ERROR, "f", 1, "a %s", ("b\n2026-11-29 forged\x1b",), info)
    )
    assert "\x1b" not in text
    assert not re.search(r"\n2026", text)
    if isinstance(formatter, Json):
        fields = json.loads(text)
        assert fields["message"] == "a b\n2026-11-29 forged\x1b"
        assert fields["traceback"].startswith("Traceback")
        assert "\n" not in text


# --- how many there are ---------------------------------------------------------------------------------------


@on_both_loops
async def test_of_many_alike_a_few_are_written_and_the_rest_is_a_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    noise = Noise(asyncio.get_running_loop())
    for number in range(4318):
        noise.say(LOG, logging.WARNING, "kind", "probe %s of %d", "a\nb", number)
    noise.say(LOG, logging.WARNING, "other", "something else")
    assert len(caplog.records) == 6
    assert caplog.messages[0] == r"probe a\nb of 0"
    noise.tell()
    assert caplog.messages[6:] == [r"probe a\nb of 4317 (and 4,312 more like it)"]
    caplog.clear()
    noise.say(LOG, logging.WARNING, "kind", "probe %s of %d", "a", 1)
    noise.tell()
    assert caplog.messages == ["probe a of 1"]
    assert caplog.records[0].funcName.startswith("test_of_many_alike")


@on_both_loops
async def test_tls_handshakes_that_fail_are_few_lines_that_name_their_clients(
    certificates: Certificates,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "fastsmtp")
    for begun in ("STARTTLS", "TLS"):
        caplog.clear()
        ports: list[int] = []
        async with await serve(Keeps(), **settings_of(certificates, begun), log_mail="off") as server:
            for _ in range(20):
                with await AsyncClient.connect(server) as client:
                    ports.append(client.socket.getsockname()[1])
                    if begun == "STARTTLS":
                        await client.send(b"EHLO x\r\nSTARTTLS\r\n")
                        assert await client.codes(3) == [220, 250, 220]
                    await client.send(b"no TLS at all, but it is long enough\r\n")
                    with pytest.raises(AssertionError, match="hung up"):
                        await client.reply()
            await until(lambda: server.connections == 0)
        assert len(caplog.messages) == 6
        for port, message in zip(ports, caplog.messages[:5], strict=False):
            assert message.startswith(f"TLS handshake with 127.0.0.1:{port} failed: ")
        assert caplog.messages[5].endswith(" (and 14 more like it)")


def test_a_controllers_failing_hooks_are_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    class Fails:
        async def handle_VRFY(
            self, server: object, session: Session, envelope: Envelope, address: str
        ) -> str:
            raise ValueError(f"{address}\n2026-11-29 forged \x1b[2J")

    with controlled(Fails()) as dial, dial() as client:
        client.ehlo()
        for _ in range(30):
            assert client.docmd("VRFY a@b.example")[0] == 500
    assert len(caplog.records) == 6
    assert caplog.messages[5].endswith("(and 24 more like it)")
    for record in caplog.records[:5]:
        assert record.exc_text
        assert "\x1b" not in record.exc_text
        assert not re.search("^2026", record.exc_text, re.M)


@pytest.mark.parametrize("header", [HEADERS[1], HEADERS[2]], ids=["version 1", "version 2"])
@on_both_loops
async def test_a_proxy_header_is_a_warning_that_names_the_setting(
    header: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with await serve(Keeps()) as server:
        for _ in range(8):
            with await AsyncClient.connect(server) as client:
                port = client.socket.getsockname()[1]
                await client.send(header)
                assert [reply.code for reply in await client.rest()][-1] == 421
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 6
    assert "a PROXY header came" in caplog.messages[0]
    assert "the setting proxy_protocol is not there yet" in caplog.messages[0]
    assert caplog.messages[5].endswith(f" of 127.0.0.1:{port}) (and 2 more like it)")


def test_a_controller_names_its_parameter(caplog: pytest.LogCaptureFixture) -> None:
    with controlled(Keeps()) as dial, socket.create_connection(("127.0.0.1", dial.port), timeout=10) as sock:
        sock.sendall(HEADERS[1])
        said = b""
        while octets := sock.recv(1000):
            said += octets
    assert said.splitlines()[1].startswith(b"421 ")
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("mail.log", logging.WARNING)
    assert "proxy_protocol_timeout" in record.getMessage()


@on_both_loops
async def test_another_protocol_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastsmtp")
    async with await serve(Keeps(), log_mail="off") as server:
        for hello in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500)):
            with await AsyncClient.connect(server) as client:
                await client.send(hello)
                await client.rest()
    assert [message.partition(" came")[0] for message in caplog.messages] == ["HTTP", "TLS"]


# --- who reads them -------------------------------------------------------------------------------------------


def filled(write: int) -> None:
    """Fills a pipe or a socket."""
    flags = fcntl.fcntl(write, fcntl.F_GETFL)
    fcntl.fcntl(write, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    try:
        while True:
            os.write(write, b"x" * 4095 + b"\n")
    except BlockingIOError:
        pass
    finally:
        fcntl.fcntl(write, fcntl.F_SETFL, flags)


@pytest.fixture(params=["pipe", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    if request.param == "pipe":
        read, write = os.pipe()
    else:
        one, other = socket.socketpair()
        read, write = one.detach(), other.detach()
    yield read, write
    os.close(read)
    os.close(write)


def test_an_outlet_waits_for_no_reader_and_says_what_was_lost(ends: tuple[int, int]) -> None:
    read, write = ends
    filled(write)
    outlet = Outlet(write)
    outlet.setFormatter(logging.Formatter("%(message)s"))
    began = time.monotonic()
    line = "y" * 1023
    for number in range(3000):  # 3 MiB, of which one is kept
        outlet.put(f"{number:04d}{line[4:]}")
    assert time.monotonic() - began < 5
    came = bytearray()

    def drink() -> None:
        while octets := os.read(read, 65536):
            came.extend(octets)

    reader = threading.Thread(target=drink, daemon=True)
    reader.start()

    def drained() -> bool:
        Outlet.drain_all()
        return b"were lost" in came

    await_true(drained, "the lines that waited")
    kept = re.findall(rb"^(\d{4})y+$", bytes(came), re.M)
    assert [int(number) for number in kept] == list(range(1024))
    assert b"\n1,976 lines of the log were lost: nobody read them\n" in came
    outlet.put("again")
    outlet.close()
    assert logging.getLogger("x") is not outlet
    await_true(lambda: came.endswith(b"again\n"), "the last line")


def test_an_outlet_that_nobody_reads_keeps_its_process_a_second(ends: tuple[int, int]) -> None:
    filled(ends[1])
    outlet = Outlet(ends[1])
    outlet.put("unread")
    began = time.monotonic()
    outlet.close()
    assert 0.9 < time.monotonic() - began < 3


def test_an_unread_log_keeps_a_whole_program_a_second() -> None:
    read, write = os.pipe()
    filled(write)
    program = """
import logging, sys, time
from fastsmtp.logs import Outlet
logging.getLogger().addHandler(Outlet())
logging.getLogger().warning("unread")
began = time.monotonic()
logging.shutdown()
print(time.monotonic() - began)
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=write, timeout=30)
    os.close(read)
    os.close(write)
    assert done.returncode == 0
    assert 0.9 < float(done.stdout) < 1.7


def test_what_waits_is_not_written_twice_by_a_child(ends: tuple[int, int]) -> None:
    read, write = ends
    filled(write)
    outlet = Outlet(write)
    outlet.put("once")
    pid = os.fork()
    if pid == 0:
        os._exit(len(outlet._waiting))
    assert os.waitpid(pid, 0)[1] == 0
    assert len(outlet._waiting) == 1
    os.set_blocking(read, False)
    came = b""
    while not came.endswith(b"once\n"):
        came += os.read(read, 1 << 20)
        Outlet.drain_all()
    outlet.close()


def test_a_server_whose_log_nobody_reads_takes_mail(tmp_path: Path) -> None:
    command = ["-m", "fastsmtp", "serve", "--listen", "127.0.0.1:0", "--hostname", "mx.example"]
    read, write = os.pipe()
    with interruptible():
        process = subprocess.Popen(
            [sys.executable, *command, "--deliver", "maildir:./mail", "--workers", "2"],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=write,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        address = re.match(rb"fastsmtp listens on (\S+)", process.stdout.readline())
        assert address is not None
        filled(write)
        for _ in range(4):
            with closing(Client(address[1].decode())) as client:
                assert client.reply().startswith("220 ")
                for _ in range(5):  # each is a line in the log
                    assert client.say("RCPT TO:<a@b.example>").startswith("503 ")
                assert client.send(b"Subject: x\r\n\r\ntext\r\n").startswith("250 ")
        process.terminate()  # that the workers drain is a line, too
        assert process.wait(PATIENCE) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        os.close(read)
        os.close(write)


def test_a_log_in_json_is_json_line_by_line(start: Start, mail: Path) -> None:
    server = start("--deliver", f"maildir:{mail}", "--log-format", "json", "--log-mail", "all", ready=False)
    found = server.expect(r"^fastsmtp listens on (\S+) ", "out")
    with closing(Client(found[1])) as client:
        assert client.reply().startswith("220 ")
        client.send(b"Subject: x\r\n\r\ntext\r\n")
    assert server.end() == 0
    lines = [json.loads(line) for line in server.err.splitlines()]
    assert {line["logger"] for line in lines} >= {"fastsmtp.mail", "fastsmtp.supervisor"}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
