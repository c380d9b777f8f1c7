"""One server under test: started, waited for, measured, stopped and reaped.

It knows processes, /proc and how an SMTP greeting looks; it does not know which server it runs or what is
measured. Linux only, as /proc, epoll (the floor) and per-process CPU clocks are.
"""

import ctypes
import os
import random
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from .client import BenchmarkError

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 20.0
STOP_SECONDS = 10.0
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody held a moment ago, all different.

    They are below those that the kernel picks by itself: such a one may be anybody's before the server has it.
    """
    picked = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    for port in random.sample(range(1024, picked), picked - 1024):
        if len(found) == count:
            break
        with socket.socket() as each, suppress(OSError):
            each.bind(("127.0.0.1", port))
            found.append(port)
    return found


def before_exec(cpu: int | None = None) -> Callable[[], None]:
    """What a child runs before its program: it stays on one CPU, if given, and dies with the harness."""

    def prepare() -> None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})

    return prepare


def cpu_nanoseconds(pid: int) -> int:
    """CPU time of a process, all its threads, also those that ended.

    It reads the process's CPU clock (what clock_getcpuclockid(3) gives). Unlike /proc/PID/stat it counts the
    scheduler's nanoseconds and not ticks of 10 ms, and unlike the sum of /proc/PID/task/*/schedstat it
    includes the slice that is running now.
    """
    return time.clock_gettime_ns((~pid << 3) | 2)


def cpu_between(before: Mapping[int, int], after: Mapping[int, int]) -> int:
    """CPU nanoseconds that a server's processes took between two looks; a new one counts from its start.

    BenchmarkError if one has ended, as its time is lost.
    """
    ended = before.keys() - after.keys()
    if ended:
        raise BenchmarkError(f"{len(ended)} of the server's processes ended during the run")
    return sum(used - before.get(pid, 0) for pid, used in after.items())


def busy_seconds() -> float:
    """CPU time that the whole machine has spent on anything, and that its hypervisor kept from it."""
    user, nice, system, _idle, _iowait, *interrupts_and_steal = map(int, machine_times()[:8])
    return (user + nice + system + sum(interrupts_and_steal)) / os.sysconf("SC_CLK_TCK")


def machine_times() -> list[str]:
    return Path("/proc/stat").read_text().splitlines()[0].split()[1:]


def sleeps(pid: int) -> int:
    """How often the main thread of a process has given up the CPU to wait."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            return int(line.split()[1])
    return 0


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return sorted(found)


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    return [pid, *(member for child in children(pid) for member in family(child))]


def alive(session: int) -> list[int]:
    """The processes of a session that still run; those that only wait to be reaped do not."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            _, _, fields = path.read_text().rpartition(")")
            state, _, _, its_session = fields.split()[:4]
            if int(its_session) == session and state not in "ZX":
                found.append(int(path.parent.name))
    return found


class Server:
    """A running server: `port` answers, `pid` is the process that was started."""

    def __init__(self, name: str, command: Sequence[str], port: int, cpu: int | None) -> None:
        self.name = name
        self.port = port
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (close() ends it)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._errors,
            start_new_session=True,
            preexec_fn=before_exec(cpu),
        )
        self.pid = self._process.pid

    def wait_until_it_answers(self, implicit_tls: bool = False) -> None:
        """Until a client is greeted. A bound port alone proves nothing: workers may not be there yet."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            self.check_alive()
            try:
                come_and_go(self.port, implicit_tls)
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"{self.name} did not answer in {START_SECONDS:.0f} s") from None
                time.sleep(0.01)

    def check_alive(self) -> None:
        status = self._process.poll()
        if status is not None:
            said = read_all(self._errors).strip().splitlines()
            raise BenchmarkError(
                f"{self.name} ended with status {status}: {said[-1] if said else 'it said nothing'}"
            )

    def cpu(self) -> dict[int, int]:
        """CPU time in nanoseconds by process, once the server is at rest.

        A client that has its last reply is gone before the server has closed the connection; that work
        belongs to the run that caused it.
        """
        used = self._cpu_now()
        for _ in range(100):
            time.sleep(0.01)
            before, used = used, self._cpu_now()
            if sum(used.values()) - sum(before.values()) < 200_000:
                break
        return used

    def sleeps(self) -> int:
        """How often its processes have waited."""
        return sum(sleeps(pid) for pid in family(self.pid))

    def _cpu_now(self) -> dict[int, int]:
        self.check_alive()
        return {pid: cpu_nanoseconds(pid) for pid in family(self.pid)}

    def stop(self) -> str:
        """End it and reap it, politely first; returns what it wrote to its standard output."""
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        # Its session holds whatever it has forked; nothing of it may live into the next run.
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + STOP_SECONDS
        while alive(self.pid) and time.monotonic() < deadline:
            time.sleep(0.001)
        return read_all(self._output)

    def close(self) -> None:
        self.stop()
        self._output.close()
        self._errors.close()


def read_all(file: TextIO) -> str:
    file.seek(0)
    return file.read()


def come_and_go(port: int, implicit_tls: bool) -> None:
    """Connect, read the greeting, QUIT. OSError if that cannot be done, BenchmarkError if one is not welcome."""
    with ExitStack() as stack:
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port), 1.0))
        if implicit_tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            client = stack.enter_context(context.wrap_socket(client))
        greeting = client.recv(4096)
        if not greeting:
            raise ConnectionResetError(f"port {port} closed the connection without a greeting")
        if not greeting.startswith(b"220"):
            raise BenchmarkError(
                f"the server answered {greeting.decode(errors='replace').strip()!r} where 220 was due"
            )
        client.sendall(b"QUIT\r\n")
        client.recv(4096)


@contextmanager
def running(
    name: str, command: Sequence[str], port: int, cpu: int | None, *, implicit_tls: bool = False
) -> Iterator[Server]:
    """A server that answers; it is stopped and reaped at the end, whatever happens."""
    server = Server(name, command, port, cpu)
    try:
        server.wait_until_it_answers(implicit_tls)
        yield server
    finally:
        server.close()
