"""Postfix's smtp-source, the client of all load: one run of it, and the proof that every message was taken.

smtp-source ends with a status other than 0 and a line on stderr at the first reply that is not the positive
one it expects, the reply to the final dot included. So a clean end means that each message was accepted.
"""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import Self

from .client import BenchmarkError
from .process import before_exec

RUN_SECONDS = 300.0


def postfix_tool(name: str) -> str | None:
    """The path of a Postfix program, which Debian puts where ordinary users do not look."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


@dataclass(frozen=True)
class Load:
    """What to send: messages of `size` octets (smtp-source adds five header lines) over parallel sessions."""

    messages: int
    size: int
    keep: bool
    sessions: int

    def arguments(self) -> list[str]:
        counts = {"-m": self.messages, "-l": self.size, "-s": min(self.sessions, self.messages)}
        return [*(["-d"] if self.keep else []), *(str(word) for pair in counts.items() for word in pair)]


class Source:
    """A running smtp-source."""

    def __init__(self, load: Load, port: int, cpu: int | None = None) -> None:
        program = postfix_tool("smtp-source")
        if program is None:
            raise BenchmarkError(
                "smtp-source is not installed; it is part of Postfix (Debian: apt install postfix)"
            )
        self._started = time.perf_counter_ns()
        self._process = subprocess.Popen(
            [program, *load.arguments(), f"inet:127.0.0.1:{port}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=before_exec(cpu),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def finish(self) -> int:
        """Wait for its end; returns the wall-clock nanoseconds. BenchmarkError if anything went wrong."""
        try:
            said, _ = self._process.communicate(timeout=RUN_SECONDS)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"smtp-source was not done after {RUN_SECONDS:.0f} s") from None
        wall = time.perf_counter_ns() - self._started
        if self._process.returncode != 0 or said:
            first = said.strip().splitlines()[0] if said.strip() else "it said nothing"
            raise BenchmarkError(f"smtp-source ended with status {self._process.returncode}: {first}")
        return wall


def send(load: Load, port: int, cpu: int | None = None) -> int:
    """Send it all; returns the wall-clock nanoseconds. BenchmarkError unless every message was accepted."""
    with Source(load, port, cpu) as source:
        return source.finish()
