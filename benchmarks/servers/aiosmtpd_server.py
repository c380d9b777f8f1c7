"""aiosmtpd as it is meant to run: one process, asyncio's loop, a handler that returns at once.

    python -m benchmarks.servers.aiosmtpd_server PORT

SIGTERM prints "messages N" and ends it. It has no uvloop, which makes no difference to it (measured).
"""

import asyncio
import signal
import sys

from aiosmtpd.smtp import SMTP, Envelope, Session


class Handler:
    def __init__(self) -> None:
        self.messages = 0

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.messages += 1
        return "250 OK"


async def serve(port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    handler = Handler()
    # With a host name given it does not look one up for each connection.
    server = await loop.create_server(
        lambda: SMTP(handler, hostname="localhost"), "127.0.0.1", port, backlog=4096
    )
    await stop.wait()
    server.close()
    print("messages", handler.messages, flush=True)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
