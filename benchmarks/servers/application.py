"""An ``Application`` whose ``data`` is async and returns at once: bonzo's, or fastsmtp's on uvloop; one process.

    python -m benchmarks.servers.application [FLAGS] LIBRARY PORT

SIGTERM prints "messages N" and ends it.
"""

import argparse
import asyncio
import importlib
import signal
from typing import Any

from benchmarks.servers.arguments import SIZE_LIMIT, arguments, loop_factory


async def main(given: argparse.Namespace) -> None:
    smtp: Any = importlib.import_module(f"{given.library}.smtp")
    taken = 0

    class Handler(smtp.RequestHandler):  # type: ignore[misc]
        async def data(self) -> None:
            nonlocal taken
            taken += 1

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    # Not Application.listen: bonzo's has no backlog, and clients that come together would wait for a second try.
    servers = importlib.import_module(f"{given.library}.server")
    server = servers.SMTPServer(
        smtp.Application(Handler), ssl_options=given.context, max_buffer_size=SIZE_LIMIT
    )
    server.listen(given.port, "127.0.0.1", backlog=4096)
    await stop.wait()
    server.stop()
    print("messages", taken, flush=True)


if __name__ == "__main__":
    asked = arguments()
    with asyncio.Runner(loop_factory=loop_factory(asked.library)) as runner:
        runner.run(main(asked))
