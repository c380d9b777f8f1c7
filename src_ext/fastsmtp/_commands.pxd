"""The commands, field by field."""

from libc.stdint cimport uint8_t, uint64_t

from fastsmtp._envelope cimport Envelope
from fastsmtp._wire cimport Wire
from fastsmtp.command cimport command, transaction_argument

cdef enum State:        # what the client has said so far: the columns of the tables
    START, READY, MAIL, RCPT
    STATES


cdef class Commands(Wire):
    cdef public Envelope envelope
    cdef uint8_t state
    cdef bint distrusted, transaction
    cdef unsigned tried         # RCPT commands of this transaction
    cdef bint served    # a message of this connection came to its end
    cdef dict calls             # how often each command came, where that is limited
    cdef unsigned taken         # recipients
    cdef size_t listed          # recipients in the envelope before the hook for the next was asked
    cdef object previous_name       # what holds again if a hook refuses the hello
    cdef bint previous_extended

    cdef int _ask(self, int kind, object argument, object options) except -1
    cdef int _settle(self, int kind, int code) except -1
    cdef int _finish_performing(self) except -1
    cdef int _command(self, const char *line, size_t n) except -1
    cdef bint _is_awaited(self, command *c) noexcept
    cdef int _bad_octets(self, command *c, const char *line, size_t n, bint bad) except -1
    cdef size_t _longest(self, command *c) except 0
    cdef bint _has_memory(self, uint64_t octets) except -1
    cdef size_t _room_for_parameters(self) except? 0
    cdef bint _over_limit(self, command *c) except -1
    cdef int _perform(self, command *c) except -1
    cdef int _perform_text(self, str text) except -1
    cdef int _do(self, int action, command *c) except -1
    cdef int _ask_or(self, int kind, int reply, const char *argument, size_t n) except -1
    cdef int _hello(self, command *c, bint extended) except -1
    cdef int _vrfy(self, command *c) except -1
    cdef int _auth(self, command *c) except -1
    cdef int _starttls(self, command *c) except -1
    cdef int _mail(self, command *c) except -1
    cdef int _mail_leniently(self, command *c, bint extended, unsigned offered,
                             transaction_argument *argument) except -1
    cdef int _rcpt(self, command *c) except -1
    cdef int _rcpt_leniently(self, command *c, transaction_argument *argument) except -1
    cdef object _parameters(self, command *c, size_t at)
    cdef int _data(self) except -1
    cdef int _say_to_each(self, int reply) except -1
    cdef int _end_transaction(self) except -1
    cdef Envelope _the_envelope(self)
