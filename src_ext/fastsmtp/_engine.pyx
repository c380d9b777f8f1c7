# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What all dialogues of one worker share: counters, memory and a coarse clock.

Knows how much memory messages hold and which dialogues are alive. Refuses to know the rules of the dialogue,
sockets, files and event loops.
"""

import cython

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo, PyObject_GetBuffer, PyBuffer_Release
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from fastsmtp._rules cimport Rules


cdef extern from "Python.h":
    enum:
        PyBUF_WRITE


# --- counters -----------------------------------------------------------------------------------------------

VERBS = ("HELO", "EHLO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT", "VRFY", "HELP", "STARTTLS",
         "AUTH", "EXPN", "LHLO", "not_implemented", "foreign", "unknown")
CODES = (211, 214, 220, 221, 235, 250, 251, 252, 334, 354,
         421, 430, 432, 450, 451, 452, 453, 454, 455,
         500, 501, 502, 503, 504, 521, 523, 524, 530, 534, 535, 538, 550, 551, 552, 553, 554, 555, 556)
STAGES = ("connect", "helo", "ehlo", "mail", "rcpt", "data", "rset", "noop", "quit", "vrfy",
          "auth", "command", "disconnect")
SIZE_BOUNDS = (1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7, 3e7, 1e8)
SECONDS_BOUNDS = (.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1., 2.5, 5., 10., 30., 60., 120.)


def _layout():
    none = ("",)
    offset = 0
    for name, kind, label, values, bounds in (
        ("fastsmtp_connections_total", "counter", None, none, ()),
        ("fastsmtp_connections_active", "gauge", None, none, ()),
        ("fastsmtp_connections_rejected_total", "counter", "reason", ("handler", "drain", "tls"), ()),
        ("fastsmtp_commands_total", "counter", "verb", VERBS, ()),
        ("fastsmtp_replies_total", "counter", "code", (*map(str, CODES), "other"), ()),
        ("fastsmtp_messages_total", "counter", "result", ("accepted", "rejected", "deferred", "aborted"), ()),
        ("fastsmtp_recipients_total", "counter", "result", ("accepted", "rejected", "deferred"), ()),
        ("fastsmtp_received_bytes_total", "counter", None, none, ()),
        ("fastsmtp_spilled_messages_total", "counter", None, none, ()),
        ("fastsmtp_spilled_bytes_total", "counter", None, none, ()),
        ("fastsmtp_buffered_bytes", "gauge", None, none, ()),
        ("fastsmtp_tls_handshakes_total", "counter", "result", ("ok", "failed"), ()),
        ("fastsmtp_protocol_violations_total", "counter", "kind",
         ("line_too_long", "bare_newline_command", "bare_newline_content", "bad_octets", "foreign_protocol",
          "starttls_injection", "too_many_errors", "too_much_junk"), ()),
        ("fastsmtp_timeouts_total", "counter", "state",
         ("command", "data", "transaction", "handler", "data_rate"), ()),
        ("fastsmtp_handler_errors_total", "counter", "stage", STAGES, ()),
        ("fastsmtp_heartbeat_seconds", "gauge", None, none, ()),
        ("fastsmtp_message_size_bytes", "histogram", None, none, SIZE_BOUNDS),
        ("fastsmtp_data_read_seconds", "histogram", None, none, SECONDS_BOUNDS),
        ("fastsmtp_handler_seconds", "histogram", "stage", STAGES, SECONDS_BOUNDS),
    ):
        yield name, kind, label, values, bounds, offset
        offset += len(values) * (len(bounds) + 2 if bounds else 1)
    assert offset == WORDS, offset


LAYOUT = tuple(_layout())
SLOT_WORDS = WORDS
SLOT_BYTES = (WORDS * 8 + 127) // 128 * 128    # whole pairs of cache lines

_OFFSETS = {name: offset for name, _, _, _, _, offset in LAYOUT}
assert _OFFSETS["fastsmtp_commands_total"] == COMMANDS
assert _OFFSETS["fastsmtp_replies_total"] == REPLIES
assert _OFFSETS["fastsmtp_messages_total"] == MESSAGES
assert _OFFSETS["fastsmtp_received_bytes_total"] == RECEIVED_BYTES
assert _OFFSETS["fastsmtp_protocol_violations_total"] == VIOLATIONS
assert _OFFSETS["fastsmtp_timeouts_total"] == TIMEOUTS
assert _OFFSETS["fastsmtp_message_size_bytes"] == MESSAGE_SIZE
assert _OFFSETS["fastsmtp_handler_seconds"] == HANDLER_TIME


def index(str name, str value=""):
    """The word of a counter or gauge, or the first word of a histogram, in a slot.

    Raises ``KeyError`` for a name or value that is not in ``LAYOUT``.
    """
    for family, _, _, values, bounds, offset in LAYOUT:
        if family == name and value in values:
            return offset + values.index(value) * (len(bounds) + 2 if bounds else 1)
    raise KeyError(f"{name}{{{value}}}")


cdef uint8_t _code_words[600]
memset(_code_words, len(CODES), sizeof(_code_words))
for _position, _code in enumerate(CODES):
    _code_words[<int>_code] = _position

cdef double _size_bounds[11]
cdef double _seconds_bounds[16]
for _position, _bound in enumerate(SIZE_BOUNDS):
    _size_bounds[<int>_position] = _bound
for _position, _bound in enumerate(SECONDS_BOUNDS):
    _seconds_bounds[<int>_position] = _bound


cdef int word_of_code(int code) noexcept:
    return REPLIES + _code_words[code if 0 <= code < 600 else 0]


cdef int result_of(int code) noexcept:
    return RESULT_ACCEPTED if code < 400 else RESULT_DEFERRED if code < 500 else RESULT_REJECTED


@cython.final
cdef class Counters:
    """One worker's slot of the shared block: plain stores by its only writer, about 1 ns each.

    ``buffer`` is writable and has ``SLOT_BYTES``; gauges in it begin at zero again, counters go on.
    """

    def __init__(self, buffer not None):
        PyObject_GetBuffer(buffer, &self.buffer, PyBUF_WRITABLE)    # held to the end, so the memory stays
        if self.buffer.len < SLOT_BYTES or <size_t>self.buffer.buf % sizeof(uint64_t):
            raise ValueError(f"a counter slot is {SLOT_BYTES} writable bytes, aligned to 8")
        self.words = <uint64_t *>self.buffer.buf
        self.words[CONNECTIONS_ACTIVE] = self.words[BUFFERED_BYTES] = self.words[HEARTBEAT] = 0

    def __dealloc__(self):
        PyBuffer_Release(&self.buffer)

    cdef void bump(self, int word, uint64_t n) noexcept:
        self.words[word] += n

    cdef void drop(self, int word, uint64_t n) noexcept:
        self.words[word] -= n

    cdef void measure(self, int histogram, double value) noexcept:
        cdef double *bounds = _seconds_bounds
        cdef int buckets = 16, bucket = 0
        cdef double unit = 1e9
        if histogram == MESSAGE_SIZE:
            bounds = _size_bounds
            buckets = 11
            unit = 1
        while bucket < buckets and value > bounds[bucket]:
            bucket += 1
        self.words[histogram + bucket] += 1
        self.words[histogram + buckets + 1] += <uint64_t>(value * unit)

    def add(self, int index, uint64_t n=1):
        """Adds to the counter at ``index``."""
        self._check(index)
        self.words[index] += n

    def set(self, int index, uint64_t value):
        """Sets the gauge at ``index``."""
        self._check(index)
        self.words[index] = value

    def observe(self, int index, double value):
        """Counts ``value`` (bytes or seconds) in the histogram that begins at ``index``."""
        self._check(index)
        self.measure(index, value)

    def get(self, int index):
        """The word at ``index``."""
        self._check(index)
        return self.words[index]

    cdef int _check(self, int index) except -1:
        if not 0 <= index < WORDS:
            raise IndexError(f"a slot has {WORDS} words")
        return 0


# --- memory -------------------------------------------------------------------------------------------------

cdef enum:
    LEAST_CAPACITY = 4096       # of a message's first memory: a client that sends one octet holds no more
    WARM = 64 * 1024            # memory of this capacity is kept and used again
    MUCH_MEMORY = 32 * 1024 * 1024      # beyond this memory goes back to the system when a flood is over
    SPARES = 64                 # what lies unused for a tick goes back, so this is for bursts


@cython.final
@cython.no_gc_clear     # its memory goes back to the engine, which must still be there
cdef class Block:
    """Content held in memory, as a read-only buffer; its memory goes back to the engine that lent it."""

    def __cinit__(self):
        self.memory.data = NULL

    def __dealloc__(self):
        if self.memory.data != NULL:
            self.engine.give_memory(&self.memory)

    def __len__(self):
        return self.length

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.memory.data, self.length, 1, flags)

    def __releasebuffer__(self, Py_buffer *buffer):
        pass


# Seconds without another look for memory after one that found none.
cdef double RELIEF_PAUSE = 0.05


# --- the engine ---------------------------------------------------------------------------------------------

@cython.final
@cython.no_gc_clear     # dialogues and blocks that die in the same collection give their memory back
cdef class Engine:
    """What all dialogues of one worker share. Sizes are in octets.

    ``rules`` hold for each dialogue until it is given others. ``open_spill(dialogue, beginning)`` gives an
    object with ``write(memoryview)`` and ``close()`` for content beyond ``spill_threshold``; without it all content
    stays in memory. ``beginning`` is the first of the content, 1 to 1,024 octets. ``now`` is a coarse clock in
    seconds, moved by ``tick``.
    """

    def __init__(self, *, Rules rules not None, Counters counters=None, open_spill=None,
                 uint64_t spill_threshold=1 << 20, uint64_t memory_budget=256 << 20):
        self.rules = rules
        self.counters = counters if counters is not None else Counters(bytearray(SLOT_BYTES))
        self.live = set()
        self.unanswered = set()
        self.open_spill = open_spill
        self.spill_threshold = spill_threshold
        self.memory_budget = memory_budget
        self.receive = <char *>malloc(HEADROOM + RECEIVE_CONTENT)
        if self.receive == NULL:
            raise MemoryError()
        self.commands_view = PyMemoryView_FromMemory(self.receive + HEADROOM, RECEIVE_COMMANDS, PyBUF_WRITE)
        self.content_view = PyMemoryView_FromMemory(self.receive + HEADROOM, RECEIVE_CONTENT, PyBUF_WRITE)

    def __dealloc__(self):
        free(self.receive)
        while self.spares > 0:
            self.spares -= 1
            free(self.spare[self.spares].data)

    def tick(self, double now):
        """Moves the clock to ``now``; returns the ``(dialogue, state)`` whose time is over."""
        self.before = self.now
        self.now = now
        self.counters.words[HEARTBEAT] = <uint64_t>(now * 1e9)
        # What lay unused for a whole tick goes back to the system.
        cdef int unused = min(self.spares_unused, self.spares)
        for _ in range(unused):
            self.spares -= 1
            self.spare_octets -= self.spare[self.spares].capacity
            free(self.spare[self.spares].data)
        self.spares_unused = self.spares
        if self.most_held > MUCH_MEMORY and self.held + self.spare_octets < self.most_held // 4:
            # After a flood of messages: the allocator keeps their pages for this process, unless it is asked.
            self.most_held = self.held
            trim_memory()
        expired = []
        for dialogues in (self.live, self.unanswered):
            for dialogue in dialogues:
                state = dialogue.overdue()
                if state is not None:
                    expired.append((dialogue, state))
        return expired

    # Memory that messages in flight hold counts against the budget until the message is gone.

    cdef bint hold(self, uint64_t octets) noexcept:
        if self.held + octets > self.memory_budget:
            return False
        self.held += octets
        if self.held > self.most_held:
            self.most_held = self.held
        self.counters.words[BUFFERED_BYTES] = self.held
        return True

    cdef void release(self, uint64_t octets) noexcept:
        self.held -= octets
        self.counters.words[BUFFERED_BYTES] = self.held

    cdef bint obtain(self, uint64_t octets) except -1:
        """Holds ``octets``; if the budget is used up, after others gave memory back. Returns whether it could."""
        if self.hold(octets):
            return True
        self._relieve(octets)
        return self.hold(octets)

    cdef int _relieve(self, uint64_t octets) except -1:
        """Has the slowest and emptiest of the messages that are being received give their memory back, until there is
        room for ``octets``. Those that can go to a file make some more room; those that are too small for one end their
        connections, only as many as needed.
        """
        cdef uint64_t enough = min(self.memory_budget, octets + self.memory_budget // 8)
        if self.relieving or octets > self.memory_budget or monotonic() - self.relieved_in_vain < RELIEF_PAUSE:
            return 0
        self.relieving = True   # a spill that fails says so to a dialogue, which must not come back here
        try:
            slowest = sorted([(rate, id(dialogue), dialogue) for dialogue in self.live
                              if (rate := dialogue.data_rate()) is not None])
            for _, _, dialogue in slowest:
                if self.held + enough <= self.memory_budget:
                    break
                dialogue.relieve(False)
            for _, _, dialogue in slowest:
                if self.held + octets <= self.memory_budget:
                    break
                dialogue.relieve(True)
        finally:
            self.relieving = False
        if self.held + octets > self.memory_budget:
            self.relieved_in_vain = monotonic()     # handlers have it: a look at all messages is no use for a while
        return 0

    # Memory goes round: fresh pages cost more (0.25 us each, 64 to 128 us a MB) than all else about a large
    # message. realloc moves pages, not octets, at these sizes (mremap).

    cdef bint take_memory(self, Memory *memory, size_t capacity) except -1:
        """Memory of at least ``capacity``: warm, if it is to be large."""
        cdef size_t wanted = max(capacity, <size_t>LEAST_CAPACITY)
        memory.data = NULL
        if (self.spares > 0 and capacity >= WARM and self.spare[self.spares - 1].capacity >= capacity
                and self.hold(self.spare[self.spares - 1].capacity)):
            self.spares -= 1
            self.spares_unused = min(self.spares_unused, self.spares)
            memory[0] = self.spare[self.spares]
            self.spare_octets -= memory.capacity
            return True
        if not self.obtain(wanted):
            return False
        memory.data = <char *>malloc(wanted)
        if memory.data == NULL:
            self.release(wanted)
            return False
        memory.capacity = wanted
        return True

    cdef bint grow_memory(self, Memory *memory, size_t capacity) except -1:
        """Memory of at least ``capacity``, and twice as large as before, so that octets are copied a few times only."""
        cdef size_t wanted
        cdef char *data
        cdef Memory warm
        if memory.capacity >= capacity:
            return True
        wanted = max(capacity, min(memory.capacity * 2, <size_t>self.spill_threshold + RECEIVE_CONTENT))
        if (memory.capacity < WARM <= wanted and self.spares > 0 and self.spare[self.spares - 1].capacity >= wanted
                and self.held + self.spare[self.spares - 1].capacity <= self.memory_budget):
            self.take_memory(&warm, wanted)
            memcpy(warm.data, memory.data, memory.capacity)
            self.give_memory(memory)
            memory[0] = warm
            return True
        if not self.obtain(wanted - memory.capacity):
            return False
        data = <char *>realloc(memory.data, wanted)
        if data == NULL:
            self.release(wanted - memory.capacity)
            return False
        memory.data = data
        memory.capacity = wanted
        return True

    cdef void give_memory(self, Memory *memory) noexcept:
        if memory.data == NULL:
            return
        self.release(memory.capacity)
        if (self.spares < SPARES and WARM <= memory.capacity <= self.spill_threshold + RECEIVE_CONTENT
                and self.spare_octets + memory.capacity <= self.memory_budget // 4):
            self.spare[self.spares] = memory[0]
            self.spares += 1
            self.spare_octets += memory.capacity
        else:
            free(memory.data)
        memory.data = NULL
