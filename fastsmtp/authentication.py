"""AUTH on a connection: challenges and their answers, the mechanisms' methods, and what their results mean.

Knows aiosmtpd's ways to judge a client: ``authenticator``, ``auth_callback``, ``handle_AUTH`` and ``auth_`` methods.
Refuses to know when AUTH may be said, which is the dialogue's, and what PLAIN and LOGIN look like.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from base64 import b64encode
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from fastsmtp.connection import Connection
from fastsmtp.envelope import Envelope, Session
from fastsmtp.hooks import find_hook, settled
from fastsmtp.logs import brief_repr
from fastsmtp.replies import NotAReply
from fastsmtp.sasl import (
    BAD_BASE64,
    FAILED,
    MISSING,
    SUCCEEDED,
    AuthResult,
    LoginPassword,
    Missing,
    decode,
    login,
    plain,
)
from fastsmtp.terms import Terms

if TYPE_CHECKING:
    from fastsmtp.smtp import SMTP

AuthCallbackType: TypeAlias = Callable[[str, bytes, bytes], bool]
AuthenticatorType: TypeAlias = "Callable[[SMTP, Session, Envelope, str, Any], AuthResult]"

log = logging.getLogger("mail.log")

_TEXT = bytes([9, *range(32, 127)])  # octets of a reply's text (RFC 5321 4.2)


def login_always_fail(mechanism: str, login: bytes, password: bytes) -> bool:
    """The ``auth_callback`` of those who have none."""
    return False


class Authentication(Connection):
    """A connection whose client may say who it is."""

    AuthLoginUsernameChallenge = "User Name\x00"
    AuthLoginPasswordChallenge = "Password\x00"

    event_handler: Any
    _terms: Terms
    _auth_callback: AuthCallbackType | None
    _authenticator: AuthenticatorType | None
    _pushes: bool
    _pushed = 0  # what the program said by ``push``
    _pushes_by_us = False  # whether a ``push`` that was overridden calls ours in the end
    _auth_began = 0  # of these, before the AUTH that is under way
    _response: asyncio.Future[bytes | None] | None = None

    async def push(self, status: str | bytes) -> None:
        raise NotImplementedError

    async def challenge_auth(
        self, challenge: str | bytes, encode_to_b64: bool = True, log_client_response: bool = False
    ) -> bytes | Missing:
        """Asks the client within AUTH, and returns its answer, decoded from base64.

        ``MISSING``: it gave up, or answered something else, and was told so. With ``log_client_response`` the
        answer, a password as a rule, is logged.
        """
        octets = challenge.encode() if isinstance(challenge, str) else challenge
        if not (encode_to_b64 or octets.translate(None, _TEXT) == b""):
            raise NotAReply(
                f"{brief_repr(challenge)} is no challenge: it has octets that a reply cannot have"
            )
        response = self.loop.create_future()
        self._response = response
        self.challenge(b"334 " + (b64encode(octets) if encode_to_b64 else octets) + b"\r\n")
        if self._at_eof and not response.done():
            self._response = None
            self.hang_up()  # no answer can come
            return MISSING
        line = await response
        if line is None:
            self._say(logging.WARNING, "aborted", "AUTH was aborted with '*'")
            return MISSING
        if log_client_response:
            warnings.warn("AUTH interaction logging is enabled!", stacklevel=2)
            warnings.warn("Sensitive information might be leaked!", stacklevel=2)
            log.debug("%r >> %r", self.session.peer, line)
        decoded = decode(line.strip())
        if decoded is None:
            log.debug("%r can't decode base64: %s", self.session.peer, line)
            await self.push(BAD_BASE64)
            return MISSING
        return decoded

    def responded(self, line: bytes | None) -> None:
        response, self._response = self._response, None
        self._pushed += line is None  # its client was refused
        if response is not None and not response.done():
            response.set_result(line)

    async def auth_PLAIN(self, _: object, args: list[str]) -> AuthResult:
        """AUTH PLAIN; to be overridden."""
        return await self._judge("PLAIN", await plain(self, args))

    async def auth_LOGIN(self, _: object, args: list[str]) -> AuthResult:
        """AUTH LOGIN; to be overridden."""
        return await self._judge("LOGIN", await login(self, args))

    async def _judge(self, mechanism: str, auth_data: LoginPassword | None) -> AuthResult:
        """Has the program judge credentials; ``None`` are those that the client was told are malformed."""
        if auth_data is None:
            return AuthResult(success=False, handled=True)
        result = await settled(self._authenticate(mechanism, auth_data))
        if isinstance(result, AuthResult):
            return result
        # Whatever else it is, it lets nobody in.
        self._say(
            logging.ERROR,
            "authenticator",
            "authenticator gave no AuthResult but %s",
            brief_repr(type(result)),
        )
        return AuthResult(success=False, handled=False)

    def _authenticate(self, mechanism: str, auth_data: Any) -> Any:
        if self._authenticator is not None:
            assert self.envelope is not None
            return self._authenticator(cast("SMTP", self), self.session, self.envelope, mechanism, auth_data)
        assert self._auth_callback is not None
        return self._ask_callback(self._auth_callback(mechanism, *auth_data), auth_data)

    async def _ask_callback(self, verdict: Any, auth_data: Any) -> AuthResult:
        if await settled(verdict):
            return AuthResult(success=True, handled=True, auth_data=auth_data)
        return AuthResult(success=False, handled=False)

    async def _call_handler_hook(self, command: str, *args: Any) -> Any:
        """Calls a hook; ``MISSING`` without one. A subclass may have another way, which is then every hook's."""
        hook = find_hook(self.event_handler, f"handle_{command}")
        if hook is None:
            return MISSING
        return await settled(hook(self, self.session, self.envelope, *args))

    def unanswered(self) -> bytes:
        """The reply to an AUTH that was left without a status: none, if its client was told something by ``push``."""
        told = self._pushed != self._auth_began or (self._pushes and not self._pushes_by_us)
        if told or self.closed:
            return b""
        self._say(
            logging.WARNING,
            "AUTH",
            "AUTH failed, and its hook told the client nothing; 535 is said in its place. "
            "AuthResult(success=False, handled=False) has the server say it",
        )
        return f"{FAILED}\r\n".encode()

    async def _authenticate_by(self, words: list[str]) -> Any:
        self._auth_began = self._pushed
        status = await self._call_handler_hook("AUTH", words)
        if status is not MISSING:
            return status
        ours, method = self._terms.mechanisms[words[0]]
        result = await settled(getattr(self if ours else self.event_handler, method)(self, words))
        log.debug("auth_%s returned %r", words[0], result)
        session = self.session
        if isinstance(result, AuthResult):
            if result.success:
                session.authenticated = True
                session.auth_data = result.auth_data
                session.note_login(getattr(result.auth_data, "login", None))
                return result.message or SUCCEEDED
            return None if result.handled else result.message or FAILED
        if result is None:
            return None
        if result is MISSING or result is False:
            return FAILED
        session.authenticated = True
        session.note_login(result)
        return SUCCEEDED
