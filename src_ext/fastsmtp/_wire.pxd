"""The wire, field by field."""

from libc.stdint cimport uint8_t

from fastsmtp._engine cimport Engine
from fastsmtp._envelope cimport Session
from fastsmtp._reception cimport Reception
from fastsmtp._rules cimport Rules
from fastsmtp.command cimport command

cdef enum Phase:        # what the octets that come next are
    PHASE_NEW           # nothing yet: the greeting is not out
    PHASE_PREFACE       # what comes before the dialogue, and is not ours
    PHASE_COMMAND
    PHASE_RESPONSE      # the line that answers a challenge
    PHASE_DISCARD       # the rest of a line that is already lost
    PHASE_CONTENT
    PHASE_SECURE        # the TLS handshake, which is not ours
    PHASE_CLOSED

cdef enum:
    ERROR = 10          # what an error counts
    SMALL_ERROR = 1     # ... and a refused recipient, of which the message of a mailing list has many


cdef inline bint is_refusal(const char *reply) noexcept:
    return b"4" <= reply[0] <= b"5" and b"0" <= reply[1] <= b"9" and b"0" <= reply[2] <= b"9"


cdef class Wire:
    cdef readonly Engine engine
    cdef public Rules rules
    cdef Session _session
    cdef object _write
    # what the client sent and was not taken yet
    cdef char *tail
    cdef size_t tail_length
    cdef bint tail_pending      # it may hold whole commands: it waits for an answer, not for octets
    # replies that are sent at the end of this turn
    cdef bytes first_reply
    cdef list more_replies      # if there are several: all
    cdef size_t octets_said     # by several
    # the message that comes
    cdef Reception reception
    cdef size_t offered         # octets that the next read may bring
    cdef bint in_memory         # ... into the message's own memory
    # where it is
    cdef uint8_t phase, asking
    cdef uint8_t verb           # of the last command
    cdef const char *said       # the line of the command that is being done, where mail is logged
    cdef size_t said_length
    cdef bint starting_tls      # Python does STARTTLS
    cdef bint last_cr, long_line, in_handshake, spoke, connected
    cdef unsigned held_back     # bits of reasons
    cdef double held_since      # monotonic seconds
    cdef bint yielded           # others have their turn before the rest of what came
    cdef uint8_t opening        # empty lines that the connection began with
    cdef unsigned errors        # in tenths
    cdef unsigned junk          # commands that led to no message
    cdef unsigned done          # commands and messages of this turn
    cdef double turn_began      # ... and when they began to be many, in monotonic seconds
    cdef size_t tail_held, recipients_held  # octets that count against the budget
    cdef double last            # monotonic seconds

    cdef char *room(self, size_t *n) except NULL
    cdef int received(self, size_t nbytes) except -1
    cdef int _line(self, const char *line, size_t n) except -1
    cdef int _end_of_content(self) except -1
    cdef int _begin_tls(self, bint more) except -1
    cdef bint _waits(self) noexcept
    cdef bint _is_over(self) noexcept
    cdef int resume_turn(self) except -1
    cdef bint wants_more(self) noexcept
    cdef int _go_on(self) except -1
    cdef int _turn(self, char *p, size_t n) except -1
    cdef int _consume(self, char *p, size_t n) except -1
    cdef int _keep(self, const char *p, size_t n, bint pending) except -1
    cdef int _adopt(self, char *p, size_t n) except -1
    cdef size_t _lines(self, char *p, size_t n) except? 0
    cdef int _say(self, int reply) except -1
    cdef int _error(self, int reply, command *c) except -1
    cdef int _count_error(self, unsigned tenths, int reply, command *c) except -1
    cdef int _end_of_junk(self) except -1
    cdef int _refuse(self, int reply, command *c) except -1
    cdef int _foreign(self, str what) except -1
    cdef int _put(self, bytes text) except -1
    cdef int _log(self, bytes reply) except -1
    cdef int _close(self) except -1
    cdef int _flush(self) except -1
    cdef str _verb(self, command *c)
    cdef object _text(self, const char *p, size_t n)
    cdef Session _the_session(self)
