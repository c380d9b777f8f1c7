"""Connections on real sockets, on uvloop and on asyncio: whatever arrives how, and however clients behave."""

import asyncio
import smtplib
import socket
import subprocess
import threading
from pathlib import Path
from shutil import which

import pytest
from dialogs import Dialog, Reply, load_all
from disks import open_files, small_disk
from oracle import Limits, oracle
from script import HOSTNAME, every
from servers import CONTENT, MAIL, Client, Keeps, counted, on_both_loops, port_of, serve, summary, until
from wires import HELLO, TO_DATA

from fastsmtp import ConfigError, Envelope, Session, blocking
from fastsmtp.config import Config


def allowed(dialog: Dialog) -> bool:
    """Whether a server may have the dialog's settings; some are for the core alone, to keep the dialog short."""
    try:
        Config.of(**dialog.settings)
    except ConfigError:
        return False
    return True


DIALOGS = [dialog for dialog in load_all() if allowed(dialog)]
each_dialog = pytest.mark.parametrize("dialog", DIALOGS, ids=str)


class Waits(Keeps):
    """Every hook truly waits before it does what would have been done without it."""

    async def handle_CONNECT(self, server: object, session: Session, envelope: Envelope) -> None:
        await asyncio.sleep(0)

    async def handle_HELO(self, server: object, session: Session, envelope: Envelope, hostname: str) -> str:
        await asyncio.sleep(0)
        return f"250 {HOSTNAME}"

    async def handle_EHLO(
        self, server: object, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        await asyncio.sleep(0)
        return responses

    async def handle_MAIL(
        self, server: object, session: Session, envelope: Envelope, address: str, mail_options: list[str]
    ) -> str:
        await asyncio.sleep(0)
        envelope.mail_from = address
        return "250 2.1.0 Ok"

    async def handle_RCPT(
        self, server: object, session: Session, envelope: Envelope, address: str, rcpt_options: list[str]
    ) -> str:
        await asyncio.sleep(0)
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(  # type: ignore[override]
        self, server: object, session: Session, envelope: Envelope
    ) -> str:
        await asyncio.sleep(0)
        return super().handle_DATA(server, session, envelope)

    async def handle_RSET(self, server: object, session: Session, envelope: Envelope) -> str:
        await asyncio.sleep(0)
        return "250 2.0.0 Ok"

    async def handle_NOOP(self, server: object, session: Session, envelope: Envelope, argument: str) -> str:
        await asyncio.sleep(0)
        return "250 2.0.0 Ok"

    async def handle_QUIT(self, server: object, session: Session, envelope: Envelope) -> str:
        await asyncio.sleep(0)
        return "221 2.0.0 Bye"

    async def handle_VRFY(self, server: object, session: Session, envelope: Envelope, address: str) -> str:
        await asyncio.sleep(0)
        return "252 2.0.0 Perhaps"


# --- the dialogs --------------------------------------------------------------------------------------------


@each_dialog
@on_both_loops
async def test_a_dialog_goes_as_it_is_written(dialog: Dialog) -> None:
    handler = Keeps()
    async with await serve(handler, **dialog.settings) as server:
        with await Client.connect(server) as client:
            for exchange in dialog.exchanges:
                await client.send(exchange.sent)
                for expected in exchange.replies:
                    reply = await client.reply()
                    assert expected.matches(reply), (exchange.sent, reply, expected)
            if not dialog.closed:
                assert server.connections == 1
                client.half_close()
            assert await client.rest() == []
        assert handler.messages == dialog.messages


@each_dialog
@pytest.mark.parametrize("way", ["whole", "line by line", "whole, and all hooks wait"])
@on_both_loops
async def test_a_dialog_that_the_client_sends_without_waiting(dialog: Dialog, way: str) -> None:
    handler = Waits() if "hooks wait" in way else Keeps()
    async with await serve(handler, **dialog.settings) as server:
        with await Client.connect(server) as client:
            try:
                for piece in (
                    dialog.wire.splitlines(keepends=True) if way == "line by line" else [dialog.wire]
                ):
                    await client.send(piece)
                client.half_close()
            except OSError:
                assert dialog.closed  # while the client was still speaking
            replies = await client.rest()
        if "hooks wait" in way and b"\n" not in dialog.wire:
            assert replies == []  # who leaves before the greeting, without a whole line, is not waited for
            return
        result = summary(replies, handler.messages, dialog.closed)
        assert result == oracle(dialog.wire, Limits(**dialog.settings))


@each_dialog
@on_both_loops
async def test_a_dialog_octet_by_octet(dialog: Dialog) -> None:
    """Each octet is read by itself: the next is sent when the server has it."""
    wire = dialog.wire[:7000]
    right = oracle(wire, Limits(**dialog.settings))
    handler = Keeps()
    async with await serve(handler, **dialog.settings) as server:
        with await Client.connect(server) as client:
            await until(lambda: server.connections == 1)
            for number in range(len(wire)):
                if server.connections == 0:
                    break
                client.socket.send(wire[number : number + 1])
                while server.connections and counted(server, "received_bytes_total") <= number:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            if not right.closed:
                assert server.connections == 1
                client.half_close()
            assert summary(await client.rest(), handler.messages, right.closed) == right


# --- clients that people have -------------------------------------------------------------------------------


@on_both_loops
async def test_smtplib_is_a_client() -> None:
    handler = Keeps()

    def send(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
            assert (
                client.sendmail("a@b.example", ["c@d.example", "e@f.example"], "Subject: 1\n\n.dot\n") == {}
            )
            client.sendmail("", ["c@d.example"], b"x" * 300_000 + b"\r\n", ["BODY=8BITMIME"])
            assert client.has_extn("PIPELINING")
            assert client.verify("c@d.example")[0] == 252
            with pytest.raises(smtplib.SMTPSenderRefused):
                client.sendmail("bad", ["c@d.example"], "x")

    async with await serve(handler) as server:
        await asyncio.to_thread(send, port_of(server))
        await until(lambda: server.connections == 0)
    assert handler.messages == [
        ("a@b.example", ["c@d.example", "e@f.example"], b"Subject: 1\r\n\r\n.dot\r\n"),
        ("<>", ["c@d.example"], b"x" * 300_000 + b"\r\n"),
    ]


@pytest.mark.skipif(which("swaks") is None, reason="there is no swaks here")
@on_both_loops
async def test_swaks_is_a_client() -> None:
    handler = Keeps()
    async with await serve(handler) as server:
        arguments = ["--from", "a@b.example", "--to", "c@d.example", "--body", ".\n..\ntext", "--pipeline"]
        swaks = ["swaks", "--server", "127.0.0.1", "--port", str(port_of(server)), *arguments]
        done = await asyncio.to_thread(subprocess.run, swaks, capture_output=True, text=True, timeout=15)
        assert done.returncode == 0, done.stdout + done.stderr
    (message,) = handler.messages
    assert (message.mail_from, message.rcpt_tos) == ("a@b.example", ["c@d.example"])
    assert b"\r\n.\r\n..\r\ntext\r\n" in message.content


@on_both_loops
async def test_a_unix_socket_and_ipv6_are_served_too(tmp_path: Path) -> None:
    peers: list[object] = []

    class Handler(Keeps):
        def handle_HELO(self, server: object, session: Session, envelope: Envelope, hostname: str) -> str:
            peers.append(session.peer)
            return "250 hello"

    listen = [f"unix:{tmp_path}/smtp.sock", *(["[::1]:0"] if socket.has_ipv6 else [])]
    async with await serve(Handler(), listen=listen) as server:
        for family, address in zip((socket.AF_UNIX, socket.AF_INET6), server.addresses, strict=False):
            where = (
                f"{tmp_path}/smtp.sock" if family == socket.AF_UNIX else ("::1", int(address.split("]:")[1]))
            )
            with socket.socket(family) as sock:
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, where)
                client = Client(sock)
                assert [(await client.reply()).code, (await client.ask(b"HELO c.example\r\n")).code] == [
                    220,
                    250,
                ]
    assert not peers[0]  # a client on a unix socket has no address
    assert len(peers) == 1 or peers[1][0] == "::1"  # type: ignore[index]


# --- clients that go away -----------------------------------------------------------------------------------


@on_both_loops
async def test_a_client_that_goes_away_while_a_hook_runs_leaves_the_hook_to_finish() -> None:
    go, done = asyncio.Event(), []

    class Handler:
        async def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
            done.append("begun")
            await go.wait()
            done.append(envelope.content)
            return "250 2.0.0 Ok"

    async with await serve(Handler()) as server:
        with await Client.connect(server) as client:
            await client.send(MAIL)
            await until(lambda: done)
            client.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
            )  # ends with RST
        await until(lambda: server.connections == 0)
        go.set()
        await until(lambda: len(done) == 2)
        assert done[1] == CONTENT
        await until(lambda: counted(server, "messages_total", "accepted") == 1)


