"""How a service ends, with real ``fastsmtp serve`` processes: it drains, and keeps what it answered 250."""

import contextlib
import os
import re
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import (
    Client,
    Load,
    Prober,
    Start,
    await_true,
    delivered,
    dial,
    open_ended,
    stuffed,
)

THRESHOLD = 300 << 10
MESSAGE = b"Subject: dots\r\n\r\n.\r\n..\r\n.a\r\n\xff\xfe\0\r\n" + b".the quick brown fox\r\n" * 140
LARGE = MESSAGE * (2 * THRESHOLD // len(MESSAGE))

SLOW = """\
import asyncio
import os

class Slow:
    async def handle_DATA(self, server, session, envelope):
        open("reached", "w").close()
        while not os.path.exists("go"):
            await asyncio.sleep(0.01)
        open("kept", "wb").write(envelope.content)
        return "250 2.0.0 kept"
"""


def _refused(address: str) -> bool:
    try:
        Client(address).close()
    except ConnectionRefusedError:
        return True
    except ConnectionError:
        pass
    return False


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("group", [False, True], ids=["supervisor", "control-group"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_sigterm_drains(start: Start, log_line: re.Pattern[str], mail: Path, group: bool, loop: str) -> None:
    server = start(
        *("--workers", "2", "--deliver", f"maildir:{mail}?trace=no", "--loop", loop),
        *("--metrics", "127.0.0.1:0"),
    )
    messages = [MESSAGE * times for times in (1, 2, 3, 4)]
    with ExitStack() as stack:
        busy = [stack.enter_context(server.connect()) for _ in messages]
        asking, silent = (stack.enter_context(server.connect()) for _ in range(2))
        for client, message in zip(busy, messages, strict=True):
            client.to_data()
            client.sock.sendall(open_ended(message))
        # As systemd does it: the supervisor and its workers all get the signal, at the same time.
        server.send(signal.SIGTERM, group=group)
        server.expect("SIGTERM: the workers drain")
        await_true(lambda: _refused(server.addresses[0]), "the port closed")
        if not group:  # with the group, the exporter has gone too
            await_true(lambda: server.get("/healthz")[0] == 503, "health as a balancer should see it")
        assert asking.say("NOOP").startswith("421 4.3.2 ")
        assert asking.at_end()
        assert silent.reply().startswith("421 4.3.2 ")
        assert silent.at_end()
        for client in busy:
            client.sock.sendall(b".\r\n")
            assert client.reply().startswith("250 2.0.0 ")
        for client in busy[:2]:
            assert client.say("NOOP").startswith("421 4.3.2 ")
        for client in busy[2:]:  # says nothing more
            assert client.reply().startswith("421 4.3.2 ")
        assert server.end(None) == 0
    assert sorted(delivered(mail)) == sorted(messages)
    assert log_line.sub("", server.err) == ""


def test_workers_that_get_sigterm_before_their_supervisor_still_drain(start: Start, mail: Path) -> None:
    server = start("--workers", "2", "--deliver", f"maildir:{mail}?trace=no", "--handler", "who:Who")
    with server.connect() as client:
        own = client.who()
        (idle,) = set(server.workers.values()) - {own}
        client.to_data()
        client.sock.sendall(open_ended(MESSAGE))
        for pid in (own, idle):
            os.kill(pid, signal.SIGTERM)
        # The idle one may be gone when the supervisor looks.
        server.expect(
            "(drains, and was not told to by its supervisor|ended with status 0); replaced", count=2
        )
        server.send(signal.SIGTERM)
        server.expect("SIGTERM: the workers drain")
        client.sock.sendall(b".\r\n")
        assert client.reply().startswith("250 ")
    assert server.end(None) == 0
    assert delivered(mail) == [MESSAGE]
    assert "Traceback" not in server.err


def test_the_only_worker_that_somebody_else_tells_to_drain_is_replaced_at_once(
    start: Start, mail: Path
) -> None:
    server = start("--deliver", f"maildir:{mail}?trace=no", "--handler", "who:Who")
    with server.connect() as client:
        own = client.who()
        client.to_data()
        os.kill(own, signal.SIGTERM)  # as a guard against too little memory does it
        server.expect(rf"worker 0 \(pid {own}\) drains, .*; replaced at once")
        with server.connect() as other:
            assert other.who() != own
        server.expect("worker 0 .* accepts", count=2)
        # A third one may wait until one of the two is gone: there are two slots.
        os.kill(server.workers[0], signal.SIGTERM)
        server.expect("worker 0 .* accepts", count=3)
        client.sock.sendall(stuffed(MESSAGE))
        assert client.reply().startswith("250 ")
        assert client.say("NOOP").startswith("421 4.3.2 ")
    with server.connect() as other:
        assert other.who() != own
    assert server.end() == 0
    assert delivered(mail) == [MESSAGE]


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_now(
    start: Start, log_line: re.Pattern[str], mail: Path, first: signal.Signals
) -> None:
    server = start("--workers", "2", "--deliver", f"maildir:{mail}")
    with server.connect() as client:
        client.to_data()
        client.sock.sendall(b"Subject: half a mess")
        server.send(first, group=first == signal.SIGINT)  # a terminal's Ctrl-C reaches all
        server.expect(f"{first.name}: the workers drain")
        began = time.monotonic()
        server.send(first, group=first == signal.SIGINT)
        status = server.end(None)
        took = time.monotonic() - began
        assert client.reply().startswith("421 4.3.2 ")
        assert client.at_end()
    assert took < 3
    assert status == 0
    assert delivered(mail) == []
    assert log_line.sub("", server.err) == ""


@pytest.mark.parametrize("group", [False, True], ids=["supervisor", "control-group"])
def test_a_drain_waits_for_the_hook_that_has_the_message(
    start: Start, log_line: re.Pattern[str], tmp_path: Path, group: bool
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    server = start("--workers", "2", "--handler", "slow:Slow")
    with server.connect() as client:
        client.to_data()
        client.sock.sendall(stuffed(MESSAGE))
        await_true((tmp_path / "reached").exists, "the message at the hook")
        server.send(signal.SIGTERM, group=group)
        await_true(lambda: _refused(server.addresses[0]), "the port closed")
        (tmp_path / "go").touch()
        assert client.reply() == "250 2.0.0 kept"
        assert client.reply().startswith("421 4.3.2 ")
    assert server.end(None) == 0
    assert (tmp_path / "kept").read_bytes() == MESSAGE
    assert log_line.sub("", server.err) == ""


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.01, 0.02, 0.04, 0.06])
def test_sigterm_soon_after_sighup_cuts_no_message(
    start: Start, log_line: re.Pattern[str], mail: Path, delay: float
) -> None:
    server = start("--workers", "2", "--deliver", f"maildir:{mail}?trace=no")
    with server.connect() as client:
        client.to_data()
        client.sock.sendall(open_ended(MESSAGE))
        server.send(signal.SIGHUP)
        time.sleep(delay)  # a successor starts meanwhile, and may be about to take over
        server.send(signal.SIGTERM)
        server.expect("SIGTERM: the workers drain")
        client.sock.sendall(b".\r\n")
        assert client.reply().startswith("250 ")
    assert server.end(None) == 0
    assert delivered(mail) == [MESSAGE]
    assert log_line.sub("", server.err) == ""


PROGRAM = """\
import asyncio
from fastsmtp.server import SMTPServer

server = SMTPServer(lambda request: request.finish(), hostname="mx.example")
server.bind(0, "127.0.0.1")
print("fastsmtp listens on", *server.addresses, "with 2 workers\\nmail goes to the program", flush=True)
server.start(2)
asyncio.run(server.serve_forever())
"""


@pytest.mark.parametrize("face", ["serve", "program"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_the_last_moment_end_with_status_0(
    start: Start, face: str, number: signal.Signals
) -> None:
    script = None
    arguments = ["--workers", "2", "--deliver", "discard:"]
    if face == "program":
        arguments, script = [], f"import logging\nlogging.basicConfig(level=logging.INFO)\n{PROGRAM}"
    server = start(*arguments, script=script, ready=False)
    server.expect(r"accepts\n", count=2)
    with contextlib.suppress(ProcessLookupError):
        while server.process.poll() is None:
            server.send(number)
            time.sleep(0.0005)  # a signal for each moment
    assert server.end(None) == 0
    assert "Traceback" not in server.err


def test_a_second_signal_does_not_wait_for_a_hook_nor_blame_it(start: Start, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    server = start("--workers", "2", "--handler", "slow:Slow")
    with server.connect() as client:
        client.to_data()
        client.sock.sendall(stuffed(MESSAGE))
        await_true((tmp_path / "reached").exists, "the message at the hook")
        server.send(signal.SIGTERM)
        server.expect("SIGTERM: the workers drain")
        server.send(signal.SIGTERM)
        assert client.reply().startswith("421 4.3.2 ")
        assert server.end(None) == 0
    assert not (tmp_path / "kept").exists()
    assert "ERROR" not in server.err
    assert "Traceback" not in server.err


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_drain_does_not_wait_for_a_handshake_that_does_not_come(
    start: Start, log_line: re.Pattern[str], certificate: Path, loop: str
) -> None:
    server = start(
        *("--listen", "127.0.0.1:0", "--listen", "tls:127.0.0.1:0", "--tls-certificate", str(certificate)),
        *("--deliver", "discard:", "--loop", loop, "--drain-timeout", "8"),
    )
    with server.connect() as client, dial(server.addresses[1].removeprefix("tls:")):
        assert client.say("EHLO client.example").startswith("250-")
        assert client.say("STARTTLS").startswith("220 ")
        began = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - began < 4
    assert log_line.sub("", server.err) == ""


def test_the_drain_has_a_deadline(start: Start, mail: Path) -> None:
    server = start("--deliver", f"maildir:{mail}", "--drain-timeout", "0.5")
    with server.connect() as client:
        client.to_data()
        began = time.monotonic()
        server.send(signal.SIGTERM)
        assert client.reply().startswith("421 4.3.2 ")
        assert 0.4 < time.monotonic() - began < 3
    assert server.end(None) == 0
    assert delivered(mail) == []


def test_kill_9_of_the_supervisor_drains_the_workers(start: Start, mail: Path) -> None:
    server = start("--workers", "2", "--deliver", f"maildir:{mail}?trace=no", "--metrics", "127.0.0.1:0")
    with server.connect() as client:
        client.to_data()
        server.send(signal.SIGKILL)
        await_true(lambda: _refused(server.addresses[0]), "the port closed")
        client.sock.sendall(stuffed(MESSAGE))
        assert client.reply().startswith("250 ")
        assert client.say("NOOP").startswith("421 4.3.2 ")
    assert server.end(None) == -signal.SIGKILL  # and no process is left
    assert delivered(mail) == [MESSAGE]


def test_sighup_under_load_replaces_all_workers_and_loses_nothing(
    start: Start, log_line: re.Pattern[str], mail: Path
) -> None:
    server = start(
        *("--workers", "2", "--deliver", f"maildir:{mail}?trace=no", "--metrics", "127.0.0.1:0"),
        *("--spill-threshold", str(THRESHOLD), "--spill-directory", str(mail.parent)),
    )
    first = set(server.workers.values())
    with Load(server.addresses[0], clients=10) as load, Prober(server.addresses[0]) as prober:
        for roll in (1, 2):
            load.await_more(50)
            server.send(signal.SIGHUP)
            server.expect("all workers are replaced", count=roll)
        load.await_more(50)
    last = set(server.workers.values())
    assert not first & last
    await_true(lambda: not any(_is_there(pid) for pid in first), "the first workers gone")
    print(f"\n{len(load.answered)} answered, {load.told_421} told 421, {prober.greeted} probes")
    load.check(mail)
    assert load.told_421 > 0
    assert load.unknown == set()
    assert (load.refused, prober.refused) == (0, 0)
    assert (load.broken, prober.broken) == (0, 0)
    metrics = server.metrics()
    assert metrics['fastsmtp_messages_total{result="accepted"}'] == len(load.answered)
    assert metrics["fastsmtp_worker_restarts_total"] == 0
    assert server.end() == 0
    assert log_line.sub("", server.err) == ""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("interpreter", [(), ("-X", "dev", "-W", "error")], ids=["plain", "dev"])
def test_a_server_that_took_mail_ends_without_a_word_of_complaint(
    start: Start, log_line: re.Pattern[str], mail: Path, interpreter: tuple[str, ...], loop: str
) -> None:
    server = start(
        *(
            "--workers",
            "2",
            "--handler",
            "who:Who",
            "--deliver",
            f"maildir:{mail}",
            "--metrics",
            "127.0.0.1:0",
        ),
        *("--spill-threshold", str(THRESHOLD), "--spill-directory", str(mail.parent), "--loop", loop),
        interpreter=interpreter,
    )
    for message in (MESSAGE, LARGE):
        with server.connect() as client:
            assert client.send(message).startswith("250 ")
            client.who()
            assert client.say("QUIT").startswith("221 ")
    with server.connect() as client:  # and one that goes without a word, with a message half sent
        client.to_data()
        client.sock.sendall(open_ended(LARGE))
    assert server.get("/healthz")[0] == 200
    first = set(server.workers.values())
    server.send(signal.SIGHUP)
    server.expect("all workers are replaced")
    await_true(lambda: not any(_is_there(pid) for pid in first), "the first workers gone")
    with server.connect() as client:
        assert client.send(MESSAGE).startswith("250 ")
        assert server.end() == 0  # with a connection open
    assert len(delivered(mail)) == 3
    assert log_line.sub("", server.err) == ""
