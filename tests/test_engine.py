"""What the dialogues of one worker share: counters, replies, memory, the coarse clock, and leaving."""

from time import monotonic

import pytest
from script import Script, make_engine
from wires import HELLO, TO_DATA

from fastsmtp._engine import LAYOUT, SLOT_BYTES, Counters, Engine, index
from fastsmtp._rules import HOOKS, REPLIES_NAMES, Book, Rules
from fastsmtp._wire import HELD_BY_DISK, HELD_UNREAD
from fastsmtp.replies import native

MIB = 1 << 20


def count(engine: Engine, name: str, value: str = "") -> int:
    return engine.counters.get(index(f"fastsmtp_{name}", value))


def last(script: Script) -> str:
    reply = script.replies()[-1]
    return f"{reply.code} {reply.enhanced}"


def at_data(engine: Engine) -> Script:
    script = Script(engine)
    script.feed(HELLO + TO_DATA)
    assert last(script) == "354 "
    return script


# --- counters -----------------------------------------------------------------------------------------------


def test_a_slot_holds_every_family() -> None:
    counters = Counters(slot := bytearray(SLOT_BYTES))
    for name, kind, _, values, bounds, offset in LAYOUT:
        for value in values:
            assert offset <= index(name, value) < SLOT_BYTES // 8
            if kind == "histogram":
                counters.observe(index(name, value), bounds[0])
            else:
                counters.add(index(name, value), 7)
    words = memoryview(slot).cast("Q")
    assert sum(1 for word in words if word == 7) == sum(
        len(values) for _, kind, _, values, _, _ in LAYOUT if kind != "histogram"
    )


def test_counters_go_on_and_gauges_begin_anew_with_the_next_worker() -> None:
    slot = bytearray(SLOT_BYTES)
    Counters(slot).add(index("fastsmtp_connections_total"), 3)
    Counters(slot).set(index("fastsmtp_connections_active"), 2)
    after = Counters(slot)
    assert after.get(index("fastsmtp_connections_total")) == 3
    assert after.get(index("fastsmtp_connections_active")) == 0


def test_a_histogram_counts_a_value_in_the_first_bucket_that_holds_it() -> None:
    counters = Counters(bytearray(SLOT_BYTES))
    start = index("fastsmtp_message_size_bytes")
    for size in (0, 1000, 1001, 10**9):
        counters.observe(start, size)
    assert [counters.get(start + bucket) for bucket in (0, 1, 11)] == [2, 1, 1]
    assert counters.get(start + 12) == 2001 + 10**9


@pytest.mark.parametrize("buffer", [bytes(SLOT_BYTES), bytearray(SLOT_BYTES - 1)], ids=["read-only", "short"])
def test_a_slot_that_is_none_is_refused(buffer: bytearray) -> None:
    with pytest.raises((ValueError, BufferError)):
        Counters(buffer)


def test_a_word_beyond_the_slot_is_refused() -> None:
    with pytest.raises(IndexError):
        Counters(bytearray(SLOT_BYTES)).add(SLOT_BYTES)
    with pytest.raises(KeyError):
        index("fastsmtp_commands_total", "FOO")


def test_a_dialogue_is_counted() -> None:
    engine = make_engine()
    script = Script(engine)
    script.feed(HELLO + TO_DATA + b"hi\r\n.\r\nFOO\r\n")
    assert count(engine, "connections_total") == count(engine, "connections_active") == 1
    assert count(engine, "commands_total", "MAIL") == count(engine, "commands_total", "unknown") == 1
    assert count(engine, "replies_total", "250") == 4
    assert count(engine, "replies_total", "500") == count(engine, "replies_total", "354") == 1
    assert count(engine, "messages_total", "accepted") == count(engine, "recipients_total", "accepted") == 1
    script.disconnect()
    script.disconnect()
    assert count(engine, "connections_active") == 0


# --- replies ------------------------------------------------------------------------------------------------


def test_a_book_needs_every_reply_and_nothing_else() -> None:
    texts = {name: native("mx.example")[name] for name in REPLIES_NAMES}
    Book(texts)
    with pytest.raises(ValueError, match="QUIT"):
        Book({name: text for name, text in texts.items() if name != "QUIT"})
    with pytest.raises(ValueError, match="HELLO"):
        Book({**texts, "HELLO": b"250 hi\r\n"})
    with pytest.raises(ValueError, match="QUIT is no reply"):
        Book({**texts, "QUIT": b"221 Bye"})


