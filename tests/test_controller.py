"""Controllers: serving in a thread and in one's own loop, what start() raises, what stop() waits for."""

import asyncio
import contextlib
import errno
import gc
import os
import smtplib
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from processes import await_true
from servers import LOOPS, on_both_loops

from fastsmtp import controller as module
from fastsmtp.controller import (
    IP6_IS,
    BaseController,
    BaseThreadedController,
    Controller,
    UnixSocketController,
    UnixSocketUnthreadedController,
    UnthreadedController,
    get_localhost,
)
from fastsmtp.smtp import SMTP

DEADLINE = 20.0
AT_ONCE = 2.0  # seconds; far below the deadlines that must not be waited for
CONTENT = "Subject: test\r\n\r\ntext"

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class Keeps:
    """Takes every message, and says in which thread it did."""

    def __init__(self) -> None:
        self.contents: list[Any] = []
        self.threads: list[threading.Thread] = []

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:
        self.contents.append(envelope.content)
        self.threads.append(threading.current_thread())
        return "250 OK"


class Waits:
    """A hook that is under way until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.cancelled = False

    def let_go(self) -> None:
        self.loop.call_soon_threadsafe(self.go.set)

    async def handle_DATA(self, server: object, session: object, envelope: object) -> str:
        self.loop, self.go = asyncio.get_running_loop(), asyncio.Event()
        self.entered.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return "250 kept"


class Proxied:
    """Takes every PROXY header."""

    def __init__(self) -> None:
        self.sources: list[str] = []

    async def handle_PROXY(self, server: object, session: object, envelope: object, proxy_data: Any) -> bool:
        self.sources.append(str(proxy_data.src_addr))
        return True


class Counts(Controller):
    """Knows every protocol that its factory made."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.made: list[SMTP] = []

    def factory(self) -> SMTP:
        self.made.append(SMTP(self.handler, **self.SMTP_kwargs))
        return self.made[-1]


@pytest.fixture(params=LOOPS.values(), ids=LOOPS)
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    made = request.param()
    yield made
    made.close()


@contextlib.contextmanager
def running(controller: BaseThreadedController) -> Iterator[None]:
    try:
        controller.start()
        yield
    finally:
        controller.stop(no_assert=True)


def client_of(controller: Any) -> smtplib.SMTP:
    return smtplib.SMTP(controller.hostname or "127.0.0.1", controller.port, timeout=DEADLINE)


@contextlib.contextmanager
def left_alone(client: smtplib.SMTP) -> Iterator[smtplib.SMTP]:
    """A client that says no QUIT at the end: its server is gone by then."""
    with contextlib.closing(client):
        yield client


def is_over(client: smtplib.SMTP) -> bool:
    """Whether the server ends the connection without another answer, with a 421 or without a word."""
    try:
        return client.getreply()[0] == 421
    except smtplib.SMTPServerDisconnected:
        return True


def send(controller: Any) -> dict[str, tuple[int, bytes]]:
    with client_of(controller) as client:
        return client.sendmail("a@example.com", ["b@example.com"], CONTENT)


def greeting(path: str | Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(str(path))
        return sock.recv(1024)


def to_data(client: smtplib.SMTP) -> None:
    """Leads a client up to where content is expected."""
    client.ehlo("example.com")
    client.mail("a@example.com")
    client.rcpt("b@example.com")
    assert client.docmd("DATA")[0] == 354


def refused(controller: Any) -> bool:
    try:
        socket.create_connection((controller.hostname, controller.port), DEADLINE).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # just being closed
    return False


@contextlib.contextmanager
def stopping(controller: BaseThreadedController, **keywords: Any) -> Iterator[None]:
    """Stops the controller in another thread; the block begins when it accepts no more."""
    thread = threading.Thread(target=controller.stop, kwargs=keywords)
    thread.start()
    try:
        await_true(lambda: refused(controller), "no new connections")
        yield
    finally:
        thread.join(DEADLINE)
    assert not thread.is_alive()


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1", "::1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


# --- in a thread ------------------------------------------------------------------------------------------------


def test_it_serves_in_a_thread_and_is_gone_after_stop(loop: asyncio.AbstractEventLoop) -> None:
    handler = Keeps()
    controller = Controller(handler, port=0, loop=loop)
    assert (controller.server, controller.smtpd, controller.loop) == (None, None, loop)
    assert controller.start() is None
    assert controller.server is not None
    assert controller.port == controller.server.sockets[0].getsockname()[1] > 0
    assert isinstance(controller.smtpd, SMTP)
    assert send(controller) == {}
    (thread,) = handler.threads
    assert thread.daemon
    assert thread is not threading.main_thread()
    assert controller.stop() is None
    assert not thread.is_alive()
    assert refused(controller)
    assert (controller.server, controller.smtpd) == (None, None)
    assert loop.is_closed()


def test_the_loop_is_uvloops_unless_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    controller = Controller(Keeps(), port=0)
    assert isinstance(controller.loop, uvloop.Loop)
    controller.loop.close()
    monkeypatch.setitem(sys.modules, "uvloop", None)
    controller = Controller(Keeps(), port=0)
    assert isinstance(controller.loop, asyncio.SelectorEventLoop)
    with running(controller):
        assert send(controller) == {}


def test_a_controller_that_never_starts_opens_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)  # asyncio's own loop complains if it is left open
    controller = Controller(Keeps(), port=0)
    controller.stop(no_assert=True)
    del controller
    gc.collect()


