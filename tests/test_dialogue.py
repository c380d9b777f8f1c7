"""The compiled dialogue does what the dialogs say, however their octets arrive and whenever hooks answer."""

import gc
import random

import pytest
from dialogs import Dialog, load_all, read_replies
from oracle import Limits, Message, Result, oracle
from script import HOSTNAME, Script, cut, every, make_engine, play
from wires import HELLO, TO_DATA

from fastsmtp._core import Dialogue
from fastsmtp._engine import Engine
from fastsmtp._rules import HOOKS, Rules
from fastsmtp._wire import HELD_UNREAD
from fastsmtp.replies import native

DIALOGS = load_all()
each_dialog = pytest.mark.parametrize("dialog", DIALOGS, ids=str)


def wanted(dialog: Dialog) -> Result:
    """What the dialog says, with the oracle's enhanced codes where it names none."""
    result = oracle(dialog.wire, Limits(**dialog.settings))
    assert [code for code, _ in result.replies] == [reply.code for reply in dialog.replies]
    return result


@each_dialog
def test_a_dialog_goes_as_it_is_written(dialog: Dialog) -> None:
    """Step by step: the replies to what was sent come before more is sent, none early and none late."""
    script = Script(make_engine(Limits(**dialog.settings)))
    for exchange in dialog.exchanges:
        script.feed(exchange.sent)
        replies = script.replies()
        assert len(replies) == len(exchange.replies), replies
        for reply, expected in zip(replies, exchange.replies, strict=True):
            assert expected.matches(reply), (exchange.sent, reply, expected)
        script.wire.clear()
    assert script.closed == script.hung_up == dialog.closed
    assert script.result().messages == [Message(*message) for message in dialog.messages]


@each_dialog
def test_a_dialog_in_one_piece(dialog: Dialog) -> None:
    assert play(make_engine(Limits(**dialog.settings)), [dialog.wire]) == wanted(dialog)


@each_dialog
def test_a_dialog_octet_by_octet(dialog: Dialog) -> None:
    wire = dialog.wire[:20_000]
    limits = Limits(**dialog.settings)
    assert play(make_engine(limits), every(wire, 1)) == oracle(wire, limits)


@each_dialog
def test_a_dialog_cut_at_random(dialog: Dialog) -> None:
    chance = random.Random(dialog.title)
    engine = make_engine(Limits(**dialog.settings))
    right = wanted(dialog)
    for _ in range(20):
        places = [chance.randrange(len(dialog.wire) + 1) for _ in range(chance.choice((1, 1, 2, 5, 30)))]
        assert play(engine, cut(dialog.wire, places)) == right, places


@each_dialog
@pytest.mark.parametrize("polite", [True, False], ids=["polite", "impolite"])
def test_a_dialog_whose_hooks_answer_later(dialog: Dialog, polite: bool) -> None:
    engine = make_engine(Limits(**dialog.settings), hooks=HOOKS)
    right = wanted(dialog)
    assert play(engine, [dialog.wire], later=True, polite=polite) == right
    assert play(engine, every(dialog.wire, 7), later=True, polite=polite) == right
    assert play(engine, every(dialog.wire, 100), later=True, polite=polite) == right


@each_dialog
def test_a_dialog_whose_messages_spill(dialog: Dialog) -> None:
    limits = Limits(**dialog.settings)
    right = wanted(dialog)
    for threshold in (0, 1, 8):
        engine = make_engine(limits, spill_threshold=threshold)
        assert play(engine, [dialog.wire]) == right
        assert play(engine, every(dialog.wire, 3)) == right


@each_dialog
def test_a_dialog_without_any_hook(dialog: Dialog) -> None:
    right = wanted(dialog)
    came = play(make_engine(Limits(**dialog.settings), hooks=()), every(dialog.wire, 50))
    assert (came.replies, came.closed) == (right.replies, right.closed)
    assert came.messages == []


def test_the_oracle_and_the_engine_have_the_same_defaults() -> None:
    wire = HELLO + b"MAIL FROM:<> SIZE=33554432\r\nRSET\r\nMAIL FROM:<> SIZE=33554433\r\n" + b"X\r\n" * 20
    engine = Engine(rules=Rules(book=native(HOSTNAME), hooks=HOOKS["DATA"]))
    assert play(engine, [wire]) == oracle(wire)


