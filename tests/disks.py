"""Files for tests: a file system that fills up, one that is not that of the test's folder, and descriptors."""

import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(parent: Path, size: str = "256k") -> Iterator[Path]:
    """A file system of its own of ``size``, mounted below ``parent``; skips where mounting is not allowed."""
    folder = parent / "small-disk"
    folder.mkdir()
    mount(folder, size)
    try:
        yield folder
    finally:
        unmount(folder)


def mount(folder: Path, size: str = "256k") -> None:
    """Mounts a new and empty file system; skips where that is not allowed."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")


def unmount(folder: Path) -> None:
    """Takes the file system away, also while it is in use."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class FreezableDisk:
    """A file system that can be made to hang."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def frozen(self, *, for_seconds: float = 30.0) -> Iterator[None]:
        """While whoever writes to it waits, or for a time: the thread that would end it may be one that waits."""
        subprocess.run(["fsfreeze", "-f", str(self.folder)], check=True)
        timer = threading.Timer(for_seconds, self._thaw)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._thaw()

    def _thaw(self) -> None:
        subprocess.run(["fsfreeze", "-u", str(self.folder)], capture_output=True)


@contextmanager
def freezable_disk(parent: Path) -> Iterator[FreezableDisk]:
    """A file system of its own, mounted below ``parent``; skips where mounting is not allowed."""
    folder, image = parent / "freezable", parent / "image"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    commands = [["mkfs.ext4", "-q", "-m", "0", str(image)], ["mount", "-o", "loop", str(image), str(folder)]]
    for command in [["fsfreeze", "--version"], *commands]:
        try:
            subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"cannot mount a file system that can be frozen: {error}")
    try:
        yield FreezableDisk(folder)
    finally:
        unmount(folder)


@contextmanager
def bind_mount(folder: Path, parent: Path) -> Iterator[Path]:
    """``folder`` mounted a second time below ``parent``: the same device, but no link goes between them."""
    other = parent / "bound"
    other.mkdir()
    mounted = subprocess.run(["mount", "--bind", str(folder), str(other)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot bind-mount: {mounted.stderr.strip()}")
    try:
        yield other
    finally:
        subprocess.run(["umount", "--lazy", str(other)], check=True)


def open_files() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


@contextmanager
def no_descriptors() -> Iterator[None]:
    """While no file can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