def test_the_factory_is_called_at_the_start_and_for_each_connection(loop: asyncio.AbstractEventLoop) -> None:
    controller = Counts(Keeps(), port=0, loop=loop)
    with running(controller):
        (tried,) = controller.made
        assert controller.smtpd is tried
        assert tried.transport is None  # no connection to itself, which the handler would see
        with client_of(controller) as client:
            client.noop()
            assert controller.made[1:] == [controller.smtpd]
        with client_of(controller) as client:
            client.noop()
            assert controller.made[2:] == [controller.smtpd]
        assert tried.transport is None


def test_smtp_parameters_reach_the_protocol() -> None:
    controller = Controller(Keeps(), port=0, server_hostname="mx.example.com", data_size_limit=1234)
    with running(controller), client_of(controller) as client:
        assert client.ehlo("example.com")[0] == 250
        assert client.esmtp_features["size"] == "1234"
        assert "smtputf8" in client.esmtp_features
        assert client.ehlo_resp.splitlines()[0] == b"mx.example.com"
    controller = Controller(Keeps(), port=0, enable_SMTPUTF8=False)
    with running(controller), client_of(controller) as client:
        client.ehlo("example.com")
        assert "smtputf8" not in client.esmtp_features


def test_server_kwargs_still_work_and_are_outdone() -> None:
    given = {"timeout": 400, "hostname": "one"}
    with pytest.warns(DeprecationWarning, match=r"server_kwargs will be removed in version 2\.0") as caught:
        controller = Controller(Keeps(), timeout=200, server_kwargs=given, server_hostname="two")
    assert caught[0].filename == __file__
    assert controller.SMTP_kwargs == {"timeout": 200, "hostname": "two", "enable_SMTPUTF8": True}
    assert given == {"timeout": 400, "hostname": "one"}
    with pytest.warns(DeprecationWarning, match="server_kwargs"):
        controller = Controller(Keeps(), server_kwargs={"enable_SMTPUTF8": False})
    assert controller.SMTP_kwargs == {"enable_SMTPUTF8": False}


def test_it_starts_again_at_its_address() -> None:
    controller = Controller(Keeps(), port=0)
    with running(controller):
        port, first = controller.port, controller.loop
        assert send(controller) == {}
    with running(controller):
        assert controller.port == port
        assert controller.loop is not first
        assert send(controller) == {}


def test_a_given_loop_serves_once(loop: asyncio.AbstractEventLoop) -> None:
    controller = Controller(Keeps(), port=0, loop=loop)
    with running(controller):
        assert send(controller) == {}
    with pytest.raises(RuntimeError, match="closed"):
        controller.start()
    controller.stop()


def test_it_runs_once_at_a_time() -> None:
    controller = Controller(Keeps(), port=0)
    with pytest.raises(AssertionError, match="SMTP daemon not running"):
        controller.stop()
    with running(controller):
        with pytest.raises(AssertionError, match="SMTP daemon already running"):
            controller.start()
        assert send(controller) == {}
    with pytest.raises(AssertionError, match="SMTP daemon not running"):
        controller.stop()
    controller.stop(no_assert=True)


