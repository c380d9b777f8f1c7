"""A client that sends its content in small segments with Nagle's algorithm on, as many mail programs do.

    python -m benchmarks.segments PORT MESSAGES SIZE CLEAR|TLS

The header, each piece of the body and the final dot are writes of their own. Nagle's algorithm (RFC 896) holds the
second write until the first is acknowledged, and a receiver that sends no reply may delay that for 40 ms (RFC 1122,
section 4.2.3.2). At its end the program prints JSON; a wrong reply is a line on stderr and status 1.
"""

import json
import os
import ssl
import statistics
import subprocess
import sys
import time

from .client import BenchmarkError, Client, Sent
from .process import ROOT, before_exec
from .rows import Load

PIECE = 400  # octets of a write, about
LINE = b"X" * 76 + b"\r\n"
HEADER = b"From: sender@sender.example\r\nTo: box@recipient.example\r\nSubject: small segments\r\n\r\n"
END = b".\r\n"
RUN_SECONDS = 300.0


def pieces(size: int) -> list[bytes]:
    """The writes of one message of `size` octets, or a line more."""
    body = LINE * max(1, -(-(size - len(HEADER)) // len(LINE)))
    return [HEADER, *(body[begin : begin + PIECE] for begin in range(0, len(body), PIECE)), END]


def one(client: Client, writes: list[bytes]) -> float:
    """Send one message; returns the seconds from MAIL to the reply to its content."""
    started = time.perf_counter()
    client.command("MAIL FROM:<sender@sender.example>", "250")
    client.command("RCPT TO:<box@recipient.example>", "250")
    client.command("DATA", "354")
    for write in writes:
        client.socket.sendall(write)
    client.reply("250")
    return time.perf_counter() - started


def main(port: int, messages: int, size: int, transport: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    writes = pieces(size)
    started = time.perf_counter()
    with Client(port, tls=context if transport == "TLS" else None) as client:
        client.hello("segments.example")
        waits = [one(client, writes) for _ in range(messages)]
        client.command("QUIT", "221")
    print(json.dumps({"seconds": time.perf_counter() - started, "wait": statistics.median(waits) * 1e3}))


def send(load: Load, messages: int, port: int, cpu: int | None = None) -> Sent:
    """Send it all, over one connection. BenchmarkError unless every message was accepted."""
    transport = "CLEAR" if load.tls == "none" else "TLS"
    words = [str(port), str(messages), str(load.size), transport]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.segments", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
            preexec_fn=before_exec(cpu),
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"the client was not done after {RUN_SECONDS:.0f} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BenchmarkError(f"the client ended with status {done.returncode}: {last}")
    found = json.loads(done.stdout)
    return Sent(found["seconds"], found["wait"])


if __name__ == "__main__":
    try:
        main(*(int(word) for word in sys.argv[1:4]), sys.argv[4])
    except (BenchmarkError, OSError) as error:
        sys.exit(f"segments: {error}")
