"""Handlers that do nothing: what remains is the price of asking Python at all."""

from typing import Any

from fastsmtp import blocking


class SyncHandler:
    def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 2.0.0 OK"


class AsyncHandler:
    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 2.0.0 OK"


class BlockingHandler:
    @blocking
    def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 2.0.0 OK"
