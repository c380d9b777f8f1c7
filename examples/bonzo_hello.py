"""Prints the messages that come: bonzo's ``Application``, as its README begins.

Run it, with another address if you like; Ctrl-C ends it::

    python examples/bonzo_hello.py 127.0.0.1:2525

and send it something::

    swaks --server 127.0.0.1:2525 --from me@example.org --to you@example.com
"""

import asyncio
import signal
import sys

import fastsmtp.smtp


class Handler(fastsmtp.smtp.RequestHandler):
    async def data(self):
        print(self.request.message, flush=True)


async def main(listen: str) -> None:
    host, _, port = listen.rpartition(":")
    application = fastsmtp.smtp.Application(Handler)
    server = application.listen(port, host)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, server.stop)
    print(f"listening on {', '.join(server.addresses)}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:2525"))
