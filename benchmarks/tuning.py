"""What settings do: rows in which every server is fastsmtp, each with one setting of its own.

It knows which settings are worth a measurement, and the load that shows what each does. It refuses to know how a row
is run, and what follows from the figures: docs/tuning.md says that.
"""

from dataclasses import replace
from pathlib import Path

from .client import BenchmarkError
from .contender import Contender, Setup, last_words
from .contenders import Fastsmtp, FastsmtpMaildir
from .rows import KIB, MIB, Load, Row, bench

DISCARD = ("--deliver", "discard:")


class Tuned(Fastsmtp):
    """fastsmtp with some settings, NAME=VALUE, which give it its name."""

    def __init__(self, *settings: str) -> None:
        super().__init__(" ".join(["fastsmtp", *settings]), "fastsmtp --deliver discard:", *DISCARD)
        self._settings = settings

    def command(self, setup: Setup) -> list[str]:
        return super().command(replace(setup, settings=(*setup.settings, *self._settings)))


class WithRsa(Tuned):
    """fastsmtp whose certificate has an RSA key of 2048 bits, instead of the harness's ECDSA."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "fastsmtp with RSA-2048"

    def command(self, setup: Setup) -> list[str]:
        certificate, key = setup.folder / "rsa.pem", setup.folder / "rsa.key"
        kind = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
        failed = last_words(["openssl", "req", "-x509", *kind, "-keyout", str(key), "-out", str(certificate)])
        if failed:
            raise BenchmarkError(f"no certificate for TLS: {failed}")
        return super().command(replace(setup, certificate=Path(certificate), key=Path(key)))


def sweep(
    name: str, title: str, load: Load, messages: int, *servers: Contender
) -> tuple[Row, tuple[Contender, ...]]:
    return Row(name, "tuning", title, load, messages, tuple(each.name for each in servers), ours=()), servers


def waiting(count: int, messages: int) -> tuple[Row, tuple[Contender, ...]]:
    title = f"4 KiB into a Maildir, {count} kept connection{'s' if count > 1 else ''} at once"
    synced = FastsmtpMaildir("fastsmtp sync=yes", "maildir:, synced before the 250", sync=True)
    unsynced = FastsmtpMaildir("fastsmtp sync=no", "maildir:, never synced", sync=False)
    return sweep(f"sync-{count}", title, bench(connections=count), messages, synced, unsynced)


LOOPS = (Tuned(), Tuned("loop=asyncio"))
LARGE = Load(MIB)
SWEEPS = (
    sweep("loop-kept", "4 KiB, kept connections", Load(4 * KIB), 20_000, *LOOPS),
    sweep("loop-new", "4 KiB, a new connection for each message", Load(4 * KIB, kept=False), 10_000, *LOOPS),
    sweep(
        "spill",
        "1 MiB, kept connections",
        LARGE,
        600,
        *(Tuned(f"spill_threshold={size}") for size in ("4MiB", "256KiB", "64KiB")),
    ),
    sweep(
        "newlines",
        "1 MiB, kept connections, in memory",
        LARGE,
        600,
        *(
            Tuned("spill_threshold=4MiB", *more)
            for more in ((), ("bare_newline=keep",), ("bare_newline=reject",), ("max_line_length=998",))
        ),
    ),
    waiting(1, 300),
    waiting(20, 4_000),
    waiting(200, 12_000),
    sweep(
        "certificate",
        "4 KiB, a new connection with implicit TLS for each message",
        bench(kept=False, tls="implicit"),
        1_200,
        Tuned(),
        WithRsa(),
    ),
)
