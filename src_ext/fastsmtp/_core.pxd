"""The dialogue, field by field."""

from libc.stdint cimport uint8_t

from fastsmtp._engine cimport Engine
from fastsmtp._envelope cimport Envelope, Session
from fastsmtp._reception cimport Reception
from fastsmtp._rules cimport Rules
from fastsmtp.command cimport command, transaction_argument

cdef enum State:        # what the client has said so far: the columns of the table
    START, READY, MAIL, RCPT
    STATES

cdef enum Phase:        # what the octets that come next are
    PHASE_NEW           # nothing yet: the greeting is not out
    PHASE_PREFACE       # what comes before the dialogue, and is not ours
    PHASE_COMMAND
    PHASE_RESPONSE      # the line that answers a challenge
    PHASE_DISCARD       # the rest of a line that is already lost
    PHASE_CONTENT
    PHASE_SECURE        # the TLS handshake, which is not ours
    PHASE_CLOSED


cdef class Dialogue:
    cdef readonly Engine engine
    cdef public Rules rules
    cdef public Envelope envelope
    cdef Session _session
    cdef object _write
    # what the client sent and was not taken yet
    cdef char *tail
    cdef size_t tail_length
    cdef bint tail_pending      # it may hold whole commands: it waits for an answer, not for octets
    # what it shall be told at the end of this turn
    cdef bytes first_reply
    cdef bytearray more_replies
    # the message that comes
    cdef Reception reception
    cdef size_t offered         # octets that the next read may bring
    cdef bint in_memory         # ... into the message's own memory
    # where the dialogue is
    cdef uint8_t state, phase, asking
    cdef bint last_cr, long_line, held_back, distrusted, in_handshake, rcpt_tried, spoke, connected, transaction
    cdef bint performing        # a command within the ask for that whole command
    cdef dict calls             # how often each command came, where that is limited
    cdef unsigned errors, recipients
    cdef size_t listed          # recipients in the envelope before the hook for the next was asked
    cdef object previous_name       # what holds again if a hook refuses the hello
    cdef bint previous_extended
    # monotonic seconds
    cdef readonly double asked_at
    cdef double last, transaction_began

    cdef int _turn(self, char *p, size_t n) except -1
    cdef int _consume(self, char *p, size_t n) except -1
    cdef size_t _lines(self, char *p, size_t n) except? 0
    cdef int _keep(self, const char *p, size_t n, bint pending) except -1
    cdef int _line(self, const char *line, size_t n) except -1
    cdef bint _waits(self) noexcept
    cdef int _finish_performing(self) except -1
    cdef int _command(self, const char *line, size_t n) except -1
    cdef int _bad_octets(self, command *c, const char *line, size_t n, bint bad) except -1
    cdef size_t _longest(self, command *c) except 0
    cdef bint _over_limit(self, command *c) except -1
    cdef int _perform(self, command *c) except -1
    cdef int _do(self, int action, command *c) except -1
    cdef int _hello(self, command *c, bint extended) except -1
    cdef int _vrfy(self, command *c) except -1
    cdef int _auth(self, command *c) except -1
    cdef int _mail(self, command *c) except -1
    cdef int _mail_leniently(self, command *c, bint extended, unsigned offered,
                             transaction_argument *argument) except -1
    cdef int _rcpt(self, command *c) except -1
    cdef int _rcpt_leniently(self, command *c, transaction_argument *argument) except -1
    cdef object _parameters(self, command *c, size_t at)
    cdef int _data(self) except -1
    cdef int _starttls(self, command *c) except -1
    cdef int _begin_tls(self, bint more) except -1
    cdef int _ask_or(self, int kind, int reply, const char *argument, size_t n) except -1
    cdef int _end_of_content(self) except -1
    cdef int _say_to_each(self, int reply) except -1
    cdef int _ask(self, int kind, object argument, object options) except -1
    cdef int _answered(self, bytes reply) except -1
    cdef int _settle(self, int kind, int code) except -1
    cdef int _look(self) except -1
    cdef int _end_transaction(self) except -1
    cdef Envelope _the_envelope(self)
    cdef Session _the_session(self)
    cdef object _text(self, const char *p, size_t n)
    cdef int _say(self, int reply) except -1
    cdef int _error(self, int reply, command *c) except -1
    cdef int _refuse(self, int reply, command *c) except -1
    cdef str _verb(self, command *c)
    cdef int _put(self, bytes text) except -1
    cdef int _close(self) except -1
    cdef int _flush(self) except -1
    cdef int _leave(self, int reply) except -1
