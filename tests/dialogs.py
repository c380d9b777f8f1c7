r"""The dialogs: conversations written down in ``dialogs/*.smtp``, and what a program makes of them.

Knows their notation and how replies look on the wire. Refuses to know who plays the server: the core alone, a
socket on any loop, or the oracle.

A dialog begins with ``[its title]``, then ``name = value`` settings of the server, then lines of these kinds:

``C: text``            the client sends text and CRLF (``C:`` alone: just CRLF)
``C> text``            the client sends just that text: no CRLF is added
``S: 250 2.1.0 OK``    the server replies; as many lines of ``S: 250-text`` before it as the reply has
``S: 250 2.1.0 ...``   any reply of which each line begins like that; ``S: 250...`` asks just for the code
``S: [closed]``        the server hangs up
``F: a@b``             a message was taken in from a@b (``<>``: the null reverse-path); there follow
``T: c@d``             each of its recipients, and
``B: text``            each line of its content, CRLF added (``B> text``: just that text)

Several ``C`` lines without an ``S`` between them go out together, as a pipelining client sends them. In texts
``\r \n \t \0 \\ \xNN`` are octets, ``\{text*N}`` is text N times, all else is UTF-8. ``#`` begins a comment.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "dialogs"

Setting = int | bool | str


class Reply(NamedTuple):
    """One reply as it came: its code, its enhanced code or "", its lines without CRLF."""

    code: int
    enhanced: str
    lines: tuple[str, ...]


class Message(NamedTuple):
    """A message that the server took in. The null reverse-path is ``<>``."""

    mail_from: str
    rcpt_tos: list[str]
    content: bytes


@dataclass(frozen=True)
class Expected:
    """A reply that a dialog asks for: exact lines, or a beginning that every line has."""

    lines: tuple[str, ...]

    @property
    def code(self) -> int:
        return int(self.lines[0][:3])

    @property
    def enhanced(self) -> str:
        """The enhanced code that the dialog names, or ""."""
        return enhanced_code(self.lines[-1])

    def matches(self, reply: Reply) -> bool:
        if self.lines[-1].endswith("..."):
            beginning = self.lines[-1][:-3].rstrip()
            rest = beginning[3:].strip()
            return all(line[:3] == beginning[:3] and line[4:].startswith(rest) for line in reply.lines)
        return self.lines == reply.lines


@dataclass
class Exchange:
    """What the client sends at once, and the replies that it then waits for."""

    sent: bytes = b""
    replies: list[Expected] = field(default_factory=list)


@dataclass
class Dialog:
    """One conversation. The first exchange sends nothing: it waits for the greeting."""

    title: str
    place: str
    settings: dict[str, Setting] = field(default_factory=dict)
    exchanges: list[Exchange] = field(default_factory=lambda: [Exchange()])
    messages: list[Message] = field(default_factory=list)
    closed: bool = False

    @property
    def wire(self) -> bytes:
        """All that the client sends."""
        return b"".join(exchange.sent for exchange in self.exchanges)

    @property
    def replies(self) -> list[Expected]:
        """All replies that the dialog asks for, the greeting first."""
        return [reply for exchange in self.exchanges for reply in exchange.replies]

    def __str__(self) -> str:
        return f"{self.place}: {self.title}"


def enhanced_code(line: str) -> str:
    """Returns the enhanced code of a reply line (RFC 2034), or ""."""
    found = re.match(r"\d{3}[ -](\d\.\d{1,3}\.\d{1,3})( |$)", line)
    return found[1] if found else ""


def read_replies(wire: bytes) -> tuple[list[Reply], bytes]:
    """Parses what a server sent into its whole replies and the octets of an unfinished one.

    Raises ``ValueError`` if something is not a reply, or breaks a rule that all replies keep: one code in all
    lines, at most 512 octets a line (RFC 5321 4.5.3.1.5), one enhanced code in all lines, of the code's class
    (RFC 2034).
    """
    replies: list[Reply] = []
    lines: list[str] = []
    *whole, rest = wire.split(b"\r\n")
    for octets in whole:
        line = octets.decode()
        if not re.fullmatch(r"[2-5]\d\d([ -][^\r\n\0]*)?", line) or len(octets) > 510:
            raise ValueError(f"not a reply line: {octets!r}")
        lines.append(line)
        if line[3:4] == "-":
            continue
        codes = {text[:3] for text in lines}
        enhanced = {enhanced_code(text) for text in lines}
        code, subject = codes.pop(), enhanced.pop()
        if codes or enhanced or (subject and subject[0] != code[0]):
            raise ValueError(f"codes of one reply that do not agree: {lines!r}")
        replies.append(Reply(int(code), subject, tuple(lines)))
        lines = []
    return replies, b"".join(f"{line}\r\n".encode() for line in lines) + rest


OCTETS = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}


def unescape(text: str) -> bytes:
    """Returns the octets that a text of a dialog stands for."""

    def octets(found: re.Match[str]) -> bytes:
        if found["repeated"] is not None:
            return unescape(found["repeated"]) * int(found["times"])
        return bytes([int(found["hex"], 16)]) if found["hex"] else OCTETS[found["one"]]

    result, at = b"", 0
    escapes = r"\\(?:\{(?P<repeated>.*?)\*(?P<times>\d+)\}|x(?P<hex>[0-9a-fA-F]{2})|(?P<one>[rnt0\\]))"
    for found in re.finditer(escapes, text):
        result += text[at : found.start()].encode() + octets(found)
        at = found.end()
    return result + text[at:].encode()


def setting(text: str) -> Setting:
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isdigit() else text


def load(path: Path) -> Iterator[Dialog]:
    """Yields the dialogs of one file. Raises ``ValueError`` with the place of a line of no known kind."""
    dialog: Dialog | None = None
    reply: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        mark, text = line[:3], line[3:]
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("["):
            if dialog:
                yield dialog
            dialog = Dialog(line.strip("[]"), f"{path.name}:{number}")
        elif dialog is None:
            raise ValueError(f"{path}:{number}: a dialog begins with [its title]")
        elif mark in ("C: ", "C> ") or line == "C:":
            if dialog.exchanges[-1].replies or dialog.closed:
                dialog.exchanges.append(Exchange())
            dialog.exchanges[-1].sent += unescape(text) + (b"" if mark == "C> " else b"\r\n")
        elif line == "S: [closed]":
            dialog.closed = True
        elif mark == "S: ":
            reply.append(text)
            if text[3:4] != "-":
                dialog.exchanges[-1].replies.append(Expected(tuple(reply)))
                reply = []
        elif mark == "F: ":
            dialog.messages.append(Message(unescape(text).decode(), [], b""))
        elif mark == "T: ":
            dialog.messages[-1].rcpt_tos.append(unescape(text).decode())
        elif mark in ("B: ", "B> ") or line == "B:":
            last = dialog.messages[-1]
            content = last.content + unescape(text) + (b"" if mark == "B> " else b"\r\n")
            dialog.messages[-1] = last._replace(content=content)
        elif found := re.fullmatch(r"(\w+) *= *(\S+)", line):
            dialog.settings[found[1]] = setting(found[2])
        else:
            raise ValueError(f"{path}:{number}: not a line of a dialog: {line}")
    if dialog:
        yield dialog


def load_all() -> list[Dialog]:
    """Returns every dialog of the folder, in order."""
    return [dialog for path in sorted(FOLDER.glob("*.smtp")) for dialog in load(path)]
