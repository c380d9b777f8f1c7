"""The exporter: /metrics and /healthz over real sockets, and scrapers that are slow, many or not HTTP."""

import contextlib
import gzip
import http.client
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from pathlib import Path

import pytest
from processes import await_true
from prometheus_client.parser import text_string_to_metric_families as parse

from fastsmtp import _engine, exporter
from fastsmtp import block as block_module
from fastsmtp.block import Block
from fastsmtp.exporter import MAX_CONNECTIONS, MAX_REQUEST, serve_metrics


class Exporter:
    """An exporter in a process of its own; lines to its standard input change the block."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = ("127.0.0.1", int(self.process.stdout.readline()))

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == f"{line}\n"

    def get(self, path: str, **headers: str) -> tuple[int, Message, bytes]:
        return self.ask("GET", path, **headers)

    def ask(self, method: str, path: str, **headers: str) -> tuple[int, Message, bytes]:
        connection = http.client.HTTPConnection(*self.address, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def close(self) -> str:
        """Ends the process; returns what it complained about."""
        self.process.kill()
        return self.process.communicate(timeout=10)[1]


@pytest.fixture
def served() -> Iterator[Exporter]:
    served = Exporter()
    yield served
    assert served.close() == ""  # whatever a client does is no event for the log


def samples(page: bytes) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in parse(page.decode())
        for sample in family.samples
        if not sample.labels
    }


def test_metrics_shows_the_block(served: Exporter) -> None:
    status, headers, page = served.get("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert samples(page)["fastsmtp_connections_total"] == 0
    served.tell("count 5")
    assert samples(served.get("/metrics")[2])["fastsmtp_connections_total"] == 5


def test_metrics_speaks_the_format_and_the_encoding_that_the_scraper_asks_for(served: Exporter) -> None:
    _, headers, page = served.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert page.endswith(b"# EOF\n")
    _, headers, page = served.get("/metrics", **{"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] == "gzip"
    assert samples(gzip.decompress(page))["fastsmtp_workers"] == 2


def test_a_scraper_may_ask_for_some_series(served: Exporter) -> None:
    assert list(samples(served.get("/metrics?name[]=fastsmtp_workers")[2])) == ["fastsmtp_workers"]


def test_healthz_is_200_while_a_worker_is_up(served: Exporter) -> None:
    status, _, page = served.get("/healthz")
    assert (status, page) == (503, b"no worker takes connections\n")
    served.tell("up 1")
    served.tell("up 0")
    status, _, page = served.get("/healthz")
    assert (status, page) == (200, b"ok\n")
    served.tell("down 1")
    assert served.get("/healthz")[0] == 200
    served.tell("down 0")
    assert served.get("/healthz")[0] == 503


def test_healthz_is_503_while_no_event_loop_turns() -> None:
    served = Exporter("10", "0.3")
    try:
        served.tell("up 0")
        assert served.get("/healthz")[0] == 200
        await_true(lambda: served.get("/healthz")[0] == 503, "503 for want of a heartbeat")
        served.tell("beat 1")  # not up
        assert served.get("/healthz")[0] == 503
        served.tell("beat 0")
        assert served.get("/healthz")[0] == 200
        await_true(lambda: served.get("/healthz")[0] == 503, "503 for want of another heartbeat")
    finally:
        complaints = served.close()
    assert complaints == ""


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/metrics?name[]=fastsmtp_workers"])
def test_head_is_get_without_the_body(served: Exporter, path: str) -> None:
    for change in ("up 0", "down 0"):
        served.tell(change)
        status, headers, page = served.get(path)
        assert served.ask("HEAD", path)[0] == status
        assert set(served.ask("HEAD", path)[1]) == set(headers)
        assert served.ask("HEAD", path)[1]["Content-Length"] == headers["Content-Length"]
        assert served.ask("HEAD", path)[2] == b""
        assert page != b""
        with served.connect() as client:  # http.client would not look
            client.sendall(f"HEAD {path} HTTP/1.0\r\n\r\n".encode())
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.endswith(b"\r\n\r\n")
        assert answer.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
def test_options_tells_what_there_is(served: Exporter, path: str) -> None:
    status, headers, page = served.ask("OPTIONS", path)
    assert (status, headers["Allow"], page) == (204, "GET, HEAD, OPTIONS", b"")


def _resident(process: subprocess.Popen[str]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("\nVmRSS:")[2].split()[0]) >> 10


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc that tells of memory")
def test_big_headers_cost_no_memory(served: Exporter) -> None:
    assert served.get("/metrics")[0] == 200
    before = _resident(served.process)
    lines = [
        b"GET /metrics HTTP/1.1\r\n",
        *(b"x%d: " % number + b"y" * 60_000 + b"\r\n" for number in range(90)),
    ]

    def flood(_: int) -> bytes:
        with served.connect() as client:
            with contextlib.suppress(ConnectionError):
                for line in lines:
                    client.sendall(line)
                client.sendall(b"\r\n")
            with contextlib.suppress(ConnectionError):
                return client.recv(65536)
            return b""

    with ThreadPoolExecutor(MAX_CONNECTIONS) as threads:
        answers = list(threads.map(flood, range(MAX_CONNECTIONS)))
    growth = _resident(served.process) - before
    print(
        f"\n{MAX_CONNECTIONS} requests of {sum(map(len, lines)) >> 20} MiB: the page's process grew by {growth} MiB"
    )
    assert growth < 20
    assert not any(b" 200 " in answer for answer in answers)
    assert served.get("/metrics")[0] == 200


def test_a_header_that_is_too_large_is_told_so(served: Exporter) -> None:
    with served.connect() as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nx: ".ljust(MAX_REQUEST, b"y"))
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.0 431 ")


def test_a_request_may_come_in_pieces(served: Exporter) -> None:
    with served.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n":
            client.sendall(bytes([octet]))
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.0 200 ")


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/healthz/../metrics", "//"])
def test_another_path_is_404_and_told_what_there_is(served: Exporter, path: str) -> None:
    status, _, page = served.get(path)
    assert status == 404
    assert page == b"not found: there are /metrics and /healthz\n"


@pytest.mark.parametrize(
    "junk",
    [
        b"EHLO me\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0" * 1000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 1000 + b"\r\n",
        b"GET / HTTP/9.9.9\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nContent-Length: 100\r\n\r\n",
        b"\r\n",
        b"",
    ],
    ids=["smtp", "tls", "zeros", "path", "headers", "version", "method", "empty-line", "nothing"],
)
def test_junk_gets_no_metrics_and_hurts_nobody(served: Exporter, junk: bytes) -> None:
    with served.connect() as client:
        # The server may close while we still send, or with our octets unread: then the end is a reset.
        with contextlib.suppress(ConnectionError):
            client.sendall(junk)
            client.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while data := client.recv(65536):
                answer += data
    assert b"fastsmtp_connections_total" not in answer
    assert b"Traceback" not in answer
    assert served.get("/metrics")[0] == 200


def test_a_client_that_resets_its_connection_hurts_nobody(served: Exporter) -> None:
    for request in (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\n\r\n"):
        with served.connect() as client:
            client.sendall(request)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert served.get("/metrics")[0] == 200


def test_many_idle_clients_do_not_keep_a_scraper_away(served: Exporter) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(served.connect()) for _ in range(MAX_CONNECTIONS + 8)]
        assert served.get("/metrics")[0] == 200
        # The oldest are cut off, so that there are never more threads than that.
        for client in idle[:8]:
            assert client.recv(1) == b""


def test_who_sends_or_reads_too_slowly_is_cut_off() -> None:
    served = Exporter("0.3", "10")
    try:
        with served.connect() as silent, served.connect() as dripping:
            closed = threading.Event()

            def drip() -> None:  # each octet comes in time, the request never ends
                with contextlib.suppress(OSError):
                    while not closed.wait(0.05):
                        dripping.sendall(b"x")

            thread = threading.Thread(target=drip)
            thread.start()
            try:
                began = time.monotonic()
                assert silent.recv(1) == b""
                with contextlib.suppress(ConnectionError):
                    assert dripping.recv(1) == b""
                assert time.monotonic() - began < 5
            finally:
                closed.set()
                thread.join()
        assert served.get("/metrics")[0] == 200
    finally:
        complaints = served.close()
    assert complaints == ""


# --- as a script: the exporter, and a thread that changes the block -----------------------------------------


def serve(timeout: float, healthy: float) -> None:
    exporter.REQUEST_TIMEOUT = timeout
    exporter._Handler.timeout = timeout
    block_module.HEALTHY = healthy
    block = Block(2)
    counters = _engine.Counters(block.slot(0))
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(listener.getsockname()[1], flush=True)

    def obey() -> None:
        for line in sys.stdin:
            verb, number = line.split()
            if verb == "count":
                counters.add(_engine.index("fastsmtp_connections_total"), int(number))
            elif verb == "beat":
                _engine.Counters(block.slot(int(number))).set(block_module.HEARTBEAT, time.monotonic_ns())
            else:
                (block.note_up if verb == "up" else block.note_down)(int(number))
            print(line, end="", flush=True)

    threading.Thread(target=obey, daemon=True).start()
    serve_metrics(listener, block)


if __name__ == "__main__":
    serve(*map(float, sys.argv[1:] or ["10", "10"]))
