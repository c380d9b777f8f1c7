"""The exporter: answers ``/metrics`` and ``/healthz`` over HTTP, in a process of its own.

Scrapers can be slow, many or hostile. The supervisor starts this process, and starts it again when it dies. It holds no
mail: its death costs a scrape.
"""

import contextlib
import io
import logging
import re
import socket
import sys
import time
from collections.abc import Sequence
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from threading import Thread
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler

from fastsmtp.block import Block
from fastsmtp.logs import Outlet
from fastsmtp.metrics import Collector
from fastsmtp.sockets import Listener, close

log = logging.getLogger(__name__)

# A scrape takes milliseconds; Prometheus itself gives up after 10 s by default.
REQUEST_TIMEOUT = 10.0
# Each connection is a thread. Beyond this the oldest is cut off: the newest is the likeliest to be a scraper.
MAX_CONNECTIONS = 32
# Octets of a request, with its header. http.server takes 6.5 MB for each connection, and makes more of it.
MAX_REQUEST = 8192

_BLANK_LINE = re.compile(rb"\n\r?\n")


def serve_pages(page: Sequence[Listener], listeners: Sequence[Listener], block: Block) -> None:
    """The life of an exporter's process: answers on all of ``page``, and closes ``listeners``, which are not its."""
    close(listeners)  # or clients would wait there once nobody accepts any more
    for listener in page[1:]:
        Thread(target=serve_metrics, args=(listener.socket, block), daemon=True).start()
    serve_metrics(page[0].socket, block)


def serve_metrics(sock: socket.socket, block: Block) -> None:
    """Answers HTTP requests on ``sock``, a listening socket, for ever.

    ``/metrics``: the block, in the format that the client asks for. ``/healthz``: 200 while at least one
    worker takes connections and its event loop turns, else 503.
    """
    registry = CollectorRegistry()
    registry.register(Collector(block))
    handler: type[_Handler] = type("Handler", (_Handler,), {"registry": registry, "block": block})
    with _Server(sock, handler) as server:
        server.serve_forever()


class _Handler(MetricsHandler):
    """One connection: HTTP/1.0, one request."""

    block: Block
    timeout = REQUEST_TIMEOUT  # for each read and write; the server limits the whole
    server_version = "fastsmtp"
    sys_version = ""
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def handle(self) -> None:
        request = b""
        while not _BLANK_LINE.search(request):
            data = self.request.recv(MAX_REQUEST - len(request))
            if not data:
                break
            request += data
            if len(request) == MAX_REQUEST:
                self.command = self.requestline = self.request_version = ""
                self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
                return
        self.rfile = io.BytesIO(request)
        super().handle()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            super().do_GET()
        elif path == "/healthz":
            up = self.block.accepts
            self._answer(200 if up else 503, "ok" if up else "no worker takes connections")
        else:
            self._answer(404, "not found: there are /metrics and /healthz")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_OPTIONS(self) -> None:
        self.send_response(204)
        self.send_header("Allow", "GET, HEAD, OPTIONS")
        self.end_headers()

    def end_headers(self) -> None:
        super().end_headers()
        if self.command == "HEAD":
            self.wfile = io.BytesIO()  # where a body goes that GET would send

    def _answer(self, status: int, line: str) -> None:
        body = f"{line}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    """A thread for each connection, on a socket that someone else bound."""

    def __init__(self, sock: socket.socket, handler: type[_Handler]) -> None:
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        # A client that is gone between poll and accept must not hold up the others.
        sock.setblocking(False)
        self._began: dict[socket.socket, float] = {}

    def process_request(self, request: Any, client_address: Any) -> None:
        for oldest in list(self._began)[: len(self._began) - MAX_CONNECTIONS + 1]:
            self._cut(oldest)
        self._began[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._began.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Twice a second: cuts off who reads or writes an octet now and then and so never times out."""
        Outlet.drain_all()
        limit = time.monotonic() - REQUEST_TIMEOUT
        for request, began in list(self._began.items()):
            if began < limit:
                self._cut(request)

    def _cut(self, request: socket.socket) -> None:
        """Ends a connection; its thread sees the end of the stream and leaves by itself."""
        self._began.pop(request, None)
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):
            log.exception("exporter: a request from %s failed", client_address)