@on_both_loops
async def test_a_hook_is_heard_to_its_end_though_an_async_disconnect_hook_ran_meanwhile() -> None:
    go, heard = asyncio.Event(), []

    class Handler:
        async def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
            heard.append("DATA")
            await go.wait()
            return "250 2.0.0 Ok"

        async def handle_DISCONNECT(self, server: object, session: Session, envelope: Envelope) -> None:
            await asyncio.sleep(0)
            heard.append("DISCONNECT")

    async with await serve(Handler()) as server:
        with await Client.connect(server) as client:
            await client.send(MAIL)
            await until(lambda: heard)
        await until(lambda: len(heard) == 2)
        go.set()
        await until(lambda: counted(server, "messages_total", "accepted") == 1, "the message was not counted")


@on_both_loops
async def test_a_client_that_goes_away_in_the_middle_of_a_message_leaves_nothing() -> None:
    async with await serve(Keeps(), spill_threshold=100_000) as server:
        for size in (0, 4, 90_000, 900_000):
            before = counted(server, "received_bytes_total") + len(HELLO + TO_DATA) + size
            with await Client.greeted(server) as client:
                await client.send(TO_DATA + b"x" * size)
                assert await client.codes(3) == [250, 250, 354]
                await until(lambda: counted(server, "received_bytes_total") == before)  # noqa: B023
            await until(lambda: server.connections == 0)
        assert counted(server, "messages_total", "aborted") == 4
        assert counted(server, "buffered_bytes") == 0


