"""Ids of sessions and envelopes: there before the first hook, the same everywhere, and no two alike."""

import re
import smtplib
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from servers import Client, Keeps, on_both_loops, serve
from wires import TO_DATA

from fastsmtp import Envelope, Session
from fastsmtp._envelope import new_id
from fastsmtp.controller import Controller
from fastsmtp.smtp import SMTP

ID = r"[0-9a-hjkmnp-tv-z]{17}"
DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"


def microseconds(made: str) -> int:
    value = 0
    for digit in made[:11]:
        value = value * 32 + DIGITS.index(digit)
    return value


# An id


def test_an_id_is_the_time_in_microseconds_and_the_process() -> None:
    before = time.time_ns() // 1000
    first, second = new_id(), new_id()
    after = time.time_ns() // 1000
    assert re.fullmatch(ID, first)
    assert re.fullmatch(ID, second)
    assert before <= microseconds(first) < microseconds(second) <= after + 2
    assert first[11:] == second[11:]


def test_ids_sort_as_they_were_made() -> None:
    ids = [new_id() for _ in range(100_000)]
    assert ids == sorted(set(ids))


def test_threads_share_no_id() -> None:
    made: list[list[str]] = [[] for _ in range(4)]

    def make(ids: list[str]) -> None:
        ids += [new_id() for _ in range(20_000)]

    threads = [threading.Thread(target=make, args=[ids]) for ids in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({made_id for ids in made for made_id in ids}) == 80_000


FORKS = """
import os
from fastsmtp._envelope import new_id
print(new_id(), flush=True)
for _ in range(3):
    if os.fork() == 0:
        print(new_id(), flush=True)
        if os.fork() == 0:
            print(new_id(), flush=True)
            os._exit(0)
        os.wait()
        os._exit(0)
    os.wait()
print(new_id(), flush=True)
"""


def test_processes_and_restarts_share_no_id_even_within_one_microsecond() -> None:
    programs = [
        subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True) for _ in range(2)
    ]
    processes = []
    for program in programs:
        assert program.stderr == ""
        first, *children, last = program.stdout.split()
        assert len(children) == 6
        assert first[11:] == last[11:]
        processes += [first[11:], *[child[11:] for child in children]]
    assert len(set(processes)) == 14


@pytest.mark.parametrize("kind", [Session, Envelope])
def test_facts_that_a_program_makes_have_an_id_too(kind: Any) -> None:
    class Own(kind):  # type: ignore[misc]
        pass

    made = [kind(), Own(), kind.__new__(kind)]
    ids = [facts.id for facts in made]
    assert [facts.id for facts in made] == ids
    assert len(set(ids)) == 3
    assert all(re.fullmatch(ID, made_id) for made_id in ids)
    made[0].id = "my own"
    assert made[0].id == "my own"


# The same everywhere


class Notes:
    """Notes the ids that each hook finds."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, str, str]] = []

    def _note(self, hook: str, session: Session, envelope: Envelope) -> None:
        self.noted.append((hook, session.id, envelope.id))

    def handle_CONNECT(self, server: Any, session: Session, envelope: Envelope) -> None:
        self._note("CONNECT", session, envelope)

    def handle_EHLO(
        self, server: Any, session: Session, envelope: Envelope, name: str, lines: list[str]
    ) -> Any:
        self._note("EHLO", session, envelope)
        return lines

    def handle_MAIL(
        self, server: Any, session: Session, envelope: Envelope, address: str, options: Any
    ) -> str:
        self._note("MAIL", session, envelope)
        return "250 OK"

    def handle_RCPT(
        self, server: Any, session: Session, envelope: Envelope, address: str, options: Any
    ) -> str:
        self._note("RCPT", session, envelope)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    def handle_DISCONNECT(self, server: Any, session: Session, envelope: Envelope) -> None:
        self._note("DISCONNECT", session, envelope)


@pytest.mark.parametrize("query", ["", "?sync=no"])
@pytest.mark.parametrize("threshold", [1 << 20, 100])
@on_both_loops
async def test_the_hooks_the_reply_the_received_line_and_the_file_show_one_id(
    tmp_path: Path, query: str, threshold: int
) -> None:
    notes = Notes()
    deliver = f"maildir:{tmp_path}/mail{query}"
    settings = {"deliver": deliver, "spill_threshold": threshold, "spill_directory": tmp_path}
    content = b"Subject: test\r\n\r\n" + b"text\r\n" * 100
    async with await serve(notes, **settings) as server:
        with await Client.greeted(server) as client:
            said = []
            for _ in range(2):
                await client.send(TO_DATA + content + b".\r\n")
                *_, reply = await client.replies(4)
                assert reply.code == 250
                said.append(reply.lines[0].rpartition(" ")[2])
            await client.ask(b"QUIT\r\n")
            assert await client.rest() == []
    sessions = {session for _, session, _ in notes.noted}
    assert len(sessions) == 1
    noted = {
        hook: [envelope for name, _, envelope in notes.noted if name == hook] for hook, *_ in notes.noted
    }
    assert noted["MAIL"] == noted["RCPT"] == said == sorted(set(said))
    assert re.fullmatch(ID, said[0])
    files = sorted((tmp_path / "mail" / "new").iterdir())
    assert [path.name.partition(".")[2] for path in files] == [f"{queue_id}.mx.example" for queue_id in said]
    for path, queue_id in zip(files, said, strict=True):
        assert abs(int(path.name.partition(".")[0]) - time.time()) < 100
        (received,) = re.findall(rb" id (\S+)\r\n\tfor ", path.read_bytes())
        assert received.decode() == queue_id


class OwnFacts(SMTP):
    class OwnSession(Session):
        pass

    class OwnEnvelope(Envelope):
        pass

    def _create_session(self) -> Session:
        return self.OwnSession(self.loop)

    def _create_envelope(self) -> Envelope:
        return self.OwnEnvelope()


class NotesData(Keeps):
    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[Any, Any, str, str]] = []

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        envelope.rcpt_tos.append(address)
        self.noted.append((type(session), type(envelope), session.id, envelope.id))
        return "250 OK"


@pytest.mark.parametrize("kind", [SMTP, OwnFacts])
def test_controllers_have_the_ids_too(kind: type[SMTP]) -> None:
    notes = NotesData()

    class Own(Controller):
        def factory(self) -> SMTP:
            return kind(self.handler, hostname="mx.example")

    controller = Own(notes, hostname="127.0.0.1", port=0)
    controller.start()
    try:
        with smtplib.SMTP("127.0.0.1", controller.port, timeout=10) as client:
            for _ in range(2):
                client.sendmail(
                    "a@a.example", ["b@b.example", "c@b.example"], b"Subject: test\r\n\r\ntext\r\n"
                )
    finally:
        controller.stop()
    first, second, third, fourth = notes.noted
    assert first == second
    assert third == fourth
    assert first[2] == third[2]
    assert first[3] < third[3]
    own = kind is OwnFacts
    assert first[:2] == ((OwnFacts.OwnSession, OwnFacts.OwnEnvelope) if own else (Session, Envelope))
