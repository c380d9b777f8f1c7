"""Beginnings: from the start of a server to its first greeting, and a roll of fastsmtp's workers under load.

A roll (SIGHUP) replaces every worker by a new process while mail comes in. It has succeeded when no process
of before is left and no message has failed.
"""

import os
import signal
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from . import bench
from .client import BenchmarkError
from .contender import Contender
from .process import START_SECONDS, Server, children, come_and_go, cpu_nanoseconds
from .serving import prepared, serving

STARTS = 5
ROLLS = 5
WORKERS = 2
RATE = 500  # messages a second, each on a new connection
LOAD_SECONDS = 15
POLL_SECONDS = 0.001
BUSY_NANOSECONDS = 20_000_000  # of a worker since its start: it is under load


def wait_until(done: Callable[[], bool], seconds: float, what: str) -> float:
    """Seconds that it took. BenchmarkError with `what` if it takes longer than it may."""
    started = time.perf_counter()
    while not done():
        if time.perf_counter() - started > seconds:
            raise BenchmarkError(f"{what} in {seconds:.0f} s")
        time.sleep(POLL_SECONDS)
    return time.perf_counter() - started


def greets(server: Server) -> bool:
    server.check_alive()
    try:
        come_and_go(server.port, implicit_tls=False)
    except OSError:
        return False
    return True


def start(contender: Contender) -> float:
    """Seconds from the start of the process to the end of a first short session."""
    with prepared(contender) as (command, setup):
        started = time.perf_counter()
        server = Server(contender.name, command, setup.port, None)
        try:
            wait_until(lambda: greets(server), START_SECONDS, f"{contender.name} did not answer")
            return time.perf_counter() - started
        finally:
            server.close()


def starts(contender: Contender, count: int = STARTS) -> dict[str, float]:
    """By column, in milliseconds; a first start that warms the file cache is not in it."""
    start(contender)
    found = sorted(start(contender) * 1e3 for _ in range(count))
    return {"ms, median": statistics.median(found), "longest": found[-1]}


def roll(server: Server) -> float:
    """Seconds from SIGHUP until all workers are new ones and those of before are gone."""
    before = set(children(server.pid))

    def rolled() -> bool:
        server.check_alive()
        now = set(children(server.pid))
        return len(now) == len(before) and not now & before

    os.kill(server.pid, signal.SIGHUP)
    return wait_until(rolled, START_SECONDS, "not all workers were replaced")


def rolls(contender: Contender, count: int = ROLLS, seconds: float = LOAD_SECONDS) -> dict[str, float]:
    """By column. BenchmarkError if a message fails, or if the load ends before the last roll."""
    words = ["--new", "--rate", str(RATE), "--messages", str(round(RATE * seconds)), "--size", "4096"]
    with serving(contender, workers=WORKERS) as (server, setup), ThreadPoolExecutor(1) as pool:
        rest = sum(map(cpu_nanoseconds, children(server.pid)))
        load = pool.submit(bench.run, words, setup.port)

        def loaded() -> bool:
            busy = sum(map(cpu_nanoseconds, children(server.pid))) - rest
            return busy > BUSY_NANOSECONDS or load.done()

        wait_until(loaded, START_SECONDS, "no load came")
        found = sorted(roll(server) * 1e3 for _ in range(count))
        if load.done():
            load.result()
            raise BenchmarkError(f"the load was over before the last of {count} rolls")
        report = load.result()
    return {
        "ms, median": statistics.median(found),
        "longest": found[-1],
        "rolls": count,
        "messages": report["messages"],
        "failed": report["failed"],
        "longest message, ms": report["latency"]["message"]["max"] * 1e3,
    }