@on_both_loops
async def test_start_and_stop_may_be_awaited_in_a_running_loop() -> None:
    controller = Controller(Keeps(), port=0)
    await controller.start()
    assert await asyncio.to_thread(send, controller) == {}
    await controller.stop()
    controller.start()  # and need not be
    assert await asyncio.to_thread(send, controller) == {}
    controller.stop()
    assert refused(controller)


def test_what_the_program_ends_by_itself_can_still_be_stopped(loop: asyncio.AbstractEventLoop) -> None:
    controller = Controller(Keeps(), port=0, loop=loop)
    controller.start()
    assert controller._thread is not None
    with left_alone(client_of(controller)) as client:
        client.noop()
        loop.call_soon_threadsafe(controller.cancel_tasks)
        controller._thread.join(DEADLINE)
        assert is_over(client)
    assert loop.is_closed()
    controller.stop()
    assert refused(controller)


def test_stop_cancels_the_tasks_of_the_loop(loop: asyncio.AbstractEventLoop) -> None:
    ended = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.sleep(DEADLINE)
        finally:
            ended.set()

    controller = Controller(Keeps(), port=0, loop=loop)
    with running(controller):
        asyncio.run_coroutine_threadsafe(forever(), loop)
    assert ended.is_set()


def test_what_subclasses_override_is_used(loop: asyncio.AbstractEventLoop) -> None:
    class Own(Controller):
        triggered: bytes = b""

        def _create_server(self) -> Any:
            return self.loop.create_server(self._factory_invoker, host=self.hostname, port=0)

        def _trigger_server(self) -> None:
            assert self.server is not None
            self.port = self.server.sockets[0].getsockname()[1]
            with socket.create_connection((self.hostname, self.port), DEADLINE) as sock:
                self.triggered = sock.recv(1024)

    controller = Own(Keeps(), loop=loop)
    with running(controller):
        assert controller.triggered[:4] == b"220 "
        assert send(controller) == {}
    assert refused(controller)


# --- what start() raises ----------------------------------------------------------------------------------------


def test_a_busy_port_is_told_at_once(loop: asyncio.AbstractEventLoop) -> None:
    with running(first := Controller(Keeps(), port=0)):
        controller = Controller(Keeps(), port=first.port, loop=loop, ready_timeout=DEADLINE)
        began = time.monotonic()
        with pytest.raises(OSError, match="error while attempting to bind on address") as caught:
            controller.start()
        assert time.monotonic() - began < AT_ONCE
        assert caught.value.errno == errno.EADDRINUSE
        assert controller._thread_exception is caught.value
        controller.stop()
        assert send(first) == {}


def test_after_a_busy_port_it_can_start_again() -> None:
    with running(first := Controller(Keeps(), port=0)):
        controller = Controller(Keeps(), port=first.port)
        with pytest.raises(OSError, match="in use"):
            controller.start()
        controller.stop()
    with running(controller):
        assert send(controller) == {}


def test_an_unknown_parameter_is_told_at_the_start(loop: asyncio.AbstractEventLoop) -> None:
    controller = Controller(Keeps(), port=0, loop=loop, this_is_unknown=True)
    with pytest.raises(TypeError, match=r"got an unexpected keyword argument 'this_is_unknown'"):
        controller.start()
    assert controller.smtpd is None
    controller.stop()
    assert refused(controller)


def test_a_factory_must_make_something() -> None:
    class Nothing(Controller):
        def factory(self) -> Any:
            return None

    controller = Nothing(Keeps(), port=0)
    with pytest.raises(RuntimeError, match=r"factory\(\) returned None"):
        controller.start()
    controller.stop()


def test_an_invoker_that_makes_nothing_is_told() -> None:
    class Silent(Controller):
        def _factory_invoker(self) -> asyncio.BaseProtocol:
            self._factory_invoked.set()
            return asyncio.Protocol()

    controller = Silent(Keeps(), port=0)
    with pytest.raises(RuntimeError, match="Unknown Error, failed to init SMTP server"):
        controller.start()
    controller.stop()


def test_a_thread_that_comes_too_late_is_a_timeout() -> None:
    go = threading.Event()

    class Late(Controller):
        def _run(self, ready_event: threading.Event) -> None:
            go.wait(DEADLINE)
            super()._run(ready_event)

    controller = Late(Keeps(), port=0, ready_timeout=0.05)
    with pytest.raises(TimeoutError, match="SMTP server failed to start within allotted time") as caught:
        controller.start()
    assert str(caught.value).endswith(
        "This might happen if the system is too busy. Try increasing the `ready_timeout` parameter."
    )
    threading.Timer(0.05, go.set).start()
    controller.stop()  # of a thread that does not serve yet
    assert controller.server is None


