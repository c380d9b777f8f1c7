"""Metrics: how the block of counters reads for Prometheus.

Knows what each series means, and how slots become families of ``prometheus_client``. Refuses to know the block's
memory, and what happens: a scrape only reads. Imported in the exporter alone: what it brings is no worker's.
"""

import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector as BaseCollector

from fastsmtp._engine import LAYOUT
from fastsmtp._version import __version__
from fastsmtp.block import Block

if TYPE_CHECKING:
    from fastsmtp._engine import Family

# A point of time on the machine's monotonic clock: its sum over workers means nothing, its age does.
HEARTBEAT = "fastsmtp_heartbeat_seconds"

HELP = {
    "fastsmtp_connections_total": "Connections taken.",
    "fastsmtp_connections_active": "Connections open now.",
    "fastsmtp_connections_rejected_total": "Connections refused before the first command, by reason.",
    "fastsmtp_commands_total": "Commands received, by verb.",
    "fastsmtp_replies_total": "Replies sent, by code.",
    "fastsmtp_messages_total": (
        "Messages, by result: accepted (250), rejected (5yz), deferred (4yz), aborted (the client went away)."
    ),
    "fastsmtp_recipients_total": "Recipients (RCPT), by result.",
    "fastsmtp_received_bytes_total": "Octets read from clients, after TLS.",
    "fastsmtp_message_size_bytes": "Size of the content of messages.",
    "fastsmtp_data_read_seconds": "Time from the reply to DATA until the content was complete.",
    "fastsmtp_handler_seconds": "Time that hooks took, by stage; the sink counts as data.",
    "fastsmtp_handler_errors_total": "Hooks that raised something other than a reply, by stage.",
    "fastsmtp_spilled_messages_total": "Messages whose content went to a temporary file.",
    "fastsmtp_spilled_bytes_total": "Octets of content written to temporary files.",
    "fastsmtp_buffered_bytes": "Memory that the content of messages in flight holds.",
    "fastsmtp_tls_handshakes_total": "TLS handshakes, by result: after STARTTLS or at the beginning of connections.",
    "fastsmtp_protocol_violations_total": "What clients did against the protocol, by kind.",
    "fastsmtp_timeouts_total": "Connections closed because the client or a hook was too slow, by state.",
    "fastsmtp_workers": "Workers that are meant to run.",
    "fastsmtp_worker_up": "1 while the worker takes connections, else 0.",
    "fastsmtp_worker_restarts_total": "Workers started in place of one that died.",
    "fastsmtp_worker_heartbeat_age_seconds": "Time since the worker's last tick; no sample while it is down.",
    "fastsmtp_build_info": "1; the labels say what runs.",
}


class Collector(BaseCollector):
    """Renders a block for a ``prometheus_client`` registry: sums over slots, and the supervisor's own series.

    Reads while workers write, without a lock: each word is whole, and what is derived (``_count`` from the
    buckets) is derived from one reading, so that every scrape agrees with itself.
    """

    def __init__(self, block: Block) -> None:
        self._block = block

    def collect(self) -> Iterator[Metric]:
        block = self._block
        slots = [block.words(index) for index in range(block.slots)]
        up = [block.is_up(index) for index in range(block.slots)]
        yield from worker_families(LAYOUT, slots, up)
        yield from self._own_families(slots, up)

    def describe(self) -> Iterable[Metric]:
        return self.collect()

    def _own_families(self, slots: Sequence[Sequence[int]], up: Sequence[bool]) -> Iterator[Metric]:
        workers = self._block.workers
        yield _gauge("fastsmtp_workers", workers)

        family = GaugeMetricFamily("fastsmtp_worker_up", HELP["fastsmtp_worker_up"], labels=("worker",))
        for worker in range(workers):
            family.add_metric((str(worker),), up[worker] or up[worker + workers])
        yield family

        name = "fastsmtp_worker_restarts_total"
        yield CounterMetricFamily(name, HELP[name], value=self._block.restarts)

        name = "fastsmtp_worker_heartbeat_age_seconds"
        family = GaugeMetricFamily(name, HELP[name], labels=("worker",))
        now = time.monotonic_ns()
        word = next(offset for name, *_, offset in LAYOUT if name == HEARTBEAT)
        for worker in range(workers):
            beats = [
                slots[slot][word] for slot in (worker, worker + workers) if up[slot] and slots[slot][word]
            ]
            if beats:  # of two that overlap, the one that is worse off
                family.add_metric((str(worker),), max(0, now - min(beats)) / 1e9)
        yield family

        name = "fastsmtp_build_info"
        family = GaugeMetricFamily(name, HELP[name], labels=("version", "python"))
        family.add_metric((__version__, platform.python_version()), 1)
        yield family


def worker_families(
    layout: "Sequence[Family]", slots: Sequence[Sequence[int]], up: Sequence[bool]
) -> Iterator[Metric]:
    """The families of ``layout``, summed over ``slots`` (words each); gauges only over those that are up."""
    totals = [sum(words) for words in zip(*slots, strict=True)]
    present = [
        sum(_signed(words[word]) for words, alive in zip(slots, up, strict=True) if alive)
        for word in range(len(totals))
    ]
    for name, kind, label, values, bounds, offset in layout:
        if name == HEARTBEAT:
            continue
        labels = () if label is None else (label,)
        family: CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
        if kind == "histogram":
            family = HistogramMetricFamily(name, HELP[name], labels=labels)
            width = len(bounds) + 2
            unit = 1e9 if name.endswith("_seconds") else 1
            for position, value in enumerate(values):
                start = offset + position * width
                *buckets, total = totals[start : start + width]
                family.add_metric((value,) if labels else (), _cumulative(bounds, buckets), total / unit)
        else:
            words = totals if kind == "counter" else present
            family = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(
                name, HELP[name], labels=labels
            )
            for position, value in enumerate(values):
                family.add_metric((value,) if labels else (), words[offset + position])
        yield family


def reference() -> str:
    """The table of all series, in Markdown: ``docs/metrics.md``, made by ``python -m fastsmtp.metrics``."""
    rows = []
    for family in Collector(Block(1)).collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append(f"| `{name}` | {family.type} | {_labels(name)} | {HELP[name]} |")
    return "\n".join(
        [
            "# Metrics",
            "",
            "What `/metrics` shows. All series exist from the start, at 0. Label values come from fixed",
            "lists, so the number of series does not grow with traffic. A value is the sum over all workers,",
            "and what a worker counted stays when it dies. Made by `python -m fastsmtp.metrics`.",
            "",
            "| Series | Kind | Labels | Meaning |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _labels(name: str) -> str:
    own = {
        "fastsmtp_worker_up": "`worker`: its index",
        "fastsmtp_worker_heartbeat_age_seconds": "`worker`: its index",
        "fastsmtp_build_info": "`version`, `python`",
    }
    for family, _, label, values, bounds, _ in LAYOUT:
        if family == name:
            parts = [f"`{label}`: {', '.join(f'`{value}`' for value in values)}"] if label else []
            parts += [f"`le`: {', '.join(f'{bound:g}' for bound in bounds)}, +Inf"] if bounds else []
            return "; ".join(parts)
    return own.get(name, "")


def _gauge(name: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, HELP[name], value=value)


def _signed(word: int) -> int:
    """A gauge that was lowered once more than it was raised reads -1, not 2 ** 64 - 1."""
    return word - (1 << 64) if word >> 63 else word


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Buckets as Prometheus wants them: each holds all smaller ones, and +Inf is the count of all."""
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), total))
    return buckets


if __name__ == "__main__":
    print(reference(), end="")
