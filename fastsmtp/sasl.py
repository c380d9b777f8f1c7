"""AUTH, as aiosmtpd's interface has it: what an exchange ends in, and the mechanisms PLAIN and LOGIN.

Knows base64, the mechanisms' messages (RFC 4616, draft-murchison-sasl-login) and what each result means. Refuses
to know when AUTH may be said (RFC 4954), which is the dialogue's, and who is let in, which is the program's.
"""

from __future__ import annotations

import binascii
import enum
import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

VALID_AUTHMECH = re.compile(r"[A-Z0-9_-]+\Z")
CLIENT_AUTH_B = re.compile(
    rb"(?P<authm>\s*AUTH\s+\S+[^\S\r\n]+)" rb"(\S+)" rb"(?P<crlf>(?:\r\n)?)", re.IGNORECASE
)

SUCCEEDED = "235 2.7.0 Authentication successful"
FAILED = "535 5.7.8 Authentication credentials invalid"
BAD_BASE64 = "501 5.5.2 Can't decode base64"
BAD_PLAIN = "501 5.5.2 Can't split auth value"


class _Missing(enum.Enum):
    MISSING = object()


MISSING: Final = _Missing.MISSING
Missing = Literal[_Missing.MISSING]


@dataclass(kw_only=True, eq=True)
class AuthResult:
    """How an authentication ended.

    ``success``: it is who it says. ``handled``: if not, the client was told already. ``message``: the reply,
    where it is not the usual one. ``auth_data``: what the program knows of the user, kept out of ``repr``.
    """

    success: bool
    handled: bool = True
    message: str | None = None
    auth_data: Any = field(default=None, repr=False)

    def __repr__(self) -> str:
        return (
            f"AuthResult(success={self.success!r}, handled={self.handled!r}, "
            f"message={self.message!r}, auth_data=...)"
        )


class LoginPassword(NamedTuple):
    """What PLAIN and LOGIN find out, in octets. The password stays out of ``str`` and ``repr``."""

    login: bytes
    password: bytes

    def __str__(self) -> str:
        return f"LoginPassword(login='{self.login.decode('utf-8', 'backslashreplace')}', password=...)"

    def __repr__(self) -> str:
        return str(self)


class Challenger(Protocol):
    """What a mechanism needs of the server: to ask the client, and to tell it what was wrong."""

    AuthLoginUsernameChallenge: str
    AuthLoginPasswordChallenge: str

    async def challenge_auth(self, challenge: str | bytes) -> bytes | Missing: ...
    async def push(self, status: str) -> None: ...


def auth_mechanism(actual_name: str) -> Callable[[F], F]:
    """Names the mechanism that an ``auth_`` method is, where the method's name cannot.

    ``actual_name`` is made upper case. Raises ``ValueError`` for one that has other characters than ``A-Z``,
    ``0-9``, ``-`` and ``_``.
    """
    name = actual_name.upper()
    if not VALID_AUTHMECH.match(name):
        raise ValueError(f"Invalid AUTH mechanism name: {name}")

    def decorate(method: F) -> F:
        method.__auth_mechanism_name__ = name  # type: ignore[attr-defined]
        return method

    return decorate


def mechanism_names(owner: object) -> dict[str, str]:
    """The mechanisms that ``owner`` has ``auth_`` methods for: the method's name by the mechanism's."""
    names = {}
    for attribute in dir(owner):
        if attribute.startswith("auth_"):
            method = getattr(owner, attribute)
            name = getattr(
                method, "__auth_mechanism_name__", attribute.removeprefix("auth_").replace("__", "-")
            )
            names[str(name).upper()] = attribute
    return names


async def plain(server: Challenger, words: list[str]) -> LoginPassword | None:
    """PLAIN (RFC 4616): ``[authzid] NUL login NUL password``. ``None``: the client was told what is wrong."""
    if len(words) == 1:
        answer = await server.challenge_auth("")
        if answer is MISSING:
            return None
    else:
        first = await _initial(server, words[1])
        if first is None:
            return None
        answer = first
    parts = answer.split(b"\0")
    if len(parts) != 3:
        await server.push(BAD_PLAIN)
        return None
    return LoginPassword(parts[1], parts[2])


async def login(server: Challenger, words: list[str]) -> LoginPassword | None:
    """LOGIN: name and password, each asked for. ``None``: the client was told what is wrong."""
    if len(words) == 1:
        name = await server.challenge_auth(server.AuthLoginUsernameChallenge)
        if name is MISSING:
            return None
    else:
        first = await _initial(server, words[1])
        if first is None:
            return None
        name = first
    password = await server.challenge_auth(server.AuthLoginPasswordChallenge)
    return None if password is MISSING else LoginPassword(name, password)


async def _initial(server: Challenger, word: str) -> bytes | None:
    decoded = decode(word.encode("utf-8", "surrogateescape"))
    if decoded is None:
        await server.push(BAD_BASE64)
    return decoded


def decode(octets: bytes) -> bytes | None:
    """What base64 octets stand for, or ``None`` if they are not base64."""
    try:
        return b64decode(octets, validate=True)
    except (binascii.Error, ValueError):
        return None


def sanitize(text: bytes) -> bytes:
    """A command line as it may be logged: what follows ``AUTH mechanism`` is a secret."""
    match = CLIENT_AUTH_B.match(text)
    return match["authm"] + b"********" + match["crlf"] if match else text


def sanitized_log(func: Callable[..., None], msg: str | bytes, *args: object, **kwargs: Any) -> None:
    """Calls the logging function ``func`` with what may be logged of ``args``."""
    func(msg, *(sanitize(arg) if isinstance(arg, bytes) else arg for arg in args), **kwargs)
