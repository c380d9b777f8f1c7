"""Accepting: the listening sockets of a worker or a server, in its event loop.

Knows when to leave new connections to other workers, and what to do when the system has no more descriptors. Refuses
to know what becomes of a connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from fastsmtp._stream import Entrance, Poller, Stream
from fastsmtp.logs import Noise
from fastsmtp.sockets import without_delay

if TYPE_CHECKING:
    from fastsmtp.sockets import Listener

log = logging.getLogger("fastsmtp")

# How long a worker that holds more than its share leaves new connections to the others: long enough that pausing costs
# little, short enough that nobody notices when the others are busy too.
_REST = 0.01
# ... and how long one waits that could not accept for want of descriptors or memory.
_RECOVERY = 1.0


class Accepting:
    """Accepts until ``stop``. ``begin(stream, tls)`` is called with each new connection, and whether TLS comes first;
    ``crowded`` says whether this worker holds more connections than it should.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        begin: Callable[[Stream, bool], object],
        crowded: Callable[[], bool] | None,
    ) -> None:
        self._loop = loop
        self._begin = begin
        self._crowded = crowded
        self._noise = Noise(loop)
        self._poller = Poller(loop)
        self._entrances: list[Entrance] = []
        self._resting: asyncio.TimerHandle | None = None

    def add(self, listeners: Sequence[Listener]) -> None:
        """Accepts on these too."""
        for listener in listeners:
            sock = listener.socket
            sock.setblocking(False)
            without_delay(sock)  # it may have been bound by somebody else
            entrance = Entrance(self._poller, sock, partial(self._accepted, listener.tls), self._failed)
            self._entrances.append(entrance)
            if self._resting is None:
                entrance.open()

    def take_waiting(self) -> None:
        """Accepts who waits: of other workers it may be that none was woken for them."""
        for entrance in self._entrances:
            entrance.accept()

    def stop(self) -> None:
        """Accepts no more; the sockets are their owner's to close."""
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        for entrance in self._entrances:
            entrance.close()
        self._entrances.clear()
        self._noise.tell()

    def close(self) -> None:
        """Stops, ends TLS handshakes that connections begin with, and lets go of the loop when all streams are gone."""
        self.stop()
        self._poller.close()

    def _accepted(self, tls: bool, stream: Stream) -> None:
        self._begin(stream, tls)
        if self._crowded is not None and self._crowded():
            self._rest(_REST)

    def _failed(self, error: OSError) -> None:
        message = "cannot accept a connection: %s; trying again in %g s"
        self._noise.say(log, logging.ERROR, error.errno, message, error.strerror, _RECOVERY)
        self._rest(_RECOVERY)

    def _rest(self, seconds: float) -> None:
        if self._resting is None and self._entrances:
            for entrance in self._entrances:
                entrance.shut()
            self._resting = self._loop.call_later(seconds, self._wake)

    def _wake(self) -> None:
        self._resting = None
        for entrance in self._entrances:
            entrance.open()
