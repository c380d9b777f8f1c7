"""A house: what all connections in aiosmtpd's interface share that one event loop serves.

Knows the engine with its memory, the coarse clock, which runs while somebody is there, and what connections that are
alike have in common. Refuses to know what a connection does.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsmtp._engine import Engine
from fastsmtp._rules import Rules
from fastsmtp.connection import Site, expire_all
from fastsmtp.logs import Noise
from fastsmtp.maillog import MailLog
from fastsmtp.replies import native
from fastsmtp.spills import Spills

if TYPE_CHECKING:
    from fastsmtp.terms import Terms

_SPILL = 4 << 20  # bytes of a message beyond which it goes to a temporary file
_REMEMBERED = 256  # kinds of connections
_TICK = 1.0  # seconds between looks at the deadlines


def make_loop() -> asyncio.AbstractEventLoop:
    """The running loop, else the current one, else a new one that is then the current one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 says so when there is none
            return asyncio.get_event_loop()
    except RuntimeError:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        return loop


class House:
    """What all connections of one event loop share: the engine with its memory, and the coarse clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.sites: dict[Terms, Site] = {}
        spills = Spills(Path(tempfile.gettempdir()), loop)
        rules = Rules(book=native("localhost"))  # until each connection has its own
        self.engine = Engine(
            rules=rules, open_spill=lambda dialogue, beginning: spills.open(dialogue), spill_threshold=_SPILL
        )
        self.noise = Noise(loop)
        self.mail = MailLog(loop)
        self.prepared: dict[object, dict[str, Any]] = {}
        self._ticking: asyncio.TimerHandle | None = None
        self._interval = _TICK

    def site(self, terms: Terms) -> Site:
        site = self.sites.get(terms)
        if site is None:
            if len(self.sites) >= _REMEMBERED:
                self.sites.clear()
            site = self.sites[terms] = Site(
                terms.plan, self.loop, hostname="", noise=self.noise, mail=self.mail
            )
        return site

    def prepare(self, alike: object, attributes: dict[str, Any]) -> None:
        """Keeps what connections that are ``alike`` have in common."""
        if len(self.prepared) >= _REMEMBERED:
            self.prepared.clear()
        self.prepared[alike] = attributes

    def wind(self, timeout: float) -> None:
        """Lets the clock run while there are connections; ``timeout`` is the shortest of the new one's."""
        if timeout < 4 * self._interval:
            self._interval = timeout / 4
        if self._ticking is None:
            self.engine.now = time.monotonic()
            self._ticking = self.loop.call_later(self._interval, self._tick)

    def tell(self) -> None:
        """Says what was left out of the log."""
        self.noise.tell()
        self.mail.tell()

    def _tick(self) -> None:
        try:
            expire_all(self.engine.tick(time.monotonic()), self.noise)
        finally:
            self._ticking = None
            if self.engine.live:
                self._ticking = self.loop.call_later(self._interval, self._tick)
            else:
                self._interval = _TICK


_houses: dict[asyncio.AbstractEventLoop, House] = {}


def forget_prepared() -> None:
    """Forgets what connections that are alike have in common, since it may not be so any more."""
    for house in list(_houses.values()):
        house.prepared.clear()


def house_of(loop: asyncio.AbstractEventLoop) -> House:
    house = _houses.get(loop)
    if house is None:
        for other in list(_houses):
            if other.is_closed():
                _houses.pop(other, None)
        house = _houses[loop] = House(loop)
    return house
