"""The benchmark harness works: real servers, a handful of messages, and no number from a failed run."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The benchmarks are no part of the package: they are found beside the tests, behind all that is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))
pytest.importorskip("benchmarks", reason="no benchmarks beside these tests")

from benchmarks import report
from benchmarks.client import BenchmarkError, Client
from benchmarks.compare import ROWS, Cell, Pins, Run, measure
from benchmarks.contenders import Floor, SmtpSink
from benchmarks.idle import idle
from benchmarks.large import large
from benchmarks.process import ROOT, Server, free_ports, running
from benchmarks.source import postfix_tool

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the floor and the CPU clocks are Linux's")
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not installed")
needs_postfix = pytest.mark.skipif(postfix_tool("smtp-source") is None, reason="smtp-source is not installed")
pytestmark = [needs_linux, needs_cc]


def benchmarks(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment or None, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def floor() -> Iterator[Server]:
    (port,) = free_ports(1)
    with running("floor", Floor().command(port, counters=None, settings=()), port, None) as server:
        yield server


@needs_postfix
@pytest.mark.parametrize(
    ("servers", "rows"),
    [
        (["floor", "smtp-sink", "aiosmtpd"], ["new-4k", "kept-100k"]),
        (["floor", "fastsmtp", "fastsmtp-sync", "fastsmtp-async"], ["kept-4k"]),
    ],
    ids=["others", "fastsmtp"],
)
def test_each_server_is_measured_or_its_gap_is_named(
    tmp_path: Path, servers: list[str], rows: list[str]
) -> None:
    file = tmp_path / "results.json"
    options = {
        "--only": servers,
        "--rows": rows,
        "--repeat": ["2"],
        "--messages": ["30"],
        "--json": [str(file)],
    }
    result = benchmarks(*(word for name, values in options.items() for word in (name, ",".join(values))))
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(file.read_text())
    assert list(found["rows"]) == rows
    for row in found["rows"].values():
        assert sorted([*row["servers"], *found["gaps"]]) == sorted(servers)
        for name, cell in row["servers"].items():
            assert [run["messages"] for run in cell["runs"]] == [30, 30]
            assert all(0 < run["cpu"] < 10e9 and run["wall"] > 0 for run in cell["runs"])
            assert f"| {name} " in found["text"]
    for name, gap in found["gaps"].items():
        assert f"not measured: {name}: {gap}" in result.stdout


def test_the_ratio_is_the_median_of_the_rounds_that_both_have_done() -> None:
    def cell(*costs: int | None) -> Cell:
        return Cell(1, [None if cost is None else Run(1, cost * 1000, 1, 1, 0.0) for cost in costs])

    assert cell(10, 40, 30).ratio(cell(10, 20, 10)) == 2.0
    assert cell(10, None, 30).ratio(cell(None, 20, 10)) == 3.0
    assert cell(10, None).ratio(cell(None, 20)) is None


def test_the_readme_gets_the_results_in_place_of_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nolder\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "README", readme)
    report.write_readme([{"text": "### kept-4k", "machine": {"kernel": "Linux 6.1"}}])
    expected = f"{report.BEGIN}\n\n### kept-4k\n\nMeasured on:\n\n* kernel: Linux 6.1\n\n{report.END}"
    assert readme.read_text() == f"before\n{expected}\nafter\n"


@needs_postfix
@pytest.mark.skipif(postfix_tool("smtp-sink") is None, reason="smtp-sink is not installed")
def test_a_refused_message_is_a_failed_run_and_no_number() -> None:
    class Refusing(SmtpSink):
        def command(self, *arguments: object, **options: object) -> list[str]:
            program, *others = super().command(*arguments, **options)  # type: ignore[arg-type]
            return [program, "-r", ".", *others]

    with pytest.raises(BenchmarkError, match="smtp-source ended with status 1"):
        measure(Refusing(), ROWS[0], 10, Pins())


@needs_postfix
def test_a_server_that_counts_other_messages_than_were_sent_is_a_failed_run() -> None:
    class Forgetful(Floor):
        def count(self, server: Server, counters: int) -> int:
            return super().count(server, counters) - 1

    with pytest.raises(BenchmarkError, match="counted 29 messages where 30 were sent"):
        measure(Forgetful(), ROWS[0], 10, Pins())


def test_a_server_that_does_not_start_is_told_with_its_own_words() -> None:
    class Broken(Floor):
        def command(self, *arguments: object, **options: object) -> list[str]:
            return ["sh", "-c", "echo 'no such thing' >&2; exit 3"]

    with pytest.raises(BenchmarkError, match="floor ended with status 3: no such thing"):
        measure(Broken(), ROWS[0], 10, Pins())


def test_the_floor_finds_the_end_of_data_across_reads_and_only_there(floor: Server) -> None:
    with Client(floor.port) as client:
        client.command("EHLO test.example", "250")
        for body in (b".\r\n", b"text\r\n..\r\n.x\r\n\r\n.\r\n", b"\r\n.\n.\r\r\n.\r\n"):
            client.command("MAIL FROM:<a@b.example>", "250")
            client.command("DATA", "354")
            for octet in body:
                client.socket.send(bytes([octet]))
            client.reply("250")
        client.command("QUIT", "221")
    assert floor.stop() == "messages 3\n"


def test_idle_connections_are_counted_in_memory_and_a_new_client_is_timed() -> None:
    figures = idle(Floor(), 50, rest=0.1)
    assert 0 <= figures["RSS KiB/connection"] < 10
    assert 0 < figures["longest"] < 5000


def test_large_messages_are_sent_at_once_while_a_noop_is_timed() -> None:
    figures = large(Floor(), 3, 2_000_000)
    assert 0 < figures["peak RSS MiB"] < 10
    assert figures["NOOPs"] > 0


def test_an_unknown_name_is_one_line_that_tells_the_known_ones() -> None:
    result = benchmarks("--only", "flor")
    assert result.returncode == 2
    assert "no server 'flor'; there are floor, smtp-sink," in result.stderr


@needs_postfix
def test_a_missing_tool_is_named(tmp_path: Path) -> None:
    result = benchmarks("--only", "floor", PATH=str(tmp_path))
    assert result.returncode == 1
    assert "not measured: floor: no C compiler" in result.stdout
    assert result.stderr == "Error: no server is left to measure\n"


@pytest.mark.skipif(not list((ROOT / "fastsmtp").glob("_core.*.so")), reason="no core is built in this tree")
def test_every_micro_benchmark_runs() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "benchmarks/micro", "--benchmark-disable"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout
    assert "passed" in result.stdout
