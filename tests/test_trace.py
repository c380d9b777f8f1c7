"""Trace lines as RFC 5321 4.4 has them, whatever the client said."""

import re
import time
import timeit
from email import message_from_bytes
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp.sinks.trace import Trace, delivered_to, return_path, separator

QUEUE_ID = "1763638980.M123456P4711Q12"


def session(**facts: Any) -> Any:
    return SimpleNamespace(
        **{
            "peer": ("192.0.2.7", 40000),
            "host_name": "client.example",
            "extended_smtp": True,
            "tls": False,
            "authenticated": False,
        }
        | facts
    )


def envelope(**facts: Any) -> Any:
    return SimpleNamespace(
        **{"mail_from": "ann@a.example", "rcpt_tos": ["ben@b.example"], "smtp_utf8": False} | facts
    )


def received(session: Any, envelope: Any, hostname: str = "mx.example") -> str:
    line = Trace(hostname).received(session, envelope, QUEUE_ID)
    assert line.endswith(b"\r\n")
    return line[:-2].decode()


def head(trace: Trace, session: Any, envelope: Any, recipients: list[str]) -> bytes:
    """All trace lines, as a file begins with them."""
    received = trace.received(session, envelope, QUEUE_ID)
    return return_path(envelope.mail_from) + delivered_to(recipients) + received


DATE = r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d \+0000"


def test_the_head_has_return_path_first_then_delivered_to_then_received() -> None:
    lines = (
        head(Trace("mx.example"), session(), envelope(), ["ben@b.example", "eve@b.example"])
        .decode()
        .split("\r\n")
    )
    assert lines[:5] == [
        "Return-Path: <ann@a.example>",
        "Delivered-To: ben@b.example",
        "Delivered-To: eve@b.example",
        "Received: from client.example ([192.0.2.7])",
        f"\tby mx.example with ESMTP id {QUEUE_ID}",
    ]
    assert re.fullmatch(rf"\tfor <ben@b\.example>; {DATE}", lines[-2])
    assert lines[-1] == ""


def test_a_mail_library_reads_what_was_written() -> None:
    message = message_from_bytes(head(Trace("mx.example"), session(), envelope(), ["ben@b.example"]))
    assert message.keys() == ["Return-Path", "Delivered-To", "Received"]
    assert not message.defects
    date = parsedate_to_datetime(message["Received"].rpartition(";")[2])
    assert date.utcoffset() is not None
    assert abs(date.timestamp() - time.time()) < 60


@pytest.mark.parametrize(
    ("facts", "utf8", "protocol"),
    [
        ({"extended_smtp": False}, False, "SMTP"),
        ({}, False, "ESMTP"),
        ({"tls": True}, False, "ESMTPS"),
        ({"authenticated": True}, False, "ESMTPA"),
        ({"tls": True, "authenticated": True}, False, "ESMTPSA"),
        ({}, True, "UTF8SMTP"),
        ({"tls": True}, True, "UTF8SMTPS"),
        ({"authenticated": True}, True, "UTF8SMTPA"),
        ({"tls": True, "authenticated": True}, True, "UTF8SMTPSA"),
    ],
)
def test_the_protocol_is_a_registered_one(facts: dict[str, bool], utf8: bool, protocol: str) -> None:
    assert f" with {protocol} id " in received(session(**facts), envelope(smtp_utf8=utf8))


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        (("192.0.2.7", 1), "client.example ([192.0.2.7])"),
        (("2001:db8::7", 1, 0, 0), "client.example ([IPv6:2001:db8::7])"),
        (("fe80::1%eth0", 1, 0, 2), "client.example ([IPv6:fe80::1])"),
        ("", "client.example"),
        ("/run/client", "client.example"),
        (None, "client.example"),
    ],
)
def test_the_peer_is_an_address_literal_or_left_out(peer: object, source: str) -> None:
    assert received(session(peer=peer), envelope()).startswith(f"Received: from {source}\r\n\tby mx.example ")


@pytest.mark.parametrize(
    ("helo", "shown"),
    [
        (None, "unknown"),
        ("[192.0.2.9]", "[192.0.2.9]"),
        ("[IPv6:::1]", "[IPv6:::1]"),
        ("under_score", "under_score"),
        ("a b", "a?b"),
        ("evil) by victim with ESMTP id 1; x (", "evil??by?victim?with?ESMTP?id?1??x??"),
        ("a\r\nX-Evil: 1", "a??X-Evil:?1"),
        ("bücher.example", "b?cher.example"),
        ("x" * 3000, "x" * 255),
    ],
)
def test_a_hello_name_cannot_say_more_than_a_name(helo: str | None, shown: str) -> None:
    assert received(session(host_name=helo), envelope()).startswith(
        f"Received: from {shown} ([192.0.2.7])\r\n"
    )


