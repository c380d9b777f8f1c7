"""A worker in the test's own loop: what its end does to connections that come in the same moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest
import uvloop
from processes import Client, dial
from servers import Client as Connected
from servers import on_both_loops, until

from fastsmtp import sockets
from fastsmtp.config import Config
from fastsmtp.connection import Connection
from fastsmtp.sinks.base import Sink
from fastsmtp.sinks.discard import Discard
from fastsmtp.smtp import SMTP
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


class Fails(Connection):
    """Cannot be ended in order: a fault that only a mistake in the server's own code can cause."""

    def expire(self, state: str) -> None:
        raise RuntimeError("a fault in expire")

    def shut_down(self) -> None:
        raise RuntimeError("a fault in shut_down")


class Closes(Discard):
    closed = False

    async def close(self) -> None:
        self.closed = True


async def failing(sink: Sink | None = None, **settings: object) -> Worker:
    config = Config.of(listen=["127.0.0.1:0"], hostname="mx.example", **settings)
    handler = None if sink is not None else Handler()
    worker = Worker(
        config, sockets.bind(config.listen, config.backlog), handler=handler, sink=sink, connection=Fails
    )
    await worker.start()
    return worker


@on_both_loops
async def test_a_connection_whose_end_fails_does_not_stop_the_clock(caplog: pytest.LogCaptureFixture) -> None:
    worker = await failing(idle_timeout=0.2)
    for _ in range(2):  # the second, after the first has failed
        with await Connected.greeted(worker, b"") as one, await Connected.greeted(worker, b"") as two:
            await until(lambda: not worker.connections)
            assert await one.rest() == await two.rest() == []  # aborted
    assert "cannot expire a connection: RuntimeError: a fault in expire" in caplog.text
    await worker.close()


@on_both_loops
async def test_a_connection_of_a_controller_whose_end_fails_does_not_stop_the_clock(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(SMTP):
        def expire(self, state: str) -> None:
            raise RuntimeError("a fault in expire")

    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Broken(Handler(), timeout=0.2), "127.0.0.1", 0)
    for _ in range(2):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert (await reader.readline()).startswith(b"220 ")
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
    server.close()
    assert "cannot expire a connection: RuntimeError: a fault in expire" in caplog.text


@pytest.mark.parametrize("way", [Worker.close, lambda worker: worker.drain(1.5)], ids=["close", "drain"])
@on_both_loops
async def test_a_connection_that_cannot_be_shut_down_keeps_neither_others_nor_the_sink_open(
    way: Callable[[Worker], object], caplog: pytest.LogCaptureFixture
) -> None:
    sink = Closes()
    worker = await failing(sink)
    with await Connected.greeted(worker, b"") as one, await Connected.greeted(worker, b"") as two:
        await way(worker)  # type: ignore[misc]
        assert (worker.connections, sink.closed) == (0, True)
        assert await one.rest() == await two.rest() == []
    assert "cannot shut down a connection: RuntimeError: a fault in shut_down" in caplog.text
