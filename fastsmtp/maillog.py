"""The log of mail: one line for each message that was taken, and for each reply that refused something.

Knows what such a line tells, as text or as JSON, and how many there may be in a second. What a client chose is cut, and
its control characters are escapes, so that a line is one line and every value stays one value.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import select
import time
from json.encoder import encode_basestring_ascii as _json
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from fastsmtp.logs import Outlet, brief, peer_name, safe_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastsmtp._envelope import Session
    from fastsmtp.connection import Connection

NAME = "fastsmtp.mail"
Wanted: TypeAlias = Literal["off", "refusals", "all"]

_REFUSALS = 100  # lines a second; a client alone can have thousands of commands refused
_MESSAGES = 5000  # lines a second
_MILLISECONDS = [f"{number:03d}" for number in range(1000)]  # to format one costs a tenth of a line
_RECIPIENTS = 5  # that are named
_LONGEST = 100  # characters of a value
_LONGEST_REPLY = 500
_SHORTER = 8  # so many times shorter are the values of a line that is too long, as escapes make it
_MANY = 1000  # characters of a line that may be too many octets

_BARE = re.compile(
    r"[!#-<>-\[\]-~]+"
).fullmatch  # printable ASCII, and neither a blank, a quote, "=" nor a backslash


class MailLog:
    """The log of one event loop's connections, written to the logger ``fastsmtp.mail`` at level INFO.

    ``form`` is ``"text"`` or ``"json"``.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, form: str = "text") -> None:
        self._loop = loop
        self._logger = logging.getLogger(NAME)
        self._json = form == "json"
        outlet = Outlet.of(self._logger)
        self._write: Callable[[str], object]
        self._head: Callable[[float], str]
        if outlet is None:
            self._write = self._logger.info
            self._head = _no_head
        else:
            # A record of logging costs more than all else about a line.
            self._write = outlet.put
            self._head = _no_head if self._json else self._text_head
        self._tail = _as_json if self._json else _as_text
        self._second = 0
        self._stamp = ""
        self._level = f" INFO {NAME}[{os.getpid()}] "
        self._window = 0.0
        self._refusals = self._messages = self._left_out = 0
        self._timer: asyncio.TimerHandle | None = None

    @staticmethod
    def wanted(setting: Wanted) -> Wanted:
        """The value for ``Rules``: ``"off"`` where the logger drops the lines."""
        return setting if logging.getLogger(NAME).isEnabledFor(logging.INFO) else "off"

    def add(self, connection: Connection, stage: str, reply: bytes) -> None:
        """Writes the line for a reply, or counts it if there are too many in this second."""
        now = time.monotonic()
        if now - self._window >= 1.0:
            self._window = now
            self._refusals = self._messages = 0
        event = _event(reply)
        if event == "accepted":
            self._messages += 1
            too_many = self._messages > _MESSAGES
        else:
            self._refusals += 1
            too_many = self._refusals > _REFUSALS
        if too_many:
            self._left_out += 1
            if self._timer is None:
                self._timer = self._loop.call_later(1.0, self.tell)
            return
        head = self._head(time.time())
        line = head + self._tail(connection, stage, event, reply, now, 1)
        if len(line) > _MANY and len(line.encode("utf-8", "backslashreplace")) >= select.PIPE_BUF:
            # A pipe takes no longer line whole, and those of other processes would come in between.
            line = head + self._tail(connection, stage, event, reply, now, _SHORTER)
        self._write(line)

    def tell(self) -> None:
        """Says how many lines were left out, if any were."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._left_out:
            count, self._left_out = self._left_out, 0
            self._logger.warning(
                "%s lines of the log of mail were left out: too many in a second", f"{count:,}"
            )

    def _text_head(self, now: float) -> str:
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S,", time.localtime(second))
        return self._stamp + _MILLISECONDS[int((now - second) * 1000)] + self._level


def _no_head(now: float) -> str:
    return ""


_REFUSAL = re.compile(rb"^[45]\d\d", re.MULTILINE).findall


def _event(reply: bytes) -> str:
    """What a reply means for the message: of several replies to one DATA (LMTP) the worst one counts."""
    refusals = _REFUSAL(reply)
    if not refusals:
        return "accepted" if reply else "lost"
    return "rejected" if max(refusals) >= b"500" else "deferred"


def _word(value: object) -> str:
    """A value as text: a hook can put anything into a session or an envelope."""
    return value if type(value) is str else brief(value, _LONGEST)


def _peer(connection: Connection) -> str:
    connection.know_peer()
    return peer_name(connection.session.peer)


def _tls(session: Session) -> str:
    if not session.tls:
        return ""
    encrypted: Any = session.ssl
    if isinstance(encrypted, dict):  # aiosmtpd's facts
        encrypted = encrypted.get("ssl_object")
    try:
        return _word(encrypted.version())
    except (AttributeError, ValueError):
        return "TLS"


def _said(reply: bytes) -> str:
    said = reply[:-2].decode("utf-8", "backslashreplace")
    return said.replace("\r\n", " / ") if "\r" in said else said


# --- text -----------------------------------------------------------------------------------------------------


_PLAIN = re.compile(r"[ !#-\[\]-~]*").fullmatch  # printable ASCII, and neither a quote nor a backslash


def _bare(value: str, most: int = _LONGEST) -> str:
    """A value, quoted where the next field could be taken for a part of it."""
    return value if len(value) <= most and _BARE(value) else _quoted(value, most) if value else "-"


def _quoted(value: str, most: int) -> str:
    if len(value) <= most and _PLAIN(value):
        return f'"{value}"'
    shown = brief(value.replace("\\", "\\\\").replace('"', '\\"'), most)
    return f'"{shown}"'


def _as_text(connection: Connection, stage: str, event: str, reply: bytes, now: float, cut: int) -> str:
    longest = _LONGEST // cut
    session, envelope = connection.session, connection.envelope
    sender = envelope.mail_from if envelope is not None else None
    hello = _word(session.host_name) if session.host_name else "-"
    if sender is None or envelope is None:
        of_message = "from=- to=- size=0 id=- ms=-"
    else:
        sender = _word(sender)
        path = sender if sender == "<>" else f"<{sender}>"
        recipients = envelope.rcpt_tos or []
        named = [_word(recipient) for recipient in recipients[:_RECIPIENTS]]
        if len(recipients) > _RECIPIENTS:
            named = [brief(recipient, longest) for recipient in named]
        to = f"<{'>,<'.join(named)}>" if named else "-"
        # One look at both: nearly always nothing has to be quoted.
        if len(path) + len(to) > longest or not _BARE(path + to):
            path = _bare(path, longest)
            to = to if _BARE(to) and len(to) <= longest else _quoted(to, _RECIPIENTS * longest)
        more = len(recipients) - len(named)
        of_message = (
            f"from={path} to={to} {f'more={more} ' if more else ''}size={connection.message_size} "
            f"id={safe_id(envelope.id)} ms={(now - connection.message_began) * 1000:.1f}"
        )
    if len(hello) > longest or not _BARE(hello):
        hello = _quoted(hello, longest)
    command = "" if event == "accepted" else connection.refused_command
    if command:
        command = f" command={_quoted(command, longest)}"
    if connection.transport is None and reply:
        command += " told=no"
    address: Any = session.peer
    ipv4 = (
        type(address) is tuple and len(address) == 2 and type(address[0]) is str and type(address[1]) is int
    )
    peer = _bare(f"{address[0]}:{address[1]}" if ipv4 else _peer(connection))
    said = _said(reply)
    said = (
        f'"{said}"'
        if len(said) <= _LONGEST_REPLY // cut and _PLAIN(said)
        else _quoted(said, _LONGEST_REPLY // cut)
    )
    tls = _bare(_tls(session)) if session.tls else "-"
    return (
        f"{event} stage={stage} session={safe_id(session.id)} peer={peer} hello={hello} tls={tls} "
        f"{of_message}{command} reply={said}"
    )


# --- JSON -----------------------------------------------------------------------------------------------------


def _text_of(value: object, most: int = _LONGEST) -> str:
    if type(value) is not str:
        value = brief(value, most)
    return _json(value if len(value) <= most and value.isprintable() else brief(value, most))


def _as_json(connection: Connection, stage: str, event: str, reply: bytes, now: float, cut: int) -> str:
    longest = _LONGEST // cut
    session, envelope = connection.session, connection.envelope
    sender = envelope.mail_from if envelope is not None else None
    clock = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(clock))
    if sender is None or envelope is None:
        of_message = '"from":null,"to":[],"recipients":0,"size":0,"id":null,"ms":null'
    else:
        recipients = envelope.rcpt_tos or []
        to = ",".join([_text_of(recipient, longest) for recipient in recipients[:_RECIPIENTS]])
        of_message = (
            f'"from":{_text_of(sender, longest)},"to":[{to}],"recipients":{len(recipients)},'
            f'"size":{connection.message_size},"id":"{safe_id(envelope.id)}",'
            f'"ms":{(now - connection.message_began) * 1000:.1f}'
        )
    command = "" if event == "accepted" else connection.refused_command
    if command:
        command = f'"command":{_text_of(command, longest)},'
    if connection.transport is None and reply:
        command += '"told":false,'
    return (
        f'{{"time":"{stamp}.{int(clock % 1 * 1000):03d}Z","level":"INFO","logger":"{NAME}","process":{os.getpid()},'
        f'"event":"{event}","stage":"{stage}","session":"{safe_id(session.id)}","peer":{_text_of(_peer(connection))},'
        f'"hello":{_text_of(session.host_name or "", longest)},"tls":{_text_of(_tls(session))},{of_message},{command}'
        f'"reply":{_text_of(_said(reply), _LONGEST_REPLY // cut)}}}'
    )
