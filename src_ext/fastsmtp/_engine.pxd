"""What all dialogues of one worker share, as the other compiled modules see it."""

from libc.stdint cimport uint64_t

from fastsmtp._rules cimport Rules

# The words of a counter slot. LAYOUT in the .pyx gives them their names; it checks at import that both agree.
cdef enum:
    CONNECTIONS = 0
    CONNECTIONS_ACTIVE = 1
    CONNECTIONS_REJECTED = 2    # 3 reasons
    COMMANDS = 5                # 17 verbs
    REPLIES = 22                # 39 codes
    MESSAGES = 61               # 4 results
    RECIPIENTS = 65             # 3 results
    RECEIVED_BYTES = 68
    SPILLED_MESSAGES = 69
    SPILLED_BYTES = 70
    BUFFERED_BYTES = 71
    TLS_HANDSHAKES = 72         # 2 results
    VIOLATIONS = 74             # 8 kinds
    TIMEOUTS = 82               # 5 states
    HANDLER_ERRORS = 87         # 13 stages
    HEARTBEAT = 100
    MESSAGE_SIZE = 101          # 11 buckets + the rest + sum
    DATA_READ = 114             # 16 buckets + the rest + sum
    HANDLER_TIME = 132          # 13 stages x (16 buckets + the rest + sum)
    WORDS = 366

cdef enum Rejection:
    REJECTED_HANDLER, REJECTED_DRAIN, REJECTED_TLS

cdef enum Result:
    RESULT_ACCEPTED, RESULT_REJECTED, RESULT_DEFERRED, RESULT_ABORTED

cdef enum Violation:
    VIOLATION_LINE_TOO_LONG, VIOLATION_BARE_NEWLINE_COMMAND, VIOLATION_BARE_NEWLINE_CONTENT
    VIOLATION_BAD_OCTETS, VIOLATION_FOREIGN_PROTOCOL, VIOLATION_STARTTLS_INJECTION, VIOLATION_TOO_MANY_ERRORS
    VIOLATION_TOO_MUCH_JUNK

cdef enum Timeout:
    TIMEOUT_COMMAND, TIMEOUT_DATA, TIMEOUT_TRANSACTION, TIMEOUT_HANDLER, TIMEOUT_DATA_RATE

cdef enum:
    # The longest part of a command line that may wait for its rest, laid before what is read next.
    HEADROOM = 16 * 1024
    # One read: of commands, kept small so that a client that never reads its replies holds little here ...
    RECEIVE_COMMANDS = 64 * 1024
    # ... and content, where more octets a read are fewer system calls.
    RECEIVE_CONTENT = 128 * 1024

cdef extern from *:
    """
    #include <stdlib.h>
    #include <time.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    #endif
    static inline double fastsmtp_monotonic(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    }
    static inline void fastsmtp_trim(void)
    {
    #ifdef __GLIBC__
        malloc_trim(0);
    #endif
    }
    """
    double monotonic "fastsmtp_monotonic"() noexcept nogil
    void trim_memory "fastsmtp_trim"() noexcept nogil

cdef int word_of_code(int code) noexcept
cdef int result_of(int code) noexcept


cdef class Counters:
    cdef uint64_t *words
    cdef Py_buffer buffer
    cdef void bump(self, int word, uint64_t n) noexcept
    cdef void drop(self, int word, uint64_t n) noexcept
    cdef void measure(self, int histogram, double value) noexcept
    cdef int _check(self, int index) except -1


cdef struct Memory:
    char *data
    size_t capacity


cdef class Engine:
    cdef readonly Rules rules
    cdef readonly Counters counters
    cdef readonly set live          # dialogues whose connection is open
    cdef readonly set unanswered    # ... and those whose client left while a hook was at work
    cdef object open_spill
    cdef char *receive
    cdef object commands_view, content_view
    cdef readonly uint64_t spill_threshold, memory_budget
    # state
    cdef public bint draining
    cdef public double now
    cdef readonly uint64_t held
    cdef uint64_t most_held         # since memory was last given back to the system
    cdef double before          # what `now` was before the last tick
    cdef bint relieving
    cdef double relieved_in_vain    # monotonic seconds
    cdef bint hold(self, uint64_t octets) noexcept
    cdef void release(self, uint64_t octets) noexcept
    cdef bint obtain(self, uint64_t octets) except -1
    cdef int _relieve(self, uint64_t octets) except -1
    cdef bint take_memory(self, Memory *memory, size_t capacity) except -1
    cdef bint grow_memory(self, Memory *memory, size_t capacity) except -1
    cdef void give_memory(self, Memory *memory) noexcept
    cdef Memory spare[64]
    cdef int spares, spares_unused
    cdef uint64_t spare_octets


cdef class Block:
    cdef Engine engine
    cdef Memory memory
    cdef size_t length
