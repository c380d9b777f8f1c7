"""What programs do to ``SMTP``: methods of its own, attributes that change, classes that are patched, TLS by hand."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme
from servers import on_both_loops, until

from fastsmtp.smtp import SMTP, AuthResult, Envelope, Session, TLSSetupException

TO_DATA = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
PLAIN = b"AUTH PLAIN AGFubmUAc2VjcmV0\r\n"


class Keeps:
    """A handler that takes every message."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.messages.append(envelope.content)
        return "250 taken"


@asynccontextmanager
async def serve(factory: Callable[[], SMTP]) -> AsyncIterator[int]:
    connections: list[SMTP] = []

    def make() -> SMTP:
        connections.append(factory())
        return connections[-1]

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
    await until(lambda: all(connection.transport is None for connection in connections))


async def talk(port: int, *pieces: bytes) -> list[str]:
    """What is answered to ``pieces``, each sent when the last was answered; the last one ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said = [(await reader.readline()).decode()]
    for piece in pieces[:-1]:
        writer.write(piece)
        said.append((await reader.readline()).decode())
    writer.write(pieces[-1])
    said += (await reader.read()).decode().splitlines(keepends=True)
    writer.close()
    await writer.wait_closed()
    return [line.removesuffix("\r\n") for line in said]


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


# --- AUTH ---------------------------------------------------------------------------------------------------


async def refuses_later(*_: object) -> AuthResult:
    return AuthResult(success=False, handled=False)


async def accepts_later(*_: object) -> AuthResult:
    return AuthResult(success=True, auth_data="anne")


async def says_yes_later(*_: object) -> bool:
    return True


@pytest.mark.parametrize(
    ("authenticator", "code"),
    [(refuses_later, "535"), (accepts_later, "235"), (says_yes_later, "535"), (lambda *_: True, "535")],
)
@on_both_loops
async def test_only_an_auth_result_lets_somebody_in(
    authenticator: Any, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(lambda: SMTP(Keeps(), auth_require_tls=False, authenticator=authenticator)) as port:
        said = await talk(port, b"HELO me\r\nEHLO me\r\n" + PLAIN + b"QUIT\r\n")
    assert [line[:3] for line in said[-2:]] == [code, "221"]


async def no_later(*_: object) -> bool:
    return False


@on_both_loops
async def test_an_async_auth_callback_is_heard() -> None:
    async with serve(lambda: SMTP(Keeps(), auth_require_tls=False, auth_callback=no_later)) as port:  # type: ignore[arg-type]
        said = await talk(port, b"EHLO me\r\n" + PLAIN + b"QUIT\r\n")
    assert said[-2:] == ["535 5.7.8 Authentication credentials invalid", "221 Bye"]


# --- push, and the hooks' way -------------------------------------------------------------------------------


class Loud(SMTP):
    """Sees every reply, and takes its time with each."""

    said: list[str | bytes]

    async def push(self, status: str | bytes) -> None:
        await asyncio.sleep(0)
        self.said.append(status)
        await super().push(status)


class Passes(SMTP):
    """Has commands of its own, which do what the dialogue does."""

    async def smtp_NOOP(self, arg: str | None) -> None:
        await super().smtp_NOOP(arg)

    async def smtp_MAIL(self, arg: str | None) -> None:
        await super().smtp_MAIL(arg)

    async def smtp_DATA(self, arg: str | None) -> None:
        await super().smtp_DATA(arg)


class Answers:
    """A handler whose hooks answer at once."""

    def handle_NOOP(self, server: SMTP, session: Session, envelope: Envelope, argument: str) -> str:
        return "250 noop"

    def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        envelope.mail_from = address
        return "250 mail"

    def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        return "250 taken"


@on_both_loops
async def test_a_command_of_ones_own_whose_hook_answers_at_once() -> None:
    commands = b"HELO me\r\nNOOP\r\n" + 2 * (TO_DATA + b"text\r\n.\r\n") + b"NOOP\r\nQUIT\r\n"
    async with serve(lambda: Passes(Answers())) as port:
        said = await talk(port, commands)
    message = ["250 mail", "250 OK", "354 End data with <CR><LF>.<CR><LF>", "250 taken"]
    assert said[2:] == ["250 noop", *message, *message, "250 noop", "221 Bye"]


class Asked(Keeps):
    """A handler that says more than its reply."""

    async def handle_NOOP(self, server: SMTP, session: Session, envelope: Envelope, argument: str) -> str:
        await server.push(f"250-{argument}")
        return "250 said"


class Hasty(SMTP):
    """Sees every reply, too."""

    async def push(self, status: str | bytes) -> None:
        await super().push(status)


@pytest.mark.parametrize("server", [SMTP, Hasty])
@on_both_loops
async def test_what_a_hook_pushes_comes_behind_the_replies_before(server: type[SMTP]) -> None:
    async with serve(lambda: server(Asked())) as port:
        said = await talk(port, b"HELO me\r\nRSET\r\nNOOP one\r\nNOOP two\r\nQUIT\r\n")
    assert said[2:] == ["250 OK", "250-one", "250 said", "250-two", "250 said", "221 Bye"]


@on_both_loops
async def test_every_reply_goes_through_a_push_of_ones_own() -> None:
    Loud.said = []
    handler = Keeps()
    async with serve(lambda: Loud(handler, hostname="mx", ident="test")) as port:
        said = await talk(port, b"HELO me\r\n" + TO_DATA + b"hi\r\n.\r\nNOPE\r\nHELP NOOP\r\nQUIT\r\n")
    assert said == [
        "220 mx test",
        "250 mx",
        "250 OK",
        "250 OK",
        "354 End data with <CR><LF>.<CR><LF>",
        "250 taken",
        '500 Error: command "NOPE" not recognized',
        "250 Syntax: NOOP [ignored]",
        "221 Bye",
    ]
    assert Loud.said == said
    assert handler.messages == [b"hi\r\n"]


class Refuses(SMTP):
    async def _call_handler_hook(self, command: str, *args: Any) -> Any:
        return "550 not you" if command == "MAIL" else await super()._call_handler_hook(command, *args)


@on_both_loops
async def test_hooks_may_be_called_in_another_way() -> None:
    async with serve(lambda: Refuses(Keeps(), hostname="mx")) as port:
        said = await talk(port, b"HELO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nQUIT\r\n")
    assert said[1:] == ["250 mx", "550 not you", "503 Error: need MAIL command", "221 Bye"]


# --- classes and attributes that change ---------------------------------------------------------------------


@on_both_loops
async def test_a_class_may_be_patched_while_it_serves() -> None:
    class Patched(SMTP):
        pass

    async def smtp_NOOP(self: SMTP, arg: str) -> None:
        await self.push("250 patched")

    async with serve(lambda: Patched(Keeps())) as port:
        assert await talk(port, b"NOOP\r\nQUIT\r\n") == (await talk(port, b"NOOP\r\nQUIT\r\n"))
        Patched.smtp_NOOP = smtp_NOOP  # type: ignore[method-assign]
        assert (await talk(port, b"NOOP\r\nQUIT\r\n"))[1:] == ["250 patched", "221 Bye"]
        del Patched.smtp_NOOP
        assert (await talk(port, b"NOOP\r\nQUIT\r\n"))[1:] == ["250 OK", "221 Bye"]
        Patched.command_size_limit = 20
        assert (await talk(port, b"NOOP " + b"x" * 20 + b"\r\nQUIT\r\n"))[1:] == [
            "500 Command line too long",
            "221 Bye",
        ]


@on_both_loops
async def test_a_handler_may_get_a_hook_while_it_serves() -> None:
    handler = Keeps()

    async def handle_NOOP(server: SMTP, session: Session, envelope: Envelope, arg: str) -> str:
        server.command_size_limit = 30
        return "250 mine"

    async with serve(lambda: SMTP(handler)) as port:
        assert (await talk(port, b"NOOP\r\nQUIT\r\n"))[1] == "250 OK"
        handler.handle_NOOP = handle_NOOP  # type: ignore[attr-defined]
        said = await talk(port, b"NOOP\r\nNOOP " + b"x" * 40 + b"\r\nQUIT\r\n")
    assert said[1:] == ["250 mine", "500 Command line too long", "221 Bye"]


@pytest.mark.parametrize("limit", [20_000, 2**40])
@on_both_loops
async def test_lines_may_be_as_long_as_one_likes(limit: int) -> None:
    class Patient(SMTP):
        line_length_limit = limit

    handler = Keeps()
    line = b"x" * 19_990 + b"\r\n"
    async with serve(lambda: Patient(handler)) as port:
        said = await talk(port, b"HELO me\r\n" + TO_DATA + line + b".\r\nQUIT\r\n")
    assert said[-2:] == ["250 taken", "221 Bye"]
    assert handler.messages == [line]


def test_what_makes_envelopes_must_make_envelopes() -> None:
    class Wrong(SMTP):
        def _create_envelope(self) -> Any:
            return object()

    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(
            TypeError, match=r"_create_envelope\(\) gave a object; it must be a fastsmtp.smtp.Envelope"
        ):
            Wrong(Keeps(), loop=loop).make_envelope()
    finally:
        loop.close()


# --- TLS by hand --------------------------------------------------------------------------------------------


class ByHand(SMTP):
    """Begins TLS itself, in the way that programs for Python 3.11 do."""

    async def smtp_STARTTLS(self, arg: str | None) -> None:
        assert self.tls_context is not None
        assert self.transport is not None
        await self.push("220 Ready to start TLS")
        try:
            transport = await self.loop.start_tls(self.transport, self, self.tls_context, server_side=True)
        except Exception as error:
            raise TLSSetupException from error
        assert transport is not None
        self._reader._transport = transport
        self._writer._transport = transport
        self._tls_protocol = transport.get_protocol()


@on_both_loops
async def test_starttls_may_be_done_by_hand(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    server, client = contexts
    handler = Keeps()
    async with serve(lambda: ByHand(handler, tls_context=server, require_starttls=True)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"EHLO me\r\nSTARTTLS\r\n")
        while not (await reader.readline()).startswith(b"220 Ready"):
            pass
        await writer.start_tls(client, server_hostname="localhost")
        writer.write(b"EHLO me\r\n" + TO_DATA + b"secret\r\n.\r\nQUIT\r\n")
        said = (await reader.read()).decode().splitlines()
        writer.close()
        await writer.wait_closed()
    assert said[-2:] == ["250 taken", "221 Bye"]
    assert handler.messages == [b"secret\r\n"]


@pytest.mark.parametrize("by_hand", [True, False])
@on_both_loops
async def test_octets_behind_starttls_are_not_taken_for_what_comes_inside_it(
    by_hand: bool, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """CVE-2021-38371, CVE-2024-34083."""
    kind = ByHand if by_hand else SMTP
    async with serve(lambda: kind(Keeps(), tls_context=contexts[0])) as port:
        said = await talk(port, b"HELO me\r\nSTARTTLS\r\nNOOP\r\n")
    assert said[2:] == ["554 5.5.0 Error: octets after STARTTLS; closing connection"]
