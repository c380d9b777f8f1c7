"""A server made of aiosmtpd's ``SMTP`` class, or of fastsmtp's: one process, a handler that returns at once.

    python -m benchmarks.servers.smtp_protocol LIBRARY PORT

SIGTERM prints "messages N" and ends it. fastsmtp's runs on uvloop; aiosmtpd has none, which makes no difference to it
(measured).
"""

import asyncio
import importlib
import signal
import sys
from typing import Any

import uvloop


class Handler:
    def __init__(self) -> None:
        self.messages = 0

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.messages += 1
        return "250 OK"


async def serve(library: str, port: int) -> None:
    smtp = importlib.import_module(f"{library}.smtp").SMTP
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    handler = Handler()
    # With a host name given aiosmtpd does not look one up for each connection.
    server = await loop.create_server(
        lambda: smtp(handler, hostname="localhost"), "127.0.0.1", port, backlog=4096
    )
    await stop.wait()
    server.close()
    print("messages", handler.messages, flush=True)


if __name__ == "__main__":
    library = sys.argv[1]
    factory = uvloop.new_event_loop if library == "fastsmtp" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(library, int(sys.argv[2])))
