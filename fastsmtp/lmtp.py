"""LMTP (RFC 2033), in aiosmtpd's interface: LHLO instead of HELO, and one reply for each recipient after DATA."""

from __future__ import annotations

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

    async def smtp_HELO(self, hostname: str) -> None:
        """HELO is no command of LMTP."""
        await self.push('500 Error: command "HELO" not recognized')

    async def smtp_EHLO(self, hostname: str) -> None:
        """EHLO is no command of LMTP."""
        await self.push('500 Error: command "EHLO" not recognized')

    @built_in
    @syntax("LHLO hostname")
    async def smtp_LHLO(self, arg: str) -> None:
        """LHLO, which LMTP has instead of EHLO."""
        await self._perform("LHLO", arg)