def test_a_factory_that_takes_too_long_is_a_timeout() -> None:
    go = threading.Event()

    class Slow(Controller):
        def factory(self) -> SMTP:
            go.wait(DEADLINE)
            return SMTP(self.handler)

    controller = Slow(Keeps(), port=0, ready_timeout=0.1)
    with pytest.raises(TimeoutError, match="SMTP server started, but not responding within allotted time"):
        controller.start()
    go.set()
    controller.stop()


@pytest.mark.parametrize("name", ["FASTSMTP_CONTROLLER_TIMEOUT", "AIOSMTPD_CONTROLLER_TIMEOUT"])
def test_the_environment_sets_the_timeout(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Controller(Keeps(), ready_timeout=2).ready_timeout == 2.0
    monkeypatch.setenv("AIOSMTPD_CONTROLLER_TIMEOUT", "3")
    monkeypatch.setenv(name, "7.5")
    assert Controller(Keeps(), ready_timeout=2).ready_timeout == 7.5
    for bad in ("soon", "", "nan", "-1", "inf"):
        monkeypatch.setenv(name, bad)
        with pytest.raises(ValueError, match=f'^{name} is "{bad}"; set it to a number of seconds$'):
            Controller(Keeps())


def test_a_factory_that_fails_later_sends_its_client_away(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(Counts):
        def factory(self) -> SMTP:
            if len(self.made) == 1:
                self.made.append(self.made[0])
                raise LookupError("no more")
            return super().factory()

    controller = Fails(Keeps(), port=0)
    with running(controller):
        with pytest.raises(smtplib.SMTPConnectError) as caught:
            client_of(controller)
        assert caught.value.smtp_code == 421
        assert send(controller) == {}
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        "factory() failed, a client is sent away: LookupError: no more"
    ]


@on_both_loops
async def test_a_factory_may_make_any_protocol() -> None:
    class Says(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.write(b"220 hello\r\n")
            transport.close()

    class Other(Controller):
        def factory(self) -> asyncio.BaseProtocol:
            return Says()

    def greeted(controller: Controller) -> bytes:
        with socket.create_connection((controller.hostname, controller.port), DEADLINE) as sock:
            return sock.recv(100)

    controller = Other(Keeps(), port=0)
    with running(controller):
        assert greeted(controller) == b"220 hello\r\n"
    async with Other(Keeps(), port=0) as controller:
        assert await asyncio.to_thread(greeted, controller) == b"220 hello\r\n"
        assert isinstance(controller.smtpd, Says)


# --- stop() -----------------------------------------------------------------------------------------------------


def test_an_idle_client_is_not_waited_for(loop: asyncio.AbstractEventLoop) -> None:
    controller = Controller(Keeps(), port=0, loop=loop, grace=DEADLINE)
    controller.start()
    with left_alone(client_of(controller)) as client:
        client.ehlo("example.com")
        began = time.monotonic()
        controller.stop()
        assert time.monotonic() - began < AT_ONCE
        assert is_over(client)


def test_a_message_under_way_is_finished(loop: asyncio.AbstractEventLoop) -> None:
    handler = Keeps()
    controller = Controller(handler, port=0, loop=loop, grace=DEADLINE)
    controller.start()
    with left_alone(client_of(controller)) as client:
        to_data(client)
        client.send(CONTENT)
        with stopping(controller):
            client.send("\r\n.\r\n")
            assert client.getreply() == (250, b"OK")
            assert is_over(client)
    assert len(handler.contents) == 1


def test_a_hook_under_way_is_finished(loop: asyncio.AbstractEventLoop) -> None:
    handler = Waits()
    controller = Controller(handler, port=0, loop=loop, grace=DEADLINE)
    controller.start()
    with left_alone(client_of(controller)) as client:
        to_data(client)
        client.send(f"{CONTENT}\r\n.\r\n")
        assert handler.entered.wait(DEADLINE)
        with stopping(controller):
            handler.let_go()
            assert client.getreply() == (250, b"kept")
    assert not handler.cancelled


@pytest.mark.parametrize("grace", [0.0, 0.1])
def test_what_outlives_its_grace_is_cut(grace: float, loop: asyncio.AbstractEventLoop) -> None:
    handler = Waits()
    controller = Controller(handler, port=0, loop=loop, grace=DEADLINE)
    controller.start()
    with left_alone(client_of(controller)) as client:
        to_data(client)
        client.send(f"{CONTENT}\r\n.\r\n")
        assert handler.entered.wait(DEADLINE)
        began = time.monotonic()
        controller.stop(grace=grace)
        assert grace <= time.monotonic() - began < grace + AT_ONCE
        assert is_over(client)  # but it is not told that the message was taken
    assert handler.cancelled


def test_stop_ends_a_tls_handshake(loop: asyncio.AbstractEventLoop) -> None:
    context, _ = tls_contexts()
    controller = Counts(Keeps(), port=0, loop=loop, ssl_context=context, grace=DEADLINE)
    controller.start()
    with socket.create_connection((controller.hostname, controller.port), DEADLINE) as sock:
        await_true(lambda: len(controller.made) == 2, "the connection is accepted")
        began = time.monotonic()
        controller.stop()
        assert time.monotonic() - began < AT_ONCE
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""
    gc.collect()  # an open transport would complain


def test_tls_comes_before_the_greeting(loop: asyncio.AbstractEventLoop) -> None:
    context, trusting = tls_contexts()
    handler = Keeps()
    controller = Controller(handler, "127.0.0.1", 0, loop, ssl_context=context)
    with (
        running(controller),
        smtplib.SMTP_SSL("localhost", controller.port, timeout=DEADLINE, context=trusting) as client,
    ):
        assert client.sendmail("a@example.com", ["b@example.com"], CONTENT) == {}
        client.ehlo("example.com")
        assert "starttls" not in client.esmtp_features
    assert len(handler.contents) == 1


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_the_proxy_header_comes_before_tls(
    unix: bool, tmp_path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    handler = Proxied()
    context, trusting = tls_contexts()
    settings: dict[str, Any] = {"loop": loop, "ssl_context": context, "proxy_protocol_timeout": DEADLINE}
    path = tmp_path / "smtp"
    controller = (
        UnixSocketController(handler, path, **settings)
        if unix
        else Controller(handler, "127.0.0.1", 0, **settings)
    )
    with running(controller), socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(str(path) if unix else (controller.hostname, controller.port))
        sock.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 25\r\n")
        with trusting.wrap_socket(sock, server_hostname="localhost") as secured:
            assert secured.recv(1024)[:4] == b"220 "
    assert handler.sources == ["192.0.2.7"]
    assert not path.exists()


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
def test_stop_ends_a_connection_without_its_proxy_header(tls: bool, loop: asyncio.AbstractEventLoop) -> None:
    context = tls_contexts()[0] if tls else None
    controller = Counts(
        Proxied(), port=0, loop=loop, ssl_context=context, proxy_protocol_timeout=DEADLINE, grace=DEADLINE
    )
    controller.start()
    server: Any = controller.server
    with socket.create_connection((controller.hostname, controller.port), DEADLINE) as sock:
        sock.sendall(b"PROXY ")
        await_true(lambda: server.arrivals if tls else controller.smtpd.transport, "it is accepted")
        began = time.monotonic()
        controller.stop()
        assert time.monotonic() - began < AT_ONCE
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) in (b"", b"421 4.3.2 Service shutting down; closing connection\r\n")


# --- addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hostname", ["", "localhost", "127.0.0.1"])
def test_port_zero_is_one_port_on_every_address(hostname: str, loop: asyncio.AbstractEventLoop) -> None:
    controller = Controller(Keeps(), hostname, 0, loop)
    with running(controller):
        assert controller.server is not None
        assert {sock.getsockname()[1] for sock in controller.server.sockets} == {controller.port}
        assert send(controller) == {}


def test_localhost_is_what_this_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(number: int) -> Callable[..., Any]:
        def make(*arguments: int) -> Any:
            assert arguments == (socket.AF_INET6, socket.SOCK_STREAM)
            raise OSError(number, "no")

        return make

    assert Controller(Keeps()).hostname == get_localhost()
    assert Controller(Keeps(), "").hostname == ""
    for number in IP6_IS.NO:
        monkeypatch.setattr(module, "makesock", fails(number))
        assert get_localhost() == "127.0.0.1"
    monkeypatch.setattr(module, "makesock", fails(errno.EADDRINUSE))
    assert get_localhost() == "::1"
    monkeypatch.setattr(module, "makesock", fails(errno.EFAULT))
    with pytest.raises(OSError, match="no"):
        get_localhost()
    monkeypatch.setattr(module, "_has_ipv6", lambda: False)
    assert get_localhost() == "127.0.0.1"


def test_a_unix_socket_is_served_and_its_file_removed(
    tmp_path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    path = tmp_path / "smtp"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    controller = UnixSocketController(Keeps(), path, loop)
    assert controller.unix_socket == str(path)
    with running(controller):
        assert greeting(path)[:4] == b"220 "
    assert not path.exists()


def test_a_file_that_is_no_longer_its_own_is_left(tmp_path: Path) -> None:
    path = tmp_path / "smtp"
    controller = UnixSocketController(Keeps(), path)
    with running(controller):
        with running(second := UnixSocketController(Keeps(), path)):
            controller.stop()
            assert greeting(path)[:4] == b"220 "
        assert second.unix_socket == str(path)
    assert not path.exists()


def test_a_file_is_not_replaced_by_a_socket(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    path = tmp_path / "smtp"
    path.write_text("mine")
    controller = UnixSocketController(Keeps(), path, loop)
    with pytest.raises(OSError, match="in use"):
        controller.start()
    controller.stop()
    assert path.read_text() == "mine"


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_an_abstract_socket_has_no_file(loop: asyncio.AbstractEventLoop) -> None:
    path = f"\0fastsmtp-test-{os.getpid()}-{id(loop)}"
    controller = UnixSocketController(Keeps(), path, loop)
    with running(controller):
        assert greeting(path)[:4] == b"220 "


# --- in one's own loop ------------------------------------------------------------------------------------------


@on_both_loops
async def test_any_controller_serves_in_the_running_loop(tmp_path: Path) -> None:
    for kind in (Controller, UnthreadedController):
        handler = Keeps()
        async with kind(handler, port=0) as controller:
            assert controller.loop is asyncio.get_running_loop()
            assert controller.smtpd is not None
            assert await asyncio.to_thread(send, controller) == {}
        assert handler.threads == [threading.current_thread()]
        assert refused(controller)
        async with controller:
            assert await asyncio.to_thread(send, controller) == {}
    for unix_kind in (UnixSocketController, UnixSocketUnthreadedController):
        async with unix_kind(handler, tmp_path / "smtp"):
            assert (await asyncio.to_thread(greeting, tmp_path / "smtp"))[:4] == b"220 "
        assert not (tmp_path / "smtp").exists()


@on_both_loops
async def test_a_block_that_fails_stops_as_well() -> None:
    controller = Controller(Keeps(), port=0)
    with pytest.raises(LookupError):
        async with controller:
            raise LookupError
    assert refused(controller)


@on_both_loops
async def test_a_thread_can_follow_a_block() -> None:
    async with Controller(Keeps(), port=0) as controller:
        with pytest.raises(AssertionError, match="SMTP daemon already running"):
            controller.start()
        with pytest.raises(AssertionError, match="SMTP daemon not running"):
            controller.stop()
    with running(controller):
        assert controller.loop is not asyncio.get_running_loop()
        assert await asyncio.to_thread(send, controller) == {}


@on_both_loops
async def test_start_and_stop_in_the_running_loop() -> None:
    handler = Keeps()
    controller = UnthreadedController(handler, port=0)
    with pytest.raises(AssertionError, match="SMTP daemon not running"):
        await controller.stop()
    await controller.stop(no_assert=True)
    await controller.start()
    with pytest.raises(AssertionError, match="SMTP daemon already running"):
        await controller.start()
    assert await asyncio.to_thread(send, controller) == {}
    assert handler.threads == [threading.current_thread()]
    other = asyncio.create_task(asyncio.sleep(0.001, "went on"))
    await controller.stop()
    assert refused(controller)
    assert await other == "went on"
    await controller.start()
    assert await asyncio.to_thread(send, controller) == {}
    await controller.stop()


@on_both_loops
async def test_stop_in_the_running_loop_lets_messages_finish() -> None:
    handler = Waits()
    controller = UnthreadedController(handler, port=0)
    await controller.start()
    with left_alone(await asyncio.to_thread(client_of, controller)) as client:
        await asyncio.to_thread(to_data, client)
        client.send(f"{CONTENT}\r\n.\r\n")
        await asyncio.to_thread(handler.entered.wait, DEADLINE)
        stopped = asyncio.create_task(controller.stop(grace=DEADLINE))
        while not await asyncio.to_thread(refused, controller):
            pass
        assert not stopped.done()
        handler.let_go()
        assert await asyncio.to_thread(client.getreply) == (250, b"kept")
        await stopped


@on_both_loops
async def test_what_cannot_start_in_the_running_loop_leaves_nothing() -> None:
    for kind in (Controller, UnthreadedController):
        controller: BaseController = kind(Keeps(), port=0, this_is_unknown=True)
        with pytest.raises(TypeError, match="this_is_unknown"):
            await controller.__aenter__()
        async with kind(Keeps(), port=0) as first:
            controller = kind(Keeps(), port=first.port)
            with pytest.raises(OSError, match="in use"):
                await controller.__aenter__()
        await controller.__aenter__()
        await controller.__aexit__(None, None, None)


@on_both_loops
async def test_another_loop_than_the_given_is_refused() -> None:
    other = asyncio.new_event_loop()
    try:
        controller = UnthreadedController(Keeps(), port=0, loop=other)
        with pytest.raises(RuntimeError, match="another event loop"):
            await controller.start()
    finally:
        other.close()
    controller = UnthreadedController(Keeps(), port=0, loop=asyncio.get_running_loop())
    with pytest.raises(RuntimeError, match=r"already running; use `await controller\.start"):
        controller.begin()
    await controller.start()
    await controller.stop()
    controller = UnthreadedController(Keeps(), port=0)
    unused = controller.loop
    async with controller:
        assert unused.is_closed()


# --- in a loop that the program runs ----------------------------------------------------------------------------


def test_begin_and_end_around_a_loop_that_runs_in_between(loop: asyncio.AbstractEventLoop) -> None:
    controller = UnthreadedController(Keeps(), port=0, loop=loop)
    controller.begin()
    assert not loop.is_running()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        with client_of(controller) as client:
            assert client.helo("example.com")[0] == 250
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE)
    assert not controller.ended.is_set()
    controller.end()
    assert controller.ended.is_set()
    assert refused(controller)
    with pytest.raises(AssertionError, match="SMTP daemon not running"):
        controller.end()


def test_end_in_a_loop_that_goes_on(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    controller = UnixSocketUnthreadedController(Keeps(), tmp_path / "smtp", loop)
    controller.begin()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        assert greeting(tmp_path / "smtp")[:4] == b"220 "
        loop.call_soon_threadsafe(controller.end)
        assert controller.ended.wait(DEADLINE)
        assert loop.is_running()
        assert not (tmp_path / "smtp").exists()
    finally:
        loop.call_soon_threadsafe(controller.cancel_tasks)
        thread.join(DEADLINE)
    assert not loop.is_closed()


def test_cancel_tasks_may_leave_the_loop_running(loop: asyncio.AbstractEventLoop) -> None:
    controller = UnthreadedController(Keeps(), port=0, loop=loop)

    async def main() -> str:
        task = loop.create_task(asyncio.sleep(DEADLINE))
        loop.call_soon(controller.cancel_tasks, False)
        with pytest.raises(asyncio.CancelledError):
            await task
        return "went on"

    assert loop.run_until_complete(main()) == "went on"


def test_one_controller_serves_in_one_loop_after_another() -> None:
    controller = UnthreadedController(Keeps(), port=0)

    async def serve() -> asyncio.AbstractEventLoop:
        await controller.start()
        assert await asyncio.to_thread(send, controller) == {}
        await controller.stop()
        return controller.loop

    first = asyncio.run(serve())
    second = asyncio.run(serve())
    assert first is not second
    controller.begin()
    assert controller.loop not in (first, second)
    controller.end()
    controller.loop.close()


def test_begin_raises_what_is_wrong(loop: asyncio.AbstractEventLoop) -> None:
    controller = UnthreadedController(Keeps(), port=0, loop=loop, this_is_unknown=True)
    with pytest.raises(TypeError, match="this_is_unknown"):
        controller.begin()