@pytest.mark.parametrize(
    ("limits", "offered"),
    [
        (Limits(), {"SIZE 33554432", "SMTPUTF8"}),
        (Limits(max_message_size=0), {"SIZE 0", "SMTPUTF8"}),
        (Limits(smtputf8=False), {"SIZE 33554432"}),
    ],
    ids=["default", "any size", "no SMTPUTF8"],
)
def test_ehlo_offers_what_there_is_and_nothing_else(limits: Limits, offered: set[str]) -> None:
    script = Script(make_engine(limits))
    script.feed(b"EHLO c.example\r\nHELO c.example\r\n")
    _, ehlo, helo = script.replies()
    assert ehlo.lines[0] == f"250-{HOSTNAME}"
    assert {line[4:] for line in ehlo.lines[1:]} == offered | {
        "PIPELINING",
        "ENHANCEDSTATUSCODES",
        "8BITMIME",
        "HELP",
    }
    assert helo.lines == (f"250 {HOSTNAME}",)


def test_a_group_of_commands_is_answered_in_one_write() -> None:
    script = Script(make_engine())
    script.feed(HELLO + TO_DATA + b"text\r\n.\r\n" + TO_DATA)
    assert len(script.replies()) == 1 + 1 + 4 + 3
    assert script.writes == 2  # the greeting, and all the rest


def test_the_reply_to_a_group_comes_when_the_input_is_empty() -> None:
    """RFC 2920 3.2: replies may be held back, but not while the client waits for them."""
    script = Script(make_engine())
    script.feed(HELLO + b"MAIL FROM:<>\r\nRCPT TO:<c@d.ex")
    assert [reply.code for reply in script.replies()] == [220, 250, 250]


def test_nothing_is_answered_before_the_hook_has_answered() -> None:
    script = Script(make_engine(hooks=["RCPT"]), later=True)
    script.feed(HELLO + b"MAIL FROM:<>\r\nRCPT TO:<c@d.example>\r\nNOOP\r\n")
    assert script.open is not None
    assert [reply.code for reply in script.replies()] == [220, 250, 250]
    script.feed(b"RSET\r\n")
    assert not script.reading
    assert [reply.code for reply in script.replies()] == [220, 250, 250]
    script.settle()
    assert script.reading
    assert [reply.code for reply in script.replies()] == [220, 250, 250, 250, 250, 250]


def test_the_message_is_asked_for_before_it_is_accepted() -> None:
    script = Script(make_engine(), later=True)
    script.feed(HELLO + TO_DATA + b"text\r\n.\r\nNOOP\r\n")
    assert [message[:2] for message in script.taken] == [("a@b.example", ["c@d.example"])]
    assert [reply.code for reply in script.replies()][-1] == 354
    script.settle()
    assert [(reply.code, reply.enhanced) for reply in script.replies()][-2:] == [(250, "2.0.0")] * 2


def test_a_message_that_a_hook_refuses_ends_its_transaction() -> None:
    class Refuses(Script):
        def ask(self, kind: int, argument: object, options: list[str] | None) -> bytes:
            return b"554 5.7.1 No\r\n"

    script = Refuses(make_engine(Limits(max_errors=1)))
    script.feed(HELLO + TO_DATA + b"text\r\n.\r\nMAIL FROM:<>\r\n")
    assert [reply.code for reply in script.replies()][-2:] == [554, 250]


def test_what_a_hook_refuses_is_not_an_error_of_the_client() -> None:
    class Refuses(Script):
        def ask(self, kind: int, argument: object, options: list[str] | None) -> bytes:
            return b"550 5.1.1 No\r\n"

    script = Refuses(make_engine(Limits(max_errors=2), hooks=["RCPT"]))
    script.feed(HELLO + b"MAIL FROM:<>\r\n" + b"RCPT TO:<c@d.example>\r\n" * 10 + b"DATA\r\n")
    assert [reply.code for reply in script.replies()][3:] == [550] * 10 + [554]
    script.feed(b"NOOP\r\n")
    assert script.replies()[-1].code == 250


def test_an_answer_that_nobody_asked_for_is_an_error_of_the_driver() -> None:
    script = Script(make_engine())
    with pytest.raises(RuntimeError):
        script.answer(b"250 2.0.0 Ok\r\n")


def test_an_answer_after_the_client_has_gone_is_heard_by_nobody() -> None:
    script = Script(make_engine(), later=True)
    script.feed(HELLO + TO_DATA + b"text\r\n.\r\n")
    said = len(script.wire)
    script.disconnect()
    script.settle()
    assert len(script.wire) == said


