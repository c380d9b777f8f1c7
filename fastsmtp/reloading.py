"""Starts the program again when its code has changed, for those who are writing it.

Knows the files of modules, and how this process was started. Refuses to know servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import tokenize
from typing import NoReturn

log = logging.getLogger("fastsmtp")

_INTERVAL = 0.5  # seconds between looks


async def changed() -> str:
    """Waits until a module's file has changed, and is Python; its path."""
    known: dict[str, int] = {}
    while True:
        for path, time in _times().items():
            if known.setdefault(path, time) != time:
                known[path] = time
                if _is_whole(path):
                    return path
        await asyncio.sleep(_INTERVAL)


def restart() -> NoReturn:
    """Runs this process's command line again, in its place."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _times() -> dict[str, int]:
    times = {}
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and path.endswith(".py"):
            with contextlib.suppress(OSError):  # it is being written, or was removed
                times[path] = os.stat(path).st_mtime_ns
    return times


def _is_whole(path: str) -> bool:
    """Whether the file can be compiled: an editor may be at it, and a mistake would end the program."""
    try:
        with tokenize.open(path) as file:
            compile(file.read(), path, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError) as error:
        log.warning("%s has changed, but cannot be used: %s", path, error)
        return False
    return True
