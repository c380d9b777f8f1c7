"""Mistakes in handlers that used to show only when mail was lost or a client waited: what finds them, and when."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from servers import Client, Keeps, on_both_loops, serve
from test_application import handler
from test_raised import controlled

import fastsmtp
from fastsmtp import ConfigError, Envelope, Session
from fastsmtp.controller import UnthreadedController
from fastsmtp.lmtp import LMTP
from fastsmtp.server import SMTPServer
from fastsmtp.smtp import MISSING, SMTP, Application, AuthResult

FAILED = (535, b"5.7.8 Authentication credentials invalid")
PLAIN = "AUTH PLAIN " + b64encode(b"\0me\0word").decode()


# --- AUTH that says nothing -----------------------------------------------------------------------------------


class Silent:
    """Mechanisms that fail, with and without a word."""

    async def auth_FAILS(self, server: SMTP, args: list[str]) -> Any:
        return AuthResult(success=False)  # handled=True is the default

    async def auth_NOTHING(self, server: SMTP, args: list[str]) -> Any:
        return None

    def auth_ATONCE(self, server: SMTP, args: list[str]) -> Any:
        return None

    async def auth_ASKS(self, server: SMTP, args: list[str]) -> Any:
        assert await server.challenge_auth("who") == b"me"
        return AuthResult(success=False)

    async def auth_SAYS(self, server: SMTP, args: list[str]) -> Any:
        await server.push("535 mine")
        return AuthResult(success=False)

    async def auth_GIVESUP(self, server: SMTP, args: list[str]) -> Any:
        assert await server.challenge_auth("who") is MISSING
        return AuthResult(success=False)


class Pushes(SMTP):
    async def push(self, status: str | bytes) -> None:
        await super().push(status)


@pytest.mark.parametrize("kind", [SMTP, Pushes])
@pytest.mark.parametrize(
    ("mechanism", "said", "warned"),
    [
        ("FAILS", FAILED, True),
        ("NOTHING", FAILED, True),
        ("ATONCE", FAILED, True),
        ("ASKS", FAILED, True),
        ("SAYS", (535, b"mine"), False),
    ],
)
def test_an_auth_that_fails_without_a_word_is_535(
    mechanism: str, said: tuple[int, bytes], warned: bool, kind: type[SMTP], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        controlled(
            Silent(), lambda self: kind(self.handler, **self.SMTP_kwargs), auth_require_tls=False
        ) as dial,
        dial() as client,
    ):
        client.ehlo()
        for _ in range(2):
            began = time.monotonic()
            reply = client.docmd(f"AUTH {mechanism}")
            if mechanism == "ASKS":
                assert reply == (334, b64encode(b"who"))
                reply = client.docmd(b64encode(b"me").decode())
            assert reply == said
            assert time.monotonic() - began < 5
            assert client.docmd("NOOP") == (250, b"OK")
    warnings = [record for record in caplog.records if "535 is said in its place" in record.getMessage()]
    assert len(warnings) == 2 * warned
    assert all("session " in record.getMessage() for record in warnings)


def test_an_auth_that_the_client_gave_up_has_its_one_reply() -> None:
    with controlled(Silent(), auth_require_tls=False) as dial, dial() as client:
        client.ehlo()
        assert client.docmd("AUTH GIVESUP")[0] == 334
        assert client.docmd("*") == (501, b"5.7.0 Auth aborted")
        assert client.docmd("NOOP") == (250, b"OK")


def test_a_handle_auth_that_gives_nothing_is_535(caplog: pytest.LogCaptureFixture) -> None:
    class Handler:
        async def handle_AUTH(
            self, server: SMTP, session: Session, envelope: Envelope, args: list[str]
        ) -> None:
            return None

    with controlled(Handler(), auth_require_tls=False) as dial, dial() as client:
        client.ehlo()
        assert client.docmd(PLAIN) == FAILED
        assert client.docmd("NOOP") == (250, b"OK")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


# --- RCPT that forgets ----------------------------------------------------------------------------------------


def forgetful() -> object:
    class Forgets(Keeps):
        def handle_RCPT(
            self, server: object, session: Session, envelope: Envelope, address: str, options: list[str]
        ) -> str:
            return "550 no" if address.startswith("no") else "250 OK"

    return Forgets()


@on_both_loops
async def test_a_forgotten_recipient_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        caplog.clear()
        made = forgetful()  # each time another class
        for _ in range(2):
            async with await serve(made) as server:
                with await Client.greeted(server) as client:
                    await client.send(b"MAIL FROM:<>\r\nRCPT TO:<no@b.example>\r\n")
                    assert await client.codes(2) == [250, 550]
                    assert len(caplog.records) <= 1
                    await client.send(b"RCPT TO:<a@b.example>\r\nRCPT TO:<c@b.example>\r\nDATA\r\n")
                    assert await client.codes(3) == [250, 250, 554]
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "Forgets answers 2yz and appends nothing to envelope.rcpt_tos" in record.getMessage()


@pytest.mark.parametrize("kind", [SMTP, LMTP])
def test_a_controller_warns_of_it_too(kind: type[SMTP], caplog: pytest.LogCaptureFixture) -> None:
    with controlled(forgetful(), lambda self: kind(self.handler, **self.SMTP_kwargs)) as dial:
        for _ in range(2):
            with dial() as client:
                client.docmd("LHLO c" if kind is LMTP else "EHLO c")
                client.mail("a@b.example")
                assert client.rcpt("c@d.example") == (250, b"OK")
                assert client.docmd("DATA")[0] == 503
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("mail.log", logging.WARNING)


# --- parameters -----------------------------------------------------------------------------------------------


async def _four(self: Any, server: Any, session: Any, envelope: Any, address: str) -> str:
    return "250 OK"


WRONG = {
    "handle_RCPT": "(server, session, envelope, address, rcpt_options)",
    "handle_MAIL": "(server, session, envelope, address, mail_options)",
    "handle_DATA": "(server, session, envelope)",
    "handle_RSET": "(server, session, envelope)",
    "handle_DISCONNECT": "(server, session, envelope)",
    "handle_STARTTLS": "(server, session, envelope)",
    "handle_exception": "(error)",
}


@pytest.mark.parametrize(("name", "takes"), WRONG.items())
@pytest.mark.parametrize("way", ["object", "class"])
@on_both_loops
async def test_a_hook_of_other_parameters_stops_the_start(name: str, takes: str, way: str) -> None:
    kind = type("Handler", (Keeps,), {name: _four})
    with pytest.raises(ConfigError) as raised:
        await serve(kind() if way == "object" else kind)
    text = str(raised.value)
    assert "test_mistakes.Handler" in text
    assert f"{name}(" in text
    assert text.endswith(f"it is to take {takes}")
    assert "\n" not in text


def test_an_ehlo_hook_of_three_parameters_stops_the_start() -> None:
    class Handler(Keeps):
        def handle_EHLO(self, server: object, session: Session, envelope: Envelope) -> str:
            return "250 x"

    with pytest.raises(ConfigError, match="responses"):
        fastsmtp.run(Handler, listen=["127.0.0.1:0"])


@pytest.mark.parametrize("command", ["check-config", "serve"])
def test_the_command_says_so_before_anybody_comes(command: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(
        "class Wrong:\n"
        "    async def handle_RCPT(self, server, session, envelope, address):\n"
        "        return '250 OK'\n"
    )
    arguments = ["--handler", "wrong:Wrong", "--deliver", "discard:", "--listen", "127.0.0.1:0"]
    done = subprocess.run(
        [sys.executable, "-m", "fastsmtp", command, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "fastsmtp: handler wrong.Wrong: handle_RCPT(server, session, envelope, address) cannot be called; "
        "it is to take (server, session, envelope, address, rcpt_options)\n"
    )


@pytest.mark.parametrize(
    "name",
    ["handle_RCPT", "handle_DATA", "handle_exception", "handle_PROXY2", "auth_MINE", "handle_STARTTLS"],
)
def test_a_controller_with_such_a_hook_does_not_start(name: str) -> None:
    kind = type("Handler", (), {name: _four})
    if name == "handle_PROXY2":  # no hook, so nothing is known of it
        SMTP(kind(), hostname="mx.example", loop=_loop())
        return
    wrong = f"test_mistakes.Handler: {name}.* cannot be called; it is to take"
    with pytest.raises(TypeError, match=wrong), controlled(kind()):
        pass
    with pytest.raises(TypeError, match=name):
        SMTP(kind(), hostname="mx.example", loop=_loop())


def test_hooks_that_an_object_was_given_are_looked_at_too() -> None:
    class Handler:
        pass

    given = Handler()
    given.handle_RCPT = lambda server, session, envelope, address: "250 OK"  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="handle_RCPT"), controlled(given):
        pass


def test_a_server_that_calls_hooks_in_its_own_way_takes_any() -> None:
    class Own(SMTP):
        async def _call_handler_hook(self, command: str, *args: Any) -> Any:
            if command == "VRFY":
                return await self.event_handler.handle_VRFY(self)
            return await super()._call_handler_hook(command, *args)

    class Handler:
        async def handle_VRFY(self, server: SMTP) -> str:
            return "252 mine"

    with controlled(Handler(), lambda self: Own(self.handler, **self.SMTP_kwargs)) as dial, dial() as client:
        client.ehlo()
        assert client.docmd("VRFY a@b.example") == (252, b"mine")


@on_both_loops
async def test_an_unthreaded_controller_says_so_at_its_start() -> None:
    kind = type("Handler", (), {"handle_DATA": _four})
    with pytest.raises(TypeError, match="handle_DATA"):
        await UnthreadedController(kind(), "127.0.0.1", 0).start()


@pytest.mark.parametrize("name", ["data", "prepare", "mail", "rcpt", "on_finish", "write_error"])
def test_an_application_whose_methods_cannot_be_called_makes_no_server(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.* it is to take"):
        SMTPServer(Application(handler(**{name: lambda: None})))


def test_a_callback_that_cannot_be_called_makes_no_server() -> None:
    with pytest.raises(ConfigError, match="request"):
        SMTPServer(lambda: None)  # type: ignore[arg-type,misc]


def _loop() -> Any:
    import asyncio

    loop = asyncio.new_event_loop()
    loop.close()
    return loop
