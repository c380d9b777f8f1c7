"""The dialogue, field by field."""

from fastsmtp._commands cimport Commands


cdef class Dialogue(Commands):
    cdef bint performing        # a command within the ask for that whole command
    # monotonic seconds
    cdef readonly double asked_at
    cdef double transaction_began
    cdef readonly double message_began      # at MAIL, where mail is logged

    cdef int _answered(self, bytes reply) except -1
    cdef int _look(self, int kind) except -1
    cdef int _leave(self, int reply) except -1
