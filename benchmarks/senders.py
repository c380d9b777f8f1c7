"""Clients that send one large message each, truly at once; a program, so that its work is not the probe's.

    python -m benchmarks.senders PORT CLIENTS SIZE

smtp-source writes a whole message before it turns to its next session, so of its large messages one is on
its way at a time. Here all clients reach DATA first (the program prints "sending"), and then each is given
a piece of its message whenever its socket takes one. At the end it prints "nanoseconds N"; a wrong reply is
a line on stderr and status 1.
"""

import selectors
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from .client import BenchmarkError, Client

PIECE = 64 * 1024
LINE = b"X" * 76 + b"\r\n"


def message(size: int) -> bytes:
    """A header and `size` octets of text in whole lines, or a little more, with the end of data."""
    return b"Subject: large\r\n\r\n" + LINE * -(-size // len(LINE)) + b".\r\n"


def begin(client: Client) -> None:
    client.hello("sender.example")
    client.command("MAIL FROM:<sender@sender.example>", "250")
    client.command("RCPT TO:<box@recipient.example>", "250")
    client.command("DATA", "354")


def send_at_once(clients: Sequence[Client], body: bytes) -> int:
    """Send the body over all connections; returns the nanoseconds from the first octet to the last reply."""
    content = memoryview(body)
    started = time.perf_counter_ns()
    with selectors.DefaultSelector() as selector:
        sent = {}
        for client in clients:
            client.socket.setblocking(False)
            selector.register(client.socket, selectors.EVENT_WRITE, client)
            sent[client] = 0
        while sent:
            ready = selector.select(60)
            if not ready:
                raise BenchmarkError("the server took nothing for 60 s")
            for key, _ in ready:
                client = key.data
                sent[client] += client.socket.send(content[sent[client] : sent[client] + PIECE])
                if sent[client] == len(content):
                    selector.unregister(client.socket)
                    client.socket.settimeout(60)
                    del sent[client]
    for client in clients:
        client.reply("250")
    return time.perf_counter_ns() - started


def main(port: int, count: int, size: int) -> None:
    body = message(size)
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(port)) for _ in range(count)]
        for client in clients:
            begin(client)
        print("sending", flush=True)
        print("nanoseconds", send_at_once(clients, body), flush=True)
        for client in clients:
            client.command("QUIT", "221")


if __name__ == "__main__":
    try:
        main(*(int(argument) for argument in sys.argv[1:]))
    except (BenchmarkError, OSError) as error:
        sys.exit(f"senders: {error}")
