"""Listening sockets: real ports and real socket files."""

import os
import socket
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp import sockets
from fastsmtp.errors import ConfigError
from fastsmtp.sockets import Address, Listener, ListenError, bind, close, parse


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")


@pytest.fixture
def opened() -> Iterator[list[Listener]]:
    listeners: list[Listener] = []
    yield listeners
    close(listeners)


def _port(listener: Listener) -> int:
    return int(listener.address.rpartition(":")[2])


def _answers(address: str) -> bool:
    """Whether a client reaches the listener at this address."""
    if address.startswith("unix:"):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        target: object = address.removeprefix("unix:")
    else:
        host, _, port = address.rpartition(":")
        client = socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET, socket.SOCK_STREAM)
        target = (host.strip("[]"), int(port))
    with client:
        client.settimeout(5)
        return client.connect_ex(target) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "address"),
    [
        ("127.0.0.1:25", Address("127.0.0.1", 25, None, False)),
        ("mx.example:2525", Address("mx.example", 2525, None, False)),
        (":25", Address("", 25, None, False)),
        ("*:25", Address("", 25, None, False)),
        ("[::1]:25", Address("::1", 25, None, False)),
        ("[fe80::1%lo]:25", Address("fe80::1%lo", 25, None, False)),
        ("tls:[::]:465", Address("::", 465, None, True)),
        ("unix:/run/a b:c", Address("", 0, "/run/a b:c", False)),
        ("tls:unix:x.sock", Address("", 0, "x.sock", True)),
    ],
)
def test_parse_takes_every_form(spec: str, address: Address) -> None:
    assert parse(spec) == address


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("8025", '"8025" is not an address; write HOST:PORT, [V6]:PORT or unix:PATH'),
        ("localhost", '"localhost" is not an address'),
        ("localhost:", '"localhost:" is not an address'),
        ("localhost:smtp", '"localhost:smtp" is not an address'),
        ("local host:25", '"local host:25" is not an address'),
        ("a:٢٥", '"a:٢٥" is not an address'),
        ("[127.0.0.1]:25", '"[127.0.0.1]:25" is not an address'),
        ("a:-1", '"a:-1" is not an address'),
        ("a:65536", '"a:65536": the port must be at most 65535'),
        ("::1:25", '"::1:25": put an IPv6 address in brackets, such as [::1]:25'),
        ("unix:", '"unix:" names no socket file'),
        ("unix:a\0b", "names no socket file"),
        ("", '"" is not an address'),
    ],
)
def test_parse_says_what_is_wrong(spec: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(spec)
    assert says in str(caught.value)


@given(st.text(max_size=40))
def test_parse_of_any_text_is_an_address_or_one_config_error(spec: str) -> None:
    try:
        address = parse(spec)
    except ConfigError:
        return
    assert parse(("tls:" if address.tls else "") + str(address)) == address


def test_port_zero_reports_the_real_port_and_accepts(opened: list[Listener]) -> None:
    opened += bind(["127.0.0.1:0"], 16)
    [listener] = opened
    assert listener.address == f"127.0.0.1:{listener.socket.getsockname()[1]}"
    assert _port(listener) > 0
    assert not listener.tls
    assert _answers(listener.address)


def test_listeners_do_not_block_in_accept(opened: list[Listener]) -> None:
    opened += bind(["127.0.0.1:0"], 16)
    with pytest.raises(BlockingIOError):
        opened[0].socket.accept()


def test_backlog_is_what_waits_without_accept(opened: list[Listener], tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux refuses exactly beyond the backlog")
    opened += bind([f"unix:{tmp_path}/s"], 2)
    clients = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(4)]
    try:
        for client in clients:
            client.setblocking(False)
        results = [client.connect_ex(f"{tmp_path}/s") == 0 for client in clients]
    finally:
        for client in clients:
            client.close()
    assert results == [True, True, True, False]  # Linux lets one more than the backlog wait


def test_tls_prefix_marks_the_listener_and_not_its_address(opened: list[Listener]) -> None:
    opened += bind(["127.0.0.1:0", "tls:127.0.0.1:0"], 16)
    assert [listener.tls for listener in opened] == [False, True]
    assert opened[1].address.startswith("127.0.0.1:")


@needs_ipv6
def test_every_address_is_both_families_on_one_port(opened: list[Listener]) -> None:
    opened += bind([":0"], 16)
    assert {listener.socket.family for listener in opened} == {socket.AF_INET, socket.AF_INET6}
    assert len({_port(listener) for listener in opened}) == 1
    port = _port(opened[0])
    assert _answers(f"127.0.0.1:{port}")
    assert _answers(f"[::1]:{port}")


@needs_ipv6
def test_an_ipv6_listener_takes_no_ipv4(opened: list[Listener]) -> None:
    opened += bind(["[::]:0"], 16)
    [listener] = opened
    assert listener.address == f"[::]:{_port(listener)}"
    assert _answers(f"[::1]:{_port(listener)}")
    assert not _answers(f"127.0.0.1:{_port(listener)}")


Found = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[object, ...]]


