"""Commit: threads that make deliveries safe, many with each wait for the disk.

Knows batches, and how one sync serves everybody who came before it began. Refuses to know what a delivery is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from fastsmtp.body import sync_folder

T = TypeVar("T")


class Lane(Generic[T]):
    """A queue and the threads that work it off. Each takes all that waits, up to ``batch`` items, in one go.

    So the batches grow by themselves with the load: what comes during one commit shares the next.
    """

    def __init__(self, name: str, commit: Callable[[list[T]], list[T]], *, threads: int, batch: int) -> None:
        """``commit`` returns the items that it has not finished; they go behind those that wait. It must not raise."""
        self._commit = commit
        self._batch = batch
        self._queue: SimpleQueue[T | None] = SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        # Daemons: a disk that hangs must not keep a worker that was told to end now.
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, item: T) -> None:
        """Hands an item to the threads; never waits."""
        self._queue.put(item)

    def close(self) -> None:
        """Waits until everything that was put is committed."""
        with self._closing:
            self._closed = True
            for _ in self._threads:
                self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            batch = [item]
            while len(batch) < self._batch and self._queue.qsize():
                item = self._queue.get()
                if item is None:
                    self._queue.put(None)  # the end is the last in the queue
                    break
                batch.append(item)
            while (batch := self._commit(batch)) and not self._put_back(batch):
                pass
            del item, batch  # an idle thread must not keep the bodies of the last batch

    def _put_back(self, items: list[T]) -> bool:
        with self._closing:
            if self._closed:  # behind the end nobody would find them
                return False
            for item in items:
                self._queue.put(item)
            return True


class FolderSync:
    """Syncs folders for many threads: those who come while a sync runs share the next one (group commit)."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._running: set[bytes] = set()
        self._next: dict[bytes, _Turn] = {}

    def sync(self, path: bytes) -> None:
        """Returns when the entries that the folder had when it was called are on the disk. Raises OSError."""
        with self._condition:
            # A sync that runs may have begun before the caller's entries were made: only the next one counts.
            turn = self._next.setdefault(path, _Turn())
            while path in self._running and not turn.done:
                self._condition.wait()
            leads = not turn.done
            if leads:
                del self._next[path]
                self._running.add(path)
        if leads:
            try:
                sync_folder(path)
            except OSError as error:
                turn.failure = error.errno
            with self._condition:
                turn.done = True
                self._running.discard(path)
                self._condition.notify_all()
        if turn.failure:
            raise OSError(turn.failure, os.strerror(turn.failure), path)


class _Turn:
    __slots__ = ("done", "failure")

    def __init__(self) -> None:
        self.done = False
        self.failure: int | None = None  # errno
