"""The oracle: what a strict SMTP server answers to a given wire, as plainly as it can be said.

Written from RFC 5321, 1870, 2034, 2920, 6152 and 6531 and from the rules of the native dialogue, never from
the core's source: two programs that agree on any octets and never saw each other are hard to smuggle past.
It knows complete byte strings, slowly. It refuses to know cuts, buffers, time, TLS, hooks and reply texts.
"""

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """The settings that change what is answered. Sizes in octets; 0 is no limit where it makes no sense."""

    max_command_line: int = 2048
    max_message_size: int = 32 * 1024 * 1024
    max_recipients: int = 1000
    max_line_length: int = 0
    max_errors: int = 20
    max_junk_commands: int = 0
    bare_newline: str = "normalize"
    smtputf8: bool = True
    addresses: str = "lenient"


@dataclass(frozen=True)
class Message:
    """What was taken in. The null reverse-path is ``<>``; the content is unstuffed, without the dot line."""

    mail_from: str
    rcpt_tos: list[str]
    content: bytes


@dataclass
class Result:
    """Each reply as (code, enhanced code or ""), the greeting first; ``closed``: the server hangs up."""

    replies: list[tuple[int, str]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    closed: bool = False


class Refusal(Exception):
    """A reply to a command that is not done."""

    def __init__(self, code: int, enhanced: str) -> None:
        super().__init__(code, enhanced)
        self.reply = (code, enhanced)


# RFC 5321 4.1.2 and 4.1.3, and underscores as real hosts have them; RFC 6531 3.3 lets any UTF-8 octet into
# atext, qtext and labels. A line is valid UTF-8 before it comes here; no match below ends inside a character.
ATOM = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\xff-]+"
LOCAL_PART = rb"(?:%b(?:\.%b)*|\"(?:[ !#-\[\]-~\x80-\xff]|\\[ -~])*\")" % (ATOM, ATOM)
LABEL = rb"(?!-)[A-Za-z0-9_\x80-\xff-]{1,63}(?<!-)"
DOMAIN = rb"%b(?:\.%b)*" % (LABEL, LABEL)
ROUTE = rb"@%b(?:,@%b)*:" % (DOMAIN, DOMAIN)
LITERAL = rb"\[[!-Z^-~]+\]"
PATH = re.compile(rb"<(?P<route>%b)?(?P<local>%b)@(?P<domain>%b|%b)>" % (ROUTE, LOCAL_PART, DOMAIN, LITERAL))
# Leniently: dots anywhere in a local-part that has something else, one behind the domain, blanks within the brackets.
LENIENT_LOCAL_PART = rb"(?:\.*%b(?:\.+%b)*\.*|\"(?:[ !#-\[\]-~\x80-\xff]|\\[ -~])*\")" % (ATOM, ATOM)
LENIENT_PATH = re.compile(
    rb"<[ \t]*(?P<route>%b)?(?P<local>%b)@(?P<domain>%b\.?|%b)[ \t]*>"
    % (ROUTE, LENIENT_LOCAL_PART, DOMAIN, LITERAL)
)
TAGGED = re.compile(rb"([A-Za-z0-9-]*[A-Za-z0-9]):([!-Z^-~]+)")
PARAMETER = re.compile(rb"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~\x80-\xff]+))?")

FOREIGN = {b"GET", b"POST", b"PUT", b"HEAD", b"CONNECT", b"OPTIONS", b"PROXY"}
JUNK = {b"HELO", b"EHLO", b"MAIL", b"RSET", b"NOOP", b"VRFY", b"HELP"}
NOT_IMPLEMENTED = {b"EXPN", b"AUTH", b"BDAT", b"LHLO", b"ETRN", b"TURN", b"STARTTLS"}


def is_ipv4(text: bytes) -> bool:
    """Whether four numbers of one to three digits, 0 to 255 each (``Snum``, RFC 5321 4.1.3)."""
    numbers = text.split(b".")
    return len(numbers) == 4 and all(re.fullmatch(rb"[0-9]{1,3}", n) and int(n) < 256 for n in numbers)