def _name_with(
    monkeypatch: pytest.MonkeyPatch, *found: tuple[socket.AddressFamily, tuple[object, ...]]
) -> None:
    """Gives every host name these addresses: no test may depend on what a resolver says."""

    def getaddrinfo(*_: object, **__: object) -> list[Found]:
        return [(family, socket.SOCK_STREAM, 6, "", address) for family, address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


V4, V6 = socket.AF_INET, socket.AF_INET6
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127/8 on loopback")


@on_linux
def test_a_name_with_several_addresses_gets_one_port_even_if_the_first_choice_is_taken(
    opened: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    _name_with(monkeypatch, (V4, ("127.0.0.1", 0)), (V4, ("127.0.0.2", 0)), (V4, ("127.0.0.1", 0)))
    real = sockets._listen
    with socket.socket() as rival:
        taken: list[int] = []

        def listen(target: sockets._Target, port: int, backlog: int) -> socket.socket:
            sock = real(target, port, backlog)
            if not taken:
                try:
                    rival.bind(("127.0.0.2", sock.getsockname()[1]))
                except OSError:  # somebody else was the rival; the next try has ours
                    sock.close()
                    raise
                rival.listen()
                taken.append(sock.getsockname()[1])
            return sock

        monkeypatch.setattr(sockets, "_listen", listen)
        opened += bind(["mx.example:0"], 16)
    assert [listener.address.partition(":")[0] for listener in opened] == ["127.0.0.1", "127.0.0.2"]
    assert _port(opened[0]) == _port(opened[1]) != taken[0]


def test_a_name_works_where_its_ipv6_address_is_absent(
    opened: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 2001:db8::/32 is for documentation: no machine has it.
    _name_with(monkeypatch, (V6, ("2001:db8::1", 0, 0, 0)), (V4, ("127.0.0.1", 0)))
    opened += bind(["mx.example:0"], 16)
    assert [listener.address.partition(":")[0] for listener in opened] == ["127.0.0.1"]


def test_a_name_of_absent_addresses_only_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _name_with(monkeypatch, (V6, ("2001:db8::1", 0, 0, 0)), (V6, ("2001:db8::2", 0, 0, 0)))
    with pytest.raises(ListenError, match=r"cannot listen on mx\.example:0: "):
        bind(["mx.example:0"], 16)


def test_a_busy_port_is_one_clear_line(opened: list[Listener]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ListenError) as caught:
            bind([f"127.0.0.1:{port}"], 16)
        assert str(caught.value) == (
            f"cannot listen on 127.0.0.1:{port}: address already in use; "
            "stop the other server or choose another --listen"
        )
        with pytest.raises(ListenError, match="choose another --metrics"):
            bind([f"127.0.0.1:{port}"], 16, option="--metrics")


def test_the_same_address_twice_is_told_apart_from_another_server(opened: list[Listener]) -> None:
    opened += bind(["127.0.0.1:0"], 16)
    address = opened[0].address
    close(opened)
    with pytest.raises(ListenError, match=f"{address} has it already; name it once"):
        bind([address, address], 16)


def test_all_or_none(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as busy:
        specs = [f"127.0.0.1:{port}", f"unix:{tmp_path}/s", f"127.0.0.1:{busy.getsockname()[1]}"]
        with pytest.raises(ListenError):
            bind(specs, 16)
    assert not _answers(f"127.0.0.1:{port}")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_spec_is_found_before_anything_is_bound(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='"8025" is not an address'):
        bind([f"unix:{tmp_path}/s", "8025"], 16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("192.0.2.1:0", "cannot listen on 192.0.2.1:0: this machine does not have that address"),
        ("a..b:0", "cannot listen on a..b:0: that is no host name"),
        ("unix:/nosuch/folder/s", "cannot listen on unix:/nosuch/folder/s: its folder does not exist"),
        (f"unix:/tmp/{'x' * 120}", "path too long; choose another --listen"),
    ],
)
def test_an_address_that_cannot_be_had_says_why(spec: str, says: str) -> None:
    with pytest.raises(ListenError) as caught:
        bind([spec], 16)
    assert says in str(caught.value)


def test_a_name_that_does_not_resolve_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> list[Found]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)  # a resolver here may have no network to ask
    with pytest.raises(ListenError) as caught:
        bind(["nosuch.invalid:25"], 16)
    assert str(caught.value) == (
        "cannot listen on nosuch.invalid:25: name or service not known; "
        "correct the host name or give its address"
    )


def test_a_folder_without_the_right_to_write_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # root may write everywhere
    try:
        with pytest.raises(ListenError, match="permission denied; let this user write in its folder"):
            bind([f"unix:{tmp_path}/s"], 16)
    finally:
        if root:
            os.seteuid(0)


def test_a_unix_socket_accepts_and_its_file_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listeners = bind([f"unix:{path}"], 16)
    assert listeners[0].address == f"unix:{path}"
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert _answers(listeners[0].address)
    close(listeners)
    assert not path.exists()


def test_a_socket_file_that_nobody_serves_is_replaced(tmp_path: Path, opened: list[Listener]) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()
    opened += bind([f"unix:{path}"], 16)
    assert _answers(f"unix:{path}")


def test_a_live_socket_is_left_alone(tmp_path: Path, opened: list[Listener]) -> None:
    path = tmp_path / "s"
    opened += bind([f"unix:{path}"], 1)
    with pytest.raises(ListenError, match="address already in use; stop the other server"):
        bind([f"unix:{path}"], 16)
    assert _answers(f"unix:{path}")


@pytest.mark.skipif(sys.platform != "linux", reason="BSD refuses where Linux says that the backlog is full")
def test_a_live_socket_with_a_full_backlog_is_left_alone(tmp_path: Path, opened: list[Listener]) -> None:
    path = tmp_path / "s"
    opened += bind([f"unix:{path}"], 1)
    clients = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
    try:
        for client in clients:
            client.setblocking(False)
            full = client.connect_ex(str(path)) != 0
        assert full
        with pytest.raises(ListenError, match="address already in use"):
            bind([f"unix:{path}"], 16)
        assert path.exists()
    finally:
        for client in clients:
            client.close()


def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("mail")
    with pytest.raises(ListenError, match="the file exists and is no socket; remove it or choose another"):
        bind([f"unix:{path}"], 16)
    assert path.read_text() == "mail"


def test_close_leaves_the_socket_file_of_a_successor(tmp_path: Path, opened: list[Listener]) -> None:
    path = tmp_path / "s"
    old = bind([f"unix:{path}"], 16)
    path.unlink()
    opened += bind([f"unix:{path}"], 16)
    close(old)
    assert _answers(f"unix:{path}")


def test_a_second_close_leaves_the_socket_file_of_a_successor(tmp_path: Path, opened: list[Listener]) -> None:
    path = tmp_path / "s"
    old = bind([f"unix:{path}"], 16)
    close(old)
    successor = bind([f"unix:{path}"], 16)  # a file system may give its file the old inode number
    opened += successor
    [listener] = old
    close([replace(listener, made=successor[0].made)])
    assert _answers(f"unix:{path}")


def test_a_forked_worker_that_closes_leaves_the_socket_file(tmp_path: Path, opened: list[Listener]) -> None:
    opened += bind([f"unix:{tmp_path}/s"], 16)
    child = os.fork()
    if child == 0:
        close(opened)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert _answers(f"unix:{tmp_path}/s")
