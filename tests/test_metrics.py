"""Metrics: the shared block, and what a scrape makes of it."""

import os
import shutil
import subprocess
import sys
import time
from bisect import bisect_left
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from fastsmtp import _engine
from fastsmtp.block import Block
from fastsmtp.metrics import HEARTBEAT, HELP, Collector, reference, worker_families

DOCS = Path(__file__).parent.parent / "docs" / "metrics.md"

ACCEPTED = ("fastsmtp_messages_total", "accepted")
ACTIVE = ("fastsmtp_connections_active", "")


def registry_of(block: Block) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(Collector(block))
    return registry


def scrape(block: Block) -> dict[str, float]:
    """What a scrape shows, as ``{'name{label="value"}': value}``."""
    samples = {}
    for family in parse(generate_latest(registry_of(block)).decode()):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def count(counters: _engine.Counters, family: tuple[str, str], n: int = 1) -> None:
    counters.add(_engine.index(*family), n)


# --- the block ----------------------------------------------------------------------------------------------


def test_a_slot_holds_all_words_of_the_layout_and_shares_no_cache_line() -> None:
    ends = [
        offset + len(values) * (len(bounds) + 2 if bounds else 1)
        for _, _, _, values, bounds, offset in _engine.LAYOUT
    ]
    assert max(ends) == _engine.SLOT_WORDS
    assert _engine.SLOT_BYTES >= _engine.SLOT_WORDS * 8
    assert _engine.SLOT_BYTES % 128 == 0


def test_slots_do_not_overlap() -> None:
    block = Block(3)
    for index in range(block.slots):
        block.slot(index)[:] = bytes([index + 1]) * _engine.SLOT_BYTES
        block.note_up(index)
    for index in range(block.slots):
        assert set(block.slot(index)) == {index + 1}
        assert block.words(index) == [int.from_bytes(bytes([index + 1]) * 8, "little")] * _engine.SLOT_WORDS
        assert block.is_up(index)
    assert block.restarts == 0


def test_a_block_has_a_spare_slot_for_each_worker_and_none_beyond() -> None:
    block = Block(2)
    assert block.slots == 4
    for index in (-1, 4):
        with pytest.raises(IndexError, match="4 slots"):
            block.slot(index)
    with pytest.raises(ValueError, match="one worker or more"):
        Block(0)


def test_what_a_forked_worker_counts_shows_in_a_scrape_that_always_agrees_with_itself() -> None:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("consistent over")


# --- what a scrape shows ------------------------------------------------------------------------------------


def test_every_family_has_a_help_text_and_every_help_text_a_family() -> None:
    shown = {family.name for family in parse(generate_latest(registry_of(Block(1))).decode())}
    named = {name.removesuffix("_total") for name in HELP}
    assert shown == named
    layout = {name for name, *_ in _engine.LAYOUT} - {HEARTBEAT}
    assert layout < set(HELP)


def test_all_series_exist_from_the_start_at_zero() -> None:
    samples = scrape(Block(2))
    for name, kind, label, values, bounds, _ in _engine.LAYOUT:
        if name == HEARTBEAT:
            continue
        for value in values:
            own = [f'{label}="{value}"'] if label else []
            if kind == "histogram":
                for bound in (*map(float, bounds), "+Inf"):
                    labels = ",".join(sorted([*own, f'le="{bound}"']))
                    assert samples[f"{name}_bucket{{{labels}}}"] == 0
                name_of = f"{name}_count"
            else:
                name_of = name
            assert samples[f"{name_of}{{{own[0]}}}" if own else name_of] == 0


def test_values_are_sums_over_the_workers() -> None:
    block = Block(2)
    for index, n in ((0, 2), (1, 3), (3, 5)):
        counters = _engine.Counters(block.slot(index))
        block.note_up(index)
        count(counters, ACCEPTED, n)
        count(counters, ACTIVE, n)
    samples = scrape(block)
    assert samples['fastsmtp_messages_total{result="accepted"}'] == 10
    assert samples['fastsmtp_messages_total{result="rejected"}'] == 0
    assert samples["fastsmtp_connections_active"] == 10


def test_counts_of_a_dead_worker_stay_and_its_gauges_go() -> None:
    block = Block(1)
    counters = _engine.Counters(block.slot(0))
    block.note_up(0)
    count(counters, ACCEPTED, 7)
    count(counters, ACTIVE, 4)
    block.note_down(0)
    samples = scrape(block)
    assert samples['fastsmtp_messages_total{result="accepted"}'] == 7
    assert samples["fastsmtp_connections_active"] == 0

    successor = _engine.Counters(block.slot(0))
    block.note_up(0)
    count(successor, ACCEPTED)
    samples = scrape(block)
    assert samples['fastsmtp_messages_total{result="accepted"}'] == 8
    assert samples["fastsmtp_connections_active"] == 0