def is_ipv6(text: bytes) -> bool:
    """Whether an ``IPv6-addr``: eight groups, or fewer with one ``::`` that stands for two or more."""
    head, _, last = text.rpartition(b":")
    if b"." in last:
        if not is_ipv4(last):
            return False
        text = head + b":0:0"  # the last two groups
    halves = text.split(b"::")
    groups = [group for half in halves if half for group in half.split(b":")]
    if len(halves) > 2 or not all(re.fullmatch(rb"[0-9A-Fa-f]{1,4}", group) for group in groups):
        return False
    return len(groups) == 8 if len(halves) == 1 else len(groups) <= 6


def is_literal(domain: bytes) -> bool:
    """Whether an address literal, brackets included, is IPv4, IPv6 or something tagged (RFC 5321 4.1.3)."""
    inside = domain[1:-1]
    if inside[:5].upper() == b"IPV6:":
        return is_ipv6(inside[5:])
    return is_ipv4(inside) or TAGGED.fullmatch(inside) is not None


class Dialogue:
    """One connection. Feed it whole lines; it notes replies and messages in ``result``."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.result = Result(replies=[(220, "")])
        self.errors = 0  # in tenths
        self.junk = 0
        self.opening = 0  # empty lines at the very beginning
        self.hello: bytes | None = None
        self.reset()

    def reset(self) -> None:
        self.mail_from: str | None = None
        self.utf8 = False
        self.rcpt_tos: list[str] = []
        self.tried = 0

    def say(self, code: int, enhanced: str, weight: int = 10) -> None:
        """Answers a command line: enough 5yz among these answers end the connection."""
        self.errors += weight if code >= 500 else 0
        if code >= 500 and 0 < self.limits.max_errors * 10 <= self.errors:
            code, enhanced = 421, "4.7.0"
        self.result.replies.append((code, enhanced))
        if code in (421, 221):
            self.result.closed = True

    def command(self, line: bytes) -> None:
        """Does a line that ended in CRLF, which is left out here."""
        if self.opening is not None:
            if line.startswith(b"\0") and self.opening == 2:
                self.say(421, "4.7.0")  # what the signature of a PROXY header of version 2 begins with
                return
            self.opening = self.opening + 1 if line == b"" and self.opening < 3 else None
        line = line.strip(b" \t")
        verb, argument = self.taken_apart(line)
        bad = b"\r" in line or b"\0" in line
        if not bad and (verb in JUNK or self.is_unknown(line, verb)):
            self.junk += 1
            if 0 < self.limits.max_junk_commands < self.junk:
                self.say(421, "4.7.0")
                return
        weight = 10
        try:
            reply = self.act(line, verb, argument)
        except Refusal as refusal:
            reply = refusal.reply
            # A recipient that is refused after MAIL: the message of a mailing list has many.
            if verb == b"RCPT" and self.mail_from is not None:
                weight = 1
        self.say(*reply, weight)

    def taken_apart(self, line: bytes) -> tuple[bytes, bytes]:
        """Verb and argument; more blanks than one are forgiven here, as around the colon of ``FROM:``."""
        parts = re.match(rb"([^ \t]*)[ \t]*(.*)", line, re.DOTALL)
        assert parts is not None
        return parts[1].upper(), parts[2]

    def is_unknown(self, line: bytes, verb: bytes) -> bool:
        """Whether a line is no command of any kind, and one that an ASCII or UTF-8 check lets pass."""
        if verb in FOREIGN | NOT_IMPLEMENTED | {b"RCPT", b"DATA", b"QUIT"}:
            return False
        return line.isascii() or (self.limits.smtputf8 and is_utf8(line))

    def act(self, line: bytes, verb: bytes, argument: bytes) -> tuple[int, str]:
        if not line or b"\r" in line or b"\0" in line:
            return 500, "5.5.2"
        if not line.isascii() and verb not in (b"HELO", b"EHLO", b"LHLO"):
            if not self.limits.smtputf8:
                return 500, "5.5.2"
            if not is_utf8(line):
                return 500, "5.5.2"
        if verb in FOREIGN:
            return 421, "4.7.0"
        if verb in NOT_IMPLEMENTED:
            return 502, "5.5.1"
        if verb in (b"HELO", b"EHLO"):
            if not argument or len(argument) > 255:
                return 501, "5.5.4"
            self.hello = verb
            self.reset()
            return 250, ""
        if verb == b"MAIL":
            return self.mail(argument)
        if verb == b"RCPT":
            return self.rcpt(argument)
        if verb == b"DATA":
            return self.data(argument)
        if verb in (b"RSET", b"QUIT"):
            if argument:
                return 501, "5.5.4"
            if verb == b"QUIT":
                return 221, "2.0.0"
            self.reset()
            return 250, "2.0.0"
        if verb == b"NOOP":
            return 250, "2.0.0"
        if verb == b"VRFY":
            return (252, "2.0.0") if argument else (501, "5.5.4")
        if verb == b"HELP":
            return 214, "2.0.0"
        return 500, "5.5.2"

    def mail(self, argument: bytes) -> tuple[int, str]:
        if self.hello is None or self.mail_from is not None:
            return 503, "5.5.1"
        path, address, rest = self.path(argument, b"FROM:", (501, "5.1.7"), {b"<>": "<>"})
        given = self.parameters(rest, {b"SIZE", b"BODY"} | ({b"SMTPUTF8"} if self.limits.smtputf8 else set()))
        if not path.isascii() and b"SMTPUTF8" not in given:
            return 553, "5.6.7"
        if 0 < self.limits.max_message_size < int(given.get(b"SIZE", b"0")):
            return 552, "5.3.4"
        self.mail_from, self.utf8 = address, b"SMTPUTF8" in given
        return 250, "2.1.0"

    def rcpt(self, argument: bytes) -> tuple[int, str]:
        if self.hello is None or self.mail_from is None:
            return 503, "5.5.1"
        self.tried += 1
        if self.tried > self.limits.max_recipients + 1000:
            return 421, "4.7.0"
        postmaster = {b"<postmaster>": None}  # RFC 5321 4.5.1: without a domain, in any case
        path, address, rest = self.path(argument, b"TO:", (501, "5.1.3"), postmaster)
        self.parameters(rest, set())
        if not path.isascii() and not self.utf8:
            return 553, "5.6.7"
        if len(self.rcpt_tos) >= self.limits.max_recipients:
            return 452, "4.5.3"
        self.rcpt_tos.append(address)
        return 250, "2.1.5"

    def data(self, argument: bytes) -> tuple[int, str]:
        if self.hello is None or self.mail_from is None or not self.tried:
            return 503, "5.5.1"
        if not self.rcpt_tos:
            return 554, "5.5.1"
        if argument:
            return 501, "5.5.4"
        return 354, ""

    def path(
        self, argument: bytes, word: bytes, bad: tuple[int, str], special: dict[bytes, str | None]
    ) -> tuple[bytes, str, bytes]:
        """Returns the path as it came, its address without the source route, and what follows the ``>``."""
        strict = self.limits.addresses == "strict"
        before = re.match(rb"%b[ \t]*:[ \t]*(?=<)" % word[:-1], argument, re.IGNORECASE)
        if before is None:
            raise Refusal(501, "5.5.4")
        text = argument[before.end() :]
        for path, address in special.items():
            blanks = rb"" if strict else rb"[ \t]*"
            came = re.match(rb"<%b(%b)%b>" % (blanks, path[1:-1], blanks), text, re.IGNORECASE)
            if came is not None:
                return came[0], address or came[1].decode(), self.after_path(text[came.end() :])
        match = (PATH if strict else LENIENT_PATH).match(text)
        if (
            match is None
            or (strict and len(match["local"]) > 64)
            or len(match[0]) > (256 if strict else 1024)
            or len(match["domain"]) > 255
            or any(len(domain) > 255 for domain in re.findall(rb"@([^,:]*)", match["route"] or b""))
            or (match["domain"].startswith(b"[") and not is_literal(match["domain"]))
        ):
            raise Refusal(*bad)
        address = match["local"] + b"@" + match["domain"]
        return match[0], address.decode(), self.after_path(text[match.end() :])

    def after_path(self, rest: bytes) -> bytes:
        if rest and not rest.startswith((b" ", b"\t")):
            raise Refusal(501, "5.5.4")
        return rest

    def parameters(self, text: bytes, known: set[bytes]) -> dict[bytes, bytes]:
        """Checks ``SP keyword[=value]`` from left to right; the first thing wrong is the answer."""
        given: dict[bytes, bytes] = {}
        for parameter in filter(None, re.split(rb"[ \t]", text)):
            match = PARAMETER.fullmatch(parameter)
            if match is None:
                raise Refusal(501, "5.5.4")
            keyword, value = match[1].upper(), match[2]
            if self.hello == b"HELO":
                raise Refusal(555, "5.5.4")
            if keyword in given:
                raise Refusal(501, "5.5.4")
            if keyword not in known:
                raise Refusal(555, "5.5.4")
            good = {
                b"SIZE": re.fullmatch(rb"[0-9]{1,20}", value or b""),
                b"BODY": (value or b"").upper() in (b"7BIT", b"8BITMIME"),
                b"SMTPUTF8": value is None,
            }
            if not good[keyword]:
                raise Refusal(501, "5.5.4")
            given[keyword] = value or b""
        return given

    def content(self, wire: bytes) -> None:
        """Does the content between 354 and the dot line; ``wire`` stood there, its last CRLF included."""
        content = re.sub(rb"(\A|\r\n)\.", rb"\1", wire)
        stray = rb"\r(?!\n)|(?<!\r)\n"
        if self.limits.bare_newline == "normalize":
            content = normalized(content)
        longest = max(len(line) for line in content.split(b"\r\n"))
        if 0 < self.limits.max_message_size < len(content):
            self.result.replies.append((552, "5.3.4"))
        elif self.limits.bare_newline == "reject" and re.search(stray, wire):
            self.result.replies.append((550, "5.5.2"))
        elif 0 < self.limits.max_line_length < longest:
            self.result.replies.append((554, "5.6.0"))
        else:
            self.result.replies.append((250, "2.0.0"))
            self.result.messages.append(Message(str(self.mail_from), self.rcpt_tos, content))
            self.errors = self.junk = 0
        self.reset()


def is_utf8(octets: bytes) -> bool:
    try:
        octets.decode()
    except UnicodeDecodeError:
        return False
    return True


def normalized(content: bytes) -> bytes:
    """Content in which each line ends with CRLF. Up to eight CRs in front of LF are one line end; any other CR becomes
    one in the body, and a space in the header, where it must not begin a field.
    """
    out = bytearray()
    in_header = True
    for piece in re.findall(rb"\r+\n?|\n|[^\r\n]+", content):
        strays = 0
        if piece.startswith(b"\r"):
            crs = piece.count(b"\r")
            strays = max(0, crs - 8) if piece.endswith(b"\n") else crs
        for _ in range(strays):
            in_header = in_header and b"\r\n\r\n" not in b"\r\n" + out and len(out) <= 64 * 1024
            out += b" " if in_header else b"\r\n"
        out += piece if piece[:1] not in b"\r\n" else b"\r\n" if piece.endswith(b"\n") else b""
    return bytes(out)


def oracle(wire: bytes, limits: Limits | None = None) -> Result:
    """Answers all of ``wire``, as the octets of one connection from its first to its last."""
    limits = limits or Limits()
    dialogue = Dialogue(limits)
    result = dialogue.result
    if wire.startswith(b"\x16"):
        dialogue.say(421, "4.7.0")  # a TLS ClientHello has no CRLF to wait for
    at = 0
    while not result.closed:
        if result.replies[-1][0] == 354:
            # The CRLF of the DATA command is the first half of CRLF.CRLF (RFC 5321 4.1.1.4).
            end = wire.find(b"\r\n.\r\n", at - 2)
            if end < 0:
                break
            dialogue.content(wire[at : end + 2])
            at = end + 5
            continue
        newline = wire.find(b"\n", at)
        if newline < 0:
            break
        if newline + 1 - at <= limits.max_command_line:
            line = wire[at : newline + 1]
            if line.endswith(b"\r\n"):
                dialogue.command(line[:-2])
                at = newline + 1
                continue
            # A bare LF ends nothing (2.3.8): what follows it on the line must never be a command.
            # Each such line is refused: its client would wait in silence otherwise.
            dialogue.say(500, "5.5.2")
            end = wire.find(b"\r\n", newline + 1)
            whole = wire[newline + 1 : end + 2] if end >= 0 else wire[newline + 1 :]
            for _ in re.findall(rb"(?<!\r)\n", b"x" + whole):
                if not result.closed:
                    dialogue.say(500, "5.5.2")
        else:
            end = wire.find(b"\r\n", at)
            if end >= 0:
                dialogue.say(500, "5.5.2")
        if end < 0:
            break
        at = end + 2
    return result
