"""What aiosmtpd 1.4.6 does, as rows that any server of its kind can be held against.

Knows the notation of a row, and the rows for lines and for commands outside of a transaction. Refuses to know who
plays them (``aiosmtpd_player``); mail, hooks and authentication have modules of their own.

A row is a conversation after the greeting: pairs of what the client sends and what comes back. Text is sent with
CRLF, octets as they are; a reply's lines are parted by LF. Where ``fastsmtp`` differs on purpose the pair has a
third part, its reply, and the row says why in ``differs``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Smtp = Any  # the module under test, `fastsmtp.smtp` or `aiosmtpd.smtp`
Exchange = tuple[str | bytes, str] | tuple[str | bytes, str, str]

CLOSED = "[closed]"  # as the last line of a reply: the server hangs up
HANGS = "[hangs]"  # no reply: what fastsmtp promises not to do


class With:
    """A setting that is made from the module under test."""

    def __init__(self, make: Callable[[Smtp], object]) -> None:
        self.make = make


class Row:
    """A conversation. ``handler`` and ``server`` make the handler and the class from the module under test;
    ``warns`` are the texts of Python's warnings; ``tls`` speaks TLS from the beginning; what is left are the
    arguments of the server.
    """

    def __init__(
        self,
        title: str,
        *talk: Exchange,
        handler: Callable[[Smtp], object] | None = None,
        server: Callable[[Smtp], Any] | None = None,
        differs: str = "",
        warns: tuple[str, ...] = (),
        tls: bool = False,
        **settings: object,
    ) -> None:
        self.title, self.talk, self.handler, self.server = title, talk, handler or Looks, server
        self.differs, self.warns, self.tls, self.settings = differs, warns, tls, settings
        assert bool(differs) == any(len(exchange) == 3 for exchange in talk), title

    @property
    def secures(self) -> bool:
        """Whether there is TLS in it."""
        return self.tls or any(replies[0].startswith("220 ") for _, *replies in self.talk)

    def __str__(self) -> str:
        return self.title


class Looks:
    """A handler for looking around: NOOP answers with what an expression is, DATA takes the message."""

    def __init__(self, smtp: Smtp) -> None:
        self.smtp = smtp
        self.taken: Any = None  # the envelope of the last message

    async def handle_NOOP(self, server: Any, session: Any, envelope: Any, argument: str | None) -> str:
        known = {
            "server": server,
            "session": session,
            "envelope": envelope,
            "taken": self.taken,
            "self": self,
        }
        return "250 OK" if argument is None else f"250 {eval(argument, known)!r}"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.taken = envelope
        return "250 OK"


def bare(smtp: Smtp) -> object:
    """A handler without any hook."""
    return object()


def ehlo(*extensions: str, size: int = 33554432) -> Exchange:
    """EHLO and its reply, with ``extensions`` between SIZE and HELP."""
    sizes = [f"SIZE {size}"] if size else []
    lines = ["mx.example", *sizes, *extensions]
    return "EHLO c.example", "\n".join([*(f"250-{line}" for line in lines), "250 HELP"])


def but(exchange: Exchange, *replies: str) -> Exchange:
    """The same words, answered otherwise."""
    return exchange[0], *replies  # type: ignore[return-value]


def looks(expression: str, value: object, ours: object = CLOSED) -> Exchange:
    """What ``Looks`` tells of an expression."""
    exchange = (f"NOOP {expression}", f"250 {value!r}")
    return exchange if ours is CLOSED else (*exchange, f"250 {ours!r}")


OK = "250 OK"
END = "354 End data with <CR><LF>.<CR><LF>"
BAD = "500 Error: bad syntax"
LONG = "500 Command line too long"
ASCII = "500 Error: strict ASCII mode"
NEED_HELO = "503 Error: send HELO first"
NEED_AUTH = "530 5.7.0 Authentication required"
NEED_TLS = "530 Must issue a STARTTLS command first"
COMMANDS = "AUTH DATA EHLO HELO HELP MAIL NOOP QUIT RCPT RSET VRFY"

HELO = ("HELO c.example", "250 mx.example")
EHLO = ehlo("8BITMIME")
MAIL = ("MAIL FROM:<a@b.example>", OK)
RCPT = ("RCPT TO:<c@d.example>", OK)
DATA = ("DATA", END)
TEXT = (b"text\r\n.\r\n", OK)
QUIT = ("QUIT", f"221 Bye\n{CLOSED}")
TO_DATA = (EHLO, MAIL, RCPT, DATA)
TLS = With(lambda smtp: __import__("aiosmtpd_player").Certificates.one().server)

LINES = [
    Row("an empty line", ("", BAD), ("NOOP", OK)),
    Row("spaces alone", ("  ", '500 Error: command "" not recognized')),
    Row("a bare LF ends a line", (b"NOOP\n", OK), (b"\n", BAD), (b"NOOP\nNOOP\r\n", f"{OK}\n{OK}")),
    Row("CRs before an LF are part of a line's end", (b"NOOP\r\r\n", OK), (b"HELO c\r\r\r\n", HELO[1])),
    Row("a bare CR within a line", (b"HELO a\rb\r\n", HELO[1], BAD), ("NOOP", OK), differs="CR ends lines"),
    Row("a NUL within a line", (b"HELO a\0b\r\n", HELO[1], BAD), ("NOOP", OK), differs="NUL is no text"),
    Row("verbs in any case", ("noop", OK), ("NoOp", OK), ("helo c.example", HELO[1])),
    Row("a space before the verb", (" NOOP", '500 Error: command "" not recognized')),
    Row("a tab behind the verb", ("NOOP\tx", '500 Error: command "NOOP\tX" not recognized')),
    Row("spaces behind the verb", ("RSET   ", OK), ("HELO   c.example  ", HELO[1])),
    Row("a verb that is not ASCII", ("NÖP", BAD), ("NÖP", BAD), enable_SMTPUTF8=True),
    Row("an argument that is not ASCII", ("HELO é", ASCII), HELO),
    Row("an argument in UTF-8", ("HELO é", HELO[1]), looks("session.host_name", "é"), enable_SMTPUTF8=True),
    Row(
        "an argument that is not UTF-8",
        (b"HELO \xe9\r\n", HELO[1]),
        looks("session.host_name", "\udce9"),
        enable_SMTPUTF8=True,
    ),
    Row("a line of 512 octets", ("HELO " + 507 * "h", HELO[1])),
    Row("a line of 513 octets", ("HELO " + 508 * "h", LONG), HELO),
    Row("a line of 1002 octets", ("NOOP " + 997 * "n", LONG), ("NOOP", OK)),
    Row("a line of 9000 octets", ("NOOP " + 8995 * "n", LONG), ("NOOP", OK)),
    Row("MAIL of 538 octets with SIZE", EHLO, ("MAIL FROM:<" + 526 * "l" + ">", OK)),
    Row("MAIL of 539 octets with SIZE", EHLO, ("MAIL FROM:<" + 527 * "l" + ">", LONG)),
    Row("MAIL of 513 octets after HELO", HELO, ("MAIL FROM:<" + 501 * "l" + ">", LONG)),
    Row(
        "MAIL of 548 octets with SIZE and SMTPUTF8",
        ehlo("8BITMIME", "SMTPUTF8"),
        ("MAIL FROM:<" + 537 * "l" + ">", LONG),
        ("MAIL FROM:<" + 536 * "l" + ">", OK),
        enable_SMTPUTF8=True,
    ),
    Row(
        "the fifth unknown command ends it",
        *((verb, f'500 Error: command "{verb}" not recognized') for verb in ("X", "BDAT", "LHLO", "XCLIENT")),
        ("Y", f"502 5.5.1 Too many unrecognized commands, goodbye.\n{CLOSED}"),
    ),
    Row("HTTP is not understood", ("GET / HTTP/1.1", '500 Error: command "GET" not recognized')),
    Row("the call limit is reached", ("NOOP", OK), ("NOOP", OK), HELO, command_call_limit=2),
    Row(
        "the call limit is passed",
        *(2 * (("NOOP", OK),)),
        ("NOOP", f"421 4.7.0 NOOP sent too many times\n{CLOSED}"),
        command_call_limit=2,
    ),
    Row(
        "a call limit for each command",
        *(3 * (("RSET", OK),)),
        *(2 * (("NOOP", OK),)),
        ("noop", f"421 4.7.0 NOOP sent too many times\n{CLOSED}"),
        command_call_limit={"RSET": 3, "*": 2},
    ),
    Row(
        "a call limit is 20 unless told",
        *(20 * (("NOOP", OK),)),
        ("NOOP", f"421 4.7.0 NOOP sent too many times\n{CLOSED}"),
        command_call_limit={"RSET": 3},
    ),
    Row(
        "the call limit holds for unknown commands",
        ("X", '500 Error: command "X" not recognized'),
        ("X", f"421 4.7.0 X sent too many times\n{CLOSED}"),
        command_call_limit=1,
    ),
]

SIMPLE = [
    Row("HELO wants a name", ("HELO", "501 Syntax: HELO hostname"), ("HELO ", "501 Syntax: HELO hostname")),
    Row("EHLO wants a name", ("EHLO", "501 Syntax: EHLO hostname"), but(MAIL, NEED_HELO)),
    Row("HELO", HELO, looks("(session.host_name, session.extended_smtp)", ("c.example", False))),
    Row("EHLO", EHLO, looks("(session.host_name, session.extended_smtp)", ("c.example", True))),
    Row("HELO after EHLO", EHLO, HELO, looks("session.extended_smtp", False)),
    Row("a name of several words", ("EHLO a b", EHLO[1]), looks("session.host_name", "a b")),
    Row("HELO ends the transaction", HELO, MAIL, HELO, looks("envelope.mail_from", None), MAIL),
    Row("EHLO ends the transaction", EHLO, MAIL, RCPT, EHLO, ("DATA", "503 Error: need RCPT command"), MAIL),
    Row("a refused HELO ends nothing", HELO, MAIL, ("HELO", "501 Syntax: HELO hostname"), RCPT),
    Row("EHLO without a limit", ehlo("8BITMIME", size=0), data_size_limit=None),
    Row("EHLO with the limit 0", ehlo("8BITMIME", size=0), data_size_limit=0),
    Row("EHLO with a limit", ehlo("8BITMIME", size=1000), data_size_limit=1000),
    Row("EHLO and decode_data", ehlo(), decode_data=True),
    Row("EHLO and SMTPUTF8", ehlo("8BITMIME", "SMTPUTF8"), enable_SMTPUTF8=True),
    Row("EHLO and STARTTLS", ehlo("8BITMIME", "STARTTLS"), tls_context=TLS),
    Row("EHLO and AUTH", ehlo("8BITMIME", "AUTH LOGIN PLAIN"), auth_require_tls=False),
    Row(
        "EHLO with everything",
        ehlo("8BITMIME", "SMTPUTF8", "STARTTLS", "AUTH LOGIN PLAIN"),
        auth_require_tls=False,
        enable_SMTPUTF8=True,
        tls_context=TLS,
    ),
    Row("NOOP", ("NOOP", OK), ("NOOP whatever  this", OK), handler=bare),
    Row("QUIT", QUIT, handler=bare),
    Row("QUIT takes nothing", ("QUIT now", "501 Syntax: QUIT"), ("QUIT  ", f"221 Bye\n{CLOSED}")),
    Row("RSET", ("RSET", OK), EHLO, MAIL, RCPT, ("RSET", OK), looks("envelope.rcpt_tos", []), MAIL),
    Row("RSET takes nothing", HELO, MAIL, ("RSET now", "501 Syntax: RSET"), RCPT),
    Row("EXPN", ("EXPN", "502 EXPN not implemented"), ("EXPN list", "502 EXPN not implemented")),
    Row("VRFY", ("VRFY a@b.example", "252 Cannot VRFY user, but will accept message and attempt delivery")),
    Row("VRFY of a name", ("VRFY <a>", "252 Cannot VRFY user, but will accept message and attempt delivery")),
    Row("VRFY wants an address", ("VRFY", "501 Syntax: VRFY <address>")),
    Row("VRFY of nonsense", ("VRFY @@", "502 Could not VRFY @@"), ("VRFY <@x>", "502 Could not VRFY <@x>")),
    Row("STARTTLS takes nothing", ("STARTTLS now", "501 Syntax: STARTTLS"), tls_context=TLS),
    Row(
        "STARTTLS without a context",
        ("STARTTLS", "454 TLS not available"),
        ("STARTTLS x", "501 Syntax: STARTTLS"),
    ),
    Row(
        "HELP",
        ("HELP", f"250 Supported commands: {COMMANDS}"),
        ("HELP  ", f"250 Supported commands: {COMMANDS}"),
    ),
    Row(
        "HELP with TLS",
        ("HELP", "250 Supported commands: AUTH DATA EHLO HELO HELP MAIL NOOP QUIT RCPT RSET STARTTLS VRFY"),
        ("HELP starttls", "250 Syntax: STARTTLS"),
        tls_context=TLS,
    ),
    Row(
        "HELP of each command",
        *(
            (f"HELP {topic}", f"250 Syntax: {text}")
            for topic, text in {
                "AUTH": "AUTH <mechanism>",
                "DATA": "DATA",
                "EHLO": "EHLO hostname",
                "HELO": "HELO hostname",
                "HELP": "HELP [command]",
                "MAIL": "MAIL FROM: <address>",
                "NOOP": "NOOP [ignored]",
                "quit": "QUIT",
                "rcpt": "RCPT TO: <address>",
                "Rset": "RSET",
                "VRFY": "VRFY <address>",
            }.items()
        ),
    ),
    Row(
        "HELP after EHLO",
        EHLO,
        ("HELP MAIL", "250 Syntax: MAIL FROM: <address> [SP <mail-parameters>]"),
        ("HELP RCPT", "250 Syntax: RCPT TO: <address> [SP <mail-parameters>]"),
        HELO,
        ("HELP MAIL", "250 Syntax: MAIL FROM: <address>"),
    ),
    Row(
        "HELP of what there is not",
        *(
            (f"HELP {topic}", f"501 Supported commands: {COMMANDS}")
            for topic in ("me", "STARTTLS", "EXPN", "DATA x")
        ),
    ),
]

ROWS = [*LINES, *SIMPLE]
