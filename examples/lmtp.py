"""LMTP behind a mail server: a message for several mailboxes, and a reply for each of them.

Run it with an address and a folder that has a folder for each mailbox::

    mkdir -p mail/ann mail/bob
    python examples/lmtp.py 127.0.0.1:8024 ./mail

and send it something; eve has no mailbox, and the others get theirs::

    swaks --protocol LMTP --server 127.0.0.1:8024 --from me@example.org --to ann@x,bob@x,eve@x
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from uuid import uuid4

from fastsmtp.controller import UnthreadedController
from fastsmtp.lmtp import LMTP


class Mailboxes:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def handle_DATA(self, server, session, envelope):
        return await asyncio.to_thread(self.store, envelope)

    def store(self, envelope) -> list[str]:
        """One status for each recipient, in their order."""
        folders = {path.name: path for path in self.folder.iterdir() if path.is_dir()}
        return [
            self.keep(envelope.body, folders.get(recipient.partition("@")[0]))
            for recipient in envelope.rcpt_tos
        ]

    def keep(self, body, folder: Path | None) -> str:
        if folder is None:
            return "550 5.1.1 No such mailbox"
        path = folder / f"{uuid4().hex}.eml"
        try:
            body.link_to(path)
            for target in (path, folder):  # 250 promises that the message outlives a power cut
                descriptor = os.open(target, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError:
            path.unlink(missing_ok=True)
            return "451 4.3.0 Cannot store the message now"
        return f"250 2.0.0 Kept as {path.name}"


class LMTPController(UnthreadedController):
    def factory(self):
        return LMTP(self.handler, **self.SMTP_kwargs)


async def main(listen: str, folder: Path) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    host, _, port = listen.rpartition(":")
    async with LMTPController(Mailboxes(folder), hostname=host, port=int(port)) as controller:
        print(f"listening on {controller.hostname}:{controller.port}", flush=True)
        await stop.wait()


if __name__ == "__main__":
    listen = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8024"
    asyncio.run(main(listen, Path(sys.argv[2] if len(sys.argv) > 2 else "mail")))
