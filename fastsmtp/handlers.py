"""Handlers that are ready made, with the names and the behaviour of aiosmtpd's: print a message, drop it, send
it on, put it into a Maildir, or hand it to a method as an ``email.message``.

Knows ``email``, ``mailbox`` and ``smtplib``, and that a disk or another server may keep one waiting, so that
it is waited for in threads. Refuses to know the dialogue, and who calls a hook.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.message
import errno
import io
import itertools
import logging
import mailbox
import os
import re
import smtplib
import socket
import sys
import time
from abc import ABC, abstractmethod
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.generator import BytesGenerator
from email.parser import BytesParser, Parser
from functools import partial
from typing import Any, Self, TextIO, TypeAlias, TypeVar

from fastsmtp.body import Draft, sync_folder
from fastsmtp.envelope import Envelope, Session
from fastsmtp.hooks import describe
from fastsmtp.sinks.commit import FolderSync
from fastsmtp.sinks.trace import BEGINNING, HEADER, parsable, separator

__all__ = ["AsyncMessage", "Debugging", "Mailbox", "Message", "Proxy", "Sink"]

log = logging.getLogger("mail.debug")

T = TypeVar("T")
Refusals: TypeAlias = "Mapping[str, tuple[int, bytes | str]]"

_PIECE = 1 << 18  # octets; smtplib's own way with 32 MB keeps all threads waiting for 200 ms
_GOODBYE = 5.0  # seconds for the reply to QUIT, which changes nothing for a message that was taken
_REMOTES = 20  # connections to one remote at a time, as many as Postfix makes
_WRITERS = 4  # threads that wait for the disk of one Maildir
_MAX_TEXT = 400  # characters of a remote's reply: a reply line has at most 512 octets (RFC 5321 4.5.3.1.5)
_LATER = "451 4.4.1 No answer from the next server"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_REPEATED_CODE = re.compile(r"\n[245]\.\d{1,3}\.\d{1,3}(?!\S)")
_NOT_PRINTABLE = re.compile(r"[^ -~]")


def message_from_bytes(s: bytes | bytearray, *args: Any, **kws: Any) -> email.message.Message:
    """The octets as a message; further arguments are those of ``email.parser.BytesParser``."""
    message: email.message.Message = BytesParser(*args, **kws).parsebytes(s)
    return message


def message_from_string(s: str, *args: Any, **kws: Any) -> email.message.Message:
    """The text as a message; further arguments are those of ``email.parser.Parser``."""
    message: email.message.Message = Parser(*args, **kws).parsestr(s)
    return message


def _format_peer(peer: object) -> str:
    return f"X-Peer: {peer!r}"


# --- Debugging ----------------------------------------------------------------------------------------------


class Debugging:
    """Prints each message to ``stream``, by default what ``sys.stdout`` is when the handler is made."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream: TextIO = sys.stdout if stream is None else stream

    @classmethod
    def from_cli(cls, parser: ArgumentParser, *args: str) -> Self:
        """The handler of a command line: no argument, ``stdout`` or ``stderr``."""
        streams = {(): None, ("stdout",): sys.stdout, ("stderr",): sys.stderr}
        if args not in streams:
            parser.error("Debugging usage: [stdout|stderr]")
        return cls(streams.get(args))

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        """Prints the parameters of MAIL and RCPT, if any, and the message with an X-Peer after its header."""
        self._print("---------- MESSAGE FOLLOWS ----------")
        options = {"mail options:": envelope.mail_options, "rcpt options:": envelope.rcpt_options}
        given = [f"{name} {values}" for name, values in options.items() if any(values)]
        for line in [*given, ""] if given else []:
            self._print(line)
        in_header = True
        for line in envelope.content.splitlines():
            if in_header and not line:
                self._print(_format_peer(session.peer))
                in_header = False
            self._print(line.decode("utf-8", "replace") if isinstance(line, bytes) else line)
        self._print("------------ END MESSAGE ------------")
        return "250 OK"

    def _print(self, line: str) -> None:
        try:
            print(line, file=self.stream)
        except UnicodeEncodeError as error:  # a message is not refused for a terminal that cannot show it
            print(line.encode(error.encoding, "backslashreplace").decode(error.encoding), file=self.stream)


