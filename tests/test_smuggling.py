"""Nothing but CRLF.CRLF ends a message, wherever octets are cut and whatever becomes of the message.

The sequences are those of the public tools (SEC Consult's SMTP-Smuggling-Tools, hannob/smtpsmug) and more of
their kind; behind each comes what an attacker would have taken for commands.
"""

from pathlib import Path

import pytest
from oracle import Limits, Result, oracle
from script import Script, cut, every, make_engine, play
from wires import HELLO, TO_DATA

from fastsmtp._engine import Engine
from fastsmtp._rules import HOOKS, Rules
from fastsmtp.body import Spill
from fastsmtp.replies import native

FALSE_ENDS = {
    "lflf": b"\n.\n",
    "crcr": b"\r.\r",
    "crlf": b"\r.\n",
    "lfcr": b"\n.\r",
    "lfcrlf": b"\n.\r\n",
    "crlflf": b"\r\n.\n",
    "crcrlf": b"\r.\r\n",
    "crlfcr": b"\r\n.\r",
    "nullbefore": b"\r\n\0.\r\n",
    "nullafter": b"\r\n.\0\r\n",
    "crlf-crcrlf": b"\r\n.\r\r\n",
    "crcrlf-crcrlf": b"\r\r\n.\r\r\n",
    "stuffed": b"\r\n..\r\n",
    "space before": b"\r\n .\r\n",
    "tab after": b"\r\n.\t\r\n",
    "space after": b"\r\n. \r\n",
    "lf in the end": b"\r\n.\n\r\n",
    "cr in the end": b"\r\n.\r\r",
    "lf-cr": b"\n\r.\n\r",
    "unicode next line": "\x85.\x85".encode(),
    "vertical": b"\v.\v",
}
EVIL = b"mail FROM:<evil@b.example>\r\nrcpt TO:<victim@d.example>\r\ndata\r\nevil\r\n"
MODES = ("normalize", "keep", "reject")
QUIT = b"QUIT\r\n"

each_false_end = pytest.mark.parametrize("sequence", FALSE_ENDS.values(), ids=FALSE_ENDS.keys())
each_mode = pytest.mark.parametrize("mode", MODES)


def check_one_message(result: Result, mode: str) -> None:
    """One transaction and a QUIT: exactly these replies, and no message but the one."""
    codes = [code for code, _ in result.replies]
    assert codes[:5] == [220, 250, 250, 250, 354]
    assert codes[5:] in ([[250, 221], [550, 221]] if mode == "reject" else [[250, 221]])
    assert [message.mail_from for message in result.messages] == ["a@b.example"] * (codes[5] == 250)
    assert result.closed


@each_mode
@each_false_end
def test_a_false_end_at_every_cut(sequence: bytes, mode: str) -> None:
    limits = Limits(bare_newline=mode)
    engine = make_engine(limits)
    wire = HELLO + TO_DATA + b"text" + sequence + EVIL + b".\r\n" + QUIT
    right = oracle(wire, limits)
    check_one_message(right, mode)
    assert play(engine, every(wire, 1)) == right
    for place in range(len(wire) + 1):
        assert play(engine, cut(wire, [place])) == right, place


@each_mode
@each_false_end
def test_a_false_end_as_the_first_octets_of_the_message(sequence: bytes, mode: str) -> None:
    limits = Limits(bare_newline=mode)
    engine = make_engine(limits)
    start = len(HELLO + TO_DATA)
    for first in (sequence, sequence.removeprefix(b"\r\n")):
        wire = HELLO + TO_DATA + first + EVIL + b".\r\n" + QUIT
        right = oracle(wire, limits)
        check_one_message(right, mode)
        for place in range(start - 2, start + len(first) + 2):
            assert play(engine, cut(wire, [place])) == right, place
            assert play(engine, cut(wire, [place, place + 1])) == right, place


@each_false_end
def test_a_false_end_whose_message_spills(sequence: bytes) -> None:
    wire = HELLO + TO_DATA + b"text" * 10 + sequence + EVIL + b".\r\n" + QUIT
    right = oracle(wire)
    check_one_message(right, "normalize")
    for threshold in range(36, 60):
        engine = make_engine(spill_threshold=threshold)
        assert play(engine, [wire]) == right, threshold
        assert play(engine, every(wire, 5)) == right, threshold


