"""Single clients that ask for much; a program, so that its work is not the probe's.

    python -m benchmarks.greedy WHAT PORT COUNT

`mailboxes`: messages for COUNT new mailboxes each, one after the other. `tls-content`: COUNT connections that have sent
320 kB under TLS and stay. The program prints "ready", goes on until its standard input ends, and prints JSON.
"""

import json
import select
import ssl
import sys
import time
from contextlib import ExitStack

from .client import BenchmarkError, Client

PATIENCE_SECONDS = 120.0  # for one reply
CONTENT = b"Subject: greedy\r\n\r\n" + (b"X" * 76 + b"\r\n") * 50 + b".\r\n"
LARGE = b"Subject: large\r\n\r\n" + (b"X" * 76 + b"\r\n") * (320_000 // 78) + b".\r\n"


def over() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


def mailboxes(port: int, count: int) -> dict[str, float]:
    """Messages for `count` recipients each whom nobody has written to before."""
    waits: list[float] = []
    with Client(port, timeout=PATIENCE_SECONDS) as client:
        client.hello("greedy.example")
        print("ready", flush=True)
        while not over():
            number = len(waits)
            lines = [f"RCPT TO:<box{each}@m{number}.example>\r\n" for each in range(count)]
            client.socket.sendall(f"MAIL FROM:<a@b.example>\r\n{''.join(lines)}DATA\r\n".encode())
            for _ in range(1 + count):
                client.reply("250")
            client.reply("354")
            started = time.perf_counter()
            client.socket.sendall(CONTENT)
            client.reply("250")
            waits.append(time.perf_counter() - started)
    return {"opened": 1, "messages": len(waits), "longest message, s": max(waits, default=0.0)}


def tls_content(port: int, count: int) -> dict[str, float]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(Client(port, timeout=PATIENCE_SECONDS))
            client.hello("greedy.example")
            client.command("STARTTLS", "220")
            client.socket = context.wrap_socket(client.socket)
            client.hello("greedy.example")
            client.command("MAIL FROM:<a@b.example>", "250")
            client.command("RCPT TO:<box@recipient.example>", "250")
            client.command("DATA", "354")
            client.socket.sendall(LARGE)
            client.reply("250")
        print("ready", flush=True)
        select.select([sys.stdin], [], [])
    return {"opened": count}


WHAT = {"mailboxes": mailboxes, "tls-content": tls_content}

if __name__ == "__main__":
    try:
        print(json.dumps(WHAT[sys.argv[1]](*map(int, sys.argv[2:4]))), flush=True)
    except (BenchmarkError, OSError) as error:
        sys.exit(f"greedy: {error}")
