"""What the dialogues of one worker share: counters, replies, memory, the coarse clock, and leaving."""

import pytest
from script import Script, make_engine
from wires import HELLO, TO_DATA

from fastsmtp._engine import LAYOUT, SLOT_BYTES, Counters, Engine, index
from fastsmtp._rules import REPLIES_NAMES, Book
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


def test_a_message_beyond_the_budget_is_refused_at_its_end_and_the_next_one_taken() -> None:
    engine = make_engine(hooks=(), memory_budget=MIB, spill_threshold=MIB)
    first, second = at_data(engine), at_data(engine)
    first.feed(b"x" * 600_000)
    second.feed(b"y" * 600_000 + b"\r\n.\r\nNOOP\r\n")
    assert [(reply.code, reply.enhanced) for reply in second.replies()[-2:]] == [
        (452, "4.3.1"),
        (250, "2.0.0"),
    ]
    assert count(engine, "messages_total", "deferred") == 1
    first.feed(b"\r\n.\r\n")
    assert last(first) == "250 2.0.0"
    second.feed(TO_DATA + b"y" * 600_000 + b"\r\n.\r\n")
    assert last(second) == "250 2.0.0"


def test_no_transaction_begins_without_memory_for_it() -> None:
    engine = make_engine(hooks=(), memory_budget=512 * 1024, spill_threshold=400_000)
    holder = at_data(engine)
    holder.feed(b"x" * 300_000)
    assert engine.held == engine.memory_budget
    script = Script(engine)
    script.feed(HELLO + b"MAIL FROM:<a@b.example>\r\n")
    assert last(script) == "452 4.3.1"
    holder.feed(b"\r\n.\r\n")
    script.feed(b"MAIL FROM:<a@b.example>\r\n")
    assert last(script) == "250 2.1.0"


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
    assert engine.tick(110.0) == []
    assert engine.tick(110.5) == [(script, "command")]
    script.expire("command")
    assert last(script) == "421 4.4.2"
    assert script.hung_up
    assert count(engine, "timeouts_total", "command") == 1


def test_a_client_silent_in_its_message_aborts_it() -> None:
    engine = make_engine(idle_timeout=10)
    script = at_data(engine)
    script.feed(b"Subject: x\r\n")
    assert engine.tick(1000.0) == [(script, "data")]
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
    assert engine.tick(61.5) == [(script, "transaction")]


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
