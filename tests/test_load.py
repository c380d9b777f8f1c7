"""What a load sends and what it makes of replies: against naive twins, without a socket."""

import math
import pickle
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import unstuffed

from fastsmtp._load import BUSY, ENDED, IDLE, WRITE, Histogram, Load, Talk
from fastsmtp.load import LEAST_SIZE, Figures, Plan, content

often = settings(max_examples=300, deadline=None)


def plan(**settings: object) -> Plan:
    return Plan(0, "nowhere", "localhost", **settings)  # type: ignore[arg-type]


# --- what is sent -------------------------------------------------------------------------------------------


def test_content_has_its_size_and_whole_lines() -> None:
    for size in [*range(LEAST_SIZE, LEAST_SIZE + 170), 4096, 100_000, 1 << 20]:
        octets = content(size, 7)
        assert len(octets) == size
        assert octets.endswith(b"\r\n")
        assert b"\r\n\r\n" in octets
        assert not re.search(rb"(?<!\r)\n|\r(?!\n)", octets)
        assert max(map(len, octets.split(b"\r\n"))) <= 78


def test_content_differs_by_its_number_and_has_lines_that_begin_with_dots() -> None:
    contents = [content(4096, number) for number in (0, 1, 10, 999_999_999_999)]
    assert len(set(contents)) == len(contents)
    assert all(b"\r\n." in octets and b"\r\n...." in octets for octets in contents)
    assert b"Message-ID: <000000000010@" in contents[2]


def said(talk: Talk) -> bytes:
    """All that a talk has to say now."""
    octets = b""
    while part := bytes(talk.output()):
        octets += part
        talk.sent(len(part))
    return octets


def greeted(load: Load, due: int = 0) -> Talk:
    talk = Talk(load, -1, due)
    assert talk.connected() == BUSY
    assert talk.received(b"220 mx.example\r\n") == WRITE
    assert said(talk) == b"EHLO bench.fastsmtp.invalid\r\n"
    return talk


def begun(load: Load) -> Talk:
    talk = greeted(load)
    assert talk.received(b"250-mx.example\r\n250-SIZE\r\n250 PIPELINING\r\n") == WRITE
    return talk


@pytest.mark.parametrize("size", [LEAST_SIZE, 4096, 300_000])
def test_the_octets_on_the_wire_are_the_content_and_commands(size: int) -> None:
    load = plan(size=size, recipients=("a@b.example", "c@d.example")).load(0)
    load.left = 1
    talk = begun(load)
    assert said(talk) == b"MAIL FROM:<bench@fastsmtp.invalid>\r\n"
    for expected in (b"RCPT TO:<a@b.example>\r\n", b"RCPT TO:<c@d.example>\r\n", b"DATA\r\n"):
        assert talk.received(b"250 ok\r\n") == WRITE
        assert said(talk) == expected
    assert talk.received(b"354 go on\r\n") == WRITE
    assert unstuffed(said(talk)) == content(size, 0)
    assert talk.received(b"250 ok\r\n") == IDLE
    assert (load.accepted, load.failed, load.left) == (1, 0, 0)
    assert talk.quit() == WRITE
    assert said(talk) == b"QUIT\r\n"
    assert talk.received(b"221 bye\r\n") == ENDED


