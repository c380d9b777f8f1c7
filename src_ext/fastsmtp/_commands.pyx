# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What each command of SMTP does: the verb by state tables, arguments, and what is answered.

Knows every rule of SMTP that this server holds, and holds each of them once. Refuses to know octets, which are the
wire's, and what Python has to say, which is the dialogue's.
"""

import cython

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t, uint64_t

from fastsmtp._engine cimport *
from fastsmtp._envelope cimport Envelope, Session
from fastsmtp._reception cimport Reception, receive
from fastsmtp._rules cimport *
from fastsmtp._wire cimport *
from fastsmtp.command cimport *
from fastsmtp.content cimport content

# --- the tables ---------------------------------------------------------------------------------------------
# Verb by state, strictly and leniently. A cell is something to do, or the reply that refuses it (as a negative
# number).

cdef enum Action:
    DO_HELO = 1
    DO_EHLO, DO_MAIL, DO_RCPT, DO_DATA, DO_RSET, DO_NOOP, DO_QUIT, DO_VRFY, DO_HELP, DO_STARTTLS, DO_AUTH, DO_FOREIGN
    DO_REFUSE

cdef int TABLE[2][VERBS][STATES]

cdef int _row(int lenient, int verb, int start, int ready, int mail, int rcpt) noexcept:
    TABLE[lenient][verb][<int>START] = start
    TABLE[lenient][verb][<int>READY] = ready
    TABLE[lenient][verb][<int>MAIL] = mail
    TABLE[lenient][verb][<int>RCPT] = rcpt
    return 0

cdef int _rows(int verb, int start, int ready, int mail, int rcpt) noexcept:
    _row(False, verb, start, ready, mail, rcpt)
    return _row(True, verb, start, ready, mail, rcpt)

#     verb            START               READY              MAIL                 RCPT
_rows(VERB_HELO,      DO_HELO,            DO_HELO,           DO_HELO,             DO_HELO)
_rows(VERB_EHLO,      DO_EHLO,            DO_EHLO,           DO_EHLO,             DO_EHLO)
_rows(VERB_LHLO,      DO_EHLO,            DO_EHLO,           DO_EHLO,             DO_EHLO)
_rows(VERB_MAIL,      -REPLY_NEED_HELLO,  DO_MAIL,           -REPLY_NESTED_MAIL,  -REPLY_NESTED_MAIL)
_rows(VERB_RCPT,      -REPLY_NEED_HELLO,  -REPLY_NEED_MAIL,  DO_RCPT,             DO_RCPT)
_rows(VERB_DATA,      -REPLY_NEED_HELLO,  -REPLY_NEED_MAIL,  -REPLY_NEED_RCPT,    DO_DATA)
_rows(VERB_RSET,      DO_RSET,            DO_RSET,           DO_RSET,             DO_RSET)
_rows(VERB_NOOP,      DO_NOOP,            DO_NOOP,           DO_NOOP,             DO_NOOP)
_rows(VERB_QUIT,      DO_QUIT,            DO_QUIT,           DO_QUIT,             DO_QUIT)
_rows(VERB_VRFY,      DO_VRFY,            DO_VRFY,           DO_VRFY,             DO_VRFY)
_rows(VERB_EXPN,      DO_REFUSE,          DO_REFUSE,         DO_REFUSE,           DO_REFUSE)
_rows(VERB_HELP,      DO_HELP,            DO_HELP,           DO_HELP,             DO_HELP)
_rows(VERB_STARTTLS,  DO_STARTTLS,        DO_STARTTLS,       DO_STARTTLS,         DO_STARTTLS)
_rows(VERB_AUTH,      -REPLY_NEED_EHLO,   DO_AUTH,           DO_AUTH,             DO_AUTH)
_rows(VERB_KNOWN,     DO_REFUSE,          DO_REFUSE,         DO_REFUSE,           DO_REFUSE)
_rows(VERB_FOREIGN,   DO_FOREIGN,         DO_FOREIGN,        DO_FOREIGN,          DO_FOREIGN)
_rows(VERB_UNKNOWN,   -REPLY_UNKNOWN,     -REPLY_UNKNOWN,    -REPLY_UNKNOWN,      -REPLY_UNKNOWN)
# Leniently a nested MAIL is refused after its path was looked at, and DATA says nothing of MAIL.
_row(True, VERB_MAIL, -REPLY_NEED_HELLO,  DO_MAIL,           DO_MAIL,             DO_MAIL)
_row(True, VERB_DATA, -REPLY_NEED_HELLO,  -REPLY_NEED_RCPT,  -REPLY_NEED_RCPT,    DO_DATA)

# What refuses an argument of MAIL and of RCPT.
cdef int REFUSALS[9]
REFUSALS[:] = [0, REPLY_MAIL_SYNTAX, REPLY_MAIL_ADDRESS, REPLY_PARAMETER_VALUE, REPLY_MAIL_PARAMETER,
               REPLY_NEED_SMTPUTF8, REPLY_BODY_VALUE, REPLY_SMTPUTF8_VALUE, REPLY_SMTPUTF8_DISABLED]
cdef int RCPT_REFUSALS[9]
RCPT_REFUSALS[:] = [0, REPLY_RCPT_SYNTAX, REPLY_RCPT_ADDRESS, REPLY_PARAMETER_VALUE, REPLY_RCPT_PARAMETER,
                    REPLY_NEED_SMTPUTF8, REPLY_RCPT_PARAMETER, REPLY_RCPT_PARAMETER, REPLY_RCPT_PARAMETER]

# What may be said before STARTTLS where it is required (RFC 3207 4), as bits of verbs.
cdef unsigned CLEAR_VERBS[2]
CLEAR_VERBS[True] = 1 << VERB_NOOP | 1 << VERB_EHLO | 1 << VERB_LHLO | 1 << VERB_STARTTLS | 1 << VERB_QUIT
CLEAR_VERBS[False] = CLEAR_VERBS[True] | 1 << VERB_KNOWN | 1 << VERB_FOREIGN | 1 << VERB_UNKNOWN
# What leads to a message.
cdef unsigned MESSAGE_VERBS = (1 << VERB_HELO | 1 << VERB_EHLO | 1 << VERB_LHLO | 1 << VERB_STARTTLS | 1 << VERB_AUTH
                               | 1 << VERB_MAIL | 1 << VERB_RCPT | 1 << VERB_DATA)
# What leads to no message by itself.
cdef unsigned JUNK_VERBS = (1 << VERB_HELO | 1 << VERB_EHLO | 1 << VERB_LHLO | 1 << VERB_MAIL | 1 << VERB_RSET
                            | 1 << VERB_NOOP | 1 << VERB_VRFY | 1 << VERB_EXPN | 1 << VERB_HELP | 1 << VERB_UNKNOWN)
cdef enum:
    OVERSHOOT = 1000    # recipients beyond the limit, each refused with 452, before the connection ends
    RECIPIENT = 96      # octets that a recipient takes beyond its address
    LEAST_MESSAGE = 4096    # octets that a message needs whose size nobody tells

# What may only be said after AUTH where that is required.
cdef unsigned AUTH_VERBS = 1 << VERB_HELP | 1 << VERB_VRFY | 1 << VERB_MAIL | 1 << VERB_RCPT | 1 << VERB_DATA


def parse_address(str text not None):
    """What aiosmtpd takes for an address at the beginning of ``text``, and what follows it.

    Raises ``ValueError`` for what is none.
    """
    cdef bytes octets = text.encode("utf-8", "surrogateescape")
    cdef path path
    cdef size_t end
    if parse_lenient_address(PyBytes_AS_STRING(octets), len(octets), &path, &end) != PATH_OK:
        raise ValueError(f"no address: {text!r}")
    address = path.address[:path.length].decode("utf-8", "surrogateescape") if path.length else "<>"
    return address, octets[end:].decode("utf-8", "surrogateescape")


@cython.no_gc_clear
cdef class Commands(Wire):
    """The commands, as lines that came over a wire."""

    @property
    def recipients(self):
        """How many recipients of this transaction were taken."""
        return self.taken

    @property
    def longest_command(self):
        """Octets, without the line end, that the longest of all commands may have now; 0 is no limit."""
        cdef Rules rules = self.rules
        sizes = rules.max_commands or {}
        mail = sizes.get("MAIL", rules.max_command) + self._room_for_parameters()
        return max(rules.max_command, mail, *sizes.values())

    # --- what a subclass gives ------------------------------------------------------------------------------

    def trace(self, line):
        """Called with each command line, where the rules say so."""

    def make_envelope(self):
        """Called for an ``Envelope``, where the rules say that they are made elsewhere."""
        raise NotImplementedError

    cdef int _ask(self, int kind, object argument, object options) except -1:
        """Asks Python."""
        raise NotImplementedError

    cdef int _settle(self, int kind, int code) except -1:
        """The reply to a command is known, and what it means is to be done."""
        raise NotImplementedError

    cdef int _finish_performing(self) except -1:
        """A command that took several turns is done."""
        raise NotImplementedError

    # --- a command ------------------------------------------------------------------------------------------

    cdef int _command(self, const char *line, size_t n) except -1:
        cdef Engine engine = self.engine
        cdef Rules rules = self.rules
        cdef command c
        cdef uint8_t octets = 0, bad = 0
        cdef size_t i
        cdef int refusal
        for i in range(n):
            octets |= <uint8_t>line[i]
            bad |= (line[i] == 0) | (line[i] == b"\r")     # both, so that the loop becomes vector instructions
        if rules.traced:
            self.trace(line[:n])
        if self.opening < 3:
            if n == 0:
                self.opening += 1
            elif self.opening == 2 and line[0] == 0:
                return self._foreign("PROXY")   # CR LF CR LF NUL CR LF: the signature of version 2
            elif rules.lenient and n > 6 and same_word(line, 6, "PROXY ") and "PROXY" not in rules.own_verbs:
                return self._foreign("PROXY")
            else:
                self.opening = 3
        if n == 0 and rules.lenient:
            self.junk += 1
            if rules.max_junk_commands and self.junk > rules.max_junk_commands:
                return self._end_of_junk()
            return self._say(REPLY_BAD_SYNTAX)
        parse_command(line, n, not rules.lenient, &c)
        if bad or octets & 0x80:
            refusal = self._bad_octets(&c, line, n, bad)
            if refusal:
                engine.counters.bump(VIOLATIONS + VIOLATION_BAD_OCTETS, 1)
                return self._error(refusal, &c)
        if rules.max_command and n > self._longest(&c):
            return self._error(REPLY_LINE_TOO_LONG, &c)
        if not rules.verbs >> <int>c.verb & 1:
            c.verb = <verb>rules.unoffered
        self.verb = c.verb
        if JUNK_VERBS >> <int>c.verb & 1:
            self.junk += 1
            if rules.max_junk_commands and self.junk > rules.max_junk_commands:
                return self._end_of_junk()
        engine.counters.bump(COMMANDS + <int>c.verb, 1)
        if engine.draining and c.verb != VERB_QUIT and not self._is_awaited(&c):
            engine.counters.bump(CONNECTIONS_REJECTED + REJECTED_DRAIN, 1)
            self._say(REPLY_SHUTDOWN)
            return self._close()
        if self.distrusted and c.verb != VERB_QUIT:
            return self._error(REPLY_DISTRUSTED, &c)
        if (rules.require_starttls and not CLEAR_VERBS[<int>rules.lenient] >> <int>c.verb & 1
                and not self._the_session().tls):
            return self._error(REPLY_NEED_STARTTLS, &c)
        if rules.call_limits is not None and self._over_limit(&c):
            engine.counters.bump(VIOLATIONS + VIOLATION_TOO_MANY_ERRORS, 1)
            self._refuse(REPLY_TOO_MANY_CALLS, &c)
            return self._close()
        if rules.whole >> <int>c.verb & 1 or (c.verb == VERB_UNKNOWN and rules.own_verbs
                                              and self._verb(&c) in rules.own_verbs):
            argument = self._text(c.argument, c.length) if c.argument > c.word + c.word_length else None
            self.starting_tls = c.verb == VERB_STARTTLS
            return self._ask(ASK_COMMAND, (self._verb(&c), argument), None)
        return self._perform(&c)

    cdef bint _is_awaited(self, command *c) noexcept:
        """Whether a server that goes away still does a command: one for a message that was begun, or for the first of
        its connection. So a client that had just been greeted need not come again.
        """
        return (self.transaction or not self.served) and MESSAGE_VERBS >> <int>c.verb & 1

    cdef int _bad_octets(self, command *c, const char *line, size_t n, bint bad) except -1:
        """The reply to octets that are not ASCII or that no line may have, or 0."""
        cdef size_t i
        if bad:
            return REPLY_BAD_OCTETS
        if self.rules.lenient:
            for i in range(c.word_length):
                if <uint8_t>c.word[i] & 0x80:
                    return REPLY_BAD_SYNTAX
        elif c.verb == VERB_HELO or c.verb == VERB_EHLO or c.verb == VERB_LHLO:
            return 0    # the name of a machine in a local code page, which means nothing here
        if not self.rules.smtputf8:
            return REPLY_NOT_ASCII
        return 0 if self.rules.lenient or valid_utf8(line, n) else REPLY_BAD_OCTETS

    cdef size_t _longest(self, command *c) except 0:
        """Octets that a command may have."""
        cdef Rules rules = self.rules
        cdef size_t longest = rules.max_command
        if rules.max_commands is not None:
            longest = rules.max_commands.get(self._verb(c), longest)
        return longest + self._room_for_parameters() if c.verb == VERB_MAIL else longest

    cdef bint _has_memory(self, uint64_t octets) except -1:
        """Whether the budget has room for a message, which need not be sent if it has not."""
        cdef Engine engine = self.engine
        if engine.obtain(octets):
            engine.release(octets)
            return True
        return False

    cdef size_t _room_for_parameters(self) except? 0:
        """What MAIL may be longer (RFC 1870 3, RFC 6531 3.4)."""
        cdef Rules rules = self.rules
        if not self._the_session().extended_smtp:
            return 0
        return (26 if rules.max_message_size else 0) + (10 if rules.smtputf8 else 0)

    cdef bint _over_limit(self, command *c) except -1:
        """Counts a command, and whether it came too often."""
        cdef dict limits = self.rules.call_limits
        verb = self._verb(c)
        if self.calls is None:
            self.calls = {}
        calls = self.calls.get(verb, 0)
        self.calls[verb] = calls + 1
        return calls >= limits.get(verb, limits["*"])

    cdef int _perform(self, command *c) except -1:
        """What the table says."""
        cdef Rules rules = self.rules
        cdef int action = TABLE[<int>rules.lenient][<int>c.verb][self.state]
        if (rules.require_auth and AUTH_VERBS >> <int>c.verb & 1 and action != -REPLY_NEED_HELLO
                and not self._the_session().authenticated):
            return self._error(REPLY_NEED_AUTH, c)
        if action > 0:
            return self._do(action, c)
        if action == -REPLY_UNKNOWN and c.argument == c.word and not rules.lenient:
            return self._error(REPLY_BAD_SYNTAX, c)
        if action == -REPLY_NEED_RCPT and self.tried:
            return self._error(REPLY_NO_VALID_RCPT, c)
        return self._error(-action, c)

    cdef int _perform_text(self, str text) except -1:
        cdef command c
        cdef bytes line = text.encode("utf-8", "surrogateescape")
        parse_command(PyBytes_AS_STRING(line), len(line), not self.rules.lenient, &c)
        return self._perform(&c)

    cdef int _do(self, int action, command *c) except -1:
        if action == DO_MAIL:
            return self._mail(c)
        if action == DO_RCPT:
            return self._rcpt(c)
        if action == DO_EHLO or action == DO_HELO:
            return self._hello(c, action == DO_EHLO)
        if action == DO_NOOP:
            return self._ask_or(ASK_NOOP, REPLY_NOOP, c.argument, c.length)
        if action == DO_HELP:
            return self._say(REPLY_HELP)
        if action == DO_VRFY:
            return self._vrfy(c)
        if action == DO_AUTH:
            return self._auth(c)
        if action == DO_REFUSE:
            return self._error(REPLY_NOT_IMPLEMENTED, c)
        if action == DO_FOREIGN:
            return self._foreign("PROXY" if same_word(c.word, c.word_length, "PROXY") else "HTTP")
        # The rest takes no argument.
        if c.length:
            return self._error(REPLY_NO_ARGUMENT, c)
        if action == DO_DATA:
            return self._data()
        if action == DO_RSET:
            self._end_transaction()
            return self._ask_or(ASK_RSET, REPLY_RSET, NULL, 0)
        if action == DO_QUIT:
            if self.rules.hooks & 1 << ASK_QUIT:
                return self._ask(ASK_QUIT, None, None)
            self._say(REPLY_QUIT)
            return self._close()
        return self._starttls(c)

    cdef int _ask_or(self, int kind, int reply, const char *argument, size_t n) except -1:
        """Asks the hook where there is one, else gives the reply."""
        if self.rules.hooks & 1 << kind:
            return self._ask(kind, self._text(argument, n) if argument != NULL else None, None)
        return self._say(reply)

    # --- hello, VRFY, AUTH, STARTTLS ------------------------------------------------------------------------

    cdef int _hello(self, command *c, bint extended) except -1:
        cdef Session session = self._the_session()
        cdef int kind = ASK_EHLO if extended else ASK_HELO
        if c.length == 0 or (c.length > 255 and not self.rules.lenient):
            return self._error(REPLY_HELO_ARGUMENT, c)
        if self.rules.lenient:
            self._end_transaction()     # even if it is refused
        self.previous_name = session.host_name
        self.previous_extended = session.extended_smtp
        session.extended_smtp = extended
        if self.rules.lenient or valid_utf8(c.argument, c.length):
            session.host_name = self._text(c.argument, c.length)
        else:
            session.host_name = c.argument[:c.length].decode("ascii", "replace")
        if self.rules.hooks & 1 << kind:
            return self._ask(kind, session.host_name, None)
        self._settle(kind, 250)
        if not extended:
            return self._say(REPLY_HELO)
        return self._say(REPLY_EHLO_TLS if session.tls else REPLY_EHLO)

    cdef int _vrfy(self, command *c) except -1:
        cdef path path
        cdef size_t end
        if c.length == 0:
            return self._error(REPLY_VRFY_ARGUMENT, c)
        if not self.rules.lenient:
            return self._ask_or(ASK_VRFY, REPLY_VRFY, c.argument, c.length)
        if (parse_lenient_address(c.argument, c.length, &path, &end) != PATH_OK
                or (self.rules.max_local_part and path.local_length > self.rules.max_local_part)):
            return self._error(REPLY_VRFY_ADDRESS, c)
        return self._ask_or(ASK_VRFY, REPLY_VRFY, path.address, path.length)

    cdef int _auth(self, command *c) except -1:
        cdef Rules rules = self.rules
        cdef Session session = self._the_session()
        if not session.extended_smtp:
            return self._error(REPLY_AUTH_AFTER_HELO, c)
        if not (session.tls or rules.auth_in_clear):
            return self._error(REPLY_AUTH_NEEDS_TLS, c)
        if session.authenticated:
            return self._error(REPLY_AUTH_DONE, c)
        words = self._text(c.argument, c.length).split()
        if not words:
            return self._error(REPLY_AUTH_NO_MECHANISM, c)
        if len(words) > 2:
            return self._error(REPLY_AUTH_ARGUMENTS, c)
        words[0] = words[0].upper()
        if words[0] not in rules.mechanisms:
            return self._error(REPLY_AUTH_UNKNOWN, c)
        return self._ask(ASK_AUTH, words, None)

    cdef int _starttls(self, command *c) except -1:
        if not self.rules.starttls:
            return self._error(REPLY_TLS_UNAVAILABLE, c)
        if self._the_session().tls:
            return self._error(REPLY_TLS_ACTIVE, c)
        self.phase = PHASE_SECURE
        return 0

    cdef int _begin_tls(self, bint more) except -1:
        """Octets behind STARTTLS were sent in clear, to be taken for what comes inside TLS
        (CVE-2021-38371).
        """
        if not more:
            return self._say(REPLY_STARTTLS)
        self.engine.counters.bump(VIOLATIONS + VIOLATION_STARTTLS_INJECTION, 1)
        self._say(REPLY_STARTTLS_INJECTION)
        return self._close()

    # --- the transaction ------------------------------------------------------------------------------------

    cdef int _mail(self, command *c) except -1:
        cdef Engine engine = self.engine
        cdef Rules rules = self.rules
        cdef transaction_argument argument
        cdef Envelope envelope
        cdef unsigned offered = 0
        cdef bint extended = self._the_session().extended_smtp
        cdef int refusal
        if extended or rules.lenient:
            offered = (PARAMETER_SIZE | (PARAMETER_BODY if rules.eight_bit else 0)
                       | (PARAMETER_SMTPUTF8 if rules.smtputf8 else 0))
        if rules.lenient:
            refusal = self._mail_leniently(c, extended, offered, &argument)
        else:
            refusal = REFUSALS[<int>parse_mail(c.argument, c.length, offered, rules.strict_addresses, &argument)]
        if refusal:
            return self._error(refusal, c)
        if rules.max_message_size and argument.size > rules.max_message_size:
            return self._error(REPLY_TOO_BIG_DECLARED, c)
        if not self._has_memory(min(max(argument.size, <uint64_t>LEAST_MESSAGE), engine.spill_threshold)):
            return self._say(REPLY_NO_MEMORY)
        envelope = self._the_envelope()
        envelope.smtp_utf8 = (argument.given & PARAMETER_SMTPUTF8) != 0
        address = self._text(argument.path.address, argument.path.length) if argument.path.length else "<>"
        options = self._parameters(c, argument.parameters)
        if rules.hooks & 1 << ASK_MAIL:
            self.previous_name = address
            return self._ask(ASK_MAIL, address, options if options is not None else [])
        envelope.mail_from = address
        if options is not None:
            envelope.mail_options = options
        self._settle(ASK_MAIL, 250)
        return self._say(REPLY_MAIL)

    cdef int _mail_leniently(self, command *c, bint extended, unsigned offered,
                             transaction_argument *argument) except -1:
        """The reply that refuses the argument of MAIL, or 0; in the order of aiosmtpd."""
        cdef Rules rules = self.rules
        cdef argument_result result
        result = parse_lenient_path(c.argument, c.length, "FROM:", rules.max_local_part, argument)
        if result == ARGUMENT_OK and not extended and argument.parameters < c.length:
            result = ARGUMENT_SYNTAX
        if result == ARGUMENT_OK:
            if self.state >= MAIL:
                return REPLY_NESTED_MAIL
            result = parse_lenient_parameters(c.argument, c.length, offered, rules.pass_parameters, argument)
        if result == ARGUMENT_SYNTAX and extended:
            return REPLY_MAIL_SYNTAX_EXTENDED
        if result == ARGUMENT_PARAMETER and rules.max_message_size and argument.size > rules.max_message_size:
            return REPLY_TOO_BIG_DECLARED
        return REFUSALS[<int>result]

    cdef int _rcpt(self, command *c) except -1:
        cdef Engine engine = self.engine
        cdef Rules rules = self.rules
        cdef transaction_argument argument
        cdef Envelope envelope = self.envelope
        cdef argument_result result
        cdef int refusal
        self.tried += 1
        if rules.max_recipients and self.tried > rules.max_recipients + OVERSHOOT:
            return self._end_of_junk()
        if rules.lenient:
            refusal = self._rcpt_leniently(c, &argument)
        else:
            result = parse_rcpt(c.argument, c.length, envelope.smtp_utf8, rules.strict_addresses, &argument)
            refusal = RCPT_REFUSALS[<int>result]
        if refusal:
            engine.counters.bump(RECIPIENTS + RESULT_REJECTED, 1)
            return self._count_error(SMALL_ERROR, refusal, c)
        if rules.max_recipients and self.taken >= rules.max_recipients:
            engine.counters.bump(RECIPIENTS + RESULT_DEFERRED, 1)
            return self._say(REPLY_TOO_MANY_RCPT)
        if not engine.obtain(c.length + RECIPIENT):
            engine.counters.bump(RECIPIENTS + RESULT_DEFERRED, 1)
            return self._say(REPLY_NO_MEMORY)
        self.recipients_held += c.length + RECIPIENT
        address = self._text(argument.path.address, argument.path.length)
        options = self._parameters(c, argument.parameters)
        if rules.hooks & 1 << ASK_RCPT:
            self.listed = len(envelope.rcpt_tos)
            return self._ask(ASK_RCPT, address, options if options is not None else [])
        envelope.rcpt_tos.append(address)
        if options is not None:
            envelope.rcpt_options.extend(options)
        self._settle(ASK_RCPT, 250)
        return self._say(REPLY_RCPT)

    cdef int _rcpt_leniently(self, command *c, transaction_argument *argument) except -1:
        """The reply that refuses the argument of RCPT, or 0; in the order of aiosmtpd."""
        cdef Rules rules = self.rules
        cdef bint extended = self._the_session().extended_smtp
        cdef argument_result result
        result = parse_lenient_path(c.argument, c.length, "TO:", rules.max_local_part, argument)
        if result == ARGUMENT_OK:
            if argument.path.length == 0:
                return REPLY_RCPT_ADDRESS
            if not extended and argument.parameters < c.length:
                result = ARGUMENT_SYNTAX
            else:
                result = parse_lenient_parameters(c.argument, c.length, 0, rules.pass_parameters, argument)
                if argument.given and not rules.pass_parameters:
                    result = ARGUMENT_PARAMETER
        if result == ARGUMENT_SYNTAX and extended:
            return REPLY_RCPT_SYNTAX_EXTENDED
        return RCPT_REFUSALS[<int>result]

    cdef object _parameters(self, command *c, size_t at):
        """The parameters as they were sent, or ``None`` without any."""
        cdef parameter p
        if at == c.length:
            return None
        options = []
        while next_parameter(c.argument, c.length, &at, &p) == PARAMETER_OK:
            option = self._text(p.keyword, c.argument + at - p.keyword)
            if self.rules.lenient:
                # In upper case, as aiosmtpd's handlers look for them; but a value that is not to be told apart by
                # case is all that may be changed.
                keyword, equals, value = option.partition("=")
                keyword = keyword.upper()
                option = keyword + equals + (value.upper() if keyword in ("BODY", "SIZE") else value)
            options.append(option)
        return options

    cdef int _data(self) except -1:
        self.phase = PHASE_CONTENT
        self.reception = receive(self.engine, self.rules, monotonic())
        return self._say(REPLY_DATA)

    cdef int _end_of_content(self) except -1:
        cdef Counters counters = self.engine.counters
        cdef Rules rules = self.rules
        cdef Reception reception = self.reception
        cdef content *c = &reception.content
        cdef int refusal = reception.refusal(self)
        self.phase = PHASE_COMMAND
        self.served = True
        counters.measure(MESSAGE_SIZE, <double>c.size)
        counters.measure(DATA_READ, monotonic() - reception.began)
        if c.bare_cr or c.bare_lf:
            counters.bump(VIOLATIONS + VIOLATION_BARE_NEWLINE_CONTENT, 1)
        if reception.rest_length:
            self._adopt(reception.rest, reception.rest_length)
            reception.rest = NULL
        if refusal:
            counters.bump(MESSAGES + result_of(rules.book.codes[refusal]), 1)
            self._say_to_each(refusal)
            self._end_transaction()
            return self._finish_performing()
        if rules.hooks & 1 << ASK_DATA:
            return self._ask(ASK_DATA, reception.message(), None)
        if rules.log_mail == LOG_ALL:
            self._log(rules.book.text(REPLY_ACCEPTED))
        self._say_to_each(REPLY_ACCEPTED)
        self._settle(ASK_DATA, 250)
        return self._finish_performing()

    cdef int _say_to_each(self, int reply) except -1:
        """Replies to content: under LMTP once for each recipient (RFC 2033 4.2)."""
        cdef Book book = self.rules.book
        if not self.rules.lmtp:
            return self._say(reply)
        self.engine.counters.bump(word_of_code(book.codes[reply]), self.taken)
        return self._put(book.text(reply) * self.taken)     # at once: it is one line in the log of mail

    cdef int _end_transaction(self) except -1:
        self.envelope = None
        if self.reception is not None:
            self.reception.drop()
            self.reception = None
        if self.recipients_held:
            self.engine.release(self.recipients_held)
            self.recipients_held = 0
        self.transaction = False
        self.tried = 0
        self.taken = 0
        if self.state > READY:
            self.state = READY
        return 0

    cdef Envelope _the_envelope(self):
        if self.envelope is None:
            if self.rules.makes_facts:
                self.envelope = self.make_envelope()
            else:
                self.envelope = Envelope.__new__(Envelope)
                self.envelope.rcpt_tos = []
        return self.envelope
