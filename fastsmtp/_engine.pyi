from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol, TypeAlias, final

from fastsmtp._core import Dialogue

# name, kind ("counter", "gauge", "histogram"), label, values, bounds, offset
Family: TypeAlias = tuple[str, str, str | None, tuple[str, ...], tuple[float, ...], int]

LAYOUT: Final[tuple[Family, ...]]
SLOT_WORDS: Final[int]
SLOT_BYTES: Final[int]
STAGES: Final[tuple[str, ...]]
ASKS: Final[tuple[str, ...]]
HOOKS: Final[dict[str, int]]
REPLIES_NAMES: Final[tuple[str, ...]]

def index(name: str, value: str = "") -> int: ...

@final
class Counters:
    def __init__(self, buffer: bytearray | memoryview) -> None: ...
    def add(self, index: int, n: int = 1) -> None: ...
    def set(self, index: int, value: int) -> None: ...
    def observe(self, index: int, value: float) -> None: ...
    def get(self, index: int) -> int: ...

@final
class Book:
    def __init__(self, texts: Mapping[str, bytes]) -> None: ...
    def __getitem__(self, name: str) -> bytes: ...

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
        book: Book,
        counters: Counters | None = None,
        hooks: int = 0,
        open_spill: Callable[[Dialogue], Spillable] | None = None,
        max_message_size: int = ...,
        max_recipients: int = 1000,
        max_command_line: int = 2048,
        max_line_length: int = 0,
        max_errors: int = 20,
        bare_newline: Literal["normalize", "reject", "keep"] = "normalize",
        smtputf8: bool = True,
        starttls: bool = False,
        require_starttls: bool = False,
        spill_threshold: int = ...,
        memory_budget: int = ...,
        idle_timeout: float = 300,
        transaction_timeout: float = 3600,
        handler_timeout: float = 300,
    ) -> None: ...
    draining: bool
    now: float
    @property
    def book(self) -> Book: ...
    @property
    def counters(self) -> Counters: ...
    @property
    def live(self) -> set[Dialogue]: ...
    @property
    def hooks(self) -> int: ...
    @property
    def held(self) -> int: ...
    def tick(self, now: float) -> list[tuple[Dialogue, str]]: ...
