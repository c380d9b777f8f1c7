import ssl
from typing import final

@final
class Seal:
    def __init__(self, context: ssl.SSLContext) -> None: ...
    @property
    def ssl(self) -> ssl.SSLObject: ...
