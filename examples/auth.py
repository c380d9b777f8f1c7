"""Mail only from users with a password, and only with TLS: what a server for submission begins with.

Run it with an address, a certificate chain and its key::

    python examples/auth.py 127.0.0.1:8587 cert.pem key.pem

and send it something as Ann::

    swaks --server 127.0.0.1:8587 --tls --auth-user ann --auth-password 9Jk2-vTq7-Lw5x-Rb3m \\
        --from ann@example.com --to you@example.org
"""

import asyncio
import hashlib
import hmac
import signal
import ssl
import sys

from fastsmtp.controller import UnthreadedController
from fastsmtp.smtp import AuthResult

# Digests of passwords that a program has made, long and random. Those that people choose need a slow digest, such as
# hashlib.scrypt, and a slow digest needs a thread: an `async def auth_PLAIN(self, server, args)` of the handler.
USERS = {b"ann": "a492176cd2bb3a27ebddad75bcc599f2b9fd15082607e192cf89a988b658979a"}


def digest(password: bytes) -> str:
    return hashlib.sha256(password).hexdigest()


def authenticate(server, session, envelope, mechanism, data):
    """Called for AUTH PLAIN and AUTH LOGIN, on the event loop; a plain function, which must not wait."""
    known = USERS.get(data.login, "")
    if not hmac.compare_digest(known, digest(data.password)):
        return AuthResult(success=False, handled=False)  # 535 is still to be said
    return AuthResult(success=True, auth_data=data)


class Submission:
    async def handle_MAIL(self, server, session, envelope, address, mail_options):
        if address != f"{session.auth_data.login.decode()}@example.com":
            return "553 5.7.1 That is not your address"
        envelope.mail_from = address
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        print(f"{envelope.mail_from} to {', '.join(envelope.rcpt_tos)}", flush=True)
        return "250 OK"


async def main(listen: str, certificate: str, key: str) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    host, _, port = listen.rpartition(":")
    async with UnthreadedController(
        Submission(),
        hostname=host,
        port=int(port),
        tls_context=tls,
        require_starttls=True,
        auth_required=True,
        authenticator=authenticate,
    ) as controller:
        print(f"listening on {controller.hostname}:{controller.port}", flush=True)
        await stop.wait()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: auth.py ADDRESS:PORT CERTIFICATE KEY")
    asyncio.run(main(*sys.argv[1:]))
