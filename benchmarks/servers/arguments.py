"""What every Python server of our own is told on its command line, and what follows from it: TLS context, event loop.

    MODULE [--tls starttls|implicit --certificate PEM --key PEM] [--login USER:PASSWORD] LIBRARY PORT

It imports no library of mail: the environment of a peer has nothing but that peer.
"""

import argparse
import asyncio
import importlib
import ssl
from collections.abc import Callable

SIZE_LIMIT = 2**30  # octets of a message: more than any row sends


def arguments() -> argparse.Namespace:
    """The arguments. `context`, made of certificate and key, and `login`, as octets, are None if not asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("port", type=int)
    parser.add_argument("--tls", choices=["starttls", "implicit"])
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    parser.add_argument("--login", type=lambda text: tuple(text.encode().split(b":", 1)))
    given = parser.parse_args()
    given.context = None
    if given.tls:
        given.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        given.context.load_cert_chain(given.certificate, given.key)
    return given


def loop_factory(library: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's for fastsmtp; None, so asyncio's, for its peers, which have no uvloop beside them."""
    if library != "fastsmtp":
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    return factory
