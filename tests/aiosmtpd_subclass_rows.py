"""Rows for servers that people make by subclassing: verbs of their own, verbs overridden, class attributes; and LMTP.

The notation is of ``aiosmtpd_rows``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from aiosmtpd_hook_rows import LOCAL_ERROR, NOT_BYTES, OLD_DATA, ProcessMessage, hooks
from aiosmtpd_mail_rows import NEED_RCPT, TOO_LONG, VRFY_OK
from aiosmtpd_rows import (
    CLOSED,
    COMMANDS,
    DATA,
    EHLO,
    HELO,
    LONG,
    MAIL,
    NEED_AUTH,
    NEED_HELO,
    OK,
    QUIT,
    RCPT,
    TEXT,
    TO_DATA,
    Exchange,
    Row,
    Smtp,
    but,
    looks,
)


def subclass(*bases: Callable[[Smtp], type], **members: Any) -> Callable[[Smtp], Any]:
    """A server class with these members."""
    return lambda smtp: type("Mine", (*(base(smtp) for base in bases), smtp.SMTP), dict(members))


def verbs(smtp: Smtp) -> Any:
    """A server with verbs of its own."""

    class Verbs(smtp.SMTP):  # type: ignore[misc]
        @smtp.syntax("XFOO word", extended=" [more]")  # type: ignore[untyped-decorator]
        async def smtp_XFOO(self, arg: str | None) -> None:
            await self.push(f"250 {arg!r}")

        @smtp.syntax("XWHEN", when="mine")  # type: ignore[untyped-decorator]
        async def smtp_XWHEN(self, arg: str | None) -> None:
            await self.push("250 when")

        async def smtp_XBARE(self, arg: str | None) -> None:
            await self.push(b"250-one")
            await self.push("250-two")
            await self.push("250 three")

        async def smtp_XNONE(self, arg: str | None) -> None: ...

        async def smtp_XFAIL(self, arg: str | None) -> None:
            raise ValueError(arg)

        async def smtp_XHOOK(self, arg: str | None) -> None:
            status = await self._call_handler_hook("XHOOK", arg)
            await self.push("250 no hook" if status is smtp.MISSING else status)

        async def smtp_XHELO(self, arg: str | None) -> None:
            if not await self.check_helo_needed(arg or "HELO"):
                await self.push("250 greeted")

        async def smtp_XAUTH(self, arg: str | None) -> None:
            if not await self.check_auth_needed("XAUTH"):
                await self.push("250 let in")

        async def smtp_XASK(self, arg: str | None) -> None:
            blob = await self.challenge_auth("what?", encode_to_b64=not arg)
            if blob is not smtp.MISSING:
                await self.push(f"250 {blob!r}")

        async def smtp_XCLOSE(self, arg: str | None) -> None:
            await self.push("421 enough")
            self.transport.close()

        mine = False

    return Verbs


def overrides(smtp: Smtp) -> Any:
    """A server that does more than its base does, or something else."""

    class Overrides(smtp.SMTP):  # type: ignore[misc]
        async def smtp_NOOP(self, arg: str | None) -> None:
            if arg == "mine":
                await self.push("250 mine")
            else:
                await super().smtp_NOOP(arg)

        async def smtp_HELO(self, arg: str) -> None:
            await super().smtp_HELO(arg and f"{arg}.mine")

        async def smtp_EHLO(self, arg: str) -> None:
            await self.push("250-before")
            await super().smtp_EHLO(arg)

        async def smtp_MAIL(self, arg: str | None) -> None:
            if arg and "spam" in arg:
                await self.push("550 no spam")
                return
            await super().smtp_MAIL(arg)
            self.session.mails = getattr(self.session, "mails", 0) + 1

        async def smtp_RCPT(self, arg: str | None) -> None:
            if arg == "TO:<all>":
                self.envelope.rcpt_tos += ["one", "two"]
                await self.push("250 all")
            else:
                await super().smtp_RCPT(arg)

        async def smtp_DATA(self, arg: str | None) -> None:
            if arg == "no":
                await self.push("550 no")
            else:
                await super().smtp_DATA(arg)
                self.session.datas = getattr(self.session, "datas", 0) + 1

        async def smtp_RSET(self, arg: str | None) -> None:
            await super().smtp_RSET(arg)
            self.session.resets = getattr(self.session, "resets", 0) + 1

        async def smtp_VRFY(self, arg: str | None) -> None:
            await self.push(f"252 {arg}")

        async def smtp_EXPN(self, arg: str | None) -> None:
            await self.push("250-one\r\n250 two")

        async def smtp_QUIT(self, arg: str | None) -> None:
            if arg == "no":
                await self.push("250 stay")
            else:
                await super().smtp_QUIT(arg)

    return Overrides


def recording(smtp: Smtp) -> Any:
    """A server that overrides what its base calls."""

    class Recording(smtp.SMTP):  # type: ignore[misc]
        async def push(self, status: str | bytes) -> None:
            await super().push(status if isinstance(status, bytes) else status.replace("OK", "fine"))

        async def _call_handler_hook(self, command: str, *args: Any) -> Any:
            if command == "VRFY":
                return "252 asked"
            return await super()._call_handler_hook(command, *args)

    return Recording


def asking(smtp: Smtp) -> Any:
    """A server that notes which hooks its base calls, and with what."""

    class Asking(smtp.SMTP):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.told: list[Any] = []

        async def _call_handler_hook(self, command: str, *args: Any) -> Any:
            self.told.append((command, *(list(arg) if isinstance(arg, list) else arg for arg in args)))
            return await super()._call_handler_hook(command, *args)

    return Asking


def creating(smtp: Smtp) -> Any:
    """A server with sessions and envelopes of its own."""

    class MySession(smtp.Session):  # type: ignore[misc]
        def __init__(self, loop: Any) -> None:
            super().__init__(loop)
            self.mine = "session"

    class MyEnvelope(smtp.Envelope):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.mine = "envelope"

    class Creating(smtp.SMTP):  # type: ignore[misc]
        def _create_session(self) -> Any:
            return MySession(self.loop)

        def _create_envelope(self) -> Any:
            return MyEnvelope()

    return Creating


def rescuing(smtp: Smtp) -> Any:
    """A server that answers for exceptions."""

    class Rescuing(smtp.SMTP):  # type: ignore[misc]
        async def handle_exception(self, error: Exception) -> str:
            return f"451 mine: {error!r}"

        async def smtp_XFAIL(self, arg: str | None) -> None:
            raise ValueError(arg)

    return Rescuing


def old_hooks(smtp: Smtp) -> Any:
    """A server with the deprecated hooks."""

    class OldHooks(smtp.SMTP):  # type: ignore[misc]
        async def ehlo_hook(self) -> None:
            self.session.mine = ("ehlo", self.session.extended_smtp)

        async def rset_hook(self) -> None:
            self.session.mine = ("rset", self.envelope.mail_from)

    return OldHooks


def lmtp(smtp: Smtp) -> Any:
    """The LMTP server beside the module under test."""
    return importlib.import_module(f"{smtp.__name__.partition('.')[0]}.lmtp").LMTP


def _takes_all(server: Any, session: Any, envelope: Any) -> str:
    envelope.rcpt_tos.clear()
    return "250 x"


def _makes_two(server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
    envelope.rcpt_tos += [address, f"copy-{address}"]
    return "250 two"


def _long(count: int, reply: str) -> Exchange:
    return "HELO " + (count - 5) * "h", reply


OLD_EHLO_HOOK = "Use handler.handle_EHLO() instead of .ehlo_hook()"
OLD_RSET_HOOK = "Use handler.handle_RSET() instead of .rset_hook()"
LHLO = ("LHLO c.example", EHLO[1])
TO_TWO: tuple[Exchange, ...] = (LHLO, MAIL, RCPT, ("RCPT TO:<e@f>", OK), DATA)

VERBS = [
    Row("a verb of one's own", ("XFOO", "250 None"), ("xfoo some  thing ", "250 'some  thing'"),
        server=verbs),
    Row("HELP of one's own", ("HELP", f"250 Supported commands: {COMMANDS} XFOO"),
        ("HELP xfoo", "250 Syntax: XFOO word"), EHLO,
        ("HELP XFOO", "250 Syntax: XFOO word [more]"), server=verbs),
    Row("HELP with a condition", ("HELP XWHEN", f"501 Supported commands: {COMMANDS} XFOO"),
        looks("setattr(server, 'mine', True)", None),
        ("HELP XWHEN", "250 Syntax: XWHEN"), ("HELP", f"250 Supported commands: {COMMANDS} XFOO XWHEN"),
            server=verbs),
    Row("a verb without @syntax", ("HELP XBARE", f"501 Supported commands: {COMMANDS} XFOO"), server=verbs),
    Row("several pushes", ("XBARE", "250-one\n250-two\n250 three"), ("NOOP", OK), server=verbs),
    Row("a verb that says nothing", (b"XNONE\r\nNOOP\r\n", OK), server=verbs),
    Row("a verb that fails", ("XFAIL why", "500 Error: (ValueError) why"), ("NOOP", OK), server=verbs),
    Row("a verb that fails, and handle_exception", ("XFAIL why", "451 why"), server=verbs,
        handler=hooks(handle_exception=lambda error: f"451 {error}")),
    Row("a verb that fails, and handle_exception that returns nothing", ("XFAIL why", "[hangs]", LOCAL_ERROR),
        server=verbs,
        handler=hooks(handle_exception=None), differs="nobody is left waiting"),
    Row("a hook for a verb of one's own", ("XHOOK a b", "250 ('a b',)"), server=verbs,
        handler=hooks(XHOOK=lambda s, session, e, *more: f"250 {more!r}")),
    Row("a hook that is missing", ("XHOOK", "250 no hook"), server=verbs),
    Row("check_helo_needed", ("XHELO", NEED_HELO), ("XHELO LHLO", "503 Error: send LHLO first"), HELO,
        ("XHELO", "250 greeted"), server=verbs),
    Row("check_auth_needed", ("XAUTH", NEED_AUTH), looks("setattr(session, 'authenticated', True)", None),
        ("XAUTH", "250 let in"), server=verbs, auth_required=True),
    Row("check_auth_needed where it is not", ("XAUTH", "250 let in"), server=verbs),
    Row("challenge_auth", ("XASK", "334 d2hhdD8="), ("eWVz", "250 b'yes'"), ("XASK plain", "334 what?"),
        (" eWVz ", "250 b'yes'"), server=verbs),
    Row("challenge_auth is answered with nothing", ("XASK", "334 d2hhdD8="), ("", "250 b''"), server=verbs),
    Row("challenge_auth is aborted", ("XASK", "334 d2hhdD8="), ("*", "501 5.7.0 Auth aborted"), ("NOOP", OK),
        server=verbs),
    Row("challenge_auth gets no base64", ("XASK", "334 d2hhdD8="), ("ab", "501 5.5.2 Can't decode base64"),
        ("NOOP", OK), server=verbs),
    Row("a verb that closes", ("XCLOSE", f"421 enough\n{CLOSED}"), server=verbs),
    Row("a verb that is limited", ("XFOO", "250 None"), ("XFOO",
        f"421 4.7.0 XFOO sent too many times\n{CLOSED}"), server=verbs, command_call_limit={"XFOO": 1}),
    Row("a verb that needs ASCII", ("XFOO \u00e9", "500 Error: strict ASCII mode"), server=verbs),
    Row("a verb that is too long", ("XFOO " + 508 * "x", LONG), server=verbs),
    Row("a verb in a transaction", EHLO, MAIL, ("XFOO", "250 None"), RCPT, DATA, TEXT, server=verbs),
]  # fmt: skip

OVERRIDES = [
    Row("NOOP overridden", ("NOOP mine", "250 mine"), ("NOOP", OK), server=overrides),
    Row("HELO overridden", HELO, looks("session.host_name", "c.example.mine"), MAIL,
        ("HELO", "501 Syntax: HELO hostname"), server=overrides),
    Row("EHLO overridden", ("EHLO c", f"250-before\n{EHLO[1]}"), MAIL, server=overrides),
    Row("MAIL overridden", ("MAIL FROM:<a@b>", NEED_HELO), HELO, ("MAIL FROM:<spam@b>", "550 no spam"), MAIL,
        looks("session.mails", 2), RCPT, server=overrides),
    Row("RCPT overridden", HELO, MAIL, ("RCPT TO:<all>", "250 all"), RCPT,
        looks("envelope.rcpt_tos", ["one", "two", "c@d.example"]), DATA, TEXT, server=overrides),
    Row("DATA overridden", HELO, MAIL, RCPT, ("DATA no", "550 no"), DATA, TEXT, looks("session.datas", 1),
        MAIL, server=overrides),
    Row("DATA overridden, and refused", HELO, ("DATA", NEED_RCPT), ("DATA x", NEED_RCPT),
        looks("session.datas", 2), server=overrides),
    Row("DATA overridden, and content too long", HELO, MAIL, RCPT, DATA,
        (1100 * b"l" + b"\r\n.\r\n", TOO_LONG), looks("session.datas", 1), server=overrides),
    Row("DATA overridden, and a hook", HELO, MAIL, RCPT, DATA, (b"a\r\n.\r\n", "250 b'a\\r\\n'"),
        looks("session.datas", 1), server=overrides,
        handler=hooks(DATA=lambda s, session, e: f"250 {e.content!r}")),
    Row("RSET overridden", HELO, MAIL, ("RSET", OK), looks("(session.resets, envelope.mail_from)", (1, None)),
        server=overrides),
    Row("VRFY and EXPN overridden", ("VRFY", "252 None"), ("EXPN", "250-one\n250 two"), server=overrides),
    Row("QUIT overridden", ("QUIT no", "250 stay"), ("QUIT", f"221 Bye\n{CLOSED}"), server=overrides),
    Row("HELP knows no verbs that are overridden without @syntax", ("HELP",
        "250 Supported commands: AUTH HELP"), server=overrides),
    Row("push overridden", ("NOOP", "250 fine"), EHLO, ("MAIL FROM:<a@b>", "250 fine"),
        ("X", '500 Error: command "X" not recognized'), server=recording),
    Row("_call_handler_hook overridden", ("VRFY a", "252 asked"), ("NOOP 1", "250 1"), server=recording),
    Row("_call_handler_hook is told what hooks are told", HELO, MAIL, ("RCPT TO:<c@d>", OK), DATA, TEXT,
        ("RSET", OK), ("VRFY <a@b>", VRFY_OK), ("NOOP", OK), ("NOOP ", OK), ("EHLO d", EHLO[1]),
        ("MAIL FROM:<a@b> size=1", OK),
        looks("[call for call in server.told[:-1] if call[0] != 'EHLO']",
        [("HELO", "c.example"), ("MAIL", "a@b.example", []), ("RCPT", "c@d", []), ("DATA",), ("RSET",),
        ("VRFY", "a@b"), ("NOOP", None), ("NOOP", None), ("MAIL", "a@b", ["SIZE=1"])]), server=asking),
    Row("_call_handler_hook overridden, and process_message", *TO_DATA, (b"text\r\n.\r\n", "250 taken"), MAIL,
        server=asking, handler=ProcessMessage, warns=(OLD_DATA,)),
    Row("a session of one's own", looks("(type(session).__name__, session.mine)", ("MySession", "session")),
        EHLO, looks("session.extended_smtp", True), server=creating),
    Row("an envelope of one's own", looks("(type(envelope).__name__, envelope.mine)",
        ("MyEnvelope", "envelope")), *TO_DATA, TEXT,
        looks("(type(taken).__name__, taken.mine, taken.content)", ("MyEnvelope", "envelope", b"text\r\n")),
            server=creating),
    Row("handle_exception of the server", ("XFAIL why", "451 mine: ValueError('why')"),
        ("VRFY a", "451 mine: KeyError('x')"), server=rescuing,
        handler=hooks(VRFY=KeyError("x"))),
    Row("ehlo_hook", EHLO, looks("session.mine", ("ehlo", True)), MAIL, server=old_hooks,
        warns=(OLD_EHLO_HOOK,)),
    Row("rset_hook", HELO, MAIL, ("RSET", OK), looks("session.mine", ("rset", None)), server=old_hooks,
        warns=(OLD_RSET_HOOK,)),
    Row("a command's limit of the class", _long(100, "250 mx.example"), _long(101, LONG),
        server=subclass(command_size_limit=100)),
    Row("a longer command's limit of the class", _long(900, "250 mx.example"),
        server=subclass(command_size_limit=900)),
    Row("a line's limit of the class", *TO_DATA, (2998 * b"l" + b"\r\n.\r\n", OK), MAIL, RCPT, DATA,
        (2999 * b"l" + b"\r\n.\r\n", TOO_LONG),
        server=subclass(line_length_limit=3000)),
    Row("a shorter line's limit of the class", *TO_DATA, (98 * b"l" + b"\r\n.\r\n", OK), MAIL, RCPT, DATA,
        (99 * b"l" + b"\r\n.\r\n", TOO_LONG),
        server=subclass(line_length_limit=100)),
    Row("a local part's limit of the class", HELO, ("MAIL FROM:<abcd@e>",
        "553 5.1.3 Error: malformed address"), ("MAIL FROM:<abc@e>", OK),
        server=subclass(local_part_limit=3)),
]  # fmt: skip

LMTP = [
    Row("LHLO", LHLO, looks("(session.host_name, session.extended_smtp)", ("c.example", True)), MAIL, RCPT,
        server=lmtp),
    Row("LHLO wants a name", ("LHLO", "501 Syntax: EHLO hostname", "501 Syntax: LHLO hostname"), server=lmtp,
        differs="LMTP has no EHLO"),
    Row("LMTP has no HELO", ("HELO c", '500 Error: command "HELO" not recognized'),
        ("EHLO", '500 Error: command "EHLO" not recognized'), but(MAIL, NEED_HELO), server=lmtp),
    Row("HELO is not counted in LMTP", *(6 * (("HELO c", '500 Error: command "HELO" not recognized'),)),
        server=lmtp),
    Row("HELP in LMTP", ("HELP", "250 Supported commands: AUTH DATA HELP LHLO MAIL NOOP QUIT RCPT RSET VRFY"),
        ("HELP LHLO", "250 Syntax: LHLO hostname"), server=lmtp),
    Row("a message for one by LMTP", LHLO, MAIL, RCPT, DATA, TEXT, QUIT, server=lmtp),
    Row("a message for two by LMTP", LHLO, MAIL, RCPT, ("RCPT TO:<e@f>", OK), DATA,
        (b"text\r\n.\r\n", OK, f"{OK}\n{OK}"), MAIL, server=lmtp, differs="RFC 2033 4.2"),
    Row("a status for each by LMTP", *TO_TWO, (b".\r\n", NOT_BYTES, "250 one\n550 two"), MAIL, server=lmtp,
        handler=hooks(DATA=["250 one", "550 two"]), differs="RFC 2033 4.2"),
    Row("too many statuses by LMTP", *TO_TWO, (b".\r\n", NOT_BYTES, f"{LOCAL_ERROR}\n{LOCAL_ERROR}"), MAIL,
        server=lmtp, handler=hooks(DATA=["250 one", "550 two", "250 three"]), differs="RFC 2033 4.2"),
    Row("a DATA hook that takes the recipients by LMTP", *TO_TWO, (b".\r\n", "250 x", "250 x\n250 x"), MAIL,
        server=lmtp, handler=hooks(DATA=_takes_all), differs="RFC 2033 4.2"),
    Row("a RCPT hook that makes two of one by LMTP", LHLO, MAIL, ("RCPT TO:<a@b>", "250 two"), DATA, TEXT,
        server=lmtp, handler=hooks(RCPT=_makes_two)),
    Row("content too long by LMTP", *TO_TWO,
        (1100 * b"l" + b"\r\n.\r\n", TOO_LONG, f"{TOO_LONG}\n{TOO_LONG}"), MAIL, server=lmtp,
        differs="RFC 2033 4.2"),
    Row("EHLO hook at LHLO", ("LHLO c", "250 c"), server=lmtp, handler=hooks(EHLO=lambda s, session, e, name,
        responses: [f"250 {name}"])),
    Row("LHLO in the order of checks", ("DATA", NEED_HELO), LHLO, ("DATA", NEED_RCPT), server=lmtp),
    Row("LHLO ends the transaction", LHLO, MAIL, LHLO, looks("envelope.mail_from", None), server=lmtp),
]  # fmt: skip

ROWS = [*VERBS, *OVERRIDES, *LMTP]
