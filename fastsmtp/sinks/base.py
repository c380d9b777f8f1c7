"""A sink is where mail goes: it ends each message in exactly one of safe, later, never.

Knows what a sink is asked, and what it answers. Refuses to know the wire, and any one sink.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from fastsmtp._envelope import Envelope, Session


class Sink(ABC):
    """Where mail goes. It is made before the workers are; each of them opens and closes it for itself.

    Of an envelope a sink reads ``mail_from``, ``rcpt_tos``, ``smtp_utf8`` and ``body``; of a session
    ``peer``, ``host_name``, ``extended_smtp``, ``tls`` and ``authenticated``.
    """

    options: ClassVar[Sequence[str]] = ()
    """The names that it takes after the ``?`` of its URL."""

    keeps: ClassVar[bool] = True
    """Whether it must be asked at all: a message for a sink that keeps nothing is answered without it."""

    @classmethod
    @abstractmethod
    def of(cls, path: str, options: Mapping[str, str], hostname: str) -> Self:
        """The sink of a URL. Touches nothing yet. Raises ConfigError."""

    @abstractmethod
    async def open(self) -> None:
        """Makes ready, in the worker, before its first accept. ConfigError if mail could not be delivered."""

    @abstractmethod
    async def close(self) -> None:
        """Waits for what is in flight, and frees everything."""

    def head(self, session: Session, envelope: Envelope, beginning: bytes) -> bytes:
        """What the file of a body that is about to be spilled begins with, so that it can be linked.

        ``beginning`` is the first of the content, as far as it is there. Called at most once for an envelope, when all
        recipients are known.
        """
        return b""

    @abstractmethod
    def deliver(self, session: Session, envelope: Envelope) -> str | asyncio.Future[str]:
        """Takes the message on; the queue id when it is safe, at once or as a future on the running loop.

        SMTPError, raised or in the future: 4yz for later, 5yz for never; then nothing of the message is kept.
        Any other exception stands for 451 4.3.0. The sink keeps its own share of the body, so the caller may
        close it. Cancelling the future stops a delivery that has not begun; one that has goes on, and its
        message may be safe all the same.
        """
