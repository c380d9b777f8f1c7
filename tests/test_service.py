"""The service, with real ``fastsmtp serve`` processes: what was answered 250 is there, whatever happens."""

import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import (
    PATIENCE,
    Client,
    Load,
    Prober,
    Start,
    await_true,
    delivered,
    dial,
    open_ended,
    without_trace,
)

KIB, MIB = 1 << 10, 1 << 20
THRESHOLD = 300 * KIB


def _message(size: int) -> bytes:
    """Content of ``size`` octets: dots where they matter, no text, a NUL, a long line, and CRLF at its end."""
    if size < 2:
        return b""
    head = b"Subject: dots\r\n\r\n.\r\n..\r\n.a\r\n\xff\xfe\0 caf\xc3\xa9\r\n" + b"l" * 2000 + b"\r\n"
    content = (head + b".the quick brown fox\r\n" * (size // 22))[: size - 2]
    if content.endswith(b"\r"):
        content = content[:-1] + b"."
    return content + b"\r\n"


def _needs_proc() -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("this looks into /proc, which this system does not have")


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


# --- octets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", [True, False], ids=["trace", "notrace"])
def test_a_message_lands_octet_for_octet_whatever_its_size(start: Start, mail: Path, trace: bool) -> None:
    sizes = [0, 2, 3, 500, THRESHOLD - 1, THRESHOLD, THRESHOLD + 1, THRESHOLD + 2, 2 * THRESHOLD, 3 * MIB]
    messages = [_message(size) for size in sizes]
    assert [len(message) for message in messages] == sizes
    server = start(
        *("--deliver", f"maildir:{mail}{'' if trace else '?trace=no'}", "--metrics", "127.0.0.1:0"),
        *("--spill-threshold", str(THRESHOLD), "--spill-directory", str(mail.parent)),
    )
    with server.connect() as client:
        for count, message in enumerate(messages, 1):
            assert client.send(message).startswith("250 2.0.0 ")
            assert len(list((mail / "new").iterdir())) == count
    found = delivered(mail)
    if trace:
        found = [without_trace(message) for message in found]
        messages[0], messages[2] = (
            b"\r\n",
            b"\r\n" + messages[2],
        )  # an empty line parts text from the trace lines
    assert sorted(found) == sorted(messages)
    spilled = [size for size in sizes if size > THRESHOLD]
    metrics = server.metrics()
    assert metrics["fastsmtp_spilled_messages_total"] == len(spilled)
    assert metrics["fastsmtp_spilled_bytes_total"] == sum(spilled)
    assert server.end() == 0


def test_a_message_beyond_the_threshold_is_spilled_also_if_it_comes_in_one_read(
    start: Start, mail: Path
) -> None:
    server = start("--deliver", f"maildir:{mail}", "--spill-threshold", "1000", "--metrics", "127.0.0.1:0")
    messages = [_message(size) for size in (999, 1000, 1001, 9000)]
    with server.connect() as client:
        for message in messages:
            assert client.send(message).startswith("250 ")
    assert sorted(map(without_trace, delivered(mail))) == sorted(messages)
    assert server.metrics()["fastsmtp_spilled_messages_total"] == 2


@pytest.mark.parametrize("url", ["maildir:mail", "maildir:mail?trace=no", "maildir:mail?sync=no"])
def test_a_spilled_message_is_linked_and_not_copied(start: Start, mail: Path, url: str) -> None:
    _needs_proc()
    message = _message(MIB)
    server = start(
        "--deliver", url, "--spill-threshold", str(THRESHOLD), "--spill-directory", str(mail.parent)
    )
    files = Path(f"/proc/{server.workers[0]}/fd")

    def spill_files() -> list[os.stat_result]:
        found = []
        for path in files.iterdir():
            try:
                status = path.stat()
                if status.st_nlink == 0 and os.readlink(path).startswith(str(mail.parent)):
                    found.append(status)
            except FileNotFoundError:
                pass  # closed meanwhile
        return found

    with server.connect() as client:
        client.to_data()
        client.sock.sendall(open_ended(message))
        await_true(
            lambda: any(file.st_size >= MIB // 2 for file in spill_files()), "half of it in a spill file"
        )
        (spill,) = spill_files()
        client.sock.sendall(b".\r\n")
        assert client.reply().startswith("250 ")
    (path,) = (mail / "new").iterdir()
    status = path.stat()
    assert (status.st_dev, status.st_ino, status.st_nlink) == (spill.st_dev, spill.st_ino, 1)
    content = path.read_bytes()
    assert (content if "trace" in url else without_trace(content)) == message
    await_true(lambda: spill_files() == [], "no spill file open")


def test_a_message_that_breaks_off_leaves_nothing(start: Start, mail: Path, tmp_path: Path) -> None:
    spills = tmp_path / "spills"
    spills.mkdir()
    server = start(
        *("--deliver", f"maildir:{mail}", "--metrics", "127.0.0.1:0"),
        *("--spill-threshold", str(THRESHOLD), "--spill-directory", str(spills)),
    )
    with server.connect() as client:
        client.to_data()
        client.sock.sendall(open_ended(_message(MIB)))
    await_true(
        lambda: server.metrics()['fastsmtp_messages_total{result="aborted"}'] == 1, "the message aborted"
    )
    assert delivered(mail) == []
    assert list(spills.iterdir()) == []


def test_many_large_messages_at_once_take_memory_near_the_thresholds(start: Start, mail: Path) -> None:
    _needs_proc()
    clients, threshold = 20, 256 * KIB
    message = _message(8 * MIB)
    server = start(
        *("--deliver", f"maildir:{mail}?trace=no&sync=no", "--spill-threshold", str(threshold)),
        *("--spill-directory", str(mail.parent)),
    )
    status = Path(f"/proc/{server.workers[0]}/status")

    def resident(kind: str) -> int:
        found = re.search(rf"^{kind}:\s+(\d+) kB", status.read_text(), re.M)
        assert found is not None
        return int(found[1]) * KIB

    with server.connect() as warm:
        warm.send(_message(2 * threshold))
    before = resident("VmRSS")
    wire = open_ended(message)
    with ExitStack() as stack:
        senders = [stack.enter_context(server.connect()) for _ in range(clients)]
        for sender in senders:
            sender.to_data()
        step = MIB
        for begin in range(0, len(wire), step):  # side by side, so that all are under way at once
            for sender in senders:
                sender.sock.sendall(wire[begin : begin + step])
        for sender in senders:
            sender.sock.sendall(b".\r\n")
        for sender in senders:
            assert sender.reply().startswith("250 ")
    growth = resident("VmHWM") - before
    print(f"\n{clients} messages of {len(message) // MIB} MiB: the worker grew by {growth / MIB:.1f} MiB")
    assert growth < 2 * clients * threshold + 8 * MIB
    files = list((mail / "new").iterdir())
    assert len(files) == clients + 1
    assert sum(file.read_bytes() == message for file in files) == clients


# --- worker processes ---------------------------------------------------------------------------------------


def test_kill_9_of_workers_under_load_loses_nothing_that_was_answered(start: Start, mail: Path) -> None:
    server = start(
        *("--workers", "3", "--handler", "who:Who", "--deliver", f"maildir:{mail}?trace=no"),
        *("--spill-threshold", str(THRESHOLD), "--spill-directory", str(mail.parent)),
        *("--metrics", "127.0.0.1:0"),
    )
    accepted = 'fastsmtp_messages_total{result="accepted"}'
    with ExitStack() as stack:
        others = [stack.enter_context(server.connect()) for _ in range(24)]
        place = {client: client.who() for client in others}
        load = stack.enter_context(Load(server.addresses[0], clients=12))
        prober = stack.enter_context(Prober(server.addresses[0]))
        for number in (0, 1):
            load.await_more(100)
            victim = server.workers[number]
            known = server.metrics()
            os.kill(victim, signal.SIGKILL)
            server.expect(rf"worker {number} \(pid {victim}\) was killed by SIGKILL; replaced at once")
            assert server.metrics()[accepted] >= known[accepted]
            for client in [client for client in others if place[client] == victim]:
                assert client.at_end()
                others.remove(client)
            assert {client.who() for client in others} <= set(place.values()) - {victim}
            server.expect(rf"worker {number} \(pid \d+\) accepts", count=2)
            load.await_more(100)
        back = set(server.workers.values())

        def all_serve() -> bool:
            with server.connect() as client:
                back.discard(client.who())
            return not back

        await_true(all_serve, "connections on both new workers")
        assert [client.who() for client in others] == [place[client] for client in others]
    print(f"\n{len(load.answered)} answered, {len(load.unknown)} unknown, {prober.greeted} probes")
    load.check(mail)
    assert load.refused == prober.refused == 0
    assert load.broken <= 24  # a client has one connection at a time: at most one is lost for each death
    assert prober.broken <= 2
    metrics = server.metrics()
    assert len(load.answered) <= metrics[accepted] <= len(load.answered) + len(load.unknown)
    assert metrics["fastsmtp_worker_restarts_total"] == 2
    assert [metrics[f'fastsmtp_worker_up{{worker="{number}"}}'] for number in range(3)] == [1, 1, 1]
    assert server.end() == 0


@pytest.mark.parametrize("pause", [0.0, 0.001], ids=["burst", "millisecond-apart"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_400_connections_spread_over_4_workers(start: Start, loop: str, pause: float) -> None:
    server = start(
        *("--workers", "4", "--handler", "who:Who", "--deliver", "discard:", "--metrics", "127.0.0.1:0"),
        *("--loop", loop),
    )
    host, port = server.addresses[0].split(":")
    with ExitStack() as stack:
        clients = []
        if pause:
            for _ in range(400):
                clients.append(stack.enter_context(Client(server.addresses[0])))
                time.sleep(pause)  # it is the load, not a wait for something
        else:
            socks = []
            for _ in range(400):
                sock = socket.socket()
                stack.callback(sock.close)
                sock.setblocking(False)
                sock.connect_ex((host, int(port)))
                socks.append(sock)
            for sock in socks:
                sock.settimeout(PATIENCE)
                clients.append(stack.enter_context(Client(sock)))
        assert all(client.reply().startswith("220 ") for client in clients)
        spread = Counter(client.who() for client in clients)
        print(f"\n400 connections over 4 workers ({loop}): {sorted(spread.values(), reverse=True)}")
        assert max(spread.values()) <= 200
        assert set(spread) == set(server.workers.values())
        assert server.metrics()["fastsmtp_connections_active"] == 400
    await_true(lambda: server.metrics()["fastsmtp_connections_active"] == 0, "all connections over")
    assert server.metrics()["fastsmtp_connections_total"] == 400


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc that tells of sleeps")
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_new_connection_wakes_one_worker(start: Start, loop: str) -> None:
    """All are idle, and may take turns, but a worker that takes nothing sleeps on."""
    server = start("--workers", "4", "--deliver", "discard:", "--loop", loop)
    before = [sleeps(pid) for pid in server.workers.values()]
    for _ in range(200):
        with Client(server.addresses[0]) as client:
            assert client.reply().startswith("220 ")
            assert client.say("QUIT").startswith("221 ")
    woken = sum(sleeps(pid) for pid in server.workers.values()) - sum(before)
    print(f"\n200 connections woke 4 workers ({loop}) {woken} times")
    # Connection, QUIT and end each wake one of them. When a connection woke all, it was 930 times and more.
    assert 100 <= woken <= 700
    assert server.end() == 0


def sleeps(pid: int) -> int:
    """How often a process has given up its CPU to wait."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_many_tls_handshakes_at_once_all_get_their_greeting(
    start: Start, certificate: Path, loop: str
) -> None:
    server = start(
        *("--listen", "tls:127.0.0.1:0", "--tls-certificate", str(certificate), "--loop", loop),
        *("--workers", "3", "--deliver", "discard:"),
    )
    trust = ssl.create_default_context(cafile=certificate.with_name("ca.pem"))
    with ExitStack() as stack:

        def connect(_: int) -> str:
            sock = stack.enter_context(dial(server.addresses[0].removeprefix("tls:")))
            sock.settimeout(5)
            try:
                client = Client(trust.wrap_socket(sock, server_hostname="mx.example"))
                stack.callback(client.close)
                return client.reply()[:4]
            except OSError as error:
                return repr(error)

        with ThreadPoolExecutor(20) as threads:
            greetings = Counter(threads.map(connect, range(200)))
    assert greetings == {"220 ": 200}
    assert server.end() == 0


def test_a_worker_without_free_descriptors_refuses_for_now_and_recovers(start: Start, mail: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux sets the limits of another process")
    server = start("--deliver", f"maildir:{mail}?trace=no", "--spill-threshold", "1000")
    with server.connect() as client:
        with ExitStack() as stack:
            limits = resource.prlimit(server.workers[0], resource.RLIMIT_NOFILE)
            resource.prlimit(server.workers[0], resource.RLIMIT_NOFILE, (40, limits[1]))
            for _ in range(60):
                stack.enter_context(Client(server.addresses[0]))
            for size in (500, 2 * THRESHOLD):
                assert client.send(_message(size))[:4] in ("451 ", "452 ")
            assert delivered(mail) == []
        await_true(lambda: client.send(_message(500)).startswith("250 "), "a message taken again")
        with server.connect() as other:
            assert other.send(_message(2 * THRESHOLD)).startswith("250 ")
    assert sorted(map(len, delivered(mail))) == [500, 2 * THRESHOLD]
    assert server.end() == 0


def test_a_connection_is_taken_though_the_worker_that_was_woken_is_stopped(start: Start) -> None:
    server = start("--workers", "2", "--handler", "who:Who", "--deliver", "discard:")
    with server.connect() as client:
        first = client.who()  # it waits first in line
    os.kill(first, signal.SIGSTOP)
    try:
        with server.connect() as client:
            assert client.who() != first
    finally:
        os.kill(first, signal.SIGCONT)
    assert server.end() == 0


def test_a_connection_is_taken_also_when_all_but_one_worker_hang(start: Start) -> None:
    server = start("--workers", "3", "--handler", "who:Who", "--deliver", "discard:")
    with server.connect() as client:
        awake = client.who()
        asleep = [pid for pid in server.workers.values() if pid != awake]
        for pid in asleep:
            os.kill(pid, signal.SIGSTOP)
        try:
            with ExitStack() as stack:
                clients = [stack.enter_context(server.connect()) for _ in range(50)]
                assert {other.who() for other in clients} == {awake}
        finally:
            for pid in asleep:
                os.kill(pid, signal.SIGCONT)
    assert server.end() == 0


# --- where it listens ---------------------------------------------------------------------------------------


def test_every_kind_of_address_takes_mail_and_tells_its_real_port(
    start: Start, mail: Path, tmp_path: Path
) -> None:
    listen = ["127.0.0.1:0", "127.0.0.1:0", "127.0.0.2:0" if sys.platform == "linux" else "127.0.0.1:0"]
    if _has_ipv6():
        listen.append("[::1]:0")
    else:
        print("\nno IPv6 here: [::1]:0 is left out")
    listen.append(f"unix:{tmp_path}/sock")
    server = start(
        *(part for spec in listen for part in ("--listen", spec)),
        *("--workers", "2", "--deliver", f"maildir:{mail}"),
    )
    assert len(server.addresses) == len(set(server.addresses)) == len(listen)
    assert [address.rpartition(":")[0] for address in server.addresses] == [
        spec.rpartition(":")[0] for spec in listen
    ]
    for number, spec in enumerate(listen):
        with server.connect(number) as client:
            assert client.send(f"Subject: {spec}\r\n\r\n".encode()).startswith("250 ")
    found = delivered(mail)
    assert {without_trace(message) for message in found} == {
        f"Subject: {spec}\r\n\r\n".encode() for spec in listen
    }
    text = b"".join(found).decode()
    assert "Received: from client.example ([127.0.0.1])\r\n\tby mx.example with ESMTP id " in text
    assert "Received: from client.example\r\n\tby mx.example with ESMTP id " in text  # the UNIX socket
    if "[::1]:0" in listen:
        assert "Received: from client.example ([IPv6:::1])\r\n\tby mx.example with ESMTP id " in text
    assert server.end() == 0
    assert not (tmp_path / "sock").exists()


def test_a_server_that_was_killed_leaves_its_addresses_to_the_next(start: Start, tmp_path: Path) -> None:
    path = f"unix:{tmp_path}/sock"
    arguments = ("--listen", "127.0.0.1:0", "--listen", path, "--deliver", "discard:")
    server = start(*arguments)
    server.send(signal.SIGKILL, group=True)
    server.end(None)
    again = start("--listen", server.addresses[0], *arguments[2:])
    for number in (0, 1):
        with again.connect(number) as client:
            assert client.say("QUIT").startswith("221 ")
    assert again.end() == 0


# --- what cannot work ---------------------------------------------------------------------------------------


CANNOT_WORK = {
    "busy-page": (["--metrics", "BUSY"], r"cannot listen on BUSY: address already in use; .*--metrics"),
    "busy-port": (["--listen", "BUSY"], r"cannot listen on BUSY: address already in use; .*--listen"),
    "unknown-key": (["--set", "wrokers=2"], r'unknown key "wrokers"; did you mean "workers"\?'),
    "unknown-key-in-file": (["--config", "bad.toml"], r'bad.toml: unknown key "wrokers"; .* "workers"\?'),
    "unknown-option": (["--wrokers", "2"], r"no such option '--wrokers'"),
    "handler-import": (["--handler", "broken:Handler"], r"broken:Handler.*No module named 'nosuch'"),
    "handler-syntax": (["--handler", "syntax:Handler"], r"syntax:Handler.*SyntaxError"),
    "handler-name": (["--handler", "who:Nobody"], r"who:Nobody.*no attribute 'Nobody'"),
    "handler-init": (
        ["--handler", "picky:Handler", "--workers", "4"],
        r"picky.Handler.*RuntimeError: no data",
    ),
    "certificate-missing": (["--tls-certificate", "nosuch.pem"], r"cannot read nosuch.pem: no such file"),
    "certificate-bad": (
        ["--tls-certificate", "who.py"],
        r"--tls-certificate: who.py has no certificate; name a PEM file",
    ),
    "certificate-none": (["--listen", "tls:127.0.0.1:0"], r"needs tls_certificate"),
    "maildir": (
        ["--deliver", "maildir:who.py/mail", "--workers", "4"],
        r"--deliver: maildir (.*/who.py/mail): \1: Not a directory; make it",
    ),
}


@pytest.mark.parametrize(("arguments", "says"), CANNOT_WORK.values(), ids=CANNOT_WORK)
def test_what_cannot_work_is_one_clear_line_and_the_end(
    start: Start, tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "bad.toml").write_text('deliver = "discard:"\nwrokers = 2\n')
    (tmp_path / "broken.py").write_text("import nosuch\n")
    (tmp_path / "syntax.py").write_text("def Handler(:\n")
    (tmp_path / "picky.py").write_text(
        "class Handler:\n"
        "    def __init__(self):\n        raise RuntimeError('no database')\n"
        "    def handle_DATA(self, server, session, envelope):\n        return '250 OK'\n"
    )
    if not {"--deliver", "--handler", "--config"} & set(arguments):
        arguments = ["--deliver", "discard:", *arguments]
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        arguments = [part.replace("BUSY", address) for part in arguments]
        began = time.monotonic()
        server = start(*arguments, ready=False)
        status = server.end(None)
        took = time.monotonic() - began
    assert status > 0
    assert took < 5
    assert "listens on" not in server.out
    assert re.search(says.replace("BUSY", address), server.err)
    assert server.err.count("\n") == 1, server.err


# --- figures ------------------------------------------------------------------------------------------------


def test_the_page_tells_what_a_dialogue_did(start: Start, mail: Path) -> None:
    server = start("--workers", "2", "--deliver", f"maildir:{mail}", "--metrics", "127.0.0.1:0")
    small, large = _message(700), _message(1_500_000)
    with server.connect() as client:
        for line, code in [
            ("EHLO client.example", "250"),
            ("MAIL FROM:<me@a.example>", "250"),
            ("RCPT TO:<one@b.example>", "250"),
            ("RCPT TO:<two@b.example>", "250"),
            ("RCPT TO:<not an address>", "501"),
            ("RSET", "250"),
            ("DATA", "503"),
            ("VRFY someone", "252"),
            ("BOGUS", "500"),
            ("HELP", "214"),
        ]:
            assert client.say(line)[:3] == code, line
        assert client.send(small).startswith("250 ")
        assert client.send(large).startswith("250 ")
        assert client.say("QUIT").startswith("221 ")
        assert client.at_end()
    with server.connect() as client:
        client.to_data()
        client.sock.sendall(b"half a mess")
    await_true(lambda: server.metrics()["fastsmtp_connections_active"] == 0, "both connections over")
    found = server.metrics()
    expected = {
        "fastsmtp_connections_total": 2,
        "fastsmtp_connections_active": 0,
        'fastsmtp_commands_total{verb="EHLO"}': 4,
        'fastsmtp_commands_total{verb="MAIL"}': 4,
        'fastsmtp_commands_total{verb="RCPT"}': 6,
        'fastsmtp_commands_total{verb="DATA"}': 4,
        'fastsmtp_commands_total{verb="RSET"}': 1,
        'fastsmtp_commands_total{verb="VRFY"}': 1,
        'fastsmtp_commands_total{verb="HELP"}': 1,
        'fastsmtp_commands_total{verb="QUIT"}': 1,
        'fastsmtp_commands_total{verb="unknown"}': 1,
        'fastsmtp_replies_total{code="220"}': 2,
        'fastsmtp_replies_total{code="221"}': 1,
        'fastsmtp_replies_total{code="214"}': 1,
        'fastsmtp_replies_total{code="250"}': 4 + 4 + 5 + 1 + 2,
        'fastsmtp_replies_total{code="252"}': 1,
        'fastsmtp_replies_total{code="354"}': 3,
        'fastsmtp_replies_total{code="500"}': 1,
        'fastsmtp_replies_total{code="501"}': 1,
        'fastsmtp_replies_total{code="503"}': 1,
        'fastsmtp_messages_total{result="accepted"}': 2,
        'fastsmtp_messages_total{result="aborted"}': 1,
        'fastsmtp_messages_total{result="rejected"}': 0,
        'fastsmtp_messages_total{result="deferred"}': 0,
        'fastsmtp_recipients_total{result="accepted"}': 5,
        'fastsmtp_recipients_total{result="rejected"}': 1,
        "fastsmtp_message_size_bytes_count": 2,
        "fastsmtp_message_size_bytes_sum": len(small) + len(large),
        'fastsmtp_message_size_bytes_bucket{le="1000.0"}': 1,
        "fastsmtp_data_read_seconds_count": 2,
        "fastsmtp_spilled_messages_total": 1,
        "fastsmtp_spilled_bytes_total": len(large),
        "fastsmtp_buffered_bytes": 0,
        "fastsmtp_workers": 2,
        "fastsmtp_worker_restarts_total": 0,
        'fastsmtp_worker_up{worker="0"}': 1,
        'fastsmtp_worker_up{worker="1"}': 1,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["fastsmtp_received_bytes_total"] > len(small) + len(large)
    assert found['fastsmtp_handler_seconds_count{stage="data"}'] == 2
    assert found['fastsmtp_handler_seconds_sum{stage="data"}'] > 0


def test_healthz_and_other_paths(start: Start) -> None:
    server = start("--deliver", "discard:", "--metrics", "127.0.0.1:0")
    assert server.get("/healthz") == (200, "ok\n")
    status, text = server.get("/")
    assert status == 404
    assert "/metrics" in text
    assert "/healthz" in text
    assert server.end() == 0


# --- from Python --------------------------------------------------------------------------------------------

HANDLER = """\
from pathlib import Path

class Handler:
    def __init__(self, folder="kept"):
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("nobody@"):
            return "550 5.1.1 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server, session, envelope):
        (self.folder / envelope.rcpt_tos[0]).write_bytes(envelope.content)
        return "250 2.0.0 kept"
"""


@pytest.mark.parametrize(
    "handler", ["Handler('kept')", "Handler", "'ours:Handler'"], ids=["object", "class", "path"]
)
def test_run_from_a_script(start: Start, log_line: re.Pattern[str], tmp_path: Path, handler: str) -> None:
    (tmp_path / "ours.py").write_text(HANDLER)
    server = start(
        script=(
            "import sys, fastsmtp\n"
            "from ours import Handler\n"
            "if __name__ == '__main__':\n"
            f"    sys.exit(fastsmtp.run({handler}, listen='127.0.0.1:0', workers=2, hostname='mx.example'))\n"
        )
    )
    message = _message(5000)
    with server.connect() as client:
        client.say("EHLO client.example")
        client.say("MAIL FROM:<me@a.example>")
        assert client.say("RCPT TO:<nobody@b.example>") == "550 5.1.1 no such mailbox"
        client.say("RSET")
        assert client.send(message) == "250 2.0.0 kept"
    assert (tmp_path / "kept" / "you@b.example").read_bytes() == message
    assert server.end() == 0
    assert log_line.sub("", server.err) == ""


def test_run_tells_what_is_wrong_by_an_exception(tmp_path: Path) -> None:
    code = (
        "import fastsmtp\n"
        "for settings in ({'wrokers': 2}, {'deliver': 'maildri:x'}, {}):\n"
        "    try:\n        fastsmtp.run(**settings)\n"
        "    except fastsmtp.ConfigError as error:\n        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line, word in zip(lines, ["workers", "maildir", "handler"], strict=True):
        assert word in line
