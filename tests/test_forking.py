"""Forking from the middle of a program: each test runs one, with real processes, clients and signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from processes import Client, Prober, Server, await_true, starter, stuffed

from fastsmtp import forking
from fastsmtp._engine import Counters
from fastsmtp.block import Block

# The program: what stands behind start() runs in the children alone.
PROGRAM = """\
import asyncio, atexit, fcntl, json, logging, os, signal, stat, sys
from contextlib import closing
from pathlib import Path

import uvloop

from fastsmtp import forking, sockets
from fastsmtp._engine import Counters
from fastsmtp.config import Config
from fastsmtp.errors import ConfigError
from fastsmtp.children import END_NOW
from fastsmtp.supervisor import Timing
from fastsmtp.worker import Worker
from who import Who

options = {"processes": 2, "restarts": 20, "drain": 10.0, "way": "run_forever", **json.loads(sys.argv[1])}
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")


class Handler(Who):
    async def handle_DATA(self, server, session, envelope):
        return "250 2.0.0 kept"


def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())


def pipes():
    held = 0
    for descriptor in range(3, 256):
        try:
            held += stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        except OSError:
            pass
    return held


def stopped():
    say("stopped", os.getpid())
    sockets.close(listeners)


def fault(name):
    place = Path(f"{name}-{child.number}")
    if place.exists():
        left = int(place.read_text())
        place.write_text(str(left - 1))
        return left > 0


config = Config.of(listen=["127.0.0.1:0"], hostname="mx.example", drain_timeout=options["drain"])
listeners = sockets.bind(config.listen, config.backlog)
say("address", listeners[0].address)
say("parent", os.getpid())
atexit.register(lambda: say("atexit", os.getpid()))
print("buffered ", end="")  # must not be written once more by each child

try:
    child = forking.start(
        options["processes"],
        options["restarts"],
        drain_timeout=config.drain_timeout,
        on_ready=lambda: say("ready"),
        on_stop=stopped,
        timing=Timing(**{"backoff": 0.02, "backoff_limit": 0.1, **options.get("timing", {})}),
    )
except BaseException as error:
    say("left by", repr(error))
    raise

