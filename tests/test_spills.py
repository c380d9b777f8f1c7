"""Spills on a disk that is slow or hangs: the loop serves others, and no content is lost, doubled or kept."""

import asyncio
import contextlib
import os
import threading
from pathlib import Path

import pytest
from disks import FreezableDisk, freezable_disk, open_files
from servers import Client, Keeps, on_both_loops, serve, until
from wires import TO_DATA

import fastsmtp.spills
from fastsmtp.worker import Worker

PIECE = b"0123456789" * 6 + b"\r\n"
LARGE = b"Subject: large\r\n\r\n" + PIECE * 20_000  # 1.2 MB
SMALL = b"Subject: small\r\n\r\ntext\r\n"


async def slow(server: Worker, disk: FreezableDisk) -> None:
    """Has the server find out that the disk hangs: the loop waits for it once."""
    with disk.frozen(for_seconds=0.2), await Client.greeted(server) as client:
        await client.send(TO_DATA + LARGE + b".\r\n")
        assert await client.codes(4) == [250, 250, 354, 250]
    assert not server._spills.quick


def leave_free(folder: Path, octets: int) -> None:
    with (folder / "full").open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(65536)):
                pass
        os.fsync(file.fileno())
        file.truncate(file.tell() - octets)
        os.fsync(file.fileno())


@on_both_loops
async def test_others_are_served_while_the_disk_hangs(tmp_path: Path) -> None:
    handler = Keeps()
    with freezable_disk(tmp_path) as disk:
        async with await serve(handler, spill_threshold=100_000, spill_directory=disk.folder) as server:
            await slow(server, disk)
            before = open_files()
            large = LARGE.replace(b"large", b"second")
            with await Client.greeted(server) as client, await Client.greeted(server) as other:
                with disk.frozen():
                    sending = asyncio.create_task(client.send(TO_DATA + large + b".\r\nNOOP\r\n"))
                    assert await client.codes(3) == [250, 250, 354]
                    await until(lambda: server._spills._waiting)
                    for _ in range(3):  # while the disk hangs
                        await other.send(TO_DATA + SMALL + b".\r\n")
                        assert await other.codes(4) == [250, 250, 354, 250]
                    assert server._spills._waiting < 1_000_000  # the client is not read from
                    assert client.came == client.came.__class__()
                await sending
                assert await client.codes(2) == [250, 250]
            await until(lambda: server.connections == 0)
            handler.messages, messages = [], handler.messages
            assert [message.content for message in messages] == [LARGE, SMALL, SMALL, SMALL, large]
            assert server._spills._waiting == 0
            await until(lambda: open_files() <= before)
        assert os.listdir(disk.folder) == ["lost+found"]


@on_both_loops
async def test_a_client_that_leaves_while_the_disk_hangs_leaves_nothing(tmp_path: Path) -> None:
    handler = Keeps()
    with freezable_disk(tmp_path) as disk:
        async with await serve(handler, spill_threshold=100_000, spill_directory=disk.folder) as server:
            await slow(server, disk)
            before, free = open_files(), os.statvfs(disk.folder).f_bfree
            for content in LARGE, LARGE + b".\r\n", LARGE[:150_000] + b"\r\n.\r\n":
                with disk.frozen():
                    client = await Client.greeted(server)
                    sending = asyncio.create_task(client.send(TO_DATA + content))
                    assert await client.codes(3) == [250, 250, 354]
                    await until(lambda: server._spills._waiting)
                    sending.cancel()
                    client.socket.close()
                await until(lambda: server.connections == 0 and server._spills._waiting == 0)
                await until(lambda: open_files() <= before)
            assert os.statvfs(disk.folder).f_bfree == free
        # Those that were sent whole may be taken, as the client's end cannot be seen before it is read.
        contents = [message.content for message in handler.messages]
        assert contents[0] == LARGE
        assert contents[1:] in ([], [LARGE], [LARGE[:150_000] + b"\r\n"], [LARGE, LARGE[:150_000] + b"\r\n"])


@on_both_loops
async def test_a_slow_disk_that_is_full_is_452(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    handler = Keeps()
    with freezable_disk(tmp_path) as disk:
        async with await serve(handler, spill_threshold=100_000, spill_directory=disk.folder) as server:
            await slow(server, disk)
            leave_free(disk.folder, 300_000)
            before = open_files()
            with await Client.greeted(server) as client:
                for content in LARGE, LARGE[:400_000] + b"\r\n":  # beyond it, and what a thread writes last
                    await client.send(TO_DATA + content + b".\r\n")
                    assert await client.codes(4) == [250, 250, 354, 452]
                await client.send(TO_DATA + LARGE[:150_000] + b"\r\n.\r\n")
                assert await client.codes(4) == [250, 250, 354, 250]
                await client.send(b"QUIT\r\n")
                assert await client.codes(1) == [221]
            assert "cannot spill a message: OSError: [Errno 28] No space left on device" in caplog.text
            handler.messages.clear()
            await until(lambda: open_files() <= before)
            assert server._spills._waiting == 0


@on_both_loops
async def test_a_disk_that_is_quick_again_is_written_by_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastsmtp.spills, "_SLOW_FOR", 0.0)
    monkeypatch.setattr(fastsmtp.spills, "_SLOW", 1.0)
    async with await serve(Keeps(), spill_threshold=100_000, spill_directory=tmp_path) as server:
        server._spills.quick = False
        with await Client.greeted(server) as client:
            for _ in range(2):
                await client.send(TO_DATA + LARGE + b".\r\n")
                assert await client.codes(4) == [250, 250, 354, 250]
                assert server._spills.quick


@on_both_loops
async def test_no_thread_for_a_slow_disk_is_452(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with await serve(Keeps(), spill_threshold=100_000, spill_directory=tmp_path) as server:
        server._spills.quick = False
        server._spills._slow_until = float("inf")
        before = open_files()
        with await Client.greeted(server) as client:
            with monkeypatch.context() as fault:
                # A limit on threads does not bind root, so the fault is not a real one.
                fault.setattr(threading.Thread, "start", start)
                await client.send(TO_DATA + LARGE + b".\r\n")
                assert await client.codes(4) == [250, 250, 354, 452]
            assert server._spills._waiting == 0
            assert "cannot spill a message: RuntimeError: can't start new thread" in caplog.text
            await client.send(TO_DATA + LARGE + b".\r\nQUIT\r\n")
            assert await client.codes(5) == [250, 250, 354, 250, 221]
        await until(lambda: server.connections == 0 and open_files() <= before)
    assert os.listdir(tmp_path) == []


@on_both_loops
async def test_a_disk_that_hangs_holds_few_threads(tmp_path: Path) -> None:
    with freezable_disk(tmp_path) as disk:
        async with await serve(Keeps(), spill_threshold=100_000, spill_directory=disk.folder) as server:
            await slow(server, disk)
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(await Client.greeted(server)) for _ in range(12)]
                with disk.frozen():
                    for client in clients:
                        client.send_what_fits(TO_DATA + LARGE[:150_000] + b"\r\n.\r\n")
                        assert await client.codes(3) == [250, 250, 354]
                    await until(lambda: server._spills._waiting > 12 * 100_000)
                    threads = [thread for thread in threading.enumerate() if thread.name == "fastsmtp-spill"]
                    assert 1 <= len(threads) <= 4
                for client in clients:
                    assert await client.codes(1) == [250]
            assert server._spills._waiting == 0
