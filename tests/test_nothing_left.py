"""After a connection has ended, in any way and whatever its hooks did, nothing of it is left: no object, no memory of
the budget, no descriptor, no octet on the disk.
"""

import asyncio
import gc
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from disks import open_files
from servers import Client, on_both_loops, serve, until
from wires import HELLO, TO_DATA

from fastsmtp import Envelope, Session, SMTPError, blocking
from fastsmtp._reception import Reception
from fastsmtp.body import Body, Spill
from fastsmtp.connection import Connection
from fastsmtp.worker import Worker

SIZES = {"an octet": 1, "in memory": 60_000, "spilled": 300_000}
SPILL = 200_000
KINDS = frozenset({Connection, Session, Envelope, Reception, Spill, *Body.__subclasses__()})


class Takes:
    """Has the message at once."""

    def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
        assert envelope.body is not None
        return f"250 2.0.0 {envelope.body.size} octets"


class Waits(Takes):
    """Has the message when ``go`` is set."""

    def __init__(self) -> None:
        self.asked = False
        self.go = asyncio.Event()

    async def handle_DATA(  # type: ignore[override]
        self, server: object, session: Session, envelope: Envelope
    ) -> str:
        self.asked = True
        await self.go.wait()
        self.asked = False
        self.go.clear()
        return super().handle_DATA(server, session, envelope)


class Blocks(Takes):
    """Has the message in a thread."""

    @blocking
    def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
        return super().handle_DATA(server, session, envelope)


class Fails:
    """Loses it."""

    def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
        raise SMTPError(451, "4.3.0", "not now")


class Remembers(Takes):
    """Ties the connection to its own facts."""

    def handle_MAIL(
        self, server: Any, session: Any, envelope: Any, address: str, mail_options: list[str]
    ) -> str:
        session.server = envelope.server = server
        envelope.mail_from = address
        return "250 2.1.0 Ok"


Asked = Callable[[], Awaitable[None]]


def reset(client: Client) -> None:
    sock = client.socket
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def to_content(client: Client, content: bytes) -> None:
    """Sends all but the end of a message, and reads what there is to read: else a close would be a reset."""
    await client.send(HELLO + TO_DATA)
    assert await client.codes(5) == [220, 250, 250, 250, 354]
    await client.send(content)


async def leaves_before_data(client: Client, content: bytes, asked: Asked) -> None:
    await client.send(HELLO + TO_DATA.partition(b"DATA")[0])
    assert await client.codes(4) == [220, 250, 250, 250]
    client.socket.close()


async def leaves_within_data(client: Client, content: bytes, asked: Asked) -> None:
    await to_content(client, content)
    client.socket.close()


async def is_reset_within_data(client: Client, content: bytes, asked: Asked) -> None:
    await to_content(client, content)
    reset(client)


async def leaves_after_the_dot(client: Client, content: bytes, asked: Asked) -> None:
    await to_content(client, content + b"\r\n.\r\n")
    client.socket.close()
    await asked()


async def is_reset_after_the_dot(client: Client, content: bytes, asked: Asked) -> None:
    await to_content(client, content + b"\r\n.\r\n")
    await asked()
    reset(client)


async def begins_a_second_message(client: Client, content: bytes, asked: Asked) -> None:
    await to_content(client, content + b"\r\n.\r\n" + TO_DATA + content)
    await asked()
    client.socket.close()


async def says_goodbye_before_the_reply(client: Client, content: bytes, asked: Asked) -> None:
    await to_content(client, content + b"\r\n.\r\nQUIT\r\n")
    client.half_close()
    await asked()


async def is_ended_by_the_server(client: Client, content: bytes, asked: Asked) -> None:
    await to_content(client, content + b"\r\n.\r\nQUIT\r\n")
    await asked()


WAYS = (
    leaves_before_data,
    leaves_within_data,
    is_reset_within_data,
    leaves_after_the_dot,
    is_reset_after_the_dot,
    begins_a_second_message,
    says_goodbye_before_the_reply,
    is_ended_by_the_server,
)
HANDLERS: dict[str, type | str] = {
    "plain": Takes,
    "async": Waits,
    "blocking": Blocks,
    "refusing": Fails,
    "cyclic": Remembers,
    "discard": "discard:",
    "maildir": "maildir:{}/mail",
    "maildir, unsynced": "maildir:{}/mail?sync=no",
}


def left() -> int:
    """How many objects of a connection there are."""
    gc.collect()
    # By their very types: other tests leave objects whose ``__class__`` is not to be asked.
    return sum(type(found) in KINDS for found in gc.get_objects())


async def gone(server: Worker) -> None:
    """Waits until no connection is served and no hook of one is at work."""
    await until(lambda: not server.connections and not server._engine.unanswered)


@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
@pytest.mark.parametrize("kind", HANDLERS.values(), ids=list(HANDLERS))
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@on_both_loops
async def test_a_connection_leaves_nothing_behind(
    way: Callable[[Client, bytes, Asked], Awaitable[None]], kind: type | str, size: int, tmp_path: Path
) -> None:
    settings: dict[str, object] = {"spill_threshold": SPILL, "spill_directory": tmp_path}
    handler = None if isinstance(kind, str) else kind()
    if isinstance(kind, str):
        settings["deliver"] = kind.format(tmp_path)
    async with await serve(handler, **settings) as server:
        counts = []

        async def asked() -> None:
            if isinstance(handler, Waits):
                await until(lambda: handler.asked)

        for number in range(3):
            # The first connection brings what stays: memory that is used again, the descriptor of a folder.
            client = await Client.connect(server)
            await way(client, b"x" * size, asked)
            if isinstance(handler, Waits):
                handler.go.set()
            if way in (says_goodbye_before_the_reply, is_ended_by_the_server):
                assert [reply.code for reply in await client.rest()] == [451 if kind is Fails else 250, 221]
            client.socket.close()
            await gone(server)
            del client
            assert server._engine.held == 0
            if number != 1:
                counts.append((left(), open_files()))
        assert counts[0] == counts[1]
