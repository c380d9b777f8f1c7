"""LMTP (RFC 2033), in aiosmtpd's interface: LHLO instead of HELO, and one reply for each recipient after DATA."""

from __future__ import annotations

from typing import Any

from fastsmtp.smtp import SMTP
from fastsmtp.terms import built_in
from fastsmtp.verbs import syntax

__all__ = ["LMTP"]


class LMTP(SMTP):
    """A connection that takes mail by LMTP.

    ``handle_DATA`` returns one status for all recipients or a list with one for each, in the order of
    ``envelope.rcpt_tos``.
    """

    show_smtp_greeting = False
    replies_to_each = True

    smtp_HELO: Any = None
    smtp_EHLO: Any = None

    @built_in
    @syntax("LHLO hostname")
    async def smtp_LHLO(self, arg: str) -> None:
        """LHLO, which LMTP has instead of EHLO."""
        await self._perform("LHLO", arg)
