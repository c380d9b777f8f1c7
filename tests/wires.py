"""What clients might send: commands, content and octets that are nearly right, to be put together at random.

Knows where servers err: line ends, dots, limits and the grammar of paths. Refuses to know what is answered.
"""

import random
from itertools import pairwise

from oracle import Limits

PATHS = (
    b"<a@b.example>", b"<>", b"<Postmaster>", b"<\"q> p\"@b.example>",
    b"<@r.example,@s.example:a@b.example>", b"<@r.example:Postmaster>", b"<a@[192.0.2.1]>",
    b"<a@[IPv6:2001:db8::1]>", b"<a@[IPv6:1::2::3]>", b"<a@[x:y]>", "<é@b.example>".encode(),
    "<a@bücher.example>".encode(), b"<a>", b"<a@b.example", b"a@b.example", b"<a..b@c>", b"<a@-b>",
    b"<\"\\\"\"@b>", b"<\"\\>", b"<a@b.>", b"<" + b"l" * 64 + b"@d>", b"<" + b"l" * 65 + b"@d>",
    b"<a@" + b"d" * 63 + b">", b"<a@" + b"d" * 64 + b">", b"<a@" + b"d." * 125 + b"dd>",
    b"<a@" + b"d." * 126 + b"d>",
)  # fmt: skip
PARAMETERS = (
    b"", b"", b"", b" ", b" SIZE=1", b" SIZE=100", b" SIZE=99999999999999999999",
    b" SIZE=100000000000000000000", b" SIZE=", b" SIZE", b" size=0 body=7bit", b" BODY=8BITMIME",
    b" BODY=9BIT", b" SMTPUTF8", b" SMTPUTF8=1", b" X", b" X=Y", b" =", b" X=", b"  ", b"\t", b">", b"x",
    b" SIZE=1 SIZE=1", b" \xff", b" X=\xc3\xa9", b" X-", b" -X", b" SMTPUTF8 BODY=8BITMIME SIZE=5",
)  # fmt: skip
LINES = (
    b"EHLO c.example", b"HELO c.example", b"EHLO", b"helo", b"DATA", b"data ", b"DATA x", b"RSET",
    b"RSET x", b"NOOP", b"NOOP x", b"VRFY", b"VRFY x", b"HELP", b"QUIT", b"QUIT x", b"EXPN x",
    b"AUTH PLAIN", b"BDAT 1", b"STARTTLS", b"GET / HTTP/1.1", b"", b" ", b"\t", b"X", b"NOOP\0",
    b"NOOP \xc3\xa9", b"NOOP \xed\xa0\x80", b"MAIL", b"RCPT", b"MAIL FROM", b"RCPT TO:", b"MAIL TO:<>",
    b".", b"..", b"NOOP " + b"n" * 56, b"NOOP " + b"n" * 57, b"NOOP " + b"n" * 58, b"NOOP " + b"n" * 600,
)  # fmt: skip
ENDS = (
    b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r",
    b"\r\r\n", b"",
)  # fmt: skip
CONTENT = (
    b"\r\n", b"\r", b"\n", b".", b"..", b"\r\n.", b"\r\n.\r", b"\n.\r\n", b"\r\n.\n", b"\r.\r\n",
    b"\n.\n", b"\r.\r", b"\r\r\n.\r\n", b"\r\n.\r\r\n", b"\r\n..\r\n", b"\r\n.\0\r\n", b"\0", b"a",
    b"text", b"a\r\n", b".a\r\n", b"x" * 10, b"x" * 127, b"x" * 128, b"x" * 129, b"\r\n" * 3,
    b"\r\n.a" * 40, b"\n" * 130, b"\r" * 130,
)  # fmt: skip
HELLO = b"EHLO c.example\r\n"
TO_DATA = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
END = b"\r\n.\r\n"

SETTINGS = {
    "max_command_line": (64, 512, 2048),
    "max_message_size": (0, 10, 130, 1000, 32 << 20),
    "max_recipients": (1, 2, 100),
    "max_line_length": (0, 5, 10, 128, 998),
    "max_errors": (1, 3, 20, 1000),
    "bare_newline": ("normalize", "keep", "reject"),
    "smtputf8": (True, True, False),
}


def random_limits(chance: random.Random) -> Limits:
    return Limits(**{name: chance.choice(values) for name, values in SETTINGS.items()})  # type: ignore[arg-type]


def random_part(chance: random.Random) -> bytes:
    """A command, a piece of content, a stretch of a good session, or noise."""
    kind = chance.randrange(10)
    if kind < 3:
        verb = chance.choice((b"MAIL FROM:", b"mail from: ", b"RCPT TO:", b"rcpt to: "))
        return verb + chance.choice(PATHS) + chance.choice(PARAMETERS) + chance.choice(ENDS)
    if kind < 5:
        return chance.choice(LINES) + chance.choice(ENDS)
    if kind < 8:
        content = b"".join(chance.choice(CONTENT) for _ in range(chance.randrange(8)))
        start = chance.choice((b"", TO_DATA, TO_DATA, HELLO + TO_DATA))
        return start + content + chance.choice((b"", END, END))
    if kind == 8:
        return chance.choice((HELLO, TO_DATA, END, END + b"RSET\r\n"))
    return bytes(chance.choice(b'\r\n. <>@:"\\=a\0\xc3\xa9\xff') for _ in range(chance.randrange(12)))


def random_wire(chance: random.Random) -> bytes:
    """One client's octets, which may have lost, doubled or changed a few on the way."""
    wire = bytearray(HELLO if chance.random() < 0.8 else b"")
    for _ in range(chance.randrange(1, 12)):
        wire += random_part(chance)
    while wire and chance.random() < 0.2:
        at = chance.randrange(len(wire))
        match chance.randrange(3):
            case 0:
                del wire[at]
            case 1:
                wire.insert(at, chance.choice(wire))
            case _:
                wire[at] = chance.choice(b"\r\n. <>\0\xffaZ0")
    return bytes(wire)


def random_pieces(chance: random.Random, wire: bytes) -> list[bytes]:
    """``wire`` cut somewhere: not at all, in single octets, or at a few places."""
    count = chance.choice((0, 0, 1, 2, 5, 20, len(wire)))
    places = [chance.randrange(len(wire) + 1) for _ in range(count)] if count < len(wire) else range(count)
    return [wire[begin:end] for begin, end in pairwise([0, *sorted(places), len(wire)]) if begin < end]
