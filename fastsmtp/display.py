"""What ``fastsmtp bench`` shows: how it goes while it runs, and a report at the end, for people and as JSON.

Knows columns, units and terminals. Refuses to know how the figures came about.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from fastsmtp._load import Histogram
from fastsmtp._version import __version__
from fastsmtp.load import Figures, Plan, Progress

STAGES = ("connect", "greeting", "tls", "ehlo", "auth", "mail", "rcpt", "data", "final", "message")
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
BUSY = 0.9  # of a core: a process that needs more may have been the limit


class Show(Protocol):
    """Is told how it goes, about once a second."""

    def __call__(self, progress: Progress) -> None: ...


def shown(title: str, *, quiet: bool) -> AbstractContextManager[Show]:
    """Shows how it goes on stderr: in place on a terminal if rich is installed, else a line each time."""
    if quiet:
        return _nothing()
    if sys.stderr.isatty():
        try:
            import rich.live  # noqa: F401 (whether it is there)
        except ImportError:
            return _lines()
        return _live(title)
    return _lines()


@contextmanager
def _nothing() -> Iterator[Show]:
    yield lambda progress: None


@contextmanager
def _lines() -> Iterator[Show]:
    rate = _Rate()

    def show(progress: Progress) -> None:
        words = (f"{text} {name}" for name, text in _cells(progress, rate))
        print(", ".join(words), file=sys.stderr, flush=True)

    yield show


@contextmanager
def _live(title: str) -> Iterator[Show]:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    rate = _Rate()
    # Without a thread of its own: processes are forked.
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:

        def show(progress: Progress) -> None:
            table = Table(title=title, title_justify="left")
            cells = _cells(progress, rate)
            for name, _ in cells:
                table.add_column(name, justify="right", min_width=9)
            table.add_row(*(text for _, text in cells))
            live.update(table, refresh=True)

        yield show


class _Rate:
    """How fast it goes now: between two calls."""

    def __init__(self) -> None:
        self._before = (time.monotonic(), 0)

    def __call__(self, done: int) -> float:
        (then, before), self._before = self._before, (time.monotonic(), done)
        return (done - before) / max(self._before[0] - then, 1e-9)


def _cells(progress: Progress, rate: _Rate) -> list[tuple[str, str]]:
    return [
        ("messages/s", f"{rate(progress.accepted):,.0f}"),
        ("messages", f"{progress.accepted:,}"),
        ("failed", f"{progress.failed:,}"),
        ("ms p50", _milliseconds(progress.latency.quantile(0.5))),
        ("ms p99", _milliseconds(progress.latency.quantile(0.99))),
    ]


def report(target: str, plan: Plan, figures: Figures) -> str:
    """The report for people; at most 80 columns, except for what the server said."""
    seconds = figures.seconds or 1e-9
    rate = figures.accepted / seconds
    offered = f"; {plan.rate:,.6g}/s offered, {figures.late:,} late" if plan.rate is not None else ""
    tls = (
        f"; TLS handshakes: {figures.full:,} full, {figures.resumed:,} resumed" if plan.tls != "none" else ""
    )
    share = sum(figures.cpu) / seconds
    rows = {
        "server": target,
        "messages": f"{figures.accepted:,} accepted, {figures.failed:,} failed; {plan.size:,} octets each",
        "rate": f"{rate:,.0f} messages/s, {rate * plan.size / 1e6:,.1f} MB/s{offered}",
        "time": f"{figures.seconds:,.3f} s",
        "connections": f"{figures.connections:,} opened{tls}",
        "client": f"{sum(figures.cpu):,.3f} s of CPU, {share:.0%} of a core; {_count(plan.processes, 'process')}",
    }
    lines = [f"{name:<12} {text}" for name, text in rows.items()]
    head = ("count", "mean", *QUANTILES, "max")
    lines += ["", f"{'milliseconds':<12} {head[0]:>10}" + "".join(f"{name:>9}" for name in head[1:])]
    for stage in STAGES:
        histogram = figures.latency[stage]
        if histogram.count:
            times = "".join(f"{_milliseconds(value):>9}" for value in _times(histogram).values())
            lines.append(f"{stage:<12} {histogram.count:>10,}{times}")
    if figures.failures:
        lines += ["", "failures"]
        lines += [f"{count:>10,}  {text}" for text, count in figures.failures.most_common()]
    if (busy := max(figures.cpu, default=0.0) / seconds) > BUSY:
        more = "give it more --processes" if plan.processes == 1 else "give it more --processes or CPUs"
        lines += [
            "",
            f"The client was the limit: it used {busy:.0%} of a core. The server may be faster; {more}.",
        ]
    return "\n".join(lines)


def as_json(plan: Plan, figures: Figures, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The report for programs; times are seconds."""
    return {
        "messages": figures.accepted + figures.failed,
        "accepted": figures.accepted,
        "failed": figures.failed,
        "failures": dict(figures.failures),
        "connections": figures.connections,
        "seconds": figures.seconds,
        "rate": figures.accepted / figures.seconds if figures.seconds else 0.0,
        "offered": plan.rate,
        "octets": figures.accepted * plan.size,
        "cpu_seconds": sum(figures.cpu),
        "late": figures.late,
        "latency": {
            stage: {"count": figures.latency[stage].count, **_times(figures.latency[stage])}
            for stage in STAGES
        },
        "handshakes": {"full": figures.full, "resumed": figures.resumed},
        "version": __version__,
        "arguments": dict(arguments),
    }


def _times(histogram: Histogram) -> dict[str, float]:
    quantiles = {name: histogram.quantile(share) for name, share in QUANTILES.items()}
    return {"mean": histogram.mean, **quantiles, "max": histogram.longest}


def _milliseconds(seconds: float) -> str:
    value = seconds * 1000
    return f"{value:,.3f}" if value < 100 else f"{value:,.1f}" if value < 10_000 else f"{value:,.0f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}es"
