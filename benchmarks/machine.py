"""What the figures were measured on: without it they say nothing."""

import importlib.metadata
import os
import platform
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from .process import ROOT
from .source import postfix_tool


def describe() -> dict[str, str]:
    """Machine, versions, commit and load, by name, ready to print."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "CPU": f"{_cpu_model()}, {os.cpu_count()} CPUs",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "uvloop": _version("uvloop"),
        "aiosmtpd": _version("aiosmtpd"),
        "Postfix": _postfix(),
        "C compiler": _first_line("cc", "--version"),
        "spill folder": f"{tempfile.gettempdir()} on {_file_system(tempfile.gettempdir())}",
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return (done.stdout.splitlines() or ["unknown"])[0]


def _commit() -> str:
    commit = _first_line("git", "rev-parse", "--short", "HEAD")
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


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _postfix() -> str:
    postconf = postfix_tool("postconf")
    return _first_line(postconf, "-d", "-h", "mail_version") if postconf else "unknown"


def _file_system(folder: str) -> str:
    return _first_line("stat", "--file-system", "--format=%T", folder)