# --- Proxy --------------------------------------------------------------------------------------------------


class Proxy:
    """Hands each message on to the SMTP server at ``remote_hostname`` and ``remote_port``, and then answers.

    It is 250 when the remote has taken the message for somebody; refusals of some recipients are in the text
    and in the log. Where all were refused the remote's own reply is given, or, when they differ, a 4yz if any
    of them was one. A remote that cannot be reached or does not answer within ``timeout`` seconds gives 451.
    """

    def __init__(self, remote_hostname: str, remote_port: int, *, timeout: float = 60.0) -> None:
        self._hostname = remote_hostname
        self._port = remote_port
        self._timeout = timeout
        self._threads = ThreadPoolExecutor(_REMOTES, "fastsmtp-proxy")

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        """Sends the message on, with an X-Peer after its header, and returns what came of it."""
        deliver: Callable[..., Refusals] = self._deliver
        # Programs override _deliver() for TLS, passwords or LMTP, with the three arguments that aiosmtpd has.
        if _is(deliver, Proxy._deliver):
            deliver = partial(
                deliver,
                mail_options=_parameters(envelope),
                local_hostname=getattr(server, "hostname", None),
            )
        loop = asyncio.get_running_loop()
        refused = await loop.run_in_executor(self._threads, _forward, deliver, session.peer, envelope)
        return _answer(envelope.rcpt_tos, refused)

    def _deliver(
        self,
        mail_from: str,
        rcpt_tos: Sequence[str],
        data: bytes,
        mail_options: Iterable[str] = (),
        local_hostname: str | None = None,
    ) -> Refusals:
        """Code and text for each recipient that was refused; -1 is the code where there was no reply."""
        remote = _Remote(local_hostname=local_hostname, timeout=self._timeout)
        refusal: tuple[int, bytes | str]
        try:
            code, text = remote.connect(self._hostname, self._port)
            if code != 220:
                raise smtplib.SMTPConnectError(code, text)
            return remote.hand_over(mail_from, rcpt_tos, data, mail_options)
        except smtplib.SMTPRecipientsRefused as error:
            log.info("got SMTPRecipientsRefused")
            # At a 421 the others were not asked, or were accepted for nothing.
            last = next(reversed(error.recipients.values()), (-1, b"ignore"))
            return {recipient: error.recipients.get(recipient, last) for recipient in rcpt_tos}
        except (smtplib.SMTPSenderRefused, smtplib.SMTPDataError) as error:
            refusal = error.smtp_code, error.smtp_error
        except (smtplib.SMTPNotSupportedError, UnicodeEncodeError):
            refusal = 550, "5.6.7 The next server takes no internationalized mail"  # RFC 6531 3.5
        except OSError as error:
            log.error("%s port %s: message deferred: %s", self._hostname, self._port, describe(error))
            refusal = -1, b"ignore"
        finally:
            remote.leave()
        return dict.fromkeys(rcpt_tos, refusal)


