"""Honest clients at a fixed, modest rate; a program, so that its work is not that of the attackers.

    python -m benchmarks.honest PORT RATE SECONDS

Each client has a session of its own: connect, greeting, EHLO, MAIL, RCPT, DATA, 4 kB, QUIT. The loop is open: a
session is due at a fixed time, whatever the server does, and its wait counts from then. A connection that ends before
its greeting is made again; any other failure ends the session. At the end the program prints JSON.
"""

import asyncio
import json
import socket
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

LIMIT_SECONDS = 30.0  # of one session; then it has failed
AGAIN_SECONDS = 0.01
CONTENT = b"From: honest@sender.example\r\nSubject: honest\r\n\r\n" + (b"X" * 76 + b"\r\n") * 52 + b".\r\n"
STEPS = (
    (b"EHLO honest.example\r\n", b"250"),
    (b"MAIL FROM:<honest@sender.example>\r\n", b"250"),
    (b"RCPT TO:<box@recipient.example>\r\n", b"250"),
    (b"DATA\r\n", b"354"),
    (CONTENT, b"250"),
    (b"QUIT\r\n", b"221"),
)


class RefusedError(Exception):
    """A reply other than the one that was due."""


@dataclass
class Honest:
    """What happened to all sessions: waits are in milliseconds, `failures` are counted by their text.

    A session that failed is in `waits` only if it reached its limit.
    """

    sessions: int = 0
    waits: list[float] = field(default_factory=list)
    greetings: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    again: int = 0  # connections that ended before their greeting


async def reply(connection: socket.socket, expected: bytes) -> None:
    loop, received = asyncio.get_running_loop(), b""
    while not received.endswith(b"\n") or received.splitlines()[-1][3:4] == b"-":
        octets = await loop.sock_recv(connection, 4096)
        if not octets:
            raise ConnectionResetError
        received += octets
    if not received.startswith(expected):
        raise RefusedError(received.splitlines()[-1].decode(errors="replace")[:80])


async def connected(port: int, found: Honest) -> socket.socket:
    """A connection that has its greeting."""
    while True:
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
            await reply(connection, b"220")
            return connection
        except OSError:
            connection.close()
            found.again += 1
            await asyncio.sleep(AGAIN_SECONDS)
        except BaseException:
            connection.close()
            raise


async def session(port: int, due: float, found: Honest) -> None:
    def milliseconds() -> float:
        return (time.perf_counter() - due) * 1e3

    found.sessions += 1
    greeted = False
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            with await connected(port, found) as connection:
                greeted = True
                found.greetings.append(milliseconds())
                for octets, expected in STEPS:
                    await asyncio.get_running_loop().sock_sendall(connection, octets)
                    await reply(connection, expected)
        found.waits.append(milliseconds())
    except TimeoutError:
        found.failures[f"not done after {LIMIT_SECONDS:.0f} s"] += 1
        found.waits.append(milliseconds())
        if not greeted:
            found.greetings.append(milliseconds())
    except RefusedError as refused:
        found.failures[str(refused)] += 1
    except OSError:
        found.failures["the connection was cut"] += 1


async def sessions(port: int, rate: float, seconds: float) -> Honest:
    """As many sessions as are due in that time, each to its end."""
    found = Honest()
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(max(1, round(rate * seconds))):
            due = started + number / rate
            with suppress(TimeoutError):
                await asyncio.sleep(due - time.perf_counter())
            group.create_task(session(port, due, found))
    return found


if __name__ == "__main__":
    print(json.dumps(vars(asyncio.run(sessions(int(sys.argv[1]), *map(float, sys.argv[2:4]))))))
