"""The page on controllers: its examples run, and are those of aiosmtpd's page."""

import asyncio
import doctest
import hashlib
import inspect
import re
import smtplib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastsmtp.controller import Controller, InetMixin

PAGE = Path(__file__).parent.parent / "docs" / "controllers.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="docs/ is not beside these tests")

# Of all examples of aiosmtpd's page, in its order, without white space, which its published text has lost.
EXAMPLES = "02c85846cbd1c9e1847c396043699d8e26983e06a820fadbed849751eca3f1de"

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _blocks() -> Iterator[tuple[str, str, int]]:
    """Group, text and line of each block of examples."""
    text = PAGE.read_text(encoding="utf-8")
    for block in re.finditer(r"^```pycon ?(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield block[1], block[2], text.count("\n", 0, block.start(2))


def _run(group: str, names: dict[str, Any]) -> None:
    """Runs the examples of a group in order, in one namespace; fails with what doctest reports."""
    parser = doctest.DocTestParser()
    runner = doctest.DebugRunner(optionflags=FLAGS)
    blocks = [block for block in _blocks() if block[0] == group]
    assert blocks
    for _, text, line in blocks:
        test = parser.get_doctest(text, {}, f"{PAGE.name}, {group or 'default'}", str(PAGE), line)
        test.globs = names  # one for all blocks; DocTest itself would take a copy
        try:
            runner.run(test, clear_globs=False)
        except doctest.DocTestFailure as failure:
            report = doctest.OutputChecker().output_difference(failure.example, failure.got, FLAGS)
            pytest.fail(f"line {line + failure.example.lineno + 1}: {failure.example.source}{report}")
        except doctest.UnexpectedException as failure:
            raise AssertionError(
                f"line {line + failure.example.lineno + 1}: {failure.example.source}"
            ) from failure.exc_info[1]


@pytest.fixture
def any_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples name no port: 8025 may be taken on this machine, so the kernel picks one."""
    assert inspect.signature(Controller).parameters["port"].default == 8025
    monkeypatch.setattr(InetMixin.__init__, "__defaults__", (None, 0, None))


def test_the_examples_are_those_of_aiosmtpds_page() -> None:
    text = "".join("".join(text.split()) for _, text, _ in _blocks())
    assert hashlib.sha256(text.replace("fastsmtp", "aiosmtpd").encode()).hexdigest() == EXAMPLES


def test_no_example_is_left_out_below() -> None:
    assert {group for group, _, _ in _blocks()} == {"", "unix_socket", "unthreaded", "controller_kwargs"}


def test_tcp_and_smtputf8(any_port: None, monkeypatch: pytest.MonkeyPatch) -> None:
    clients: list[smtplib.SMTP] = []
    connect = smtplib.SMTP.connect

    def connect_and_tell(client: smtplib.SMTP, *arguments: Any) -> Any:
        clients.append(client)
        return connect(client, *arguments)

    monkeypatch.setattr(smtplib.SMTP, "connect", connect_and_tell)
    _run("", {})
    assert clients
    for client in clients:
        client.close()  # the page does not


def test_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _run("unix_socket", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:setDaemon:DeprecationWarning")
def test_unthreaded(any_port: None) -> None:
    # As in the main thread of a fresh interpreter: asyncio.get_event_loop() has one to give.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    names: dict[str, Any] = {}
    try:
        _run("unthreaded", names)
        assert names["loop"] is loop
        assert names["controller"].ended.is_set()
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@pytest.mark.filterwarnings("ignore:server_kwargs:DeprecationWarning")
def test_controller_kwargs() -> None:
    _run("controller_kwargs", {})
