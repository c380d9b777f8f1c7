"""A server made of aiosmtpd's controller and ``SMTP``, or of fastsmtp's: one process, a handler that returns at once.

    python -m benchmarks.servers.smtp_protocol [FLAGS] LIBRARY PORT

SIGTERM prints "messages N" and ends it. fastsmtp's runs on uvloop; aiosmtpd has none, which makes no difference to it
(measured).
"""

import argparse
import asyncio
import importlib
import os
import signal
import socket
from typing import Any

from benchmarks.servers.arguments import SIZE_LIMIT, arguments, loop_factory


class Handler:
    def __init__(self) -> None:
        self.messages = 0

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.messages += 1
        return "250 OK"


def serve(given: argparse.Namespace, loop: asyncio.AbstractEventLoop) -> None:
    smtp, controllers = (
        importlib.import_module(f"{given.library}.{name}") for name in ("smtp", "controller")
    )
    handler = Handler()

    def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> Any:
        return smtp.AuthResult(success=(data.login, data.password) == given.login, handled=False)

    # With a host name given aiosmtpd does not look one up for each connection.
    options: dict[str, Any] = {"server_hostname": "localhost", "data_size_limit": SIZE_LIMIT}
    if given.tls == "starttls":
        options["tls_context"] = given.context
    if given.tls == "implicit":
        options["ssl_context"] = given.context
    if given.login:
        options |= {"authenticator": authenticate, "auth_required": True, "auth_require_tls": False}
    controller = controllers.UnthreadedController(handler, "127.0.0.1", given.port, loop, **options)
    controller.begin()
    for each in controller.server.sockets:
        with socket.socket(fileno=os.dup(each.fileno())) as sock:
            sock.listen(4096)  # a controller has no parameter for it
    loop.add_signal_handler(signal.SIGTERM, loop.stop)
    loop.run_forever()
    controller.end()
    loop.close()
    print("messages", handler.messages, flush=True)


if __name__ == "__main__":
    asked = arguments()
    serve(asked, (loop_factory(asked.library) or asyncio.new_event_loop)())
