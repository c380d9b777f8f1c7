"""Workers that hang, with real ``fastsmtp serve`` processes: they end, whether their supervisor lives or not."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import PATIENCE, Client, Server, Start, await_true, starter, stuffed
from test_forking import PROGRAM

# VRFY hangs in one of three ways. The last holds the interpreter's lock.
HANGS = """\
import os
import re
import time

class Hangs:
    async def handle_NOOP(self, server, session, envelope, argument):
        return f"250 2.0.0 {os.getpid()}"

    def handle_VRFY(self, server, session, envelope, address):
        if address == "loop":
            while True:
                pass
        if address == "sleep":
            time.sleep(1000)
        re.match("(a|a)*b", "a" * 60)

    async def handle_DATA(self, server, session, envelope):
        return "250 2.0.0 kept"
"""
WAYS = ["loop", "sleep", "regex", "SIGSTOP"]

on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process that its parent died"
)


def _hang(client: Client, way: str) -> int:
    """Has the client's worker hang; returns its pid."""
    pid = client.who()
    if way == "SIGSTOP":
        os.kill(pid, signal.SIGSTOP)
    else:
        client.sock.sendall(f"VRFY {way}\r\n".encode())
    return pid


def _other_than(server: Server, pid: int) -> Client:
    """A client of another worker: one that holds more than its share leaves new connections to the others."""
    with contextlib.ExitStack() as stack:
        while True:
            client = server.connect()
            if client.who() != pid:
                return client
            stack.enter_context(client)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("way", WAYS)
def test_a_worker_that_hangs_is_named_killed_and_replaced(
    start: Start, tmp_path: Path, way: str, loop: str
) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    server = start(
        *("--workers", "2", "--handler", "hangs:Hangs", "--worker-timeout", "0.5", "--loop", loop),
    )
    with server.connect() as client, _other_than(server, client.who()) as beside:
        other = beside.who()
        began = time.monotonic()
        pid = _hang(client, way)
        line = server.expect(
            rf"(worker \d) \(pid {pid}\): its event loop has stood still for (\d\.\d) s, worker_timeout is 0\.5; "
            "SIGKILL"
        )
        assert client.at_end()
        assert time.monotonic() - began < 5
        server.expect(rf"{line[1]} \(pid {pid}\) was killed by SIGKILL; replaced at once")
        server.expect(rf"{line[1]} .* accepts", count=2)
        assert beside.who() == other
        _other_than(server, other).close()
    assert ('hangs.py", line ' in server.err and " in handle_VRFY\n" in server.err) == (way != "SIGSTOP")
    assert ("It did not tell where it was" in server.err) == (way == "SIGSTOP")
    assert server.end() == 0


