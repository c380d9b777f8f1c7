"""The instruction guard: what it reads, what it lets pass, and what it says of the rest. Counting itself takes ten
seconds and is a step of ``.ci/run``."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

# The benchmarks are no part of the package: they are found beside the tests, behind all that is installed.
sys.path.append(str(Path(__file__).resolve().parent.parent))
pytest.importorskip("benchmarks", reason="no benchmarks beside these tests")

from click.testing import CliRunner, Result

from benchmarks import instructions
from benchmarks.instructions import CORE, ROOT, Count, Environment, Function, GuardError, excesses, spent_in
from benchmarks.talks import TALKS, Talk, have

OWN = f"{CORE}/_wire.so"
# As callgrind writes it: names once, then their numbers; after a call, what it took with all that it called.
CALLGRIND = f"""\
# callgrind format
events: Ir
summary: 1234

ob=(1) {OWN}
fl=(1) _wire.c
fn=(1) _turn
10 5
+2 7
cob=(2) /usr/lib/libc.so.6
cfi=(2) ???
cfn=(2) memchr
calls=3 40
+1 900
* 1

ob=(2)
fl=(2)
fn=(2)
40 900

ob=(1)
fn=(3) _turn'2
-4 20
"""


def test_what_a_function_takes_is_counted_without_what_it_calls() -> None:
    spent = spent_in(CALLGRIND.splitlines(keepends=True))
    assert spent == {Function(OWN, "_turn"): 33, Function("/usr/lib/libc.so.6", "memchr"): 900}


def test_the_core_s_own_instructions_are_those_of_its_compiled_modules() -> None:
    spent = Counter({Function(OWN, "_turn"): 33, Function("/usr/lib/libc.so.6", "memchr"): 900})
    assert instructions.summed(spent) == Count(33, 933)


@pytest.mark.parametrize(
    ("now", "sentences"),
    [
        (Count(1049, 10_999), []),
        (Count(500, 5_000), []),
        (
            Count(1051, 10_000),
            ["row: own: 1,051 instructions a message, recorded 1,000: more than 5% above"],
        ),
        (
            Count(1000, 11_001),
            ["row: total: 11,001 instructions a message, recorded 10,000: more than 10% above"],
        ),
    ],
    ids=["within", "less", "own", "total"],
)
def test_a_figure_may_rise_by_its_margin(now: Count, sentences: list[str]) -> None:
    found = excesses({"row": now}, {"row": Count(1000, 10_000)})
    assert [each.sentence for each in found] == sentences


def test_a_row_that_was_never_recorded_is_named() -> None:
    assert list(excesses({"row": Count(1, 1)}, {})) == [("row", "total", "row: nothing is recorded")]


def test_the_recorded_rows_are_those_that_are_counted() -> None:
    for rows in instructions.recordings().values():
        assert list(rows) == [talk.name for talk in TALKS]


@pytest.mark.parametrize("talk", TALKS, ids=lambda talk: talk.name)
def test_every_message_of_a_conversation_is_accepted(talk: Talk) -> None:
    script = f"import benchmarks.talks as t; t.have(t.TALKS[{TALKS.index(talk)}], lambda: print('mark'))"
    path = os.pathsep.join([str(CORE.parent), str(ROOT)])
    done = subprocess.run(  # for it freezes the collector
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "mark\nmark\n"), done.stderr


def test_a_conversation_that_is_refused_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gc.freeze", lambda: None)
    monkeypatch.setattr("benchmarks.talks.RCPT", b"RCPT TO:<box@>\r\n")
    with pytest.raises(RuntimeError, match=r"kept-1m: 0 of 22 messages were accepted"):
        have(TALKS[-1], lambda: None)


# --- the command --------------------------------------------------------------------------------------------


HERE = Environment("CPython 3.11 by GCC 12", "GCC 12", "x86_64", "avx2")
ELSEWHERE = HERE._replace(python="CPython 3.13 by GCC 12")


def command(
    monkeypatch: pytest.MonkeyPatch, file: Path, *arguments: str, own: int, where: Environment = HERE
) -> Result:
    """The command, with a count that is given."""
    counts = {"row": Counter({Function(OWN, "_turn"): own, Function("/usr/lib/libc.so.6", "memchr"): 9000})}
    monkeypatch.setattr(instructions, "RECORDED", file)
    monkeypatch.setattr(instructions, "environment", lambda: where)
    monkeypatch.setattr(instructions, "count", lambda: counts)
    return CliRunner().invoke(instructions.main, arguments)


def test_more_than_was_recorded_is_told_with_the_costliest_functions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "instructions.json"
    assert command(monkeypatch, file, "--record", own=1000).exit_code == 0
    assert command(monkeypatch, file, own=1040).exit_code == 0
    own = command(monkeypatch, file, own=1100)
    assert own.exit_code == 1
    assert "row: own: 1,100 instructions a message, recorded 1,000: more than 5% above" in own.output
    assert "it goes to\n       1,100  _turn (_wire)\n\n" in own.output
    assert "python -m benchmarks.instructions --record" in own.output
    both = command(monkeypatch, file, own=3000)
    assert "row: total: 12,000 instructions a message, recorded 10,000: more than 10% above" in both.output
    assert "it goes to\n       9,000  memchr (libc)\n       3,000  _turn (_wire)\n" in both.output


def test_another_compiler_or_python_is_not_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "instructions.json"
    command(monkeypatch, file, "--record", own=1000)
    result = command(monkeypatch, file, own=9999, where=ELSEWHERE)
    assert result.exit_code == 0
    assert result.output.startswith(
        "not compared: nothing is recorded for CPython 3.13 by GCC 12, core by GCC 12"
    )


def test_recording_leaves_the_figures_of_other_environments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "instructions.json"
    command(monkeypatch, file, "--record", own=1000)
    command(monkeypatch, file, "--record", own=2000, where=ELSEWHERE)
    command(monkeypatch, file, "--record", own=1001)
    rows = {
        each["environment"]["python"]: each["rows"]["row"]["own"] for each in json.loads(file.read_text())
    }
    assert rows == {"CPython 3.11 by GCC 12": 1001, "CPython 3.13 by GCC 12": 2000}


def test_without_valgrind_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(GuardError, match=r"^valgrind is not installed"):
        instructions.count()
    result = CliRunner().invoke(instructions.main, ["--record"])
    assert result.exit_code == 1
    assert "valgrind is not installed" in result.output
