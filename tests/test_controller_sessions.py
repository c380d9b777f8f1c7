"""Other people's clients against a ``Controller``: from where they come by PROXY, and who they are by AUTH."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import smtplib
import socket
import threading
from collections.abc import Iterator
from itertools import product
from typing import Any

import aiosmtplib
import pytest
from controllers import (
    CLIENTS,
    CREDENTIALS,
    DOTS,
    HEADERS,
    ME,
    MESSAGE,
    MESSAGES,
    OCTETS,
    PASSWORD,
    PATIENCE,
    SOURCES,
    TARGETS,
    USER,
    YOU,
    Keeps,
    Serve,
    Served,
    Way,
    aiosmtplib_client,
    aiosmtplib_login,
    each_client,
    smtplib_client,
    smtplib_login,
    swaks,
)

from fastsmtp.proxy_protocol import V2_SIGNATURE

# --- PROXY --------------------------------------------------------------------------------------------------


def test_the_peer_is_the_proxy_and_the_source_its_client(serve: Serve) -> None:
    handler = Keeps()
    way = Way("starttls", "PLAIN", 1)
    with serve(handler, way) as served, smtplib_client(served, way) as client:
        assert client.sock is not None
        own = client.sock.getsockname()
        smtplib_login(client, "PLAIN")
        client.sendmail(ME, YOU, MESSAGE)
    (kept,) = handler.kept
    assert (kept.peer, kept.source, kept.auth_data) == (own, SOURCES[1], ("PLAIN", CREDENTIALS))
    (header,) = handler.headers
    assert (str(header.dst_addr), header.dst_port) == (TARGETS[1], 25)


@pytest.mark.parametrize("tls_way", ["", "starttls", "implicit"])
@pytest.mark.parametrize(
    ("header", "source"),
    [
        (b"PROXY UNKNOWN\r\n", (None, None)),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\n", ("2001:db8::7", 1)),
        (V2_SIGNATURE + b"\x20\x00\x00\x00", (None, None)),  # LOCAL: a balancer that looks whether we live
        (
            V2_SIGNATURE + b"\x21\x11\x00\x12\xc0\x00\x02\x07\xc6\x33\x64\x01\x9c\x47\x00\x19\x05\x00\x03abc",
            SOURCES[1],
        ),
    ],
    ids=["UNKNOWN", "TCP6", "LOCAL", "vectors"],
)
def test_headers_of_other_kinds(
    serve: Serve, tls_way: str, header: bytes, source: tuple[str | None, int | None]
) -> None:
    handler = Keeps()
    way = Way(tls_way, "", 2)
    with serve(handler, way) as served, smtplib_client(served, way, header) as client:
        assert client.sendmail(ME, YOU, DOTS) == {}
    assert handler.contents == [DOTS]
    (data,) = handler.headers
    assert (data.src_addr and str(data.src_addr), data.src_port) == source
    assert bytes(data.whole_raw) == header
    if b"abc" in header:
        assert data.tlv is not None
        assert data.tlv.UNIQUE_ID == b"abc"


@contextlib.contextmanager
def balancer(served: Served, header: bytes) -> Iterator[Served]:
    """Takes one client to the server, and puts a header in one piece with the first that the client says."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(PATIENCE)

    def carry(source: socket.socket, target: socket.socket, first: bytes = b"") -> None:
        with contextlib.suppress(OSError):
            while octets := source.recv(1 << 16):
                target.sendall(first + octets)
                first = b""
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def balance() -> None:
        client, _ = listener.accept()
        with client, served.dial() as server:
            back = threading.Thread(target=carry, args=(server, client))
            back.start()
            carry(client, server, header)
            back.join()

    thread = threading.Thread(target=balance)
    thread.start()
    try:
        with listener:
            yield Served(served.tls, served.folder, listener.getsockname())
            thread.join(PATIENCE)
    finally:
        assert not thread.is_alive()


@pytest.mark.parametrize("version", [1, 2])
@each_client
def test_a_header_may_come_in_one_piece_with_the_first_octets_of_tls(
    serve: Serve, client: str, version: int
) -> None:
    handler = Keeps()
    with (
        serve(handler, Way("implicit", "PLAIN", version)) as served,
        balancer(served, HEADERS[version]) as there,
    ):
        CLIENTS[client](there, Way("implicit", "PLAIN"), MESSAGES[client])
    assert handler.contents == MESSAGES[client]
    assert {kept.source for kept in handler.kept} == {SOURCES[version]}
    assert {kept.auth_data for kept in handler.kept} == {("PLAIN", CREDENTIALS)}


def test_a_handler_may_refuse_a_header(serve: Serve) -> None:
    class Refuses(Keeps):
        async def handle_PROXY(self, *arguments: Any) -> bool:
            return False

    handler = Refuses()
    with serve(handler, Way(proxy=1)) as served:
        with pytest.raises(smtplib.SMTPServerDisconnected):
            smtplib_client(served, Way(proxy=1))
        code, said = swaks(served, Way(proxy=1), MESSAGE)
    assert code != 0
    assert "<-" not in said
    assert handler.kept == []


