from typing import Final, final

KERNEL: Final[str]

@final
class Reception: ...

def scan(octets: bytes, *, dots: bool = False, scalar: bool = False) -> int: ...
