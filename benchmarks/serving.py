"""One server for one run, in a folder of its own that is gone afterwards with all that is in it.

It knows what every run needs, whatever is measured: ports, a folder, a start and an end. It refuses to know
what the server is asked.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .contender import Contender, Setup
from .process import Server, free_ports, running


@contextmanager
def prepared(
    contender: Contender, *, counted: bool = False, **options: Any
) -> Iterator[tuple[list[str], Setup]]:
    """A command and what it was made for. `options` are further fields of `Setup`.

    Only a server that is `counted` gets a port for its counters: some have a process more for it.
    """
    # A server may have died hard, so that others still write there.
    with tempfile.TemporaryDirectory(prefix="fastsmtp-bench-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)  # servers that drop their rights must get through
        port, counters = free_ports(2)
        setup = Setup(port, Path(folder), counters=counters if counted else None, **options)
        yield contender.command(setup), setup


@contextmanager
def serving(
    contender: Contender, *, cpu: int | None = None, counted: bool = False, **options: Any
) -> Iterator[tuple[Server, Setup]]:
    """A server that answers, on one CPU if given. BenchmarkError if it does not come up."""
    with (
        prepared(contender, counted=counted, **options) as (command, setup),
        running(contender.name, command, setup.port, cpu, implicit_tls=setup.tls == "implicit") as server,
    ):
        yield server, setup
