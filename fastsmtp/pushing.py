"""Replies that go through ``push``, for a subclass that has one of its own and so wants to see them all.

Knows their order, and that the connection may not be closed or secured before the last is out. Refuses to know
replies. A class that leaves ``push`` alone has its replies written by the dialogue, and none of this.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from fastsmtp.connection import Connection
from fastsmtp.hooks import is_cancellation
from fastsmtp.logs import describe


class Pushing(Connection):
    """A connection that can have its replies pushed, a line at a time."""

    _pushes: bool
    _lines: deque[str]
    _pusher: asyncio.Task[None] | None = None
    _afterwards: Callable[[], None] | None = None

    async def push(self, status: str | bytes) -> None:
        raise NotImplementedError

    def task_of(self, hook: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        if self._pushes:
            # Not at once: what it pushes comes behind the replies of this turn, which are not written yet.
            return asyncio.Task(hook, loop=self.loop)
        return super().task_of(hook)

    def write_by_pushing(self, octets: bytes) -> None:
        """Writes replies by way of ``push``."""
        lines = octets.decode("utf-8", "surrogateescape").split("\r\n")[:-1]
        if self._pusher is not None:
            self._lines.extend(lines)
            return
        self._lines = deque(lines)
        self._pusher = self.loop.create_task(self._push_all())

    async def _push_all(self) -> None:
        try:
            while self._lines:
                await self.push(self._lines.popleft())
        except BaseException as error:
            if is_cancellation(error):
                raise
            self._say(logging.ERROR, "push", "push failed: %s", describe(error), error=error)
            self._afterwards = super().hang_up
        finally:
            self._pusher = None
        if self._afterwards is not None:
            self._afterwards()

    async def pushed(self) -> None:
        """Waits until the dialogue's replies are out, for those who have something to say after them."""
        if self._pusher is not None and self._pusher is not asyncio.current_task():
            await asyncio.wait([self._pusher])

    def hang_up(self) -> None:
        if self._pusher is None:
            super().hang_up()
        else:
            self._afterwards = super().hang_up

    def secure(self) -> None:
        if self._pusher is None:
            super().secure()
        else:
            self._afterwards = self._secure_now

    def _secure_now(self) -> None:
        self._afterwards = None
        super().secure()