@pytest.mark.parametrize("handler", [Keeps, Waits])
@on_both_loops
async def test_a_client_that_shuts_its_sending_side_gets_its_replies(handler: type[Keeps]) -> None:
    keeps = handler()
    async with await serve(keeps) as server:
        with await Client.connect(server) as client:
            await client.send(MAIL + b"NOOP\r\nRSET\r\n" + TO_DATA + b"2\r\n.\r\n")
            client.half_close()
            assert [reply.code for reply in await client.rest()] == [
                *(220, 250),
                *(250, 250, 354, 250),
                *(250, 250),
                *(250, 250, 354, 250),
            ]
    assert len(keeps.messages) == 2


@on_both_loops
async def test_a_client_that_shuts_its_sending_side_gets_its_replies_though_it_reads_late() -> None:
    """More replies than the sockets hold, after an answer that came when the end had been seen."""
    go = asyncio.Event()

    class Handler(Keeps):
        async def handle_VRFY(
            self, server: object, session: Session, envelope: Envelope, address: str
        ) -> str:
            await go.wait()
            return "252 2.0.0 Perhaps"

    async with await serve(Handler()) as server:
        server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        with await Client.greeted(server, b"", receive_buffer=8192) as client:
            await client.send(b"VRFY c@d.example\r\n" + b"HELP\r\n" * 9000 + b"QUIT\r\n")
            client.half_close()
            await until(lambda: counted(server, "commands_total", "VRFY") == 1)
            for _ in range(20):
                await asyncio.sleep(0)  # the end of the client's octets is there, too
            go.set()
            await until(lambda: counted(server, "commands_total", "HELP") > 0)
            codes = [reply.code for reply in await client.rest()]
            assert codes == [252] + [214] * 9000 + [221]


