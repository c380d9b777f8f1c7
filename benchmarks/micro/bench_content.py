"""Content: the scan for what is not plain text, and unstuffing of whole messages, in place and not."""

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastsmtp._reception import KERNEL, scan

from .talk import Talk

MIB = 1024 * 1024
BEGIN = b"MAIL FROM:<sender@client.example>\r\nRCPT TO:<box@recipient.example>\r\nDATA\r\n"
LINE = b"X" * 76 + b"\r\n"


def lines(line: bytes, size: int) -> bytes:
    return line * (size // len(line))


# What is measured at 1 MiB: from mail as it is to mail made to hurt.
SHAPES = {
    "lines-of-78": LINE,
    "lines-of-998": b"X" * 998 + b"\r\n",
    "empty-lines": b"\r\n",
    "dots": b".." + b"X" * 74 + b"\r\n",
    "only-dots": b"..\r\n",
    "bare-lf": b"X" * 76 + b"\n",
    "only-bare-lf": b"\n",
}


@pytest.mark.parametrize("size", [4 * 1024, 100 * 1024, MIB], ids=["4k", "100k", "1m"])
def bench_message_of_plain_lines(benchmark: BenchmarkFixture, talk: Callable[..., Talk], size: int) -> None:
    connection = talk()
    wire = lines(LINE, size) + b".\r\n"
    connection.say(BEGIN, b"250", b"250", b"354")
    connection.say(wire, b"250")

    def send() -> None:
        connection.dialogue.feed(BEGIN)
        connection.dialogue.feed(wire)

    benchmark.extra_info["octets"] = len(wire)
    benchmark(send)


@pytest.mark.parametrize("shape", SHAPES)
def bench_unstuffing_of_1_mib(benchmark: BenchmarkFixture, talk: Callable[..., Talk], shape: str) -> None:
    connection = talk(spill_threshold=8 * MIB)
    # Bare line feeds are no line ends: the dot that ends the message stands behind a CRLF of its own.
    wire = lines(SHAPES[shape], MIB) + b"\r\n.\r\n"
    connection.say(BEGIN, b"250", b"250", b"354")
    connection.say(wire, b"250")

    def send() -> None:
        connection.dialogue.feed(BEGIN)
        connection.dialogue.feed(wire)

    benchmark.extra_info["octets"] = len(wire)
    benchmark(send)


@pytest.mark.parametrize("dots", [False, True], ids=["strict", "dots"])
@pytest.mark.parametrize("scalar", [False, True], ids=[KERNEL, "scalar"])
def bench_scan_of_256_kib(benchmark: BenchmarkFixture, dots: bool, scalar: bool) -> None:
    """The kernel in use beside its scalar twin, over text without an event."""
    octets = lines(LINE, 256 * 1024)
    assert scan(octets, dots=dots, scalar=scalar) == len(octets)
    benchmark(scan, octets, dots=dots, scalar=scalar)
