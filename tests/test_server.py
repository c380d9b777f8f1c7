"""The server behind an application: ports, sockets, loops, processes, TLS, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from processes import PATIENCE, await_true, starter
from processes import Client as Wire
from processes import Server as Process
from servers import LOOPS, Client, on_both_loops, port_of

from fastsmtp.errors import ConfigError
from fastsmtp.requests import SMTPRequest
from fastsmtp.server import CRLF, SMTPServer
from fastsmtp.smtp import Application, RequestHandler

HELO = b"HELO c.example\r\n"
TO_DATA = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
CONTENT = b"Subject: test\r\n\r\ntext\r\n.\r\n"


def take(request: SMTPRequest) -> None:
    request.finish()


def make(**settings: Any) -> Any:
    """A server that takes all, typed as what the client of the tests wants."""
    return SMTPServer(take, **{"hostname": "mx.example", **settings})


async def take_one(server: Any) -> None:
    with await Client.greeted(server, HELO) as client:
        await client.send(TO_DATA + CONTENT)
        assert await client.codes(4) == [250, 250, 354, 250]


# --- where ----------------------------------------------------------------------------------------------------


@on_both_loops
async def test_it_listens_more_than_once_in_a_running_loop() -> None:
    server = make()
    server.listen(0, "127.0.0.1")
    server.listen("0", "127.0.0.1")
    ports = [int(address.rpartition(":")[2]) for address in server.addresses]
    assert len(set(ports)) == 2
    await take_one(server)
    server.listen(0, "127.0.0.1")  # it serves already
    assert len(server.sockets) == 3
    for address in server.addresses:
        reader, writer = await asyncio.open_connection(*address.split(":"))
        assert await reader.readline() == b"220 mx.example ESMTP fastsmtp\r\n"
        writer.close()
    await server.close()


@on_both_loops
async def test_application_listen_gives_the_server_and_hands_options_on() -> None:
    server: Any = Application(RequestHandler).listen(
        0, "127.0.0.1", backlog=7, reuse_port=True, hostname="other.example", max_message_size=77
    )
    with await Client.connect(server) as client:
        assert (await client.reply()).lines == ("220 other.example ESMTP fastsmtp",)
        assert "250-SIZE 77" in (await client.ask(b"EHLO c.example\r\n")).lines
    assert server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
    again = make()
    again.listen(port_of(server), "127.0.0.1", reuse_port=True)
    await again.close()
    await server.close()


@on_both_loops
async def test_families_and_all_addresses() -> None:
    server = make()
    server.listen(0, family=socket.AF_INET)
    assert server.addresses[0].startswith("0.0.0.0:")
    server.bind(0, "")
    assert server.addresses[1].startswith("0.0.0.0:"), server.addresses
    await take_one(server)
    await server.close()
    assert all(sock.fileno() == -1 for sock in server.sockets)


@pytest.mark.parametrize("method", ["listen", "bind"])
@pytest.mark.parametrize("family", [socket.AF_UNSPEC, socket.AF_INET])
@on_both_loops
async def test_a_port_that_is_taken_is_an_error_at_once(method: str, family: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = make()
        with pytest.raises(OSError, match="in use") as caught:
            getattr(server, method)(taken.getsockname()[1], "127.0.0.1", family=family)
        assert caught.value.errno == errno.EADDRINUSE
        assert server.addresses == []
        await server.close()


@on_both_loops
async def test_sockets_of_others_are_served_and_closed(tmp_path: Path) -> None:
    server = make()
    tcp = socket.create_server(("127.0.0.1", 0))
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "smtp"))
    unix.listen()
    server.add_socket(tcp)
    server.add_sockets([unix])
    assert server.addresses == [f"127.0.0.1:{tcp.getsockname()[1]}", f"unix:{tmp_path}/smtp"]
    await take_one(server)
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "smtp"))
    await reader.readline()
    writer.write(HELO)
    assert await reader.readline() == b"250 Hello 0.0.0.0\r\n"
    writer.close()
    await server.close()
    assert (tcp.fileno(), unix.fileno()) == (-1, -1)


# --- settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["listen", "workers", "handler", "deliver", "log_level", "loop"])
def test_settings_that_are_said_elsewhere(key: str) -> None:
    with pytest.raises(ConfigError, match=f'^"{key}" is no setting of an SMTPServer: '):
        make(**{key: "x"})


def test_settings_that_are_none() -> None:
    with pytest.raises(ConfigError, match='did you mean "idle_timeout"'):
        make(idle_timeuot=3)
    with pytest.raises(ConfigError, match="max_recipients"):
        make(max_recipients=0)
    assert CRLF == "\r\n"


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"max_buffer_size": 500, "read_chunk_size": 100}, 500),
        ({"max_buffer_size": 500, "max_message_size": 400}, 400),
        ({}, 32 << 20),
    ],
)
@on_both_loops
async def test_the_buffer_is_the_largest_message(settings: dict[str, int], size: int) -> None:
    server = make(**settings)
    server.listen(0, "127.0.0.1")
    with await Client.greeted(server, b"") as client:
        assert f"250-SIZE {size}" in (await client.ask(b"EHLO c.example\r\n")).lines
    await server.close()


# --- TLS ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def pem(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
    return path


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def mail(port: int, how: str, context: ssl.SSLContext) -> Any:
    if how == "tls":
        client: smtplib.SMTP = smtplib.SMTP_SSL("127.0.0.1", port, timeout=10, context=context)
    else:
        client = smtplib.SMTP("127.0.0.1", port, timeout=10)
    with client:
        if how == "starttls":
            client.starttls(context=context)
        return client.sendmail("a@b.example", ["c@d.example"], b"Subject: x\r\n\r\ntext\r\n")


@pytest.mark.parametrize("options", ["mapping", "context", "starttls"])
@on_both_loops
async def test_tls_from_the_first_octet_and_by_starttls(
    options: str, pem: Path, authority: trustme.CA, trusting: ssl.SSLContext, tmp_path: Path
) -> None:
    seen: list[tuple[bool, str]] = []

    def callback(request: SMTPRequest) -> None:
        assert request.session is not None
        assert isinstance(request.session.ssl, ssl.SSLObject | object)
        seen.append((request.tls, request.remote_ip))
        request.finish()

    settings: dict[str, Any] = {"hostname": "mx.example"}
    if options == "starttls":
        settings["tls_certificate"] = pem
    elif options == "context":
        settings["ssl_options"] = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        settings["ssl_options"].load_cert_chain(pem)
    else:
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        settings["ssl_options"] = {
            "certfile": pem,
            "keyfile": pem,
            "ca_certs": tmp_path / "ca.pem",
            "cert_reqs": ssl.CERT_OPTIONAL,
            "ciphers": "ECDHE+AESGCM",
        }
    server: Any = SMTPServer(callback, **settings)
    server.listen(0, "127.0.0.1")
    how = "starttls" if options == "starttls" else "tls"
    assert await asyncio.to_thread(mail, port_of(server), how, trusting) == {}
    assert seen == [(True, "127.0.0.1")]
    await server.close()


def test_tls_options_that_cannot_be_used(pem: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not \\['certificate'\\]"):
        make(ssl_options={"certificate": pem})
    with pytest.raises(OSError, match="No such file"):
        make(ssl_options={"certfile": tmp_path / "none"})
    with pytest.raises(ConfigError, match="give one"):
        make(ssl_options={"certfile": pem}, tls_certificate=pem)


# --- loops ----------------------------------------------------------------------------------------------------


def mail_to(server: Any) -> None:
    with smtplib.SMTP("127.0.0.1", port_of(server), timeout=10) as client:
        client.sendmail("a@b.example", ["c@d.example"], b"text\r\n")


@pytest.fixture
def no_loop() -> Iterator[None]:
    """As in a program that has not thought of loops."""
    asyncio.set_event_loop(None)
    yield
    with contextlib.suppress(RuntimeError):
        loop = asyncio.get_event_loop_policy().get_event_loop()
        loop.close()
    asyncio.set_event_loop(None)


@pytest.mark.usefixtures("no_loop")
@pytest.mark.parametrize("made", ["uvloop", "asyncio", "none"])
def test_it_listens_before_a_loop_runs(made: str) -> None:
    if made != "none":
        asyncio.set_event_loop(LOOPS[made]())
    server = make()
    server.listen(0, "127.0.0.1")
    loop = asyncio.get_event_loop()
    assert isinstance(loop, uvloop.Loop) == (made != "asyncio")
    done = loop.run_in_executor(None, mail_to, server)
    done.add_done_callback(lambda _: loop.stop())
    loop.run_forever()
    done.result()
    server.stop()
    loop.run_until_complete(server.wait_closed())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.mark.usefixtures("no_loop")
@pytest.mark.parametrize("method", ["listen", "start"])
def test_serve_forever_in_another_loop_than_the_one_that_was_made(method: str) -> None:
    server = make()
    if method == "listen":
        server.listen(0, "127.0.0.1")
    else:
        server.bind(0, "127.0.0.1")
        server.start(1)
    made = asyncio.get_event_loop()

    async def main() -> None:
        serving = asyncio.create_task(server.serve_forever())
        await asyncio.to_thread(mail_to, server)
        server.stop()
        await serving

    asyncio.run(main())
    made.close()


@on_both_loops
async def test_serve_forever_that_is_cancelled_closes() -> None:
    server = make()
    server.listen(0, "127.0.0.1")
    serving = asyncio.create_task(server.serve_forever())
    with await Client.greeted(server, HELO) as client:
        serving.cancel()
        assert [reply.code for reply in await client.rest()] == [421]
        with pytest.raises(asyncio.CancelledError):
            await serving


@on_both_loops
async def test_serve_forever_and_start_want_to_know_where() -> None:
    with pytest.raises(RuntimeError, match="listen somewhere"):
        await make().serve_forever()
    with pytest.raises(RuntimeError, match="bind"):
        make().start()


@pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
def test_the_end_of_the_program_tells_clients(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """As at Ctrl-C: asyncio.run cancels what is left, though nobody kept the server."""
    clients: list[Client] = []

    async def main() -> None:
        clients.append(
            await Client.greeted(Application(RequestHandler).listen(0, "127.0.0.1", hostname="x"), HELO)
        )  # type: ignore[arg-type]

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    with clients[0].socket as sock:
        sock.setblocking(True)
        sock.settimeout(10)
        assert sock.recv(1000) == b"421 Service shutting down; closing connection\r\n"
        assert sock.recv(1000) == b""


@on_both_loops
async def test_what_keeps_it_from_serving_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Application):
        def hooks(self) -> Any:
            if serves:
                raise ZeroDivisionError("here")
            return super().hooks()

    serves = False
    server = SMTPServer(Broken(RequestHandler), hostname="x")
    serves = True
    server.listen(0, "127.0.0.1")
    with pytest.raises(ZeroDivisionError):
        await server.serve_forever()
    assert "cannot serve: here" in caplog.text
    assert server.sockets[0].fileno() == -1


# --- the end --------------------------------------------------------------------------------------------------


@on_both_loops
async def test_stop_drains() -> None:
    go_on = asyncio.Event()
    began = asyncio.Event()

    class Handler(RequestHandler):
        async def data(self) -> None:
            began.set()
            await go_on.wait()

    server: Any = Application(Handler).listen(0, "127.0.0.1", hostname="x")
    with await Client.greeted(server, HELO) as busy, await Client.greeted(server, HELO) as idle:
        await busy.send(TO_DATA + CONTENT)
        await began.wait()
        server.stop()
        server.stop()
        assert server.sockets[0].fileno() == -1
        assert [reply.code for reply in await idle.rest()] == [421]
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port_of(server))
        waiting = asyncio.create_task(server.wait_closed())
        await asyncio.sleep(0)
        assert not waiting.done()
        go_on.set()
        assert [reply.code for reply in await busy.rest()] == [250, 250, 354, 250, 421]
        await waiting
    with pytest.raises(RuntimeError, match="was stopped"):
        server.listen(0, "127.0.0.1")


@on_both_loops
async def test_stop_from_another_thread_and_before_it_began() -> None:
    server = make()
    server.listen(0, "127.0.0.1")
    await take_one(server)
    await asyncio.to_thread(server.stop)
    await server.wait_closed()
    for _ in range(2):
        server = make()
        server.listen(0, "127.0.0.1")
        server.stop()
        await server.wait_closed()
        assert server.sockets[0].fileno() == -1
    never = make()
    never.stop()
    await never.wait_closed()


@on_both_loops
async def test_close_ends_all_at_once_and_what_goes_on_beside_has_a_moment() -> None:
    done: list[str] = []

    class Handler(RequestHandler):
        async def data(self) -> None:
            self.finish()
            await asyncio.sleep(0.01)
            done.append("done")

    server: Any = Application(Handler).listen(0, "127.0.0.1", hostname="x")
    with await Client.greeted(server, HELO) as client:
        await client.send(TO_DATA + CONTENT)
        assert await client.codes(4) == [250, 250, 354, 250]
        await server.close()
        await server.close()
        assert [reply.code for reply in await client.rest()] == [421]
    assert done == ["done"]


# --- processes ------------------------------------------------------------------------------------------------

PROGRAM = """\
import asyncio, logging, os, sys
from fastsmtp.errors import SMTPError
from fastsmtp.server import SMTPServer
from fastsmtp.smtp import Application, RequestHandler

logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")


class Handler(RequestHandler):
    async def data(self):
        if "stop" in self.request.data:
            server.stop()
        if "wait" in self.request.data:
            os.write(1, b"waiting\\n")
            await asyncio.sleep(0.3)
        self.finish(f"{os.getpid()}")


server = SMTPServer(
    Application(Handler, autoreload=WATCHED), hostname="mx.example", drain_timeout=10, metrics=METRICS
)
server.bind(0, "127.0.0.1")
print(f"address {server.addresses[0]}", flush=True)
server.start(2, MAX_RESTARTS)
os.write(1, f"child {os.getpid()}\\n".encode())
if "run_forever" in sys.argv:
    asyncio.get_event_loop().run_forever()
else:
    async def main():
        await server.serve_forever()
    asyncio.run(main())
os.write(1, f"after {os.getpid()}\\n".encode())
"""
WAYS = pytest.mark.parametrize("way", ["run_forever", "serve_forever"])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    with starter(tmp_path) as start:

        def run(
            *arguments: str,
            max_restarts: int | None = None,
            watched: bool = False,
            metrics: str | None = None,
        ) -> Process:
            program = PROGRAM.replace("MAX_RESTARTS", repr(max_restarts)).replace("WATCHED", repr(watched))
            program = program.replace("METRICS", repr(metrics))
            process = start(*arguments, script=program, ready=False)
            process.addresses = [process.expect(r"^address (.*)\n", "out")[1]]
            process.expect(r"worker \d \(pid \d+\) accepts\n", count=2)
            return process

        yield run


def converse(process: Process, content: str = "text") -> int:
    """Sends a message; the pid of the process that took it."""
    with process.connect() as client:
        return int(sent(client, content).removeprefix("250 "))


def sent(client: Wire, content: str) -> str:
    for command in ("HELO c.example", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA"):
        assert client.say(command)[:3] in ("250", "354")
    return client.say(f"{content}\r\n.")


def gather(process: Process, pids: set[int]) -> list[tuple[Wire, int]]:
    """A client of each of the processes, whose connection stays."""
    found: dict[int, Wire] = {}
    rest: list[Wire] = []

    def look() -> bool:
        client = process.connect()
        pid = int(sent(client, "text").removeprefix("250 "))
        if pid in found:
            rest.append(client)  # the more one holds, the sooner it leaves the next to the other
        else:
            found[pid] = client
        return set(found) == pids

    await_true(look, "a connection to each process")
    for client in rest:
        client.close()
    return [(client, pid) for pid, client in found.items()]


def test_the_metrics_of_all_processes_are_on_one_page(start: Callable[..., Process]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    process = start("serve_forever", metrics=f"127.0.0.1:{port}")
    for _ in range(3):
        converse(process, "text")

    def accepted() -> bool:
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            page = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
        return 'fastsmtp_messages_total{result="accepted"} 3.0' in page

    await_true(accepted, "three messages on the page")


@WAYS
def test_two_processes_take_mail_and_the_dead_is_replaced(start: Callable[..., Process], way: str) -> None:
    process = start(way)
    pids = set(process.workers.values())
    assert len(pids) == 2
    assert process.process.pid not in pids
    (first, killed), (second, survivor) = gather(process, pids)
    os.kill(killed, signal.SIGKILL)
    assert first.at_end()
    process.expect(r"worker \d \(pid \d+\) accepts\n", count=3)
    assert sent(second, "text") == f"250 {survivor}"  # its connection is as it was
    now = set(process.workers.values())
    assert survivor in now
    assert killed not in now
    for client, _ in gather(process, now):
        client.close()
    first.close()
    assert process.end() == 0
    assert second.reply().startswith("421 ")
    second.close()
    assert {int(pid) for pid in re.findall(r"after (\d+)", process.out)} == now


@WAYS
def test_sigterm_drains_all_processes(start: Callable[..., Process], way: str) -> None:
    process = start(way)
    replies: list[int] = []
    thread = threading.Thread(target=lambda: replies.append(converse(process, "wait")))
    thread.start()
    process.expect("^waiting$", "out")
    assert process.end() == 0
    thread.join()
    assert len(replies) == 1
    assert "Traceback" not in process.err


@WAYS
def test_a_process_that_stops_its_server_drains_and_is_replaced(
    start: Callable[..., Process], way: str
) -> None:
    process = start(way)
    pids = set(process.workers.values())
    pid = converse(process, "stop and wait")
    assert pid in pids
    process.expect(f"after {pid}\n", "out")
    process.expect(r"worker \d \(pid \d+\) accepts\n", count=3)
    assert process.end() == 0
    assert "Traceback" not in process.err
    assert "never retrieved" not in process.err


def test_too_many_restarts_end_it(start: Callable[..., Process]) -> None:
    process = start("run_forever", max_restarts=0)
    os.kill(process.workers[0], signal.SIGKILL)
    assert process.end(None) == 1


def test_processes_do_not_look_at_their_code(start: Callable[..., Process]) -> None:
    process = start("run_forever", watched=True)
    process.expect("autoreload is for one process", count=2)
    assert converse(process) in process.workers.values()
    assert process.end() == 0


def test_a_loop_that_is_there_is_not_forked() -> None:
    async def main() -> None:
        server = make()
        server.bind(0, "127.0.0.1")
        with pytest.raises(RuntimeError, match="loop"):
            server.start(2)
        await server.close()
        assert server.sockets[0].fileno() == -1

    asyncio.run(main())


# --- code that changes ----------------------------------------------------------------------------------------

RELOADED = """\
import asyncio, os, sys
import ours
from fastsmtp.smtp import Application, RequestHandler


