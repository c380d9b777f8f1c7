"""`fastsmtp bench`, the client where smtp-source cannot go: one run of it as a process, and what it proves.

It ends with status 0 only if every message was accepted, and it says so in JSON; what it sends is known octet
by octet. It knows how that program is called and what its JSON means; it refuses to know what is measured.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from .client import BenchmarkError, Sent
from .process import ROOT, before_exec
from .rows import Load

RUN_SECONDS = 300.0
LOGIN = ("sender", "a-secret")
RESUMED_SHARE = 0.9  # of all handshakes: the first one of each connection has no session to resume


def run(words: Sequence[str], port: int, cpu: int | None = None) -> dict[str, Any]:
    """One run; returns its JSON. BenchmarkError unless every message was accepted."""
    command = [sys.executable, "-m", "fastsmtp", "bench", f"127.0.0.1:{port}", *words]
    try:
        done = subprocess.run(
            [*command, "--quiet", "--json", "-"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
            preexec_fn=before_exec(cpu),
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"fastsmtp bench was not done after {RUN_SECONDS:.0f} s") from None
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        report = {}
    if done.returncode != 0 or not report or report["failed"] or report["accepted"] != report["messages"]:
        said = [f"{text} ({count} times)" for text, count in report.get("failures", {}).items()]
        said += done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise BenchmarkError(f"fastsmtp bench ended with status {done.returncode}: {said[0]}")
    return report


def arguments(load: Load, messages: int) -> list[str]:
    """The flags for that load."""
    counts = {
        "--messages": messages,
        "--size": load.size,
        "--connections": min(load.connections, messages),
    }
    words = [str(word) for pair in counts.items() for word in pair]
    words += [] if load.kept else ["--new"]
    words += ["--pipeline"] if load.pipeline else []
    words += [] if load.tls == "none" else ["--tls", load.tls]
    words += ["--resume"] if load.resume else []
    words += ["--auth", ":".join(LOGIN)] if load.login else []
    return words


def send(load: Load, messages: int, port: int, cpu: int | None = None) -> Sent:
    """Send it all. BenchmarkError unless every message was accepted, with
    the handshakes that the load asks for.
    """
    report = run(arguments(load, messages), port, cpu)
    if report["accepted"] != messages:
        raise BenchmarkError(f"fastsmtp bench sent {report['accepted']} messages where {messages} were due")
    full, resumed = report["handshakes"]["full"], report["handshakes"]["resumed"]
    if load.resume and resumed < RESUMED_SHARE * (messages - load.connections):
        raise BenchmarkError(f"only {resumed} of {full + resumed} TLS sessions were resumed")
    if resumed and not load.resume:
        raise BenchmarkError(f"{resumed} TLS sessions were resumed where new ones were due")
    return Sent(report["seconds"], report["latency"]["message"]["p50"] * 1e3)


def check_kept(kept: Iterable[bytes], size: int, runs: Sequence[int]) -> None:
    """Compare what a server kept with what was sent, octet by octet; `runs` are the counts of messages.

    BenchmarkError if a message is missing, was changed, or is there too often.
    """
    from fastsmtp.load import content  # here, as all else can be measured without the compiled core

    due = Counter(sha256(content(size, number)).digest() for count in runs for number in range(count))
    found = Counter(sha256(message).digest() for message in kept)
    if found != due:
        missing, strange = (due - found).total(), (found - due).total()
        raise BenchmarkError(
            f"of {due.total()} messages {missing} are not among those kept, and {strange} kept ones were not sent"
        )
