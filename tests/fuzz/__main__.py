"""Random clients against the core and the oracle, for as long as one likes: ``make fuzz``.

``python -m tests.fuzz --seconds 60 --seed 1``. A disagreement is made small and printed, and the
exit status is 1. Each round is decided by a number, which counts up from the first seed.
"""

import faulthandler
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from oracle import Limits, Result, oracle
from script import make_engine, play
from wires import random_limits, random_pieces, random_wire


class Round:
    """One random client, all of it decided by ``seed``."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        self.limits: Limits = random_limits(chance)
        self.wire = random_wire(chance)
        self.cut_seed = chance.randrange(1 << 30)
        self.later = chance.random() < 0.3
        self.polite = chance.random() < 0.5
        self.hooks = ("DATA", *chance.choice(((), ("MAIL", "RCPT"), ("NOOP", "RSET", "QUIT", "VRFY"))))
        self.spill_threshold = chance.choice((0, 10, 200, 1 << 20))

    def disagreement(self, wire: bytes) -> tuple[Result | Exception, Result] | None:
        """What the core makes of ``wire``, and the oracle, if that is not the same."""
        right = oracle(wire, self.limits)
        try:
            engine = make_engine(self.limits, self.hooks, spill_threshold=self.spill_threshold)
            pieces = random_pieces(random.Random(self.cut_seed), wire)
            came: Result | Exception = play(engine, pieces, later=self.later, polite=self.polite)
            assert engine.held == 0, f"{engine.held} octets of memory are still held"
        except Exception as error:
            return error, right
        return None if came == right else (came, right)


def shrink(wire: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """Takes away ever smaller parts of ``wire`` for as long as it fails."""
    size = len(wire) // 2
    while size:
        at = 0
        while at < len(wire):
            shorter = wire[:at] + wire[at + size :]
            if fails(shorter):
                wire = shorter
            else:
                at += size
        size //= 2
    return wire


@click.command()
@click.option("--seconds", default=30.0, show_default=True, help="How long to go on.")
@click.option("--seed", default=None, type=int, help="The first round's number; by default a random one.")
@click.option("--rounds", default=None, type=int, help="How many rounds at most.")
def main(seconds: float, seed: int | None, rounds: int | None) -> None:
    """Plays random clients against the core and the oracle."""
    faulthandler.enable()
    first = random.SystemRandom().randrange(1 << 40) if seed is None else seed
    click.echo(f"first seed {first}")
    end = time.monotonic() + seconds
    done = 0
    while time.monotonic() < end and done != rounds:
        attempt = Round(first + done)
        found = attempt.disagreement(attempt.wire)
        if found is not None:
            small = shrink(attempt.wire, lambda wire, attempt=attempt: attempt.disagreement(wire) is not None)
            came, right = attempt.disagreement(small) or found
            click.echo(f"seed {first + done}\nlimits {attempt.limits}\nhooks {attempt.hooks}")
            click.echo(
                f"later {attempt.later} polite {attempt.polite} spill_threshold {attempt.spill_threshold}"
            )
            click.echo(f"pieces {random_pieces(random.Random(attempt.cut_seed), small)}")
            click.echo(f"core   {came!r}\noracle {right!r}")
            sys.exit(1)
        done += 1
    click.echo(f"{done} rounds without a disagreement")


if __name__ == "__main__":
    main()
