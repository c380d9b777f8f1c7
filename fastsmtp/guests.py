"""The guests of a server: the connections that a factory made, to be ended gently or at once.

Knows which of them are idle. Refuses to know who made the server, and protocols that cannot tell whether they are busy:
those end with their loop.
"""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakSet

_STEP = 0.02  # seconds between looks at what is left
_TURNS_TO_GO = 10  # of the loop, that closed transports get to go


class Guests:
    """Connections, as long as anybody holds them."""

    def __init__(self) -> None:
        self._all: WeakSet[Any] = WeakSet()

    def add(self, protocol: object) -> None:
        """Takes a protocol in, if it is one that can be asked to leave."""
        if hasattr(protocol, "shut_down"):
            self._all.add(protocol)

    def forget(self) -> None:
        """Forgets all."""
        self._all.clear()

    async def leave(self, server: asyncio.AbstractServer, grace: float) -> None:
        """Stops accepting, and ends connections: idle ones at once, those with a message under way when it is
        done, all that are left when ``grace`` seconds are over.
        """
        loop = asyncio.get_running_loop()
        server.close()
        end = loop.time() + grace
        while self._shut_down(idle_only=loop.time() < end):  # noqa: ASYNC110, idleness is not told
            await asyncio.sleep(_STEP)

    async def end(self, server: asyncio.AbstractServer) -> None:
        """Stops accepting and ends all connections now."""
        server.close()
        self._shut_down(idle_only=False)
        await asyncio.sleep(0)  # what was closed gets its turn to go
        for connection in self._connected():
            connection.abort()
        # Not server.wait_closed(), which newer loops keep waiting for protocols that are not ours to close.
        for _ in range(_TURNS_TO_GO):
            await asyncio.sleep(0)
            if not self._connected():
                break

    def _shut_down(self, *, idle_only: bool) -> bool:
        """Ends connections, those that are idle or all; whether some are left."""
        left = False
        for connection in self._connected():
            if not connection.closed:
                if idle_only and not connection.quiet:
                    left = True
                else:
                    connection.shut_down()
        return left

    def _connected(self) -> list[Any]:
        return [connection for connection in self._all if connection.transport is not None]
