"""Conversations with the compiled core, without sockets: what the instruction guard counts.

A program for callgrind: ``python -m benchmarks.talks`` has every conversation in turn and calls ``getppid`` before
and after the part that counts, where callgrind writes down what was used. Knows what a client sends. Refuses to
know what is counted and what it may come to, which is ``instructions.py``'s.
"""

import gc
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fastsmtp._core import Dialogue
from fastsmtp._engine import Engine, index
from fastsmtp._rules import HOOKS, Rules
from fastsmtp.replies import native

from .micro.talk import Accepting

HELLO = b"EHLO client.example\r\n"
MAIL = b"MAIL FROM:<sender@client.example>\r\n"
RCPT = b"RCPT TO:<box@recipient.example>\r\n"
DATA = b"DATA\r\n"
QUIT = b"QUIT\r\n"
OK = b"250 2.0.0 Ok\r\n"
LINE = b"X" * 76 + b"\r\n"

ACCEPTED = index("fastsmtp_messages_total", "accepted")
IN_MEMORY = 4 << 20  # octets; above every message here


class Waiting(Dialogue):
    """A dialogue whose DATA hook answers later, as a coroutine does."""

    def ask(self, kind: int, argument: object, options: list[str] | None) -> None:
        return None


@dataclass(frozen=True)
class Talk:
    """One conversation: ``size`` is the content's (octets), ``messages`` how many are counted.

    ``new``: a dialogue for each message. ``pipelined``: MAIL, RCPT and DATA in one read. ``hook``: whether DATA is
    asked for, and answered ``"now"`` or ``"later"``.
    """

    name: str
    size: int
    messages: int
    new: bool = False
    pipelined: bool = False
    hook: str = ""


TALKS = (
    Talk("new-4k", 4 << 10, 500, new=True),
    Talk("kept-4k", 4 << 10, 500),
    Talk("kept-4k-pipelined", 4 << 10, 500, pipelined=True),
    Talk("kept-4k-sync", 4 << 10, 500, hook="now"),
    Talk("kept-4k-async", 4 << 10, 500, hook="later"),
    Talk("kept-100k", 100 << 10, 100),
    Talk("kept-1m", 1 << 20, 20),
)


def begin(engine: Engine, kind: type[Dialogue]) -> Dialogue:
    """A dialogue that was greeted and has said EHLO; nobody reads its replies."""
    dialogue = kind(engine)
    replies: deque[object] = deque(maxlen=1)
    dialogue.connect(replies.append)
    dialogue.feed(HELLO)
    return dialogue


def sender(talk: Talk, engine: Engine) -> Callable[[int], None]:
    """What sends so many messages of this conversation."""
    kind = Waiting if talk.hook == "later" else Accepting
    content = LINE * (talk.size // len(LINE)) + b".\r\n"
    parts = [MAIL + RCPT + DATA, content] if talk.pipelined else [MAIL, RCPT, DATA, content]

    def message(dialogue: Dialogue) -> None:
        for part in parts:
            dialogue.feed(part)
        if dialogue.asked:
            dialogue.answer(OK)

    def send_new(messages: int) -> None:
        for _ in range(messages):
            dialogue = begin(engine, kind)
            message(dialogue)
            dialogue.feed(QUIT)
            dialogue.disconnect()

    def send_kept(messages: int) -> None:
        for _ in range(messages):
            message(kept)

    if talk.new:
        return send_new
    kept = begin(engine, kind)
    return send_kept


def have(talk: Talk, mark: Callable[[], object]) -> None:
    """Has one conversation, a tenth of it to warm up; ``mark`` is called around the part that counts.

    Raises ``RuntimeError`` unless every message was accepted.
    """
    rules = Rules(book=native("mx.example"), hooks=HOOKS["DATA"] if talk.hook else 0)
    engine = Engine(rules=rules, spill_threshold=IN_MEMORY)
    send = sender(talk, engine)
    warm_up = max(1, talk.messages // 10)
    send(warm_up)
    gc.collect()
    gc.freeze()  # as a worker does; and every conversation begins with a collector that has seen nothing
    mark()
    send(talk.messages)
    mark()
    accepted = engine.counters.get(ACCEPTED)
    if accepted != warm_up + talk.messages:
        raise RuntimeError(f"{talk.name}: {accepted} of {warm_up + talk.messages} messages were accepted")


if __name__ == "__main__":
    for each in TALKS:
        have(each, os.getppid)
