"""Reply books: what the dialogue says, as data.

Knows the texts and codes of each reply (RFC 5321 4.2, RFC 3463), and how a hook's answer is made into one.
Refuses to know when a reply is given: that is the dialogue's.
"""

from collections.abc import Collection, Mapping, Sequence

from fastsmtp._rules import ASKS, Book
from fastsmtp.errors import SMTPError
from fastsmtp.logs import brief_repr, describe

_NATIVE = {
    "MAIL": "250 2.1.0 Ok",
    "RCPT": "250 2.1.5 Ok",
    "DATA": "354 End data with <CR><LF>.<CR><LF>",
    "ACCEPTED": "250 2.0.0 Ok",
    "RSET": "250 2.0.0 Ok",
    "NOOP": "250 2.0.0 Ok",
    "QUIT": "221 2.0.0 Bye",
    "VRFY": "252 2.0.0 Cannot verify, but will take a message and try",
    "HELP": "214 2.0.0 Commands:",
    "STARTTLS": "220 2.0.0 Ready to start TLS",
    "LINE_TOO_LONG": "500 5.5.2 Command line too long",
    "BARE_NEWLINE": "500 5.5.2 Bare <LF>: a line ends with <CR><LF>",
    "BAD_SYNTAX": "500 5.5.2 Error: bad syntax",
    "BAD_OCTETS": "500 5.5.2 Error: octets that no command line may have",
    "NOT_ASCII": "500 5.5.2 Error: octets that no command line may have",
    "UNKNOWN": "500 5.5.2 Error: command not recognized",
    "NOT_IMPLEMENTED": "502 5.5.1 Error: command not implemented",
    "FOREIGN": "421 4.7.0 This is SMTP; closing connection",
    "HELO_ARGUMENT": "501 5.5.4 Syntax: HELO or EHLO hostname",
    "NO_ARGUMENT": "501 5.5.4 Error: this command takes no argument",
    "VRFY_ARGUMENT": "501 5.5.4 Syntax: VRFY <address>",
    "VRFY_ADDRESS": "501 5.1.3 Bad address syntax",
    "NEED_HELLO": "503 5.5.1 Error: send HELO or EHLO first",
    "NESTED_MAIL": "503 5.5.1 Error: nested MAIL command",
    "NEED_MAIL": "503 5.5.1 Error: need MAIL command",
    "NEED_RCPT": "503 5.5.1 Error: need RCPT command",
    "NO_VALID_RCPT": "554 5.5.1 Error: no valid recipients",
    "MAIL_SYNTAX": "501 5.5.4 Syntax: MAIL FROM:<address> [SP parameters]",
    "MAIL_SYNTAX_EXTENDED": "501 5.5.4 Syntax: MAIL FROM:<address> [SP parameters]",
    "MAIL_ADDRESS": "501 5.1.7 Bad sender address syntax",
    "RCPT_SYNTAX": "501 5.5.4 Syntax: RCPT TO:<address> [SP parameters]",
    "RCPT_SYNTAX_EXTENDED": "501 5.5.4 Syntax: RCPT TO:<address> [SP parameters]",
    "RCPT_ADDRESS": "501 5.1.3 Bad recipient address syntax",
    "PARAMETER_VALUE": "501 5.5.4 Error: parameter given twice or with a bad value",
    "BODY_VALUE": "501 5.5.4 Error: BODY is 7BIT or 8BITMIME",
    "SMTPUTF8_VALUE": "501 5.5.4 Error: SMTPUTF8 takes no value",
    "SMTPUTF8_DISABLED": "555 5.5.4 Error: parameter not recognized",
    "MAIL_PARAMETER": "555 5.5.4 Error: parameter not recognized",
    "RCPT_PARAMETER": "555 5.5.4 Error: parameter not recognized",
    "NEED_SMTPUTF8": "553 5.6.7 Error: this address needs SMTPUTF8",
    "TOO_BIG_DECLARED": "552 5.3.4 Error: message size exceeds the fixed maximum",
    "TOO_BIG": "552 5.3.4 Error: too much mail data",
    "TOO_MANY_RCPT": "452 4.5.3 Error: too many recipients",
    "NO_ROOM": "452 4.3.1 Insufficient system storage",
    "NO_MEMORY": "452 4.3.1 Insufficient memory; try again later",
    "CONTENT_NEWLINE": "550 5.5.2 Error: bare <CR> or <LF> in message content",
    "CONTENT_LINE": "554 5.6.0 Error: line too long in message content",
    "NEED_STARTTLS": "530 5.7.0 Must issue a STARTTLS command first",
    "TLS_UNAVAILABLE": "454 4.7.0 TLS not available",
    "TLS_ACTIVE": "503 5.5.1 Error: TLS already active",
    "DISTRUSTED": "554 5.7.0 Command refused due to lack of security",
    "STARTTLS_INJECTION": "554 5.5.0 Error: octets after STARTTLS; closing connection",
    "NEED_AUTH": "530 5.7.0 Authentication required",
    "NEED_EHLO": "503 5.5.1 Error: send EHLO first",
    "AUTH_AFTER_HELO": "503 5.5.1 Error: send EHLO first",
    "AUTH_NEEDS_TLS": "538 5.7.11 Encryption required for requested authentication mechanism",
    "AUTH_DONE": "503 5.5.1 Error: already authenticated",
    "AUTH_NO_MECHANISM": "501 5.5.4 Syntax: AUTH mechanism [initial-response]",
    "AUTH_ARGUMENTS": "501 5.5.4 Syntax: AUTH mechanism [initial-response]",
    "AUTH_UNKNOWN": "504 5.5.4 Unrecognized authentication mechanism",
    "AUTH_ABORTED": "501 5.7.0 Authentication aborted",
    "AUTH_TOO_LONG": "500 5.5.6 Authentication exchange line is too long",
    "TOO_MANY_ERRORS": "421 4.7.0 Error: too many errors; closing connection",
    "TOO_MANY_CALLS": "421 4.7.0 Error: {verb} sent too many times; closing connection",
    "TOO_MUCH_JUNK": "421 4.7.0 Error: too many commands without a message; closing connection",
    "MEMORY_SHORT": "421 4.3.1 Insufficient memory; closing connection",
    "SHUTDOWN": "421 4.3.2 Service shutting down; closing connection",
    "IDLE": "421 4.4.2 Error: timeout exceeded; closing connection",
    "TOO_SLOW": "421 4.4.2 Error: message comes too slowly; closing connection",
    "HANDLER_FAILED": "451 4.3.0 Error: local error in processing",
    "HANDLER_TIMEOUT": "451 4.4.5 Error: processing took too long",
}
# aiosmtpd's texts, where they are not the same as ours.
_AIOSMTPD = {
    "MAIL": "250 OK",
    "RCPT": "250 OK",
    "ACCEPTED": "250 OK",
    "RSET": "250 OK",
    "NOOP": "250 OK",
    "QUIT": "221 Bye",
    "VRFY": "252 Cannot VRFY user, but will accept message and attempt delivery",
    "HELP": "250 Supported commands",
    "STARTTLS": "220 Ready to start TLS",
    "LINE_TOO_LONG": "500 Command line too long",
    "BAD_SYNTAX": "500 Error: bad syntax",
    "BAD_OCTETS": "500 Error: bad syntax",
    "NOT_ASCII": "500 Error: strict ASCII mode",
    "UNKNOWN": '500 Error: command "{verb}" not recognized',
    "NOT_IMPLEMENTED": "502 {verb} not implemented",
    "HELO_ARGUMENT": "501 Syntax: {verb} hostname",
    "NO_ARGUMENT": "501 Syntax: {verb}",
    "VRFY_ARGUMENT": "501 Syntax: VRFY <address>",
    "VRFY_ADDRESS": "502 Could not VRFY {argument}",
    "NEED_HELLO": "503 Error: send HELO first",
    "NESTED_MAIL": "503 Error: nested MAIL command",
    "NEED_MAIL": "503 Error: need MAIL command",
    "NEED_RCPT": "503 Error: need RCPT command",
    "NO_VALID_RCPT": "503 Error: need RCPT command",
    "MAIL_SYNTAX": "501 Syntax: MAIL FROM: <address>",
    "MAIL_SYNTAX_EXTENDED": "501 Syntax: MAIL FROM: <address> [SP <mail-parameters>]",
    "MAIL_ADDRESS": "553 5.1.3 Error: malformed address",
    "RCPT_SYNTAX": "501 Syntax: RCPT TO: <address>",
    "RCPT_SYNTAX_EXTENDED": "501 Syntax: RCPT TO: <address> [SP <mail-parameters>]",
    "RCPT_ADDRESS": "553 5.1.3 Error: malformed address",
    "BODY_VALUE": "501 Error: BODY can only be one of 7BIT, 8BITMIME",
    "SMTPUTF8_VALUE": "501 Error: SMTPUTF8 takes no arguments",
    "SMTPUTF8_DISABLED": "501 Error: SMTPUTF8 disabled",
    "MAIL_PARAMETER": "555 MAIL FROM parameters not recognized or not implemented",
    "RCPT_PARAMETER": "555 RCPT TO parameters not recognized or not implemented",
    "TOO_BIG_DECLARED": "552 Error: message size exceeds fixed maximum message size",
    "TOO_BIG": "552 Error: Too much mail data",
    "CONTENT_LINE": "500 Line too long (see RFC5321 4.5.3.1.6)",
    "NEED_STARTTLS": "530 Must issue a STARTTLS command first",
    "TLS_UNAVAILABLE": "454 TLS not available",
    "DISTRUSTED": "554 Command refused due to lack of security",
    "NEED_EHLO": "503 Error: send EHLO first",
    "AUTH_AFTER_HELO": "500 Error: command 'AUTH' not recognized",
    "AUTH_DONE": "503 Already authenticated",
    "AUTH_NO_MECHANISM": "501 Not enough value",
    "AUTH_ARGUMENTS": "501 Too many values",
    "AUTH_UNKNOWN": "504 5.5.4 Unrecognized authentication type",
    "AUTH_ABORTED": "501 5.7.0 Auth aborted",
    "TOO_MANY_ERRORS": "502 5.5.1 Too many unrecognized commands, goodbye.",
    "TOO_MANY_CALLS": "421 4.7.0 {verb} sent too many times",
}
# bonzo's texts, where they are not the same as ours without the enhanced code.
_BONZO = {
    "UNKNOWN": '502 Error: command "{verb}" not implemented',
    "NOT_IMPLEMENTED": '502 Error: command "{verb}" not implemented',
    "HELO_ARGUMENT": "501 Syntax: {verb} hostname",
    "NO_ARGUMENT": "501 Syntax: {verb}",
    "NEED_HELLO": "503 Error: need HELO command",
    "NO_VALID_RCPT": "503 Error: need RCPT command",
    "MAIL_SYNTAX": "501 Syntax: MAIL FROM:<address>",
    "MAIL_SYNTAX_EXTENDED": "501 Syntax: MAIL FROM:<address>",
    "RCPT_SYNTAX": "501 Syntax: RCPT TO:<address>",
    "RCPT_SYNTAX_EXTENDED": "501 Syntax: RCPT TO:<address>",
    "HANDLER_FAILED": "451 Internal confusion",
}
_COMMANDS = ("DATA", "EHLO", "HELO", "HELP", "MAIL", "NOOP", "QUIT", "RCPT", "RSET", "VRFY")


