"""How long clients wait at a fixed offered load: greeting, MAIL, the final 250, and the whole message.

The loop is open: messages are due at fixed times, whatever the server does, and a message that has to wait for
its turn waits from the moment that it was due. So a stall of the server is felt by all that came meanwhile.
It knows rates and columns; `fastsmtp bench` keeps the time.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from . import bench
from .client import BenchmarkError
from .compare import Pins
from .contender import Contender
from .serving import serving

RATES = (500, 2000, 4000, 8000)  # messages a second, each on a new connection
SECONDS = 3
SIZE = 4096
CONNECTIONS = 200  # at once, at most; beyond it messages wait for their turn
WARM_UP = 200
KEPT_UP = 0.95  # of the offered rate, or the server does not keep it
STAGES = {"greeting": "greeting", "mail": "MAIL", "final": "final 250", "message": "message"}
QUANTILES = {"p50": "50 %", "p99": "99 %", "p999": "99.9 %"}


def latency(contender: Contender, rate: int, seconds: float, pins: Pins) -> dict[str, float]:
    """The figures of one server at one rate, by column, waits in milliseconds. BenchmarkError if it fails."""
    words = {
        "--messages": round(rate * seconds),
        "--rate": rate,
        "--size": SIZE,
        "--connections": CONNECTIONS,
        "--warm-up": WARM_UP,
    }
    with serving(contender, cpu=pins.server) as (_, setup):
        flags = [str(word) for pair in words.items() for word in pair]
        report = bench.run(["--new", *flags], setup.port, pins.client)
    waits = {
        f"{title} {percent}": report["latency"][stage][quantile] * 1e3
        for stage, title in STAGES.items()
        for quantile, percent in QUANTILES.items()
    }
    return {"messages/s": report["rate"], **waits}


def median(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Column by column."""
    return {column: statistics.median(figures[column] for figures in rounds) for column in rounds[0]}


def latencies(
    contenders: Sequence[Contender],
    rates: Sequence[int],
    *,
    seconds: float,
    rounds: int,
    pins: Pins,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """A table for each rate: the medians over the rounds, in which the servers take turns.

    A server that falls behind at one rate is not asked for more: it would only show how long the line is.
    """
    tables = []
    behind: dict[str, str] = {}
    for rate in sorted(rates):
        found: dict[str, list[dict[str, float]]] = {}
        gaps = dict(behind)
        failures: dict[str, str] = {}
        for number in range(1, rounds + 1):
            for contender in (each for each in contenders if each.name not in gaps | failures):
                say(f"latency: {rate}/s, round {number} of {rounds}, {contender.name}")
                try:
                    figures = latency(contender, rate, seconds, pins)
                    found.setdefault(contender.name, []).append(figures)
                except (BenchmarkError, OSError) as error:
                    failures[contender.name] = str(error)
        servers = {name: median(each) for name, each in found.items() if name not in failures}
        for name, figures in servers.items():
            if figures["messages/s"] < KEPT_UP * rate:
                behind[name] = f"not asked, as it took only {figures['messages/s']:,.0f} of {rate:,} a second"
        tables.append(
            {
                "title": f"{rate:,} messages a second offered, a new connection each: waits in ms",
                "key": rate,
                "servers": servers,
                "failures": failures,
                "gaps": gaps,
            }
        )
    return tables
