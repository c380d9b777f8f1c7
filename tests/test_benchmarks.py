"""The benchmark harness works: real servers, a handful of messages, and no number from a failed run."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

# The benchmarks are no part of the package: they are found beside the tests, behind all that is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))
pytest.importorskip("benchmarks", reason="no benchmarks beside these tests")

from benchmarks import bench, report
from benchmarks.client import BenchmarkError, Client
from benchmarks.compare import (
    Cell,
    Run,
    Terms,
    as_json,
    counts,
    measure,
    minutes,
    missing,
    scale_for,
    within_time,
)
from benchmarks.contender import Contender, Setup, make_certificate
from benchmarks.contenders import CONTENDERS
from benchmarks.hostile import SCENARIOS, attacked, hostile
from benchmarks.idle import idle
from benchmarks.large import large
from benchmarks.latency import QUANTILES, STAGES, latencies, latency
from benchmarks.lifetime import roll, starts
from benchmarks.process import ROOT, Server, children
from benchmarks.rows import ROWS
from benchmarks.segments import PIECE, pieces
from benchmarks.serving import serving
from benchmarks.source import postfix_tool

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the floor and the CPU clocks are Linux's")
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not installed")
needs_postfix = pytest.mark.skipif(postfix_tool("smtp-source") is None, reason="smtp-source is not installed")
needs_core = pytest.mark.skipif(
    not list((ROOT / "fastsmtp").glob("_core.*.so")), reason="no core is built in this tree"
)
pytestmark = [needs_linux, needs_cc]

NAMED = {each.name: each for each in CONTENDERS}
ROW = {row.name: row for row in ROWS}
SCENARIO = {each.name: each for each in SCENARIOS}
FLOOR = NAMED["floor"]
TEN = Terms(messages=10)


class Instead(Contender):
    """A server in whose place something else is started or counted."""

    def __init__(
        self,
        real: Contender,
        *,
        command: Callable[[list[str]], list[str]] = list,
        count: Callable[[int | None], int | None] = lambda count: count,
    ) -> None:
        self.name, self.title, self.share, self.can = real.name, real.title, real.share, real.can
        self._real = real
        self._command = command
        self._count = count

    def missing(self) -> str | None:
        return self._real.missing()

    def version(self) -> str:
        return self._real.version()

    def command(self, setup: Setup) -> list[str]:
        return self._command(self._real.command(setup))

    def count(self, server: Server, setup: Setup) -> int | None:
        return self._count(self._real.count(server, setup))


def benchmarks(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment or None, capture_output=True, text=True, timeout=60, check=False
    )


def cell(*costs: float | None) -> Cell:
    """Rounds of one message each; costs are in microseconds."""
    return Cell([None if cost is None else Run(1, round(cost * 1000), 1.0, 1, 0.0) for cost in costs])


def row_json(name: str, **servers: Cell) -> dict[str, Any]:
    """A row as it is read again from a file."""
    cells = {server.replace("_", "-"): each for server, each in servers.items()}
    found: dict[str, Any] = json.loads(json.dumps(as_json(ROW[name], cells, {})))
    return found


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    pem, key = make_certificate(tmp_path_factory.mktemp("pem"))
    return {"certificate": pem, "key": key}


@pytest.fixture
def floor() -> Iterator[Server]:
    with serving(FLOOR) as (server, _):
        yield server


@needs_postfix
@pytest.mark.parametrize(
    ("servers", "rows"),
    [
        (["floor", "smtp-sink", "aiosmtpd"], ["kept-100k", "new-4k"]),
        (["fastsmtp"], ["pipelined-4k"]),
    ],
    ids=["others", "fastsmtp"],
)
@needs_core
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
        assert sorted([*row["cells"], *found["gaps"]]) == sorted(servers)
        for name, each in row["cells"].items():
            assert [run["messages"] for run in each["runs"]] == [30, 30]
            assert all(0 < run["cpu"] < 10e9 and run["seconds"] > 0 for run in each["runs"])
            assert f"| {name} " in result.stdout
    assert {name for name in servers if name not in ("floor", *found["gaps"])} == set(found["versions"])
    for name, gap in found["gaps"].items():
        assert f"not measured: {name}: {gap}" in result.stdout


def test_every_row_is_declared_for_servers_that_there_are() -> None:
    assert len(ROW) == len(ROWS)
    for row in ROWS:
        assert {*row.servers} <= {*NAMED}, row.name
        assert {*row.ours, *row.goals} <= {*row.servers}, row.name


def test_a_server_that_cannot_do_what_a_row_needs_is_a_named_gap() -> None:
    assert missing(ROW["tls-new"], FLOOR) == "floor has no tls"
    assert missing(ROW["kept-4k"], FLOOR) is None


def test_the_ratio_is_the_median_of_the_rounds_that_both_have_done() -> None:
    assert cell(10, 40, 30).ratio(cell(10, 20, 10)) == 2.0
    assert cell(10, None, 30).ratio(cell(None, 20, 10)) == 3.0
    assert cell(10, None).ratio(cell(None, 20)) is None


def test_a_slow_server_gets_fewer_messages_and_never_fewer_than_connections() -> None:
    row = replace(ROW["kept-4k"], messages=1000)
    assert counts(row, FLOOR, Terms()) == (100, 1000)
    assert counts(row, FLOOR, Terms(scale=0.5)) == (50, 500)
    assert within_time(row, 1000, 0.0001, Terms()) == 1000
    assert within_time(row, 1000, 0.01, Terms()) == 200
    assert within_time(row, 1000, 10.0, Terms()) == 20
    assert within_time(row, 1000, 10.0, Terms(messages=1000)) == 1000


def test_messages_that_share_the_cost_of_connections_are_as_many_for_a_slow_server() -> None:
    row = ROW["connections-500"]
    assert counts(row, NAMED["aiosmtpd"], Terms()) == counts(row, FLOOR, Terms()) == (1000, row.messages)
    assert within_time(row, row.messages, 1.0, Terms()) == row.messages


def test_a_budget_makes_runs_as_long_as_it_allows() -> None:
    terms = Terms(rounds=3)
    scale = scale_for(100, terms, budget=30)
    assert minutes(100, replace(terms, scale=scale)) == pytest.approx(30)
    assert scale_for(100, terms, budget=1) > 0


def test_the_summary_tells_who_is_first_by_how_much_and_which_goal_is_missed() -> None:
    rows = {
        "kept-4k": row_json("kept-4k", floor=cell(10, 10), smtp_sink=cell(30, 30), fastsmtp=cell(12, 15)),
        "kept-16k": row_json(
            "kept-16k", floor=cell(10), go_smtp=cell(11), aiosmtpd=cell(9), fastsmtp=cell(18)
        ),
        "tls-new": row_json("tls-new", go_smtp=cell(100), haraka=cell(500), fastsmtp=cell(110)),
        "new-4k": row_json("new-4k", floor=cell(10), smtp_sink=cell(30), fastsmtp=cell(None)),
    }
    found = {each.row: each for each in report.standings(rows)}
    assert (found["kept-4k"].floor, found["kept-4k"].peer, found["kept-4k"].lead) == (1.35, "smtp-sink", 2.25)
    assert [name for name, each in found.items() if each.misses] == ["kept-4k", "new-4k"]
    assert found["tls-new"].to_goal == pytest.approx(1.1)
    assert report.yardstick(rows["tls-new"]) == "go-smtp"
    assert report.verdicts(rows) == [
        "First of all peers in 1 of 3 lines.",
        "Not first: fastsmtp in kept-16k; aiosmtpd takes 0.50 of its CPU.",
        "Not first: fastsmtp in tls-new; go-smtp takes 0.91 of its CPU.",
        "Goal missed: fastsmtp in kept-4k, 1.35 where 1.20 is due.",
        "Goal missed: fastsmtp in new-4k, no figure where 1.30 is due.",
    ]


def test_a_page_gets_results_and_pictures_in_place_of_older_ones(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nolder\n{report.END}\nafter\n")
    tables = [
        {"title": "100 idle", "servers": {"floor": {"MiB": 1.5}}, "failures": {"bonzo": "it said nothing"}}
    ]
    result = {"machine": {"kernel": "Linux 6.1"}, "gaps": {"haraka": "not installed"}, "tables": tables}
    report.write_page(readme, [result], {"plots/idle.svg": "Memory"})
    before, text, after = readme.read_text().replace(report.END, report.BEGIN).split(report.BEGIN)
    assert (before, after) == ("before\n", "\nafter\n")
    assert text.strip().split("\n\n") == [
        "![Memory](plots/idle.svg)",
        "### 100 idle",
        "| server |  MiB |\n|--------|-----:|\n| floor  | 1.50 |",
        "* failed: bonzo: it said nothing",
        "* not measured: haraka: not installed",
        "Measured on:",
        "* kernel: Linux 6.1",
    ]


def test_pictures_are_the_same_for_the_same_figures_and_their_text_is_text(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from benchmarks.plots import draw

    rows = {
        "kept-1k": row_json("kept-1k", floor=cell(9), fastsmtp=cell(10)),
        "kept-4k": row_json("kept-4k", floor=cell(10), smtp_sink=cell(30), fastsmtp=cell(12)),
    }
    waits = {f"{stage} {percent}": 1.5 for stage in STAGES.values() for percent in QUANTILES.values()}
    compared = {"benchmark": "compare", "rows": rows}
    others = [
        {"benchmark": "latency", "tables": [{"key": 500, "servers": {"floor": waits}}]},
        {"benchmark": "idle", "tables": [{"key": 100, "servers": {"floor": {"RSS MiB with all": 1.5}}}]},
    ]
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    drawn = draw([compared, *others], first)
    assert list(drawn) == [f"plots/{each}.svg" for each in ("summary", "bars", "sizes", "latency", "idle")]
    assert all((first / path).stat().st_size > 1000 for path in drawn)
    again = draw([compared], second)
    assert list(again) == [f"plots/{each}.svg" for each in ("summary", "bars", "sizes")]
    assert all((first / path).read_bytes() == (second / path).read_bytes() for path in again)
    assert b">fastsmtp</text>" in (first / "plots/summary.svg").read_bytes()


@needs_postfix
@pytest.mark.skipif(postfix_tool("smtp-sink") is None, reason="smtp-sink is not installed")
def test_a_refused_message_is_a_failed_run_and_no_number() -> None:
    refusing = Instead(NAMED["smtp-sink"], command=lambda words: [words[0], "-r", ".", *words[1:]])
    with pytest.raises(BenchmarkError, match="smtp-source ended with status 1"):
        measure(refusing, ROW["new-4k"], TEN)


@needs_core
@pytest.mark.skipif(postfix_tool("smtp-sink") is None, reason="smtp-sink is not installed")
def test_a_refusal_is_told_with_the_words_of_the_server() -> None:
    refusing = Instead(NAMED["smtp-sink"], command=lambda words: [words[0], "-r", ".", *words[1:]])
    row = replace(ROW["new-4k"], load=replace(ROW["new-4k"].load, client="bench"))
    with pytest.raises(
        BenchmarkError, match=r"fastsmtp bench ended with status 1: content: 450 .* \(\d+ times\)"
    ):
        measure(refusing, row, TEN)


@needs_postfix
def test_a_server_that_counts_other_messages_than_were_sent_is_a_failed_run() -> None:
    forgetful = Instead(FLOOR, count=lambda count: (count or 0) - 1)
    with pytest.raises(BenchmarkError, match="counted 29 messages where 30 were sent"):
        measure(forgetful, ROW["new-4k"], TEN)


def test_a_server_that_does_not_start_is_told_with_its_own_words() -> None:
    broken = Instead(FLOOR, command=lambda _: ["sh", "-c", "echo 'no such thing' >&2; exit 3"])
    with pytest.raises(BenchmarkError, match="floor ended with status 3: no such thing"):
        measure(broken, ROW["new-4k"], TEN)


@needs_core
def test_kept_mail_must_be_what_was_sent_to_the_last_octet() -> None:
    from fastsmtp.load import content

    kept = [content(500, number) for number in (2, 0, 1, 0)]
    bench.check_kept(kept, 500, [3, 1])
    for wrong, message in [
        (kept[1:], "of 4 messages 1 are not among those kept, and 0 kept"),
        ([*kept, kept[0]], "of 4 messages 0 are not among those kept, and 1 kept"),
        ([kept[0].replace(b".", b"", 1), *kept[1:]], "of 4 messages 1 are not among those kept, and 1 kept"),
    ]:
        with pytest.raises(BenchmarkError, match=message):
            bench.check_kept(wrong, 500, [3, 1])


def test_small_segments_are_a_whole_message_whose_end_is_a_segment_of_its_own() -> None:
    writes = pieces(4096)
    assert 4096 <= sum(map(len, writes[:-1])) < 4096 + 78
    assert writes[-1] == b".\r\n"
    assert all(len(each) <= PIECE for each in writes)


@pytest.mark.parametrize("name", ["nagle-4k", "nagle-tls-4k"])
@needs_core
def test_the_wait_for_a_message_in_small_segments_is_measured(
    name: str, certificate: dict[str, Path]
) -> None:
    run = measure(NAMED["fastsmtp"], ROW[name], replace(TEN, **certificate))
    assert run.messages == 10
    assert run.wait is not None
    assert 0 < run.wait <= run.seconds * 1e3
    found = {name: row_json(name, fastsmtp=Cell([replace(run, wait=44.0)]))}
    assert "| ms/message |" in report.row_text(name, found[name])
    assert f"Goal missed: fastsmtp in {name}, 44.00 ms a message where 2.00 ms are due." in report.verdicts(
        found
    )


@needs_core
@pytest.mark.parametrize("name", ["maildir", "durable"])
def test_a_maildir_keeps_each_octet_of_what_it_accepts(name: str) -> None:
    (ours,) = ROW[name].ours
    assert measure(NAMED[ours], ROW[name], TEN).messages == 10


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
    figures = idle(FLOOR, 50, rest=0.1)
    assert 0 <= figures["RSS KiB/connection"] < 10
    assert 0 < figures["longest"] < 5000


def test_large_messages_are_sent_at_once_while_a_noop_is_timed() -> None:
    figures = large(FLOOR, 3, 2_000_000)
    assert 0 < figures["peak RSS MiB"] < 10
    assert figures["NOOPs"] > 0


@needs_core
def test_waits_at_an_offered_load_are_told_by_stage_and_quantile() -> None:
    figures = latency(FLOOR, 200, 0.5, Terms().pins)
    assert figures["messages/s"] > 100
    for stage in STAGES.values():
        assert 0 < figures[f"{stage} 50 %"] <= figures[f"{stage} 99 %"] <= figures[f"{stage} 99.9 %"]


def test_a_server_that_falls_behind_is_not_asked_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "benchmarks.latency.latency", lambda each, rate, seconds, pins: {"messages/s": min(rate, 100.0)}
    )
    tables = latencies(
        [FLOOR], [500, 50, 5000], seconds=1, rounds=2, pins=Terms().pins, say=lambda line: None
    )
    assert [(each["key"], list(each["servers"])) for each in tables] == [
        (50, ["floor"]),
        (500, ["floor"]),
        (5000, []),
    ]
    assert tables[-1]["gaps"] == {"floor": "not asked, as it took only 100 of 500 a second"}


def test_a_start_is_timed_until_the_end_of_a_session() -> None:
    figures = starts(FLOOR, 1)
    assert 0 < figures["ms, median"] == figures["longest"] < 10_000


@needs_core
def test_a_roll_is_over_when_all_workers_are_new() -> None:
    with serving(NAMED["fastsmtp"], workers=2) as (server, _):
        before = children(server.pid)
        assert 0 < roll(server) < 20
        assert len(before) == len(children(server.pid)) == 2
        assert not {*before} & {*children(server.pid)}


def test_the_rows_and_the_scenarios_are_listed() -> None:
    result = benchmarks("list")
    assert result.returncode == 0
    rows, scenarios = result.stdout.split("\n\n")
    assert [line.split("|")[2].strip() for line in rows.splitlines()[2:]] == list(ROW)
    assert [line.split("|")[1].strip() for line in scenarios.splitlines()[2:]] == list(SCENARIO)


# Few clients, one of each kind of attack: the real ones differ by their octets.
SMALL = {
    "quiet": 0,
    "noops-20": 3,
    "messages-20": 3,
    "envelopes-20": 3,
    "slow-drip": 20,
    "slow-handshake": 20,
    "octet-512": 20,
    "60k-ended-512": 5,
    "mailboxes": 10,
    "long-recipients": 2,
    "tls-content": 2,
    "kill": 0,
}


@needs_core
@pytest.mark.parametrize("name", SMALL)
def test_honest_clients_are_timed_beside_hostile_ones(name: str, certificate: dict[str, Path]) -> None:
    scenario = replace(SCENARIO[name], count=SMALL[name], seconds=0.5)
    (contender,) = attacked(scenario, [NAMED["fastsmtp"]], None)
    figures = hostile(contender, scenario, certificate, Terms().pins)
    assert figures["sessions"] == 25
    assert figures["failed afterwards"] == 0
    assert 0 < figures["honest ms, median"] <= figures["99 %"] <= figures["longest"]
    assert figures["RSS MiB before"] <= figures["most"]
    if not scenario.kills:
        assert figures["failed"] == 0
    if scenario.attack == "mailboxes":
        assert figures["their messages"] > 0
    elif name == "noops-20":  # each connection ends after 100 commands, so that seldom all are there
        assert figures["ended by the server"] > 0
    elif scenario.attack:
        assert figures["attackers"] == SMALL[name]
        if not scenario.kills:
            assert figures["most of them"] >= figures["descriptors before"] + SMALL[name]


@needs_core
def test_attackers_that_are_refused_are_counted_and_those_that_are_ended_come_again(
    certificate: dict[str, Path],
) -> None:
    scenario = replace(SCENARIO["octet-512"], count=5, seconds=0.5)
    files = [f"--tls-{name}={path}" for name, path in certificate.items()]
    refusing = Instead(NAMED["fastsmtp"], command=lambda words: [*words, *files, "--require-starttls"])
    figures = hostile(refusing, scenario, {}, Terms().pins)
    assert (figures["refused"], figures["failed"]) == (5, figures["sessions"])
    scenario = replace(SCENARIO["slow-greeting"], count=2, seconds=1.5)
    ending = Instead(NAMED["fastsmtp"], command=lambda words: [*words, "--set", "idle_timeout=0.2"])
    figures = hostile(ending, scenario, {}, Terms().pins)
    assert figures["ended by the server"] >= 2


def test_a_peer_is_not_in_scenarios_that_are_about_our_sinks_and_workers() -> None:
    assert [each.name for each in attacked(SCENARIO["octet-512"], [FLOOR], None)] == ["floor"]
    assert [attacked(SCENARIO[name], [FLOOR], None) for name in ("mailboxes", "kill")] == [[], []]
    ours = attacked(SCENARIO["mailboxes"], [NAMED["fastsmtp"]], ROOT)
    assert [each.name for each in ours] == ["fastsmtp-mailboxes", "fastsmtp-mailboxes-beside"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "flor"], "no server 'flor'; there are floor, smtp-sink,"),
        (["--rows", "kept"], "no row 'kept'; there are size, pipelined,"),
        (["hostile", "--scenarios", "noop"], "no scenario 'noop'; there are quiet, noops-20,"),
    ],
)
def test_an_unknown_name_is_one_line_that_tells_the_known_ones(arguments: list[str], message: str) -> None:
    result = benchmarks(*arguments)
    assert result.returncode == 2
    assert message in result.stderr


@needs_postfix
@needs_core
def test_one_row_of_the_tuning_is_measured_again_and_the_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "tuning.json"
    old = {
        "machine": {"date": "yesterday", "kernel": "old"},
        "versions": {},
        "gaps": {},
        "rows": {"spill": {}},
    }
    file.write_text(json.dumps(old))
    done = benchmarks("tuning", "--rows", "sync-1", "--repeat", "1", "--json", str(file))
    assert (done.returncode, done.stderr.count("failed")) == (0, 0), done.stderr
    new = json.loads(file.read_text())
    assert (new["machine"], new["rows"]["spill"]) == (old["machine"], {})
    row = new["rows"]["sync-1"]
    assert list(row["cells"]) == ["fastsmtp sync=yes", "fastsmtp sync=no"]
    assert row["later"]["date"] != "yesterday"
    assert f"* measured again: date {row['later']['date']}, " in report.row_text("sync-1", row)


def test_a_missing_tool_is_named(tmp_path: Path) -> None:
    result = benchmarks("--only", "floor", PATH=str(tmp_path))
    assert result.returncode == 1
    assert "not measured: floor: no C compiler" in result.stdout
    assert result.stderr == "Error: no server is left to measure\n"


@needs_core
def test_every_micro_benchmark_runs() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "benchmarks/micro", "--benchmark-disable"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout
    assert "passed" in result.stdout