# --- memory -------------------------------------------------------------------------------------------------


def test_memory_is_counted_while_a_message_has_it_and_used_again() -> None:
    engine = make_engine(hooks=())
    script = at_data(engine)
    script.feed(b"x" * 300_000)
    assert 300_000 < engine.held < 2 * MIB
    script.feed(b"\r\n.\r\n")
    assert engine.held == count(engine, "buffered_bytes") == 0
    assert last(script) == "250 2.0.0"


def test_one_octet_of_content_takes_little_memory() -> None:
    engine = make_engine(memory_budget=MIB)
    scripts = [at_data(engine) for _ in range(200)]
    for script in scripts:
        script.feed(b"x")
    assert engine.held <= 200 * 5000
    for script in scripts:
        script.disconnect()
    assert engine.held == 0


def test_a_message_that_grows_takes_memory_in_proportion() -> None:
    engine = make_engine(hooks=())
    script = at_data(engine)
    for size in range(1000, 900_000, 1000):
        script.feed(b"x" * 1000)
        assert engine.held <= max(2.5 * size, size + 128 * 1024), size


def test_when_memory_is_short_the_slowest_and_emptiest_messages_go_to_a_file() -> None:
    engine = make_engine(memory_budget=MIB, spill_threshold=MIB)
    slow = [at_data(engine) for _ in range(20)]
    for number, script in enumerate(slow):
        script.feed(b"x" * (20_000 + 1000 * number))
    fast = at_data(engine)
    fast.feed(b"y" * 700_000 + b"\r\n.\r\n")
    assert last(fast) == "250 2.0.0"
    spilled = count(engine, "spilled_messages_total")
    assert 0 < spilled < len(slow)
    for script in slow:
        script.feed(b"z" * 30_000 + b"\r\n.\r\n")
        assert last(script) == "250 2.0.0"
    for number, script in enumerate(slow):
        (message,) = script.result().messages
        assert message.content == b"x" * (20_000 + 1000 * number) + b"z" * 30_000 + b"\r\n"


def test_when_memory_is_short_and_a_message_is_too_small_for_a_file_its_connection_ends() -> None:
    engine = make_engine(memory_budget=512 * 1024, spill_threshold=500_000)
    tiny = [at_data(engine) for _ in range(100)]
    for script in tiny:
        script.feed(b"x")
    honest = at_data(engine)
    honest.feed(b"y" * 400_000 + b"\r\n.\r\n")
    assert last(honest) == "250 2.0.0"
    ended = [script for script in tiny if script.closed]
    assert ended
    assert {last(script) for script in ended} == {"421 4.3.1"}
    assert count(engine, "messages_total", "aborted") == len(ended)


