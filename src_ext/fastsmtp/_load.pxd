"""The sending side of SMTP, as its own module sees it."""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

cdef enum:
    # A value below 64 has a bucket of its own; above, each power of two has 64: half a bucket is 0.8 % of a value.
    STEPS = 64
    STEP_BITS = 6
    HIGHEST_BIT = 45            # 2**46 ns are 19 hours; what is longer counts in the last bucket
    BUCKETS = (HIGHEST_BIT - STEP_BITS + 2) * STEPS

    INBOX = 4096                # the longest line of a reply, and more than most servers say in a turn
    HEAD = 256                  # room for what differs from message to message
    PIECES = 4                  # of one write: head, body, and the commands of the next message

# Replies to one write come in this order. MESSAGE is measured, never waited for; QUIT is the other way round.
cdef enum Stage:
    CONNECT, GREETING, TLS, EHLO, AUTH, FINAL, MAIL, RCPT, DATA, MESSAGE, QUIT
    MEASURED = QUIT
    ALL_STAGES = QUIT + 1


cdef struct Times:
    uint64_t count
    uint64_t total              # nanoseconds
    uint64_t longest
    uint64_t buckets[BUCKETS]


cdef struct Piece:
    const char *octets
    size_t length


cdef class Histogram:
    cdef Times times

    cdef void put(self, uint64_t nanoseconds) noexcept


cdef class Load:
    cdef bytes hello, auth, head, body, envelope
    cdef list commands
    cdef tuple histograms
    cdef size_t digits          # where in the head the number stands
    cdef bint pipeline, starttls, single, closed
    cdef uint32_t recipients
    cdef bytearray scratch
    cdef readonly int64_t next  # the number of the next message
    cdef int64_t stride
    cdef public int64_t left    # how many messages may still be begun
    cdef readonly int64_t accepted, failed
    cdef readonly dict failures

    cdef bint take(self, int64_t *number) noexcept
    cdef void measure(self, Stage stage, uint64_t nanoseconds) noexcept


cdef class Talk:
    cdef Load load
    cdef int fd
    cdef char inbox[INBOX]
    cdef size_t have
    cdef char head[HEAD]
    cdef Piece pieces[PIECES]   # what is being written ...
    cdef int count, at          # ... how many pieces, which of them is next ...
    cdef size_t offset          # ... and how much of that one is written
    cdef uint16_t body_ends     # the pieces up to here are the message, if there is one among them
    cdef uint32_t pending[ALL_STAGES]
    cdef uint32_t named         # recipients that were given
    cdef int code               # of the reply whose lines are coming
    cdef list lines             # of it, but the last
    cdef list offers            # the lines of the reply to EHLO
    cdef int64_t number, following      # of the message under way, and of one pipelined behind it; -1 for none
    cdef uint64_t due, following_due
    cdef uint64_t written       # when the last write was done, or begun
    cdef uint64_t moved         # when octets last went either way
    cdef bint handshake, idle, secure
    cdef readonly bint ready    # a message could be sent
    cdef readonly bint fatal    # another connection would end in the same way
    cdef readonly bint ended
    cdef readonly str error     # what ended it; None after a polite end

    cdef int state(self) noexcept
    cdef void say(self, bytes octets) noexcept
    cdef void piece(self, const char *octets, size_t length) noexcept
    cdef int push(self, uint64_t now) except -1
    cdef void move(self, size_t n, uint64_t now) noexcept
    cdef int parse(self, uint64_t now) except -1
    cdef int line(self, const char *p, size_t n, uint64_t now) except -1
    cdef int reply(self, int code, str text, uint64_t now) except -1
    cdef int go_on(self, Stage stage, uint64_t now) except -1
    cdef int greet(self, uint64_t now) except -1
    cdef int offered(self, uint64_t now) except -1
    cdef int rest(self, uint64_t now) except -1
    cdef void begin(self, uint64_t now) noexcept
    cdef void envelope(self) noexcept
    cdef void content(self, uint64_t now) noexcept
    cdef Stage awaited(self) noexcept
    cdef str where(self)
    cdef int fail_with(self, str text, bint fatal) except -1
