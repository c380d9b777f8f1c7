"""``fastsmtp bench`` against real servers: what it sends arrives, what it tells is true, what fails is said."""

import contextlib
import importlib.util
import json
import os
import pty
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from controllers import CREDENTIALS, PASSWORD, USER, Keeps, Tls, Way, serving
from processes import Client, Start, await_true, delivered, without_trace

from fastsmtp import display
from fastsmtp.load import Figures, Plan, content

Report = dict[str, Any]
SINK = shutil.which("smtp-sink", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
needs_sink = pytest.mark.skipif(SINK is None, reason="smtp-sink is not installed")

# A server that stands still once, for everybody.
STALLS = """\
import time

class Stalls:
    seen = 0

    def handle_DATA(self, server, session, envelope):
        self.seen += 1
        if self.seen == 300:
            time.sleep(0.3)
        return "250 2.0.0 ok"
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fastsmtp", "bench", *arguments]


def bench(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=60, check=False, **options
    )


def reported(*arguments: str, status: int = 0) -> Report:
    """The report of a run that ends with this status."""
    done = bench(*arguments, "--json", "-", "--quiet")
    assert (done.returncode, done.stderr) == (status, ""), done.stdout + done.stderr
    report: Report = json.loads(done.stdout)
    assert report["messages"] == report["accepted"] + report["failed"]
    return report


def refused(*arguments: str, status: int = 1) -> str:
    """The one line of a run that measures nothing."""
    done = bench(*arguments)
    assert (done.returncode, done.stdout) == (status, ""), done.stdout + done.stderr
    assert done.stderr.startswith("fastsmtp: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("fastsmtp: ").removesuffix("\n")


Play = Callable[[socket.socket], None]


@contextlib.contextmanager
def stub(*plays: Play) -> Iterator[str]:
    """A server that plays these with one connection after the other, the last with all others."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = iter(plays)
        play = next(served)

        def serve() -> None:
            nonlocal play
            while True:
                sock, _ = listener.accept()
                with sock, contextlib.suppress(OSError):
                    sock.settimeout(20)
                    if sock.getpeername() == ending:
                        return
                    play(sock)
                play = next(served, play)

        ending: object = None
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            host, port = listener.getsockname()
            yield f"{host}:{port}"
        finally:
            with socket.socket() as last:
                last.bind(("127.0.0.1", 0))
                ending = last.getsockname()
                last.connect((host, port))
                thread.join(20)
            assert not thread.is_alive()


def to_content(sock: socket.socket) -> None:
    """From the greeting to 354."""
    replies = [b"250 mx.example\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go on\r\n"]
    sock.sendall(b"220 mx.example\r\n")
    with sock.makefile("rb") as file:
        for reply in replies:
            assert file.readline()
            sock.sendall(reply)


# --- what it sends arrives ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--new",),
        ("--pipeline",),
        ("--pipeline", "--new"),
        ("--rate", "2000"),
        ("--rate", "2000", "--new", "--pipeline"),
        ("--processes", "3", "--warm-up", "10"),
        ("--processes", "2", "--warm-up", "11", "--rate", "2000", "--pipeline"),
    ],
    ids=" ".join,
)
def test_every_message_arrives_once_and_octet_by_octet(
    start: Start, mail: Path, options: tuple[str, ...]
) -> None:
    server = start("--deliver", f"maildir:{mail}")
    report = reported(server.addresses[0], "--messages", "150", "--connections", "6", *options)
    warm_up = report["arguments"]["warm_up"]
    assert (report["accepted"], report["failures"]) == (150, {})
    assert report["octets"] == 150 * 4096
    kept = sorted(without_trace(message) for message in delivered(mail))
    assert kept == sorted(content(4096, number) for number in range(150 + warm_up))
    for stage in ("mail", "rcpt", "data", "final", "message"):
        times = report["latency"][stage]
        assert times["count"] == 150
        assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["p999"] <= times["max"] * 1.01
    if "--new" in options:
        assert report["connections"] == 150
    elif not warm_up:
        assert report["connections"] == 6


