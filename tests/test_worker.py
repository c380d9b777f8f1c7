"""A worker in the test's own loop: what its end does to connections that come in the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop
from processes import Client, dial

from fastsmtp import sockets
from fastsmtp.config import Config
from fastsmtp.worker import Worker

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Handler:
    async def handle_DATA(self, server: object, session: object, envelope: object) -> str:
        return "250 2.0.0 kept"


@pytest.mark.parametrize("make", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("way", [Worker.close, lambda worker: worker.drain(5.0)], ids=["close", "drain"])
def test_who_is_accepted_while_a_worker_ends_is_told_so(
    make: Callable[[], asyncio.AbstractEventLoop], way: Callable[[Worker], object]
) -> None:
    async def main() -> None:
        config = Config.of(listen=["127.0.0.1:0"], hostname="mx.example")
        worker = Worker(config, sockets.bind(config.listen, config.backlog), handler=Handler())
        await worker.start()
        # The kernel has it now; uvloop accepts it before it closes the server.
        with Client(dial(worker.addresses[0])) as client:
            await way(worker)  # type: ignore[misc]
            assert worker.connections == 0
            try:
                replies = [client.reply(), client.reply()]
            except ConnectionError:  # refused as a whole: the loop had not accepted it
                return
            assert [reply[:4] for reply in replies] == ["220 ", "421 "]
            assert client.at_end()

    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(main())
