"""The test case: tests of its users, plain and async, run as they would run them."""

from __future__ import annotations

import asyncio
import unittest
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from fastsmtp.errors import SMTPError
from fastsmtp.requests import SMTPRequest
from fastsmtp.server import SMTPServer
from fastsmtp.smtp import Application, RequestHandler
from fastsmtp.testing import AsyncSMTPTestCase


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.SelectorEventLoop], ids=["uvloop", "asyncio"])
def loop_kind(request: pytest.FixtureRequest) -> Iterator[None]:
    """What unittest makes its loops with, up to Python 3.13 by way of the policy."""

    class Policy(asyncio.DefaultEventLoopPolicy):
        def new_event_loop(self) -> asyncio.AbstractEventLoop:
            return request.param()

    asyncio.set_event_loop_policy(Policy())
    yield
    asyncio.set_event_loop_policy(None)


class Case(AsyncSMTPTestCase):
    __test__ = False

    requests: list[SMTPRequest]

    def setUp(self) -> None:
        self.requests = []
        super().setUp()

    def get_request_callback(self) -> Callable[[SMTPRequest], Any]:
        def callback(request: SMTPRequest) -> None:
            self.requests.append(request)
            if request.mail == "bad@b.example":
                raise SMTPError(452, "nope")
            request.finish("kept")

        return callback

    def get_smtpserver_options(self) -> dict[str, Any]:
        return {"hostname": "mx.example"}

    def test_plain(self) -> None:
        assert self.connect() == b"220 mx.example ESMTP fastsmtp\r\n"
        assert (
            self.send_mail("c.example", "a@b.example", ["c@d.example", "<e@f.example>"], "Täst")
            == b"250 kept\r\n"
        )
        (request,) = self.requests
        assert (request.hostname, request.mail) == ("c.example", "a@b.example")
        assert (request.rcpt, request.data) == (["c@d.example", "e@f.example"], "Täst")
        self.stream.write(b"RSET\r\nQUIT\r\n")
        assert self.read_response() == b"250 Ok\r\n"
        assert self.stream.read_until_close() == b"221 Bye\r\n"
        self.close()
        assert not hasattr(self, "stream")

    async def test_async(self) -> None:
        assert await self.connect(read_response=False) is None
        assert (await self.read_response()).startswith(b"220 ")
        reply = await self.send_mail("c.example", "bad@b.example", ["c@d.example"], b"caf\xe9")
        assert reply == b"452 nope\r\n"
        assert bytes(self.requests[0].body) == b"caf\xe9\r\n"
        self.stream.write(b"HELO c.example\r\n")
        assert await self.stream.read_until(b"Hello") == b"250 Hello"
        self.close()

    def test_a_port_for_each_server(self) -> None:
        assert self.smtp_server.addresses == [f"127.0.0.1:{self.get_smtp_port()}"]
        assert isinstance(self.smtp_server, SMTPServer)
        assert self.get_smtp_server() is not self.smtp_server


class OfAnApplication(AsyncSMTPTestCase):
    __test__ = False

    def get_request_callback(self) -> Application:
        return Application(RequestHandler)

    def get_smtpserver_options(self) -> dict[str, Any]:
        return {"hostname": "mx.example"}

    async def test_it(self) -> None:
        await self.connect()
        assert await self.send_mail("c", "a@b.example", ["c@d.example"], "text") == b"250 Ok\r\n"
        self.close()


class WithoutCallback(AsyncSMTPTestCase):
    __test__ = False

    def test_nothing(self) -> None:
        raise AssertionError("setUp comes first")


def run(case: type[unittest.TestCase]) -> unittest.TestResult:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    return result


@pytest.mark.usefixtures("loop_kind")
@pytest.mark.parametrize(("case", "tests"), [(Case, 3), (OfAnApplication, 1)])
def test_cases_pass(case: type[unittest.TestCase], tests: int) -> None:
    result = run(case)
    assert (result.errors, result.failures) == ([], [])
    assert result.testsRun == tests


def test_the_callback_is_to_be_given() -> None:
    result = run(WithoutCallback)
    assert len(result.errors) == 1
    assert "NotImplementedError" in result.errors[0][1]
