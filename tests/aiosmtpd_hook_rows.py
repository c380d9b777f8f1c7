"""Rows for hooks and exceptions, the attributes of server, session and envelope, and STARTTLS.

The notation is of ``aiosmtpd_rows``; hooks of subclasses are in ``aiosmtpd_subclass_rows``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiosmtpd_mail_rows import MAIL_555, NEED_MAIL, NEED_RCPT, NESTED
from aiosmtpd_rows import (
    CLOSED,
    COMMANDS,
    DATA,
    EHLO,
    END,
    HANGS,
    HELO,
    LONG,
    MAIL,
    NEED_HELO,
    NEED_TLS,
    OK,
    QUIT,
    RCPT,
    TEXT,
    TLS,
    TO_DATA,
    Exchange,
    Looks,
    Row,
    Smtp,
    bare,
    but,
    ehlo,
    looks,
)

LOCAL_ERROR = "451 4.3.0 Error: local error in processing"
NOT_AWAITED = "500 Error: (TypeError) object str can't be used in 'await' expression"
NOT_ASCII = (
    "500 Error: (UnicodeEncodeError) 'ascii' codec can't encode character '\\xe9' in position 4: "
    "ordinal not in range(128)"
)
NOT_BYTES = "500 Error: (AssertionError) "


def hooks(**answers: object) -> Callable[[Smtp], object]:
    """A handler with these async hooks. A hook returns its answer; a function is called for it with the hook's
    arguments, an exception is raised."""

    def hook(name: str, answer: object) -> Callable[..., Any]:
        async def answers_it(self: object, *arguments: Any) -> object:
            if isinstance(answer, BaseException):
                raise answer
            return answer(*arguments) if callable(answer) else answer

        async def answers_ehlo(
            self: object, server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]
        ) -> object:
            return await answers_it(self, server, session, envelope, hostname, responses)

        return answers_ehlo if name == "EHLO" else answers_it

    names = {
        name if name.startswith("handle_") else f"handle_{name}": hook(name, answer)
        for name, answer in answers.items()
    }
    return type("Hooks", (Looks,), names)


def plain(**answers: object) -> Callable[[Smtp], object]:
    """A handler whose hooks are not async."""
    return type(
        "Plain",
        (Looks,),
        {f"handle_{name}": lambda self, *_, answer=answer: answer for name, answer in answers.items()},
    )


def _sees(*names: str, status: str = "250") -> Callable[..., str]:
    """An answer that tells what a hook's arguments behind server, session and envelope are."""
    return lambda server, session, envelope, *more: f"{status} {more!r}"


