"""Installs the peers: what is pinned beside this file goes to benchmarks/build/peers, and Debian's packages to Debian.

It knows tools and manifests. It does not know how a server is run, and it raises nothing: what cannot be had is a gap,
named with the last line of the tool's complaint. What is installed already is left alone until its pins change.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..contender import BUILD, last_words
from ..source import postfix_tool

HERE = Path(__file__).resolve().parent
PEERS = BUILD / "peers"
NODE = PEERS / "node"
PYTHON = PEERS / "python"
GO_SMTP = PEERS / "go-smtp"


def install(say: Callable[[str], None]) -> dict[str, str]:
    """Install or find everything, telling each step; returns why something cannot be had, by what it is."""
    steps = {"postfix": postfix, "node": node, "go-smtp": go_smtp, "python": python}
    gaps = {}
    for name, step in steps.items():
        say(f"peers: {name}")
        try:
            gap = step()
        except OSError as error:
            gap = str(error)
        if gap:
            gaps[name] = gap
    return gaps


def postfix() -> str | None:
    """smtp-source, smtp-sink and Postfix, by Debian's package."""
    if all(postfix_tool(name) for name in ("smtp-source", "smtp-sink", "postconf", "postcat")):
        return None
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return "not installed; it is Debian's package postfix (apt install postfix)"
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y"]
    return last_words([*quiet, "update"]) or last_words(
        [*quiet, "install", "--no-install-recommends", "postfix"]
    )


def node() -> str | None:
    """Haraka and smtp-server, as the lock file has them."""
    pins = [HERE / "node" / name for name in ("package.json", "package-lock.json")]
    if installed(NODE, pins):
        return None
    if shutil.which("npm") is None:
        return "npm is not installed (Debian: apt install npm)"
    NODE.mkdir(parents=True, exist_ok=True)
    for pin in pins:
        shutil.copy(pin, NODE)
    # Nothing of them has to be compiled; Haraka's optional packages are plugins that no run uses.
    quiet = ["--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--loglevel=error"]
    return build(NODE, pins, ["npm", "ci", *quiet], folder=NODE)


def go_smtp() -> str | None:
    """A program made of go-smtp."""
    sources = [HERE / "go" / name for name in ("main.go", "go.mod", "go.sum")]
    if installed(GO_SMTP, sources):
        return None
    if shutil.which("go") is None:
        return "go is not installed (Debian: apt install golang)"
    PEERS.mkdir(parents=True, exist_ok=True)
    return build(GO_SMTP, sources, ["go", "build", "-o", str(GO_SMTP), "."], folder=HERE / "go")


def python() -> str | None:
    """aiosmtpd and bonzo, in an environment of their own."""
    pins = [HERE / "python" / "requirements.txt"]
    if installed(PYTHON, pins):
        return None
    pip = [str(PYTHON / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    environment = [sys.executable, "-m", "venv", str(PYTHON)]
    return build(PYTHON, pins, environment, [*pip, "-r", str(pins[0])])


def build(target: Path, pins: Sequence[Path], *commands: Sequence[str], folder: Path = HERE) -> str | None:
    """Run the commands in the folder, and remember what the target is made of; returns why that failed, or None."""
    for command in commands:
        failed = last_words(command, folder)
        if failed:
            return failed
    stamp(target).write_text(digest(pins))
    return None


def digest(pins: Sequence[Path]) -> str:
    return hashlib.sha256(b"".join(pin.read_bytes() for pin in pins)).hexdigest()


def stamp(target: Path) -> Path:
    return target.with_name(f"{target.name}.installed")


def installed(target: Path, pins: Sequence[Path]) -> bool:
    """Whether the target was made of these very pins."""
    return target.exists() and stamp(target).exists() and stamp(target).read_text() == digest(pins)
