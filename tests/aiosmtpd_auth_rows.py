"""Rows for AUTH: mechanisms built in and of one's own, what they return, and who may go on without.

The notation is of ``aiosmtpd_rows``.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from typing import Any

from aiosmtpd_hook_rows import hooks
from aiosmtpd_rows import (
    DATA,
    HELO,
    MAIL,
    NEED_AUTH,
    OK,
    QUIT,
    RCPT,
    TEXT,
    TLS,
    Exchange,
    Looks,
    Row,
    Smtp,
    With,
    but,
    ehlo,
    looks,
)

SUCCESS = "235 2.7.0 Authentication successful"
INVALID = "535 5.7.8 Authentication credentials invalid"
ABORTED = "501 5.7.0 Auth aborted"
NO_BASE64 = "501 5.5.2 Can't decode base64"
NO_SPLIT = "501 5.5.2 Can't split auth value"
UNKNOWN = "504 5.5.4 Unrecognized authentication type"
ENCRYPT = "538 5.7.11 Encryption required for requested authentication mechanism"
ALREADY = "503 Already authenticated"
EMPTY = "334 "
USERNAME = "334 VXNlciBOYW1lAA=="
PASSWORD = "334 UGFzc3dvcmQA"
NAMES = "(session.authenticated, session.auth_data, session.login_data)"
IN_CLEAR = "Requiring AUTH while not requiring TLS can lead to security vulnerabilities!"


def b64(text: str | bytes) -> str:
    return b64encode(text if isinstance(text, bytes) else text.encode()).decode()


GOOD = b64("\0user\0word")
WRONG = b64("\0user\0wrong")
USER, WORD = b64("user"), b64("word")


def callback(mechanism: str, login: bytes, password: bytes) -> bool:
    return mechanism in ("PLAIN", "LOGIN") and (login, password) == (b"user", b"word")


def answers(**result: Any) -> With:
    """An authenticator that always has this result."""
    return With(lambda smtp: lambda server, session, envelope, mechanism, data: smtp.AuthResult(**result))


def authenticator(smtp: Smtp) -> Callable[..., Any]:
    """An authenticator that looks at all it is told."""

    def decide(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> Any:
        told = (server.session is session, server.envelope is envelope, mechanism, type(data).__name__, *data)
        if told == (True, True, mechanism, "LoginPassword", b"user", b"word"):
            return smtp.AuthResult(success=True, auth_data=data)
        return smtp.AuthResult(success=False, handled=False, message=f"535 {told!r}")

    return decide


def returning(result: Any) -> Callable[[Smtp], object]:
    """A handler with a mechanism MINE of this result; a function makes it from the module under test."""

    class Mechanism(Looks):
        async def auth_MINE(self, server: Any, args: list[str]) -> Any:
            return result(self.smtp) if callable(result) else result

    return Mechanism


class Mechanisms(Looks):
    """Mechanisms of a handler."""

    async def auth_X__Y(self, server: Any, args: list[str]) -> Any:
        await server.push(f"235 {args!r}")

    async def auth_ASK(self, server: Any, args: list[str]) -> Any:
        blob = await server.challenge_auth("one")
        if blob is self.smtp.MISSING:
            return self.smtp.AuthResult(success=False)
        blob += await server.challenge_auth(b"two", encode_to_b64=False)
        return self.smtp.AuthResult(success=True, message=f"235 {blob!r}")

    async def auth_FAIL(self, server: Any, args: list[str]) -> Any:
        raise ValueError("bad")

    async def auth_PLAIN(self, server: Any, args: list[str]) -> Any:
        return self.smtp.AuthResult(success=True, message="235 mine")


class PlainMechanism(Looks):
    def auth_MINE(self, server: Any, args: list[str]) -> Any:
        return self.smtp.AuthResult(success=True)


def decorated(smtp: Smtp) -> object:
    """A handler whose mechanism has a name that no method can have."""

    class Decorated(Looks):
        @smtp.auth_mechanism("x-token-2")  # type: ignore[untyped-decorator]
        async def auth_whatever(self, server: Any, args: list[str]) -> Any:
            return smtp.AuthResult(success=True, message="235 token")

    return Decorated(smtp)


def challenging(smtp: Smtp) -> Any:
    """A server with mechanisms and challenges of its own."""

    class Challenging(smtp.SMTP):  # type: ignore[misc]
        AuthLoginUsernameChallenge = "Who?"
        AuthLoginPasswordChallenge = "Word?"

        async def auth_XOR(self, _: Any, args: list[str]) -> Any:
            return smtp.AuthResult(success=True, auth_data=_ is self, message="235 own")

        async def auth_PLAIN(self, _: Any, args: list[str]) -> Any:
            result = await super().auth_PLAIN(_, args)
            self.session.seen = result.success
            return result

    return Challenging


def old_style(smtp: Smtp) -> Any:
    """A server that uses the deprecated way to challenge."""

    class OldStyle(smtp.SMTP):  # type: ignore[misc]
        async def auth_OLD(self, _: Any, args: list[str]) -> Any:
            return await self._auth_interact("334 whatever")

    return OldStyle


def _let_in(server: Any, session: Any, envelope: Any, args: list[str]) -> str:
    session.authenticated = True
    return "235 me"


def auth_ehlo(names: str = "LOGIN PLAIN") -> Exchange:
    return ehlo("8BITMIME", f"AUTH {names}")


EHLO = auth_ehlo()
LET_IN: dict[str, Any] = {"auth_require_tls": False, "auth_callback": callback}


def row(title: str, *talk: Exchange, hello: Exchange = EHLO, **settings: Any) -> Row:
    """A row in which AUTH is to be had in clear, after EHLO."""
    return Row(title, hello, *talk, **{**LET_IN, **settings})


def mine(title: str, result: Any, reply: str, *more: Exchange, **settings: Any) -> Row:
    """A row for what a mechanism returns."""
    return row(
        title,
        ("AUTH MINE", reply),
        *more,
        hello=auth_ehlo("LOGIN MINE PLAIN"),
        handler=returning(result),
        **settings,
    )


PLAIN = [
    row("PLAIN", (f"AUTH PLAIN {GOOD}", SUCCESS), looks("(session.authenticated, tuple(session.auth_data))",
        (True, (b"user", b"word")))),
    row("PLAIN without an initial response", ("AUTH PLAIN", EMPTY), (GOOD, SUCCESS),
        looks("session.login_data", b"user")),
    row("PLAIN with an authorization identity", (f"AUTH PLAIN {b64(chr(0).join(('who', 'user', 'word')))}",
        SUCCESS)),
    row("PLAIN and a wrong password", (f"AUTH PLAIN {WRONG}", INVALID), looks(NAMES, (None, None, None)),
        (f"AUTH PLAIN {GOOD}", SUCCESS)),
    row("PLAIN aborted", ("AUTH PLAIN", EMPTY), ("*", ABORTED), ("NOOP", OK)),
    row("PLAIN, and an initial response that aborts", ("AUTH PLAIN *", NO_BASE64)),
    row("PLAIN and no base64", ("AUTH PLAIN ab", NO_BASE64), ("AUTH PLAIN !!!!", NO_BASE64),
        ("AUTH PLAIN", EMPTY), ("ab", NO_BASE64)),
    row("PLAIN and an equals sign", ("AUTH PLAIN =", NO_BASE64)),
    row("PLAIN and nothing", ("AUTH PLAIN", EMPTY), ("", NO_SPLIT)),
    row("PLAIN and too few parts", (f"AUTH PLAIN {b64('user')}", NO_SPLIT),
        (f"AUTH PLAIN {b64('user' + chr(0) + 'word')}", NO_SPLIT)),
    row("PLAIN and too many parts", (f"AUTH PLAIN {b64(chr(0).join('abcd'))}", NO_SPLIT)),
    row("PLAIN and octets", (f"AUTH PLAIN {b64(b'%c%c%c%c' % (0, 255, 0, 254))}", "535 (b'\\xff', b'\\xfe')"),
        authenticator=With(lambda smtp: lambda s, session, e, mechanism,
            data: smtp.AuthResult(success=False, handled=False, message=f"535 {tuple(data)!r}"))),
    row("PLAIN and spaces about the response", ("AUTH PLAIN", EMPTY), (f"  {GOOD}  ", SUCCESS)),
    row("PLAIN, and a response ended by LF", ("AUTH PLAIN", EMPTY), (GOOD.encode() + b"\n", SUCCESS)),
]  # fmt: skip

LOGIN = [
    row("LOGIN", ("AUTH LOGIN", USERNAME), (USER, PASSWORD), (WORD, SUCCESS),
        looks("tuple(session.auth_data)", (b"user", b"word"))),
    row("LOGIN with an initial response", (f"AUTH LOGIN {USER}", PASSWORD), (WORD, SUCCESS)),
    row("LOGIN and a wrong password", ("AUTH LOGIN", USERNAME), (USER, PASSWORD), (USER, INVALID),
        ("NOOP", OK)),
    row("LOGIN aborted at once", ("AUTH LOGIN", USERNAME), ("*", ABORTED), ("NOOP", OK)),
    row("LOGIN aborted later", ("AUTH LOGIN", USERNAME), (USER, PASSWORD), ("*", ABORTED), ("NOOP", OK)),
    row("LOGIN and no base64", ("AUTH LOGIN ab", NO_BASE64), ("AUTH LOGIN", USERNAME), ("ab", NO_BASE64),
        ("AUTH LOGIN", USERNAME), (USER, PASSWORD), ("ab", NO_BASE64)),
    row("LOGIN and nothing", ("AUTH LOGIN", USERNAME), ("", PASSWORD), ("", INVALID)),
]  # fmt: skip

CHECKS = [
    Row("AUTH before EHLO", ("AUTH", "503 Error: send EHLO first"), ("AUTH PLAIN x",
        "503 Error: send EHLO first"), **LET_IN),
    Row("AUTH after HELO", HELO, ("AUTH", "500 Error: command 'AUTH' not recognized"), **LET_IN),
    Row("AUTH in clear", ehlo("8BITMIME"), ("AUTH", ENCRYPT), ("AUTH PLAIN x y", ENCRYPT),
        ("AUTH NO", ENCRYPT)),
    Row("AUTH after HELO, in clear", HELO, ("AUTH", "500 Error: command 'AUTH' not recognized")),
    row("AUTH wants a mechanism", ("AUTH", "501 Not enough value"), ("AUTH  ", "501 Not enough value")),
    row("AUTH of too many words", ("AUTH PLAIN x y", "501 Too many values"),
        ("AUTH NO x y", "501 Too many values")),
    row("AUTH of an unknown mechanism", ("AUTH NO", UNKNOWN), ("AUTH NO x", UNKNOWN)),
    row("AUTH again", (f"AUTH PLAIN {GOOD}", SUCCESS), ("AUTH", ALREADY), ("AUTH NO x y", ALREADY),
        ("RSET", OK), ("AUTH PLAIN", ALREADY), EHLO, ("AUTH PLAIN", ALREADY)),
    row("AUTH in any case", ("auth PLAIN", EMPTY), ("*", ABORTED), ("AUTH plain", UNKNOWN, EMPTY),
        ("*", '500 Error: command "*" not recognized', ABORTED),
        ("AUTH Login", UNKNOWN, USERNAME), ("*", '500 Error: command "*" not recognized', ABORTED),
            differs="RFC 4954 4"),
    row("a mechanism is left out", ("AUTH LOGIN", UNKNOWN), (f"AUTH PLAIN {GOOD}", SUCCESS),
        hello=auth_ehlo("PLAIN"), auth_exclude_mechanism=["LOGIN"]),
    row("no mechanism is left", ("AUTH PLAIN", UNKNOWN), hello=(*auth_ehlo(""), ehlo("8BITMIME")[1]),
        auth_exclude_mechanism=("LOGIN", "PLAIN", "NO"), differs="nothing is offered"),
    row("nobody is let in", (f"AUTH PLAIN {GOOD}", INVALID), auth_callback=None),
    row("AUTH amid a transaction", MAIL, (f"AUTH PLAIN {GOOD}", SUCCESS), RCPT),
    row("HELP AUTH", ("HELP AUTH", "250 Syntax: AUTH <mechanism>")),
    row("AUTH is limited", ("AUTH NO", UNKNOWN), ("AUTH NO", "421 4.7.0 AUTH sent too many times\n[closed]"),
        command_call_limit={"AUTH": 1}),
    row("challenges are no commands", ("AUTH LOGIN", USERNAME), (USER, PASSWORD), (WORD, SUCCESS),
        command_call_limit=1),
    row("many failures", *(8 * ((f"AUTH PLAIN {WRONG}", INVALID),))),
    row("a response of 900 octets", ("AUTH PLAIN", EMPTY), (b64(chr(0) + 600 * "u" + chr(0) + "w"), INVALID)),
    Row("AUTH in TLS", ("STARTTLS", "220 Ready to start TLS"), ehlo("8BITMIME", "AUTH LOGIN PLAIN"),
        (f"AUTH PLAIN {GOOD}", SUCCESS), MAIL, auth_callback=callback, tls_context=TLS),
    Row("AUTH is forgotten at STARTTLS", ehlo("8BITMIME", "STARTTLS", "AUTH LOGIN PLAIN"),
        (f"AUTH PLAIN {GOOD}", SUCCESS), ("STARTTLS", "220 Ready to start TLS"),
        looks(NAMES, (None, None, None)),
        EHLO, (f"AUTH PLAIN {GOOD}", SUCCESS), tls_context=TLS, **LET_IN),
]  # fmt: skip

REQUIRED = [
    row("authentication is required", ("HELP", NEED_AUTH), ("VRFY a", NEED_AUTH), but(MAIL, NEED_AUTH),
        but(RCPT, NEED_AUTH), ("DATA", NEED_AUTH),
        (f"AUTH PLAIN {GOOD}", SUCCESS), MAIL, RCPT, DATA, TEXT, QUIT, auth_required=True, warns=(IN_CLEAR,)),
    row("authentication outlives the transaction and the hello", (f"AUTH PLAIN {GOOD}", SUCCESS), EHLO, MAIL,
        ("RSET", OK), MAIL, HELO, MAIL, auth_required=True, warns=(IN_CLEAR,)),
    row("a failure lets nobody on", (f"AUTH PLAIN {WRONG}", INVALID), but(MAIL, NEED_AUTH),
        auth_required=True, warns=(IN_CLEAR,)),
    Row("authentication is required, in TLS only", ehlo("8BITMIME", "STARTTLS"), but(MAIL, NEED_AUTH),
        ("STARTTLS", "220 Ready to start TLS"), EHLO, but(MAIL, NEED_AUTH),
        (f"AUTH PLAIN {GOOD}", SUCCESS), MAIL, auth_required=True, auth_callback=callback, tls_context=TLS),
    mine("an old success lets on", lambda smtp: b"who", SUCCESS, looks("session.authenticated", None, True),
        but(MAIL, NEED_AUTH, OK), auth_required=True, warns=(IN_CLEAR,),
         differs="success is success"),
]  # fmt: skip

AUTHENTICATOR = [
    row("the authenticator is told all", (f"AUTH PLAIN {GOOD}", SUCCESS),
        looks("session.login_data", b"user"), authenticator=With(authenticator)),
    row("the authenticator is told of LOGIN", (f"AUTH LOGIN {USER}", PASSWORD),
        (USER, "535 (True, True, 'LOGIN', 'LoginPassword', b'user', b'user')"),
        authenticator=With(authenticator)),
    row("the authenticator wins", (f"AUTH PLAIN {GOOD}", INVALID), authenticator=answers(success=False,
        handled=False)),
    row("the authenticator's own success", (f"AUTH PLAIN {WRONG}", "235 mine"),
        looks(NAMES, (True, "me", None)), authenticator=answers(success=True, message="235 mine",
        auth_data="me")),
    row("the authenticator's success without data", (f"AUTH PLAIN {WRONG}", SUCCESS),
        looks(NAMES, (True, None, None)), authenticator=answers(success=True, handled=False)),
    row("the authenticator's own failure", (f"AUTH PLAIN {WRONG}", "550 mine"),
        looks(NAMES, (None, None, None)), authenticator=answers(success=False, handled=False,
        message="550 mine")),
    row("the authenticator's failure that is handled",
        (f"AUTH PLAIN {WRONG}\r\nNOOP\r\n".encode(), OK, f"{INVALID}\n{OK}"),
        authenticator=answers(success=False, message="550 mine"), differs="nobody is left waiting"),
    row("the authenticator fails", (f"AUTH PLAIN {WRONG}", "500 Error: (ZeroDivisionError) division by zero"),
        ("NOOP", OK), authenticator=lambda *_: 1 / 0),
    row("the callback fails", (f"AUTH PLAIN {WRONG}", "500 Error: (ZeroDivisionError) division by zero"),
        ("NOOP", OK), auth_callback=lambda *_: 1 / 0),
    row("the callback's truth", (f"AUTH PLAIN {WRONG}", SUCCESS), auth_callback=lambda *_: "yes"),
]  # fmt: skip

RESULTS = [
    mine("AuthResult of success", lambda smtp: smtp.AuthResult(success=True), SUCCESS,
        looks(NAMES, (True, None, None)), MAIL),
    mine("AuthResult of success, with data", lambda smtp: smtp.AuthResult(success=True,
        auth_data=smtp.LoginPassword(b"u", b"p")), SUCCESS,
        looks("(session.auth_data.password, session.login_data)", (b"p", b"u"))),
    mine("AuthResult of failure", lambda smtp: smtp.AuthResult(success=False, handled=False), INVALID,
        looks("session.authenticated", None)),
    mine("AuthResult of failure, with a text", lambda smtp: smtp.AuthResult(success=False, handled=False,
        message="454 later"), "454 later"),
    row("None is handled", (b"AUTH MINE\r\nNOOP\r\n", OK, f"{INVALID}\n{OK}"), hello=auth_ehlo("LOGIN MINE PLAIN"),
        handler=returning(None), differs="nobody is left waiting"),
    mine("False is a failure", False, INVALID, looks("session.authenticated", None)),
    mine("MISSING is a failure", lambda smtp: smtp.MISSING, INVALID),
    mine("True is a success", True, SUCCESS, looks("(session.authenticated, session.login_data)",
        (None, True), (True, True)), differs="success is success"),
    mine("octets are a success", b"who", SUCCESS, looks("(session.authenticated, session.login_data)",
        (None, b"who"), (True, b"who")), differs="success is success"),
    mine("an empty identity is a success", b"", SUCCESS, looks("session.login_data", b"")),
]  # fmt: skip

OWN = [
    row("a mechanism with a hyphen", ("AUTH X-Y", "235 ['X-Y']"), ("AUTH X-Y resp", "235 ['X-Y', 'resp']"),
        ("AUTH X__Y", UNKNOWN),
        hello=auth_ehlo("ASK FAIL LOGIN PLAIN X-Y"), handler=Mechanisms),
    row("a mechanism that asks twice", ("AUTH ASK", "334 b25l"), ("YQ==", "334 two"), ("Yg==", "235 b'ab'"),
        hello=auth_ehlo("ASK FAIL LOGIN PLAIN X-Y"), handler=Mechanisms),
    row("a mechanism that asks and is refused", ("AUTH ASK", "334 b25l"), ("*", ABORTED), ("NOOP", OK),
        hello=auth_ehlo("ASK FAIL LOGIN PLAIN X-Y"), handler=Mechanisms),
    row("a mechanism that fails", ("AUTH FAIL", "500 Error: (ValueError) bad"), ("NOOP", OK),
        hello=auth_ehlo("ASK FAIL LOGIN PLAIN X-Y"), handler=Mechanisms),
    row("a handler's mechanism wins", ("AUTH PLAIN", "235 mine"), hello=auth_ehlo("ASK FAIL LOGIN PLAIN X-Y"),
        handler=Mechanisms),
    row("a handler's mechanism is left out", ("AUTH ASK", UNKNOWN), hello=auth_ehlo("FAIL LOGIN PLAIN X-Y"),
        handler=Mechanisms, auth_exclude_mechanism=["ASK"]),
    row("a mechanism that is named", ("AUTH X-TOKEN-2", "235 token"),
        hello=auth_ehlo("LOGIN PLAIN X-TOKEN-2"), handler=decorated),
    row("a mechanism that is not async", ("AUTH MINE",
        "500 Error: (TypeError) object AuthResult can't be used in 'await' expression", SUCCESS),
        hello=auth_ehlo("LOGIN MINE PLAIN"), handler=PlainMechanism, differs="plain hooks are hooks"),
    row("a server's mechanism", ("AUTH XOR", "235 own"), looks("session.auth_data", True),
        hello=auth_ehlo("LOGIN PLAIN XOR"), server=challenging),
    row("a server's challenges", ("AUTH LOGIN", f"334 {b64('Who?')}"), (USER, f"334 {b64('Word?')}"),
        (WORD, SUCCESS), hello=auth_ehlo("LOGIN PLAIN XOR"), server=challenging),
    row("a server that overrides PLAIN", (f"AUTH PLAIN {GOOD}", SUCCESS), looks("session.seen", True),
        hello=auth_ehlo("LOGIN PLAIN XOR"), server=challenging),
    row("_auth_interact", ("AUTH OLD", "334 whatever"), (USER, SUCCESS), looks("session.login_data", b"user"),
        hello=auth_ehlo("LOGIN OLD PLAIN"), server=old_style,
        warns=("_auth_interact will be deprecated in version 2.0. Please use challenge_auth() instead.",)),
]  # fmt: skip

HOOK = [
    row("AUTH hook", ("AUTH PLAIN x", "235 (['PLAIN', 'x'],)"), looks("session.authenticated", None),
        handler=hooks(AUTH=lambda s, session, e, *more: f"235 {more!r}")),
    row("AUTH hook is after the checks", ("AUTH", "501 Not enough value"), ("AUTH NO", UNKNOWN),
        ("AUTH PLAIN a b", "501 Too many values"), handler=hooks(AUTH="235 called")),
    row("AUTH hook that lets in", ("AUTH PLAIN", "235 me"), MAIL, handler=hooks(AUTH=_let_in),
        auth_required=True, warns=(IN_CLEAR,)),
    row("AUTH hook that refuses", ("AUTH PLAIN", "535 no"), but(MAIL, NEED_AUTH),
        handler=hooks(AUTH="535 no"), auth_required=True, warns=(IN_CLEAR,)),
    row("AUTH hook that fails", ("AUTH PLAIN", "500 Error: (KeyError) 'x'"),
        handler=hooks(AUTH=KeyError("x"))),
    row("AUTH hook that returns nothing", (b"AUTH PLAIN\r\nNOOP\r\n", OK, f"{INVALID}\n{OK}"), handler=hooks(AUTH=None),
        differs="nobody is left waiting"),
    row("AUTH hook that goes on", ("AUTH PLAIN", EMPTY), (GOOD, SUCCESS),
        handler=lambda smtp: hooks(AUTH=smtp.MISSING)(smtp)),
]  # fmt: skip

ROWS = [*PLAIN, *LOGIN, *CHECKS, *REQUIRED, *AUTHENTICATOR, *RESULTS, *OWN, *HOOK]