def test_the_last_worker_that_hangs_is_replaced_and_who_waits_is_served(start: Start, tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    server = start("--handler", "hangs:Hangs", "--worker-timeout", "0.5")
    with server.connect() as client:
        _hang(client, "loop")
        with Client(server.addresses[0]) as waiting:  # the kernel takes it
            assert waiting.reply().startswith("220 ")
    assert server.end() == 0


def test_worker_timeout_0_waits_for_ever(start: Start, tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    server = start("--handler", "hangs:Hangs", "--worker-timeout", "0", "--metrics", "127.0.0.1:0")
    with server.connect() as client:
        pid = _hang(client, "SIGSTOP")
        age = 'fastsmtp_worker_heartbeat_age_seconds{worker="0"}'
        await_true(lambda: server.metrics()[age] > 3, "an old heartbeat")
        os.kill(pid, signal.SIGCONT)
        assert client.who() == pid
    assert server.end() == 0


def test_a_terminal_that_stops_all_processes_costs_no_worker(start: Start, tmp_path: Path) -> None:
    server = start(
        *("--workers", "2", "--handler", "who:Who", "--deliver", "discard:", "--worker-timeout", "0.3"),
    )
    workers = dict(server.workers)
    with server.connect() as client:
        pid = client.who()
        for _ in range(3):
            server.send(signal.SIGSTOP, group=True)
            time.sleep(0.6)  # the fault itself: longer than worker_timeout
            server.send(signal.SIGCONT, group=True)
            assert client.who() == pid
    assert server.workers == workers
    assert server.end() == 0
    assert "SIGKILL" not in server.err


def test_a_worker_that_starts_or_drains_slowly_does_not_hang(start: Start, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, time\n\n"
        "class Slow:\n"
        "    def __init__(self):\n"
        "        self.pid = os.getpid()\n"
        "    def handle_NOOP(self, server, session, envelope, argument):\n"
        "        time.sleep(3)\n"
        "        return '250 2.0.0 done'\n"
        "    async def handle_DATA(self, server, session, envelope):\n"
        "        return '250 2.0.0 kept'\n"
    )
    server = start("--handler", "slow:Slow", "--worker-timeout", "1", "--drain-timeout", "20")
    with server.connect() as client:
        client.to_data()
        server.send(signal.SIGTERM)
        server.expect("SIGTERM: the workers drain")
        client.sock.sendall(stuffed(b"Subject: hi\r\n\r\nhello\r\n") + b"NOOP\r\n")
        assert client.reply() == "250 2.0.0 kept"
    assert server.end(None) == 0
    assert "stood still" not in server.err


def test_health_is_503_when_the_only_worker_hangs(start: Start, tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    server = start("--handler", "hangs:Hangs", "--worker-timeout", "0", "--metrics", "127.0.0.1:0")
    with server.connect() as client:
        assert server.get("/healthz") == (200, "ok\n")
        began = time.monotonic()
        pid = _hang(client, "SIGSTOP")
        await_true(lambda: server.get("/healthz")[0] == 503, "health as a balancer should see it")
        assert 8 < time.monotonic() - began < 13
        os.kill(pid, signal.SIGCONT)
        await_true(lambda: server.get("/healthz")[0] == 200, "health again")
    assert server.end() == 0


def test_a_healthy_worker_does_not_leave_connections_to_one_that_hangs(start: Start, tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    server = start(
        *("--workers", "2", "--handler", "hangs:Hangs", "--worker-timeout", "0", "--metrics", "127.0.0.1:0"),
    )
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(server.connect())
        pid = _hang(client, "loop")
        number = next(number for number, its in server.workers.items() if its == pid)
        age = f'fastsmtp_worker_heartbeat_age_seconds{{worker="{number}"}}'
        await_true(lambda: server.metrics()[age] > 2.5, "an old heartbeat")
        began = time.monotonic()
        for _ in range(200):
            stack.enter_context(server.connect())
        took = time.monotonic() - began
        print(f"\n{200 / took:.0f} new connections a second beside a worker that hangs")
        assert took < 1  # 94 a second would be two
        os.kill(pid, signal.SIGKILL)
        server.expect(rf"worker {number} .* accepts", count=2)
    assert server.end() == 0


# --- orphans ------------------------------------------------------------------------------------------------


@on_linux
@pytest.mark.parametrize("way", WAYS)
def test_a_worker_that_hangs_does_not_outlive_its_supervisor_for_long(
    start: Start, tmp_path: Path, way: str
) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    options = ("--handler", "hangs:Hangs", "--worker-timeout", "0", "--drain-timeout", "0.1")
    server = start(*options, "--metrics", "127.0.0.1:0")
    with server.connect() as client:
        _hang(client, way)
        began = time.monotonic()
        assert server.end(signal.SIGKILL) == -signal.SIGKILL  # with all processes
        assert time.monotonic() - began < 6  # 3 s: drain_timeout and the supervisor's 2 seconds, rounded up
    again = start(*options, "--listen", server.addresses[0])
    again.connect().close()
    assert again.end() == 0


@on_linux
def test_a_child_of_a_program_that_hangs_does_not_outlive_its_parent_for_long(tmp_path: Path) -> None:
    with starter(tmp_path) as start:
        program = PROGRAM.replace(
            "async def handle_DATA",
            "def handle_VRFY(self, server, session, envelope, address):\n"
            "        while True:\n"
            "            pass\n\n"
            "    async def handle_DATA",
        )
        server = start('{"drain": 0.1}', script=program, ready=False)
        server.addresses = [server.expect(r"^address (.*)\n", "out")[1]]
        server.expect(r"accepts\n", count=2)
        with server.connect() as client:
            client.sock.sendall(b"VRFY you\r\n")
            assert server.end(signal.SIGKILL) == -signal.SIGKILL


@on_linux
def test_an_orphan_that_does_not_hang_finishes_its_message(start: Start, tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    server = start("--handler", "hangs:Hangs", "--drain-timeout", "5")
    with server.connect() as client:
        pid = client.who()
        client.to_data()
        os.kill(pid, signal.SIGSTOP)  # wakes when the supervisor dies
        server.send(signal.SIGKILL)
        client.sock.sendall(stuffed(b"Subject: hi\r\n\r\nhello\r\n"))
        assert client.reply() == "250 2.0.0 kept"
    assert server.end(None) == -signal.SIGKILL


# --- signals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_signal_that_means_nothing_is_ignored_with_a_line(
    start: Start, log_line: re.Pattern[str], loop: str
) -> None:
    server = start(
        *("--workers", "2", "--handler", "who:Who", "--deliver", "discard:", "--metrics", "127.0.0.1:0"),
        *("--loop", loop),
    )
    with server.connect() as client:
        pid = client.who()
        numbers = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGRTMIN + 1]
        numbers += [signal.SIGWINCH, signal.SIGPIPE, signal.SIGURG, signal.SIGCONT]
        for number in numbers:
            server.send(number, group=True)
        for name in ("SIGUSR1", "SIGUSR2", "SIGALRM", f"signal {signal.SIGRTMIN + 1}"):
            # The supervisor, two workers, and the page's process.
            server.expect(rf"WARNING \S+ {name} means nothing to this server: ignored\n", count=4)
        assert client.who() == pid
        assert server.get("/healthz")[0] == 200
    assert server.end() == 0
    assert re.findall(r".*killed by.*", server.err) == []


def test_a_log_that_nobody_reads_holds_up_neither_supervisor_nor_workers(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    read, write = os.pipe()
    options = ("--workers", "2", "--worker-timeout", "0.5", "--hostname", "mx.example")
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "fastsmtp",
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--handler",
            "hangs:Hangs",
            *options,
        ],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=write,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            found = re.match(r"fastsmtp listens on (\S+) ", process.stdout.readline())
            assert found is not None
            os.set_blocking(write, False)  # for the server, too: the description is the same
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(write, b"x")
            os.set_blocking(write, True)
            for way in ("SIGSTOP", "loop"):
                with Client(found[1]) as client:
                    assert client.reply().startswith("220 ")
                    victim = _hang(client, way)
                    assert client.at_end()

                def served(victim: int = victim, address: str = found[1]) -> bool:
                    with Client(address) as client:
                        return client.reply().startswith("220 ") and client.who() != victim

                await_true(served, "a greeting of another worker")
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            os.close(read)
            os.close(write)