class _Remote(smtplib.SMTP):
    """A connection to the next server."""

    def hand_over(
        self, mail_from: str, rcpt_tos: Sequence[str], data: bytes, mail_options: Iterable[str]
    ) -> Refusals:
        """Sends the message; ``mail_options`` that the remote does not know are left out where it can be.

        Raises what ``sendmail`` raises.
        """
        self.ehlo_or_helo_if_needed()
        options = set(mail_options)
        if not "".join((mail_from, *rcpt_tos)).isascii():
            options.add("SMTPUTF8")
        elif data[: _header_end(data)].isascii() and not self.has_extn("SMTPUTF8"):
            options.discard("SMTPUTF8")  # the client declared it, the message does not need it
        if not self.has_extn("8BITMIME"):
            # Such servers take eight bits all the same, and their senders were never asked for less.
            options.discard("BODY=8BITMIME")
        if "SMTPUTF8" in options and not self.does_esmtp:
            raise smtplib.SMTPNotSupportedError
        return self.sendmail(mail_from, rcpt_tos, data, sorted(options))

    def data(self, msg: Any) -> tuple[int, bytes]:
        code, text = self.docmd("DATA")
        if code != 354:
            raise smtplib.SMTPDataError(code, text)
        before = b"\n"
        for at in range(0, len(msg), _PIECE):
            piece = msg[at : at + _PIECE]
            # RFC 5321 4.5.2. Also after a bare CR or LF, or a remote that ends lines there could be made to
            # end the message: what follows would be commands.
            stuffed = piece.replace(b"\n.", b"\n..").replace(b"\r.", b"\r..")
            self.send(b"." + stuffed if piece[:1] == b"." and before in b"\r\n" else stuffed)
            before = piece[-1:]
        self.send(b".\r\n" if msg[-2:] == b"\r\n" else b"\r\n.\r\n")
        code, text = self.getreply()
        return (250 if 200 <= code < 300 else code), text

    def leave(self) -> None:
        """Ends the connection, if there is one, and whatever the remote says to it."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.settimeout(_GOODBYE)
                self.quit()
        self.close()


def _parameters(envelope: Envelope) -> list[str]:
    """What of the parameters of MAIL must be told to the next server."""
    given = {option.upper() for option in envelope.mail_options}
    if envelope.smtp_utf8:
        given.add("SMTPUTF8")
    return sorted(given & {"BODY=8BITMIME", "SMTPUTF8"})


def _forward(deliver: Callable[..., Refusals], peer: Any, envelope: Envelope) -> Refusals:
    content = envelope.original_content if isinstance(envelope.content, str) else envelope.content
    return deliver(envelope.mail_from, envelope.rcpt_tos, _with_peer(bytes(content or b""), peer)) or {}


def _header_end(content: bytes) -> int:
    """Where the header ends: at an empty line, at the first line that is no field, or with the content."""
    header = HEADER.match(content)
    assert header is not None
    return header.end()


def _with_peer(content: bytes, peer: Any) -> bytes:
    """The content with the client's address as the last field of its header.

    It stands before a line that is no field, for readers who end the header there and for those who do not.
    """
    address = peer[0] if isinstance(peer, tuple) else peer  # a str, and mostly empty, on a Unix socket
    field = f"X-Peer: {_printable(str(address or 'unknown'))}".encode()
    before = separator(content[:BEGINNING])
    if before == b"\r\n":
        return b"%b\r\n\r\n%b" % (field, content)  # all of it is body
    content = before + content
    end = _header_end(content)
    header = content[:end]
    missing = b"" if header[-1:] in (b"", b"\n") else b"\r\n"
    line_end = b"\n" if header[-1:] == b"\n" and header[-2:] != b"\r\n" else b"\r\n"
    return b"".join((header, missing, field, line_end, memoryview(content)[end:]))


def _answer(rcpt_tos: Iterable[str], refused: Refusals) -> str:
    """The reply for a message that the next server refused for some, or all, or none."""
    recipients = list(dict.fromkeys(rcpt_tos))
    replies = [_reply(*refused[recipient]) for recipient in recipients if recipient in refused]
    if not replies:
        return "250 OK"
    if len(replies) < len(recipients):
        log.warning("we got some refusals: %s", refused)
        return f"250 2.0.0 Ok, but {len(replies)} of {len(recipients)} recipients refused: {replies[0]}"
    log.info("we got some refusals: %s", refused)
    if len({reply[:3] for reply in replies}) == 1:
        return replies[0]
    later = [reply for reply in replies if reply[0] == "4"]
    code = "451 4.0.0" if later else "550 5.0.0"
    return f"{code} All {len(replies)} recipients refused: {(later or replies)[0]}"


def _reply(code: int, text: bytes | str) -> str:
    """A remote's refusal as a reply of one printable line."""
    if not 400 <= code <= 599:
        return _LATER
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    # RFC 2034 4: the enhanced code stands on every line.
    words = " ".join(_REPEATED_CODE.sub("\n", text).split())
    # 421 would say that this server closes its connection, too.
    return f"{451 if code == 421 else code} {_printable(words)[:_MAX_TEXT]}".rstrip()


def _printable(text: str) -> str:
    return _NOT_PRINTABLE.sub("?", text)


