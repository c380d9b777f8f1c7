"""A supervisor with real forks, and its tiny workers, which echo lines on a shared listening socket.

A test's ``Server`` runs this file as a script in a process group of its own. All its processes write to one pipe, so
EOF on that pipe says that none is left. Refuses to know what is right.
"""

import contextlib
import fcntl
import http.client
import json
import logging
import os
import re
import selectors
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families as parse

from fastsmtp._engine import Counters, index
from fastsmtp.block import Block
from fastsmtp.children import END_NOW, WorkerContext
from fastsmtp.errors import ConfigError
from fastsmtp.exporter import serve_metrics
from fastsmtp.supervisor import Supervisor, Timing

PATIENCE = 15.0  # seconds that a test waits for what must happen

# --- the script: a supervisor of tiny workers ---------------------------------------------------------------


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


class EchoWorker:
    """Answers a line with ``INDEX PID LINE``; drains on SIGTERM, ends on END_NOW or without lifeline."""

    def __init__(self, context: WorkerContext, listener: socket.socket, options: dict[str, Any]) -> None:
        self.context = context
        self.listener = listener
        self.options = options
        self.folder = Path(options["folder"])
        self.clients: set[socket.socket] = set()
        self.draining = self.ending = False
        self.selector = selectors.DefaultSelector()

    def drain(self, *_: object) -> None:
        self.draining = True

    def end_now(self, *_: object) -> None:
        self.ending = True

    def run(self) -> int:
        own = self.context.index
        say(f"start {own}")
        if self.options.get("report_pipes"):
            say(f"pipes {json.dumps(pipes())}")
        if self.options.get("terminate_at_start"):
            os.kill(os.getppid(), signal.SIGTERM)
        fault = self.folder / f"fail-{own}"
        if fault.exists():
            how = fault.read_text()
            if how == "config":
                raise ConfigError("cannot open the mailbox ./mail: make it")
            if how == "exception":
                raise RuntimeError("a fault in the worker")
            if how == "hang":
                signal.pause()
            return int(how)

        wakeup, self.wake = socket.socketpair()
        wakeup.setblocking(False)
        self.wake.setblocking(False)
        signal.set_wakeup_fd(self.wake.fileno())
        stubborn = self.options.get("stubborn")
        signal.signal(signal.SIGTERM, signal.SIG_IGN if stubborn else self.drain)
        signal.signal(END_NOW, signal.SIG_IGN if stubborn else self.end_now)
        self.listener.setblocking(False)
        for source in (self.listener, wakeup, self.context.lifeline):
            self.selector.register(source, selectors.EVENT_READ)
        say(f"forked {own} {os.getpid()}")
        while (self.folder / f"gate-{own}").exists():
            time.sleep(0.002)
        counters = Counters(self.context.slot)
        active = index("fastsmtp_connections_active")
        self.context.ready()
        self.context.ready()  # the second call does nothing
        say(f"reported {own} {os.getpid()}")
        while True:
            counters.set(active, len(self.clients))
            if self.draining and self.listener.fileno() >= 0:
                self.selector.unregister(self.listener)
                self.listener.close()
                say(f"draining {own}")
            if self.ending or (self.draining and not self.clients):
                return int(self.options.get("drained_status", 0))
            for key, _ in self.selector.select():
                if key.fileobj is self.listener:
                    with contextlib.suppress(BlockingIOError):
                        client, _ = self.listener.accept()
                        self.clients.add(client)
                        self.selector.register(client, selectors.EVENT_READ)
                        counters.add(index("fastsmtp_connections_total"))
                elif key.fileobj is wakeup:
                    wakeup.recv(100)
                elif key.fileobj == self.context.lifeline:
                    say(f"orphaned {own}")
                    return 0
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self.serve(key.fileobj)

    def serve(self, client: socket.socket) -> None:
        try:
            data = client.recv(1000)
        except ConnectionError:
            data = b""
        if data:
            client.sendall(f"{self.context.index} {os.getpid()} ".encode() + data)
        else:
            self.selector.unregister(client)
            self.clients.remove(client)
            client.close()


def pipes() -> list[str]:
    """How this process holds pipes, but for the standard streams."""
    held = []
    for descriptor in range(3, 256):
        with contextlib.suppress(OSError):
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
                held.append({os.O_RDONLY: "read", os.O_WRONLY: "write"}[mode])
    return sorted(held)


