"""Maildir delivery: safe before it is said to be, whole or not at all, and never on the loop."""

import asyncio
import email
import errno
import hashlib
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
import uvloop
from disks import freezable_disk, mount, open_files, small_disk, unmount
from servers import Client, on_both_loops, serve, until
from wires import TO_DATA

import fastsmtp.body
import fastsmtp.sinks.commit
import fastsmtp.sinks.maildir
import fastsmtp.sinks.trace
from fastsmtp._envelope import Envelope, Session
from fastsmtp.body import Body, Spill
from fastsmtp.errors import ConfigError, SMTPError
from fastsmtp.sinks import Sink, make_sink
from fastsmtp.sinks.commit import FolderSync

CONTENT = b"Subject: test\r\n\r\n.a line\r\nb\xe9n\0\r\n"
HEAD = b"Return-Path: <ann@a.example>\r\nDelivered-To: ben@b.example\r\n"
DEADLINE = 20  # seconds, for what takes milliseconds


def a_session() -> Session:
    session = Session()
    session.peer = ("192.0.2.7", 40000)
    session.host_name = "client.example"
    session.extended_smtp = True
    return session


def an_envelope(*rcpt_tos: str, body: Body | None = None) -> Envelope:
    envelope = Envelope()
    envelope.mail_from = "ann@a.example"
    envelope.rcpt_tos = list(rcpt_tos) or ["ben@b.example"]
    envelope.body = body or Body.in_memory(CONTENT)
    return envelope


def a_spilled_envelope(sink: Sink, folder: Path, *rcpt_tos: str, content: bytes = CONTENT) -> Envelope:
    envelope = an_envelope(*rcpt_tos)
    spill = Spill(folder, sink.head(a_session(), envelope, content))
    spill.write(memoryview(content))
    envelope.body = spill.body()
    return envelope


async def deliver(sink: Sink, envelope: Envelope) -> str:
    answer = sink.deliver(a_session(), envelope)
    return answer if isinstance(answer, str) else await asyncio.wait_for(answer, DEADLINE)


async def refused(sink: Sink, envelope: Envelope) -> str:
    with pytest.raises(SMTPError) as error:
        await deliver(sink, envelope)
    return f"{error.value.code} {error.value.enhanced}"


@asynccontextmanager
async def opened(path: Path | str, query: str = "") -> AsyncIterator[Sink]:
    sink = make_sink(f"maildir:{path}{query}", hostname="mx.example")
    await sink.open()
    try:
        yield sink
    finally:
        await sink.close()


def mail_in(mailbox: Path) -> list[bytes]:
    """The messages in new/; nothing may lie anywhere else."""
    assert list((mailbox / "tmp").iterdir()) == []
    assert list((mailbox / "cur").iterdir()) == []
    return [path.read_bytes() for path in sorted((mailbox / "new").iterdir())]


def name_part(name: str) -> str:
    """A file's name without the seconds in front."""
    return re.sub(r"^\d{10}\.", "", name)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, whom no permission stops."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


