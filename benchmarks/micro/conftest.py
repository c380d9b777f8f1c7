"""The fixture that the micro benchmarks share."""

from collections.abc import Callable

import pytest

from fastsmtp._engine import HOOKS, Engine
from fastsmtp.replies import native

from .talk import Talk


@pytest.fixture
def talk() -> Callable[..., Talk]:
    """Makes a connection that has said EHLO; ``hook`` has each message handed to Python."""

    def make(*, hook: bool = False, **limits: int | str) -> Talk:
        limits = {"spill_threshold": 4 << 20, **limits}
        hooks = HOOKS["DATA"] if hook else 0
        return Talk(Engine(book=native("mx.example"), hooks=hooks, **limits))  # type: ignore[arg-type]

    return make
