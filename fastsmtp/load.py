"""A load for an SMTP server: what is to be sent, to the last octet, and the figures of what became of it.

Knows which message has which number, and how a plan is shared out among processes. Refuses to know how it is sent, and
what people are shown of it.
"""

from __future__ import annotations

import base64
import re
import ssl
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from fastsmtp._load import MEASURED_STAGES, Histogram, Load

LEAST_SIZE = 256  # octets: room for the header
HELLO = b"EHLO bench.fastsmtp.invalid\r\n"

_ALWAYS = 1 << 60  # messages: as many as there is time for
_DIGITS = 12
_HEAD = (
    b"Message-ID: <000000000000@bench.fastsmtp.invalid>\r\n"
    b"Date: Thu, 01 Jan 2026 00:00:00 +0000\r\n"
    b"From: bench@fastsmtp.invalid\r\n"
    b"To: bench@fastsmtp.invalid\r\n"
    b"Subject: fastsmtp bench\r\n"
    b"\r\n"
)
_PLACE = _HEAD.index(b"0" * _DIGITS)
_LETTERS = b"abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 " * 3
# 65 lines of 78 octets: each fifth begins with a dot, one is nothing but dots.
_BLOCK = b"".join(
    (b"." if shift % 5 == 0 else b"-")
    + (b"." * 75 if shift == 10 else _LETTERS[shift : shift + 75])
    + b"\r\n"
    for shift in range(65)
)


def content(size: int, number: int) -> bytes:
    """The content of the message ``number``, as a server keeps it: ``size`` octets, at least 256."""
    return _head(number) + _text(size - len(_HEAD))


def _head(number: int) -> bytes:
    return _HEAD.replace(b"0" * _DIGITS, b"%0*d" % (_DIGITS, number), 1)


def _text(size: int) -> bytes:
    lines = (_BLOCK * (size // len(_BLOCK) + 1))[: size - 2]
    # A line that was cut between CR and LF would end in CR CR LF.
    return (lines[:-1] + b"-" if lines.endswith(b"\r") else lines) + b"\r\n"


@dataclass(frozen=True)
class Plan:
    """What is to be sent, how, and where. Sizes are octets, times are seconds.

    ``rate`` messages a second are due at fixed times; without it each connection sends the next when the last was
    accepted. Without ``messages`` it goes on for ``duration``. ``name`` is the server's, for TLS.
    """

    family: int
    address: str | tuple[str | int, ...]
    name: str
    messages: int | None = None
    duration: float | None = None
    connections: int = 20
    size: int = 4096
    rate: float | None = None
    new: bool = False
    pipeline: bool = False
    tls: Literal["none", "starttls", "implicit"] = "none"
    resume: bool = False
    verify: bool = False
    ca: str | None = None
    login: tuple[str, str] | None = None
    sender: str = "bench@fastsmtp.invalid"
    recipients: tuple[str, ...] = ("bench@fastsmtp.invalid",)
    warm_up: int = 0
    timeout: float = 60.0
    processes: int = 1

    def context(self) -> ssl.SSLContext:
        """What TLS is made with. Raises ``OSError`` if ``ca`` cannot be read or is none."""
        context = ssl.create_default_context(cafile=self.ca)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def load(self, index: int) -> Load:
        """What the process ``index`` sends."""
        user, password = self.login or ("", "")
        secret = base64.b64encode(f"\0{user}\0{password}".encode())
        recipients = [f"RCPT TO:<{recipient}>\r\n".encode() for recipient in self.recipients]
        return Load(
            hello=HELLO,
            auth=b"AUTH PLAIN " + secret + b"\r\n" if self.login else b"",
            commands=[f"MAIL FROM:<{self.sender}>\r\n".encode(), *recipients, b"DATA\r\n"],
            head=_HEAD,
            digits=_PLACE,
            body=re.sub(rb"^\.", b"..", _text(self.size - len(_HEAD)), flags=re.M) + b".\r\n",
            pipeline=self.pipeline,
            starttls=self.tls == "starttls",
            single=self.new,
            closed=self.rate is None,
            first=index,
            stride=self.processes,
        )

    def counted(self, index: int) -> int:
        """How many messages the process ``index`` may send once it counts; without a rate time may end that."""
        messages = self.messages
        if messages is None:
            messages = (
                _ALWAYS if self.rate is None or self.duration is None else int(self.rate * self.duration)
            )
        return self.share(self.warm_up + messages, index) - self.share(self.warm_up, index)

    def share(self, total: int, index: int) -> int:
        """How many of the first ``total`` messages the process ``index`` sends."""
        return max(0, (total - index + self.processes - 1) // self.processes)


@dataclass
class Figures:
    """What became of a plan, or of a process's share. ``began`` and ``ended`` are seconds of the monotonic clock."""

    accepted: int = 0
    failed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    late: int = 0
    full: int = 0
    resumed: int = 0
    began: float = 0.0
    ended: float = 0.0
    cpu: list[float] = field(default_factory=list)
    latency: dict[str, Histogram] = field(
        default_factory=lambda: {stage: Histogram() for stage in MEASURED_STAGES}
    )
    stopped: str = ""  # why it ended before it was done

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    def add(self, other: Figures) -> None:
        """Adds another process's."""
        self.began = min(self.began or other.began, other.began)
        self.ended = max(self.ended, other.ended)
        for name in ("accepted", "failed", "connections", "late", "full", "resumed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.failures.update(other.failures)
        self.cpu += other.cpu
        for stage, histogram in self.latency.items():
            histogram.add(other.latency[stage])
        self.stopped = self.stopped or other.stopped


@dataclass(frozen=True)
class Progress:
    """What is done so far, and how long the messages took."""

    accepted: int
    failed: int
    latency: Histogram
