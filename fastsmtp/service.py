"""The service: puts configuration, sockets, workers, metrics and handlers together.

``serve`` does it in one's own event loop, ``run`` and ``run_service`` with worker processes. Knows what has
to be there before the first connection. Refuses to know how any part does its work.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from fastsmtp import forking, logs, sockets
from fastsmtp.block import Block
from fastsmtp.certificate import tls_context
from fastsmtp.config import Config
from fastsmtp.errors import ConfigError
from fastsmtp.hooks import Plan, load_handler
from fastsmtp.sinks import Sink, make_sink
from fastsmtp.sockets import Listener
from fastsmtp.supervisor import Supervisor
from fastsmtp.worker import Worker, run_worker


async def serve(handler: object | None = None, /, **settings: object) -> Worker:
    """Takes mail in the running event loop, uvloop's or asyncio's own.

    ``handler`` is an object with ``handle_*`` hooks, or a class of them; ``settings`` are those of
    docs/configuration.md, such as ``listen``, ``deliver`` and ``hostname``. Returns once it accepts::

        async with await fastsmtp.serve(Handler(), listen=["127.0.0.1:0"]) as server:
            print(server.addresses)
            await stop.wait()
            await server.drain(10)

    ``workers``, ``worker_timeout`` and ``metrics`` are for processes: see ``run``. Raises ``ConfigError``.
    """
    config = Config.of(**settings)
    for key in ("workers", "metrics", "worker_timeout"):
        if key in settings:
            raise ConfigError(f'"{key}" is for fastsmtp.run(), which starts processes; leave it out')
    listeners = sockets.bind(config.listen, config.backlog)
    try:
        worker = Worker(config, listeners, handler=_handler(handler, config), sink=_sink(config))
        await worker.start()
    except BaseException:
        sockets.close(listeners)
        raise
    return worker


def run(handler: object | str | None = None, /, **settings: object) -> int:
    """Takes mail with worker processes until SIGTERM or SIGINT; returns the exit status.

    ``handler`` is an object with ``handle_*`` hooks, a class of them (each worker makes its own) or
    ``"MODULE:NAME"``; ``settings`` are those of docs/configuration.md. To be called in the main thread,
    before there are other threads or a running loop, for it forks. Raises ``ConfigError``.
    """
    if isinstance(handler, str):
        settings["handler"], handler = handler, None
    return run_service(Config.of(**settings), handler)


def run_service(config: Config, handler: object | None = None, *, ends_process: bool = False) -> int:
    """As ``run``, with a configuration. What can fail at once fails here, before anything is forked.

    With ``ends_process`` the caller exits then, and signals that come meanwhile are ignored.
    """
    logs.configure(config.log_level, config.log_format)
    found = _handler(handler, config)
    Plan(found, discard=_sink(config) is not None, make=False)
    tls_context(config)
    workers = config.workers or forking.cpus()
    block = Block(workers)
    listeners = sockets.bind(config.listen, config.backlog)
    page: list[Listener] = []
    try:
        if config.metrics is not None:
            page = sockets.bind([config.metrics], 128, option="--metrics")
        supervisor = Supervisor(
            partial(
                run_worker,
                config,
                listeners,
                make_handler=lambda: found,
                make_sink=lambda: _sink(config),
                loads=forking.loads(block) if workers > 1 else None,
            ),
            workers=workers,
            block=block,
            drain_timeout=config.drain_timeout,
            exporter=partial(_serve_pages, page, listeners, block) if page else None,
            on_ready=partial(_announce, config, listeners, page, workers),
            on_stop=partial(sockets.close, listeners),
            worker_timeout=config.worker_timeout,
            ends_process=ends_process,
        )
        _settle(config)
        return supervisor.run()
    finally:
        gc.unfreeze()
        sockets.close(listeners)
        sockets.close(page)


def check(config: Config) -> None:
    """Checks what ``run_service`` would find out before its first connection. Raises ``ConfigError``."""
    Plan(_handler(None, config), discard=_sink(config) is not None)
    tls_context(config)


def _settle(config: Config) -> None:
    """What is here before the first fork is shared by all workers, as long as none of them writes to it."""
    if config.loop == "uvloop":
        import_module("uvloop")  # else each worker would have one of its own
    gc.freeze()  # a worker's first collection would write to, and so copy, every object: 5 MB


def _serve_pages(page: Sequence[Listener], listeners: Sequence[Listener], block: Block) -> None:
    # Imported here, in the exporter's own process: prometheus_client and http.server are nothing for a worker.
    from fastsmtp import exporter

    exporter.serve_pages(page, listeners, block)


def _handler(handler: object | None, config: Config) -> object | None:
    if handler is None and config.handler is not None:
        with config.naming("handler"):
            handler = load_handler(config.handler)
    if handler is None and config.deliver is None:
        raise ConfigError("nothing takes the mail; give a handler, or set deliver to one like maildir:./mail")
    return handler


def _sink(config: Config) -> Sink | None:
    if config.deliver is None:
        return None
    with config.naming("deliver"):
        return make_sink(config.deliver, hostname=config.hostname)


def _announce(config: Config, listeners: Sequence[Listener], page: Sequence[Listener], workers: int) -> None:
    where = ", ".join(f"{'tls:' if listener.tls else ''}{listener.address}" for listener in listeners)
    lines = [
        f"fastsmtp listens on {where} with {workers} worker{'s' if workers > 1 else ''}",
        f"mail goes to {config.deliver or config.handler or 'the handler'}",
    ]
    if page:
        lines.append(f"metrics are on http://{page[0].address}/metrics")
    tcp = next((item for item in listeners if not item.tls and not item.address.startswith("unix:")), None)
    if tcp is not None:
        host, _, port = tcp.address.rpartition(":")
        host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
        lines.append(f"try it:  swaks --server {host}:{port} --from me@example.org --to you@example.com")
        code = "s.sendmail('me@example.org', ['you@example.com'], 'Subject: hi\\r\\n\\r\\nhello\\r\\n')"
        client = f"import smtplib; s = smtplib.SMTP('{host.strip('[]')}', {port})"
        lines.append(f'or:      python3 -c "{client}; {code}"')
    print("".join(f"{line}\n" for line in lines), end="", flush=True)  # one write, as workers may print, too
