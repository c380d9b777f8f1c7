"""Rows for MAIL, RCPT and DATA: addresses, parameters, the order of checks, content.

The notation is of ``aiosmtpd_rows``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiosmtpd_rows import (
    ASCII,
    CLOSED,
    DATA,
    EHLO,
    END,
    HELO,
    LONG,
    MAIL,
    NEED_AUTH,
    NEED_HELO,
    NEED_TLS,
    OK,
    RCPT,
    TEXT,
    TLS,
    TO_DATA,
    Exchange,
    Row,
    but,
    ehlo,
    looks,
)

MALFORMED = "553 5.1.3 Error: malformed address"
NESTED = "503 Error: nested MAIL command"
NEED_MAIL = "503 Error: need MAIL command"
NEED_RCPT = "503 Error: need RCPT command"
MAIL_HELO = "501 Syntax: MAIL FROM: <address>"
MAIL_EHLO = f"{MAIL_HELO} [SP <mail-parameters>]"
RCPT_HELO = "501 Syntax: RCPT TO: <address>"
RCPT_EHLO = f"{RCPT_HELO} [SP <mail-parameters>]"
MAIL_555 = "555 MAIL FROM parameters not recognized or not implemented"
RCPT_555 = "555 RCPT TO parameters not recognized or not implemented"
BODY = "501 Error: BODY can only be one of 7BIT, 8BITMIME"
UTF8_OFF = "501 Error: SMTPUTF8 disabled"
UTF8_VALUE = "501 Error: SMTPUTF8 takes no arguments"
TOO_BIG = "552 Error: message size exceeds fixed maximum message size"
TOO_MUCH = "552 Error: Too much mail data"
TOO_LONG = "500 Line too long (see RFC5321 4.5.3.1.6)"
VRFY_OK = "252 Cannot VRFY user, but will accept message and attempt delivery"

TAKEN = {
    "<a@b.example>": "a@b.example",
    " <a@b.example>": "a@b.example",
    "<Postmaster>": "Postmaster",
    "a@b.example": "a@b.example",
    "name": "name",
    "<name>": "name",
    "<@r.example,@s.example:a@b.example>": "a@b.example",
    '<"a b"@c.example>': '"a b"@c.example',
    "<a@[192.0.2.1]>": "a@[192.0.2.1]",
    "<a+b=c@d.example>": "a+b=c@d.example",
    "<first..last@d.example>": "first..last@d.example",
    "<taro.@d.example>": "taro.@d.example",
    "<.taro@d.example>": ".taro@d.example",
    "...@d.example": "...@d.example",
    "a..b": "a..b",
    f"<{400 * 'l'}@d.example>": f"{400 * 'l'}@d.example",
    400 * "l": 400 * "l",
    "<A@B.Example>": "A@B.Example",
}
# What only the parser of message headers takes, which is no parser of paths (RFC 5321 4.1.2).
LOOSE = (
    "<a b@c.example>",
    "<a(x)@b.example>",
    "<a@b.example>(x)",
    "<a@b.example",
    '<"a@b.example>',
    "<\ta@b>",
)
REFUSED = ("<@x>", "<j@>", "@@", "<a@b.example.>", "<<a@b>>", "<a@b..c>", "<a@b@c>", "(x)<a@b>")
TRAILING = ("<a@b.example> <c@d.example>", "Anne <a@b.example>", "a@b c@d")


def _path_rows(
    verb: str, before: tuple[Exchange, ...], look: str, wrap: Callable[[str], object], bad: str
) -> list[Row]:
    return [
        *(
            Row(f"{verb}{path[:40]}", *before, (verb + path, OK), looks(look, wrap(address)))
            for path, address in TAKEN.items()
        ),
        *(Row(f"{verb}{path}", *before, (verb + path, OK, MALFORMED), differs="no path") for path in LOOSE),
        *(Row(f"{verb}{path}", *before, (verb + path, MALFORMED)) for path in REFUSED),
        *(Row(f"{verb}{path}", *before, (verb + path, bad)) for path in TRAILING),
        Row(f"{verb}<a@b>>", *before, (f"{verb}<a@b>>", bad, MALFORMED), differs="no path"),
        Row(
            f"{verb}a b",
            *before,
            (f"{verb}a b", OK, MAIL_555 if verb == "MAIL FROM:" else RCPT_555),
            differs="no path",
        ),
    ]


PATHS = [
    *_path_rows("MAIL FROM:", (EHLO,), "envelope.mail_from", str, MAIL_EHLO),
    *_path_rows("RCPT TO:", (EHLO, MAIL), "envelope.rcpt_tos", lambda address: [address], RCPT_EHLO),
    Row("the null reverse-path", EHLO, ("MAIL FROM:<>", OK), looks("envelope.mail_from", "<>"), RCPT, DATA,
        TEXT),
    Row("no null forward-path", EHLO, MAIL, ("RCPT TO:<>", OK, MALFORMED), differs="RFC 5321 4.1.1.3"),
    Row(
        "an address in UTF-8",
        ehlo("8BITMIME", "SMTPUTF8"),
        ("MAIL FROM:<é@b.example> SMTPUTF8", OK),
        ("RCPT TO:<c@dé.example>", OK),
        looks("(envelope.mail_from, envelope.rcpt_tos, envelope.smtp_utf8)",
            ("é@b.example", ["c@dé.example"], True)),
        enable_SMTPUTF8=True,
    ),
    Row(
        "an address that is not UTF-8",
        ehlo("8BITMIME", "SMTPUTF8"),
        (b"MAIL FROM:<\xe9@b.example>\r\n", OK),
        (b"RCPT TO:<c\xff@d.example>\r\n", OK),
        looks("(envelope.mail_from, envelope.rcpt_tos)", ("\udce9@b.example", ["c\udcff@d.example"])),
        enable_SMTPUTF8=True,
    ),
    Row("an address in UTF-8 without the extension", EHLO, ("MAIL FROM:<é@b.example>", ASCII)),
    Row("recipients are kept in order", EHLO, MAIL, RCPT, ("RCPT TO:<b@d>", OK), RCPT,
        looks("envelope.rcpt_tos", ["c@d.example", "b@d", "c@d.example"])),
]  # fmt: skip


def _mail(options: str, reply: str, *more: Exchange, **settings: Any) -> Row:
    hello = settings.pop("hello", EHLO)
    return Row(
        f"MAIL FROM:<a@b>{options} {list(settings)}",
        hello,
        (f"MAIL FROM:<a@b>{options}", reply),
        *more,
        **settings,
    )


PARAMETERS = [
    _mail(" SIZE=1000", OK, looks("envelope.mail_options", ["SIZE=1000"])),
    _mail(" size=1000  body=8bitmime", OK, looks("envelope.mail_options", ["SIZE=1000", "BODY=8BITMIME"])),
    _mail(" SIZE=0", OK),
    _mail(" SIZE=33554432", OK),
    _mail(" SIZE=33554433", TOO_BIG),
    _mail(" SIZE=33554433", OK, hello=ehlo("8BITMIME", size=0), data_size_limit=None),
    _mail(" SIZE=99999999999999999999", OK, hello=ehlo("8BITMIME", size=0), data_size_limit=0),
    _mail(" SIZE=11", TOO_BIG, hello=ehlo("8BITMIME", size=10), data_size_limit=10),
    _mail(" SIZE=x", MAIL_EHLO),
    _mail(" SIZE=-1", MAIL_EHLO),
    _mail(" SIZE=", MAIL_EHLO),
    _mail(" SIZE", MAIL_EHLO),
    _mail(" BODY=7BIT", OK, looks("envelope.mail_options", ["BODY=7BIT"])),
    _mail(" BODY=8BITMIME", OK),
    _mail(" BODY=BINARYMIME", BODY),
    _mail(" BODY", BODY),
    _mail(" BODY=", MAIL_EHLO),
    _mail(" BODY=8BITMIME", MAIL_555, hello=ehlo(), decode_data=True),
    _mail(" SMTPUTF8", UTF8_OFF),
    _mail(" SMTPUTF8=1", UTF8_VALUE),
    _mail(" SMTPUTF8=1", UTF8_VALUE, hello=ehlo("8BITMIME", "SMTPUTF8"), enable_SMTPUTF8=True),
    _mail(
        " smtputf8",
        OK,
        looks("(envelope.smtp_utf8, envelope.mail_options)", (True, ["SMTPUTF8"])),
        hello=ehlo("8BITMIME", "SMTPUTF8"),
        enable_SMTPUTF8=True,
    ),
    _mail(" X=Y", MAIL_555),
    _mail(" X", MAIL_555),
    _mail(" AUTH=<>", MAIL_555),
    _mail(" RET=HDRS", MAIL_555),
    _mail(" MT-PRIORITY=3", MAIL_EHLO),
    _mail(" =", MAIL_EHLO),
    _mail(" X=", MAIL_EHLO),
    _mail(" SIZE=1 X=Y", MAIL_555),
    Row("no space before rubbish", EHLO, ("MAIL FROM:<a@b>x", MAIL_555, MALFORMED), differs="no path"),
    Row("no space before a parameter", EHLO, ("MAIL FROM:<a@b>SIZE=1", OK, MALFORMED), differs="no path"),
    Row(
        "parameters behind no brackets",
        EHLO,
        ("MAIL FROM:a@b SIZE=1", OK),
        looks("envelope.mail_options", ["SIZE=1"]),
    ),
    Row(
        "parameters behind a tab",
        EHLO,
        ("MAIL FROM:<a@b>\tSIZE=1", OK),
        looks("envelope.mail_options", ["SIZE=1"]),
    ),
    Row(
        "parameters parted by a tab",
        EHLO,
        ("MAIL FROM:<a@b> SIZE=1\tBODY=7BIT", OK),
        looks("envelope.mail_options", ["SIZE=1", "BODY=7BIT"]),
    ),
    *(
        Row(
            f"RCPT TO:<c@d>{options}",
            EHLO,
            MAIL,
            (f"RCPT TO:<c@d>{options}", reply),
            looks("envelope.rcpt_tos", []),
        )
        for options, reply in {
            " X=Y": RCPT_555,
            " X": RCPT_555,
            " NOTIFY=NEVER": RCPT_555,
            " X-Y=Z": RCPT_EHLO,
            " =": RCPT_EHLO,
            " X=": RCPT_EHLO,
        }.items()
    ),
]

SYNTAX = [
    *(
        Row(f"{line!r} after {hello[0]!r}", hello, (line, error), MAIL)
        for hello, error in ((HELO, MAIL_HELO), (EHLO, MAIL_EHLO))
        for line in (
            "MAIL",
            "MAIL ",
            "MAIL FROM",
            "MAIL FROM:",
            "MAIL FROM:  ",
            "MAIL TO:<a@b>",
            "MAIL FROM :<a@b>",
            "MAIL <a@b>",
        )
    ),
    *(
        Row(f"{line!r} after {hello[0]!r}", hello, MAIL, (line, error), RCPT)
        for hello, error in ((HELO, RCPT_HELO), (EHLO, RCPT_EHLO))
        for line in (
            "RCPT",
            "RCPT ",
            "RCPT TO",
            "RCPT TO:",
            "RCPT TO:  ",
            "RCPT FROM:<a@b>",
            "RCPT TO :<a@b>",
            "RCPT <a@b>",
        )
    ),
    Row("keywords in any case", HELO, ("mail from:<a@b>", OK), ("rcpt to:<c@d>", OK), ("data", END), TEXT),
    Row("spaces about a path", HELO, ("MAIL   FROM:   <a@b>", OK), ("RCPT   TO:  <c@d>  ", OK)),
    Row(
        "parameters after HELO",
        HELO,
        ("MAIL FROM:<a@b> SIZE=1", MAIL_HELO),
        MAIL,
        ("RCPT TO:<c@d> X=1", RCPT_HELO),
    ),
    Row("nested MAIL", EHLO, MAIL, but(MAIL, NESTED), RCPT, but(MAIL, NESTED)),
    Row("RCPT before MAIL", EHLO, but(RCPT, NEED_MAIL)),
    Row("DATA before RCPT", EHLO, ("DATA", NEED_RCPT), MAIL, ("DATA", NEED_RCPT)),
    Row("DATA takes nothing", EHLO, MAIL, RCPT, ("DATA now", "501 Syntax: DATA"), DATA, TEXT),
    Row(
        "another transaction",
        *TO_DATA,
        TEXT,
        ("DATA", NEED_RCPT),
        but(RCPT, NEED_MAIL),
        MAIL,
        RCPT,
        DATA,
        TEXT,
    ),
]

LIMITED: dict[str, Any] = {"command_call_limit": {"*": 1}}
REQUIRED: dict[str, Any] = {"auth_required": True}

# Each of two neighbouring checks fails; the reply tells which is first.
ORDER = [
    Row("verb not ASCII, argument not ASCII", ("NÖP ö", "500 Error: bad syntax")),
    Row("argument not ASCII, too long", ("NOOP " + 300 * "é", ASCII)),
    Row("too long, TLS required", ("HELO " + 600 * "h", LONG), tls_context=TLS, require_starttls=True),
    Row("TLS required, call limit", *(2 * (("RSET", NEED_TLS),)), tls_context=TLS, require_starttls=True,
        **LIMITED),
    Row("TLS required, unknown", *(6 * (("X", NEED_TLS),)), tls_context=TLS, require_starttls=True),
    Row("call limit, unknown", ("X", f"421 4.7.0 X sent too many times\n{CLOSED}"),
        command_call_limit={"X": 0}),
    Row("call limit, argument", ("RSET x", "501 Syntax: RSET"), ("RSET x",
        f"421 4.7.0 RSET sent too many times\n{CLOSED}"), **LIMITED),
    Row("TLS required, hello", ("MAIL", NEED_TLS), ("HELO c", NEED_TLS), ("HELP", NEED_TLS), tls_context=TLS,
        require_starttls=True),
    Row("allowed before TLS", ("NOOP", OK), ehlo("8BITMIME", "STARTTLS"), ("QUIT x", "501 Syntax: QUIT"),
        tls_context=TLS, require_starttls=True),
    Row("TLS not required without a context", HELO, MAIL, require_starttls=True),
    Row("MAIL: hello, authentication", ("MAIL", NEED_HELO), **REQUIRED),
    Row("MAIL: authentication, syntax", HELO, ("MAIL", NEED_AUTH), **REQUIRED),
    Row("MAIL: syntax, address", EHLO, ("MAIL @@", MAIL_EHLO)),
    Row("MAIL: address, parameters after HELO", HELO, ("MAIL FROM:<@x> SIZE=1", MALFORMED)),
    Row("MAIL: parameters after HELO, nested", HELO, MAIL, ("MAIL FROM:<a@b> SIZE=1", MAIL_HELO)),
    Row("MAIL: address, nested", EHLO, MAIL, ("MAIL FROM:<@x>", MALFORMED)),
    Row("MAIL: nested, parameter syntax", EHLO, MAIL, ("MAIL FROM:<a@b> =", NESTED)),
    Row("MAIL: parameter syntax, BODY", EHLO, ("MAIL FROM:<a@b> BODY=X =", MAIL_EHLO)),
    Row("MAIL: BODY, SMTPUTF8", EHLO, ("MAIL FROM:<a@b> SMTPUTF8=1 BODY=X", BODY)),
    Row("MAIL: SMTPUTF8, SIZE", EHLO, ("MAIL FROM:<a@b> SIZE=X SMTPUTF8", UTF8_OFF)),
    Row("MAIL: SIZE syntax, unknown", EHLO, ("MAIL FROM:<a@b> X=Y SIZE=X", MAIL_EHLO)),
    Row("MAIL: SIZE, unknown", EHLO, ("MAIL FROM:<a@b> X=Y SIZE=99999999", TOO_BIG)),
    Row("MAIL: BODY, unknown", EHLO, ("MAIL FROM:<a@b> X=Y BODY=X", BODY)),
    Row("RCPT: hello, authentication", ("RCPT", NEED_HELO), **REQUIRED),
    Row("RCPT: authentication, MAIL", HELO, ("RCPT", NEED_AUTH), **REQUIRED),
    Row("RCPT: MAIL, syntax", EHLO, ("RCPT", NEED_MAIL), ("RCPT TO:@@", NEED_MAIL)),
    Row("RCPT: syntax, address", EHLO, MAIL, ("RCPT @@", RCPT_EHLO)),
    Row("RCPT: address, parameters after HELO", HELO, MAIL, ("RCPT TO:<@x> X=Y", MALFORMED)),
    Row("RCPT: address, parameters", EHLO, MAIL, ("RCPT TO:<@x> =", MALFORMED)),
    Row("RCPT: parameter syntax, unknown", EHLO, MAIL, ("RCPT TO:<a@b> X=Y =", RCPT_EHLO)),
    Row("DATA: hello, authentication", ("DATA", NEED_HELO), **REQUIRED),
    Row("DATA: authentication, RCPT", HELO, ("DATA", NEED_AUTH), **REQUIRED),
    Row("DATA: RCPT, syntax", EHLO, ("DATA x", NEED_RCPT)),
    Row("VRFY: authentication, syntax", ("VRFY", NEED_AUTH), ("VRFY @@", NEED_AUTH), **REQUIRED),
    Row("HELP: authentication, topic", ("HELP", NEED_AUTH), ("HELP x", NEED_AUTH), **REQUIRED),
    Row("authentication is not asked for", ("NOOP", OK), ("RSET", OK), ("EXPN", "502 EXPN not implemented"),
        HELO, EHLO, **REQUIRED),
    Row("VRFY without a hello", ("VRFY a@b", VRFY_OK)),
]  # fmt: skip


def _content(title: str, sent: bytes, content: object, original: object = None, **settings: Any) -> Row:
    """Content as it is sent, dots and end included, and as it comes to the handler."""
    hello = settings.pop("hello", EHLO)
    return Row(
        title,
        hello,
        MAIL,
        RCPT,
        DATA,
        (sent, OK),
        looks("taken.content", content),
        looks("taken.original_content", content if original is None else original),
        **settings,
    )


DECODED: dict[str, Any] = {"decode_data": True, "hello": ehlo()}
DECODED_UTF8: dict[str, Any] = {"decode_data": True, "enable_SMTPUTF8": True, "hello": ehlo("SMTPUTF8")}

CONTENT = [
    _content("content", b"Subject: x\r\n\r\ntext\r\n.\r\n", b"Subject: x\r\n\r\ntext\r\n"),
    _content("empty content", b".\r\n", b""),
    _content("content of an empty line", b"\r\n.\r\n", b"\r\n"),
    _content("dots are unstuffed", b"..\r\n...\r\n.a\r\na.\r\n.\r\n", b".\r\n..\r\na\r\na.\r\n"),
    _content("bare LF and CR are kept", b"a\nb\rc\r\n.\r\n", b"a\nb\rc\r\n"),
    _content("only CRLF.CRLF is the end", b"a\n.\nb\r.\rc\n.\r\nd\r\n.\ne\r\n.\r\n",
        b"a\n.\nb\r.\rc\n.\r\nd\r\n\ne\r\n"),
    _content("octets of all kinds", b"\0\xff\xe9\r\n.\r\n", b"\0\xff\xe9\r\n"),
    Row("a line of 1001 octets in content", *TO_DATA, (999 * b"l" + b"\r\n.\r\n", OK),
        looks("len(taken.content)", 1001)),
    Row("a line of 1002 octets in content", *TO_DATA, (1000 * b"l" + b"\r\n.\r\n", TOO_LONG), *TO_DATA[1:],
        TEXT),
    Row("a line of 9000 octets in content", *TO_DATA, (b"a\r\n" + 8998 * b"l" + b"\r\nb\r\n.\r\n", TOO_LONG),
        *TO_DATA[1:], TEXT),
    Row("content of just the limit", ehlo("8BITMIME", size=10), *TO_DATA[1:], (b"1234567\n\r\n.\r\n", OK),
        data_size_limit=10),
    Row("content over the limit", ehlo("8BITMIME", size=10), *TO_DATA[1:], (b"123456789\r\n.\r\n", TOO_MUCH),
        *TO_DATA[1:],
        (b"1\r\n.\r\n", OK), data_size_limit=10),
    Row("stuffed dots", ehlo("8BITMIME", size=10), *TO_DATA[1:], (b"..345678\r\n.\r\n", OK), MAIL, RCPT, DATA,
        (b"..3456789\r\n.\r\n", TOO_MUCH, OK), data_size_limit=10,
            differs="RFC 1870: stuffed dots are not counted"),
    Row("over the limit first", ehlo("8BITMIME", size=10), *TO_DATA[1:],
        (b"123456789\r\n" + 2000 * b"l" + b"\r\n.\r\n", TOO_MUCH), data_size_limit=10),
    Row("too long a line first", ehlo("8BITMIME", size=3000), *TO_DATA[1:],
        (2000 * b"l" + b"\r\n" + 30 * (98 * b"m" + b"\r\n") + b".\r\n", TOO_LONG), data_size_limit=3000),
    Row("commands in content", *TO_DATA, (b"QUIT\r\nRSET\r\n.\r\n", OK),
        looks("taken.content", b"QUIT\r\nRSET\r\n")),
    _content("decoded content", b"text\r\n.\r\n", "text\r\n", b"text\r\n", **DECODED),
    _content("decoded UTF-8", "é\r\n.\r\n".encode(), "é\r\n", "é\r\n".encode(), **DECODED_UTF8),
    _content("decoded rubbish", b"\xff\r\n.\r\n", "\udcff\r\n", b"\xff\r\n", **DECODED_UTF8),
    _content("decoded emptiness", b".\r\n", "", b"", **DECODED),
    Row("strict ASCII", ehlo(), *TO_DATA[1:], ("é\r\n.", ASCII), but(MAIL, NESTED, OK), decode_data=True,
        differs="no transaction is left over"),
    Row("the facts of a message", EHLO, ("MAIL FROM:<a@b> SIZE=6", OK), RCPT, DATA, TEXT,
        looks("(taken.mail_from, taken.mail_options, taken.rcpt_tos, taken.rcpt_options, taken.smtp_utf8)",
              ("a@b", ["SIZE=6"], ["c@d.example"], [], False))),
    Row("DATA ends at QUIT", *TO_DATA, TEXT, ("QUIT", f"221 Bye\n{CLOSED}")),
]  # fmt: skip

ROWS = [*PATHS, *PARAMETERS, *SYNTAX, *ORDER, *CONTENT]
