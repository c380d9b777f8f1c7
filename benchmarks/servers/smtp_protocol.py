"""A server made of aiosmtpd's ``SMTP`` class, or of fastsmtp's: one process, a handler that returns at once.

    python -m benchmarks.servers.smtp_protocol [FLAGS] LIBRARY PORT

SIGTERM prints "messages N" and ends it. fastsmtp's runs on uvloop; aiosmtpd has none, which makes no difference to it
(measured).
"""

import argparse
import asyncio
import importlib
import signal
from typing import Any

from benchmarks.servers.arguments import SIZE_LIMIT, arguments, loop_factory


class Handler:
    def __init__(self) -> None:
        self.messages = 0

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.messages += 1
        return "250 OK"


async def serve(given: argparse.Namespace) -> None:
    smtp = importlib.import_module(f"{given.library}.smtp")
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    handler = Handler()

    def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> Any:
        return smtp.AuthResult(success=(data.login, data.password) == given.login, handled=False)

    # With a host name given aiosmtpd does not look one up for each connection.
    options: dict[str, Any] = {"hostname": "localhost", "data_size_limit": SIZE_LIMIT}
    if given.tls == "starttls":
        options["tls_context"] = given.context
    if given.login:
        options |= {"authenticator": authenticate, "auth_required": True, "auth_require_tls": False}
    context = given.context if given.tls == "implicit" else None
    server = await loop.create_server(
        lambda: smtp.SMTP(handler, **options), "127.0.0.1", given.port, backlog=4096, ssl=context
    )
    await stop.wait()
    server.close()
    print("messages", handler.messages, flush=True)


if __name__ == "__main__":
    asked = arguments()
    with asyncio.Runner(loop_factory=loop_factory(asked.library)) as runner:
        runner.run(serve(asked))