# The worker's buffer for commands, that for content, and a message's first memory.
BUFFERS = (64 * 1024, 256 * 1024, 512 * 1024)


@pytest.mark.parametrize("size", BUFFERS)
@each_false_end
def test_a_false_end_round_the_end_of_a_buffer(sequence: bytes, size: int) -> None:
    """In one flow, as a fast client sends; the sequence lies on each octet round the end of a buffer. The header is
    over, as the end of one is not looked for in so much text.
    """
    engine = make_engine()
    start = len(HELLO + TO_DATA)
    (small,) = oracle(HELLO + TO_DATA + b"\r\nx" + sequence + EVIL + b".\r\n").messages
    for begin in (start, 0):  # the message begins in the buffer of the commands, or in a fresh one
        for shift in range(-len(sequence) - 1, 3):
            text = b"\r\n".ljust(size - start + begin + shift, b"x")
            wire = HELLO + TO_DATA + text + sequence + EVIL + b".\r\n" + QUIT
            script = Script(engine)
            script.feed(wire[:begin])
            script.feed(wire[begin:])
            replies = [reply.code for reply in script.replies()]
            assert replies == [220, 250, 250, 250, 354, 250, 221], shift
            (message,) = script.result().messages
            assert message.content == text[:-1] + small.content[2:], shift
            script.disconnect()


@pytest.mark.parametrize("size", [*BUFFERS, 128, 1000, 1 << 20])
def test_the_true_end_round_the_end_of_a_buffer(size: int) -> None:
    start = len(HELLO + TO_DATA)
    for threshold in (1 << 20, 1 << 30):
        engine = make_engine(spill_threshold=threshold)
        for shift in range(-7, 4):
            text = b"x" * (size - start + shift)
            wire = HELLO + TO_DATA + text + b"\r\n.\r\n" + TO_DATA + b".\r\n" + QUIT
            result = play(engine, [wire])
            assert [message.content for message in result.messages] == [text + b"\r\n", b""], shift
            assert [code for code, _ in result.replies] == [
                220,
                250,
                250,
                250,
                354,
                250,
                250,
                250,
                354,
                250,
                221,
            ]


@each_mode
def test_the_true_end_at_every_cut(mode: str) -> None:
    limits = Limits(bare_newline=mode)
    engine = make_engine(limits)
    wire = HELLO + TO_DATA + b".\r\n" + TO_DATA + b"a\r\n..\r\n.\r\n" + TO_DATA + b"\r\n.\r\n" + QUIT
    right = oracle(wire, limits)
    assert [message.content for message in right.messages] == [b"", b"a\r\n.\r\n", b"\r\n"]
    for place in range(len(wire) + 1):
        for other in (place + 1, place + 2, place + 5):
            assert play(engine, cut(wire, [place, other])) == right, (place, other)


@each_mode
@pytest.mark.parametrize("newline", [b"\n", b"\r"], ids=["lf", "cr"])
def test_what_follows_a_message_that_grows_is_not_overwritten(newline: bytes, mode: str) -> None:
    """Stray newlines become two octets where they were one; the commands behind the message stay as they are.

    The content holds commands, and filler lets each octet of it come to lie on the octets behind the end.
    """
    limits = Limits(bare_newline=mode, max_errors=1000)
    engine = make_engine(limits)
    for stray in (0, 1, 2, 3, 4, 5, 10, 50, 300, 5000):
        for behind in (b"NOOP\r\n" * 3, TO_DATA + b".\r\n", b"NOOP " + b"n" * 500 + b"\r\n"):
            first = HELLO + TO_DATA + b"a"
            second = newline * stray + EVIL + b".\r\n" + behind + QUIT
            right = oracle(first + second, limits)
            assert "evil" not in str([message.mail_from for message in right.messages])
            assert play(engine, [first, second]) == right, (stray, behind)
            assert play(engine, [first, *every(second, 700)]) == right, (stray, behind)