def test_recipients_are_named_only_when_there_is_just_one() -> None:
    assert "\tfor <ben@b.example>; " in received(session(), envelope())
    line = received(session(), envelope(rcpt_tos=["ben@b.example", "eve@b.example"]))
    assert "ben" not in line
    assert "eve" not in line


def test_the_null_path_and_addresses_in_utf8() -> None:
    assert return_path("<>") == b"Return-Path: <>\r\n"
    assert return_path("jörg@bücher.example") == "Return-Path: <jörg@bücher.example>\r\n".encode()
    assert delivered_to(["用户@例子.example"]) == "Delivered-To: 用户@例子.example\r\n".encode()


@given(
    helo=st.none() | st.text(),
    mail_from=st.text(),
    rcpt_tos=st.lists(st.text(), min_size=1, max_size=3),
    ip=st.text(),
    hostname=st.text(min_size=1),
    long=st.sampled_from([1, 1000]),
)
def test_nothing_said_can_begin_a_line_or_make_a_long_one(
    helo: str | None, mail_from: str, rcpt_tos: list[str], ip: str, hostname: str, long: int
) -> None:
    rcpt_tos = [rcpt * long for rcpt in rcpt_tos]
    octets = head(
        Trace(hostname * long),
        session(host_name=helo and helo * long, peer=(ip * long, 1)),
        envelope(mail_from=mail_from * long, rcpt_tos=rcpt_tos, smtp_utf8=True),
        rcpt_tos,
    )
    assert octets.endswith(b"\r\n")
    lines = octets.removesuffix(b"\r\n").split(b"\r\n")
    fields = [line.partition(b":")[0] for line in lines if not line.startswith(b"\t")]
    assert fields == [b"Return-Path", *[b"Delivered-To"] * len(rcpt_tos), b"Received"]
    for line in lines:
        assert len(line) <= 998
        assert not set(line) & ({*range(0x20), 0x7F} - {0x09})
        line.decode()


@pytest.mark.parametrize(
    ("content", "between"),
    [
        (b"Subject: test\r\n", b""),
        (b"Subject : test\r\n", b""),
        (b"x:", b""),
        (b"X" * 900 + b":\r\n", b""),
        (b"\r\ntext\r\n", b""),
        (b"\ntext\n", b""),
        (b"", b"\r\n"),
        (b"text\r\n", b"\r\n"),
        (b"text with: a colon\r\n", b"\r\n"),
        (b"   Toner low on unit 3.\r\n", b"\r\n"),
        (b"\t(added by the client); Mon, 1 Jan 2001 00:00:00 +0000\r\nSubject: x\r\n", b"\r\n"),
        (b": text\r\n", b"\r\n"),
        ("Grüße: text\r\n".encode(), b"\r\n"),
        (b"\0: text\r\n", b"\r\n"),
        (b"\rSubject: x\r\n", b"\r\n"),
        (b"Sub\rject: x\r\n", b"\r\n"),
        (b"From ann@a.example Thu Nov 20 11:43:00 2025\r\nSubject: x\r\n", b"X-Mailbox-Line: "),
        (b">From ann@a.example\nSubject: x\n", b"X-Mailbox-Line: "),
        (b"From: ann@a.example\r\n", b""),
        (b"From : ann@a.example\r\n", b""),
        (b"From now on we meet at noon.\r\n", b"\r\n"),
        (b"From now on\r\n\r\nSubject: x\r\n", b"\r\n"),
        (b"From now on\r\n Subject: x\r\n", b"\r\n"),
        (b">>From a\r\nSubject: x\r\n", b"\r\n"),
    ],
)
def test_what_stands_between_trace_lines_and_content(content: bytes, between: bytes) -> None:
    assert separator(content) == between


def test_a_head_costs_microseconds() -> None:
    trace, s, e = Trace("mx.example"), session(), envelope()
    best = min(timeit.repeat(lambda: head(trace, s, e, e.rcpt_tos), number=1000, repeat=5)) / 1000
    print(f"\na trace head costs {best * 1e6:.1f} us")
    assert best < 100e-6  # 4 us on the machine it was written on; the margin is for a loaded one
