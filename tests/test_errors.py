"""Errors read as both interfaces have them."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from fastsmtp.errors import (
    BadArguments,
    BadSequence,
    InternalConfusion,
    NotImplementedCommand,
    SMTPError,
    UnrecognisedCommand,
)
from fastsmtp.replies import from_status, refusal

DATA = 6


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((451, "4.3.0", "Later"), {}),
        ((451, "4.3.0"), {"text": "Later"}),
        ((451,), {"enhanced": "4.3.0", "text": "Later"}),
        ((), {"code": 451, "enhanced": "4.3.0", "text": "Later"}),
    ],
)
def test_a_code_an_enhanced_code_and_a_text(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    error = SMTPError(*values, **named)
    assert (error.code, error.enhanced, error.text) == (451, "4.3.0", "Later")
    assert (error.status_code, error.message, error.log_message) == (451, "Later", None)
    assert str(error) == error.reply == "451 4.3.0 Later"
    assert error.args == (451, "4.3.0", "Later")
    assert error.logged == ""


@pytest.mark.parametrize(
    ("values", "named", "logged"),
    [
        ((452, "nope"), {}, None),
        ((452, "nope", None), {}, None),
        ((452, "nope", "disk full"), {}, "disk full"),
        ((452, "nope", "disk 100% full"), {}, "disk 100% full"),
        ((452, "nope", "disk %s is %d%% full", "a", 99), {}, "disk a is 99% full"),
        ((452, "nope"), {"log_message": "disk full"}, "disk full"),
        ((452,), {"message": "nope"}, None),
        ((), {"status_code": 452, "message": "nope", "log_message": "disk full"}, "disk full"),
    ],
)
def test_a_status_code_a_message_and_what_is_logged(
    values: tuple[Any, ...], named: dict[str, Any], logged: str | None
) -> None:
    error = SMTPError(*values, **named)
    assert (error.status_code, error.message) == (error.code, error.text) == (452, "nope")
    assert error.enhanced == ""
    assert error.reply == "452 nope"
    assert error.logged == (logged or "")
    assert str(error) == ("SMTP 452: nope" if logged is None else f"SMTP 452: nope ({logged})")
    assert error.args == values[3:]


@pytest.mark.parametrize(
    ("values", "enhanced", "reply"),
    [
        ((451, "4.3.0"), "", "451 4.3.0"),  # bonzo's way to say just that
        ((451, "5.3.0", "for the log"), "", "451 5.3.0"),  # of another class: a text
        ((451, "4.3", "for the log"), "", "451 4.3"),
        ((250, "", "Kept"), "", "250 Kept"),
        ((554, "5.7.1000", "x"), "", "554 5.7.1000"),
        ((554, "5.123.456", "x"), "5.123.456", "554 5.123.456 x"),
    ],
)
def test_what_an_enhanced_code_looks_like(values: tuple[Any, ...], enhanced: str, reply: str) -> None:
    error = SMTPError(*values)
    assert (error.enhanced, error.reply) == (enhanced, reply)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((), {}),
        ((451,), {}),
        ((451, "a", "b"), {"enhanced": "4.3.0"}),
        ((451, "nope"), {"message": "nope"}),
        ((451, "nope"), {"text": "nope", "message": "nope"}),
        ((451, "nope"), {"reason": "nope"}),
    ],
)
def test_other_arguments_are_a_type_error(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        SMTPError(*values, **named)


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (InternalConfusion(), "451 Internal confusion"),
        (UnrecognisedCommand(), "500 Error: bad syntax"),
        (BadArguments("HELO hostname"), "501 Syntax: HELO hostname"),
        (NotImplementedCommand("expn"), '502 Error: command "expn" not implemented'),
        (BadSequence("Error: need HELO command"), "503 Error: need HELO command"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_with_texts_of_their_own(error: SMTPError, reply: str) -> None:
    assert isinstance(error, SMTPError)
    assert error.reply == reply
    assert str(error) == f"SMTP {reply[:3]}: {reply[4:]}"


@pytest.mark.parametrize(
    "error", [SMTPError(451, "4.3.0", "x"), SMTPError(452, "x", "%s", 1), BadArguments("y")], ids=str
)
def test_errors_come_back_from_other_processes(error: SMTPError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.reply, again.args) == (str(error), error.reply, error.args)


def test_the_other_servers_say_them_too() -> None:
    assert from_status(refusal(SMTPError(452, "nope", "for the log")), DATA) == b"452 4.0.0 nope\r\n"
    assert from_status(refusal(SMTPError(452, "4.3.1", "nope")), DATA) == b"452 4.3.1 nope\r\n"