# --- slow hooks ---------------------------------------------------------------------------------------------


@on_both_loops
async def test_what_comes_while_a_hook_waits_is_kept_and_answered_in_order() -> None:
    go = asyncio.Event()

    class Handler(Keeps):
        async def handle_RCPT(
            self, server: object, session: Session, envelope: Envelope, address: str, rcpt_options: list[str]
        ) -> str:
            await go.wait()
            envelope.rcpt_tos.append(address)
            return f"250 2.1.5 {address}"

    handler = Handler()
    async with await serve(handler) as server:
        with await Client.greeted(server) as client:
            await client.send(
                b"MAIL FROM:<a@b.example>\r\nRCPT TO:<1@d.example>\r\nRCPT TO:<2@d.example>\r\nRCP"
            )
            assert (await client.reply()).enhanced == "2.1.0"
            before = counted(server, "received_bytes_total")
            await client.send(b"T TO:<3@d.example>\r\nDATA\r\n..te")
            await until(lambda: counted(server, "received_bytes_total") > before)
            await client.send(b"xt\r\n.\r\nHELP\r\n")
            assert not client.came
            go.set()
            replies = await client.replies(6)
    assert [reply.lines[0] for reply in replies[:3]] == [f"250 2.1.5 {n}@d.example" for n in (1, 2, 3)]
    assert [reply.code for reply in replies[3:]] == [354, 250, 214]
    assert handler.messages == [("a@b.example", [f"{n}@d.example" for n in (1, 2, 3)], b".text\r\n")]


@on_both_loops
async def test_the_loop_is_free_while_a_blocking_hook_waits() -> None:
    go, inside = threading.Event(), threading.Event()

    class Handler:
        @blocking
        def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
            inside.set()
            assert go.wait(10)
            return f"250 2.0.0 {threading.current_thread().name}"

    async with await serve(Handler()) as server:
        with await Client.greeted(server) as client, await Client.greeted(server) as other:
            await client.send(TO_DATA + b"text\r\n.\r\n")
            assert await client.codes(3) == [250, 250, 354]
            await until(inside.is_set)
            assert (await other.ask(b"NOOP\r\n")).code == 250
            go.set()
            assert "fastsmtp-blocking" in (await client.reply()).lines[0]


