from collections.abc import Callable
from typing import Final, Protocol, TypeAlias, final

from fastsmtp._core import Dialogue
from fastsmtp._rules import Rules

# name, kind ("counter", "gauge", "histogram"), label, values, bounds, offset
Family: TypeAlias = tuple[str, str, str | None, tuple[str, ...], tuple[float, ...], int]

LAYOUT: Final[tuple[Family, ...]]
SLOT_WORDS: Final[int]
SLOT_BYTES: Final[int]
STAGES: Final[tuple[str, ...]]
VERBS: Final[tuple[str, ...]]

def index(name: str, value: str = "") -> int: ...

@final
class Counters:
    def __init__(self, buffer: bytearray | memoryview) -> None: ...
    def add(self, index: int, n: int = 1) -> None: ...
    def set(self, index: int, value: int) -> None: ...
    def observe(self, index: int, value: float) -> None: ...
    def get(self, index: int) -> int: ...

@final
class Block:
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Spillable(Protocol):
    def write(self, data: memoryview, /) -> object: ...
    def close(self) -> object: ...

@final
class Engine:
    def __init__(
        self,
        *,
        rules: Rules,
        counters: Counters | None = None,
        open_spill: Callable[[Dialogue, bytes], Spillable] | None = None,
        spill_threshold: int = ...,
        memory_budget: int = ...,
    ) -> None: ...
    draining: bool
    now: float
    @property
    def rules(self) -> Rules: ...
    @property
    def counters(self) -> Counters: ...
    @property
    def live(self) -> set[Dialogue]: ...
    @property
    def unanswered(self) -> set[Dialogue]: ...
    @property
    def held(self) -> int: ...
    def tick(self, now: float) -> list[tuple[Dialogue, str]]: ...