def test_the_supervisors_own_series() -> None:
    block = Block(2)
    block.note_up(0)
    block.note_up(3)  # worker 1, on its spare slot
    block.note_restart()
    block.note_restart()
    samples = scrape(block)
    assert samples["fastsmtp_workers"] == 2
    assert samples['fastsmtp_worker_up{worker="0"}'] == 1
    assert samples['fastsmtp_worker_up{worker="1"}'] == 1
    assert samples["fastsmtp_worker_restarts_total"] == 2
    assert [name for name in samples if name.startswith("fastsmtp_build_info{")]
    block.note_down(3)
    assert scrape(block)['fastsmtp_worker_up{worker="1"}'] == 0
    assert block.accepts
    block.note_down(0)
    assert not block.accepts


def test_the_age_of_a_heartbeat_is_that_of_the_process_that_is_worse_off() -> None:
    block = Block(2)
    beat = _engine.index(HEARTBEAT)
    now = time.monotonic_ns()
    for index, age in ((0, 1), (2, 60), (1, 5)):
        _engine.Counters(block.slot(index)).set(beat, now - age * 10**9)
    name = "fastsmtp_worker_heartbeat_age_seconds"
    assert not [sample for sample in scrape(block) if sample.startswith(name)]
    block.note_up(0)
    assert scrape(block)[f'{name}{{worker="0"}}'] == pytest.approx(1, abs=0.5)
    assert f'{name}{{worker="1"}}' not in scrape(block)
    block.note_up(2)
    assert scrape(block)[f'{name}{{worker="0"}}'] == pytest.approx(60, abs=0.5)


def test_a_gauge_lowered_below_zero_is_negative() -> None:
    layout = [("fastsmtp_buffered_bytes", "gauge", None, ("",), (), 0)]
    (family,) = worker_families(layout, [[(1 << 64) - 3], [1]], [True, True])
    assert [sample.value for sample in family.samples] == [-2]


observations = st.lists(
    st.tuples(st.integers(0, 3), st.floats(0, 200, allow_nan=False).map(lambda value: round(value, 6)))
)


@given(observations)
def test_a_histogram_is_cumulative_and_its_count_is_the_last_bucket(values: list[tuple[int, float]]) -> None:
    block = Block(2)
    name = "fastsmtp_data_read_seconds"
    bounds = next(family[4] for family in _engine.LAYOUT if family[0] == name)
    workers = [_engine.Counters(block.slot(index)) for index in range(block.slots)]
    expected = [0] * (len(bounds) + 1)
    for slot, value in values:
        workers[slot].observe(_engine.index(name), value)
        expected[bisect_left(bounds, value)] += 1
    samples = scrape(block)
    for position, bound in enumerate((*map(float, bounds), "+Inf")):
        assert samples[f'{name}_bucket{{le="{bound}"}}'] == sum(expected[: position + 1])
    assert samples[f"{name}_count"] == len(values)
    assert samples[f"{name}_sum"] == pytest.approx(sum(value for _, value in values), abs=1e-6)


def test_sizes_are_summed_in_bytes() -> None:
    block = Block(1)
    counters = _engine.Counters(block.slot(0))
    counters.observe(_engine.index("fastsmtp_message_size_bytes"), 4096)
    assert scrape(block)["fastsmtp_message_size_bytes_sum"] == 4096


def test_the_openmetrics_format_parses_too() -> None:
    text = openmetrics.generate_latest(registry_of(Block(2))).decode()
    families = {family.name: family for family in parse_openmetrics(text)}
    assert families["fastsmtp_messages"].type == "counter"
    assert families["fastsmtp_handler_seconds"].type == "histogram"


def test_promtool_finds_nothing_to_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian package prometheus) is not installed")
    block = Block(2)
    _engine.Counters(block.slot(0)).observe(_engine.index("fastsmtp_data_read_seconds"), 0.3)
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=generate_latest(registry_of(block)),
        capture_output=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_page_of_all_series_is_fresh() -> None:
    assert DOCS.read_text() == reference(), "run: python -m fastsmtp.metrics > docs/metrics.md"


# --- as a script: a worker counts while this process scrapes ------------------------------------------------


def scrape_while_a_child_counts() -> None:
    messages = 20_000
    block = Block(1)
    worker = os.fork()
    if worker == 0:
        counters = _engine.Counters(block.slot(0))
        accepted, seconds = _engine.index(*ACCEPTED), _engine.index("fastsmtp_data_read_seconds")
        for number in range(messages):
            counters.add(accepted)
            counters.observe(seconds, number / 1000)
        os._exit(0)
    last = scrapes = 0
    while last < messages:
        samples = scrape(block)
        buckets = [
            value for name, value in samples.items() if name.startswith("fastsmtp_data_read_seconds_b")
        ]
        assert buckets == sorted(buckets)
        assert buckets[-1] == samples["fastsmtp_data_read_seconds_count"]
        now = int(samples['fastsmtp_messages_total{result="accepted"}'])
        assert now >= last, (now, last)
        last = now
        scrapes += 1
    assert os.waitpid(worker, 0) == (worker, 0)
    assert scrape(block)["fastsmtp_data_read_seconds_count"] == messages
    print(f"consistent over {scrapes} scrapes")


if __name__ == "__main__":
    scrape_while_a_child_counts()
