"""Many idle connections on one worker: what each costs in memory, and what they cost a new client.

Resident memory is the worker's own; the kernel's socket structures are the same for every server and lie
outside of it.
"""

import resource
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .client import BenchmarkError, Client
from .contender import Contender
from .process import Server, cpu_nanoseconds
from .serving import serving

# Ephemeral ports are some 28,000 for each source address; 127.0.0.0/8 has addresses enough.
PER_ADDRESS = 5000
WARM_UP = 20
OPENED_AT_ONCE = 50
NEW_CLIENTS = 100
REST_SECONDS = 3.0
SPARE_DESCRIPTORS = 200


def resident(pid: int) -> dict[str, int]:
    """Rss and Pss of a process in bytes, summed over its mappings."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("Rss", "Pss"):
            found[name] = int(value.split()[0]) * 1024
    return found


def source_address(number: int) -> str:
    return f"127.0.0.{2 + number // PER_ADDRESS}"


@contextmanager
def idlers(server: Server, count: int) -> Iterator[None]:
    """That many connections, greeted and through EHLO."""

    def idler(number: int) -> Client:
        client = Client(server.port, source=source_address(number))
        client.hello("idle.example")
        return client

    # Some at once, as there are servers that wait a tenth of a second before they greet.
    with ExitStack() as stack, ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
        for client in pool.map(idler, range(count)):
            stack.enter_context(client)
        yield


def need_descriptors(connections: int) -> None:
    """Raise this process's limit, which servers inherit. BenchmarkError if it cannot be enough."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise BenchmarkError(
            f"{connections} connections need {needed} descriptors; the limit (ulimit -Hn) is {hard}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def idle(contender: Contender, connections: int, rest: float = REST_SECONDS) -> dict[str, float]:
    """The figures of one server, by column; its CPU is watched for `rest` seconds.

    BenchmarkError if a connection fails.
    """
    with serving(contender) as (server, setup):
        worker = contender.worker(server)
        with idlers(server, WARM_UP):
            pass
        server.cpu()  # waits for rest
        before = resident(worker)
        with idlers(server, connections):
            server.cpu()
            after = resident(worker)
            waits = sorted(new_client(setup.port) for _ in range(NEW_CLIENTS))
            used = cpu_nanoseconds(worker)
            time.sleep(rest)
            used = cpu_nanoseconds(worker) - used
    return {
        "RSS KiB/connection": (after["Rss"] - before["Rss"]) / connections / 1024,
        "PSS KiB/connection": (after["Pss"] - before["Pss"]) / connections / 1024,
        "RSS MiB before": before["Rss"] / 2**20,
        "RSS MiB with all": after["Rss"] / 2**20,
        "new client, ms, median": statistics.median(waits) * 1e3,
        "longest": waits[-1] * 1e3,
        "CPU ms/s at rest": used / 1e6 / rest,
    }


def new_client(port: int) -> float:
    """Seconds from connecting to the end of the reply to EHLO."""
    started = time.perf_counter()
    with Client(port) as client:
        client.hello("new.example")
        waited = time.perf_counter() - started
        client.command("QUIT", "221")
    return waited