class SlowDisk:
    """Syncs of files that wait until they are let go: the disk's time, made as long as a test needs it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        real = fastsmtp.body.sync_file

        def slow(fd: int) -> None:
            self.begun.set()
            assert self.go_on.wait(DEADLINE)
            real(fd)

        monkeypatch.setattr(fastsmtp.body, "sync_file", slow)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    disk = SlowDisk(monkeypatch)
    yield disk
    disk.go_on.set()


@pytest.fixture
def no_tmpfile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastsmtp.body, "_O_TMPFILE", 0)


# What is delivered


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("query", ["", "?sync=no"])
def test_a_message_lies_in_new_with_its_trace_lines_octet_by_octet(
    run: Callable[..., str], query: str, tmp_path: Path
) -> None:
    async def one() -> str:
        async with opened(tmp_path / "mail", query) as sink:
            return await deliver(sink, an_envelope())

    queue_id = run(one())
    (message,) = mail_in(tmp_path / "mail")
    head, content = message[: -len(CONTENT)], message[-len(CONTENT) :]
    assert content == CONTENT
    assert head.startswith(
        b"Return-Path: <ann@a.example>\r\nDelivered-To: ben@b.example\r\n"
        b"Received: from client.example ([192.0.2.7])\r\n\tby mx.example with ESMTP id "
        + queue_id.encode()
        + b"\r\n\tfor <ben@b.example>; "
    )
    assert [name_part(name) for name in os.listdir(tmp_path / "mail" / "new")] == [f"{queue_id}.mx.example"]


@pytest.mark.asyncio
async def test_without_trace_the_file_is_what_was_sent(tmp_path: Path) -> None:
    async with opened(tmp_path, "?trace=no") as sink:
        envelope = a_spilled_envelope(sink, tmp_path)
        await deliver(sink, envelope)
        await deliver(sink, an_envelope())
    assert mail_in(tmp_path) == [CONTENT, CONTENT]


@pytest.mark.asyncio
async def test_folders_are_private_and_mode_opens_them(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        async with opened(tmp_path / "private") as sink:
            await deliver(sink, an_envelope())
        async with opened(tmp_path / "shared", "?mode=640") as sink:
            await deliver(sink, an_envelope())
            await deliver(sink, a_spilled_envelope(sink, tmp_path))
    finally:
        os.umask(old)

    def modes(folder: Path) -> set[int]:
        return {path.stat().st_mode & 0o777 for path in folder.iterdir()}

    assert modes(tmp_path) == {0o700, 0o750}
    assert modes(tmp_path / "private") == {0o700}
    assert modes(tmp_path / "private" / "new") == {0o600}
    assert modes(tmp_path / "shared") == {0o750}
    assert modes(tmp_path / "shared" / "new") == {0o640}


@pytest.mark.asyncio
@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="this system has no O_TMPFILE")
@pytest.mark.parametrize(
    ("before", "between"),
    [(b"", b""), (b"  text\r\n", b"\r\n"), (b"From ann@a.example\r\n", b"X-Mailbox-Line: ")],
)
async def test_a_spilled_message_is_linked_and_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes, between: bytes
) -> None:
    monkeypatch.setattr(fastsmtp.body, "copy_range", lambda *_: pytest.fail("the body was copied"))
    async with opened(tmp_path / "mail") as sink:
        envelope = a_spilled_envelope(sink, tmp_path, content=before + CONTENT)
        monkeypatch.setattr(fastsmtp.sinks.trace, "_date", lambda _: b"later")
        queue_id = await deliver(sink, envelope)
        assert envelope.id == queue_id
    (message,) = mail_in(tmp_path / "mail")
    assert message == HEAD + envelope.received_field + between + before + CONTENT
    assert f" id {queue_id}\r\n".encode() in message


@pytest.mark.asyncio
async def test_a_spilled_message_reaches_another_file_system(tmp_path: Path) -> None:
    with small_disk(tmp_path, "1m") as disk:
        async with opened(tmp_path / "mail") as sink:
            envelope = a_spilled_envelope(sink, disk, content=CONTENT * 1000)
            await deliver(sink, envelope)
            assert envelope.body is not None
            envelope.body.close()
    assert mail_in(tmp_path / "mail") == [HEAD + envelope.received_field + CONTENT * 1000]


@pytest.mark.asyncio
async def test_a_file_that_was_begun_before_its_first_line_was_whole_is_right(tmp_path: Path) -> None:
    async with opened(tmp_path / "mail") as sink:
        for seen in b"", b"Sub", b"From ann":
            envelope = an_envelope()
            spill = Spill(tmp_path, sink.head(a_session(), envelope, seen))
            spill.write(memoryview(CONTENT))
            envelope.body = spill.body()
            await deliver(sink, envelope)
            (message,) = mail_in(tmp_path / "mail")
            assert message == HEAD + envelope.received_field + CONTENT
            (tmp_path / "mail" / "new" / os.listdir(tmp_path / "mail" / "new")[0]).unlink()


TEXTS = {
    "indented": b"   Toner low on unit 3.\r\nPlease refill.\r\n",
    "continues": b"\t(added by the client); Mon, 1 Jan 2001 00:00:00 +0000\r\nSubject: x\r\n\r\ny\r\n",
    "plain": b"Toner low on unit 3.\r\nPlease refill.\r\n",
    "eight-bit": "Grüße: an alle\r\n".encode(),
    "empty": b"",
    "from": b"From now on we meet at noon.\r\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("threshold", [1 << 20, 1000, 1])
@on_both_loops
async def test_no_content_goes_on_where_the_trace_lines_end(
    text: bytes, threshold: int, tmp_path: Path
) -> None:
    content = text + b"line\r\n" * 300 if text else b""
    settings = {
        "deliver": f"maildir:{tmp_path}/mail",
        "spill_threshold": threshold,
        "spill_directory": tmp_path,
    }
    async with await serve(**settings) as server:
        with await Client.greeted(server) as client:
            await client.send(TO_DATA + content[:2])
            assert await client.codes(3) == [250, 250, 354]
            assert (await client.ask(content[2:] + b".\r\n")).code == 250
    (octets,) = mail_in(tmp_path / "mail")
    message = email.message_from_bytes(octets)
    assert message.keys() == ["Return-Path", "Delivered-To", "Received"]
    assert octets.partition(b"\r\n\r\n")[2] == content
    dated = parsedate_to_datetime(message["Received"].rpartition(";")[2])
    assert abs(dated.timestamp() - time.time()) < 100


@pytest.mark.parametrize("threshold", [1 << 20, 1000, 1])
@on_both_loops
async def test_a_line_of_an_mbox_before_the_header_becomes_a_field(threshold: int, tmp_path: Path) -> None:
    content = b"From ann@a.example Thu Nov 20 11:43:00 2025\r\nSubject: x\r\n\r\n" + b"text\r\n" * 300
    settings = {
        "deliver": f"maildir:{tmp_path}/mail",
        "spill_threshold": threshold,
        "spill_directory": tmp_path,
    }
    async with await serve(**settings) as server:
        with await Client.greeted(server) as client:
            await client.send(TO_DATA + content + b".\r\n")
            assert await client.codes(4) == [250, 250, 354, 250]
    (octets,) = mail_in(tmp_path / "mail")
    message = email.message_from_bytes(octets)
    assert message.keys() == ["Return-Path", "Delivered-To", "Received", "X-Mailbox-Line", "Subject"]
    assert message["X-Mailbox-Line"] == "From ann@a.example Thu Nov 20 11:43:00 2025"
    assert octets.endswith(content)


@pytest.mark.parametrize("threshold", [1 << 20, 1000, 1])
@on_both_loops
async def test_lines_that_end_with_cr_cr_lf_are_lines_and_the_header_has_all_its_fields(
    threshold: int, tmp_path: Path
) -> None:
    sent = b"Subject: hi\r\r\nFrom: a@example.org\r\r\n\r\r\n" + b"body\r\r\r\n" * 300
    settings = {
        "deliver": f"maildir:{tmp_path}/mail",
        "spill_threshold": threshold,
        "spill_directory": tmp_path,
    }
    async with await serve(**settings) as server:
        with await Client.greeted(server) as client:
            for cut in 1, 12, 13, 14, len(sent):
                await client.send(TO_DATA + sent[:cut])
                assert await client.codes(3) == [250, 250, 354]
                assert (await client.ask(sent[cut:] + b".\r\n")).code == 250
    found = mail_in(tmp_path / "mail")
    assert len(found) == 5
    for octets in found:
        assert octets.endswith(b"\r\nSubject: hi\r\nFrom: a@example.org\r\n\r\n" + b"body\r\n" * 300)
        keys = ["Return-Path", "Delivered-To", "Received", "Subject", "From"]
        assert email.message_from_bytes(octets).keys() == keys


@pytest.mark.parametrize("threshold", [1 << 20, 1000, 1])
@on_both_loops
async def test_a_cr_within_a_line_of_the_header_makes_no_field(threshold: int, tmp_path: Path) -> None:
    sent = b"Subject: hi\rBcc: injected@example.org\r\nTo: b@example.org\r\n\r\n" + b"body\r\n" * 300
    settings = {
        "deliver": f"maildir:{tmp_path}/mail",
        "spill_threshold": threshold,
        "spill_directory": tmp_path,
    }
    async with await serve(**settings) as server:
        with await Client.greeted(server) as client:
            for cut in 1, 11, 12, 13, len(sent):
                await client.send(TO_DATA + sent[:cut])
                assert await client.codes(3) == [250, 250, 354]
                assert (await client.ask(sent[cut:] + b".\r\n")).code == 250
    found = mail_in(tmp_path / "mail")
    assert len(found) == 5
    for octets in found:
        assert email.message_from_bytes(octets).keys() == [
            "Return-Path",
            "Delivered-To",
            "Received",
            "Subject",
            "To",
        ]
        assert octets.endswith(b"\r\nTo: b@example.org\r\n\r\n" + b"body\r\n" * 300)


@pytest.mark.asyncio
async def test_recipients_that_a_hook_changed_after_the_spill_are_the_ones_named(tmp_path: Path) -> None:
    async with opened(tmp_path / "mail") as sink:
        envelope = a_spilled_envelope(sink, tmp_path)
        envelope.rcpt_tos = ["eve@b.example"]
        await deliver(sink, envelope)
    (message,) = mail_in(tmp_path / "mail")
    assert message.endswith(CONTENT)
    assert b"\r\nDelivered-To: eve@b.example\r\nReceived: " in message


@pytest.mark.asyncio
@pytest.mark.parametrize("query", ["", "?sync=no"])
@pytest.mark.parametrize("spilled", [False, True])
async def test_each_recipient_has_a_mailbox(spilled: bool, query: str, tmp_path: Path) -> None:
    rcpt_tos = ["ben@B.example", "jörg@bücher.example", '"ben"@b.example', "Postmaster"]
    async with opened(f"{tmp_path}/mail/{{domain}}/{{local}}", query) as sink:
        assert os.listdir(tmp_path / "mail") == []
        if spilled:
            queue_id = await deliver(sink, a_spilled_envelope(sink, tmp_path, *rcpt_tos))
        else:
            queue_id = await deliver(sink, an_envelope(*rcpt_tos))
    names = {}
    for folder in "b.example/ben", "xn--bcher-kva.example/jörg", "mx.example/postmaster":
        (message,) = mail_in(tmp_path / "mail" / folder)
        assert message.endswith(CONTENT)
        assert b" for " not in message.replace(b"\t", b" ")
        names[folder] = re.findall(r"Delivered-To: (.*)\r\n", message.decode(errors="replace"))
        (name,) = os.listdir(tmp_path / "mail" / folder / "new")
        assert name_part(name) == f"{queue_id}.mx.example"
    assert names == {
        "b.example/ben": ["ben@B.example", '"ben"@b.example'],
        "xn--bcher-kva.example/jörg": ["jörg@bücher.example"],
        "mx.example/postmaster": ["Postmaster"],
    }


@on_both_loops
async def test_one_domain_has_one_folder_however_it_is_written(tmp_path: Path) -> None:
    deliver = f"maildir:{tmp_path}/mail/{{domain}}/{{local}}"
    async with await serve(deliver=deliver) as server:
        with await Client.greeted(server) as client:
            names = ["bücher.example", "xn--bcher-kva.example", "BÜCHER.example"]
            recipients = "".join(f"RCPT TO:<b@{name}>\r\n" for name in names)
            await client.send(f"MAIL FROM:<> SMTPUTF8\r\n{recipients}DATA\r\n".encode())
            await client.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
            assert await client.codes(6) == [250, 250, 250, 250, 354, 250]
    assert os.listdir(tmp_path / "mail") == ["xn--bcher-kva.example"]
    (message,) = mail_in(tmp_path / "mail" / "xn--bcher-kva.example" / "b")
    assert re.findall("Delivered-To: b@(.*)\r\n", message.decode()) == names


@pytest.mark.asyncio
async def test_many_mailboxes_need_few_open_files(tmp_path: Path) -> None:
    rcpt_tos = [f"user{i}@b.example" for i in range(200)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with opened(f"{tmp_path}/{{local}}") as sink:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 100, hard))
        try:
            await deliver(sink, an_envelope(*rcpt_tos))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all(len(mail_in(tmp_path / f"user{i}")) == 1 for i in range(200))


@pytest.mark.asyncio
@pytest.mark.parametrize("spilled", [False, True])
async def test_it_works_where_there_are_no_unnamed_files(
    spilled: bool, tmp_path: Path, no_tmpfile: None
) -> None:
    async with opened(tmp_path / "mail") as sink:
        await deliver(sink, a_spilled_envelope(sink, tmp_path) if spilled else an_envelope())
        assert len(mail_in(tmp_path / "mail")) == 1
        shutil.rmtree(tmp_path / "mail" / "new")
        assert await refused(sink, an_envelope()) == "452 4.3.1"
        assert os.listdir(tmp_path / "mail" / "tmp") == []


# Names


@pytest.mark.asyncio
async def test_a_name_that_is_taken_is_never_overwritten(tmp_path: Path) -> None:
    async with opened(tmp_path) as sink:
        envelopes = [an_envelope(body=Body.in_memory(b"%d" % i)) for i in range(3)]
        for envelope in envelopes:
            envelope.id = "1"
        await asyncio.gather(*[deliver(sink, envelope) for envelope in envelopes])
    assert sorted(message[-1:] for message in mail_in(tmp_path)) == [b"0", b"1", b"2"]
    names = {name_part(name) for name in os.listdir(tmp_path / "new")}
    assert names <= {"1.mx.example", "1_2.mx.example", "1_3.mx.example"}


@pytest.mark.asyncio
@pytest.mark.parametrize("spilled", [False, True])
async def test_an_id_of_a_program_can_neither_end_a_line_nor_lead_out_of_the_folder(
    spilled: bool, tmp_path: Path
) -> None:
    envelope = an_envelope()
    envelope.id = "../a b\r\nX:" + "y" * 300
    async with opened(tmp_path) as sink:
        if spilled:
            spill = Spill(tmp_path, sink.head(a_session(), envelope, CONTENT))
            spill.write(memoryview(CONTENT))
            envelope.body = spill.body()
        queue_id = await deliver(sink, envelope)
    assert queue_id == ".._a_b__X_" + "y" * 54
    (name,) = os.listdir(tmp_path / "new")
    assert name_part(name) == f"{queue_id}.mx.example"
    assert f" id {queue_id}\r\n".encode() in mail_in(tmp_path)[0]


@pytest.mark.asyncio
async def test_a_host_name_cannot_lead_out_of_the_folder_or_pose_as_flags(tmp_path: Path) -> None:
    sink = make_sink(f"maildir:{tmp_path}", hostname="../a:2,S " + "x" * 300)
    await sink.open()
    await deliver(sink, an_envelope())
    await sink.close()
    (name,) = os.listdir(tmp_path / "new")
    assert r"...\057a\0722\054S\040xxx" in name


PROGRAM = """
import asyncio, hashlib, os, sys, time
sys.path.insert(0, sys.argv[1])
from test_maildir import a_session, an_envelope, a_spilled_envelope, make_sink
from fastsmtp.body import Body
from pathlib import Path