@on_both_loops
async def test_a_slow_hook_stops_the_reading_so_that_the_client_must_wait() -> None:
    go = asyncio.Event()

    class Handler(Keeps):
        async def handle_VRFY(
            self, server: object, session: Session, envelope: Envelope, address: str
        ) -> str:
            await go.wait()
            return "252 2.0.0 Perhaps"

    async with await serve(Handler()) as server:
        server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        with await Client.greeted(server) as client:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            await client.send(b"VRFY c@d.example\r\n")
            flood, sent, steady = b"NOOP\r\n" * 500_000, 0, 0
            while steady < 50:  # until nothing more goes into the sockets for a while
                more = client.send_what_fits(flood[sent:])
                sent, steady = sent + more, 0 if more else steady + 1
                await asyncio.sleep(0.001)
            assert sent < 1_000_000
            assert counted(server, "received_bytes_total") < 200_000
            go.set()
            first = await client.reply()
            others = await client.replies(sent // len(b"NOOP\r\n"))
    assert first.code == 252
    assert {reply.code for reply in others} == {250}


# --- clients that do not read -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [b"NOOP\r\n", b"EHLO c.example\r\n"], ids=["short", "long"])
@on_both_loops
async def test_a_client_that_never_reads_holds_little_memory_and_disturbs_nobody(command: bytes) -> None:
    total = 900_000 // len(command)
    flood = command * total
    async with await serve(Keeps()) as server:
        server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        with (
            await Client.greeted(server, receive_buffer=16384) as client,
            await Client.greeted(server) as other,
        ):
            connections = list(server._engine.live)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
            sent = steady = unsent = 0
            while steady < 50:  # until nothing more goes into the sockets for a while
                more = client.send_what_fits(flood[sent:])
                sent, steady = sent + more, 0 if more else steady + 1
                unsent = max([unsent, *(item.transport.get_write_buffer_size() for item in connections)])
                await asyncio.sleep(0.001)
            assert sent < len(flood), "the server read all of it"
            assert unsent < 300_000
            assert (await other.ask(b"HELP\r\n")).code == 214

            sending = asyncio.ensure_future(client.send(flood[sent:] + b"QUIT\r\n"))
            codes = [reply.code for reply in await client.rest()]
            await sending
            assert codes == [250] * total + [221]


# --- storing ------------------------------------------------------------------------------------------------


def keep_everything(handler: Keeps) -> list[bytes]:
    return [message.content for message in handler.messages]


@on_both_loops
async def test_messages_of_any_size_come_whole() -> None:
    """In one read, in memory, and spilled; with dots at every place where a read may end."""
    handler = Keeps()
    contents = [b"".join(b".%d\r\n" % n for n in range(count)) for count in (0, 1, 10_000, 60_000, 500_000)]
    async with await serve(handler, spill_threshold="256KiB") as server:
        with await Client.greeted(server) as client:
            for content in contents:
                await client.send(TO_DATA + content.replace(b".", b"..") + b".\r\n")
                assert await client.codes(4) == [250, 250, 354, 250]
        assert keep_everything(handler) == contents
        assert counted(server, "spilled_messages_total") == 2
        assert counted(server, "spilled_bytes_total") == sum(map(len, contents[3:]))
        assert counted(server, "buffered_bytes") == 0


@on_both_loops
async def test_many_large_messages_at_once_are_not_mixed_up() -> None:
    handler = Keeps()
    contents = [b"%d\r\n" % (1000 + number) * (20_000 * number) for number in range(1, 13)]
    async with await serve(handler, spill_threshold=300_000) as server:

        async def send(content: bytes) -> list[int]:
            with await Client.greeted(server) as client:
                await client.send(TO_DATA)
                assert await client.codes(3) == [250, 250, 354]
                for piece in every(content, len(content) // 10 + 1):
                    await client.send(piece)
                    await asyncio.sleep(0)
                await client.send(b".\r\n")
                return await client.codes(1)

        assert await asyncio.gather(*map(send, contents)) == [[250]] * 12
        assert sorted(keep_everything(handler)) == contents
        assert counted(server, "spilled_messages_total") == sum(
            len(content) > 300_000 for content in contents
        )
        assert counted(server, "buffered_bytes") == 0


LARGE = b"x" * 998 + b"\r\n"


@on_both_loops
async def test_a_full_disk_defers_the_message_and_the_connection_lives_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Keeps()
    with small_disk(tmp_path, "1m") as folder:
        async with await serve(handler, spill_threshold=100_000, spill_directory=folder) as server:
            with await Client.greeted(server) as client:
                before = open_files()
                for _ in range(3):
                    await client.send(TO_DATA + LARGE * 3000 + b".\r\nNOOP\r\n")
                    replies = await client.replies(5)
                    assert [reply.code for reply in replies] == [250, 250, 354, 452, 250]
                    assert replies[3].enhanced == "4.3.1"
                    assert open_files() == before
                    assert list(folder.iterdir()) == []
                await client.send(TO_DATA + LARGE * 500 + b".\r\n")
                assert await client.codes(4) == [250, 250, 354, 250]
        assert keep_everything(handler) == [LARGE * 500]
    assert {record.getMessage().partition(" (session ")[0] for record in caplog.records} == {
        "cannot spill a message: OSError: [Errno 28] No space left on device"
    }


@on_both_loops
async def test_a_vanished_spill_folder_defers_large_messages_and_no_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Keeps()
    folder = tmp_path / "spill"
    folder.mkdir()
    async with await serve(handler, spill_threshold=100_000, spill_directory=folder) as server:
        with await Client.greeted(server) as client:
            folder.rmdir()
            await client.send(TO_DATA + LARGE * 300 + b".\r\n" + TO_DATA + LARGE + b".\r\n")
            replies = await client.replies(8)
            assert [reply.code for reply in replies] == [250, 250, 354, 452, 250, 250, 354, 250]
            assert replies[3].enhanced == "4.3.1"
            folder.mkdir()
            await client.send(TO_DATA + LARGE * 300 + b".\r\n")
            assert await client.codes(4) == [250, 250, 354, 250]
    assert keep_everything(handler) == [LARGE, LARGE * 300]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "spill" in caplog.text


class Holds(Keeps):
    """Has each message in its memory until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.asked = 0

    async def handle_DATA(  # type: ignore[override]
        self, server: object, session: Session, envelope: Envelope
    ) -> str:
        self.asked += 1
        await self.go.wait()
        return super().handle_DATA(server, session, envelope)


@on_both_loops
async def test_beyond_the_memory_budget_messages_go_to_files_and_those_that_will_not_fit_are_refused_first() -> (
    None
):
    handler = Holds()
    async with await serve(handler, memory_budget="1MiB", spill_threshold="1MiB") as server:
        clients = [await Client.greeted(server) for _ in range(4)]
        await clients[0].send(TO_DATA + LARGE * 400 + b".\r\n")
        await until(lambda: handler.asked == 1)
        assert (await clients[3].says(b"MAIL FROM:<> SIZE=1048576\r\n")).startswith(
            "452 4.3.1 Insufficient memory"
        )
        for client in clients[1:3]:
            await client.send(TO_DATA + LARGE * 700 + b".\r\n")
        await until(lambda: handler.asked == 3)
        assert counted(server, "spilled_messages_total") >= 1
        handler.go.set()
        for client in clients[:3]:
            assert await client.codes(4) == [250, 250, 354, 250]
        await clients[3].send(TO_DATA + LARGE * 400 + b".\r\n")
        assert await clients[3].codes(4) == [250, 250, 354, 250]
        assert sorted(map(len, keep_everything(handler))) == [
            len(LARGE) * count for count in (400, 400, 700, 700)
        ]
        assert counted(server, "buffered_bytes") == 0
        for client in clients:
            client.socket.close()


# --- leaving ------------------------------------------------------------------------------------------------


async def is_refused(port: int) -> bool:
    with socket.socket() as sock:
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except (ConnectionRefusedError, ConnectionResetError):  # reset: it was still in the queue
            return True
        return False


@on_both_loops
async def test_draining_refuses_the_next_command_and_finishes_the_message() -> None:
    handler = Keeps()
    async with await serve(handler) as server:
        port = port_of(server)
        with (
            await Client.greeted(server) as sends,
            await Client.greeted(server) as speaks,
            await Client.greeted(server) as quits,
        ):
            await sends.send(TO_DATA + b"te")
            assert await sends.codes(3) == [250, 250, 354]
            draining = asyncio.ensure_future(server.drain(10))
            await asyncio.sleep(0)
            assert await is_refused(port)
            assert [(reply.code, reply.enhanced) for reply in await said(speaks, b"NOOP\r\n")] == [
                (421, "4.3.2")
            ]
            assert [reply.code for reply in await said(quits, b"QUIT\r\n")] == [221]
            assert (await sends.ask(b"xt\r\n.\r\n")).code == 250
            assert [reply.enhanced for reply in await said(sends, b"MAIL FROM:<>\r\n")] == ["4.3.2"]
            await draining
        assert server.connections == 0
    assert keep_everything(handler) == [b"text\r\n"]


async def said(client: Client, octets: bytes) -> list[Reply]:
    """What the server says to these octets and until it hangs up."""
    await client.send(octets)
    return await client.rest()


@on_both_loops
async def test_draining_tells_silent_clients_after_a_second() -> None:
    server = await serve(Keeps())
    loop = asyncio.get_running_loop()
    with await Client.greeted(server) as silent, await Client.greeted(server, b"") as new:
        began = loop.time()
        await server.drain(10)
        assert 0.9 < loop.time() - began < 5
        assert [reply.enhanced for reply in await silent.rest()] == ["4.3.2"]
        assert [reply.enhanced for reply in await new.rest()] == ["4.3.2"]
    await server.serve_forever()  # over


@on_both_loops
async def test_draining_ends_at_its_deadline() -> None:
    cancelled = []

    class Handler:
        async def handle_DATA(self, server: object, session: Session, envelope: Envelope) -> str:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                cancelled.append(envelope.content)
                raise
            return "250 2.0.0 Ok"

    server = await serve(Handler())
    loop = asyncio.get_running_loop()
    with await Client.greeted(server) as sends, await Client.greeted(server) as waits:
        await waits.send(TO_DATA + b"text\r\n.\r\n")
        await sends.send(TO_DATA + b"te")
        assert await sends.codes(3) == await waits.codes(3) == [250, 250, 354]
        began = loop.time()
        await server.drain(0.2)
        assert 0.15 < loop.time() - began < 3
        assert [reply.code for reply in await sends.rest()] == [421]
        assert [reply.code for reply in await waits.rest()] == [421]
        await until(lambda: cancelled == [b"text\r\n"])
    assert server.connections == 0


@on_both_loops
async def test_closing_tells_everybody_and_may_be_done_twice() -> None:
    async with await serve(Keeps()) as server:
        port = port_of(server)
        with await Client.greeted(server) as first, await Client.greeted(server) as second:
            await second.send(TO_DATA)
            assert await second.codes(3) == [250, 250, 354]
            await server.close()
            assert [reply.enhanced for reply in await first.rest()] == ["4.3.2"]
            assert [reply.enhanced for reply in await second.rest()] == ["4.3.2"]
        assert server.connections == 0
        assert await is_refused(port)


@pytest.mark.parametrize("kind", ["plain", "async", "blocking"])
@on_both_loops
async def test_closing_lets_the_disconnect_hook_of_every_connection_run(kind: str) -> None:
    gone = []

    class Plain(Keeps):
        def handle_DISCONNECT(self, server: object, session: Session, envelope: Envelope) -> None:
            gone.append(session.host_name)

    class Async(Keeps):
        async def handle_DISCONNECT(self, server: object, session: Session, envelope: Envelope) -> None:
            await asyncio.sleep(0)
            gone.append(session.host_name)

    class Blocking(Keeps):
        @blocking
        def handle_DISCONNECT(self, server: object, session: Session, envelope: Envelope) -> None:
            gone.append(session.host_name)

    handler = {"plain": Plain, "async": Async, "blocking": Blocking}[kind]
    async with await serve(handler(), blocking_threads=1) as server:
        clients = [await Client.greeted(server, b"HELO %d.example\r\n" % number) for number in range(5)]
        await server.close()
        for client in clients:
            assert [reply.enhanced for reply in await client.rest()] == ["4.3.2"]
            client.socket.close()
    await until(lambda: len(gone) == 5, f"hooks that ran: {gone}")


@on_both_loops
async def test_serve_forever_closes_when_it_is_cancelled() -> None:
    server = await serve(Keeps())
    with await Client.greeted(server) as client:
        serving = asyncio.ensure_future(server.serve_forever())
        await asyncio.sleep(0)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert [reply.enhanced for reply in await client.rest()] == ["4.3.2"]
    assert server.connections == 0
