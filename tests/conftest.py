"""The fixtures that several files of tests share.

Knows where a test has its servers' files, and what ends with the test. What it hands out is made in ``processes.py``
and ``controllers.py``. None is for a test that does not name it.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from controllers import Serve, Tls, serving
from disks import open_files
from processes import Start, starter
from servers import LOOPS

# --- fastsmtp serve -----------------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts ``fastsmtp serve`` in the test's folder."""
    with starter(tmp_path) as start:
        yield start


@pytest.fixture
def mail(tmp_path: Path) -> Path:
    """The Maildir that a test names to a server."""
    return tmp_path / "mail"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with the certificate of mx.example and 127.0.0.1 and its key; the authority's is ca.pem beside it."""
    authority = trustme.CA()
    path = tmp_path / "mx.pem"
    authority.issue_cert("mx.example", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return path


@pytest.fixture(scope="session")
def log_line() -> re.Pattern[str]:
    """A line that nobody need look at: of the ordinary log, or one of asyncio's debug mode (-X dev), which tells of
    each step over 0.1 s, and a busy machine makes such.
    """
    return re.compile(
        r"\d{4}-\d\d-\d\d [\d:,]+ (?:INFO \S+\[\d+\] |WARNING asyncio\[\d+\] Executing .* took )[^\n]+\n"
    )


# --- a controller -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls.issued(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=LOOPS.values(), ids=list(LOOPS))
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    made = request.param()
    yield made
    made.close()


@pytest.fixture
def serve(
    loop: asyncio.AbstractEventLoop, tls: Tls, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[Serve]:
    """Serves a handler for those who come one way, in a thread with either loop; nobody may complain of it."""
    yield functools.partial(serving, tls, tmp_path, loop=loop)
    records = caplog.get_records("call")
    assert [record.getMessage() for record in records if record.levelno >= logging.WARNING] == []


# --- descriptors --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _loops_have_been_used() -> None:
    """The first loop of uvloop opens descriptors that the process keeps."""
    for new_event_loop in LOOPS.values():
        new_event_loop().close()


@pytest.fixture
def closes_what_it_opens(_loops_have_been_used: None) -> Iterator[None]:
    """The test leaves no descriptor open."""
    before = open_files()
    yield
    gc.collect()
    assert open_files() == before
