"""A connection that begins with a PROXY header in clear, before its TLS.

Knows how to read a header from a bare socket, and how long that may take. Refuses to know what the addresses are used
for, and what serves the connection then: that may be a transport of the loop, so not one octet behind the header is
taken from the socket.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastsmtp.proxy_protocol import ProxyData, ProxyParser

if TYPE_CHECKING:
    from fastsmtp._stream import Stream

debug = logging.getLogger("mail.debug")

# A line, and a header of version 2 with the longest addresses but no vectors, are had with one look.
_LOOK = 232


class Arrival:
    """A connection whose header is awaited for ``patience`` seconds.

    ``over`` is called with it at the end, and with the header's data, or ``None`` if there is no valid header: then the
    connection is closed without a word.
    """

    def __init__(
        self,
        stream: Stream,
        loop: asyncio.AbstractEventLoop,
        patience: float,
        over: Callable[[Arrival, ProxyData | None], object],
    ) -> None:
        self.stream = stream
        self._over = over
        self._parser = ProxyParser()
        self._timer = loop.call_later(patience, self._give_up, "no PROXY header in time")
        stream.expect(self._read)

    def close(self) -> None:
        """Ends the connection."""
        self._timer.cancel()
        self.stream.abort()
        self._over(self, None)

    def _give_up(self, why: object) -> None:
        debug.info("connection from %s closed: %s", self.stream.get_extra_info("peername"), why)
        self.close()

    def _read(self) -> None:
        parser = self._parser
        try:
            try:
                # What lies behind the header must stay in the socket, for TLS.
                octets = self.stream.sock.recv(max(parser.wanted, _LOOK), socket.MSG_PEEK)
            except BlockingIOError:
                return
            self._consume(parser.feed(octets))
        except OSError as error:
            self._give_up(error)
            return
        if not octets:
            self._give_up("it ended before its PROXY header did")
        elif parser.data is None:
            return
        elif parser.data.valid:
            self._timer.cancel()
            self._over(self, parser.data)
        else:
            self._give_up(parser.data.error)

    def _consume(self, count: int) -> None:
        while count:
            octets = self.stream.sock.recv(count)
            if not octets:
                raise ConnectionResetError("it was reset within its PROXY header")
            count -= len(octets)
