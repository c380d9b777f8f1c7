"""A server in a thread, beside a program that has a loop of its own and no asyncio: aiosmtpd's ``Controller``.

Run it, with another address if you like; Ctrl-C ends it::

    python examples/controller.py 127.0.0.1:8025

and send it something::

    swaks --server 127.0.0.1:8025 --from me@example.org --to you@example.com
"""

import queue
import signal
import sys

from fastsmtp.controller import Controller


class HandOver:
    """Gives each message to the program. It is lost if the program ends: 250 should wait for more than that."""

    def __init__(self, inbox: queue.Queue) -> None:
        self.inbox = inbox

    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        if not address.endswith("@example.com"):
            return "550 5.7.1 No relaying here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        try:
            self.inbox.put_nowait((envelope.mail_from, envelope.content))
        except queue.Full:
            return "452 4.3.1 Too busy, try again later"
        return "250 OK"


def main(listen: str) -> None:
    host, _, port = listen.rpartition(":")
    inbox: queue.Queue = queue.Queue(maxsize=100)
    controller = Controller(HandOver(inbox), hostname=host, port=int(port))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        controller.start()
        print(f"listening on {controller.hostname}:{controller.port}", flush=True)
        while True:
            sender, content = inbox.get()
            print(f"{len(content)} octets from {sender}", flush=True)
    except KeyboardInterrupt:
        pass
    finally:
        controller.stop()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8025")
