"""What the figures were measured on: without it they say nothing."""

import importlib.metadata
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from .contender import Contender, first_line
from .process import ROOT
from .rows import FLOOR


def describe() -> dict[str, str]:
    """Machine, commit and load, by name, ready to print."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "CPU": f"{_cpu_model()}, {os.cpu_count()} CPUs",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "uvloop": importlib.metadata.version("uvloop"),
        "C compiler": first_line("cc", "--version"),
        "folder of spills and mail": f"{tempfile.gettempdir()} on {_file_system(tempfile.gettempdir())}",
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def versions(contenders: Iterable[Contender]) -> dict[str, str]:
    """The versions of the servers by name; each build of fastsmtp is one, whichever way it is run."""
    found: dict[str, str] = {}
    for each in contenders:
        name = each.name
        if name.startswith("fastsmtp"):
            name = "fastsmtp, the other build" if name.endswith("-beside") else "fastsmtp"
        if name != FLOOR and name not in found:
            found[name] = each.version()
    return found


def _commit() -> str:
    commit = first_line("git", "rev-parse", "--short", "HEAD")
    if commit == "unknown":
        return "none"
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=ROOT, capture_output=True, check=False)
    return f"{commit} with changes" if changed.returncode else commit


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "CPU part"):
            return " ".join(value.split())
    return platform.machine()


def _file_system(folder: str) -> str:
    return first_line("stat", "--file-system", "--format=%T", folder)
