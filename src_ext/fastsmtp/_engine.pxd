"""What all dialogues of one worker share, as the other compiled modules see it."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

# The words of a counter slot. LAYOUT in the .pyx gives them their names; it checks at import that both agree.
cdef enum:
    CONNECTIONS = 0
    CONNECTIONS_ACTIVE = 1
    CONNECTIONS_REJECTED = 2    # 3 reasons
    COMMANDS = 5                # 14 verbs
    REPLIES = 19                # 39 codes
    MESSAGES = 58               # 4 results
    RECIPIENTS = 62             # 3 results
    RECEIVED_BYTES = 65
    SPILLED_MESSAGES = 66
    SPILLED_BYTES = 67
    BUFFERED_BYTES = 68
    TLS_HANDSHAKES = 69         # 2 results
    VIOLATIONS = 71             # 7 kinds
    TIMEOUTS = 78               # 4 states
    HANDLER_ERRORS = 82         # 11 stages
    HEARTBEAT = 93
    MESSAGE_SIZE = 94           # 11 buckets + the rest + sum
    DATA_READ = 107             # 16 buckets + the rest + sum
    HANDLER_TIME = 125          # 11 stages x (16 buckets + the rest + sum)
    WORDS = 323

cdef enum Rejection:
    REJECTED_HANDLER, REJECTED_DRAIN, REJECTED_TLS

cdef enum Result:
    RESULT_ACCEPTED, RESULT_REJECTED, RESULT_DEFERRED, RESULT_ABORTED

cdef enum Violation:
    VIOLATION_LINE_TOO_LONG, VIOLATION_BARE_NEWLINE_COMMAND, VIOLATION_BARE_NEWLINE_CONTENT
    VIOLATION_BAD_OCTETS, VIOLATION_FOREIGN_PROTOCOL, VIOLATION_STARTTLS_INJECTION, VIOLATION_TOO_MANY_ERRORS

cdef enum Timeout:
    TIMEOUT_COMMAND, TIMEOUT_DATA, TIMEOUT_TRANSACTION, TIMEOUT_HANDLER

# What Python may be asked for; a hook mask has the bit 1 << kind.
cdef enum Ask:
    ASK_NOTHING
    ASK_CONNECT, ASK_HELO, ASK_EHLO, ASK_MAIL, ASK_RCPT, ASK_DATA, ASK_RSET, ASK_NOOP, ASK_QUIT, ASK_VRFY

cdef enum Reply:
    REPLY_GREETING, REPLY_HELO, REPLY_EHLO, REPLY_EHLO_TLS, REPLY_MAIL, REPLY_RCPT, REPLY_DATA, REPLY_ACCEPTED
    REPLY_RSET, REPLY_NOOP, REPLY_QUIT, REPLY_VRFY, REPLY_HELP, REPLY_STARTTLS
    REPLY_LINE_TOO_LONG, REPLY_BARE_NEWLINE, REPLY_BAD_SYNTAX, REPLY_BAD_OCTETS, REPLY_UNKNOWN
    REPLY_NOT_IMPLEMENTED, REPLY_FOREIGN, REPLY_HELO_ARGUMENT, REPLY_NO_ARGUMENT, REPLY_VRFY_ARGUMENT
    REPLY_NEED_HELLO, REPLY_NESTED_MAIL, REPLY_NEED_MAIL, REPLY_NEED_RCPT, REPLY_NO_VALID_RCPT
    REPLY_MAIL_SYNTAX, REPLY_MAIL_ADDRESS, REPLY_RCPT_SYNTAX, REPLY_RCPT_ADDRESS
    REPLY_PARAMETER_VALUE, REPLY_PARAMETER_UNKNOWN, REPLY_NEED_SMTPUTF8
    REPLY_TOO_BIG_DECLARED, REPLY_TOO_BIG, REPLY_TOO_MANY_RCPT, REPLY_NO_ROOM
    REPLY_CONTENT_NEWLINE, REPLY_CONTENT_LINE
    REPLY_NEED_STARTTLS, REPLY_TLS_ACTIVE, REPLY_DISTRUSTED, REPLY_STARTTLS_INJECTION
    REPLY_TOO_MANY_ERRORS, REPLY_SHUTDOWN, REPLY_IDLE, REPLY_HANDLER_FAILED, REPLY_HANDLER_TIMEOUT
    REPLY_COUNT

cdef enum:
    # The longest part of a command line that may wait for its rest, laid before what is read next.
    HEADROOM = 16 * 1024
    # One read: of commands, kept small so that a client that never reads its replies holds little here ...
    RECEIVE_COMMANDS = 64 * 1024
    # ... and content, where more octets a read are fewer system calls.
    RECEIVE_CONTENT = 128 * 1024

cdef int word_of_code(int code) noexcept


cdef class Counters:
    cdef uint64_t *words
    cdef Py_buffer buffer
    cdef void bump(self, int word, uint64_t n) noexcept
    cdef void drop(self, int word, uint64_t n) noexcept
    cdef void measure(self, int histogram, double value) noexcept
    cdef int _check(self, int index) except -1


cdef class Book:
    cdef tuple texts
    cdef int codes[64]
    cdef bytes text(self, int reply)


cdef struct Memory:
    char *data
    size_t capacity


cdef class Engine:
    cdef readonly Book book
    cdef readonly Counters counters
    cdef readonly set live
    cdef object open_spill
    cdef char *receive
    cdef object commands_view, content_view
    # limits: octets, counts, seconds
    cdef readonly unsigned hooks
    cdef readonly uint64_t max_message_size, spill_threshold, memory_budget
    cdef readonly unsigned max_command_line, max_line_length, max_recipients, max_errors
    cdef readonly double idle_timeout, transaction_timeout, handler_timeout
    cdef readonly uint8_t newlines
    cdef readonly bint smtputf8, starttls, require_starttls
    # state
    cdef public bint draining
    cdef public double now
    cdef readonly uint64_t held
    cdef bint hold(self, uint64_t octets) noexcept
    cdef void release(self, uint64_t octets) noexcept
    cdef bint take_memory(self, Memory *memory, size_t capacity) noexcept
    cdef bint grow_memory(self, Memory *memory, size_t capacity) noexcept
    cdef void give_memory(self, Memory *memory) noexcept
    cdef Memory spare[64]
    cdef int spares, spares_unused


cdef class Block:
    cdef Engine engine
    cdef Memory memory
    cdef size_t length