def test_pipelined_the_next_message_begins_behind_the_content() -> None:
    load = plan(pipeline=True).load(0)
    load.left = 2
    talk = begun(load)
    envelope = b"MAIL FROM:<bench@fastsmtp.invalid>\r\nRCPT TO:<bench@fastsmtp.invalid>\r\nDATA\r\n"
    assert said(talk) == envelope
    assert talk.received(b"250 ok\r\n250 ok\r\n354 go on\r\n") == WRITE
    first = said(talk)
    assert first.endswith(envelope)
    assert unstuffed(first.removesuffix(envelope)) == content(4096, 0)
    assert talk.received(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go on\r\n") == WRITE
    assert unstuffed(said(talk)) == content(4096, 1)
    assert talk.received(b"250 ok\r\n") == IDLE
    assert (load.accepted, load.left) == (2, 0)


@given(st.integers(1, 9), st.integers(0, 50), st.integers(1, 200))
def test_processes_share_all_numbers_and_each_once(processes: int, warm_up: int, messages: int) -> None:
    whole = plan(messages=messages, warm_up=warm_up, processes=processes)
    numbers: list[int] = []
    for index in range(processes):
        count = whole.share(warm_up, index) + whole.counted(index)
        numbers += range(index, index + count * processes, processes)
    assert sorted(numbers) == list(range(warm_up + messages))


# --- what replies mean --------------------------------------------------------------------------------------

WORDS = ("MAIL", "RCPT", "DATA", "content")
CODES = (220, 235, 250, 251, 354, 421, 450, 550, 599)
reply = st.tuples(
    st.sampled_from(CODES),
    st.lists(st.sampled_from(("", " ok", " 5.1.1 <a@b> no", " -", " 250 x")), min_size=1, max_size=3),
    st.sampled_from((b"\r\n", b"\n")),
)
good = st.tuples(st.just(250), st.just([" ok"]), st.just(b"\r\n"))


def written(code: int, lines: list[str], end: bytes) -> bytes:
    *others, last = lines
    octets = b"".join(f"{code}-{line.strip()}".encode() + end for line in others)
    return octets + f"{code}{last}".encode() + end


def naive(replies: list[tuple[int, list[str], bytes]], *, pipeline: bool) -> tuple[int, Counter[str]]:
    """How many messages such replies accept, and which failures there are."""
    for place, (code, lines, _) in enumerate(replies):
        word = WORDS[place % 4]
        if str(code)[0] != ("3" if word == "DATA" else "2"):
            first = f"{code}-{lines[0].strip()}" if len(lines) > 1 else f"{code}{lines[0]}"
            # A code is all that is said of a line that is of the right kind at the wrong place.
            told = first if len(lines) > 1 or code >= 400 else str(code)
            failures = Counter([f"{word}: {told}"])
            if pipeline and word == "content" and place + 1 < len(replies):
                failures["sent behind a message that failed"] += 1
            return place // 4, failures
    return len(replies) // 4, Counter()


@often
@given(st.data(), st.integers(1, 4), st.booleans())
def test_any_replies_in_any_pieces(data: st.DataObject, messages: int, pipeline: bool) -> None:
    right = [good if word != "DATA" else good.map(lambda r: (354, *r[1:])) for word in WORDS] * messages
    replies = [data.draw(st.one_of(each, each, each, reply)) for each in right]
    load = plan(pipeline=pipeline).load(0)
    load.left = messages
    talk = begun(load)
    said(talk)
    left = list(replies)
    expected = 3 if pipeline else 1
    state = BUSY
    while left and state != ENDED:
        octets = b"".join(written(*each) for each in left[:expected])
        del left[:expected]
        places = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=3)))
        for begin, end in zip([0, *places], [*places, len(octets)], strict=True):
            state = talk.received(octets[begin:end])
        if state == WRITE:
            said(talk)
        expected = min(4, len(left)) if pipeline else 1
    accepted, failures = naive(replies, pipeline=pipeline)
    assert (load.accepted, load.failures) == (accepted, failures)
    assert load.failed == sum(failures.values())
    assert (state == ENDED) == bool(failures)


