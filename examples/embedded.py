"""A server in one's own event loop, beside a task that works on the mail and says when it is done.

Run it, with another address if you like; Ctrl-C ends it::

    python examples/embedded.py 127.0.0.1:8025

and send it something::

    swaks --server 127.0.0.1:8025 --from me@example.org --to you@example.com
"""

import asyncio
import signal
import sys

import fastsmtp


class HandOver:
    """Gives each message to a queue and waits for its result: 250 means that the work is done."""

    def __init__(self, queue: asyncio.Queue) -> None:
        self.queue = queue

    async def handle_DATA(self, server, session, envelope):
        done = asyncio.get_running_loop().create_future()
        await self.queue.put((envelope, done))
        return await done


async def work(queue: asyncio.Queue) -> None:
    number = 0
    while True:
        envelope, done = await queue.get()
        number += 1
        print(f"message {number}: {envelope.body.size} octets from {envelope.mail_from}", flush=True)
        if not done.cancelled():  # the hook may have been given up meanwhile
            done.set_result(f"250 OK: message {number}")


async def main(listen: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    queue: asyncio.Queue = asyncio.Queue(maxsize=100)
    worker = asyncio.create_task(work(queue))
    async with await fastsmtp.serve(HandOver(queue), listen=[listen]) as server:
        print(f"listening on {', '.join(server.addresses)}", flush=True)
        await stop.wait()
        await server.drain(10)
    worker.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8025"))