def _set_mail(server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
    envelope.mail_from = address.upper()
    envelope.mail_options.extend(options)
    return "250 mail"


def _set_rcpt(server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
    envelope.rcpt_tos.append(address.upper())
    return "250 rcpt"


def _refuse_but_set_mail(server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
    envelope.mail_from = address
    return "550 no"


def _refuse_but_append(server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
    envelope.rcpt_tos.append(address)
    return "550 no"


def _hello(server: Any, session: Any, envelope: Any, hostname: str, *responses: list[str]) -> Any:
    session.host_name = hostname.upper()
    return [*responses[0][:-1], "250-X-MINE", "250 HELP"] if responses else "250 hello"


class OldEhlo(Looks):
    async def handle_EHLO(self, server: Any, session: Any, envelope: Any, hostname: str) -> str:
        session.host_name = hostname
        return "250 OLD"


class OldEhloPushes(Looks):
    async def handle_EHLO(self, server: Any, session: Any, envelope: Any, hostname: str) -> str:
        session.host_name = hostname
        await server.push("250-MINE")
        return "250 OLD"


class Pushes(Looks):
    async def handle_VRFY(self, server: Any, session: Any, envelope: Any, address: str) -> str:
        await server.push("252-one")
        await server.push(b"252-two")
        return "252 three"


class ProcessMessage:
    """The deprecated interface."""

    status: str | None = "250 taken"

    def __init__(self, smtp: Smtp) -> None: ...

    def process_message(self, peer: Any, mailfrom: str, rcpttos: list[str], data: bytes) -> str | None:
        assert (type(peer), mailfrom, rcpttos, data) == (tuple, "a@b.example", ["c@d.example"], b"text\r\n")
        return self.status


class ProcessMessageAsync(ProcessMessage):
    async def process_message(self, *arguments: Any) -> str | None:  # type: ignore[override]
        return super().process_message(*arguments)


class ProcessMessageSilently(ProcessMessage):
    status = None


class StaticHooks:
    """Given as a class, not as an instance."""

    @staticmethod
    async def handle_VRFY(server: Any, session: Any, envelope: Any, address: str) -> str:
        return f"252 static {address}"

    @classmethod
    async def handle_NOOP(cls, server: Any, session: Any, envelope: Any, argument: str) -> str:
        return f"250 {cls.__name__}"


class AnswersToAnyName:
    """As mocks do: hooks are those that ``dir`` lists."""

    def __getattr__(self, name: str) -> object:
        raise AttributeError(name) if name.startswith("__") else AssertionError(name)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("and again")


def _raises(error: BaseException) -> Callable[[Any], object]:
    def rescue(_: BaseException) -> object:
        raise error

    return rescue


OLD_EHLO = (
    "Use the 5-argument handle_EHLO() hook instead of the 4-argument handle_EHLO() hook; "
    "support for the 4-argument handle_EHLO() hook will be removed in version 2.0"
)
OLD_DATA = "Use handler.handle_DATA() instead of .process_message()"
MINE = EHLO[1].replace("250 HELP", "250-X-MINE\n250 HELP")

HOOKS = [
    Row("no hook at all", HELO, EHLO, MAIL, RCPT, DATA, TEXT, ("NOOP", OK), ("RSET", OK), QUIT, handler=bare),
    Row("HELO hook", ("HELO c", "250 hello"), looks("session.host_name", "C"), MAIL,
        handler=hooks(HELO=_hello)),
    Row("HELO hook is after the reset", HELO, MAIL, ("HELO d", "250 None False"),
        handler=hooks(HELO=lambda s, session, e,
            name: f"250 {e.mail_from} {session.extended_smtp}" if name == "d" else _hi(session, name))),
    Row("HELO hook refuses", ("HELO c", "550 no"), but(MAIL, NEED_HELO), handler=hooks(HELO="550 no")),
    Row("EHLO hook", ("EHLO c", MINE), looks("session.host_name", "C"), MAIL, handler=hooks(EHLO=_hello)),
    Row("EHLO hook sees the lines", ("EHLO c",
        "250 ['250-mx.example', '250-SIZE 33554432', '250-8BITMIME', '250 HELP']"),
        handler=hooks(EHLO=lambda s, session, e, name, responses: [f"250 {responses!r}"])),
    Row("EHLO hook sees ESMTP", ("EHLO c", "250 True"), handler=hooks(EHLO=lambda s, session, e, n,
        r: [f"250 {session.extended_smtp}"])),
    Row("HELO hook that sets no name", ("HELO c", "250 hello"), looks("session.host_name", None, "c"),
        but(MAIL, NEED_HELO, OK),
        handler=hooks(HELO="250 hello"), differs="250 is a hello"),
    Row("EHLO hook that sets no name", ("EHLO c", EHLO[1]), looks("session.host_name", None, "c"),
        but(MAIL, NEED_HELO, OK),
        handler=hooks(EHLO=lambda s, session, e, name, responses: responses), differs="250 is a hello"),
    Row("EHLO hook of 4 arguments", ("EHLO c", EHLO[1].replace("250 HELP", "250 OLD")), MAIL, handler=OldEhlo,
        warns=(OLD_EHLO,)),
    Row("EHLO hook of 4 arguments that pushes", ("EHLO c", EHLO[1].replace("250 HELP", "250-MINE\n250 OLD")),
        MAIL,
        handler=OldEhloPushes, warns=(OLD_EHLO,)),
    Row("MAIL hook", EHLO, ("MAIL FROM:<a@b> SIZE=1", "250 mail"),
        looks("(envelope.mail_from, envelope.mail_options)", ("A@B", ["SIZE=1"])),
        RCPT, handler=hooks(MAIL=_set_mail)),
    Row("MAIL hook's arguments", EHLO, ("MAIL FROM:<a@b> size=1 body=7bit",
        "250 ('a@b', ['SIZE=1', 'BODY=7BIT'])"), handler=hooks(MAIL=_sees())),
    Row("MAIL hook is not called for what is refused", EHLO, ("MAIL FROM:<a@b> X=Y", MAIL_555),
        handler=hooks(MAIL="250 called")),
    Row("MAIL hook that sets no sender", EHLO, ("MAIL FROM:<a@b>", "250 mail"),
        looks("envelope.mail_from", None, "a@b"),
        but(RCPT, NEED_MAIL, OK), handler=hooks(MAIL="250 mail"), differs="250 is a sender"),
    Row("MAIL hook refuses", EHLO, ("MAIL FROM:<a@b>", "550 no"), but(RCPT, NEED_MAIL),
        looks("envelope.mail_from", None),
        handler=hooks(MAIL="550 no")),
    Row("MAIL hook refuses and sets a sender", EHLO, ("MAIL FROM:<a@b>", "550 no"),
        but(RCPT, OK, NEED_MAIL),
        handler=hooks(MAIL=_refuse_but_set_mail), differs="a refusal leaves nothing"),
    Row("RCPT hook", EHLO, MAIL, ("RCPT TO:<c@d>", "250 rcpt"), looks("envelope.rcpt_tos", ["C@D"]), DATA,
        TEXT, handler=hooks(RCPT=_set_rcpt)),
    Row("RCPT hook's arguments", EHLO, MAIL, ("RCPT TO:<c@d>", "250 ('c@d', [])"),
        handler=hooks(RCPT=_sees())),
    Row("RCPT hook that adds none", EHLO, MAIL, ("RCPT TO:<c@d>", "250 rcpt"), looks("envelope.rcpt_tos", []),
        ("DATA", NEED_RCPT),
        handler=hooks(RCPT="250 rcpt")),
    Row("RCPT hook refuses", EHLO, MAIL, ("RCPT TO:<c@d>", "550 no"), ("DATA", NEED_RCPT),
        handler=hooks(RCPT="550 no")),
    Row("RCPT hook refuses and adds", EHLO, MAIL, ("RCPT TO:<c@d>", "550 no"),
        looks("envelope.rcpt_tos", ["c@d"], []),
        handler=hooks(RCPT=_refuse_but_append), differs="a refusal leaves nothing"),
    Row("DATA hook", *TO_DATA, (b"a\r\n.\r\n", "250 b'a\\r\\n'"), handler=hooks(DATA=lambda s, session,
        e: f"250 {e.content!r}")),
    Row("DATA hook's envelope", *TO_DATA, (b"a\r\n.\r\n", "250 a@b.example ['c@d.example']"),
        looks("envelope.rcpt_tos", []), MAIL,
        handler=hooks(DATA=lambda s, session, e: f"250 {e.mail_from} {e.rcpt_tos}")),
    Row("DATA hook refuses", *TO_DATA, (b"a\r\n.\r\n", "554 no"), ("DATA", NEED_RCPT), MAIL, RCPT, DATA,
        (b".\r\n", "554 no"), handler=hooks(DATA="554 no")),
    Row("DATA hook that returns two statuses", *TO_DATA, (b".\r\n", NOT_BYTES, LOCAL_ERROR), MAIL,
        handler=hooks(DATA=["250 one", "550 two"]), differs="a 500 blames the client"),
    Row("DATA hook fails", *TO_DATA, (b"a\r\n.\r\n", "500 Error: (ValueError) bad"), but(MAIL, NESTED, OK),
        handler=hooks(DATA=ValueError("bad")), differs="no transaction is left over"),
    Row("RSET hook", HELO, MAIL, ("RSET", "250 None"), handler=hooks(RSET=lambda s, session,
        e: f"250 {e.mail_from}")),
    Row("RSET hook is not called for an argument", ("RSET x", "501 Syntax: RSET"),
        handler=hooks(RSET="250 called")),
    Row("RSET hook refuses", HELO, MAIL, ("RSET", "550 no"), looks("envelope.mail_from", None),
        handler=hooks(RSET="550 no")),
    Row("NOOP hook's argument", ("NOOP", "250 (None,)"), ("NOOP ", "250 (None,)"),
        ("NOOP a  b ", "250 ('a  b',)"), handler=hooks(NOOP=_sees())),
    Row("QUIT hook", ("QUIT", f"221 later\n{CLOSED}"), handler=hooks(QUIT="221 later")),
    Row("QUIT hook says what it likes", ("QUIT", f"550 no\n{CLOSED}"), handler=hooks(QUIT="550 no")),
    Row("VRFY hook's argument", ("VRFY <a@b>", "252 ('a@b',)"), ("VRFY a", "252 ('a',)"),
        handler=hooks(VRFY=_sees(status="252"))),
    Row("VRFY hook is not called for nonsense", ("VRFY @@", "502 Could not VRFY @@"),
        handler=hooks(VRFY="250 called")),
    Row("hooks for other verbs are not called", ("EXPN", "502 EXPN not implemented"),
        ("HELP", f"250 Supported commands: {COMMANDS}"),
        ("X", '500 Error: command "X" not recognized'), handler=hooks(EXPN="250 called", HELP="250 called",
            X="250 called")),
    Row("process_message", *TO_DATA, (b"text\r\n.\r\n", "250 taken"), MAIL, handler=ProcessMessage,
        warns=(OLD_DATA,)),
    Row("async process_message", *TO_DATA, (b"text\r\n.\r\n", "250 taken"), MAIL, handler=ProcessMessageAsync,
        warns=(OLD_DATA,)),
    Row("process_message that says nothing", *TO_DATA, TEXT, MAIL, handler=ProcessMessageSilently,
        warns=(OLD_DATA,)),
    Row("handle_DATA and process_message", *TO_DATA, TEXT, handler=lambda smtp: type("Both",
        (Looks, ProcessMessage), {})(smtp)),
    Row("a handler that is a class", ("VRFY a", "252 static a"), ("NOOP", "250 StaticHooks"),
        handler=lambda smtp: StaticHooks),
    Row("a handler that answers to any name", HELO, EHLO, MAIL, RCPT, ("NOOP", OK), ("RSET", OK),
        ("VRFY @@", "502 Could not VRFY @@"),
        handler=lambda smtp: AnswersToAnyName()),
    Row("a handler that is None", EHLO, MAIL, RCPT, DATA, TEXT, handler=lambda smtp: None),
]  # fmt: skip


def _hi(session: Any, name: str) -> str:
    session.host_name = name
    return "250 mx.example"


STATUSES = [
    Row("octets", ("VRFY a", "252 \u00e9"), handler=hooks(VRFY="252 \u00e9".encode())),
    Row("several lines", ("VRFY a", "252-one\n252 two"), handler=hooks(VRFY="252-one\r\n252 two")),
    Row("no code at all", ("VRFY a", "whatever", LOCAL_ERROR), handler=hooks(VRFY="whatever"),
        differs="clients need a code"),
    Row("no text", ("VRFY a", "", LOCAL_ERROR), handler=hooks(VRFY=""), differs="clients need a code"),
    Row("text that is not ASCII", ("VRFY a",
        NOT_ASCII),
        handler=hooks(VRFY="252 \u00e9")),
    Row("text in UTF-8", ("VRFY a", "252 \u00e9"), handler=hooks(VRFY="252 \u00e9"), enable_SMTPUTF8=True),
    Row("a hook that pushes", ("VRFY a", "252-one\n252-two\n252 three"), handler=Pushes),
    Row("a plain hook", ("VRFY a", NOT_AWAITED, "252 plain"), handler=plain(VRFY="252 plain"),
        differs="plain hooks are hooks"),
    Row("plain hooks of a transaction", ("HELO c", NOT_AWAITED, "250 h"),
        ("MAIL FROM:<a@b>", NEED_HELO, "250 m"), ("RSET", NOT_AWAITED, "250 r"),
        ("QUIT", NOT_AWAITED, f"221 q\n{CLOSED}"), handler=plain(HELO="250 h", MAIL="250 m", RSET="250 r",
            QUIT="221 q"), differs="plain hooks are hooks"),
    *(
        Row(f"{hook} hook that returns nothing", *before, (sent, NOT_BYTES, LOCAL_ERROR),
            handler=hooks(**{hook: None}), differs="a 500 blames the client")
        for hook, sent, before in (
            ("HELO", "HELO c", ()), ("MAIL", "MAIL FROM:<a@b>", (EHLO,)),
                ("RCPT", "RCPT TO:<c@d>", (EHLO, MAIL)), ("DATA", "text\r\n.", TO_DATA),
            ("RSET", "RSET", ()), ("NOOP", "NOOP", ()), ("VRFY", "VRFY a", ()),
        )
    ),
    Row("QUIT hook that returns nothing", ("QUIT", NOT_BYTES, f"{LOCAL_ERROR}\n{CLOSED}"),
        handler=hooks(QUIT=None), differs="a 500 blames the client, and who says QUIT goes"),
    Row("EHLO hook that returns nothing", ("EHLO c",
        "500 Error: (TypeError) 'NoneType' object is not iterable", LOCAL_ERROR), handler=hooks(EHLO=None),
        differs="a 500 blames the client"),
    Row("a hook that returns a number", ("VRFY a", NOT_BYTES, LOCAL_ERROR), handler=hooks(VRFY=252),
        differs="a 500 blames the client"),
]  # fmt: skip

ERRORS = [
    *(
        Row(f"{hook} hook fails", *before, (sent, "500 Error: (KeyError) 'x'"), ("NOOP", OK),
            handler=hooks(**{hook: KeyError("x")}))
        for hook, sent, before in (
            ("HELO", "HELO c", ()), ("EHLO", "EHLO c", ()), ("MAIL", "MAIL FROM:<a@b>", (EHLO,)),
                ("RCPT", "RCPT TO:<c@d>", (EHLO, MAIL)),
            ("RSET", "RSET", ()), ("VRFY", "VRFY a", ()),
        )
    ),
    Row("QUIT hook fails", ("QUIT", "500 Error: (KeyError) 'x'", f"500 Error: (KeyError) 'x'\n{CLOSED}"),
        handler=hooks(QUIT=KeyError("x")), differs="who says QUIT goes"),
    Row("an error without text", ("VRFY a", "500 Error: (ValueError) "), handler=hooks(VRFY=ValueError())),
    Row("an error that fails to tell", ("VRFY a", "500 Error: (ValueError) and again"), ("NOOP", OK),
        handler=hooks(VRFY=Unspeakable())),
    Row("handle_exception", ("VRFY a", "451 mine: 'x'"), handler=hooks(VRFY=KeyError("x"),
        handle_exception=lambda error: f"451 mine: {error}")),
    Row("handle_exception answers for DATA", *TO_DATA, (b".\r\n", "554 no"), but(MAIL, NESTED, OK),
        handler=hooks(DATA=KeyError("x"), handle_exception="554 no"), differs="no transaction is left over"),
    Row("handle_exception fails", ("VRFY a", "500 Error: (ZeroDivisionError) inner"), ("NOOP", OK),
        handler=hooks(VRFY=KeyError("x"), handle_exception=_raises(ZeroDivisionError("inner")))),
    Row("handle_exception fails to tell", ("VRFY a", "500 Error: Cannot describe error"), ("NOOP", OK),
        handler=hooks(VRFY=KeyError("x"), handle_exception=_raises(Unspeakable()))),
    Row("handle_exception returns nothing", ("VRFY a", HANGS, LOCAL_ERROR), ("NOOP", OK),
        handler=hooks(VRFY=KeyError("x"), handle_exception=None), differs="nobody is left waiting"),
    Row("an unknown hook's name", ("VRFY a",
        "252 Cannot VRFY user, but will accept message and attempt delivery"),
        handler=hooks(VRFYY="252 called")),
]  # fmt: skip


def _set(name: str, value: object) -> Exchange:
    return looks(f"setattr({name.rpartition('.')[0]}, {name.rpartition('.')[2]!r}, {value!r})", None)


ATTRIBUTES = [
    Row("a new session", looks("(session.host_name, session.extended_smtp, session.ssl, session.proxy_data)",
        (None, False, None, None)),
        looks("(session.auth_data, session.authenticated, session.login_data)", (None, None, None))),
    Row("the session's peer", looks("(type(session.peer), len(session.peer))", (tuple, 2))),
    Row("a new envelope",
        looks("(envelope.mail_from, envelope.mail_options, envelope.rcpt_tos, envelope.rcpt_options)",
        (None, [], [], [])),
        looks("(envelope.smtp_utf8, envelope.content, envelope.original_content)", (False, None, None))),
    Row("the server's facts", looks("(server.hostname, server.data_size_limit, server.enable_SMTPUTF8)",
        ("mx.example", 33554432, False)),
        looks("(server.tls_context, bool(server.require_starttls), server.__ident__)", (None, False, "test")),
        looks("(server.session is session, server.envelope is envelope)", (True, True)),
        looks("server.event_handler is self", True),
        looks("(server.loop.is_running(), session.loop is server.loop)", (True, True)),
        looks("server.transport.get_extra_info('peername') == session.peer", True)),
    Row("the size of a command", looks("server.max_command_size_limit", 512), EHLO,
        looks("server.max_command_size_limit", 538)),
    Row("the server's limits",
        looks("(server.command_size_limit, server.line_length_limit, server.local_part_limit)",
        (512, 1001, 0))),
    Row("attributes of one's own", _set("session.mine", 1), _set("envelope.mine", 2), _set("server.mine", 3),
        HELO, MAIL,
        looks("(session.mine, hasattr(envelope, 'mine'), server.mine)", (1, False, 3))),
    Row("the session stays, envelopes do not", _set("session.old", 1),
        looks("setattr(self, 'old', envelope)", None), ("RSET", OK),
        looks("(session.old, self.old is envelope)", (1, False)), looks("setattr(self, 'old', envelope)",
            None), HELO,
        looks("self.old is envelope", False), MAIL, looks("setattr(self, 'old', envelope)", None), RCPT,
            looks("self.old is envelope", True),
        DATA, TEXT, looks("(self.old is envelope, self.old is taken)", (False, True))),
    Row("login_data", looks("session.login_data", None), _set("session.login_data", "me"),
        looks("session.login_data", "me")),
    Row("a limit set while running", _set("server.data_size_limit", 10), ehlo("8BITMIME", size=10),
        ("MAIL FROM:<a@b> SIZE=11", "552 Error: message size exceeds fixed maximum message size"),
        MAIL, RCPT, DATA, (b"123456789\r\n.\r\n", "552 Error: Too much mail data")),
    Row("a limit lifted while running", _set("server.data_size_limit", None), ehlo("8BITMIME", size=0),
        *TO_DATA[1:], TEXT, data_size_limit=1),
    Row("SMTPUTF8 set while running", _set("server.enable_SMTPUTF8", True), ehlo("8BITMIME", "SMTPUTF8"),
        ("MAIL FROM:<\u00e9@b> SMTPUTF8", OK)),
    Row("SMTPUTF8 unset while running", _set("server.enable_SMTPUTF8", False), EHLO,
        ("HELO \u00e9", "500 Error: strict ASCII mode"), enable_SMTPUTF8=True),
    Row("a hostname set while running", _set("server.hostname", "other"), ("HELO c", "250 other"),
        ("EHLO c", EHLO[1].replace("mx.example", "other"))),
    Row("a TLS context set while running",
        looks("setattr(server, 'tls_context', __import__('ssl').create_default_context())", None),
        ehlo("8BITMIME", "STARTTLS")),
    Row("TLS required while running", _set("server.require_starttls", True), ("HELO c", NEED_TLS),
        tls_context=TLS),
    Row("a local part's limit set while running", HELO, _set("server.local_part_limit", 3),
        ("MAIL FROM:<abcd@e>", "553 5.1.3 Error: malformed address"),
        ("MAIL FROM:<abc@e>", OK), ("RCPT TO:<abcd@e>", "553 5.1.3 Error: malformed address"),
            ("VRFY abcd@e", "502 Could not VRFY abcd@e")),
    Row("a command's limit set while running", _set("server.command_size_limit", 100),
        ("HELO " + 96 * "h", LONG), ("HELO " + 95 * "h", HELO[1])),
    Row("a name set by a hook", _set("session.host_name", "d"), MAIL),
    Row("a name taken by a hook", HELO, _set("session.host_name", None), but(MAIL, NEED_HELO)),
    Row("ESMTP set by a hook", HELO, _set("session.extended_smtp", True), ("MAIL FROM:<a@b> SIZE=1", OK)),
    Row("a sender set by a hook", HELO, _set("envelope.mail_from", "x@y"), RCPT, but(MAIL, NESTED)),
    Row("recipients set by a hook", HELO, _set("envelope.rcpt_tos", ["x@y"]), but(DATA, END, NEED_RCPT),
        differs="a message has a sender"),
    Row("recipients taken by a hook", HELO, MAIL, RCPT, looks("envelope.rcpt_tos.clear()", None),
        ("DATA", NEED_RCPT)),
]  # fmt: skip

STARTTLS = ("STARTTLS", "220 Ready to start TLS")
TLS_EHLO = ehlo("8BITMIME", "STARTTLS")
SECURE_EHLO = ehlo("8BITMIME", "AUTH LOGIN PLAIN")


class Distrusts(Looks):
    def handle_STARTTLS(self, server: Any, session: Any, envelope: Any) -> bool:
        return False


class Trusts(Looks):
    def handle_STARTTLS(self, server: Any, session: Any, envelope: Any) -> bool:
        session.seen = (session.ssl is not None, envelope.mail_from)
        return True


SECURITY = [
    Row("STARTTLS", TLS_EHLO, STARTTLS, SECURE_EHLO, MAIL, RCPT, DATA, TEXT, QUIT, tls_context=TLS),
    Row("STARTTLS without a hello", STARTTLS, SECURE_EHLO, tls_context=TLS),
    Row("STARTTLS ends the transaction and the hello", TLS_EHLO, MAIL, STARTTLS, but(MAIL, NEED_HELO),
        looks("envelope.mail_from", None),
        looks("(session.host_name, session.extended_smtp)", (None, False)), tls_context=TLS),
    Row("the facts of TLS", STARTTLS, looks("sorted(session.ssl)",
        ['cipher', 'compression', 'peercert', 'ssl_object', 'sslcontext']),
        looks("type(session.ssl['ssl_object']).__name__", "SSLObject"),
        looks("session.ssl['sslcontext'] is server.tls_context", True),
            looks("session.ssl['peercert']", None), looks("session.ssl['cipher'] is not None", True),
            tls_context=TLS),
    Row("what is kept over STARTTLS", _set("session.mine", 1), STARTTLS,
        looks("getattr(session, 'mine', None)", None, 1), tls_context=TLS,
        differs="it is the same connection"),
    Row("HELP in TLS", STARTTLS, ("HELP",
        f"250 Supported commands: {COMMANDS.replace('RSET', 'RSET STARTTLS')}"), tls_context=TLS),
    Row("TLS is required", ("MAIL", NEED_TLS), STARTTLS, SECURE_EHLO, MAIL, tls_context=TLS,
        require_starttls=True),
    Row("a hook that distrusts", STARTTLS, ("EHLO c", "554 Command refused due to lack of security"),
        ("NOOP", "554 Command refused due to lack of security"),
        ("", "500 Error: bad syntax"), ("QUIT x", "501 Syntax: QUIT"), QUIT, handler=Distrusts,
            tls_context=TLS),
    Row("a hook that trusts", TLS_EHLO, MAIL, STARTTLS, looks("session.seen", (True, None)), SECURE_EHLO,
        MAIL, handler=Trusts, tls_context=TLS),
    Row("octets behind STARTTLS in clear", (b"STARTTLS\r\nNOOP\r\n", f"220 Ready to start TLS\n{HANGS}",
        f"554 5.5.0 Error: octets after STARTTLS; closing connection\n{CLOSED}"),
        tls_context=TLS, differs="injection"),
    Row("TLS from the beginning", but(MAIL, NEED_HELO), HELO, MAIL, RCPT, DATA, TEXT, QUIT, tls=True),
    Row("TLS from the beginning counts", (EHLO[0], EHLO[1], SECURE_EHLO[1]),
        ("AUTH X", "538 5.7.11 Encryption required for requested authentication mechanism",
        "504 5.5.4 Unrecognized authentication type"), tls=True, differs="TLS is TLS"),
    Row("the facts of TLS from the beginning", looks("(session.ssl or {}).get('cipher') is not None", False,
        True), tls=True, differs="TLS is TLS"),
]  # fmt: skip

ROWS = [*HOOKS, *STATUSES, *ERRORS, *ATTRIBUTES, *SECURITY]
