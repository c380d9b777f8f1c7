"""The example of bonzo's page, with its own names: an application, and a server that is made for it.

Run it, with another address if you like; Ctrl-C ends it::

    python examples/bonzo_server.py 127.0.0.1:2525

and send it something::

    swaks --server 127.0.0.1:2525 --from me@example.org --to you@example.com
"""

import asyncio
import signal
import sys

from fastsmtp import server, smtp


class Handler(smtp.RequestHandler):
    def data(self):
        print(self.request.message["Subject"], flush=True)


async def main(host: str, port: int) -> None:
    application = smtp.Application(Handler)
    smtp_server = server.SMTPServer(application)
    smtp_server.listen(port, host)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    print(f"listening on {', '.join(smtp_server.addresses)}", flush=True)
    await stopped.wait()


if __name__ == "__main__":
    host, _, port = (sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:2525").rpartition(":")
    asyncio.run(main(host, int(port)))