@pytest.mark.parametrize("size", [300_000, 600_000, 2_000_000])
@pytest.mark.parametrize("newline", [b"\n", b"\r", b"a\n", b"\r\n\n"], ids=["lf", "cr", "a-lf", "crlf-lf"])
def test_what_follows_a_large_message_that_grows_is_not_overwritten(newline: bytes, size: int) -> None:
    wire = HELLO + TO_DATA + newline * (size // len(newline)) + b"\r\n.\r\n" + b"NOOP\r\n" * 50 + QUIT
    right = oracle(wire)
    for threshold in (1 << 20, 1 << 30):
        assert play(make_engine(spill_threshold=threshold), [wire]) == right


@each_mode
def test_a_message_that_is_refused_is_read_to_its_true_end(mode: str) -> None:
    """To go back to commands early would run the rest of the message as commands."""
    false_ends = b"text".join(FALSE_ENDS.values())
    content = b"\n" + b"x" * 100 + false_ends + EVIL + false_ends + EVIL
    limits = Limits(bare_newline=mode, max_message_size=50, max_line_length=10)
    wire = HELLO + TO_DATA + content + b".\r\n" + TO_DATA + b"ok\r\n.\r\n" + QUIT
    right = oracle(wire, limits)
    assert [code for code, _ in right.replies[4:]] == [354, 552, 250, 250, 354, 250, 221]
    assert [message.content for message in right.messages] == [b"ok\r\n"]
    engine = make_engine(limits)
    for pieces in ([wire], every(wire, 1), every(wire, 13)):
        assert play(engine, pieces) == right


def test_what_follows_a_message_that_is_dropped_is_not_read_from_memory_given_away() -> None:
    """More messages than the engine keeps spare memory for, so that it really goes; the sanitizer sees."""
    engine = make_engine(Limits(max_message_size=500))
    scripts = [Script(engine) for _ in range(80)]
    for script in scripts:
        script.feed(HELLO + TO_DATA + b"x" * 100)
        script.feed(b"x" * 100)
    for script in scripts[1:]:
        script.disconnect()
    scripts[0].feed(b"x" * 1000 + b"\r\n.\r\n" + b"NOOP\r\n" * 20)
    assert [reply.code for reply in scripts[0].replies()[4:]] == [354, 552, *[250] * 20]


def test_a_message_that_there_is_no_memory_for_is_read_to_its_true_end() -> None:
    content = b"x" * 300_000 + b"\r\n" + EVIL + b"\n.\n" + EVIL
    wire = HELLO + TO_DATA + content + b".\r\nNOOP\r\n" + QUIT
    for pieces in ([wire], every(wire, 10_000)):
        engine = Engine(
            rules=Rules(book=native("mx.example"), hooks=HOOKS["DATA"]),
            memory_budget=8192,
            spill_threshold=8192,
        )
        result = play(engine, pieces)
        assert result.replies[5:] == [(452, "4.3.1"), (250, "2.0.0"), (221, "2.0.0")]
        assert result.messages == []


def test_a_message_that_cannot_spill_is_read_to_its_true_end(tmp_path: Path) -> None:
    """The directory for spills is not there."""
    failures: list[Exception] = []

    class Watched(Script):
        def failed(self, error: Exception) -> None:
            failures.append(error)

    wire = HELLO + TO_DATA + b"x" * 3000 + b"\r\n" + EVIL + b".\r\nNOOP\r\n" + QUIT
    engine = Engine(
        rules=Rules(book=native("mx.example"), hooks=HOOKS["DATA"]),
        open_spill=lambda dialogue, beginning: Spill(tmp_path / "gone"),
        spill_threshold=1000,
    )
    script = Watched(engine)
    for piece in every(wire, 500):
        script.feed(piece)
    result = script.result()
    assert result.replies[5:] == [(452, "4.3.1"), (250, "2.0.0"), (221, "2.0.0")]
    assert result.messages == []
    assert [type(error) for error in failures] == [FileNotFoundError]


@pytest.mark.parametrize("bare", [b"\n", b"NOOP\n", b"NOOP\n\n", b"\r\r\n\n", b"NOOP\r\n\n"])
def test_commands_behind_a_bare_newline_are_never_answered(bare: bytes) -> None:
    wire = HELLO + bare + b"MAIL FROM:<evil@b.example>\r\nRCPT TO:<victim@d.example>\r\nDATA\r\n"
    right = oracle(wire)
    assert (250, "2.1.0") not in right.replies
    engine = make_engine()
    assert play(engine, every(wire, 1)) == right
    for place in range(len(wire) + 1):
        assert play(engine, cut(wire, [place])) == right, place


def test_a_command_with_a_nul_is_refused_whole() -> None:
    engine = make_engine(Limits(max_errors=1000))
    command = b"MAIL FROM:<a@b.example>\r\n"
    for place in range(len(command) - 1):
        wire = HELLO + command[:place] + b"\0" + command[place:]
        assert play(engine, [wire]).replies[2:] == [(500, "5.5.2")], place


# --- STARTTLS (RFC 3207, CVE-2021-38371): what was sent in clear is never taken for what came inside TLS


class Secured(Script):
    """Notes when TLS is to begin."""

    began = 0

    def secure(self) -> None:
        self.began += 1


def starttls_engine(hooks: int = 0) -> Engine:
    return Engine(rules=Rules(book=native("mx.example", starttls=True), starttls=True, hooks=hooks))


@pytest.mark.parametrize(
    "behind", [b"N", b"\r\n", b"NOOP\r\n", b"EHLO evil.example\r\nMAIL FROM:<>\r\n", b"\x16\x03"]
)
def test_octets_behind_starttls_end_the_connection(behind: bytes) -> None:
    engine = starttls_engine()
    wire = HELLO + b"STARTTLS\r\n" + behind
    for place in range(len(HELLO + b"STARTTLS\r\n")):
        script = Secured(engine)
        for piece in cut(wire, [place]):
            script.feed(piece)
        replies = [(reply.code, reply.enhanced) for reply in script.replies()]
        assert replies == [(220, ""), (250, ""), (554, "5.5.0")], place
        assert script.closed
        assert script.began == 0


def test_octets_in_clear_after_the_reply_to_starttls_are_nobodys() -> None:
    script = Secured(starttls_engine())
    script.feed(HELLO + b"STARTTLS\r\n")
    assert script.began == 1
    assert [(reply.code, reply.enhanced) for reply in script.replies()][2:] == [(220, "2.0.0")]
    said = len(script.wire)
    script.feed(b"MAIL FROM:<evil@b.example>\r\n")
    assert len(script.wire) == said
    script.secured(None, script.write)
    script.feed(b"MAIL FROM:<a@b.example>\r\n")
    assert [(reply.code, reply.enhanced) for reply in script.replies()][3:] == [(503, "5.5.1")]


def test_starttls_behind_an_open_ask_still_sees_what_follows_it() -> None:
    script = Secured(starttls_engine(hooks=HOOKS["NOOP"]), later=True)
    script.feed(b"NOOP\r\nSTARTTLS\r\nEHLO evil.example\r\n")
    script.settle()
    assert [reply.code for reply in script.replies()] == [220, 250, 554]
    assert script.began == 0


def test_starttls_behind_an_open_ask_still_sees_what_comes_after_it() -> None:
    """The clear octets come in a read of their own, but before the command was done."""
    script = Secured(starttls_engine(hooks=HOOKS["NOOP"]), later=True)
    script.feed(b"NOOP\r\nSTARTTLS\r\n")
    script.feed(b"EHLO evil.example\r\n")
    script.settle()
    assert [reply.code for reply in script.replies()] == [220, 250, 554]
    assert script.began == 0


def test_starttls_forgets_what_was_said_in_clear() -> None:
    script = Secured(starttls_engine())
    script.feed(HELLO + b"MAIL FROM:<evil@b.example>\r\nRCPT TO:<victim@d.example>\r\nSTARTTLS\r\n")
    script.secured(None, script.write)
    script.feed(b"DATA\r\nSTARTTLS\r\nEHLO c.example\r\nRCPT TO:<victim@d.example>\r\nDATA\r\n")
    replies = script.replies()[5:]
    assert [(reply.code, reply.enhanced) for reply in replies] == [
        (503, "5.5.1"),
        (503, "5.5.1"),
        (250, ""),
        (503, "5.5.1"),
        (503, "5.5.1"),
    ]
    assert "250-STARTTLS" not in replies[2].lines
