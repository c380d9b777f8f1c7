"""A message that is being received, as the dialogue sees it."""

from libc.stdint cimport uint8_t, uint64_t

from fastsmtp._engine cimport Engine, Memory
from fastsmtp._rules cimport Rules
from fastsmtp.content cimport content


cdef class Reception:
    cdef Engine engine
    cdef content content
    cdef double began           # monotonic seconds
    # where the content is: the whole of it in `small`, or its end in memory and the rest in a spill
    cdef bytes small
    cdef uint64_t held          # octets of `small` that count against the budget
    cdef Memory memory
    cdef size_t length          # octets of content in memory
    cdef object spill
    cdef bint no_room           # the spill failed: a full disk, as a rule
    cdef bint no_memory
    cdef bint busy              # its memory is in use: not now to be given back
    cdef bint first_fault       # of a long line and too many octets, what came first counts
    # octets behind the content, saved from memory that is no more its own
    cdef char *rest
    cdef size_t rest_length

    cdef char *room(self, object dialogue, size_t *size) except? NULL
    cdef char *place(self) noexcept
    cdef bint ended(self) noexcept
    cdef size_t take(self, object dialogue, char *p, size_t n) except? 0
    cdef int refusal(self, object dialogue) except -1
    cdef object message(self)
    cdef int drop(self) except -1

    cdef size_t _take(self, object dialogue, char *p, size_t n) except? 0
    cdef size_t _take_copy(self, object dialogue, const char *p, size_t n) except? 0
    cdef bint _is_lost(self) noexcept
    cdef int _save_rest(self, const char *p, size_t n) except -1
    cdef int _store(self, object dialogue, const char *p, size_t n) except -1
    cdef bint _room(self, size_t n) except -1
    cdef bint _too_large(self, size_t n) noexcept
    cdef int _spill_if_due(self, object dialogue) except -1
    cdef int _spill_memory(self, object dialogue) except -1
    cdef int _spill(self, object dialogue, const char *p, size_t n) except -1
    cdef int _lose(self, bint storage) except -1
    cdef bint may_spill(self, size_t more) noexcept
    cdef int relieve(self, object dialogue) except -1


cdef Reception receive(Engine engine, Rules rules, double now)