def native(
    hostname: str, *, max_message_size: int = 32 << 20, smtputf8: bool = True, starttls: bool = False
) -> Book:
    """The book of fastsmtp's own server: an enhanced status code on every reply that may have one (RFC 2034).

    ``max_message_size`` is in bytes, 0 for any; what is offered at EHLO follows from the arguments.
    """
    extensions = ["PIPELINING", f"SIZE {max_message_size}", "ENHANCEDSTATUSCODES", "8BITMIME"]
    return _strict(hostname, _NATIVE, extensions, smtputf8, starttls)


def aiosmtpd(
    hostname: str,
    ident: str,
    *,
    max_message_size: int = 32 << 20,
    eight_bit: bool = True,
    smtputf8: bool = False,
    starttls: bool = False,
    mechanisms: Collection[str] = (),
    auth_in_clear: bool = False,
) -> Book:
    """The book of aiosmtpd 1.4.6, text by text; what it does not have is said as ``native`` says it.

    ``mechanisms`` are offered with AUTH, without TLS only if ``auth_in_clear``.
    """
    extensions = [f"SIZE {max_message_size}"] if max_message_size else []
    if eight_bit:
        extensions.append("8BITMIME")
    if smtputf8:
        extensions.append("SMTPUTF8")
    auth = ["AUTH " + " ".join(sorted(mechanisms))] if mechanisms else []
    clear = [*extensions, *(["STARTTLS"] if starttls else []), *(auth if auth_in_clear else [])]
    lines = {
        "GREETING": [f"220 {hostname} {ident}"],
        "HELO": [f"250 {hostname}"],
        "EHLO": _multiline("250", [hostname, *clear, "HELP"]),
        "EHLO_TLS": _multiline("250", [hostname, *extensions, *auth, "HELP"]),
        **{name: [text] for name, text in (_NATIVE | _AIOSMTPD).items()},
    }
    return _book(lines)


