"""``discard:`` takes every message and keeps none: for tests, benchmarks, and mail that a handler dealt with.

Knows nothing. Refuses to know where the mail might have gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

from fastsmtp.errors import ConfigError
from fastsmtp.sinks.base import Sink

if TYPE_CHECKING:
    from fastsmtp._envelope import Envelope, Session


class Discard(Sink):
    """Answers ``discarded`` for a queue id."""

    keeps = False

    @classmethod
    def of(cls, path: str, options: Mapping[str, str], hostname: str) -> Self:
        if path:
            raise ConfigError(f"discard: takes no path; remove {path!r}")
        return cls()

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def deliver(self, session: Session, envelope: Envelope) -> str:
        return "discarded"
