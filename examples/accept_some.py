"""Takes mail for two mailboxes of one domain, without programs in it, and keeps it in a folder.

Run it with an address and a folder::

    python examples/accept_some.py 127.0.0.1:8025 ./kept

This is refused at once, the second recipient alone::

    swaks --server 127.0.0.1:8025 --from me@example.org --to ann@example.com,eve@example.com
"""

import asyncio
import os
import sys
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path
from uuid import uuid4

import fastsmtp
from fastsmtp import SMTPError

DOMAIN = "example.com"
MAILBOXES = {"ann", "postmaster"}
PROGRAMS = (".exe", ".js", ".scr")


class AcceptSome:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        local, at, domain = address.rpartition("@")
        if not at:  # "RCPT TO:<Postmaster>" is the one address without a domain
            local, domain = address, DOMAIN
        if domain.lower() != DOMAIN:
            raise SMTPError(550, "5.7.1", "No relaying here")
        if local.lower() not in MAILBOXES:
            raise SMTPError(550, "5.1.1", f"No mailbox {address}")
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        # To parse and to store takes time: on a thread, so that the other connections go on.
        name = await asyncio.to_thread(self.keep, envelope.body)
        return f"250 OK: kept as {name}"

    def keep(self, body) -> str:
        with body.open() as file:
            message: EmailMessage = BytesParser(policy=policy.default).parse(file)
        for part in message.walk():
            if (part.get_filename() or "").lower().endswith(PROGRAMS):
                raise SMTPError(554, "5.7.1", "No programs by mail, please")
        name = f"{uuid4().hex}.eml"
        path = self.folder / name
        body.link_to(path)
        for target in (path, self.folder):  # 250 promises that the message outlives a power cut
            descriptor = os.open(target, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return name


if __name__ == "__main__":
    listen = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8025"
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else "kept")
    folder.mkdir(parents=True, exist_ok=True)
    # The folder of the temporary files is on the same file system, so that large messages need no copy.
    sys.exit(fastsmtp.run(AcceptSome(folder), listen=[listen], spill_directory=folder))
