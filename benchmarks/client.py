"""An SMTP client for what smtp-source cannot do: stay idle, ask on the side, send truly at once."""

import socket
import ssl
from dataclasses import dataclass
from typing import Self


class BenchmarkError(Exception):
    """A run that gave no number: one line that says what went wrong."""


@dataclass(frozen=True)
class Sent:
    """What a client reports of a run in which every message was accepted."""

    seconds: float  # of the whole run
    wait: float | None = None  # milliseconds of one message, median; None if the client does not measure it


class Client:
    """A blocking SMTP client of one connection, as small as the probes need it; `socket` is theirs to use."""

    def __init__(
        self,
        port: int,
        *,
        source: str = "127.0.0.1",
        timeout: float = 30.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls` is spoken from the first octet."""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout, source_address=(source, 0))
        self._received = b""
        try:
            if tls is not None:
                self.socket = tls.wrap_socket(self.socket)
            self.greeting = self.reply("220")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def command(self, line: str, expected: str) -> str:
        """Send one command; returns the whole reply. BenchmarkError if it has another code."""
        self.socket.sendall(line.encode() + b"\r\n")
        return self.reply(expected)

    def hello(self, name: str) -> None:
        """EHLO, or HELO where the server knows nothing else (RFC 5321, section 3.2)."""
        try:
            self.command(f"EHLO {name}", "250")
        except BenchmarkError:
            self.command(f"HELO {name}", "250")

    def close(self) -> None:
        self.socket.close()

    def reply(self, expected: str) -> str:
        """Read one whole reply. BenchmarkError if it has another code."""
        lines: list[str] = []
        while not lines or lines[-1][3:4] == "-":
            while b"\n" not in self._received:
                received = self.socket.recv(65536)
                if not received:
                    raise BenchmarkError(f"the server closed the connection where {expected} was due")
                self._received += received
            line, _, self._received = self._received.partition(b"\n")
            lines.append(line.decode(errors="replace").rstrip())
        if not lines[-1].startswith(expected):
            raise BenchmarkError(f"the server answered {lines[-1]!r} where {expected} was due")
        return "\n".join(lines)