def bonzo(
    hostname: str, *, max_message_size: int = 32 << 20, smtputf8: bool = True, starttls: bool = False
) -> Book:
    """The book of bonzo 0.2.0, which knows no enhanced codes (RFC 2034): what it does not have is said as
    ``native`` says it, but without them.

    ``max_message_size`` is in bytes, 0 for any; what is offered at EHLO, which bonzo does not have, follows from the
    arguments.
    """
    texts = {name: _without_enhanced(text) for name, text in (_NATIVE | _BONZO).items()}
    return _strict(
        hostname, texts, ["PIPELINING", f"SIZE {max_message_size}", "8BITMIME"], smtputf8, starttls
    )


def _strict(
    hostname: str, texts: Mapping[str, str], extensions: list[str], smtputf8: bool, starttls: bool
) -> Book:
    extensions = [*extensions, *(["SMTPUTF8"] if smtputf8 else []), "HELP"]
    commands = " ".join((*_COMMANDS, "STARTTLS") if starttls else _COMMANDS)
    lines = {
        "GREETING": [f"220 {hostname} ESMTP fastsmtp"],
        "HELO": [f"250 {hostname}"],
        "EHLO": _multiline("250", [hostname, *extensions, *(["STARTTLS"] if starttls else [])]),
        "EHLO_TLS": _multiline("250", [hostname, *extensions]),
        **{name: [text] for name, text in texts.items()},
        "HELP": [f"{texts['HELP']} {commands}"],
    }
    return _book(lines)


