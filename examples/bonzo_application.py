"""An application that refuses recipients early and says under which name it kept a message: bonzo's interface, and
a little more, with a worker process for each CPU.

Run it, with another address and number of processes if you like; Ctrl-C ends it::

    python examples/bonzo_application.py 127.0.0.1:2525 2

and send it something::

    swaks --server 127.0.0.1:2525 --from me@example.org --to you@example.com
"""

import asyncio
import os
import sys

from fastsmtp import errors, server, smtp


class Handler(smtp.RequestHandler):
    def rcpt(self, address):
        if not address.endswith(self.settings["domain"]):
            raise errors.SMTPError(550, "No relaying here", "a mail for %s", address)

    async def data(self):
        number = self.settings["kept"].setdefault(os.getpid(), 0) + 1
        self.settings["kept"][os.getpid()] = number
        print(f"{self.request.body.size} octets from {self.request.mail}", flush=True)
        self.finish(f"queued as {os.getpid()}-{number}")


async def main(smtp_server):
    await smtp_server.serve_forever()


if __name__ == "__main__":
    host, _, port = (sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:2525").rpartition(":")
    application = smtp.Application(Handler, domain="@example.com", kept={})
    smtp_server = server.SMTPServer(application)
    smtp_server.bind(port, host)
    print(f"listening on {', '.join(smtp_server.addresses)}", flush=True)
    smtp_server.start(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    asyncio.run(main(smtp_server))