# --- Sink ---------------------------------------------------------------------------------------------------


class Sink:
    """Has no hooks: the server takes every message, and nobody keeps it."""

    @classmethod
    def from_cli(cls, parser: ArgumentParser, *args: str) -> Self:
        """The handler of a command line, which has no arguments for it."""
        if args:
            parser.error("Sink handler does not accept arguments")
        return cls()


# --- Message ------------------------------------------------------------------------------------------------


class MessageBase(ABC):
    """What makes messages of envelopes: of ``message_class``, by default ``email.message.Message``."""

    def __init__(self, message_class: type[email.message.Message] | None = None) -> None:
        self.message_class = message_class

    def prepare_message(self, session: Session, envelope: Envelope) -> email.message.Message:
        """The message, with the fields X-Peer, X-MailFrom and X-RcptTo added at the end of its header.

        A client may have written such fields as well; the last ones are the server's. Content that does not begin with
        a header field is text, all of it. Raises TypeError for content that is neither ``bytes`` nor ``str``.
        """
        message = self._parse(envelope.content)
        message["X-Peer"] = str(session.peer)
        message["X-MailFrom"] = envelope.mail_from  # type: ignore[assignment]
        message["X-RcptTo"] = ", ".join(envelope.rcpt_tos)
        return message

    def _parse(self, data: object) -> email.message.Message:
        if isinstance(data, (bytes, bytearray)):
            return message_from_bytes(parsable(bytes(data)), self.message_class)
        if isinstance(data, str):
            octets = parsable(data.encode("utf-8", "surrogatepass"))
            return message_from_string(octets.decode("utf-8", "surrogatepass"), self.message_class)
        raise TypeError(f"Expected str or bytes, got {type(data)}")

    @abstractmethod
    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str: ...


class Message(MessageBase):
    """Calls ``handle_message``, to be defined, with each message. What it raises goes to the server."""

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        """Makes the message and hands it over."""
        self.handle_message(self.prepare_message(session, envelope))
        return "250 OK"

    @abstractmethod
    def handle_message(self, message: email.message.Message) -> None:
        """Takes the message; it is safe when this returns. Runs on the event loop, so it must not wait."""


