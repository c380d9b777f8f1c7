"""Limits of controllers that aiosmtpd does not have, so that no client fills the memory or occupies the loop."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from controllers import PATIENCE

from fastsmtp.controller import Controller
from fastsmtp.handlers import Sink


@pytest.fixture
def client() -> Iterator[socket.socket]:
    """A client that was greeted by a controller."""
    controller = Controller(Sink(), hostname="127.0.0.1", port=0)
    controller.start()
    try:
        assert controller.server is not None
        address = controller.server.sockets[0].getsockname()
        with socket.create_connection(address, timeout=PATIENCE) as sock:
            assert sock.recv(4096).startswith(b"220 ")
            yield sock
    finally:
        controller.stop()


def test_a_message_has_20000_recipients(client: socket.socket) -> None:
    replies = client.makefile("rb")
    client.sendall(b"HELO x\r\nMAIL FROM:<a@b.example>\r\n")
    assert [replies.readline()[:3] for _ in range(2)] == [b"250", b"250"]
    for _ in range(20):
        client.sendall(b"RCPT TO:<c@d.example>\r\n" * 1000)
        assert {replies.readline()[:3] for _ in range(1000)} == {b"250"}
    client.sendall(b"RCPT TO:<c@d.example>\r\n")
    assert replies.readline().startswith(b"452 4.5.3 ")


@pytest.mark.parametrize("junk", [b"\n", b"\r\n", b"NOOP\r\n", b"RSET\r\n"])
def test_a_connection_without_a_message_ends_after_1000_commands(client: socket.socket, junk: bytes) -> None:
    client.sendall(junk * 1100)
    replies = client.makefile("rb").read().splitlines()
    assert len(replies) == 1001
    assert replies[-1].startswith(b"421 4.7.0 ")


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\0\x01\0\x19",
    ],
    ids=["version 1", "version 2"],
)
def test_a_proxy_header_that_nobody_expects_ends_the_connection(client: socket.socket, header: bytes) -> None:
    client.sendall(header + b"EHLO x\r\nMAIL FROM:<a@b.example>\r\n")
    replies = client.makefile("rb").read().splitlines()
    assert replies[-1].startswith(b"421 4.7.0 ")
    assert all(reply.startswith(b"500") for reply in replies[:-1])


@pytest.mark.parametrize("mechanism", [b"PLAIN", b"LOGIN"])
def test_a_client_that_ends_before_it_is_challenged_is_not_waited_for(mechanism: bytes) -> None:
    controller = Controller(
        Sink(), hostname="127.0.0.1", port=0, auth_require_tls=False, auth_callback=lambda *_: True
    )
    controller.start()
    try:
        assert controller.server is not None
        for _ in range(5):
            with socket.create_connection(controller.server.sockets[0].getsockname(), PATIENCE) as sock:
                sock.sendall(b"EHLO x\r\nAUTH " + mechanism + b"\r\n")
                sock.shutdown(socket.SHUT_WR)
                assert sock.makefile("rb").read().startswith(b"220 ")  # to its end
    finally:
        controller.stop()
