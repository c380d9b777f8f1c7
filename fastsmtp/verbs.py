"""The ``smtp_`` methods: commands that a subclass of ``SMTP`` may do otherwise, or have of its own.

Knows how such a method is called and how it has the dialogue do what it does not do itself, and what HELP lists.
Refuses to know what a command does: a method that is not overridden is never called.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from fastsmtp.connection import LATER
from fastsmtp.hooks import give_up, guarded, settled
from fastsmtp.pushing import Pushing
from fastsmtp.replies import as_status
from fastsmtp.terms import Terms, built_in

F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger("mail.log")


def syntax(text: str, extended: str | None = None, when: str | None = None) -> Callable[[F], F]:
    """Gives a ``smtp_`` method what HELP says of it.

    ``extended`` is added to ``text`` after EHLO. ``when`` names an attribute of the server that must be true for
    the command to be listed.
    """

    def decorate(method: F) -> F:
        method.__smtp_syntax__ = text  # type: ignore[attr-defined]
        method.__smtp_syntax_extended__ = extended  # type: ignore[attr-defined]
        method.__smtp_syntax_when__ = when  # type: ignore[attr-defined]
        return method

    return decorate


class Verbs(Pushing):
    """A connection whose commands may be Python's."""

    _terms: Terms
    _auth_required: bool
    _command: asyncio.Future[Any] | None = None
    _performance: asyncio.Future[None] | None = None

    # --- commands that a subclass has overridden ------------------------------------------------------------

    def _begin_command(self, verb: str, argument: str | None) -> object:
        method = getattr(self, self._terms.commands[verb])
        result = self._after_replies(method, argument) if self._pushes else method(argument)
        if asyncio.iscoroutine(result):
            task = self.loop.create_task(guarded(result))
            self._command = task
            task.add_done_callback(self._command_done)
            return LATER
        return None

    async def _after_replies(self, method: Callable[..., Any], argument: str | None) -> None:
        """A command whose own replies come after those of the commands before it."""
        await self.pushed()
        await settled(method(argument))

    def hang_up(self) -> None:
        super().hang_up()
        if self._command is not None and not _is_current(self._command):
            give_up(self._command)  # it must not begin TLS, say, on what is over

    def _command_done(self, task: asyncio.Task[Any]) -> None:
        if task is not self._command:
            return
        self._command = None
        if task.cancelled():
            self.end()
        elif (error := task.exception()) is None:
            self.answered(b"")
        else:
            reply = self._failure(self.asked, error)
            if reply is not None:
                self.answered(reply)

    async def _perform(self, verb: str, argument: str | None) -> None:
        performance = self._performance = self.loop.create_future()
        if not self.perform(verb, argument):
            await performance
        self._performance = None

    def performed(self) -> None:
        performance, self._performance = self._performance, None
        if performance is not None and not performance.done():
            performance.set_result(None)

    def expire(self, state: str) -> None:
        command = self._command
        if command is not None and state == "handler":
            self._command = None
            give_up(command)
        super().expire(state)

    async def check_auth_needed(self, caller_method: str) -> bool:
        """Whether the client has to authenticate before ``caller_method``; it is told so."""
        if self.session.authenticated or not self._auth_required:
            return False
        log.info("%s: Authentication required", caller_method)
        await self.push(as_status(self.rules.book, "NEED_AUTH"))
        return True

    # --- the commands ---------------------------------------------------------------------------------------
    # None of these is called unless a subclass has one of its own: the dialogue does them.

    @built_in
    @syntax("HELO hostname")
    async def smtp_HELO(self, hostname: str) -> None:
        """HELO; to be overridden, as all of these."""
        await self._perform("HELO", hostname)

    @built_in
    @syntax("EHLO hostname")
    async def smtp_EHLO(self, hostname: str) -> None:
        """EHLO."""
        await self._perform("EHLO", hostname)

    @built_in
    @syntax("NOOP [ignored]")
    async def smtp_NOOP(self, arg: str | None) -> None:
        """NOOP."""
        await self._perform("NOOP", arg)

    @built_in
    @syntax("QUIT")
    async def smtp_QUIT(self, arg: str | None) -> None:
        """QUIT."""
        await self._perform("QUIT", arg)

    @built_in
    @syntax("STARTTLS", when="tls_context")
    async def smtp_STARTTLS(self, arg: str | None) -> None:
        """STARTTLS (RFC 3207)."""
        await self._perform("STARTTLS", arg)

    @built_in
    @syntax("AUTH <mechanism>")
    async def smtp_AUTH(self, arg: str | None) -> None:
        """AUTH (RFC 4954)."""
        await self._perform("AUTH", arg)

    @built_in
    @syntax("VRFY <address>")
    async def smtp_VRFY(self, arg: str | None) -> None:
        """VRFY."""
        await self._perform("VRFY", arg)

    @built_in
    @syntax("MAIL FROM: <address>", extended=" [SP <mail-parameters>]")
    async def smtp_MAIL(self, arg: str | None) -> None:
        """MAIL."""
        await self._perform("MAIL", arg)

    @built_in
    @syntax("RCPT TO: <address>", extended=" [SP <mail-parameters>]")
    async def smtp_RCPT(self, arg: str | None) -> None:
        """RCPT."""
        await self._perform("RCPT", arg)

    @built_in
    @syntax("RSET")
    async def smtp_RSET(self, arg: str | None) -> None:
        """RSET."""
        await self._perform("RSET", arg)

    @built_in
    @syntax("DATA")
    async def smtp_DATA(self, arg: str | None) -> None:
        """DATA, to the reply after its content."""
        await self._perform("DATA", arg)

    @built_in
    async def smtp_EXPN(self, arg: str | None) -> None:
        """EXPN."""
        await self._perform("EXPN", arg)

    @syntax("HELP [command]")
    async def smtp_HELP(self, arg: str | None) -> None:
        """HELP: the commands that have a ``@syntax``, or that of one."""
        if await self.check_auth_needed("HELP"):
            return
        known = {verb: getattr(self, name) for verb, name in self._terms.commands.items()}
        listed = {verb: method for verb, method in known.items() if self._syntax_available(method)}
        method = listed.get(arg.upper()) if arg else None
        if method is not None:
            extended = method.__smtp_syntax_extended__ if self.session.extended_smtp else None
            await self.push(f"250 Syntax: {method.__smtp_syntax__}{extended or ''}")
            return
        await self.push(f"{501 if arg else 250} Supported commands: {' '.join(sorted(listed))}")

    def _syntax_available(self, method: Callable[..., Any]) -> bool:
        if not hasattr(method, "__smtp_syntax__"):
            return False
        when = method.__smtp_syntax_when__  # type: ignore[attr-defined]
        return when is None or bool(getattr(self, when))


def _is_current(future: asyncio.Future[Any]) -> bool:
    try:
        return asyncio.current_task() is future
    except RuntimeError:  # no loop runs: a program calls the protocol by hand
        return False
