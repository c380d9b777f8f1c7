"""The parser: commands and whole small messages, from octets in to replies out."""

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastsmtp._engine import Engine
from fastsmtp._rules import Rules
from fastsmtp.replies import native

from .talk import Talk

MAIL = b"MAIL FROM:<sender@client.example>\r\n"
RCPT = b"RCPT TO:<box@recipient.example>\r\n"
TEXT = (b"X" * 76 + b"\r\n") * 52 + b".\r\n"  # 4 KiB

COMMANDS = {
    "noop": b"NOOP\r\n",
    "ehlo": b"EHLO client.example\r\n",
    "mail": MAIL + b"RSET\r\n",
    "mail-parameters": b"MAIL FROM:<sender@client.example> SIZE=4096 BODY=8BITMIME SMTPUTF8\r\nRSET\r\n",
    "mail-quoted": b'MAIL FROM:<"a \\"quoted\\" name"@client.example>\r\nRSET\r\n',
    "mail-literal": b"MAIL FROM:<sender@[IPv6:2001:db8::1]>\r\nRSET\r\n",
    "mail-utf8": "MAIL FROM:<sénder@clïent.example> SMTPUTF8\r\nRSET\r\n".encode(),
    "mail-null": b"MAIL FROM:<>\r\nRSET\r\n",
}


@pytest.mark.parametrize("name", COMMANDS)
def bench_command(benchmark: BenchmarkFixture, talk: Callable[..., Talk], name: str) -> None:
    """One command (and the RSET that undoes it) in one read."""
    connection = talk()
    commands = COMMANDS[name]
    connection.say(commands, *[b"250"] * commands.count(b"\r\n"))
    benchmark(connection.dialogue.feed, commands)


def message(connection: Talk) -> Callable[[], None]:
    """A 4 KiB message, each command in a read of its own, as smtp-source sends it."""
    connection.say(MAIL, b"250")
    connection.say(RCPT, b"250")
    connection.say(b"DATA\r\n", b"354")
    connection.say(TEXT, b"250")
    feed = connection.dialogue.feed

    def send() -> None:
        feed(MAIL)
        feed(RCPT)
        feed(b"DATA\r\n")
        feed(TEXT)

    return send


@pytest.mark.parametrize("hook", [False, True], ids=["nothing-asked", "data-hook"])
def bench_message_on_a_kept_connection(
    benchmark: BenchmarkFixture, talk: Callable[..., Talk], hook: bool
) -> None:
    benchmark(message(talk(hook=hook)))


def bench_message_with_pipelined_commands(benchmark: BenchmarkFixture, talk: Callable[..., Talk]) -> None:
    connection = talk()
    commands = MAIL + RCPT + b"DATA\r\n"
    connection.say(commands, b"250", b"250", b"354")
    connection.say(TEXT, b"250")

    def send() -> None:
        connection.dialogue.feed(commands)
        connection.dialogue.feed(TEXT)

    benchmark(send)


def bench_message_on_a_new_connection(benchmark: BenchmarkFixture) -> None:
    """Greeting, EHLO, one message and QUIT, with the objects that a connection is made of."""
    engine = Engine(rules=Rules(book=native("mx.example")))

    def send() -> None:
        connection = Talk(engine)
        message(connection)
        connection.say(b"QUIT\r\n", b"221")
        connection.dialogue.disconnect()

    benchmark(send)


def bench_a_thousand_recipients(benchmark: BenchmarkFixture, talk: Callable[..., Talk]) -> None:
    connection = talk(max_recipients=1000)
    commands = MAIL + b"".join(b"RCPT TO:<box%d@recipient.example>\r\n" % number for number in range(1000))
    connection.say(commands + b"RSET\r\n", *[b"250"] * 1002)
    benchmark(connection.dialogue.feed, commands + b"RSET\r\n")