actions = [signal.getsignal(getattr(signal, name)).name for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGCHLD")]
blocked = len(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
wakeup = signal.set_wakeup_fd(-1)
say("child", child.number, os.getpid(), *actions, "blocked", blocked, "wakeup", wakeup, "pipes", pipes())
if fault("raise"):
    raise RuntimeError("a fault before the loop runs")
if fault("exit"):
    sys.exit(0)


async def open_worker():
    if fault("config"):
        raise ConfigError("cannot open the mailbox ./mail: make it")
    if fault("open"):
        raise RuntimeError("a fault while it opens")
    global worker
    counters = Counters(child.slot)
    worker = Worker(config, listeners, handler=Handler(), counters=counters, loads=child.loads)
    await worker.start()
    if options.get("cancels"):
        asyncio.get_running_loop().call_soon(life.cancel)
    return worker


def let_go(life):
    say("let go", life.cancelled(), *(signal.getsignal(number).name for number in (signal.SIGTERM, END_NOW)))


async def main():
    await child.attach(open_worker)


make = asyncio.new_event_loop if options.get("loop") == "asyncio" else uvloop.new_event_loop
if options["way"] == "run":
    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(main())
else:
    if options.get("loop") == "asyncio":
        asyncio.set_event_loop(make())
    with closing(forking.event_loop()) as loop:
        assert asyncio.get_event_loop() is loop
        say("loop", type(loop).__module__)
        if options["way"] == "run_forever":
            life = child.attach(open_worker)
            if options.get("cancels"):
                life.add_done_callback(let_go)
            loop.run_forever()
        else:
            loop.run_until_complete(child.attach(open_worker, stop=lambda: None))
say("after the loop", os.getpid())
"""

Begin = Callable[..., Server]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts the program; returns once all children accept, or with ``ready=False`` at once."""
    with starter(tmp_path) as start:

        def begin(*, ready: bool = True, **options: object) -> Server:
            server = start(json.dumps(options), script=PROGRAM, ready=False, interpreter=["-Werror"])
            server.addresses = [server.expect(r"^address (.*)\n", "out")[1]]
            if ready:
                server.expect(r"^ready\n", "out")
                server.expect(r"accepts\n", count=int(str(options.get("processes", 2))))
            return server

        yield begin


def _reach(server: Server, pid: int) -> Client:
    """A connection that the worker ``pid`` took. Those that others took stay meanwhile: who has more than its share
    leaves the next ones to others, and short connections would all go to the same.
    """
    with contextlib.ExitStack() as others:
        found: list[Client] = []

        def reached() -> bool:
            client = Client(server.addresses[0])
            # One that ends just now may have taken it, and be gone, or say 421.
            with contextlib.suppress(ConnectionError):
                if client.reply().startswith("220 ") and client.say("NOOP") == f"250 2.0.0 {pid}":
                    found.append(client)
                    return True
            others.enter_context(client)
            return False

        await_true(reached, f"a connection to {pid}")
        return found[0]


def _count(server: Server, words: str) -> int:
    return len(re.findall(rf"^{words}", server.out, re.M))


def _refused(server: Server) -> bool:
    try:
        Client(server.addresses[0]).close()
    except ConnectionRefusedError:
        return True
    return False


LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


# --- serving ------------------------------------------------------------------------------------------------


@LOOPS
def test_each_child_returns_and_answers_on_the_shared_socket(begin: Begin, loop: str) -> None:
    server = begin(loop=loop)
    for pid in server.workers.values():
        _reach(server, pid).close()
    assert server.end() == 0
    assert set(re.findall(r"^loop (\w+)", server.out, re.M)) == {loop}
    assert server.out.count("\nready\n") == 1


def test_0_processes_are_one_for_each_cpu(begin: Begin) -> None:
    server = begin(processes=0, ready=False)
    server.expect(r"^ready\n", "out")
    assert server.end() == 0
    assert set(server.workers) == set(range(len(os.sched_getaffinity(0))))


@LOOPS
@pytest.mark.parametrize("way", ["run", "until_complete"])
def test_a_main_coroutine_that_waits_for_the_worker_ends_with_it(begin: Begin, loop: str, way: str) -> None:
    server = begin(loop=loop, way=way)
    server.connect().close()
    assert server.end() == 0
    assert _count(server, "after the loop") == 2
    assert "Traceback" not in server.err


def test_a_child_holds_nothing_of_the_supervisors(begin: Begin) -> None:
    server = begin(processes=3)
    os.kill(server.workers[1], signal.SIGKILL)
    server.expect(r"worker 1 .* accepts\n", count=2)
    server.send(signal.SIGHUP)
    server.expect("all workers are replaced")
    server.expect(r"child \d \d+ ", "out", count=7)
    states = re.findall(r"child \d \d+ (.*)", server.out)
    # Two pipes: the lifeline, and the one by which it tells that it is ready.
    assert states == ["SIG_DFL SIG_IGN SIG_IGN SIG_DFL blocked 0 wakeup -1 pipes 2"] * 7
    assert server.end() == 0
    assert server.out.count("buffered") == 1


# --- deaths -------------------------------------------------------------------------------------------------


def test_kill_9_of_a_child_costs_the_other_nothing_and_it_comes_back(begin: Begin) -> None:
    server = begin()
    first, second = server.workers[0], server.workers[1]
    with _reach(server, second) as client, Prober(server.addresses[0]) as prober:
        client.to_data()
        os.kill(first, signal.SIGKILL)
        server.expect(r"worker 0 \(pid \d+\) accepts\n", count=2)
        client.sock.sendall(stuffed(b"Subject: hi\r\n\r\nhello\r\n"))
        assert client.reply().startswith("250 ")
        assert client.who() == second
        new = server.workers[0]
        assert new != first
        _reach(server, new).close()
    assert prober.refused == 0
    assert server.end() == 0


def test_a_child_that_raises_before_the_loop_runs_is_started_again_after_longer_and_longer(
    begin: Begin, tmp_path: Path
) -> None:
    (tmp_path / "raise-0").write_text("4")
    server = begin(timing={"backoff": 0.02, "backoff_limit": 0.05})
    assert re.findall(r"worker 0 .* before it could accept; replaced (.*)", server.err) == [
        "at once",
        "in 0.02 s",
        "in 0.04 s",
        "in 0.05 s",
    ]
    assert server.err.count("RuntimeError: a fault before the loop runs") == 4
    _reach(server, server.workers[0]).close()
    assert server.end() == 0


@LOOPS
@pytest.mark.parametrize("way", ["run_forever", "run"])
def test_a_worker_that_cannot_be_opened_ends_its_process_and_is_tried_again(
    begin: Begin, tmp_path: Path, loop: str, way: str
) -> None:
    (tmp_path / "open-0").write_text("1")
    (tmp_path / "config-1").write_text("1")
    server = begin(loop=loop, way=way)
    assert server.err.count("RuntimeError: a fault while it opens") == 1
    assert server.err.count("Traceback") == 1  # a ConfigError is one line
    assert len(re.findall(r"^cannot open the mailbox ./mail: make it\n", server.err, re.M)) == 1
    assert re.search(rf"worker 0 .* ended with status {os.EX_SOFTWARE} before it could accept", server.err)
    assert re.search(rf"worker 1 .* ended with status {os.EX_CONFIG} before it could accept", server.err)
    assert server.end() == 0


def test_after_max_restarts_the_others_drain_and_the_status_is_1(begin: Begin) -> None:
    server = begin(restarts=2)
    with _reach(server, server.workers[1]) as client:
        client.to_data()
        for deaths in (1, 2):
            os.kill(server.workers[0], signal.SIGKILL)
            server.expect(r"worker 0 \(pid \d+\) accepts\n", count=1 + deaths)
        os.kill(server.workers[0], signal.SIGKILL)
        line = r"^worker 0 .* was killed by SIGKILL; max_restarts=2 is used up, so the server ends\n"
        server.expect(line)
        server.expect(r"^stopped", "out")
        client.sock.sendall(stuffed(b"Subject: hi\r\n\r\nhello\r\n"))
        assert client.reply().startswith("250 ")
    assert server.end(None) == 1
    assert len(re.findall(line, server.err, re.M)) == 1


def test_no_restart_at_all(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "raise-0").write_text("9")
    (tmp_path / "raise-1").write_text("9")
    server = begin(restarts=0, ready=False)
    assert server.end(None) == 1
    assert server.err.count("max_restarts=0 is used up") == 1


def test_a_child_that_somebody_drains_is_replaced_and_has_not_crashed(begin: Begin) -> None:
    server = begin(restarts=0)
    os.kill(server.workers[0], signal.SIGTERM)
    server.expect(r"worker 0 \(pid \d+\) accepts\n", count=2)
    # It may be gone when the supervisor looks.
    server.expect(
        r"worker 0 .* (drains, and was not told to by its supervisor|ended with status 0); replaced at once"
    )
    _reach(server, server.workers[0]).close()
    assert server.end() == 0


def test_a_child_that_runs_no_loop_counts_as_one_that_crashed(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "exit-0").write_text("9")
    server = begin(restarts=3, ready=False)
    assert server.end(None) == 1
    assert len(re.findall("ended with status 0 before it could accept", server.err)) == 4


# --- ends ---------------------------------------------------------------------------------------------------


@LOOPS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("group", [False, True], ids=["parent", "group"])
def test_a_signal_drains_both_and_the_loops_stop(
    begin: Begin, loop: str, number: signal.Signals, group: bool
) -> None:
    server = begin(loop=loop)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(_reach(server, pid)) for pid in server.workers.values()]
        for client in clients:
            client.to_data()
        server.send(number, group=group)
        await_true(lambda: _refused(server), "the port closed")
        for client in clients:
            client.sock.sendall(stuffed(b"Subject: hi\r\n\r\nhello\r\n"))
            assert client.reply().startswith("250 ")
            assert client.say("NOOP").startswith("421 4.3.2 ")
    assert server.end(None) == 0
    parent = int(re.findall(r"^parent (\d+)", server.out, re.M)[0])
    assert _pids(server, "after the loop") == sorted(server.workers.values())  # never the parent
    assert _pids(server, "stopped") == [parent]
    assert _pids(server, "atexit") == sorted([parent, *server.workers.values()])
    assert re.findall(r"^.*left by (.*)", server.out, re.M) == ["SystemExit(0)"]
    assert "Traceback" not in server.err
    assert "Task was destroyed" not in server.err


def _pids(server: Server, words: str) -> list[int]:
    return sorted(int(pid) for pid in re.findall(rf"{words} (\d+)$", server.out, re.M))


@LOOPS
def test_a_second_signal_ends_the_children_now(begin: Begin, loop: str) -> None:
    server = begin(loop=loop, timing={"grace": 15.0})
    with _reach(server, server.workers[0]) as client:
        client.to_data()
        server.send(signal.SIGTERM)
        server.expect(r"^stopped", "out")
        server.send(signal.SIGTERM)
        assert client.reply().startswith("421 4.3.2 ")
    assert server.end(None) == 0
    assert _count(server, "after the loop") == 2
    assert "SIGKILL" not in server.err


def test_a_message_that_does_not_end_is_waited_for_no_longer_than_drain_timeout(begin: Begin) -> None:
    server = begin(drain=0.2)
    with _reach(server, server.workers[0]) as client:
        client.to_data()
        server.send(signal.SIGTERM)
        assert client.reply().startswith("421 4.3.2 ")
    assert server.end(None) == 0
    assert _count(server, "after the loop") == 2


@LOOPS
def test_children_drain_and_end_when_the_parent_is_killed(begin: Begin, loop: str) -> None:
    server = begin(loop=loop)
    with _reach(server, server.workers[0]) as client:
        client.to_data()
        server.send(signal.SIGKILL)
        client.sock.sendall(stuffed(b"Subject: hi\r\n\r\nhello\r\n"))
        assert client.reply().startswith("250 ")
        assert server.end(None) == -signal.SIGKILL
    assert _count(server, "after the loop") == 2


@LOOPS
def test_a_worker_that_is_let_go_leaves_the_signals_as_they_were(begin: Begin, loop: str) -> None:
    server = begin(loop=loop, cancels=True)
    server.expect(r"^let go True SIG_DFL SIG_DFL\n", "out", count=2)
    assert server.end() == 0
    assert "SIGKILL" not in server.err


def test_sighup_replaces_the_children_one_after_another(begin: Begin) -> None:
    server = begin()
    old = set(server.workers.values())
    with Prober(server.addresses[0]) as prober:
        server.send(signal.SIGHUP)
        server.expect("all workers are replaced")
    assert (prober.refused, prober.broken) == (0, 0)
    assert not old & set(server.workers.values())
    _reach(server, server.workers[1]).close()
    assert server.end() == 0


# --- before a fork ------------------------------------------------------------------------------------------


def _start(number: int | None, restarts: int | None = None) -> forking.Child | None:
    return forking.start(number, restarts, drain_timeout=1.0)


def test_one_process_is_this_one() -> None:
    assert _start(1) is None


@pytest.mark.parametrize(("number", "restarts"), [(-1, None), (2, -1)])
def test_negative_numbers_are_refused(number: int, restarts: int | None) -> None:
    with pytest.raises(ValueError, match="can be negative"):
        _start(number, restarts)


@LOOPS
def test_a_loop_that_runs_is_refused(loop: str) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="cannot share an event loop; fork them before there is one"):
            _start(2)

    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


@pytest.fixture
def no_loop() -> Iterator[None]:
    asyncio.set_event_loop(None)
    yield
    asyncio.set_event_loop(None)


@pytest.mark.usefixtures("no_loop")
def test_a_loop_that_would_be_run_is_refused_and_found_again() -> None:
    loop = forking.event_loop()
    assert isinstance(loop, uvloop.Loop)
    assert forking.event_loop() is loop
    assert asyncio.get_event_loop_policy().get_event_loop() is loop
    with pytest.raises(RuntimeError, match="cannot share an event loop"):
        _start(2)
    loop.close()
    other = forking.event_loop()
    assert other is not loop
    other.close()


@pytest.mark.usefixtures("no_loop")
def test_another_thread_is_refused() -> None:
    raised: list[Exception] = []

    def fork() -> None:
        try:
            _start(2)
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    assert [str(error) for error in raised] == ["processes can be forked in the main thread only"]


def test_loads_are_those_of_the_workers_that_are_up() -> None:
    block = Block(2)
    for number in (0, 1, 2):
        counters = Counters(block.slot(number))
        counters.add(forking.index("fastsmtp_connections_active"), 3 + number)
        block.note_up(number)
    block.note_down(1)
    assert forking.loads(block)() == [3, 5]