def test_large_messages_go_through(start: Start) -> None:
    server = start("--deliver", "discard:", "--max-message-size", "60MB", "--metrics", "127.0.0.1:0")
    options = ("--messages", "4", "--size", "50000000", "--connections", "2")
    for more in ((), ("--pipeline",)):
        assert reported(server.addresses[0], *options, *more)["octets"] == 200_000_000
    metrics = server.metrics()
    assert metrics['fastsmtp_messages_total{result="accepted"}'] == 8
    assert metrics["fastsmtp_received_bytes_total"] >= 400_000_000


def test_a_unix_socket_and_several_recipients(start: Start, tmp_path: Path) -> None:
    server = start("--deliver", "discard:", "--listen", f"unix:{tmp_path}/socket", "--metrics", "127.0.0.1:0")
    report = reported(f"unix:{tmp_path}/socket", "--messages", "20", "--recipients", "3", "--new")
    assert report["latency"]["rcpt"]["count"] == 60
    assert server.metrics()['fastsmtp_recipients_total{result="accepted"}'] == 60


def test_aiosmtpd_is_put_under_load() -> None:
    if importlib.util.find_spec("aiosmtpd") is None:
        pytest.skip("aiosmtpd is not installed")
    from aiosmtpd.controller import Controller

    class Counts:
        contents: list[bytes]

        async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:
            self.contents.append(envelope.content)
            return "250 OK"

    handler = Counts()
    handler.contents = []
    controller = Controller(handler, "127.0.0.1", 0)
    listener = socket.create_server(("127.0.0.1", 0))
    controller.port = listener.getsockname()[1]
    listener.close()
    controller.start()
    try:
        reported(f"127.0.0.1:{controller.port}", "--messages", "40", "--connections", "4")
    finally:
        controller.stop()
    assert sorted(handler.contents) == [content(4096, number) for number in range(40)]


# --- TLS and AUTH -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("more", [("--new",), ("--rate", "500")], ids=" ".join)
def test_tls_and_auth(tls: str, more: tuple[str, ...], tmp_path: Path) -> None:
    keys, handler = Tls.issued(tmp_path), Keeps()
    with serving(keys, tmp_path, handler, Way(tls=tls, auth="PLAIN")) as served:
        host, port = served.address
        options = ("--messages", "30", "--connections", "3", "--size", "100000")
        trust = ("--tls", tls, "--ca", str(keys.trusted), "--auth", f"{USER}:{PASSWORD}")
        report = reported(f"localhost:{port}", *options, *trust, *more)
    assert host == "127.0.0.1"
    assert sorted(handler.contents) == [content(100_000, number) for number in range(30)]
    assert all(kept.tls and kept.authenticated for kept in handler.kept)
    assert handler.kept[0].auth_data == ("PLAIN", CREDENTIALS)
    assert report["handshakes"] == {"full": report["connections"], "resumed": 0}
    assert report["latency"]["tls"]["count"] == report["latency"]["auth"]["count"] == report["connections"]
    assert PASSWORD not in json.dumps(report)


def test_tls_and_pipelining(start: Start, mail: Path, certificate: Path) -> None:
    server = start("--deliver", f"maildir:{mail}", "--tls-certificate", str(certificate))
    options = ("--messages", "60", "--connections", "3", "--size", "200000", "--pipeline")
    report = reported(server.addresses[0], *options, "--tls", "starttls")
    assert report["handshakes"] == {"full": 3, "resumed": 0}
    kept = sorted(without_trace(message) for message in delivered(mail))
    assert kept == sorted(content(200_000, number) for number in range(60))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)
@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_tls_sessions_are_resumed(tls: str, version: ssl.TLSVersion, tmp_path: Path) -> None:
    keys, handler = Tls.issued(tmp_path), Keeps()
    keys.server.minimum_version = keys.server.maximum_version = version
    with serving(keys, tmp_path, handler, Way(tls=tls)) as served:
        options = ("--messages", "20", "--connections", "1", "--new", "--tls", tls, "--resume")
        report = reported(f"127.0.0.1:{served.address[1]}", *options)
        without = reported(f"127.0.0.1:{served.address[1]}", *options[:-1])
    assert report["handshakes"] == {"full": 1, "resumed": 19}
    assert without["handshakes"] == {"full": 20, "resumed": 0}
    assert len(handler.kept) == 40