class Handler(RequestHandler):
    def data(self):
        self.finish(ours.TEXT)


async def main():
    server = Application(Handler, debug=True).listen(int(sys.argv[1]), "127.0.0.1")
    print(f"address {server.addresses[0]} pid {os.getpid()}", flush=True)
    print(f"argv {sys.argv[1:]}")  # left in the buffer
    await asyncio.Event().wait()


asyncio.run(main())
"""


def test_the_program_starts_anew_when_its_code_changes(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    ours = tmp_path / "ours.py"
    ours.write_text("TEXT = 'one'\n")
    with starter(tmp_path) as start:
        process = start(port, script=RELOADED, ready=False, interpreter=["-X", "utf8"])
        found = process.expect(r"^address (.*) pid (\d+)\n", "out")
        process.addresses = [found[1]]
        with process.connect() as client:
            assert sent(client, "text") == "250 one"
            for number, text in enumerate(("TEXT = (", "TEXT = 'two'")):
                ours.write_text(f"{text}\n")
                os.utime(ours, ns=(number, number))
                if number == 0:
                    process.expect("has changed, but cannot be used")
            assert client.reply().startswith("421 ")
        again = process.expect(r"^address (.*) pid (\d+)\n", "out", count=2)
        assert again[2] == found[2]
        with process.connect() as client:
            assert sent(client, "text") == "250 two"
        assert f"argv ['{port}']" in process.out
        assert process.end(signal.SIGKILL) == -signal.SIGKILL


# --- the page's own examples ----------------------------------------------------------------------------------

SEED = """\
import asyncio
from fastsmtp import server, smtp