def test_no_more_connections_end_for_memory_than_it_takes() -> None:
    engine = make_engine(memory_budget=256 * 1024, spill_threshold=200_000)
    holder = Script(engine, later=True)  # a hook has most of the budget
    holder.feed(HELLO + TO_DATA + b"x" * 100_000 + b"\r\n.\r\n")
    small = []
    while engine.held + 4096 <= engine.memory_budget:
        small.append(at_data(engine))
        small[-1].feed(b"y" * 1000)
    script = Script(engine)
    script.feed(HELLO + b"MAIL FROM:<>\r\n")
    for _ in range(4096 // 500 + 1):
        script.feed(b"RCPT TO:<%b@e.example>\r\n" % (b"x" * 490))
    assert {reply.code for reply in script.replies()[3:]} == {250}
    assert 1 <= sum(one.closed for one in small) <= 2
    holder.taken.clear()


def test_a_message_that_has_a_spill_is_not_lost_when_memory_is_short() -> None:
    engine = make_engine(memory_budget=MIB, spill_threshold=MIB)
    slow = at_data(engine)
    content = b"x" * 70 + b"\r\n"
    slow.feed(content * 20_000)
    assert count(engine, "spilled_messages_total") == 1
    slow.feed(b"y")
    slow.relieve(end=True)
    slow.feed(b"\r\n.\r\n")
    assert last(slow) == "250 2.0.0"
    assert slow.result().messages[0].content == content * 20_000 + b"y\r\n"


def test_a_whole_message_is_not_lost_for_what_is_pipelined_behind_it() -> None:
    engine = make_engine(memory_budget=200 * 1024, spill_threshold=200 * 1024)
    script = at_data(engine)
    script.feed(b"x" * 40_000)
    others = []
    while engine.held < engine.memory_budget - 8000:
        others.append(Script(engine))
        others[-1].feed(HELLO + b"MAIL FROM:<>\r\nRCPT TO:<%b@e.example>\r\n" % (b"z" * 900))
    script.feed(b"y" * 5000 + b"\r\n.\r\n" + b"NOOP\r\n" * 4000)
    replies = [reply.code for reply in script.replies()[5:]]
    assert replies[0] == 250
    assert set(replies) <= {250, 421}  # for the commands behind it there may be no memory
    assert len(script.result().messages[0].content) == 45_002


def without_spills(budget: int) -> Engine:
    rules = Rules(book=native("mx.example"), hooks=HOOKS["DATA"])
    return Engine(rules=rules, memory_budget=budget, spill_threshold=budget)


def test_a_message_that_no_memory_can_be_found_for_is_refused_at_its_end_and_the_next_one_taken() -> None:
    engine = without_spills(MIB)
    first, second = Script(engine, later=True), at_data(engine)
    first.feed(HELLO + TO_DATA + b"x" * 600_000 + b"\r\n.\r\n")
    assert first.asked
    second.feed(b"y" * 600_000 + b"\r\n.\r\nNOOP\r\n")
    assert [(reply.code, reply.enhanced) for reply in second.replies()[-2:]] == [
        (452, "4.3.1"),
        (250, "2.0.0"),
    ]
    assert b"memory" in second.wire
    assert count(engine, "messages_total", "deferred") == 1
    first.settle()
    first.taken.clear()
    assert last(first) == "250 2.0.0"
    second.feed(TO_DATA + b"y" * 600_000 + b"\r\n.\r\n")
    assert last(second) == "250 2.0.0"


def test_a_message_that_will_not_fit_is_refused_before_it_is_sent() -> None:
    engine = make_engine(memory_budget=512 * 1024, spill_threshold=400_000)
    holder = Script(engine, later=True)
    holder.feed(HELLO + TO_DATA + b"x" * 300_000 + b"\r\n.\r\n")
    script = Script(engine)
    script.feed(HELLO + b"MAIL FROM:<a@b.example> SIZE=350000\r\n")
    assert last(script) == "452 4.3.1"
    script.feed(b"MAIL FROM:<a@b.example> SIZE=30000\r\nRSET\r\n")
    assert last(script) == "250 2.0.0"
    holder.settle()
    holder.taken.clear()
    script.feed(b"MAIL FROM:<a@b.example> SIZE=350000\r\n")
    assert last(script) == "250 2.1.0"


def test_recipients_count_against_the_budget() -> None:
    engine = make_engine(memory_budget=64 * 1024, spill_threshold=1000)
    script = Script(engine)
    script.feed(HELLO + b"MAIL FROM:<>\r\n")
    for _ in range(100):
        script.feed(b"RCPT TO:<%b@e.example>\r\n" % (b"x" * 900))
    codes = [f"{reply.code} {reply.enhanced}" for reply in script.replies()[3:]]
    taken = codes.count("250 2.1.5")
    assert 50 < taken < 100
    assert set(codes[taken:]) == {"452 4.3.1"}
    assert engine.held > 50 * 900
    script.feed(b"RSET\r\n")
    assert engine.held == 0


def test_a_client_is_held_back_while_there_is_any_reason() -> None:
    script = Script(make_engine())
    script.feed(HELLO)
    before = len(script.replies())
    script.hold_back(HELD_UNREAD)
    script.hold_back(HELD_BY_DISK)
    script.feed(b"NOOP\r\n")
    script.go_on(HELD_BY_DISK)
    assert len(script.replies()) == before
    assert not script.reading
    script.go_on(HELD_UNREAD)
    assert last(script) == "250 2.0.0"
    assert script.reading


def test_a_client_that_is_held_back_is_not_too_slow() -> None:
    engine = make_engine(min_data_rate=100, idle_timeout=10_000, transaction_timeout=100_000)
    now = monotonic()
    engine.tick(now)
    script = at_data(engine)
    script.hold_back(HELD_BY_DISK)
    assert engine.tick(now + 500) == []
    script.go_on(HELD_BY_DISK)
    assert engine.tick(now + 700) == [(script, "data_rate")]


def test_what_waits_for_a_hook_counts_against_the_budget() -> None:
    engine = make_engine(memory_budget=64 * 1024, spill_threshold=1000)
    script = Script(engine, later=True)
    script.feed(HELLO + TO_DATA + b".\r\n")
    script.feed(b"NOOP\r\n" * 5000)
    assert engine.held > 25_000
    script.settle()
    assert engine.held == 0
    script.taken.clear()
    script.feed(TO_DATA + b".\r\n")
    script.feed(b"NOOP\r\n" * 12_000)
    assert last(script) == "421 4.3.1"
    assert script.hung_up
    script.settle()
    script.disconnect()
    assert engine.held == 0


def test_memory_that_lies_unused_is_given_back_by_the_second_tick() -> None:
    engine = make_engine(hooks=())
    script = at_data(engine)
    script.feed(b"x" * 300_000 + b"\r\n.\r\n")
    for now in (1.0, 2.0, 3.0):
        assert engine.tick(now) == []
    script.feed(TO_DATA + b"x" * 300_000 + b"\r\n.\r\n")
    assert last(script) == "250 2.0.0"


def test_content_that_fills_a_whole_read_gives_way() -> None:
    class Polite(Script):
        ways = 0

        def give_way(self) -> None:
            self.ways += 1

    script = Polite(make_engine(hooks=()))
    script.feed(HELLO + TO_DATA)
    script.feed(b"x" * 100_000)
    assert script.ways == 0
    script.feed(b"x" * MIB)
    assert script.ways > 1
    before = script.ways
    script.feed(b"\r\n.\r\n" + b"NOOP\r\n" * 5)
    assert script.ways == before


# --- time ---------------------------------------------------------------------------------------------------


def test_a_silent_client_is_told_and_hung_up() -> None:
    engine = make_engine(idle_timeout=10)
    engine.tick(100.0)
    script = Script(engine)
    script.feed(HELLO)
    assert engine.tick(101.0) == []  # it may have come just now
    assert engine.tick(111.0) == []
    assert engine.tick(111.5) == [(script, "command")]
    script.expire("command")
    assert last(script) == "421 4.4.2"
    assert script.hung_up
    assert count(engine, "timeouts_total", "command") == 1


def test_a_client_silent_in_its_message_aborts_it() -> None:
    engine = make_engine(idle_timeout=10)
    script = at_data(engine)
    script.feed(b"Subject: x\r\n")
    assert engine.tick(1000.0) == []
    assert engine.tick(1010.5) == [(script, "data")]
    script.expire("data")
    assert last(script) == "421 4.4.2"
    assert count(engine, "messages_total", "aborted") == 1


def test_a_client_that_drips_is_ended_by_the_deadline_of_its_transaction() -> None:
    engine = make_engine(idle_timeout=10, transaction_timeout=60)
    engine.tick(1.0)
    script = at_data(engine)
    for now in range(5, 61, 5):
        script.feed(b"x")
        assert engine.tick(float(now)) == []
    script.feed(b"x")
    assert engine.tick(65.0) == []
    assert engine.tick(65.5) == [(script, "transaction")]


def test_a_loop_that_hung_ends_no_client_early() -> None:
    engine = make_engine(idle_timeout=10)
    engine.tick(100.0)
    script = Script(engine)
    engine.tick(101.0)
    script.feed(HELLO)  # at 130, when the loop goes on
    assert engine.tick(130.0) == []
    assert engine.tick(140.0) == []
    assert engine.tick(140.5) == [(script, "command")]


def test_content_that_comes_too_slowly_ends_its_connection() -> None:
    engine = make_engine(min_data_rate=100, idle_timeout=10_000, transaction_timeout=100_000)
    now = monotonic()
    engine.tick(now)
    slow, fast = at_data(engine), at_data(engine)
    fast.feed(b"x" * 20_000)
    slow.feed(b"x" * 1000)
    assert engine.tick(now + 59) == []
    assert engine.tick(now + 69) == []  # 1,000 octets in 9 seconds beyond the grace
    assert engine.tick(now + 71) == [(slow, "data_rate")]
    slow.expire("data_rate")
    assert last(slow) == "421 4.4.2"
    assert count(engine, "timeouts_total", "data_rate") == 1
    assert engine.tick(now + 200) == []
    fast.feed(b".\r\n\r\n.\r\n")
    assert last(fast) == "250 2.0.0"


def test_a_hook_that_takes_too_long_is_answered_for() -> None:
    engine = make_engine(handler_timeout=5)
    script = Script(engine, later=True)
    script.feed(HELLO + TO_DATA + b".\r\nNOOP\r\n")
    assert script.asked
    assert engine.tick(script.asked_at + 5.5) == [(script, "handler")]
    script.expire("handler")
    assert [(reply.code, reply.enhanced) for reply in script.replies()[-2:]] == [
        (451, "4.4.5"),
        (250, "2.0.0"),
    ]


# --- others have their turn ---------------------------------------------------------------------------------


class Yields(Script):
    """Goes on with a turn when the test calls ``take_turn``."""

    ways = 0

    def give_way(self) -> None:
        self.ways += 1


@pytest.mark.parametrize(
    "commands",
    [
        b"NOOP\r\n" * 1000,
        TO_DATA + b"hi\r\n.\r\n" + (TO_DATA + b"hi\r\n.\r\n") * 400,
        b"MAIL FROM:<>\r\n" + b"RCPT TO:<a@b.example>\r\n" * 900,
    ],
    ids=["NOOP", "small messages", "recipients"],
)
def test_a_turn_ends_after_many_commands_and_goes_on_when_others_had_theirs(commands: bytes) -> None:
    script, plain = Yields(make_engine()), Script(make_engine())
    script.feed(HELLO)
    plain.feed(HELLO + commands)
    before = len(script.replies())
    script.feed(commands)
    turns = 0
    while script.ways > turns:
        turns += 1
        assert len(script.replies()) - before <= 200
        before = len(script.replies())
        script.take_turn()
    assert turns > 5
    assert script.wire == plain.wire


# --- leaving ------------------------------------------------------------------------------------------------


def test_draining_refuses_the_next_command_and_finishes_a_message() -> None:
    engine = make_engine()
    busy, idle = at_data(engine), Script(engine)
    idle.feed(HELLO)
    engine.draining = True
    busy.feed(b"hi\r\n.\r\n")
    assert last(busy) == "250 2.0.0"
    assert not busy.hung_up
    for script, command in ((busy, b"MAIL FROM:<a@b.example>\r\n"), (idle, b"NOOP\r\n")):
        assert script.quiet
        script.feed(command)
        assert last(script) == "421 4.3.2"
        assert script.hung_up


def test_draining_takes_the_message_that_a_connection_is_there_for() -> None:
    engine = make_engine()
    greeted, begun = Script(engine), Script(engine)
    begun.feed(HELLO + TO_DATA + b"1\r\n.\r\nMAIL FROM:<a@b.example>\r\n")
    engine.draining = True
    greeted.feed(HELLO + b"MAIL FROM:<a@b.example>\r\n")
    for script in (greeted, begun):
        assert last(script) == "250 2.1.0"
        script.feed(b"RCPT TO:<c@d.example>\r\nDATA\r\n")
        assert last(script)[:3] == "354"
        script.feed(b"hi\r\n.\r\n")
        assert last(script) == "250 2.0.0"
        script.feed(HELLO)
        assert last(script) == "421 4.3.2"
        assert script.hung_up


def test_a_client_that_says_goodbye_while_draining_gets_its_goodbye() -> None:
    engine = make_engine()
    script = Script(engine)
    engine.draining = True
    script.feed(b"QUIT\r\n")
    assert last(script) == "221 2.0.0"


def test_shut_down_tells_once() -> None:
    script = Script(make_engine())
    script.shut_down()
    script.shut_down()
    assert [reply.code for reply in script.replies()] == [220, 421]


# --- TLS that is demanded -----------------------------------------------------------------------------------


def test_nothing_but_what_leads_to_tls_is_allowed_before_it() -> None:
    script = Script(make_engine(starttls=True, require_starttls=True))
    script.feed(
        b"NOOP\r\nEHLO c.example\r\nHELO c.example\r\nMAIL FROM:<a@b.example>\r\nRSET\r\nVRFY x\r\nFOO\r\n"
    )
    assert [reply.code for reply in script.replies()[1:]] == [250, 250, 530, 530, 530, 530, 500]
    script.feed(b"STARTTLS\r\n")
    assert last(script) == "220 2.0.0"