async def client(sink, folder, count):
    for i in range(count):
        content = os.urandom(2000 + i % 7 * 1000)
        content = hashlib.sha256(content).digest() + content
        if i % 5 == 4:
            envelope = a_spilled_envelope(sink, folder, content=content)
        else:
            envelope = an_envelope(body=Body.in_memory(content))
        queue_id = await sink.deliver(a_session(), envelope)
        os.write(1, f"safe {queue_id}\\n".encode())

async def main(mailbox, clients, count):
    sink = make_sink(f"maildir:{mailbox}?trace=" + sys.argv[5], hostname="mx.example")
    await sink.open()
    os.write(1, b"ready\\n")
    await asyncio.gather(*[client(sink, Path(mailbox).parent, count) for _ in range(clients)])
    await sink.close()

asyncio.run(main(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


def start_program(
    mailbox: Path, clients: int, count: int, *, before: tuple[str, ...] = (), trace: str = "no"
) -> subprocess.Popen[str]:
    arguments = [str(Path(__file__).parent), str(mailbox), str(clients), str(count), trace]
    return subprocess.Popen(
        [*before, sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True
    )


def test_processes_share_a_mailbox(tmp_path: Path) -> None:
    programs = [start_program(tmp_path / "mail", 10, 10) for _ in range(3)]
    said = [program.communicate(timeout=DEADLINE)[0].split("\n") for program in programs]
    assert [program.returncode for program in programs] == [0, 0, 0]
    ids = {line.removeprefix("safe ") for lines in said for line in lines if line.startswith("safe ")}
    assert len(ids) == 300
    names = os.listdir(tmp_path / "mail" / "new")
    assert {f"{queue_id}.mx.example" for queue_id in ids} == {name_part(name) for name in names}


# Safe before it is said to be


def test_after_kill_9_all_that_was_said_to_be_safe_is_there_and_all_that_is_there_is_whole(
    tmp_path: Path,
) -> None:
    with start_program(tmp_path / "mail", 20, 100_000) as program:
        assert program.stdout is not None
        lines = []
        while len(lines) < 400:
            lines.append(program.stdout.readline())
            assert lines[-1], "the program ended by itself"
        program.send_signal(signal.SIGKILL)
        lines += program.stdout.read().split("\n")
    assert program.returncode == -signal.SIGKILL
    names = [name_part(name) for name in os.listdir(tmp_path / "mail" / "new")]
    # A line that was cut by the kill does not count as said.
    ids = re.findall(r"safe (\w{17})\n", "\n".join(line.rstrip("\n") for line in lines) + "\n")
    assert len(ids) >= 399
    assert {f"{queue_id}.mx.example" for queue_id in ids} <= set(names)
    for message in mail_in(tmp_path / "mail"):
        assert hashlib.sha256(message[32:]).digest() == message[:32]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_messages_are_synced_then_linked_then_their_folder_is_synced_for_all_of_them(tmp_path: Path) -> None:
    log = tmp_path / "log"
    calls = "trace=fdatasync,fsync,linkat,write"
    strace = ("strace", "--follow-forks", "--decode-fds=path", "-o", str(log), "-e", calls)
    with start_program(tmp_path / "mail", 25, 4, before=strace) as program:
        program.communicate(timeout=DEADLINE)
    if program.returncode and not log.read_text().strip():
        pytest.skip("strace may not trace here")
    assert program.returncode == 0
    text = log.read_text()
    text = text[text.index('"ready') :]
    unsynced_drafts = linked = durable = beginning = said = folder_syncs = file_syncs = 0
    for line in text.split("\n"):
        # A call of two threads at once is written in two lines: its beginning and its end.
        begins, ends = "resumed>" not in line, "unfinished" not in line
        if "fdatasync" in line and ends:
            unsynced_drafts += 1
            file_syncs += 1
        elif "linkat" in line and begins:
            unsynced_drafts -= 1
            assert unsynced_drafts >= 0, "linked before its sync"
            if ends:
                linked += 1
        elif "linkat" in line:
            linked += 1
        elif "fsync" in line:
            if begins:
                beginning = linked
            if ends:
                durable = beginning
                folder_syncs += 1
        elif '"safe ' in line and begins:
            said += 1
            assert said <= durable, "said to be safe before its folder was synced"
    assert said == linked == file_syncs == 100
    assert folder_syncs < 60, "the sync of the folder is not shared"
    print(f"\n{said} messages, {folder_syncs} syncs of their folder")


@pytest.mark.asyncio
async def test_messages_that_come_together_share_the_sync_of_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = fastsmtp.sinks.commit.sync_folder
    monkeypatch.setattr(
        fastsmtp.sinks.commit, "sync_folder", lambda path: (synced.append(path), real(path))[1]
    )
    async with opened(f"{tmp_path}/{{local}}") as sink:
        envelopes = [an_envelope(f"{name}@b.example") for name in ("ann", "ben") for _ in range(50)]
        await asyncio.gather(*[deliver(sink, envelope) for envelope in envelopes])
    assert len(mail_in(tmp_path / "ann")) == len(mail_in(tmp_path / "ben")) == 50
    assert 2 <= len(synced) <= 8


def test_who_comes_while_a_folder_is_synced_shares_the_next_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, waiting, go_on = threading.Semaphore(0), threading.Semaphore(0), threading.Semaphore(0)
    results: list[str] = []

    def sync_folder(path: bytes) -> None:
        running.release()
        assert go_on.acquire(timeout=DEADLINE)
        if results:
            raise OSError(errno.EIO, "the disk failed")

    def call() -> None:
        try:
            shared.sync(b"/folder")
            results.append("synced")
        except OSError as error:
            results.append(errno.errorcode[error.errno or 0])

    class Condition(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            waiting.release()
            return super().wait(timeout)

    monkeypatch.setattr(fastsmtp.sinks.commit, "sync_folder", sync_folder)
    shared = FolderSync()
    shared._condition = Condition()
    first = threading.Thread(target=call)
    first.start()
    assert running.acquire(timeout=DEADLINE)
    others = [threading.Thread(target=call) for _ in range(5)]
    for thread in others:
        thread.start()
    # The five wait for a sync that begins after theirs were made, which is not the one that runs.
    for _ in others:
        assert waiting.acquire(timeout=DEADLINE)
    assert results == []
    go_on.release()
    first.join(DEADLINE)
    assert results == ["synced"]
    assert running.acquire(timeout=DEADLINE)
    go_on.release()
    for thread in others:
        thread.join(DEADLINE)
    assert results == ["synced"] + ["EIO"] * 5
    assert not running.acquire(blocking=False)


# The loop


@pytest.mark.asyncio
@pytest.mark.parametrize("spilled", [False, True])
async def test_the_loop_runs_on_while_the_disk_syncs(
    spilled: bool, tmp_path: Path, slow_disk: SlowDisk
) -> None:
    async with opened(tmp_path / "mail") as sink:
        envelope = a_spilled_envelope(sink, tmp_path) if spilled else an_envelope()
        answer = sink.deliver(a_session(), envelope)
        assert isinstance(answer, asyncio.Future)
        assert await asyncio.to_thread(slow_disk.begun.wait, DEADLINE)
        for _ in range(100):  # the heart beats, and nothing is said or seen yet
            await asyncio.sleep(0)
        assert not answer.done()
        assert mail_in(tmp_path / "mail") == []
        slow_disk.go_on.set()
        await asyncio.wait_for(answer, DEADLINE)
        assert len(mail_in(tmp_path / "mail")) == 1


@pytest.mark.asyncio
async def test_a_large_message_does_not_hold_up_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copying, go_on = threading.Event(), threading.Event()
    real = fastsmtp.body.copy_range

    def slow(*arguments: int) -> None:
        copying.set()
        assert go_on.wait(DEADLINE)
        real(*arguments)

    monkeypatch.setattr(fastsmtp.body, "copy_range", slow)
    async with opened(tmp_path / "mail") as sink:
        envelope = a_spilled_envelope(sink, tmp_path)
        envelope.mail_from = "changed@a.example"  # so that it must be copied
        large = sink.deliver(a_session(), envelope)
        assert isinstance(large, asyncio.Future)
        assert await asyncio.to_thread(copying.wait, DEADLINE)
        await deliver(sink, an_envelope())
        assert not large.done()
        go_on.set()
        await asyncio.wait_for(large, DEADLINE)
    assert len(mail_in(tmp_path / "mail")) == 2


@pytest.mark.asyncio
async def test_messages_for_many_new_mailboxes_do_not_hold_up_others(tmp_path: Path) -> None:
    async with opened(f"{tmp_path}/{{domain}}/{{local}}") as sink:
        await deliver(sink, an_envelope())
        many = [
            sink.deliver(a_session(), an_envelope(*[f"user{i}@{domain}.example" for i in range(60)]))
            for domain in ("c", "d", "e")
        ]
        known, new = await asyncio.gather(
            deliver(sink, an_envelope()), deliver(sink, an_envelope("first@f.example"))
        )
        assert [answer.done() for answer in many if isinstance(answer, asyncio.Future)] == [False] * 3
        assert len(mail_in(tmp_path / "b.example" / "ben")) == 2
        assert len(mail_in(tmp_path / "f.example" / "first")) == 1
        ids = await asyncio.gather(*[answer for answer in many if isinstance(answer, asyncio.Future)])
    assert len({known, new, *ids}) == 5
    for domain, queue_id in zip(("c", "d", "e"), ids, strict=True):
        for i in range(60):
            (message,) = mail_in(tmp_path / f"{domain}.example" / f"user{i}")
            assert message.startswith(
                f"Return-Path: <ann@a.example>\r\nDelivered-To: user{i}@{domain}.example\r\n".encode()
            )
            assert f" id {queue_id}; ".encode() in message
            assert message.endswith(CONTENT)


@pytest.mark.asyncio
async def test_new_mailboxes_share_the_syncs_of_the_folders_they_lie_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: Counter[bytes] = Counter()
    real = fastsmtp.sinks.commit.sync_folder
    monkeypatch.setattr(
        fastsmtp.sinks.commit, "sync_folder", lambda path: (synced.update([path]), real(path))[1]
    )
    async with opened(f"{tmp_path}/{{domain}}/{{local}}") as sink:
        await deliver(sink, an_envelope(*[f"user{i}@b.example" for i in range(64)]))
    root = os.fsencode(tmp_path)
    assert 1 <= synced[root] <= 4
    assert 1 <= synced[root + b"/b.example"] <= 4
    for i in range(64):
        assert synced[root + b"/b.example/user%d" % i] == synced[root + b"/b.example/user%d/new" % i] == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("query", ["", "?sync=no"])
async def test_of_many_mailboxes_all_get_a_message_or_none(query: str, tmp_path: Path) -> None:
    recipients = [f"user{i}@b.example" for i in range(50)]
    async with opened(f"{tmp_path}/{{domain}}/{{local}}", query) as sink:
        (tmp_path / "b.example").mkdir()
        (tmp_path / "b.example" / "user45").write_bytes(b"a file, and no folder")
        assert await refused(sink, an_envelope(*recipients)) == "451 4.3.0"
        assert [mail_in(tmp_path / "b.example" / f"user{i}") for i in range(40)] == [[]] * 40
        (tmp_path / "b.example" / "user45").unlink()
        await deliver(sink, an_envelope(*recipients))
    assert all(len(mail_in(tmp_path / "b.example" / f"user{i}")) == 1 for i in range(50))


@pytest.mark.asyncio
async def test_a_message_for_many_that_nobody_waits_for_any_more_is_taken_back(tmp_path: Path) -> None:
    async with opened(f"{tmp_path}/{{local}}") as sink:
        answer = sink.deliver(a_session(), an_envelope(*[f"user{i}@b.example" for i in range(100)]))
        assert isinstance(answer, asyncio.Future)
        await until(lambda: (tmp_path / "user20").exists())
        answer.cancel()
    assert all(mail_in(tmp_path / name) == [] for name in os.listdir(tmp_path))
    assert len(os.listdir(tmp_path)) < 100


@pytest.mark.asyncio
async def test_close_waits_for_a_message_for_many(tmp_path: Path) -> None:
    sink = make_sink(f"maildir:{tmp_path}/{{local}}?sync=no", hostname="mx.example")
    await sink.open()
    before = open_files()
    recipients = [f"user{i}@b.example" for i in range(100)]
    envelopes = [an_envelope(*recipients) for _ in range(5)]
    envelopes.append(a_spilled_envelope(sink, tmp_path, *recipients))
    answers = [sink.deliver(a_session(), envelope) for envelope in envelopes]
    for envelope in envelopes:
        assert envelope.body is not None
        envelope.body.close()
    await asyncio.wait_for(sink.close(), DEADLINE)
    assert all(isinstance(answer, asyncio.Future) and answer.result() for answer in answers)
    assert all(len(mail_in(tmp_path / f"user{i}")) == 6 for i in range(100))
    assert open_files() <= before


@pytest.mark.asyncio
async def test_close_waits_for_what_is_in_flight(tmp_path: Path, slow_disk: SlowDisk) -> None:
    sink = make_sink(f"maildir:{tmp_path}/mail", hostname="mx.example")
    await sink.open()
    answers = [sink.deliver(a_session(), an_envelope()) for _ in range(10)]
    answers += [sink.deliver(a_session(), a_spilled_envelope(sink, tmp_path)) for _ in range(10)]
    closing = asyncio.create_task(sink.close())
    assert await asyncio.to_thread(slow_disk.begun.wait, DEADLINE)
    assert not closing.done()
    slow_disk.go_on.set()
    await asyncio.wait_for(closing, DEADLINE)
    assert all(isinstance(answer, asyncio.Future) and answer.result() for answer in answers)
    assert len(mail_in(tmp_path / "mail")) == 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("maildir")]


@pytest.mark.asyncio
async def test_what_is_cancelled_before_it_began_is_not_delivered(
    tmp_path: Path, slow_disk: SlowDisk
) -> None:
    async with opened(tmp_path) as sink:
        first = sink.deliver(a_session(), an_envelope())
        assert isinstance(first, asyncio.Future)
        assert await asyncio.to_thread(slow_disk.begun.wait, DEADLINE)
        second = sink.deliver(a_session(), an_envelope())
        assert isinstance(second, asyncio.Future)
        second.cancel()
        slow_disk.go_on.set()
        await asyncio.wait_for(first, DEADLINE)
    assert len(mail_in(tmp_path)) == 1


@pytest.mark.asyncio
async def test_a_body_that_is_closed_at_once_is_delivered_whole(tmp_path: Path, slow_disk: SlowDisk) -> None:
    async with opened(tmp_path / "mail") as sink:
        before = open_files()
        envelopes = [an_envelope(), a_spilled_envelope(sink, tmp_path)]
        answers = [sink.deliver(a_session(), envelope) for envelope in envelopes]
        for envelope in envelopes:
            assert envelope.body is not None
            envelope.body.close()
        slow_disk.go_on.set()
        for answer in answers:
            assert isinstance(answer, asyncio.Future)
            await asyncio.wait_for(answer, DEADLINE)
        assert open_files() == before
    assert [message[-len(CONTENT) :] for message in mail_in(tmp_path / "mail")] == [CONTENT, CONTENT]


class Memory(bytearray):
    """Octets that tell when they are freed."""


@pytest.mark.asyncio
@pytest.mark.parametrize("mailbox", ["mail", "missing"])
async def test_no_thread_keeps_the_memory_of_a_message(mailbox: str, tmp_path: Path) -> None:
    async with opened(tmp_path / mailbox) as sink:
        if mailbox == "missing":
            shutil.rmtree(tmp_path / mailbox)
        memory = Memory(CONTENT)
        gone = threading.Event()
        weakref.finalize(memory, gone.set)
        answer = sink.deliver(a_session(), an_envelope(body=Body.in_memory(memory)))
        del memory
        assert isinstance(answer, asyncio.Future)
        await asyncio.wait({answer}, timeout=DEADLINE)
        assert (answer.exception() is None) == (mailbox == "mail")
        assert await asyncio.to_thread(gone.wait, DEADLINE)


@pytest.mark.asyncio
async def test_without_syncs_small_messages_are_safe_at_once_until_the_disk_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, "?sync=no") as sink:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", lambda _: pytest.fail("synced"))
            patch.setattr(os, "fsync", lambda _: pytest.fail("synced"))
            assert isinstance(sink.deliver(a_session(), an_envelope()), str)
            await deliver(sink, an_envelope(body=Body.in_memory(CONTENT * 20_000)))
        monkeypatch.setattr(fastsmtp.sinks.maildir, "_SLOW_FOR", 0.0)
        with monkeypatch.context() as patch:
            patch.setattr(fastsmtp.sinks.maildir, "_SLOW", 0.0)  # any disk is slow
            assert isinstance(sink.deliver(a_session(), an_envelope()), str)
            for _ in range(
                3
            ):  # none of them on the loop: the time that is given to a slow disk is over, but it is slow
                answer = sink.deliver(a_session(), an_envelope())
                assert isinstance(answer, asyncio.Future)
                await asyncio.wait_for(answer, DEADLINE)
        monkeypatch.setattr(fastsmtp.sinks.maildir, "_SLOW", DEADLINE)
        answer = sink.deliver(a_session(), an_envelope())
        assert isinstance(answer, asyncio.Future)  # the thread finds that it is quick again
        await asyncio.wait_for(answer, DEADLINE)
        await until(lambda: sink._quick)
        assert isinstance(sink.deliver(a_session(), an_envelope()), str)
    assert len(mail_in(tmp_path)) == 8


@pytest.mark.asyncio
async def test_a_disk_that_hangs_again_and_again_stops_the_loop_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastsmtp.sinks.maildir, "_SLOW_FOR", 0.0)
    with freezable_disk(tmp_path) as disk:
        async with opened(f"{disk.folder}/{{local}}", "?sync=no") as sink:
            await deliver(sink, an_envelope())
            await until(lambda: sink._quick)
            with disk.frozen(for_seconds=0.2):
                assert isinstance(sink.deliver(a_session(), an_envelope()), str)
            for recipient in "ben@b.example", "new@b.example":
                with disk.frozen():
                    answer = sink.deliver(a_session(), an_envelope(recipient))
                    assert isinstance(answer, asyncio.Future)
                    for _ in range(100):
                        await asyncio.sleep(0)
                    assert not answer.done()
                await asyncio.wait_for(answer, DEADLINE)
            with disk.frozen():
                answer = sink.deliver(a_session(), an_envelope("other@b.example"))
                assert isinstance(answer, asyncio.Future)  # it makes folders
            await asyncio.wait_for(answer, DEADLINE)
        assert len(mail_in(disk.folder / "ben")) == 3


# Failures


@pytest.mark.asyncio
@pytest.mark.parametrize("query", ["", "?sync=no"])
async def test_a_full_disk_is_452_and_leaves_nothing_behind(query: str, tmp_path: Path) -> None:
    with small_disk(tmp_path, "256k") as disk:
        async with opened(disk / "mail", query) as sink:
            free = os.statvfs(disk).f_bfree
            large = os.urandom(200_000)
            assert await refused(sink, an_envelope(body=Body.in_memory(large * 2))) == "452 4.3.1"
            assert await refused(sink, a_spilled_envelope(sink, tmp_path, content=large * 2)) == "452 4.3.1"
            assert mail_in(disk / "mail") == []
            assert os.statvfs(disk).f_bfree == free
            await deliver(sink, an_envelope(body=Body.in_memory(large)))
            answers = [deliver(sink, an_envelope(body=Body.in_memory(large[:30_000]))) for _ in range(5)]
            outcome = await asyncio.gather(*answers, return_exceptions=True)
            good = [result for result in outcome if isinstance(result, str)]
            assert 0 < len(good) < 5
            assert {str(e) for e in outcome if not isinstance(e, str)} == {
                "452 4.3.1 Insufficient system storage"
            }
            assert len(mail_in(disk / "mail")) == 1 + len(good)


@pytest.mark.asyncio
@pytest.mark.parametrize("query", ["", "?sync=no"])
@pytest.mark.parametrize("full_first", [False, True])
async def test_all_mailboxes_get_a_message_or_none(full_first: bool, query: str, tmp_path: Path) -> None:
    with small_disk(tmp_path, "128k") as disk:
        async with opened(f"{tmp_path}/{{domain}}/{{local}}", query) as sink:
            rcpt_tos = ["ann@a.example", f"ben@{disk.name}"]
            await deliver(sink, an_envelope(*rcpt_tos))
            large = Body.in_memory(os.urandom(200_000))
            envelope = an_envelope(*(reversed(rcpt_tos) if full_first else rcpt_tos), body=large)
            assert await refused(sink, envelope) == "452 4.3.1"
            # One that fails only when it is to be linked, after the other was.
            await deliver(sink, an_envelope(rcpt_tos[1]))
            (disk / "ben" / "new").rename(disk / "ben" / "away")
            assert await refused(sink, an_envelope(*rcpt_tos)) == "452 4.3.1"
            (disk / "ben" / "away").rename(disk / "ben" / "new")
            assert len(mail_in(tmp_path / "a.example" / "ann")) == 1
            assert len(mail_in(disk / "ben")) == 2
            await deliver(sink, an_envelope(*rcpt_tos))
            assert len(mail_in(disk / "ben")) == 3


@pytest.mark.asyncio
async def test_a_folder_whose_sync_fails_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = fastsmtp.sinks.commit.sync_folder

    def sync_folder(path: bytes) -> None:  # no disk fails on demand
        if b"ben" in path:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        real(path)

    monkeypatch.setattr(fastsmtp.sinks.commit, "sync_folder", sync_folder)
    async with opened(f"{tmp_path}/{{local}}") as sink:
        one, both = an_envelope("ann@b.example"), an_envelope("ann@b.example", "ben@b.example")
        outcome = await asyncio.gather(deliver(sink, one), deliver(sink, both), return_exceptions=True)
    assert [str(result)[:9] for result in outcome if not isinstance(result, str)] == ["451 4.3.0"]
    assert len(mail_in(tmp_path / "ann")) == 1
    assert mail_in(tmp_path / "ben") == []
    assert len(caplog.records) == 1
    assert "1 message(s) deferred: [Errno 5] Input/output error" in caplog.messages[0]


@pytest.mark.asyncio
@pytest.mark.parametrize("query", ["", "?sync=no"])
async def test_a_vanished_mailbox_is_452_until_it_is_back(query: str, tmp_path: Path) -> None:
    async with opened(tmp_path / "mail", query) as sink:
        (tmp_path / "mail").rename(tmp_path / "away")
        assert await refused(sink, an_envelope()) == "452 4.3.1"
        assert await refused(sink, a_spilled_envelope(sink, tmp_path)) == "452 4.3.1"
        assert os.listdir(tmp_path) == ["away"]
        (tmp_path / "away").rename(tmp_path / "mail")
        await deliver(sink, an_envelope())
    assert len(mail_in(tmp_path / "mail")) == 1


@pytest.mark.asyncio
async def test_a_recipients_vanished_mailbox_is_made_again_but_not_their_root(tmp_path: Path) -> None:
    async with opened(f"{tmp_path}/mail/{{domain}}/{{local}}") as sink:
        await deliver(sink, an_envelope())
        shutil.rmtree(tmp_path / "mail" / "b.example")
        await deliver(sink, an_envelope())
        assert len(mail_in(tmp_path / "mail" / "b.example" / "ben")) == 1
        shutil.rmtree(tmp_path / "mail")
        assert await refused(sink, an_envelope()) == "452 4.3.1"
        assert os.listdir(tmp_path) == []


@pytest.mark.asyncio
@pytest.mark.parametrize("query", ["", "?sync=no"])
@pytest.mark.parametrize("template", ["/mail", "/{domain}/{local}", "/mail/{domain}/{local}"])
async def test_nothing_is_written_beneath_a_mount_point_that_is_gone(
    template: str, query: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path) as disk:
        async with opened(f"{disk}{template}", query) as sink:
            await deliver(sink, an_envelope())
            unmount(disk)
            # What a server that began before the mount would have left there.
            beneath = [disk / "mail", disk / "mail" / "b.example" / "ben", disk / "b.example" / "ben"]
            for mailbox in beneath:
                for name in ("tmp", "new", "cur"):
                    (mailbox / name).mkdir(parents=True)
            assert await refused(sink, an_envelope()) == "452 4.3.1"
            assert await refused(sink, an_envelope("new@c.example")) == "452 4.3.1"
            assert await refused(sink, a_spilled_envelope(sink, tmp_path)) == "452 4.3.1"
            assert [list((mailbox / "new").iterdir()) for mailbox in beneath] == [[]] * 3
            assert not list(disk.rglob("c.example"))
            assert f"no file system is mounted there any more: {str(disk).encode()!r}" in caplog.text
            mount(disk)  # another device, and empty: made again where each recipient has one
            (disk / "mail").mkdir()
            if "{" in template:
                await deliver(sink, an_envelope())
                (mailbox,) = (path.parent for path in disk.rglob("new"))
                assert len(mail_in(mailbox)) == 1


@pytest.mark.asyncio
async def test_nothing_is_written_beneath_the_mount_point_of_a_domain_that_is_gone(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        async with opened(f"{tmp_path}/{{domain}}/{{local}}") as sink:
            await deliver(sink, an_envelope(f"ann@{disk.name}"))
            unmount(disk)
            assert await refused(sink, an_envelope(f"ann@{disk.name}")) == "452 4.3.1"
            assert await refused(sink, an_envelope(f"ben@{disk.name}")) == "452 4.3.1"
            assert os.listdir(disk) == []
            await deliver(sink, an_envelope())
            mount(disk)
            await deliver(sink, an_envelope(f"ben@{disk.name}"))
            assert len(mail_in(disk / "ben")) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("query", ["", "?sync=no"])
async def test_what_is_not_allowed_is_451_with_one_line_in_the_log(
    query: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path / "mail", query) as sink:
        os.chmod(tmp_path / "mail", 0)
        with as_nobody():
            assert await refused(sink, an_envelope()) == "451 4.3.0"
        os.chmod(tmp_path / "mail", 0o700)
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert "1 message(s) deferred: [Errno 13] Permission denied" in caplog.messages[0]
        assert mail_in(tmp_path / "mail") == []
        await deliver(sink, an_envelope())


@pytest.mark.asyncio
async def test_a_flaw_in_the_sink_is_451_and_the_threads_live_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as sink:
        with monkeypatch.context() as patch:
            patch.setattr(os, "writev", lambda *_: 1 // 0)
            assert await refused(sink, an_envelope()) == "451 4.3.0"
        assert "ZeroDivisionError" in caplog.text
        await deliver(sink, an_envelope())
    assert len(mail_in(tmp_path)) == 1


# Opening


@pytest.mark.asyncio
@pytest.mark.parametrize("template", ["", "/{local}"])
async def test_what_cannot_be_written_is_one_line_when_it_is_opened(template: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    sink = make_sink(f"maildir:{tmp_path}/file{template}", hostname="mx.example")
    with pytest.raises(ConfigError) as error:
        await sink.open()
    assert re.fullmatch(
        rf"maildir {re.escape(str(tmp_path))}/file.*: {re.escape(str(tmp_path))}/file.*: "
        r"Not a directory; "
        "make it a folder that the user of this process may write",
        str(error.value),
    )
    await sink.close()
    (tmp_path / "mail").mkdir(mode=0o500)
    sink = make_sink(f"maildir:{tmp_path}/mail{template}", hostname="mx.example")
    with as_nobody(), pytest.raises(ConfigError, match="Permission denied; make it a folder"):
        await sink.open()


@pytest.mark.asyncio
async def test_open_makes_the_mailbox_and_keeps_what_is_in_it(tmp_path: Path) -> None:
    for _ in range(2):
        async with opened(tmp_path / "a" / "b" / "mail") as sink:
            await deliver(sink, an_envelope())
    assert len(mail_in(tmp_path / "a" / "b" / "mail")) == 2
