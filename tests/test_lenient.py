"""The lenient dialogue, which aiosmtpd's interface has: pieces never matter, nor whether Python does a command."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import Limits, Result, oracle
from script import Script, cut, every
from test_property import limits as strict_limits
from test_property import places, wire
from wires import CONTENT, END, HELLO, TO_DATA

from fastsmtp._engine import Engine
from fastsmtp._rules import ASKS, HOOKS, VERB_BITS, Rules
from fastsmtp.replies import aiosmtpd

often = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
VERBS = sum(bit for verb, bit in VERB_BITS.items() if verb != "LHLO")
AUTH = b"EHLO me.example\r\nAUTH PLAIN\r\n"
LATE = settings(max_examples=200, deadline=None)
content = (
    st.lists(st.sampled_from(CONTENT) | st.binary(max_size=10), max_size=12)
    .map(b"".join)
    .filter(lambda octets: b"\r\n.\r\n" not in b"\r\n" + octets)
)


def engine(*, asked: tuple[str, ...] = ("DATA",), **rules: object) -> Engine:
    settings: dict[str, object] = {
        "lenient": True,
        "bare_newline": "keep",
        "verbs": VERBS,
        "max_command_line": 1001,
        "max_command": 512,
        "max_errors": 5,
        "mechanisms": frozenset({"PLAIN"}),
        "auth_in_clear": True,
        **rules,
    }
    book = aiosmtpd("mx.example", "test", mechanisms=("PLAIN",), auth_in_clear=True, smtputf8=True)
    return Engine(rules=Rules(book=book, hooks=sum(HOOKS[name] for name in asked), **settings))  # type: ignore[arg-type]


class Client(Script):
    """A script whose replies need no enhanced codes, that does whole commands, and that answers AUTH."""

    def __init__(self, engine: Engine, *, later: bool = False) -> None:
        self.challenges = 2
        self.responses: list[bytes | None] = []
        self.performances = 0
        super().__init__(engine, later=later)

    def ask(self, kind: int, argument: object, options: list[str] | None) -> bytes | None:
        match ASKS[kind]:
            case "COMMAND":
                assert isinstance(argument, tuple)
                self.open_command = argument
                self.do_command()
                return None
            case "AUTH":
                self.go_on_with_auth()
                return None
        return super().ask(kind, argument, options)

    def do_command(self) -> None:
        self.performances += 1
        if self.perform(*self.open_command):
            self.answer(b"")

    def performed(self) -> None:
        self.answer(b"")

    def go_on_with_auth(self) -> None:
        if len(self.responses) < self.challenges:
            self.challenge(b"334 \r\n")
        else:
            self.answer(b"535 5.7.8 no\r\n")

    def responded(self, line: bytes | None) -> None:
        self.responses.append(line)
        if line is None:
            self.answer(b"")
        else:
            self.go_on_with_auth()


def play(engine: Engine, pieces: list[bytes], *, later: bool = False) -> Result:
    client = Client(engine, later=later)
    for piece in pieces:
        client.settle()
        client.feed(piece)
    client.settle()
    result = client.result()
    client.disconnect()
    client.taken.clear()
    return result


@often
@given(wire, places, strict_limits)
def test_pieces_do_not_matter(wire: bytes, places: list[int], limits: Limits) -> None:
    rules = {"max_message_size": limits.max_message_size, "smtputf8": limits.smtputf8, "max_line_length": 999}
    whole = play(engine(**rules), [wire])
    assert play(engine(**rules), cut(wire, places)) == whole
    assert play(engine(**rules), cut(wire, places), later=True) == whole


@often
@given(wire, places)
def test_it_does_not_matter_whether_python_does_the_commands(wire: bytes, places: list[int]) -> None:
    direct = play(engine(), [wire])
    whole = VERBS & ~VERB_BITS["AUTH"]
    assert play(engine(whole=whole), [wire]) == direct
    assert play(engine(whole=whole), cut(wire, places), later=True) == direct


@often
@given(st.lists(content, max_size=4), places)
def test_content_ends_where_it_ends_strictly(contents: list[bytes], places: list[int]) -> None:
    """Only CRLF.CRLF ends content (CVE-2024-27305), and what is stored is what was sent."""
    wire = HELLO + b"".join(TO_DATA + content + END for content in contents)
    strict = oracle(wire, Limits(bare_newline="keep"))
    assert play(engine(), cut(wire, places)).messages == strict.messages


def test_a_line_may_end_with_lf_alone() -> None:
    client = Client(engine())
    client.feed(b"HELO me\nNOOP\n\nQUIT\r\n")
    assert [reply.code for reply in client.replies()] == [220, 250, 250, 500, 221]


@LATE
@given(st.lists(st.sampled_from((b"YQ==", b"*", b"", b"x" * 3000, b"\0")), min_size=1, max_size=3), places)
def test_responses_come_in_any_pieces(lines: list[bytes], places: list[int]) -> None:
    wire = AUTH + b"".join(line + b"\r\n" for line in lines)
    client = Client(engine())
    for piece in cut(wire, places):
        client.feed(piece)
    heard = [None if line == b"*" else line for line in lines[:2]]
    if None in heard:
        heard = heard[: heard.index(None) + 1]
    assert client.responses[: len(heard)] == heard


def test_a_response_has_its_limit_and_the_dialogue_goes_on() -> None:
    """RFC 4954 4: 12288 octets."""
    for size in (12286, 12287, 100_000):
        client = Client(engine())
        for piece in every(AUTH + b"a" * size + b"\r\nYQ==\r\nNOOP\r\n", 999):
            client.feed(piece)
        codes = [reply.code for reply in client.replies()]
        # Too long, the exchange is over, and what follows is a command.
        assert codes == ([220, 250, 334, 334, 535, 250] if size == 12286 else [220, 250, 334, 500, 500, 250])


def test_nothing_is_taken_while_a_response_is_thought_about() -> None:
    client = Client(engine())
    client.challenges = 1
    client.feed(AUTH + b"YQ==\r\nNOOP\r\nMAIL FROM:a\r\n")
    assert [reply.code for reply in client.replies()] == [220, 250, 334, 535, 250, 250]


def test_lmtp_says_a_reply_for_each_recipient() -> None:
    """RFC 2033 4.2."""
    rules = {"lmtp": True, "verbs": VERBS | VERB_BITS["LHLO"]}
    client = Client(engine(asked=(), **rules))
    client.feed(b"LHLO me\r\nMAIL FROM:a@b\r\nRCPT TO:c@d\r\nRCPT TO:e@f\r\nDATA\r\nhi\r\n.\r\nQUIT\r\n")
    assert [reply.code for reply in client.replies()] == [220, 250, 250, 250, 250, 354, 250, 250, 221]