@pytest.mark.parametrize(
    ("octets", "says"),
    [
        (b"hello\r\n", "MAIL: not a reply: hello"),
        (b"25\r\n", "MAIL: not a reply: 25"),
        (b"250:ok\r\n", "MAIL: not a reply: 250:ok"),
        (b"650 ok\r\n", "MAIL: not a reply: 650 ok"),
        (b"250-ok\r\n251 ok\r\n", "MAIL: a reply with the codes 250 and 251"),
        (b"250 ok\r\n250 again\r\n250 and again\r\n", "DATA: 250"),
        (b"5" * 5000, "MAIL: a reply of more than 4096 octets in a line"),
        (b"550 \x1b[31m\xff\r\n", "MAIL: 550 ?[31m\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_what_is_no_reply_to_mail_is_a_failure(octets: bytes, says: str) -> None:
    load = plan().load(0)
    load.left = 1
    talk = begun(load)
    said(talk)
    assert talk.received(octets) == ENDED
    assert load.failures == {says: 1}
    assert load.failed == 1


def test_a_message_that_is_accepted_before_its_end_is_a_failure() -> None:
    load = plan(size=200_000).load(0)
    load.left = 1
    talk = begun(load)
    for octets in (b"250 ok\r\n", b"250 ok\r\n", b"354 go on\r\n"):
        said(talk)
        talk.received(octets)
    talk.sent(len(talk.output()))
    assert talk.received(b"250 ok\r\n") == ENDED
    assert list(load.failures) == ["content: 250, before its end"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tls": "starttls"}, "the server does not offer STARTTLS"),
        ({"login": ("me", "secret")}, "the server does not offer AUTH PLAIN"),
        ({"pipeline": True}, "the server does not offer PIPELINING"),
    ],
)
def test_what_the_server_cannot_do_is_said_and_ends_all(settings: dict[str, object], says: str) -> None:
    talk = greeted(plan(**settings).load(0))
    assert talk.received(b"250-mx.example\r\n250-AUTH LOGIN\r\n250 X-STARTTLS\r\n") == ENDED
    assert (talk.error, talk.fatal) == (says, True)


def test_a_server_that_ends_an_idle_connection_harms_nobody() -> None:
    load = plan().load(0)
    talk = greeted(load)
    assert talk.received(b"250 mx.example\r\n") == IDLE
    assert talk.received(b"421 4.4.2 too long idle\r\n") == ENDED
    assert talk.error is None
    assert load.failures == {}


def test_many_kinds_of_failures_do_not_fill_the_memory() -> None:
    load = plan().load(0)
    for number in range(1000):
        load.fail(f"queue id {number}", 1)
    assert len(load.failures) == 51
    assert load.failures["other failures"] == 950
    assert load.failed == 1000


# --- times --------------------------------------------------------------------------------------------------

times = st.lists(
    st.one_of(st.integers(0, 200), st.integers(0, 10**6), st.integers(0, 5 * 10**13)), min_size=1
)


@often
@given(times, times, st.floats(0, 1))
def test_a_histogram_is_as_good_as_all_times_sorted(one: list[int], other: list[int], share: float) -> None:
    histogram, more = Histogram(), Histogram()
    for value in one:
        histogram.record(value)
    for value in other:
        more.record(value)
    histogram.add(pickle.loads(pickle.dumps(more)))
    everything = sorted(one + other)
    assert histogram.count == len(everything)
    assert histogram.longest == everything[-1] / 1e9
    assert histogram.mean == pytest.approx(sum(everything) / len(everything) / 1e9)
    for each in (share, 0.5, 0.99, 1.0):
        exact = everything[max(1, math.ceil(each * len(everything))) - 1] / 1e9
        assert histogram.quantile(each) == pytest.approx(exact, rel=0.01, abs=1e-9)
    histogram.clear()
    assert (histogram.count, histogram.quantile(0.5), histogram.mean) == (0, 0.0, 0.0)


def test_the_longest_of_times_ends_in_the_last_bucket() -> None:
    histogram = Histogram()
    for value in (2**46 - 1, 2**46, 2**63):
        histogram.record(value)
    assert histogram.quantile(1.0) == 2**63 / 1e9


def test_figures_of_processes_are_added() -> None:
    total = Figures()
    for number in (1, 2):
        figures = Figures(
            accepted=number, failures=Counter(x=number), began=number, ended=number + 5.0, cpu=[number]
        )
        figures.latency["mail"].record(number * 1000)
        total.add(figures)
    assert (total.accepted, total.failures, total.cpu) == (3, {"x": 3}, [1, 2])
    assert (total.began, total.ended, total.seconds) == (1, 7, 6)
    assert total.latency["mail"].count == 2
