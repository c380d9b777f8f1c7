"""The body: in memory or spilled, read, linked and copied; nothing left behind, and nothing seen half."""

import errno
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from disks import bind_mount, open_files, small_disk
from hypothesis import given
from hypothesis import strategies as st

import fastsmtp.body
from fastsmtp.body import Body, Draft, Spill, copy_range, write_all

CONTENT = bytes(range(256)) * 300 + b"the end\r\n"
HEAD = b"Return-Path: <>\r\n"

has_tmpfile = pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="this system has no O_TMPFILE")


def spilled(folder: Path, content: bytes = CONTENT, head: bytes = b"") -> Body:
    spill = Spill(folder, head)
    spill.write(memoryview(content))
    return spill.body()


@pytest.fixture(params=["memory", "view", "spilled", "spilled with head"])
def body(request: pytest.FixtureRequest, tmp_path: Path) -> Body:
    match request.param:
        case "memory":
            return Body.in_memory(CONTENT)
        case "view":
            return Body.in_memory(memoryview(b"--" + CONTENT)[2:])
        case "spilled":
            return spilled(tmp_path)
        case _:
            return spilled(tmp_path, head=HEAD)


@pytest.fixture
def no_tmpfile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastsmtp.body, "_O_TMPFILE", 0)


def test_every_body_tells_the_same_content(body: Body) -> None:
    assert body.size == len(CONTENT)
    assert bytes(body) == CONTENT
    view = body.view()
    assert view.readonly
    assert view == CONTENT
    with body.open() as file:
        assert file.read() == CONTENT
    body.close()


def test_open_files_have_positions_of_their_own_and_outlive_the_body(body: Body) -> None:
    first, second = body.open(), body.open()
    view = body.view()
    assert first.read(5) == CONTENT[:5]
    assert second.read(7) == CONTENT[:7]
    body.close()
    assert first.read(5) == CONTENT[5:10]
    assert first.seek(-4, os.SEEK_END) == len(CONTENT) - 4
    assert first.read() == CONTENT[-4:]
    assert first.read() == b""
    assert second.seek(0) == 0
    assert second.readline() == CONTENT[: CONTENT.index(b"\n") + 1]
    assert view == CONTENT
    with pytest.raises(ValueError, match=r"negative seek|before the content"):
        first.seek(-1)
    assert not first.writable()
    first.close()
    second.close()


def test_a_share_of_a_body_outlives_it(body: Body, tmp_path: Path) -> None:
    share = body.share()
    body.close()
    share.link_to(tmp_path / "file", head=HEAD)
    share.close()
    assert (tmp_path / "file").read_bytes() == HEAD + CONTENT


