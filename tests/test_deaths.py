"""Workers that die again and again, with real ``fastsmtp serve`` processes: who comes is served all the same.

``DEATHS_SECONDS=60 pytest -s tests/test_deaths.py`` makes it last a minute.
"""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from processes import Client, Server, Start

SECONDS = float(os.environ.get("DEATHS_SECONDS", "4"))

# VRFY is a message of death.
DIES = """\
import os
import signal

class Dies:
    def handle_VRFY(self, server, session, envelope, address):
        os.kill(os.getpid(), signal.SIGKILL)

    async def handle_DATA(self, server, session, envelope):
        return "250 2.0.0 kept"
"""


class Waits:
    """Honest clients in threads: how long each waits for a greeting, with the time of attempts that a death broke."""

    def __init__(self, address: str, clients: int = 4) -> None:
        self.waits: list[float] = []
        self.broken = 0
        self._address = address
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        while not self._done.wait(0.01):
            began = time.monotonic()
            while True:
                try:
                    with Client(self._address) as client:
                        assert client.reply().startswith("220 ")
                    break
                except ConnectionError:  # not a wait for a greeting alone, and counts all the same
                    self.broken += 1
            self.waits.append(time.monotonic() - began)

    def __str__(self) -> str:
        waits = sorted(self.waits)
        figures = [waits[len(waits) // 2], waits[len(waits) * 99 // 100], waits[-1]]
        median, late, worst = (1000 * figure for figure in figures)
        return (
            f"{len(waits)} greetings, {median:.1f} ms at the median, {late:.0f} at p99, {worst:.0f} at worst"
        )


@contextlib.contextmanager
def _clients(server: Server) -> Iterator[Waits]:
    waits = Waits(server.addresses[0])
    for thread in waits._threads:
        thread.start()
    try:
        yield waits
    finally:
        waits._done.set()
        for thread in waits._threads:
            thread.join()
        print(f"\n{waits}, {waits.broken} attempts broken")


def _pids(server: Server) -> list[int]:
    """The workers that are there, in the order in which they began to accept."""
    gone = set(re.findall(r"worker \d+ \(pid (\d+)\) was killed", server.err))
    return [
        int(pid) for pid in re.findall(r"worker \d+ \(pid (\d+)\) accepts", server.err) if pid not in gone
    ]


def test_kill_9_of_a_worker_twice_a_second_keeps_nobody_waiting(start: Start) -> None:
    server = start("--workers", "2", "--deliver", "discard:")
    kills = 0
    with _clients(server) as waits:
        began = time.monotonic()
        while time.monotonic() - began < SECONDS:
            for pid in _pids(server)[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
            time.sleep(0.5)  # the attack
    print(f"{kills} workers killed")
    assert kills >= SECONDS
    assert max(waits.waits) < 1
    assert server.end() == 0


def test_a_message_of_death_twice_a_second_keeps_nobody_waiting(start: Start, tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text(DIES)
    server = start("--workers", "2", "--handler", "dies:Dies")
    with _clients(server) as waits:
        began = time.monotonic()
        while time.monotonic() - began < SECONDS:
            with contextlib.suppress(ConnectionError), server.connect() as client:
                client.sock.sendall(b"VRFY you\r\n")
                assert client.at_end()
            time.sleep(0.5)  # the attack
    assert max(waits.waits) < 1
    assert server.end() == 0