def script(options: dict[str, Any]) -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    workers = options.get("workers", 2)
    block = Block(workers)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    metrics = socket.create_server(("127.0.0.1", 0), backlog=128)

    def run_worker(context: WorkerContext) -> int:
        worker = EchoWorker(context, listener, options)
        status = worker.run()
        signal.set_wakeup_fd(-1)
        return status

    def exporter() -> None:
        listener.close()
        say(f"exporter {os.getpid()}")
        if options["exporter"] == "fails":
            sys.exit(9)
        serve_metrics(metrics, block)

    def on_ready() -> None:
        say(f"listening {listener.getsockname()[1]} {metrics.getsockname()[1]}")
        if options.get("on_ready_raises"):
            raise RuntimeError("a fault in on_ready")

    supervisor = Supervisor(
        run_worker,
        workers=workers,
        block=block,
        drain_timeout=options.get("drain_timeout", 10.0),
        exporter=exporter if "exporter" in options else None,
        on_ready=on_ready,
        on_stop=listener.close,
        timing=Timing(**{"backoff": 0.02, "backoff_limit": 0.1, **options.get("timing", {})}),
    )
    host_child = subprocess.Popen(["sh", "-c", "exit 7"])
    print("buffered ", end="")  # must not be written once more by each child
    try:
        status = supervisor.run()
    except ConfigError as error:
        say(f"complaint: {error}")
        status = 1
    assert host_child.wait() == 7  # the end of the host's own children is not taken from it
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1
    assert not block.accepts
    assert pipes() == []
    return status


# --- the tests' side ----------------------------------------------------------------------------------------


class Server:
    """The script, running; ``expect`` waits for lines that it prints."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps({**options, "folder": str(folder)})],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.pipe = self.process.stdout.fileno()
        self.output = ""
        self.seen = 0
        self.port = self.metrics_port = 0
        self.clients: list[Client] = []

    def read(self, deadline: float) -> bool:
        """Reads more output; false at EOF."""
        with selectors.PollSelector() as selector:
            selector.register(self.pipe, selectors.EVENT_READ)
            assert selector.select(max(0.0, deadline - time.monotonic())), (
                f"in vain waited after:\n{self.output}"
            )
        data = os.read(self.pipe, 65536)
        self.output += data.decode()
        return bool(data)

    def expect(self, pattern: str) -> re.Match[str]:
        """Waits for a line with ``pattern`` after the one that was expected last."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.compile(f"^.*{pattern}.*$\n", re.M).search(self.output, self.seen)):
            assert self.read(deadline), f"no {pattern!r} in:\n{self.output}"
        self.seen = found.end()
        return found

    def expect_ready(self) -> dict[int, int]:
        """Waits until all workers accept; returns their pids by index."""
        found = self.expect(r"listening (\d+) (\d+)")
        self.port, self.metrics_port = map(int, found.groups())
        return self.pids()

    def pids(self) -> dict[int, int]:
        """The pids of the workers that were last to accept."""
        return {int(n): int(pid) for n, pid in re.findall(r"worker (\d+) \(pid (\d+)\) accepts", self.output)}

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, number: signal.Signals | None = None) -> int:
        """Waits until all processes are gone; returns the supervisor's exit status."""
        if number is not None:
            self.send(number)
        deadline = time.monotonic() + PATIENCE
        while self.read(deadline):
            pass
        return self.process.wait(PATIENCE)

    def connect(self) -> "Client":
        client = Client(self.port)
        self.clients.append(client)
        return client

    def connect_to(self, pid: int) -> "Client":
        """A connection that the worker ``pid`` took: the kernel chooses, so it may need several tries."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            client = self.connect()
            if client.ask()[1] == pid:
                return client
            client.close()
        raise AssertionError(f"no connection reached {pid}")

    def scrape_until(self, sample: str, value: float) -> dict[str, float]:
        """Scrapes until ``sample`` shows ``value``."""
        deadline = time.monotonic() + PATIENCE
        while (samples := self.scrape())[sample] != value:
            assert time.monotonic() < deadline, samples[sample]
        return samples

    def scrape(self) -> dict[str, float]:
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            page = connection.getresponse().read().decode()
        return {
            sample.name + "".join(sample.labels.values()): sample.value
            for family in parse(page)
            for sample in family.samples
        }

    def fault(self, worker: int, how: str) -> None:
        """From now on worker ``worker`` fails before it accepts."""
        (self.folder / f"fail-{worker}").write_text(how)

    def gate(self, worker: int) -> Path:
        """From now on worker ``worker`` accepts only when the file is gone; it heeds signals before that."""
        path = self.folder / f"gate-{worker}"
        path.touch()
        return path

    def close(self) -> None:
        for client in self.clients:
            client.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Client:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)

    def ask(self) -> tuple[int, int]:
        """Index and pid of the worker that answers."""
        self.socket.sendall(b"who?\n")
        answer = self.socket.recv(100)
        if not answer:
            raise ConnectionResetError
        worker, pid, _ = answer.split()
        return int(worker), int(pid)

    def at_end(self) -> bool:
        try:
            return self.socket.recv(100) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.socket.close()


class Load:
    """Connects again and again, and asks; counts answers, refusals, and connections that broke."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.answered = self.refused = self.broken = 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.done.is_set():
            try:
                client = self.server.connect()
            except ConnectionRefusedError:
                self.refused += 1
                continue
            try:
                client.ask()
                self.answered += 1
            except ConnectionError:  # it was with the worker that died
                self.broken += 1
            finally:
                client.close()

    def __enter__(self) -> "Load":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


Start = Callable[..., Server]


if __name__ == "__main__":
    sys.exit(script(json.loads(sys.argv[1])))