@pytest.mark.parametrize("head", [b"", HEAD])
def test_link_to_writes_head_and_content(body: Body, head: bytes, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    body.sync()
    body.link_to(target / "file", head=head)
    assert (target / "file").read_bytes() == head + CONTENT
    assert (target / "file").stat().st_mode & 0o777 == 0o600
    assert os.listdir(target) == ["file"]
    body.close()


@pytest.mark.parametrize("head", [b"", HEAD])
def test_link_to_works_where_there_are_no_unnamed_files(
    head: bytes, tmp_path: Path, no_tmpfile: None
) -> None:
    for name, body in ("memory", Body.in_memory(CONTENT)), ("spilled", spilled(tmp_path, head=HEAD)):
        body.link_to(tmp_path / name, head=head)
        assert (tmp_path / name).read_bytes() == head + CONTENT
        with pytest.raises(FileExistsError):
            body.link_to(tmp_path / name, head=head)
        body.close()
    assert sorted(os.listdir(tmp_path)) == ["memory", "spilled"]


def test_link_to_works_where_there_are_no_hard_links(
    tmp_path: Path, no_tmpfile: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no links on this file system")

    monkeypatch.setattr(os, "link", refuse)  # as on FAT, which cannot be counted on to be mountable
    body = Body.in_memory(CONTENT)
    body.link_to(tmp_path / "file")
    with pytest.raises(FileExistsError):
        body.link_to(tmp_path / "file", head=b"other")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["file"]


def test_an_existing_file_is_left_as_it_is(body: Body, tmp_path: Path) -> None:
    target = tmp_path / "taken"
    target.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        body.link_to(target)
    assert target.read_bytes() == b"mine"
    body.close()


@has_tmpfile
def test_a_spilled_body_with_its_head_is_linked_and_not_copied(tmp_path: Path) -> None:
    body = spilled(tmp_path, head=HEAD)
    body.link_to(tmp_path / "a", head=HEAD)
    body.link_to(tmp_path / "b", head=HEAD)
    body.link_to(tmp_path / "c", head=b"X: other\r\n")
    assert (tmp_path / "a").stat().st_ino == (tmp_path / "b").stat().st_ino
    assert (tmp_path / "a").stat().st_nlink == 2
    assert (tmp_path / "c").stat().st_nlink == 1
    assert (tmp_path / "c").read_bytes() == b"X: other\r\n" + CONTENT
    body.close()


@has_tmpfile
def test_a_spilled_body_crosses_to_another_file_system_by_a_copy(tmp_path: Path) -> None:
    with small_disk(tmp_path, "1m") as other:
        body = spilled(tmp_path, head=HEAD)
        body.link_to(other / "file", head=HEAD)
        assert (other / "file").read_bytes() == HEAD + CONTENT
        back = spilled(other)
        back.link_to(tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == CONTENT
        body.close()
        back.close()


@has_tmpfile
def test_a_spilled_body_crosses_to_a_bind_mount_of_the_same_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    (tmp_path / "mail").mkdir()
    with bind_mount(tmp_path / "mail", tmp_path) as other:
        body = spilled(tmp_path, head=HEAD)
        draft = body.draft(os.fsencode(other), HEAD)
        draft.sync()
        draft.link(os.fsencode(other / "file"))
        draft.close()
        body.close()
    assert len(set(synced)) == 2  # the copy is as safe as the file that could not be linked
    assert os.listdir(tmp_path / "mail") == ["file"]
    assert (tmp_path / "mail" / "file").read_bytes() == HEAD + CONTENT


@pytest.mark.parametrize("refused", [(), ("copy_file_range",), ("copy_file_range", "sendfile")])
def test_every_way_to_copy_gives_the_same(
    refused: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EXDEV, "refused")

    for name in refused:
        monkeypatch.setattr(os, name, refuse)
    source = tmp_path / "source"
    source.write_bytes(b"head" + CONTENT + b"tail")
    with open(source, "rb") as from_file, open(tmp_path / "target", "wb", buffering=0) as to_file:
        to_file.write(b"begun")
        copy_range(from_file.fileno(), 4, len(CONTENT), to_file.fileno())
        to_file.write(b"done")
        with pytest.raises(OSError, match="ended 1 octets too early"):
            copy_range(from_file.fileno(), 0, source.stat().st_size + 1, to_file.fileno())
    assert (tmp_path / "target").read_bytes().startswith(b"begun" + CONTENT + b"done")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    with small_disk(tmp_path, "128k") as disk:
        free = os.statvfs(disk).f_bfree
        large = os.urandom(400_000)
        for body in Body.in_memory(large), spilled(tmp_path, large):
            with pytest.raises(OSError, match="No space left"):
                body.link_to(disk / "file", head=HEAD)
            body.close()
        spill = Spill(disk, HEAD)
        with pytest.raises(OSError, match="No space left"):
            spill.write(memoryview(large))
        spill.close()
        assert os.listdir(disk) == []
        assert os.statvfs(disk).f_bfree == free


def test_a_vanished_folder_is_an_error_and_no_file_stays_open(tmp_path: Path) -> None:
    before = open_files()
    with pytest.raises(FileNotFoundError):
        Spill(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        Body.in_memory(CONTENT).link_to(tmp_path / "gone" / "file")
    body = spilled(tmp_path)
    with pytest.raises(FileNotFoundError):
        body.link_to(tmp_path / "gone" / "file")
    body.close()
    assert open_files() == before


def test_a_forgotten_spill_or_body_closes_its_file(tmp_path: Path) -> None:
    before = open_files()
    spill = Spill(tmp_path)
    body = spilled(tmp_path)
    assert open_files() == before + 2
    del spill, body
    assert open_files() == before


def test_a_spill_is_in_no_folder_and_its_head_is_not_content(tmp_path: Path, no_tmpfile: None) -> None:
    spill = Spill(tmp_path, HEAD)
    for i in range(0, len(CONTENT), 1000):
        spill.write(memoryview(CONTENT)[i : i + 1000])
    assert os.listdir(tmp_path) == []
    assert spill.size == len(CONTENT)
    with spill.body() as body:
        spill.close()
        assert body.spilled
        assert bytes(body) == CONTENT


def test_an_empty_message_is_a_body_too(tmp_path: Path) -> None:
    for name, body in ("memory", Body.in_memory(b"")), ("spilled", spilled(tmp_path, b"", HEAD)):
        assert body.size == 0
        assert bytes(body) == b""
        with body.open() as file:
            assert file.read() == b""
        body.link_to(tmp_path / name, head=HEAD)
        assert (tmp_path / name).read_bytes() == HEAD
        body.close()


def test_a_draft_that_is_closed_leaves_nothing(tmp_path: Path, no_tmpfile: None) -> None:
    draft = Draft(os.fsencode(tmp_path), 0o640)
    draft.write(b"abc")
    assert len(os.listdir(tmp_path)) == 1
    draft.close()
    draft.close()
    assert os.listdir(tmp_path) == []


def test_the_mode_of_a_draft_holds_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        for body in Body.in_memory(CONTENT), spilled(tmp_path):
            draft = body.draft(os.fsencode(tmp_path), b"", 0o640)
            draft.link(os.fsencode(tmp_path / f"file-{body.spilled}"))
            draft.close()
            body.close()
    finally:
        os.umask(old)
    assert [p.stat().st_mode & 0o777 for p in tmp_path.iterdir()] == [0o640, 0o640]


def test_partial_writes_are_completed() -> None:
    # A pipe takes 64 KiB at a time, so that writev stops within a buffer.
    reader, writer = os.pipe()
    parts = [CONTENT[:10], b"", CONTENT[10:], CONTENT * 4]

    def write() -> None:
        write_all(writer, *parts)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    with open(reader, "rb") as file:
        assert file.read() == b"".join(parts)
    thread.join()


def test_a_size_limit_of_the_process_is_an_error_not_a_short_file(tmp_path: Path) -> None:
    program = (
        "import errno, os, sys; from fastsmtp.body import Body\n"
        "try: Body.in_memory(b'x' * 100_000).link_to(sys.argv[1] + '/file')\n"
        "except OSError as e: print(e.errno == errno.EFBIG, os.listdir(sys.argv[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)),
    )
    assert done.stdout == "True []\n", done.stderr


@given(content=st.binary(max_size=300), head=st.binary(max_size=40), other=st.binary(max_size=40))
def test_any_content_comes_back_whatever_the_heads(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, head: bytes, other: bytes
) -> None:
    folder = tmp_path_factory.mktemp("body")
    body = spilled(folder, content, head)
    body.link_to(folder / "same", head=head)
    body.link_to(folder / "other", head=other)
    assert (folder / "same").read_bytes() == head + content
    assert (folder / "other").read_bytes() == other + content
    assert body.view() == content
    body.close()
