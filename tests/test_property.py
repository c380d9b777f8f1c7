"""Whatever octets a client sends, however they are cut: the core answers what the oracle answers."""

import random

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from oracle import Limits, oracle
from script import cut, make_engine, play
from wires import (
    CONTENT,
    END,
    ENDS,
    HELLO,
    LINES,
    PARAMETERS,
    PATHS,
    SETTINGS,
    TO_DATA,
    random_limits,
    random_wire,
)

from fastsmtp._reception import scan

limits = st.builds(Limits, **{name: st.sampled_from(values) for name, values in SETTINGS.items()})
end = st.sampled_from(ENDS)
mail = st.builds(
    lambda verb, path, parameters, end: verb + path + parameters + end,
    st.sampled_from((b"MAIL FROM:", b"mail from: ", b"RCPT TO:", b"Rcpt To: ")),
    st.sampled_from(PATHS),
    st.lists(st.sampled_from(PARAMETERS), max_size=3).map(b"".join),
    end,
)
line = st.builds(lambda line, end: line + end, st.sampled_from(LINES) | st.binary(max_size=80), end)
content = st.lists(st.sampled_from(CONTENT) | st.binary(max_size=10), max_size=12).map(b"".join)
message = content.map(lambda octets: TO_DATA + octets + END)
part = mail | line | content | message | st.sampled_from((HELLO, TO_DATA, END))
wire = st.lists(part, max_size=12).map(lambda parts: HELLO + b"".join(parts)) | st.binary(max_size=200)
places = st.lists(st.integers(0, 1500), max_size=12)
COMMANDS = ("MAIL FROM:<{}> SMTPUTF8", "RCPT TO:<{}>")
often = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@often
@given(wire, places, limits)
@example(HELLO + TO_DATA + b"a" + b"\n" * 5 + END + b"NOOP\r\n", [len(HELLO + TO_DATA) + 1], Limits())
def test_any_octets_in_any_pieces(wire: bytes, places: list[int], limits: Limits) -> None:
    assert play(make_engine(limits), cut(wire, places)) == oracle(wire, limits)


@often
@given(st.lists(content, max_size=4), places, limits, st.sampled_from((0, 1, 20, 100)))
def test_any_content_in_any_pieces(
    contents: list[bytes], places: list[int], limits: Limits, threshold: int
) -> None:
    wire = HELLO + b"".join(TO_DATA + content + END + b"NOOP\r\n" for content in contents)
    engine = make_engine(limits, spill_threshold=threshold)
    assert play(engine, cut(wire, places)) == oracle(wire, limits)
    assert engine.held == 0


@often
@given(
    wire, places, limits, st.booleans(), st.sets(st.sampled_from(("MAIL", "RCPT", "NOOP", "RSET", "QUIT")))
)
def test_any_hooks_that_answer_later(
    wire: bytes, places: list[int], limits: Limits, polite: bool, hooks: set[str]
) -> None:
    engine = make_engine(limits, hooks={"DATA", *hooks})
    assert play(engine, cut(wire, places), later=True, polite=polite) == oracle(wire, limits)


@often
@given(
    st.lists(st.sampled_from(PATHS) | st.binary(max_size=12), max_size=8),
    st.sampled_from(PARAMETERS),
    st.booleans(),
)
def test_any_path_and_parameters(paths: list[bytes], parameters: bytes, smtputf8: bool) -> None:
    limits = Limits(max_errors=1000, smtputf8=smtputf8)
    wire = HELLO + b"".join(b"MAIL FROM:" + path + parameters + b"\r\nRSET\r\n" for path in paths)
    wire += b"MAIL FROM:<> SMTPUTF8\r\nMAIL FROM:<>\r\n"
    wire += b"".join(b"RCPT TO:" + path + parameters + b"\r\n" for path in paths) + b"DATA\r\n.\r\n"
    assert play(make_engine(limits), [wire]) == oracle(wire, limits)


@given(st.text('"\\>@.<, a:[]é-_', max_size=12), st.sampled_from(COMMANDS))
@settings(max_examples=1000, deadline=None)
def test_any_text_between_angle_brackets(text: str, command: str) -> None:
    wire = HELLO + (b"" if "MAIL" in command else b"MAIL FROM:<> SMTPUTF8\r\n")
    wire += command.format(text).encode() + b"\r\nRCPT TO:<a@b>\r\nDATA\r\n.\r\n"
    assert play(make_engine(), [wire]) == oracle(wire)


@given(st.integers(0, 300), st.lists(st.sampled_from(CONTENT), max_size=6).map(b"".join), st.booleans())
@settings(deadline=None)
def test_the_fast_kernels_find_what_their_scalar_twins_find(before: int, octets: bytes, dots: bool) -> None:
    text = b"x" * before + octets + b"x" * 200
    assert scan(text, dots=dots) == scan(text, dots=dots, scalar=True)


def test_a_thousand_random_clients_of_one_engine() -> None:
    """The memory of one message is used again for the next, and nothing of it is left over."""
    chance = random.Random(5321)
    limits = random_limits(chance)
    engine = make_engine(limits)
    for _ in range(1000):
        wire = random_wire(chance)
        pieces = cut(wire, [chance.randrange(len(wire) + 1) for _ in range(3)])
        assert play(engine, pieces) == oracle(wire, limits), pieces
    assert engine.held == 0