class AsyncMessage(MessageBase):
    """As ``Message``, but awaits ``handle_message``.

    ``loop`` is the event loop that serves, by default the one that runs when it is asked for.
    """

    def __init__(
        self,
        message_class: type[email.message.Message] | None = None,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(message_class)
        self._loop = loop

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop. Raises RuntimeError where none was given and none runs."""
        return self._loop or asyncio.get_running_loop()

    @loop.setter
    def loop(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        """Makes the message and awaits what takes it."""
        await self.handle_message(self.prepare_message(session, envelope))
        return "250 OK"

    @abstractmethod
    async def handle_message(self, message: email.message.Message) -> None:
        """Takes the message; it is safe when this returns."""


# --- Mailbox ------------------------------------------------------------------------------------------------


class Mailbox(Message):
    """Puts each message into the Maildir ``mail_dir``, which is made if its parent folder is there.

    A message is on the disk before it is answered. A full disk gives 452, any other of its faults 451. Raises
    OSError where the folders cannot be made.
    """

    def __init__(
        self, mail_dir: str | os.PathLike[str], message_class: type[email.message.Message] | None = None
    ) -> None:
        self.mailbox: mailbox.Maildir = _Maildir(mail_dir)
        self.mail_dir = mail_dir
        # Not the loop's own, which may be full of clients that wait for this.
        self._threads = ThreadPoolExecutor(_WRITERS, "fastsmtp-mailbox")
        super().__init__(message_class)

    @classmethod
    def from_cli(cls, parser: ArgumentParser, *args: str) -> Self:
        """The handler of a command line, whose one argument is the folder."""
        if len(args) < 1:
            parser.error("The directory for the maildir is required")
        elif len(args) > 1:
            parser.error("Too many arguments for Mailbox handler")
        return cls(args[0])

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        """Stores the message, off the event loop; what a subclass made of the methods runs on it."""
        message = await self._aside(self.prepare_message, MessageBase.prepare_message, session, envelope)
        try:
            await self._aside(self.handle_message, Mailbox.handle_message, message)
        except (OSError, mailbox.Error) as error:
            log.error("%s: message deferred: %s", self.mail_dir, describe(error))
            full = isinstance(error, OSError) and error.errno in _NO_ROOM
            return "452 4.3.1 Insufficient system storage" if full else "451 4.3.0 Cannot deliver now"
        return "250 OK"

    def handle_message(self, message: email.message.Message) -> None:
        """Stores the message. It is on the disk when this returns. Raises OSError, with nothing stored."""
        self.mailbox.add(message)

    def reset(self) -> None:
        """Removes all messages."""
        self.mailbox.clear()

    def _parse(self, data: object) -> email.message.Message:
        # A message that was parsed from str cannot be written as octets if it holds more than ASCII.
        return super()._parse(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)

    async def _aside(self, method: Callable[..., T], own: Callable[..., T], *args: object) -> T:
        """Calls ``method`` in a thread if it is ``own``; another may count on the thread of the event loop."""
        if not _is(method, own):
            return method(*args)
        return await asyncio.get_running_loop().run_in_executor(self._threads, method, *args)


class _Maildir(mailbox.Maildir):
    """A Maildir whose ``add`` may be called from many threads, and has put a message on the disk.

    The library's own leaves part of a message behind when the disk is full, makes one name twice in two
    threads, and does not sync the folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        folder = os.path.abspath(os.path.expanduser(path))
        super().__init__(folder)
        self._folder = os.fsencode(folder)
        for name in ("tmp", "new", "cur"):
            os.makedirs(os.path.join(folder, name), 0o700, exist_ok=True)
        for made in (self._folder, os.path.dirname(self._folder)):
            with contextlib.suppress(PermissionError):  # to make files in it, it need not be readable
                sync_folder(made)
        mask = os.umask(0o077)  # it can be read in no other way
        os.umask(mask)
        self._mode = 0o666 & ~mask
        self._numbers = itertools.count()
        self._host = socket.gethostname().replace("/", r"\057").replace(":", r"\072")
        self._folder_sync = FolderSync()

    def add(self, message: Any) -> str:
        if not isinstance(message, email.message.Message):
            return super().add(message)
        octets = io.BytesIO()
        _Generator(octets, mangle_from_=False, maxheaderlen=0).flatten(message)
        folder, info = self._folder + b"/new", ""
        if isinstance(message, mailbox.MaildirMessage):
            folder = os.path.join(self._folder, message.get_subdir().encode())
            info = self.colon + message.get_info() if message.get_info() else ""
        draft = Draft(self._folder + b"/tmp", self._mode)
        try:
            draft.write(octets.getbuffer())
            draft.sync()
            key = self._link(draft, folder, info)
        finally:
            draft.close()
        path = os.path.join(folder, os.fsencode(key + info))
        try:
            if isinstance(message, mailbox.MaildirMessage):
                os.utime(path, (time.time(), message.get_date()))
            self._folder_sync.sync(folder)
        except BaseException:
            with contextlib.suppress(OSError):  # its sender will send it again
                os.unlink(path)
            raise
        return key

    def _link(self, draft: Draft, folder: bytes, info: str) -> str:
        while True:
            now = time.time_ns() // 1000
            key = f"{now // 1_000_000}.M{now % 1_000_000}P{os.getpid()}Q{next(self._numbers)}.{self._host}"
            with contextlib.suppress(FileExistsError):
                draft.link(os.path.join(folder, os.fsencode(key + info)))
                return key


class _Generator(BytesGenerator):
    """Writes any message that was parsed from octets. The library's own fails at a multipart without parts."""

    def _handle_multipart(self, msg: email.message.Message) -> None:
        try:
            super()._handle_multipart(msg)  # type: ignore[misc]
        except UnicodeEncodeError:
            if msg.is_multipart():
                raise
            self._handle_text(msg)  # type: ignore[attr-defined]


def _is(method: Callable[..., object], function: Callable[..., object]) -> bool:
    """Whether a bound method is ``function``, and not what a subclass or a program put in its place."""
    return getattr(method, "__func__", None) is function