class Handler(smtp.RequestHandler):
    async def data(self):
        print(self.request.message, flush=True)

async def main():
    application = smtp.Application(Handler)
    smtp_server = server.SMTPServer(application)
    smtp_server.listen(2525)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="SIGINT reaches asyncio.run in other ways there")
def test_the_snippet_takes_mail(tmp_path: Path) -> None:
    """Word for word, but for the port: another program may have that."""
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    with starter(tmp_path) as start:
        process = start(script=SEED.replace("2525", str(port)), ready=False)

        def send() -> bool:
            try:
                with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
                    client.sendmail("a@b.example", ["c@d.example"], b"Subject: by smtplib\r\n\r\ntext\r\n")
            except ConnectionRefusedError:
                return False
            return True

        await_true(send, "a connection")
        process.expect("^Subject: by smtplib$", "out")
        if shutil.which("swaks") is not None:
            arguments = ("--from", "a@b.example", "--to", "c@d.example", "--header", "Subject: by swaks")
            subprocess.run(
                ("swaks", "--server", f"127.0.0.1:{port}", *arguments), check=True, timeout=PATIENCE
            )
            process.expect("^Subject: by swaks$", "out")
        with Wire(f"127.0.0.1:{port}") as client:
            assert client.reply().startswith("220 ")
            process.send(signal.SIGINT)
            assert client.reply().startswith("421 ")
        process.end(None)
        assert process.err.rstrip().endswith("KeyboardInterrupt")


def test_a_program_heeds_sigint_though_the_tests_have_to_ignore_it(tmp_path: Path) -> None:
    """As they do when a script runs them with ``&``: the test before would wait for a 421 that never comes."""
    script = "import signal\nprint(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with starter(tmp_path) as start:
            start(script=script, ready=False).expect("^True$", "out")
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
