"""An ``Application`` whose ``data`` is async and returns at once, in one process on uvloop.

    python -m benchmarks.servers.application PORT

SIGTERM prints "messages N" and ends it.
"""

import asyncio
import signal
import sys

import uvloop

from fastsmtp.smtp import Application, RequestHandler

taken = 0


class Handler(RequestHandler):
    async def data(self) -> None:
        global taken
        taken += 1


async def main(port: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = Application(Handler).listen(port, "127.0.0.1", hostname="localhost", backlog=4096)
    await stop.wait()
    await server.close()
    print("messages", taken, flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1])))
