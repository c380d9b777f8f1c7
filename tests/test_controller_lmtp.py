"""Other people's clients against a ``Controller`` that serves LMTP: each recipient has a status of its own."""

from __future__ import annotations

import smtplib

import pytest
from controllers import (
    CLEAR,
    CREDENTIALS,
    DOTS,
    HELLO,
    ME,
    OCTETS,
    SOURCES,
    YOU,
    YOUR_FRIEND,
    Keeps,
    Serve,
    Way,
    smtplib_client,
    smtplib_login,
    swaks,
)

from fastsmtp.smtp import SMTP, Envelope, Session

# --- LMTP ---------------------------------------------------------------------------------------------------


class Delivers(Keeps):
    """Gives each recipient a status of its own, and does not know one."""

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("unknown"):
            return "550 5.1.1 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(  # type: ignore[override]
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> list[str]:
        await super().handle_DATA(server, session, envelope)
        return [
            f"452 4.2.2 {address} is full" if address.startswith("full") else f"250 2.0.0 {address} has it"
            for address in envelope.rcpt_tos
        ]


LMTP_WAYS = [CLEAR, Way(unix=True), Way("starttls", "PLAIN"), Way("starttls", "LOGIN", 2, unix=True)]


@pytest.mark.parametrize("way", LMTP_WAYS, ids=str)
def test_lmtp_tells_of_each_recipient(serve: Serve, way: Way) -> None:
    handler = Delivers()
    with serve(handler, way, lmtp=True) as served, smtplib_client(served, way, kind=smtplib.LMTP) as client:
        if way.auth:
            smtplib_login(client, way.auth)
        for message in (DOTS, OCTETS):
            client.ehlo_or_helo_if_needed()
            assert client.mail(ME)[0] == 250
            recipients = (YOU, "unknown@b.example", "full@b.example", YOUR_FRIEND)
            assert [client.rcpt(recipient)[0] for recipient in recipients] == [250, 550, 250, 250]
            replies = [client.data(message), client.getreply(), client.getreply()]
            assert replies == [
                (250, b"2.0.0 you@b.example has it"),
                (452, b"4.2.2 full@b.example is full"),
                (250, b"2.0.0 friend@b.example has it"),
            ]
    assert handler.contents == [DOTS, OCTETS]
    for kept in handler.kept:
        assert kept.rcpt_tos == [YOU, "full@b.example", YOUR_FRIEND]
        assert kept.auth_data == ((way.auth, CREDENTIALS) if way.auth else None)
        assert (kept.source, kept.host_name, kept.tls) == (SOURCES[way.proxy], HELLO, bool(way.tls))


@pytest.mark.parametrize("way", LMTP_WAYS, ids=str)
def test_swaks_by_lmtp(serve: Serve, way: Way) -> None:
    handler = Delivers()
    everyone = f"{YOU},unknown@b.example,full@b.example,{YOUR_FRIEND}"
    with serve(handler, way, lmtp=True) as served:
        code, said = swaks(served, way, DOTS, "--protocol", "LMTP", "--to", everyone)
        assert code == 0, said
    assert handler.contents == [DOTS]
    told = [line for line in said.splitlines() if "has it" in line or "is full" in line]
    assert [line.partition(" ")[2].strip() for line in told] == [
        "250 2.0.0 you@b.example has it",
        "452 4.2.2 full@b.example is full",
        "250 2.0.0 friend@b.example has it",
    ]


@pytest.mark.parametrize("unix", [False, True])
def test_one_status_holds_for_all_recipients(serve: Serve, unix: bool) -> None:
    handler = Keeps()
    with serve(handler, Way(unix=unix), lmtp=True) as served:
        code, said = swaks(served, CLEAR, DOTS, "--protocol", "LMTP")
    assert (code, said.count("250 2.0.0 kept")) == (0, 2), said
    assert handler.contents == [DOTS]


def test_smtplib_lmtp_finds_a_socket_file(serve: Serve) -> None:
    handler = Keeps()
    with (
        serve(handler, Way(unix=True), lmtp=True) as served,
        smtplib.LMTP(served.path, local_hostname=HELLO) as client,
    ):
        assert client.sendmail(ME, YOU, DOTS) == {}
        assert client.sendmail(ME, YOU, OCTETS) == {}
    assert handler.contents == [DOTS, OCTETS]