# --- AUTH ---------------------------------------------------------------------------------------------------


MECHANISMS = ["PLAIN", "LOGIN"]


@pytest.mark.parametrize(
    "way", [Way(*parts) for parts in product(("", "starttls", "implicit"), MECHANISMS)], ids=str
)
def test_a_wrong_password_is_refused_and_the_right_one_taken_after_it(serve: Serve, way: Way) -> None:
    handler = Keeps()

    async def by_aiosmtplib() -> None:
        async with aiosmtplib_client(served, way) as client:
            with pytest.raises(aiosmtplib.SMTPAuthenticationError) as refusal:
                await aiosmtplib_login(client, way.auth, "wrong")
            assert refusal.value.code == 535
            await aiosmtplib_login(client, way.auth)
            await client.sendmail(ME, [YOU], OCTETS)

    with serve(handler, way) as served:
        with smtplib_client(served, way) as client:
            for password in ("wrong", "", "correct horse "):
                with pytest.raises(smtplib.SMTPAuthenticationError) as refusal:
                    smtplib_login(client, way.auth, password)
                assert refusal.value.smtp_code == 535
            smtplib_login(client, way.auth)
            assert client.docmd("AUTH", "PLAIN")[0] == 503
            client.sendmail(ME, YOU, DOTS)
        asyncio.run(by_aiosmtplib())
        code, said = swaks(served, way, MESSAGE, password="wrong")
        assert (code, "535 5.7.8 Authentication credentials invalid" in said) == (28, True), said
    assert handler.contents == [DOTS, OCTETS]
    assert {kept.auth_data for kept in handler.kept} == {(way.auth, CREDENTIALS)}


@pytest.mark.parametrize("way", [Way("starttls", "PLAIN"), Way("implicit", "PLAIN")], ids=str)
def test_nobody_sends_without_auth_where_it_is_required(serve: Serve, way: Way) -> None:
    handler = Keeps()
    without = way._replace(auth="")

    async def by_aiosmtplib() -> None:
        async with aiosmtplib_client(served, without) as client:
            with pytest.raises(aiosmtplib.SMTPSenderRefused) as refusal:
                await client.sendmail(ME, [YOU], MESSAGE)
            assert refusal.value.code == 530

    with serve(handler, way) as served:
        with smtplib_client(served, without) as client:
            with pytest.raises(smtplib.SMTPSenderRefused) as refusal:
                client.sendmail(ME, YOU, MESSAGE)
            assert refusal.value.smtp_code == 530
            smtplib_login(client, "PLAIN")
            client.sendmail(ME, YOU, MESSAGE)
        asyncio.run(by_aiosmtplib())
        code, said = swaks(served, without, MESSAGE)
        assert (code, "530 5.7.0 Authentication required" in said) == (23, True), said
    assert handler.contents == [MESSAGE]


def test_a_password_is_asked_for_only_under_tls(serve: Serve) -> None:
    handler = Keeps()
    way = Way("starttls", "PLAIN")
    with serve(handler, way) as served, smtplib_client(served) as client:
        client.ehlo()
        assert "auth" not in client.esmtp_features
        with pytest.raises(smtplib.SMTPNotSupportedError):
            client.login(USER, PASSWORD)
        with pytest.raises(smtplib.SMTPSenderRefused) as refusal:
            client.sendmail(ME, YOU, MESSAGE)
        assert (refusal.value.smtp_code, refusal.value.smtp_error) == (
            530,
            b"Must issue a STARTTLS command first",
        )
        client.starttls(context=served.tls.client)
        client.ehlo()
        assert "starttls" not in client.esmtp_features
        assert client.login(USER, PASSWORD, initial_response_ok=False)[0] == 235
        client.sendmail(ME, YOU, MESSAGE)
    assert handler.contents == [MESSAGE]


@pytest.mark.parametrize("initial", [True, False])
def test_auth_callback(serve: Serve, initial: bool) -> None:
    asked: list[tuple[str, bytes, bytes]] = []

    def callback(mechanism: str, login: bytes, password: bytes) -> bool:
        asked.append((mechanism, login, password))
        return mechanism == "LOGIN"

    handler = Keeps()
    way = Way("implicit")
    with serve(handler, way, auth_callback=callback) as served, smtplib_client(served, way) as client:
        client.login(USER, PASSWORD, initial_response_ok=initial)  # tries PLAIN before LOGIN
        client.sendmail(ME, YOU, MESSAGE)
    assert asked == [("PLAIN", *CREDENTIALS), ("LOGIN", *CREDENTIALS)]
    assert handler.kept[0].authenticated


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_no_log_tells_a_clients_password(
    serve: Serve, mechanism: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    way = Way("starttls", mechanism)
    with serve(Keeps(), way) as served:
        for client, send in CLIENTS.items():
            send(served, way, MESSAGES[client])
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "AUTH" in told
    encoded = [base64.b64encode(text.encode()).decode() for text in (PASSWORD, f"\0{USER}\0{PASSWORD}")]
    assert not any(secret in told for secret in (PASSWORD, *encoded))
