"""The block: the counters of all processes, in memory that they share.

The memory is a header, which the supervisor writes, and behind it slots of counters, which the workers write. The
compiled core decides what is counted, and ``metrics`` reads it.

Why not the multi-process mode of ``prometheus_client``: it costs 0.9 to 1.9 us an event and leaves a file for
each process that ever lived. A store into the block costs about 1 ns, and a message makes 10 to 20 events.
"""

import mmap
import time

from fastsmtp._engine import SLOT_BYTES, SLOT_WORDS, index

# A worker's event loop sets this word at least once a second, to nanoseconds of the monotonic clock. 0: no loop runs.
HEARTBEAT = index("fastsmtp_heartbeat_seconds")
# A worker whose heartbeat is older than so many seconds does not count for ``/healthz``.
HEALTHY = 10.0

_WORD = 8
_LINE = 128  # two cache lines: some processors fetch them in pairs
_RESTARTS, _STOPPING, _FIRST_UP = 0, 1, 2  # words of the header


class Block:
    """The memory that the supervisor, its workers and the exporter share: made before the first fork.

    A worker index has two slots, ``index`` and ``index + workers``, because in a roll the old process and its
    replacement overlap. Only the worker that holds a slot writes it, and the next worker on it counts on: the
    counts of a dead worker stay. Gauges of a slot that is not up do not count. Only the process that starts
    the workers writes the header.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError("a block is for one worker or more")
        self.workers = workers
        self.slots = 2 * workers
        self._offset = -(-(_FIRST_UP + self.slots) * _WORD // _LINE) * _LINE
        # Anonymous and MAP_SHARED: children inherit it, no file is left by any kind of death.
        self._memory = memoryview(mmap.mmap(-1, self._offset + self.slots * SLOT_BYTES))
        self._header = self._memory[: self._offset].cast("Q")
        self._up = self._header[_FIRST_UP : _FIRST_UP + self.slots]

    def slot(self, index: int) -> memoryview:
        """The ``SLOT_BYTES`` of slot ``index``, writable, for ``_engine.Counters``."""
        if not 0 <= index < self.slots:
            raise IndexError(f"the block has {self.slots} slots")
        start = self._offset + index * SLOT_BYTES
        return self._memory[start : start + SLOT_BYTES]

    def words(self, index: int) -> list[int]:
        """The words of slot ``index``, each read whole: ``tolist`` loads word by word, as a copy need not."""
        return self.slot(index).cast("Q").tolist()[:SLOT_WORDS]

    def note_up(self, index: int) -> None:
        """The worker on slot ``index`` takes connections."""
        self._up[index] = time.monotonic_ns()

    def note_down(self, index: int) -> None:
        """The worker on slot ``index`` is gone."""
        self._up[index] = 0

    def note_restart(self) -> None:
        """A worker was started in place of one that died."""
        self._header[_RESTARTS] += 1

    def is_up(self, index: int) -> bool:
        """Whether a worker on slot ``index`` takes connections."""
        return self._up[index] != 0

    def up_since(self) -> list[int]:
        """When the worker on each slot began to take connections: nanoseconds of the monotonic clock; 0: it is down."""
        return self._up.tolist()

    def silence(self, index: int) -> float:
        """Seconds since the event loop of the worker on slot ``index`` last turned; 0.0 if no loop runs there."""
        beat = self._beat(index)
        return max(0, time.monotonic_ns() - max(beat, self._up[index])) / 1e9 if beat else 0.0

    def note_stopping(self) -> None:
        """The server ends: workers that are up finish what they have, and take nothing new."""
        self._header[_STOPPING] = 1

    @property
    def accepts(self) -> bool:
        """Whether at least one worker takes connections, and its event loop turns."""
        if self._header[_STOPPING]:
            return False
        oldest = time.monotonic_ns() - int(HEALTHY * 1e9)
        return any(up and max(up, self._beat(index)) > oldest for index, up in enumerate(self._up))

    def _beat(self, index: int) -> int:
        return self.slot(index).cast("Q")[HEARTBEAT]

    @property
    def restarts(self) -> int:
        """How many workers were started in place of one that died."""
        return self._header[_RESTARTS]
