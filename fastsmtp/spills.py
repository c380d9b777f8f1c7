"""Spills of one event loop: the loop writes them while the disk is quick, threads do while it is slow or hangs.

Knows how long writes take, how much may wait for the disk, and that a client whose content waits is not read from. The
first write that hangs stops the loop; those that come after it do not. Knows nothing of messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastsmtp._wire import HELD_BY_DISK
from fastsmtp.body import Body, Spill

if TYPE_CHECKING:
    from fastsmtp._core import Dialogue

# To write 256 KiB into the page cache takes 0.1 ms; a disk that cannot follow makes a writer wait up to 200 ms.
_SLOW = 0.02
_SLOW_FOR = 10.0
_THREADS = 4  # one disk: more of them would wait for it no less
_MOST_WAITING = 64 << 20  # octets that wait for a slow disk, beyond the memory budget


class Spills:
    """Opens spills in ``directory``."""

    def __init__(self, directory: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.directory = directory
        self.loop = loop
        self.quick = True
        self._slow_until = 0.0
        self._waiting = 0
        self._lock = threading.Lock()
        self._works: deque[Callable[[], object]] = deque()  # for the threads
        self._threads = 0

    def open(self, dialogue: Dialogue, head: bytes = b"") -> Spilling:
        """A spill that begins with ``head``, for content that ``dialogue`` receives. Raises OSError."""
        spilling = Spilling(self, dialogue, head)
        if self.quick:
            began = time.monotonic()
            spilling.open()
            self.look(began)
        return spilling

    def look(self, began: float) -> None:
        """Whether the disk is quick, after a call that took since ``began``."""
        now = time.monotonic()
        if now - began > _SLOW:
            self.quick = False
            self._slow_until = now + _SLOW_FOR
        elif now >= self._slow_until:
            self.quick = True

    def wait(self, octets: int) -> None:
        """Counts octets that wait for the disk. Raises OSError if there are too many."""
        if self._waiting + octets > _MOST_WAITING:
            raise OSError(
                errno.EBUSY, f"{_MOST_WAITING >> 20} MiB wait for the disk already", str(self.directory)
            )
        self._waiting += octets

    def written(self, octets: int) -> None:
        """They wait no more."""
        self._waiting -= octets

    def in_thread(self, work: Callable[[], object]) -> None:
        """Has a thread call ``work``, which must not raise. Raises RuntimeError if no thread can be started."""
        with self._lock:
            self._works.append(work)
            if self._threads == _THREADS:
                return
            self._threads += 1
        try:
            # Daemons: a disk that hangs must not keep a worker whose end is due.
            threading.Thread(target=self._work_off, name="fastsmtp-spill", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._threads -= 1
                # Another thread takes all works before it ends.
                if self._threads == 0 and work in self._works:
                    self._works.remove(work)
                    raise

    def _work_off(self) -> None:
        while True:
            with self._lock:
                if not self._works:
                    self._threads -= 1
                    return
                work = self._works.popleft()
            work()
            del work  # the next may hang, and must not keep this one's file


class Spilling:
    """A spill that is being written. All but ``_write_all`` is for the loop's thread."""

    __slots__ = (
        "_closed",
        "_dialogue",
        "_head",
        "_octets",
        "_pieces",
        "_spill",
        "_spills",
        "_then",
        "busy",
        "error",
    )

    def __init__(self, spills: Spills, dialogue: Dialogue, head: bytes) -> None:
        self._spills = spills
        self._dialogue: Dialogue | None = dialogue
        self._head = head
        self._spill: Spill | None = None
        self._pieces: deque[bytes] = deque()
        self._octets = 0
        self._then: Callable[[], object] | None = None
        self._closed = False
        self.busy = False
        """Whether a thread writes to it."""
        self.error: Exception | None = None
        """Why a thread could not."""

    def open(self) -> Spill:
        if self._spill is None:
            self._spill = Spill(self._spills.directory, self._head)
        return self._spill

    def write(self, data: memoryview) -> None:
        """Appends all of ``data``, now or later. Raises OSError, or RuntimeError if no thread can be started."""
        if self.error is not None:
            raise self.error
        if self._spills.quick and not self.busy:
            began = time.monotonic()
            self.open().write(data)
            self._spills.look(began)
            return
        self._spills.wait(data.nbytes)
        self._octets += data.nbytes
        self._pieces.append(bytes(data))
        if not self.busy:
            assert self._dialogue is not None
            try:
                self._spills.in_thread(self._write_all)
            except RuntimeError as error:
                self.error = error
                self._let_go()
                raise
            self._dialogue.hold_back(HELD_BY_DISK)
            self.busy = True

    def when_written(self, then: Callable[[], object]) -> None:
        """Calls ``then`` once no thread writes to it any more."""
        self._then = then

    def body(self) -> Body:
        """The body that was written. It owns the file from now on."""
        self._dialogue = None
        return self.open().body()

    def close(self) -> None:
        """Forgets what was written, unless body() took it. May be called twice."""
        self._dialogue = None
        self._closed = True
        spill = self._spill
        if spill is not None and not self.busy:
            if self._spills.quick:
                spill.close()
            else:
                try:
                    self._spills.in_thread(spill.close)
                except RuntimeError:
                    spill.close()

    def _write_all(self) -> None:
        try:
            while self._pieces and not self._closed:
                began = time.monotonic()
                self.open().write(memoryview(self._pieces[0]))
                self._spills.look(began)
                self._pieces.popleft()
        except Exception as error:
            self.error = error
        with contextlib.suppress(RuntimeError):  # the loop was closed over us: nobody waits any more
            self._spills.loop.call_soon_threadsafe(self._written)

    def _let_go(self) -> None:
        """No thread writes to it, and nothing waits for one."""
        self._pieces.clear()
        self._spills.written(self._octets)
        self._octets = 0
        self.busy = False

    def _written(self) -> None:
        if self._pieces and self.error is None and not self._closed:
            try:
                self._spills.in_thread(self._write_all)
                return
            except RuntimeError as error:
                self.error = error
        self._let_go()
        dialogue, then = self._dialogue, self._then
        self._then = None
        if self._closed:
            self.close()
        if dialogue is not None:
            dialogue.go_on(HELD_BY_DISK)
        if then is not None:
            then()
