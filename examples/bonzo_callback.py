"""A server with a callback and no application, in bonzo's way: the callback says when the message is taken.

Run it, with another address if you like; Ctrl-C ends it::

    python examples/bonzo_callback.py 127.0.0.1:2525

and send it something::

    swaks --server 127.0.0.1:2525 --from me@example.org --to you@example.com
"""

import asyncio
import signal
import sys

from fastsmtp.server import SMTPServer


async def handle_request(request):
    print(request, request.message["Subject"], flush=True)
    await request.finish_async()


async def main(listen: str) -> None:
    host, _, port = listen.rpartition(":")
    smtp_server = SMTPServer(handle_request)
    smtp_server.listen(port, host)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, smtp_server.stop)
    print(f"listening on {', '.join(smtp_server.addresses)}", flush=True)
    await smtp_server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:2525"))
