# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""A message that is being received: from the octets after DATA to content in memory or in a spill.

Knows where content is kept, what it costs the worker's budget, and why it has to be refused. Refuses to know
commands and what is answered.

Content is copied at most once: a message that came in one read is compacted where it lies and copied out; a larger
one has memory of its own, into which the next reads go; beyond the threshold that memory is written to the spill
and used again.
"""

import cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastsmtp._engine cimport *
from fastsmtp._rules cimport *
from fastsmtp.content cimport *
from fastsmtp.scan cimport scan_dots, scan_dots_scalar, scan_init, scan_strict, scan_strict_scalar

cdef extern from "Python.h":
    enum:
        PyBUF_READ

cdef enum:
    SPILL_WRITE = 256 * 1024    # once a message spills, it is written in pieces of this
    IN_PLACE = 16 * 1024        # a message with fewer octets is received in the worker's buffer, and copied
    LEAST_ROOM = 64 * 1024      # memory of its own has so much room at first, and grows when IN_PLACE is left
    LEAST_SPILL = 4096          # fewer octets are not worth a file
    BEGINNING = 1024            # octets of content that are shown when a spill is opened

KERNEL = (<bytes>scan_init()).decode()


cdef Reception receive(Engine engine, Rules rules, double now):
    """Begins to receive a message."""
    cdef Reception reception = Reception.__new__(Reception)
    reception.engine = engine
    reception.first_fault = rules.lenient
    reception.began = now
    content_begin(&reception.content, rules.newlines, rules.max_message_size, rules.max_line_length)
    return reception


@cython.final
@cython.freelist(64)
@cython.no_gc_clear     # its memory goes back to the engine, which must still be there
cdef class Reception:
    """One message, from its first octet to the end of its content.

    It holds no reference to its dialogue, which holds it: neither can be cleared by the garbage collector, so a cycle
    of the two would live for ever.
    """

    def __cinit__(self):
        self.memory.data = NULL
        self.rest = NULL

    def __dealloc__(self):
        free(self.rest)
        if self.memory.data != NULL:
            self.engine.give_memory(&self.memory)
        if self.held:
            self.engine.release(self.held)

    cdef char *room(self, object dialogue, size_t *size) except? NULL:
        """Where the next octets go: the message's own memory, or ``NULL`` while it has little or none."""
        cdef size_t room
        if self.memory.data == NULL or self.length < IN_PLACE:
            return NULL
        room = self.memory.capacity - self.length
        if room < IN_PLACE:
            self.busy = True
            grown = self.engine.grow_memory(&self.memory, self.length + LEAST_ROOM)
            self.busy = False
            if not grown:
                self.relieve(dialogue)
                return NULL
            room = self.memory.capacity - self.length
        size[0] = min(room, <size_t>RECEIVE_CONTENT)
        return self.place()

    cdef char *place(self) noexcept:
        """Where in the message's own memory the next octet of content lies."""
        return self.memory.data + self.length

    cdef bint ended(self) noexcept:
        return self.content.state == CONTENT_END

    cdef size_t take(self, object dialogue, char *p, size_t n) except? 0:
        """Takes octets: in place where they came into the message's memory, or were compacted in the worker's
        buffer; copied where they lie elsewhere. Returns how many were taken; what follows the content in the
        message's own memory is in ``rest`` and counts as taken. ``dialogue`` is whose message it is: a spill is opened
        for it, and it hears of one that fails.
        """
        cdef size_t taken
        self.busy = True
        taken = self._take(dialogue, p, n)
        self.busy = False
        if self.content.too_big:
            self.drop()
        else:
            self._spill_if_due(dialogue)
        return taken

    cdef size_t _take(self, object dialogue, char *p, size_t n) except? 0:
        cdef content *c = &self.content
        cdef size_t taken, stored = 0
        cdef bint in_place = self.memory.data != NULL and p == self.place()
        if self._is_lost() or c.too_big:
            taken = content_feed(c, <uint8_t *>p, n, NULL, 0, 0, &stored)
        else:
            taken = content_feed(c, <uint8_t *>p, n, <uint8_t *>p, 0, 1, &stored)
            if in_place:
                self.length += stored
            elif (self.ended() and self.memory.data == NULL and self.spill is None and not c.too_big
                    and not self._too_large(stored)):
                # The ordinary message: whole in one read, copied once.
                if self.engine.obtain(stored):
                    self.held = stored
                    self.small = PyBytes_FromStringAndSize(p, stored)
                else:
                    self._lose(False)
                return taken
            else:
                self._store(dialogue, p, stored)
        if taken < n and not self.ended():
            taken += self._take_copy(dialogue, p + taken, n - taken)
        elif taken < n and in_place:
            # The memory goes away, below or with the message; what follows must not.
            self._save_rest(p + taken, n - taken)
            taken = n
        return taken

    cdef size_t _take_copy(self, object dialogue, const char *p, size_t n) except? 0:
        """Takes content that grows: every stray CR or LF by an octet."""
        cdef content *c = &self.content
        cdef size_t taken, stored = 0
        cdef char *copy = NULL
        if self.memory.data != NULL and self.memory.data <= p < self.memory.data + self.memory.capacity:
            copy = <char *>malloc(n)
            if copy == NULL:
                raise MemoryError()
            memcpy(copy, p, n)
            p = copy
        try:
            if not self._is_lost() and not self._room(2 * n + 16):
                self.relieve(dialogue)
                if not self._is_lost() and not self._room(2 * n + 16):
                    self._lose(False)
            if self._is_lost():
                taken = content_feed(c, <const uint8_t *>p, n, NULL, 0, 0, &stored)
            else:
                taken = content_feed(c, <const uint8_t *>p, n, <uint8_t *>self.place(), 2 * n + 16, 0, &stored)
                self.length += stored
            if copy != NULL and taken < n:
                # What follows the content was overwritten where it lay, or its memory is given away.
                self._save_rest(p + taken, n - taken)
                return n
            return taken
        finally:
            free(copy)

    cdef int _save_rest(self, const char *p, size_t n) except -1:
        self.rest = <char *>malloc(n)
        if self.rest == NULL:
            raise MemoryError()
        memcpy(self.rest, p, n)
        self.rest_length = n
        return 0

    cdef int _store(self, object dialogue, const char *p, size_t n) except -1:
        if n == 0 or self._is_lost():
            return 0
        if self._room(n):
            memcpy(self.place(), p, n)
            self.length += n
        elif not self.may_spill(n):
            self._lose(False)
        else:
            # The budget is used up by messages that handlers have: this one goes to its spill as it comes.
            if self.length < LEAST_SPILL and self.spill is None:
                whole = self.memory.data[:self.length] + p[:n]  # a spill is opened with enough of the beginning
                self.length = 0
                self._spill(dialogue, whole, len(whole))
            else:
                self._spill_memory(dialogue)
                self._spill(dialogue, p, n)
            self.engine.give_memory(&self.memory)
        return 0

    cdef bint _room(self, size_t n) except -1:
        """Makes room for n octets behind what is there."""
        if self.memory.data == NULL:
            self.length = 0
            # The next read goes there, too, if the message is not a small one.
            return self.engine.take_memory(&self.memory, n if n < IN_PLACE else n + LEAST_ROOM)
        return self.engine.grow_memory(&self.memory, self.length + n)

    cdef bint _is_lost(self) noexcept:
        return self.no_room or self.no_memory

    cdef bint _too_large(self, size_t n) noexcept:
        """Whether n octets are too many to stay in memory."""
        cdef uint64_t threshold = self.engine.spill_threshold
        if self.spill is not None:
            threshold = min(threshold, <uint64_t>SPILL_WRITE)
        return n > threshold and self.engine.open_spill is not None

    cdef int _spill_if_due(self, object dialogue) except -1:
        if not self._is_lost() and self.memory.data != NULL and self._too_large(self.length):
            self._spill_memory(dialogue)
        return 0

    cdef int _spill_memory(self, object dialogue) except -1:
        if self.length:
            self._spill(dialogue, self.memory.data, self.length)
        self.length = 0
        return 0

    cdef int _spill(self, object dialogue, const char *p, size_t n) except -1:
        cdef Counters counters = self.engine.counters
        if self._is_lost():
            return 0
        try:
            if self.spill is None:
                beginning = p[:min(n, <size_t>BEGINNING)]
                self.spill = self.engine.open_spill(dialogue, beginning)
                counters.bump(SPILLED_MESSAGES, 1)
            view = PyMemoryView_FromMemory(<char *>p, n, PyBUF_READ)
            self.spill.write(view)
            view.release()
        except Exception as error:
            self._lose(True)
            dialogue.failed(error)
            return 0
        counters.bump(SPILLED_BYTES, n)
        return 0

    cdef int refusal(self, object dialogue) except -1:
        """At the end: the reply that refuses the content, or 0. What is still in memory of a spill is written."""
        cdef content *c = &self.content
        if self.spill is not None and not c.too_big:
            self._spill_memory(dialogue)
        if c.too_big and not (self.first_fault and c.long_line):
            return REPLY_TOO_BIG
        if c.newlines == NEWLINES_REJECT and (c.bare_cr or c.bare_lf):
            return REPLY_CONTENT_NEWLINE
        if c.long_line:
            return REPLY_CONTENT_LINE
        if self.no_room:
            return REPLY_NO_ROOM
        if self.no_memory:
            return REPLY_NO_MEMORY
        return 0

    cdef object message(self):
        """Hands the content over, once: ``bytes``, a ``Block`` or the spill."""
        cdef Block block
        if self.spill is not None:
            message, self.spill = self.spill, None
            if self.memory.data != NULL:
                self.engine.give_memory(&self.memory)
            return message
        if self.memory.data != NULL:
            block = Block.__new__(Block)
            block.engine = self.engine
            block.memory = self.memory
            block.length = self.length
            self.memory.data = NULL
            return block
        message, self.small = self.small, None
        return message

    cdef int drop(self) except -1:
        """Lets go of all content."""
        self.small = None
        if self.held:
            self.engine.release(self.held)
            self.held = 0
        if self.memory.data != NULL:
            self.engine.give_memory(&self.memory)
        self.length = 0
        if self.spill is not None:
            spill, self.spill = self.spill, None
            spill.close()
        return 0

    cdef int _lose(self, bint storage) except -1:
        """There is no storage or no memory for the content: it is followed to its end and refused there."""
        self.no_room = storage
        self.no_memory = not storage
        return self.drop()

    cdef bint may_spill(self, size_t more) noexcept:
        """Whether the content, with so many octets more, is worth a file, or has one."""
        return self.engine.open_spill is not None and (self.spill is not None or self.length + more >= LEAST_SPILL)

    cdef int relieve(self, object dialogue) except -1:
        """Gives memory back before the message is whole: its content goes to a spill, or is lost."""
        if not self.may_spill(0):
            return self._lose(False)
        self._spill_memory(dialogue)
        if not self._is_lost():
            self.engine.give_memory(&self.memory)
        return 0


# --- the kernels, for the tests -----------------------------------------------------------------------------

def scan(bytes octets not None, *, bint dots=False, bint scalar=False):
    """The first event of ``scan.h`` in ``octets``, by the kernel in use or by its scalar twin."""
    cdef size_t n = len(octets)
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(octets)
    if dots:
        return scan_dots_scalar(p, n) if scalar else scan_dots(p, n)
    return scan_strict_scalar(p, n) if scalar else scan_strict(p, n)
