"""What is said, allowed and asked for, as the other compiled modules see it."""

from libc.stdint cimport uint8_t, uint64_t

# What Python may be asked for; a hook mask has the bit 1 << kind.
cdef enum Ask:
    ASK_NOTHING
    ASK_CONNECT, ASK_HELO, ASK_EHLO, ASK_MAIL, ASK_RCPT, ASK_DATA, ASK_RSET, ASK_NOOP, ASK_QUIT, ASK_VRFY
    ASK_AUTH, ASK_COMMAND

cdef enum MailLog:
    LOG_OFF, LOG_REFUSALS, LOG_ALL

cdef enum Reply:
    REPLY_GREETING, REPLY_HELO, REPLY_EHLO, REPLY_EHLO_TLS, REPLY_MAIL, REPLY_RCPT, REPLY_DATA, REPLY_ACCEPTED
    REPLY_RSET, REPLY_NOOP, REPLY_QUIT, REPLY_VRFY, REPLY_HELP, REPLY_STARTTLS
    REPLY_LINE_TOO_LONG, REPLY_BARE_NEWLINE, REPLY_BAD_SYNTAX, REPLY_BAD_OCTETS, REPLY_NOT_ASCII, REPLY_UNKNOWN
    REPLY_NOT_IMPLEMENTED, REPLY_FOREIGN, REPLY_HELO_ARGUMENT, REPLY_NO_ARGUMENT, REPLY_VRFY_ARGUMENT
    REPLY_VRFY_ADDRESS
    REPLY_NEED_HELLO, REPLY_NESTED_MAIL, REPLY_NEED_MAIL, REPLY_NEED_RCPT, REPLY_NO_VALID_RCPT
    REPLY_MAIL_SYNTAX, REPLY_MAIL_SYNTAX_EXTENDED, REPLY_MAIL_ADDRESS
    REPLY_RCPT_SYNTAX, REPLY_RCPT_SYNTAX_EXTENDED, REPLY_RCPT_ADDRESS
    REPLY_PARAMETER_VALUE, REPLY_BODY_VALUE, REPLY_SMTPUTF8_VALUE, REPLY_SMTPUTF8_DISABLED
    REPLY_MAIL_PARAMETER, REPLY_RCPT_PARAMETER, REPLY_NEED_SMTPUTF8
    REPLY_TOO_BIG_DECLARED, REPLY_TOO_BIG, REPLY_TOO_MANY_RCPT, REPLY_NO_ROOM, REPLY_NO_MEMORY
    REPLY_CONTENT_NEWLINE, REPLY_CONTENT_LINE
    REPLY_NEED_STARTTLS, REPLY_TLS_UNAVAILABLE, REPLY_TLS_ACTIVE, REPLY_DISTRUSTED, REPLY_STARTTLS_INJECTION
    REPLY_NEED_AUTH, REPLY_NEED_EHLO, REPLY_AUTH_AFTER_HELO, REPLY_AUTH_NEEDS_TLS, REPLY_AUTH_DONE
    REPLY_AUTH_NO_MECHANISM, REPLY_AUTH_ARGUMENTS, REPLY_AUTH_UNKNOWN, REPLY_AUTH_ABORTED, REPLY_AUTH_TOO_LONG
    REPLY_TOO_MANY_ERRORS, REPLY_TOO_MANY_CALLS, REPLY_TOO_MUCH_JUNK, REPLY_MEMORY_SHORT, REPLY_SHUTDOWN, REPLY_IDLE
    REPLY_TOO_SLOW
    REPLY_HANDLER_FAILED, REPLY_HANDLER_TIMEOUT
    REPLY_COUNT


cdef class Book:
    cdef tuple texts
    cdef int codes[96]
    cdef bint filled_in[96]     # texts with the command or its argument in them
    cdef bytes text(self, int reply)


cdef class Rules:
    cdef readonly Book book
    cdef readonly unsigned hooks
    # what is offered, and to whom
    cdef readonly unsigned verbs        # bits
    cdef uint8_t unoffered              # what the other verbs count as
    cdef readonly bint lenient, lmtp, smtputf8, eight_bit, starttls, require_starttls, require_auth, auth_in_clear
    cdef readonly bint pass_parameters
    cdef readonly frozenset mechanisms
    # what Python does as a whole
    cdef readonly unsigned whole        # bits of verbs
    cdef readonly frozenset own_verbs   # words that are no verb of this dialogue
    cdef readonly bint makes_facts
    cdef readonly bint traced           # each command line is shown to Python
    cdef readonly uint8_t log_mail      # which replies are: LOG_REFUSALS, LOG_ALL
    # limits: octets, counts, seconds
    cdef readonly uint64_t max_message_size
    cdef readonly unsigned max_command_line, max_command, max_line_length, max_local_part
    cdef readonly unsigned max_recipients, max_errors, max_junk_commands
    cdef readonly uint64_t min_data_rate    # octets a second
    cdef readonly bint strict_addresses
    cdef readonly dict call_limits, max_commands
    cdef readonly double idle_timeout, transaction_timeout, handler_timeout
    cdef readonly uint8_t newlines
