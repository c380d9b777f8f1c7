from asyncio import AbstractEventLoop
from ssl import SSLObject
from typing import Any

from fastsmtp.body import Body

def new_id() -> str: ...

class Session:
    def __init__(self, loop: AbstractEventLoop | None = None) -> None: ...
    id: str
    loop: AbstractEventLoop | None
    login_data: Any
    def note_login(self, login: object) -> None: ...
    peer: Any
    ssl: SSLObject | dict[str, Any] | None
    host_name: str | None
    proxy_data: Any
    auth_data: Any
    authenticated: bool | None
    extended_smtp: bool
    tls: bool
    # hooks may add attributes of their own
    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: Any) -> None: ...

class Envelope:
    def __init__(self) -> None: ...
    id: str
    mail_from: str | None
    mail_options: list[str]
    rcpt_tos: list[str]
    rcpt_options: list[str]
    smtp_utf8: bool
    body: Body | None
    content: Any
    original_content: bytes | None
    # hooks may add attributes of their own
    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: Any) -> None: ...