def test_a_certificate_that_is_not_trusted_is_one_line(tmp_path: Path) -> None:
    keys = Tls.issued(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with serving(keys, tmp_path, Keeps(), Way(tls="implicit")) as served:
        line = refused(
            f"localhost:{served.address[1]}", "--tls", "implicit", "--ca", str(Tls.issued(other).trusted)
        )
    assert "TLS: certificate verify failed: " in line


def test_a_wrong_password_is_one_line(tmp_path: Path) -> None:
    keys = Tls.issued(tmp_path)
    with serving(keys, tmp_path, Keeps(), Way(tls="starttls", auth="PLAIN")) as served:
        line = refused(f"127.0.0.1:{served.address[1]}", "--tls", "starttls", "--auth", "me:wrong")
    assert line.endswith("AUTH: 535 5.7.8 Authentication credentials invalid")


# --- the rate -----------------------------------------------------------------------------------------------


def test_a_server_that_stands_still_shows_where_messages_are_due_and_hides_where_they_wait(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "stalls.py").write_text(STALLS)
    options = ("--messages", "1000", "--connections", "2")
    closed = reported(start("--handler", "stalls:Stalls").addresses[0], *options)
    opened = reported(start("--handler", "stalls:Stalls").addresses[0], *options, "--rate", "800")
    assert closed["latency"]["message"]["max"] > 0.29
    assert opened["latency"]["message"]["max"] > 0.29
    # 240 of 1000 messages were due while it stood still, but two connections were waiting.
    assert closed["latency"]["message"]["p99"] < 0.15 < opened["latency"]["message"]["p99"]
    assert opened["late"] > 100
    assert opened["offered"] == 800
    # How long the server takes once it is asked is the same for both.
    assert opened["latency"]["final"]["p99"] < 0.15


def test_messages_are_offered_at_the_rate_and_for_the_time_that_were_asked_for(start: Start) -> None:
    server = start("--deliver", "discard:")
    report = reported(server.addresses[0], "--rate", "250", "--duration", "0.8", "--processes", "2")
    assert report["accepted"] == 200
    assert report["seconds"] == pytest.approx(0.8, abs=0.25)


def test_without_a_rate_time_ends_the_run(start: Start) -> None:
    report = reported(start("--deliver", "discard:").addresses[0], "--duration", "0.3")
    assert report["accepted"] > 20
    assert report["offered"] is None
    assert 0.3 <= report["seconds"] < 2


# --- what fails ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sink(folder: Path, *options: str) -> Iterator[str]:
    assert SINK is not None
    path = folder / "sink"
    user = ("-u", "root") if os.getuid() == 0 else ()  # root has to say who it wants to be
    process = subprocess.Popen([SINK, *user, *options, f"unix:{path}", "100"])
    try:
        await_true(path.exists, "smtp-sink listens")
        yield f"unix:{path}"
    finally:
        process.terminate()
        process.wait(20)


@needs_sink
def test_smtp_sink_takes_all(tmp_path: Path) -> None:
    with sink(tmp_path) as target:
        for more in (("--pipeline",), ("--new",), ("--rate", "1000")):
            assert reported(target, "--messages", "50", *more)["accepted"] == 50


@needs_sink
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("-f", "MAIL"), "MAIL: 500 5.3.0 Error: command failed"),
        (("-r", "RCPT"), "RCPT: 450 4.3.0 Error: command failed"),
        (("-f", "DATA"), "DATA: 500 5.3.0 Error: command failed"),
        (("-r", "."), "content: 450 4.3.0 Error: command failed"),
        (("-Q", "RCPT"), "RCPT: 421 4.0.0 Server closing connection"),
        (("-q", "DATA"), "DATA: the server closed the connection"),
        (("-q", "."), "content: the server closed the connection"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_each_refusal_is_counted_by_its_text(options: tuple[str, ...], says: str, tmp_path: Path) -> None:
    with sink(tmp_path, *options) as target:
        report = reported(target, "--messages", "12", "--connections", "3", status=1)
    assert report["failures"] == {says: 12}
    assert (report["accepted"], report["failed"]) == (0, 12)


@needs_sink
@pytest.mark.parametrize(
    ("options", "says"), [(("-f", "CONNECT"), "greeting: 5"), (("-q", "EHLO"), "EHLO: the server closed")]
)
def test_it_stops_when_no_connection_can_be_used(options: tuple[str, ...], says: str, tmp_path: Path) -> None:
    with sink(tmp_path, *options) as target:
        line = refused(target, "--messages", "12", "--connections", "3")
    assert line.startswith(f"{target}: 6 connections in a row failed; the last one: {says}")


def test_after_a_connection_that_ends_midway_another_goes_on() -> None:
    def ends_midway(sock: socket.socket) -> None:
        to_content(sock)
        assert sock.recv(1000)

    def takes_one(sock: socket.socket) -> None:
        to_content(sock)
        octets = b""
        while not octets.endswith(b"\r\n.\r\n"):
            octets += sock.recv(65536)
        sock.sendall(b"250 ok\r\n")
        assert sock.recv(100) == b"QUIT\r\n"
        sock.sendall(b"221 bye\r\n")

    options = ("--messages", "3", "--connections", "1", "--size", "3000000", "--new")
    with stub(ends_midway, takes_one) as target:
        report = reported(target, *options, status=1)
    assert (report["accepted"], report["failed"], report["connections"]) == (2, 1, 3)
    (failure,) = report["failures"]
    assert failure in ("content: connection reset by peer", "content: the server closed the connection")


def test_a_server_that_says_nothing_is_given_up() -> None:
    def silent(sock: socket.socket) -> None:
        to_content(sock)
        while sock.recv(65536):
            pass

    with stub(silent) as target:
        report = reported(target, "--messages", "1", "--connections", "1", "--timeout", "0.3", status=1)
    assert report["failures"] == {"content: nothing within 0.3 s": 1}


def test_a_server_that_does_not_even_greet_is_given_up() -> None:
    def silent(sock: socket.socket) -> None:
        while sock.recv(65536):
            pass

    with stub(silent) as target:
        line = refused(target, "--connections", "1", "--timeout", "0.1")
    assert line.endswith("connections in a row failed; the last one: greeting: nothing within 0.1 s")


def test_nobody_there_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{bound.getsockname()[1]}"
        assert refused(target, "--messages", "5") == f"{target}: connect: connection refused"
        assert refused(target, "--new", "--rate", "10", "--processes", "2").endswith("connection refused")
    assert refused(f"unix:{tmp_path}/no").endswith("connect: no such file or directory")
    assert refused("nosuch.invalid:25").startswith("nosuch.invalid:25: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("192.0.2.1:25",), "192.0.2.1:25 is not this machine, and a load is an attack"),
        (("[2001:db8::1]:25",), "give --remote if you may do that"),
        ((":25",), "is not one server; write HOST:PORT"),
        (("127.0.0.1",), '"127.0.0.1" is not an address'),
        (("tls:127.0.0.1:25",), "say --tls implicit instead of tls:"),
        (("127.0.0.1:25", "--resume"), "--resume needs --tls"),
        (
            ("127.0.0.1:25", "--messages", "1", "--duration", "1"),
            "--messages and --duration are given; keep one",
        ),
        (("127.0.0.1:25", "--processes", "2", "--messages", "1"), "--processes is more than"),
        (("127.0.0.1:25", "--size", "100"), "100 is not in the range x>=256"),
        (("127.0.0.1:25", "--auth", "me"), "--auth is not USER:PASSWORD"),
        (("127.0.0.1:25", "--sender", "a@b>\r\nRSET"), "--sender: "),
        (("127.0.0.1:25", "--tls", "implicit", "--ca", "/no"), "--ca: cannot use /no: no such file"),
        (("127.0.0.1:25", "--tls", "implicit", "--ca", "/no", "--insecure"), "keep one"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused(*arguments, status=2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--tls", "starttls"), "the server does not offer STARTTLS"),
        (("--auth", "a:b"), "the server does not offer AUTH PLAIN"),
        (("--tls", "implicit"), "TLS: "),
    ],
)
def test_what_the_server_cannot_do_is_one_line(start: Start, options: tuple[str, ...], says: str) -> None:
    server = start("--deliver", "discard:")
    assert refused(server.addresses[0], *options).startswith(f"{server.addresses[0]}: {says}")


# --- what it shows ------------------------------------------------------------------------------------------


def test_the_report_is_a_table_of_80_columns(start: Start) -> None:
    done = bench(
        start("--deliver", "discard:").addresses[0],
        "--duration",
        "1.3",
        "--rate",
        "100",
        "--connections",
        "2",
    )
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[1] == "messages     130 accepted, 0 failed; 4,096 octets each"
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[7:]] == [
        *("milliseconds", "connect", "greeting", "ehlo", "mail", "rcpt", "data", "final", "message")
    ]
    assert " messages/s, " in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_report_says_when_the_client_was_the_limit() -> None:
    plan = Plan(0, "nowhere", "localhost", processes=2)
    told = [
        display.report("mx.example:25", plan, Figures(accepted=1, began=1.0, ended=11.0, cpu=cpu))
        for cpu in ([8.9, 8.9], [1.0, 9.7])
    ]
    assert "limit" not in told[0]
    assert told[1].splitlines()[-1].startswith("The client was the limit: it used 97% of a core.")


def test_a_report_that_cannot_be_written_is_said_below_the_table(start: Start, tmp_path: Path) -> None:
    done = bench(
        start("--deliver", "discard:").addresses[0], "--messages", "5", "--json", f"{tmp_path}/no/x.json"
    )
    assert done.returncode == 1
    assert done.stdout.startswith("server ")
    assert done.stderr == f"fastsmtp: --json: cannot write {tmp_path}/no/x.json: no such file or directory\n"


@needs_sink
def test_failures_stand_below_the_table(tmp_path: Path) -> None:
    with sink(tmp_path, "-f", "RCPT") as target:
        done = bench(target, "--messages", "3")
    assert done.returncode == 1
    assert done.stdout.endswith("\nfailures\n         3  RCPT: 500 5.3.0 Error: command failed\n")


@pytest.mark.skipif(importlib.util.find_spec("rich") is None, reason="rich is not installed")
def test_a_terminal_shows_how_it_goes_in_place(start: Start) -> None:
    server = start("--deliver", "discard:")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    arguments = command(server.addresses[0], "--duration", "1.5", "--connections", "2")
    process = subprocess.Popen(
        arguments, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal is EIO
        while octets := os.read(ours, 65536):
            shown += octets
    os.close(ours)
    assert process.communicate(timeout=20)[0].startswith(b"server ")
    assert process.returncode == 0
    assert b"messages/s" in shown
    assert b"\x1b[" in shown


@pytest.mark.parametrize("processes", ["1", "2"])
def test_sigint_gives_the_report_of_what_was_done(start: Start, processes: str) -> None:
    server = start("--deliver", "discard:")
    process = subprocess.Popen(
        command(server.addresses[0], "--duration", "60", "--processes", processes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "messages/s" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "\nmessage " in out
    assert "Traceback" not in err


def test_sigint_before_anything_is_counted_leaves_nothing_to_report() -> None:
    came = threading.Event()

    def silent(sock: socket.socket) -> None:
        came.set()
        while sock.recv(65536):
            pass

    with stub(silent) as target:
        process = subprocess.Popen(command(target), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert came.wait(20)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 130


def test_a_generator_ends_with_the_command_that_started_it(start: Start) -> None:
    server = start("--deliver", "discard:", "--metrics", "127.0.0.1:0")
    process = subprocess.Popen(
        command(server.addresses[0], "--duration", "60", "--processes", "2"),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    process.stderr.readline()
    process.kill()
    process.wait(20)
    await_true(lambda: server.metrics()["fastsmtp_connections_active"] == 0, "all connections end")
    process.stderr.close()
    with Client(server.addresses[0]) as client:
        assert client.reply().startswith("220 ")


def test_serve_does_not_import_the_load_generator() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fastsmtp", "serve", "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "fastsmtp.cli" in imported
    assert not imported & {"fastsmtp.bench", "fastsmtp._load", "multiprocessing", "rich"}