def _without_enhanced(reply: str) -> str:
    code, enhanced, rest = reply.split(" ", 2)
    return f"{code} {rest}" if _is_enhanced(enhanced, code[0]) else reply


def _book(lines: Mapping[str, list[str]]) -> Book:
    return Book({name: "".join(f"{line}\r\n" for line in text).encode() for name, text in lines.items()})


def _multiline(code: str, texts: list[str]) -> list[str]:
    return [f"{code}-{text}" for text in texts[:-1]] + [f"{code} {texts[-1]}"]


def as_status(book: Book, name: str) -> str:
    """The reply called ``name``, as a hook would give it."""
    return book[name].decode().removesuffix("\r\n")


class NotAReply(ValueError):
    """What a hook returned is no reply; the text says what it was."""


# What an enhanced code is completed to where a hook gives none (RFC 3463): by command, else by class.
_ENHANCED = {("MAIL", "2"): "2.1.0", ("RCPT", "2"): "2.1.5", ("DATA", "5"): "5.6.0"}


# Most hooks have a few statuses for all of their mail. A long one is made each time: 1024 of them would be memory.
_KNOWN = 1024
_LONG = 512  # characters
_known: dict[tuple[str | bytes, object], bytes] = {}

_LONGEST_STATUS = 16 * 1024  # characters of a status that are sent
_MOST_LINES = 128  # of it
_LONGEST_TEXT = 512 - len("250 \r\n")  # octets of a line's text (RFC 5321 4.5.3.1.5)

# What no client needs, and what its terminal or the next program would take for something else; a TAB is text.
_CONTROLS = dict.fromkeys([*range(9), *range(10, 32), *range(127, 160)], "?")


def from_status(status: str | bytes, kind: int) -> bytes:
    """The reply, with CRLF, that a hook of ``kind`` (a position in ``ASKS``) means by ``status``.

    A status is a three-digit code and a text, in one or more lines; lines may have the code again. It is one reply:
    whatever stands behind a line end is a line of it. An enhanced code is put in where there is none, but for the
    hello (RFC 2034 4). Raises ``NotAReply``.
    """
    reply = _known.get((status, kind))
    return reply if reply is not None else _remembered(status, kind, _with_enhanced(status, kind))


def plain(status: str | bytes, encoding: str = "utf-8") -> bytes:
    """As ``from_status``, where enhanced codes are not offered. Raises ``UnicodeEncodeError`` for what ``encoding``
    does not have.
    """
    reply = _known.get((status, encoding))
    if reply is None:
        if isinstance(status, str) and encoding != "utf-8":
            status[:_LONGEST_STATUS].encode(
                encoding, "surrogateescape"
            )  # whole, so that the error tells where
        reply = _remembered(status, encoding, _put_together(*_taken_apart(status)))
    return reply


