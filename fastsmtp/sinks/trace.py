"""Trace: the lines that final delivery puts in front of a message (RFC 5321 4.4).

Knows Return-Path, Delivered-To and Received, and that a client may say anything: nothing of what it said can
begin a line of its own or make one of over 998 octets, and no content can go on where the trace lines end. Refuses to
know where the message goes, and DNS.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastsmtp._envelope import Envelope, Session

_HELO = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}", re.ASCII)
_NOT_HELO = re.compile(r"[^A-Za-z0-9._:\[\]-]")
_NOT_IP = re.compile(r"[^0-9A-Fa-f.:]")
_MAX_ADDRESS = 900  # octets; the grammar allows 256, this keeps a line below 998 whatever comes

# RFC 5322 3.6.8, with the blanks of 4.5 before the colon.
_FIELD = rb"[!-9;-~]+[ \t]*:"
_NEEDS_NO_SEPARATOR = re.compile(rb"%b|\r*\n" % _FIELD)
_MAILBOX_LINE = re.compile(rb">?From [^\n]*\n%b" % _FIELD)
HEADER = re.compile(rb"(?:%b[^\n]*+(?:\n|\Z)(?:[ \t][^\n]*+(?:\n|\Z))*+)*+" % _FIELD)
"""The fields that content begins with, and the lines that continue them."""
_CRS = re.compile(rb"\r+\n")
_STRAY_CR = re.compile(rb"\r(?!\n)")
BEGINNING = 1024
"""Octets of content that ``separator`` looks at: no line of a header is longer."""

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Trace:
    """Writes trace lines for the server ``hostname``. Each line ends in CRLF."""

    def __init__(self, hostname: str) -> None:
        self._by = f")\r\n\tby {_host(hostname)} with "
        self._by_without_address = self._by[1:]

    def received(self, session: Session, envelope: Envelope, queue_id: str) -> bytes:
        """The Received field. It names the recipient only if there is just one: more may be blind copies."""
        peer = session.peer
        helo = _host(session.host_name or "unknown")
        if isinstance(peer, tuple) and peer:
            source = f"Received: from {helo} ({_literal(peer[0])}{self._by}"
        else:
            source = f"Received: from {helo}{self._by_without_address}"
        if session.extended_smtp:
            protocol = "UTF8SMTP" if envelope.smtp_utf8 else "ESMTP"
            if session.tls:
                protocol += "S"
            if session.authenticated:
                protocol += "A"
        else:
            protocol = "SMTP"
        recipients = envelope.rcpt_tos
        line = f"{source}{protocol} id {queue_id}"
        date = _date(int(time.time()))
        if len(recipients) == 1:
            return b"%b\r\n\tfor <%b>; %b\r\n" % (line.encode(), _address(recipients[0]), date)
        return b"%b; %b\r\n" % (line.encode(), date)


def separator(content: bytes) -> bytes:
    """What stands between header fields of ours and ``content``, of which the first ``BEGINNING`` octets will do.

    Nothing, if it begins with a field or with an empty line. A line of an mbox, ``From ann@a.example Thu Nov 20``, that
    fields follow becomes a field. Before anything else comes an empty line: a first line that begins with a blank
    would continue our last field, and other text would end the header in the midst of a line.
    """
    if _NEEDS_NO_SEPARATOR.match(content):
        return b""
    return b"X-Mailbox-Line: " if _MAILBOX_LINE.match(content) else b"\r\n"


def parsable(content: bytes) -> bytes:
    """The content for Python's ``email``.

    That drops a first line that begins with a blank, a colon or ``From ``, and it ends a line at each CR, so that a CR
    in the header makes a field of what follows it.
    """
    before = separator(content[:BEGINNING])
    if before:
        content = before + content
    header = HEADER.match(content)
    assert header is not None
    fields = header[0]
    empty_line = _CRS.match(content, header.end())
    if not _STRAY_CR.search(fields) and (empty_line is None or len(empty_line[0]) == 2):
        return content
    end = header.end() if empty_line is None else empty_line.end()
    fields = _STRAY_CR.sub(b" ", _CRS.sub(b"\r\n", fields))
    return fields + (b"" if empty_line is None else b"\r\n") + content[end:]


def return_path(mail_from: str) -> bytes:
    """The Return-Path field; of the null path ``<>``."""
    return b"Return-Path: <%b>\r\n" % (b"" if mail_from == "<>" else _address(mail_from))


def delivered_to(recipients: Iterable[str]) -> bytes:
    """A Delivered-To field for each of ``recipients``."""
    return b"".join([b"Delivered-To: %b\r\n" % _address(recipient) for recipient in recipients])


def _address(text: str) -> bytes:
    if not text.isprintable():  # no control octet, line end or lone surrogate passes
        text = "".join([c if c.isprintable() else "?" for c in text])
    octets = text.encode()
    if len(octets) > _MAX_ADDRESS:
        octets = octets[:_MAX_ADDRESS].decode(errors="ignore").encode()
    return octets


def _host(text: str) -> str:
    return text if _HELO.fullmatch(text) else _NOT_HELO.sub("?", text[:255])


@lru_cache(1024)
def _literal(ip: str) -> str:
    ip = _NOT_IP.sub("?", ip.partition("%")[0][:45])  # without the zone, which means nothing elsewhere
    return f"[IPv6:{ip}]" if ":" in ip else f"[{ip}]"


@lru_cache(2)
def _date(second: int) -> bytes:
    t = time.gmtime(second)  # not strftime, which speaks the operator's language
    return b"%s, %d %s %d %02d:%02d:%02d +0000" % (
        _DAYS[t.tm_wday].encode(),
        t.tm_mday,
        _MONTHS[t.tm_mon - 1].encode(),
        t.tm_year,
        t.tm_hour,
        t.tm_min,
        t.tm_sec,
    )
