"""Names of aiosmtpd's ``SMTP`` that begin with an underscore, and that programs use all the same: most of all those
who copied one of its ``smtp_`` methods to change a line of it.

Knows what each gave. Refuses to know more: none of it is used by this package.
"""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastsmtp._commands import parse_address
from fastsmtp.authentication import Authentication
from fastsmtp.sasl import Missing


class _AuthMethod(NamedTuple):
    method: Callable[..., Any]
    is_builtin: bool


class _Stream:
    """The stream that aiosmtpd's connection had, for those who began TLS on it and gave it the new transport."""

    def __init__(self, smtp: Legacy) -> None:
        self._smtp = smtp
        self._last = smtp.transport

    @property
    def transport(self) -> asyncio.Transport | None:
        if self._smtp.transport is not None:
            self._last = self._smtp.transport
        return self._last

    @property
    def _transport(self) -> asyncio.Transport | None:
        return self.transport

    @_transport.setter
    def _transport(self, transport: asyncio.Transport) -> None:
        if transport is not self._smtp.transport:
            # What came early inside TLS may have stopped the reading of the transport below it.
            self._smtp.resume_reading()
            self._smtp.transport = transport
            self._smtp.secured(transport.get_extra_info("ssl_object"), transport.write)

    def write(self, data: bytes) -> None:
        self._smtp._pushed += 1
        if self._smtp.transport is not None:
            self._smtp.transport.write(data)

    def close(self) -> None:
        self._smtp.end()


class Legacy(Authentication):
    """What an ``SMTP`` has for such programs."""

    _call_limits: tuple[tuple[str, int], ...] | None
    local_part_limit: int
    _stream: _Stream | None = None

    @property
    def _auth_methods(self) -> dict[str, _AuthMethod]:
        return {
            name: _AuthMethod(getattr(self if ours else self.event_handler, method), ours)
            for name, (ours, method) in self._terms.mechanisms.items()
        }

    @property
    def _handle_hooks(self) -> dict[str, Callable[..., Any]]:
        handler = self.event_handler
        names = [name for name in dir(handler) if name.startswith("handle_")]
        return {name.removeprefix("handle_"): getattr(handler, name) for name in names}

    @property
    def _smtp_methods(self) -> dict[str, Callable[..., Any]]:
        return {verb: getattr(self, name) for verb, name in self._terms.commands.items()}

    @property
    def _enforce_call_limit(self) -> bool:
        return self._call_limits is not None

    @property
    def _call_limit_default(self) -> int:
        return dict(self._call_limits or ())["*"]

    @property
    def _tls_protocol(self) -> object | None:
        return self.session.ssl

    @_tls_protocol.setter
    def _tls_protocol(self, protocol: object) -> None:
        """Programs set it after they began TLS themselves; the new transport says as much."""

    @property
    def _writer(self) -> _Stream:
        if self._stream is None:
            self._stream = _Stream(self)
        return self._stream

    _reader = _writer

    def _strip_command_keyword(self, keyword: str, arg: str) -> str | None:
        return arg[len(keyword) :].strip() if arg[: len(keyword)].upper() == keyword else None

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        if not arg:
            return "", ""
        try:
            address, rest = parse_address(arg.lstrip())
        except ValueError:
            return None, None
        if self.local_part_limit and len(address.rpartition("@")[0]) > self.local_part_limit:
            return None, None
        return address, rest.lstrip()

    def _getparams(self, params: Sequence[str]) -> dict[str, str | bool] | None:
        found: dict[str, str | bool] = {}
        for param in params:
            keyword, equals, value = param.partition("=")
            if not keyword.isalnum() or (equals and not value):
                return None
            found[keyword] = value if equals else True
        return found

    async def _auth_interact(self, server_message: str) -> bytes | Missing:
        warnings.warn(
            "_auth_interact will be deprecated in version 2.0. Please use challenge_auth() instead.",
            DeprecationWarning,
            stacklevel=2,
        )
        return await self.challenge_auth(re.sub("^334 ", "", server_message), encode_to_b64=False)
