"""Postfix's smtp-source, a client that we did not write: one run of it, and the proof that all was taken.

smtp-source ends with a status other than 0 and a line on stderr at the first reply that is not the positive
one it expects, the reply to the final dot included. So a clean end means that each message was accepted. It
knows no TLS, no AUTH and no pipelining; `bench` is the client for these.
"""

import os
import shutil
import subprocess
import time

from .client import BenchmarkError, Sent
from .process import before_exec
from .rows import Load

RUN_SECONDS = 300.0


def postfix_tool(name: str) -> str | None:
    """The path of a Postfix program, which Debian puts where ordinary users do not look."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def missing() -> str | None:
    """Why no load can be sent with it, in one line; None if it can."""
    if postfix_tool("smtp-source"):
        return None
    return "smtp-source is not installed; it is part of Postfix (Debian: apt install postfix)"


def send(load: Load, messages: int, port: int, cpu: int | None = None) -> Sent:
    """Send it all; the seconds are those of its whole life. BenchmarkError unless every message was accepted.

    It adds five header lines to each message.
    """
    program = postfix_tool("smtp-source")
    if program is None:
        raise BenchmarkError(str(missing()))
    counts = {"-m": messages, "-l": load.size, "-s": min(load.connections, messages)}
    command = [
        program,
        *(["-d"] if load.kept else []),
        *(str(word) for pair in counts.items() for word in pair),
        f"inet:127.0.0.1:{port}",
    ]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
            preexec_fn=before_exec(cpu),
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"smtp-source was not done after {RUN_SECONDS:.0f} s") from None
    seconds = time.perf_counter() - started
    if done.returncode != 0 or done.stdout:
        first = (done.stdout.strip().splitlines() or ["it said nothing"])[0]
        raise BenchmarkError(f"smtp-source ended with status {done.returncode}: {first}")
    return Sent(seconds)