def part(status: str | bytes, encoding: str = "utf-8") -> bytes:
    """As ``plain``, for what a program says by itself, before it gives its status or within a command that is its own:
    ``250-text`` has more behind it, and 3yz is no end. What begins with no code is one line of text.
    """
    text = _as_text(status)
    if isinstance(status, str) and encoding != "utf-8":
        text.encode(encoding, "surrogateescape")
    if not (text[:3].isascii() and text[:3].isdigit()):
        return text.translate(_CONTROLS).encode("utf-8", "surrogateescape")[:_LONGEST_TEXT] + b"\r\n"
    reply = _put_together(*_taken_apart(text, "2345"))
    if text.rpartition("\n")[2][3:4] != "-":
        return reply
    last = reply.rfind(b"\n", 0, -1) + 1
    return b"%s-%s" % (reply[: last + 3], reply[last + 4 :])


def _remembered(status: str | bytes, how: object, reply: bytes) -> bytes:
    if len(status) <= _LONG:
        if len(_known) >= _KNOWN:
            _known.clear()
        _known[status, how] = reply
    return reply


def _with_enhanced(status: str | bytes, kind: int) -> bytes:
    code, texts = _taken_apart(status)
    command = ASKS[kind]
    enhanced = _ENHANCED.get((command, code[0]), f"{code[0]}.0.0")
    given = _is_enhanced(texts[0], code[0])
    if given:
        enhanced = texts[0].split(" ", 1)[0]
    try:
        if given or command not in ("CONNECT", "HELO", "EHLO"):
            # On every line (RFC 2034 4).
            texts = [text if _is_enhanced(text, code[0]) else f"{enhanced} {text}".rstrip() for text in texts]
            return _put_together(code, texts, f"{enhanced} ")
        return _put_together(code, texts)
    except UnicodeEncodeError:
        raise NotAReply(f"{brief_repr(status)} cannot be sent as UTF-8") from None


def _as_text(status: str | bytes) -> str:
    text = status[:_LONGEST_STATUS]
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")


def _taken_apart(status: str | bytes, classes: str = "245") -> tuple[str, list[str]]:
    """The code of a status, and the texts of its lines."""
    lines = _as_text(status).split("\n")
    code = lines[0][:3]
    if not (len(code) == 3 and code.isascii() and code.isdigit() and code[0] in classes):
        wanted = ", ".join(f"{first}yz" for first in classes)
        raise NotAReply(f"{brief_repr(status)} does not begin with a reply code of {wanted}")
    return code, [line[4:] if line[:3] == code and line[3:4] in ("", " ", "-") else line for line in lines]


def _put_together(code: str, texts: list[str], enhanced: str = "") -> bytes:
    lines: list[bytes] = []
    for text in texts[:_MOST_LINES]:
        if not text.isprintable():
            text = text.translate(_CONTROLS)
        octets = text.encode("utf-8", "surrogateescape")
        while len(octets) > _LONGEST_TEXT:
            at = _LONGEST_TEXT
            while octets[at] & 0xC0 == 0x80 and at > _LONGEST_TEXT - 3:
                at -= 1  # not within a character
            lines.append(octets[:at])
            octets = enhanced.encode() + octets[at:]
        lines.append(octets)
    begun = b"".join(b"%s-%s\r\n" % (code.encode(), line) for line in lines[:-1])
    return b"%s%s %s\r\n" % (begun, code.encode(), lines[-1])


def from_lines(lines: list[str]) -> bytes:
    """The reply, with CRLF, of lines that have their codes, as an EHLO hook returns them.

    Raises ``NotAReply``.
    """
    return from_status(_joined(lines), ASKS.index("EHLO"))


def plain_lines(lines: list[str | bytes], encoding: str) -> bytes:
    """As ``from_lines``, where enhanced codes are not offered. Raises ``UnicodeEncodeError``."""
    return plain(_joined([_as_text(line) if isinstance(line, bytes) else line for line in lines]), encoding)


def _joined(lines: Sequence[object]) -> str:
    texts = [line for line in lines if isinstance(line, str)]
    if len(texts) != len(lines) or len({text[:3] for text in texts}) != 1:
        raise NotAReply(f"{brief_repr(lines)} are not the lines of one reply")
    return "\n".join(texts)


def refusal(error: SMTPError) -> str:
    """The status that a raised ``SMTPError`` is. Raises ``NotAReply`` for one that says yes."""
    if not (isinstance(error.code, int) and 400 <= error.code < 600):
        raise NotAReply(f"{describe(error)} refuses nothing; an SMTPError has a code of 4yz or 5yz")
    return error.reply


def _is_enhanced(text: str, klass: str) -> bool:
    parts = text.split(" ", 1)[0].split(".")
    return len(parts) == 3 and parts[0] == klass and all(part.isdigit() and len(part) <= 3 for part in parts)
