"""A connection that a proxy introduces: its PROXY header comes before the greeting.

Knows when the header is due and who decides about it (``handle_PROXY``). Refuses to know the header's form, which is
the parser's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from fastsmtp.connection import Connection
from fastsmtp.hooks import find_hook, guarded
from fastsmtp.proxy_protocol import ProxyData, ProxyParser


class Introduced(Connection):
    """A connection that may begin with a PROXY header."""

    event_handler: Any
    writer: Callable[[asyncio.Transport], Callable[[bytes], object]]
    _parser: ProxyParser
    _introduction: asyncio.Handle | asyncio.Future[Any] | None = None

    def proxied(self, proxy_data: ProxyData) -> None:
        """Gives a PROXY header that somebody else has read, before ``connection_made``."""
        self.session.proxy_data = proxy_data

    def be_introduced(self, patience: float) -> None:
        """Begins with the header, which is due within ``patience`` seconds."""
        assert self.transport is not None
        if self.session.proxy_data is not None:
            self._introduced(self.session.proxy_data)
            return
        self.expect_preface()
        self._parser = ProxyParser()
        self._introduction = self.loop.call_later(patience, self.transport.abort)

    def preface(self, octets: bytes) -> int:
        taken = self._parser.feed(octets)
        if self._parser.data is None:
            return -1
        assert self._introduction is not None
        self._introduction.cancel()
        self._introduced(self._parser.data)
        return taken

    def _introduced(self, data: ProxyData) -> None:
        self.session.proxy_data = data
        hook = find_hook(self.event_handler, "handle_PROXY")
        if not data:
            self._say(logging.WARNING, "header", "invalid PROXY handshake")
            self._decide(False)
            return
        if hook is None:
            self._say(logging.WARNING, "handle_PROXY", "a valid PROXY header, but there is no handle_PROXY")
            self._decide(False)
            return
        try:
            result = self._call_unasked(
                lambda server, *_: hook(server, server.session, server.envelope, data)
            )
        except BaseException as error:
            self._complain("handle_PROXY", error, 0)
            self._decide(False)
            return
        if asyncio.iscoroutine(result):
            result = self.loop.create_task(guarded(result))
        if asyncio.isfuture(result):
            self._introduction = result
            result.add_done_callback(self._hook_done)
        else:
            self._decide(bool(result))

    def _hook_done(self, future: asyncio.Future[Any]) -> None:
        accepted = False
        if not future.cancelled():
            if (error := future.exception()) is not None:
                self._complain("handle_PROXY", error, 0)
            else:
                accepted = bool(future.result())
        self._decide(accepted)
        self.go_on()

    def _decide(self, accepted: bool) -> None:
        if self.transport is None:
            return
        if accepted:
            self.connect(self.writer(self.transport))
        else:
            self._say(logging.INFO, "rejected", "rejected by handle_PROXY")
            self.transport.close()
