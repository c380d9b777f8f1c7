"""Several clients that send large messages at once: the worker's peak memory, and how long others wait.

One more connection sends NOOP after NOOP meanwhile; its longest wait tells whether large mail stalls the
loop. Senders and probe share the machine with the server, so look at the floor's wait, too.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .client import BenchmarkError, Client
from .contender import Contender
from .idle import resident
from .process import ROOT, before_exec, cpu_nanoseconds
from .serving import serving

WARM_UP_SIZE = 4096
PAUSE_SECONDS = 0.001  # between two NOOPs: without it the probe takes a CPU for itself


def peak_resident(pid: int) -> int:
    """The highest resident memory of a process in bytes since `forget_peak`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise BenchmarkError(f"process {pid} has no memory any more")


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def noop_wait(client: Client) -> float:
    """Seconds from NOOP to its reply."""
    started = time.perf_counter()
    client.command("NOOP", "250")
    return time.perf_counter() - started


@contextmanager
def senders(port: int, clients: int, size: int) -> Iterator["subprocess.Popen[str]"]:
    """benchmarks.senders at work: all its clients have reached DATA."""
    command = [sys.executable, "-m", "benchmarks.senders", str(port), str(clients), str(size)]
    pipe = subprocess.PIPE
    start = before_exec()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, preexec_fn=start
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def finish(process: "subprocess.Popen[str]") -> int:
    """Nanoseconds that the sending took. BenchmarkError unless each message was accepted."""
    assert process.stdout is not None
    assert process.stderr is not None
    # Not communicate(): it loses what readline() has read ahead. All of the senders' waits have an end.
    words = process.stdout.read().split()
    errors = process.stderr.read()
    if process.wait() != 0 or words[:1] != ["nanoseconds"]:
        last = (errors.strip().splitlines() or ["they said nothing"])[-1]
        raise BenchmarkError(f"the senders ended with status {process.returncode}: {last}")
    return int(words[1])


def large(contender: Contender, clients: int, size: int) -> dict[str, float]:
    """The figures of one server, by column. BenchmarkError unless each message was accepted."""
    settings = (f"max_message_size={2 * size}",)
    with serving(contender, settings=settings) as (server, setup):
        port = setup.port
        worker = contender.worker(server)
        with senders(port, clients, WARM_UP_SIZE) as process:
            finish(process)
        with Client(port) as probe:
            probe.hello("probe.example")
            quiet = [noop_wait(probe) for _ in range(200)]
            server.cpu()  # waits for rest
            before = resident(worker)["Rss"]
            forget_peak(worker)
            used = cpu_nanoseconds(worker)
            waits: list[float] = []
            with senders(port, clients, size) as process:
                while not waits or process.poll() is None:
                    waits.append(noop_wait(probe))
                    time.sleep(PAUSE_SECONDS)
                wall = finish(process)
            server.cpu()
            used = cpu_nanoseconds(worker) - used
            peak = peak_resident(worker)
            probe.command("QUIT", "221")
    waits.sort()
    return {
        "RSS MiB before": before / 2**20,
        "peak RSS MiB": peak / 2**20,
        "seconds": wall / 1e9,
        "CPU ms": used / 1e6,
        "NOOP ms, at rest": statistics.median(quiet) * 1e3,
        "meanwhile, median": statistics.median(waits) * 1e3,
        "99 %": waits[len(waits) * 99 // 100] * 1e3,
        "longest": waits[-1] * 1e3,
        "NOOPs": len(waits),
    }
