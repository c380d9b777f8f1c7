"""A test case that starts a server for each test, and speaks to it: bonzo's ``AsyncSMTPTestCase``.

Knows unittest and a client that says what it is told to. Refuses to know what is tested.
"""

from __future__ import annotations

import asyncio
import socket
import unittest
from collections.abc import Coroutine, Iterable
from typing import Any

from fastsmtp.requests import RequestCallback
from fastsmtp.server import SMTPServer

__all__ = ["AsyncSMTPTestCase", "Stream"]

_CRLF = b"\r\n"


class Stream:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def write(self, data: bytes) -> None:
        """Sends octets."""
        self._writer.write(data)

    def read_until(self, delimiter: bytes) -> Any:
        """The octets up to the next ``delimiter``, with it. Raises ``asyncio.IncompleteReadError`` at the end."""
        return _now_or_later(self._reader.readuntil(delimiter))

    def read_until_close(self) -> Any:
        """All octets that come until the server hangs up."""
        return _now_or_later(self._reader.read())

    def close(self) -> None:
        """Hangs up."""
        self._writer.close()


class AsyncSMTPTestCase(unittest.IsolatedAsyncioTestCase):
    """Starts a server on a free port before each test, and ends it afterwards.

    Tests are plain or async, and so is whatever waits here: in an async test it gives what is to be awaited
    (``await self.connect()``), in a plain one its result, as in bonzo.
    """

    smtp_server: SMTPServer
    stream: Stream

    def setUp(self) -> None:
        super().setUp()
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        self.__port: int = sock.getsockname()[1]
        try:
            self._request_callback = self.get_request_callback()
            self.smtp_server = self.get_smtp_server()
            self.smtp_server.add_sockets([sock])
        except BaseException:
            sock.close()
            raise

    def tearDown(self) -> None:
        _now_or_later(self.smtp_server.close())
        super().tearDown()

    def get_smtp_server(self) -> SMTPServer:
        """The server of a test; called once for each."""
        return SMTPServer(self._request_callback, **self.get_smtpserver_options())

    def get_request_callback(self) -> RequestCallback:
        """To be overridden: the callback that is tested."""
        raise NotImplementedError

    def get_smtpserver_options(self) -> dict[str, Any]:
        """To be overridden where the server is to have arguments."""
        return {}

    def get_smtp_port(self) -> int:
        """The port of the server, another for each test."""
        return self.__port

    def connect(self, read_response: bool = True) -> Any:
        """Connects, and reads the greeting if that is wanted: then it gives it. The connection is ``stream``."""
        return _now_or_later(self._connect(read_response))

    def read_response(self) -> Any:
        """The next line that the server says."""
        return _now_or_later(self._read_response())

    def send_mail(self, hostname: str, mail: str, rcpt: Iterable[str], data: str | bytes) -> Any:
        """Says HELO, MAIL, RCPT for each of ``rcpt``, DATA and the message; gives the last line of the reply to it.

        Addresses may have their brackets or not. Lines of ``data`` end with CRLF, and it says no dot twice.
        """
        return _now_or_later(self._send_mail(hostname, mail, rcpt, data))

    def close(self) -> None:
        """Hangs up."""
        self.stream.close()
        del self.stream

    async def _connect(self, read_response: bool) -> bytes | None:
        self.stream = Stream(*await asyncio.open_connection("127.0.0.1", self.get_smtp_port()))
        return await self._read_response() if read_response else None

    async def _read_response(self) -> bytes:
        line: bytes = await self.stream.read_until(_CRLF)
        return line

    async def _send_mail(self, hostname: str, mail: str, rcpt: Iterable[str], data: str | bytes) -> bytes:
        commands = [f"HELO {hostname}", f"MAIL FROM:{_path(mail)}"]
        commands += [f"RCPT TO:{_path(address)}" for address in rcpt]
        for command in (*commands, "DATA"):
            self.stream.write(command.encode() + _CRLF)
            await self._read_response()
        content = data.encode() if isinstance(data, str) else data
        self.stream.write(content + b"\r\n.\r\n")
        return await self._read_response()


def _path(address: str) -> str:
    return address if address.startswith("<") else f"<{address}>"


def _now_or_later(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine gives, in a plain test; itself, where a loop runs already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.get_event_loop().run_until_complete(coroutine)  # unittest has made it the current one
    return coroutine
