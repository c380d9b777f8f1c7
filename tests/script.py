"""A driver of the core for the tests: octets in, cut in any way, and the oracle's kind of result out.

Knows how to play a connection without a socket, polite or not. Refuses to know what is right.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from dialogs import Reply, read_replies
from oracle import Limits, Message, Result

from fastsmtp._core import Dialogue
from fastsmtp._engine import Engine
from fastsmtp._rules import ASKS, HOOKS, Rules
from fastsmtp.body import Spill
from fastsmtp.replies import native

HOSTNAME = "mx.example"


def make_engine(limits: Limits | None = None, hooks: Iterable[str] = ("DATA",), **settings: object) -> Engine:
    """An engine with the native book that asks for ``hooks`` and spills into real files."""
    limits = limits or Limits()
    memory = {name: settings.pop(name) for name in ("spill_threshold", "memory_budget") if name in settings}
    rules = Rules(
        book=native(HOSTNAME, max_message_size=limits.max_message_size, smtputf8=limits.smtputf8),
        hooks=sum(HOOKS[name] for name in hooks),
        **asdict(limits),
        **settings,
    )
    spills = Path(tempfile.gettempdir())
    return Engine(rules=rules, open_spill=lambda dialogue, beginning: Spill(spills), **memory)


class Script(Dialogue):
    """One connection without a socket. Every hook answers what the native book does, at once or ``later``."""

    def __init__(self, engine: Engine, *, later: bool = False) -> None:
        self.later = later
        self.wire = bytearray()
        self.writes = 0
        self.hung_up = False
        self.reading = True
        self.open: bytes | None = None
        self.history: list[tuple[str, object]] = []
        self.taken: list[tuple[str, list[str], object]] = []
        self.connect(self.write)

    def write(self, replies: bytes | bytearray) -> None:
        assert not self.hung_up, "a reply after the end"
        self.writes += 1
        self.wire += replies

    def ask(self, kind: int, argument: object, options: list[str] | None) -> bytes | None:
        assert self.open is None, "a second ask before the first was answered"
        command = ASKS[kind]
        self.history.append((command, argument if command != "DATA" else None))
        reply = self.rules.book[{"CONNECT": "GREETING", "DATA": "ACCEPTED"}.get(command, command)]
        if command == "DATA":
            assert self.envelope is not None
            self.taken.append((str(self.envelope.mail_from), list(self.envelope.rcpt_tos), argument))
        elif command == "MAIL":
            assert self.envelope is not None
            self.envelope.mail_from = str(argument)
        elif command == "RCPT":
            assert self.envelope is not None
            self.envelope.rcpt_tos.append(str(argument))
        if not self.later:
            return reply
        self.open = reply
        return None

    def hang_up(self) -> None:
        self.hung_up = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def settle(self) -> None:
        """Answers what is open, and what that leads to, until nothing is."""
        while self.open is not None:
            reply, self.open = self.open, None
            self.answer(reply)

    def replies(self) -> list[Reply]:
        """All that was said, which must be whole replies."""
        replies, rest = read_replies(bytes(self.wire))
        assert not rest
        return replies

    def result(self) -> Result:
        """What came out. Contents are read only here, when their memory could long have been used again."""
        messages = [Message(mail_from, rcpt_tos, octets(taken)) for mail_from, rcpt_tos, taken in self.taken]
        assert self.hung_up == self.closed
        return Result([(reply.code, reply.enhanced) for reply in self.replies()], messages, self.closed)


def octets(taken: object) -> bytes:
    """The content that the core gave, from memory or from a file."""
    if isinstance(taken, Spill):
        body = taken.body()
        try:
            return bytes(body)
        finally:
            body.close()
    return bytes(taken)  # type: ignore[call-overload, no-any-return]


def play(engine: Engine, pieces: Iterable[bytes], *, later: bool = False, polite: bool = True) -> Result:
    """Sends ``pieces`` one after another and returns what came out.

    With ``later`` no hook answers at once: a polite transport brings nothing until it may read again, another
    one (TLS has decrypted more already) brings the next piece before the answer.
    """
    script = Script(engine, later=later)
    for piece in pieces:
        if polite:
            script.settle()
        script.feed(piece)
        if not polite:
            script.settle()
    script.settle()
    result = script.result()
    script.disconnect()
    script.taken.clear()
    assert script not in engine.live
    return result


def cut(wire: bytes, at: Iterable[int]) -> list[bytes]:
    """Returns ``wire`` in pieces that end at the given places."""
    places = sorted({0, len(wire), *(place for place in at if 0 < place < len(wire))})
    return [wire[begin:end] for begin, end in pairwise(places)]


def every(wire: bytes, size: int) -> list[bytes]:
    """Returns ``wire`` in pieces of ``size``."""
    return cut(wire, range(0, len(wire), size))
