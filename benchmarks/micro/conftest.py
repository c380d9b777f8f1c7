"""The fixture that the micro benchmarks share."""

from collections.abc import Callable

import pytest

from fastsmtp._engine import Engine
from fastsmtp._rules import HOOKS, Rules
from fastsmtp.replies import native

from .talk import Talk


@pytest.fixture
def talk() -> Callable[..., Talk]:
    """Makes a connection that has said EHLO; ``hook`` has each message handed to Python."""

    def make(*, hook: bool = False, **limits: int | str) -> Talk:
        threshold = int(limits.pop("spill_threshold", 4 << 20))
        rules = Rules(book=native("mx.example"), hooks=HOOKS["DATA"] if hook else 0, **limits)  # type: ignore[arg-type]
        return Talk(Engine(rules=rules, spill_threshold=threshold))

    return make