@pytest.mark.parametrize(
    "sent", [b"", HELLO, HELLO + TO_DATA, HELLO + TO_DATA + b"x" * 300_000, HELLO + b"MAIL FR"]
)
def test_a_connection_may_end_at_any_time_and_leaves_no_memory_behind(sent: bytes) -> None:
    engine = make_engine()
    script = Script(engine)
    script.feed(sent)
    assert engine.live == {script}
    script.disconnect()
    assert engine.live == set()
    assert engine.held == 0
    script.disconnect()


def test_a_connection_that_nobody_ends_is_collected_without_harm() -> None:
    """Dialogue and engine refer to each other: the collector may take either apart first."""
    for _ in range(3):
        script = Script(make_engine())
        script.feed(HELLO + TO_DATA + b"text")
        script.feed(b"text")
        del script
        gc.collect()
    assert gc.garbage == []


def test_content_in_a_cycle_gives_its_memory_back() -> None:
    """What an exception's traceback keeps of a handler is such a cycle."""
    engine = make_engine()
    script = Script(engine)
    script.feed(HELLO + TO_DATA + b"text")
    script.feed(b"text\r\n.\r\n")
    cycle: list[object] = [script.taken.pop()]
    cycle.append(cycle)
    assert engine.held > 0
    del cycle
    gc.collect()
    assert engine.held == 0


def test_a_message_keeps_its_memory_for_as_long_as_somebody_holds_it() -> None:
    engine = make_engine()
    script = Script(engine)
    contents = [bytes([65 + n]) * 100_000 + b"\r\n" for n in range(5)]
    for content in contents:
        script.feed(HELLO + TO_DATA)
        for piece in every(content + b".\r\n", 30_000):
            script.feed(piece)
    assert engine.held >= 500_000
    assert [message.content for message in script.result().messages] == contents
    script.taken.clear()
    assert engine.held == 0


def test_dialogues_of_one_engine_do_not_disturb_each_other() -> None:
    """They share one receive buffer: what one leaves unfinished there is not the other's."""
    engine = make_engine()
    chosen = [dialog for dialog in DIALOGS if not dialog.settings]
    players = [(Script(engine), every(dialog.wire, 3 + n % 50), dialog) for n, dialog in enumerate(chosen)]
    for turn in range(max(len(pieces) for _, pieces, _ in players)):
        for script, pieces, _ in players:
            if turn < len(pieces):
                script.feed(pieces[turn])
    for script, _, dialog in players:
        assert script.result() == wanted(dialog), dialog.title


def test_a_client_that_does_not_read_is_not_answered_until_it_does() -> None:
    script = Script(make_engine())
    script.feed(HELLO)
    script.hold_back(HELD_UNREAD)
    assert not script.reading
    script.feed(TO_DATA + b"text\r\n.\r\nNOOP\r\n")
    assert len(script.replies()) == 2
    script.go_on(HELD_UNREAD)
    assert script.reading
    assert len(script.replies()) == 2 + 5


def test_reading_into_the_buffers_directly_is_the_same_as_feeding() -> None:
    """What a loop does: a read may fill any part of what ``get_buffer`` gave."""
    content = b"".join(b"%d\r\n..\r\n" % n for n in range(100_000))
    wire = HELLO + TO_DATA + content + b".\r\nQUIT\r\n"
    chance = random.Random(1)
    script = Script(make_engine())
    at = 0
    while at < len(wire):
        buffer = script.get_buffer(-1)
        size = min(len(wire) - at, chance.choice((1, 1000, len(buffer))), len(buffer))
        buffer[:size] = wire[at : at + size]
        at += size
        script.buffer_updated(size)
    assert script.result() == oracle(wire)


def test_a_dialogue_needs_an_engine() -> None:
    dialogue = Dialogue()
    for begin in (
        lambda: dialogue.connect(print),
        lambda: dialogue.feed(b"NOOP\r\n"),
        lambda: dialogue.session,
    ):
        with pytest.raises(AttributeError):
            begin()


def test_replies_keep_their_form_in_every_dialog() -> None:
    """RFC 2034 4: an enhanced code on each 2yz, 4yz and 5yz reply but the greeting and the hello."""
    for dialog in DIALOGS:
        script = Script(make_engine(Limits(**dialog.settings)))
        script.feed(dialog.wire)
        replies, rest = read_replies(bytes(script.wire))
        assert not rest
        without = [reply for reply in replies if not reply.enhanced]
        assert all(reply.code in (220, 250, 354) for reply in without), dialog.title
