# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The SMTP dialogue, without input and output: octets in, replies out, and asks where Python has a hook.

Knows every rule of SMTP that this server holds, and holds each of them once: lines and pipelining, the verb
by state table, what is answered and when. Refuses to know sockets, event loops, files and handlers, and how
content is kept.

A turn is: octets come (``get_buffer``, ``buffer_updated``), commands are done one after another without leaving
C, and all their replies go out in one write. A hook's answer may come at once or later; until it is there,
nothing more is done, and what the client sends meanwhile is kept.
"""

import cython

from cpython.bytearray cimport PyByteArray_FromObject
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcpy

from fastsmtp._engine cimport *
from fastsmtp._envelope cimport Envelope, Session
from fastsmtp._reception cimport Reception, receive
from fastsmtp._rules cimport *
from fastsmtp.command cimport *
from fastsmtp.content cimport content

cdef extern from *:
    """
    #include <time.h>
    static inline double fastsmtp_monotonic(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    }
    """
    double monotonic "fastsmtp_monotonic"() noexcept nogil


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
cdef int REFUSALS[8]
REFUSALS[:] = [0, REPLY_MAIL_SYNTAX, REPLY_MAIL_ADDRESS, REPLY_PARAMETER_VALUE, REPLY_MAIL_PARAMETER,
               REPLY_NEED_SMTPUTF8, REPLY_BODY_VALUE, REPLY_SMTPUTF8_VALUE]
cdef int RCPT_REFUSALS[8]
RCPT_REFUSALS[:] = [0, REPLY_RCPT_SYNTAX, REPLY_RCPT_ADDRESS, REPLY_PARAMETER_VALUE, REPLY_RCPT_PARAMETER,
                    REPLY_NEED_SMTPUTF8, REPLY_RCPT_PARAMETER, REPLY_RCPT_PARAMETER]

# What may be said before STARTTLS where it is required (RFC 3207 4), as bits of verbs.
cdef unsigned CLEAR_VERBS = (1 << VERB_NOOP | 1 << VERB_EHLO | 1 << VERB_STARTTLS | 1 << VERB_QUIT
                             | 1 << VERB_KNOWN | 1 << VERB_FOREIGN | 1 << VERB_UNKNOWN)
# What may only be said after AUTH where that is required.
cdef unsigned AUTH_VERBS = 1 << VERB_HELP | 1 << VERB_VRFY | 1 << VERB_MAIL | 1 << VERB_RCPT | 1 << VERB_DATA

TIMEOUT_STATES = ("command", "data", "transaction", "handler")

cdef enum:
    MUCH_RESPONSE = 12288       # octets of a line that answers a challenge (RFC 4954 4)
    MUCH_REPLY = 32 * 1024      # replies of one turn beyond this are written before the next command is done
    TLS_HANDSHAKE = 0x16        # the first octet of a TLS record that no SMTP client in clear begins with


cdef int code_of(bytes reply) except -1:
    cdef const char *p = PyBytes_AS_STRING(reply)
    if PyBytes_GET_SIZE(reply) < 5:
        raise ValueError(f"no reply: {reply!r}")
    return (p[0] - 48) * 100 + (p[1] - 48) * 10 + p[2] - 48


cdef int result_of(int code) noexcept:
    return RESULT_ACCEPTED if code < 400 else RESULT_DEFERRED if code < 500 else RESULT_REJECTED


@cython.no_gc_clear     # the memory goes back to the engine, which must still be there
cdef class Dialogue:
    """One connection's dialogue. A subclass gives ``ask``, ``hang_up``, ``secure``, ``pause_reading``,
    ``resume_reading``, ``give_way``, ``failed``; some rules want more of it.

    ``engine`` is what all dialogues of the worker share; ``rules`` are its own from the next command on if they
    are changed. A dialogue begins with ``connect`` and ends with ``disconnect``.
    """

    def __cinit__(self, engine=None, *args, **kwargs):
        self.tail = NULL
        self.phase = PHASE_NEW
        if isinstance(engine, Engine):
            self.join(engine)

    def __dealloc__(self):
        free(self.tail)

    # --- what a subclass gives ------------------------------------------------------------------------------

    def ask(self, int kind, argument, options):
        """Called for a hook in the engine's mask: returns the reply as octets with CRLF, or ``None`` when
        ``answer`` will be called later.

        ``kind`` is a position in ``ASKS``. ``argument`` is the hello name, the address, the argument of NOOP
        or VRFY (``str``), the content at DATA (``bytes``, a ``Block`` or the spill), the words after AUTH
        (a list), or verb and argument of a whole command. ``options`` is the list of parameters at MAIL and RCPT,
        else ``None``.
        """
        raise NotImplementedError

    def hang_up(self):
        """Called when the last reply was written: the connection is to be closed."""

    def secure(self):
        """Called when the reply to STARTTLS was written: TLS is to begin, then ``secured`` to be called."""

    def pause_reading(self):
        """Called when nothing more is to be read for now."""

    def resume_reading(self):
        """Called when reading may go on."""

    def give_way(self):
        """Called when content filled a whole read: there is more, and others may be waiting."""

    def failed(self, error):
        """Called when content could not be stored, with the exception; the client is told 452 4.3.1."""

    def preface(self, octets):
        """Called with what comes before the greeting, after ``expect_preface``: returns how many octets of it belong
        to the preface, which is then whole, or -1 when all do and it is not. After it ``connect`` is called, now or
        later.
        """
        raise NotImplementedError

    def trace(self, line):
        """Called with each command line, where the rules say so."""

    def responded(self, line):
        """Called with the line that answers ``challenge``, or ``None`` when the client was refused instead."""
        raise NotImplementedError

    def performed(self):
        """Called when the command that ``perform`` began, and that was not done at once, is done."""
        raise NotImplementedError

    def make_session(self):
        """Called for a ``Session``, where the rules say that they are made elsewhere."""
        raise NotImplementedError

    def make_envelope(self):
        """Called for an ``Envelope``, where the rules say that they are made elsewhere."""
        raise NotImplementedError

    # --- beginning and end ----------------------------------------------------------------------------------

    def join(self, Engine engine not None):
        """Makes ``engine`` its own, with its rules; for a subclass that is not made with one."""
        self.engine = engine
        self.rules = engine.rules

    @cython.nonecheck(True)
    def connect(self, write):
        """Begins: greets, or asks the CONNECT hook. ``write`` takes the octets of a turn's replies."""
        cdef Engine engine = self.engine
        self._write = write
        self.last = engine.now
        self.connected = True
        engine.live.add(self)
        engine.counters.bump(CONNECTIONS, 1)
        engine.counters.bump(CONNECTIONS_ACTIVE, 1)
        if self.rules.hooks & 1 << ASK_CONNECT:
            self._ask(ASK_CONNECT, None, None)
        else:
            self._say(REPLY_GREETING)
            self.phase = PHASE_COMMAND
        self._flush()

    def expect_preface(self):
        """Something comes before the dialogue begins: ``preface`` is given it."""
        self.phase = PHASE_PREFACE

    def handshake(self):
        """What comes from now on comes from inside TLS, and waits for ``secured``; before, it was in clear."""
        self.in_handshake = True

    def disconnect(self):
        """Ends: the connection is gone. Content that was coming is dropped."""
        cdef Engine engine = self.engine
        if not self.connected:
            return
        self.connected = False
        engine.live.discard(self)
        engine.counters.drop(CONNECTIONS_ACTIVE, 1)
        if self.phase == PHASE_CONTENT:
            engine.counters.bump(MESSAGES + RESULT_ABORTED, 1)
        self._close()
        self._write = None

    def secured(self, ssl, write):
        """Goes on under TLS, with ``ssl`` the ``ssl.SSLObject`` and a new ``write``: what was said in clear
        is forgotten (RFC 3207 4.2), but the session is the same. ``go_on`` is to be called next.
        """
        cdef Session session = self._the_session()
        self._write = write
        session.ssl = ssl
        session.tls = True
        session.host_name = None
        session.extended_smtp = False
        session.authenticated = None
        session.auth_data = None
        self.state = START
        self.last = self.engine.now
        self.in_handshake = False
        self._end_transaction()
        if self.phase == PHASE_SECURE:
            self.phase = PHASE_COMMAND
            self._finish_performing()

    def distrust(self):
        """What TLS told of the client is not enough: nothing but QUIT is done for it (RFC 3207 4.1)."""
        self.distrusted = True

    @property
    def session(self):
        """The facts of this connection."""
        return self._the_session()

    @property
    def closed(self):
        """Whether the dialogue is over."""
        return self.phase == PHASE_CLOSED

    @property
    def asked(self):
        """The kind of ask whose answer is waited for, or 0."""
        return self.asking

    @property
    def responding(self):
        """Whether the client is to answer a challenge."""
        return self.phase == PHASE_RESPONSE

    @property
    def quiet(self):
        """Whether the client is between two messages, or in a handshake, and has nothing under way."""
        if self.phase == PHASE_SECURE:
            return True
        return (self.phase == PHASE_COMMAND and self.state < MAIL and self.asking == ASK_NOTHING
                and self.tail_length == 0)

    # --- octets in ------------------------------------------------------------------------------------------

    @cython.nonecheck(True)
    def get_buffer(self, sizehint):
        """Where the next octets go: the worker's buffer, or the memory of the message that comes."""
        cdef object buffer = None
        self.in_memory = False
        self.offered = RECEIVE_CONTENT
        if self.phase != PHASE_CONTENT or self.held_back:
            return self.engine.commands_view
        buffer = self.reception.buffer(&self.offered)
        if buffer is None:
            return self.engine.content_view
        self.in_memory = True
        return buffer

    def buffer_updated(self, size_t nbytes):
        """``nbytes`` octets came into what ``get_buffer`` gave last: does a turn."""
        cdef Engine engine = self.engine
        cdef char *p
        engine.counters.bump(RECEIVED_BYTES, nbytes)
        if self.phase == PHASE_CONTENT:
            self.last = engine.now
        if self.in_memory:
            p = self.reception.place()
        else:
            p = engine.receive + HEADROOM
            if self.in_handshake:
                self._keep(p, nbytes, True)
                return
            if self._waits():
                # One read may be kept; then nothing more is read until there is an answer.
                self._keep(p, nbytes, True)
                self.pause_reading()
                return
            if self.tail_length:
                memcpy(p - self.tail_length, self.tail, self.tail_length)
                p -= self.tail_length
                nbytes += self.tail_length
                self._keep(NULL, 0, False)
        self._turn(p, nbytes)
        if nbytes >= self.offered and self.phase == PHASE_CONTENT:
            self.give_way()

    def feed(self, data):
        """Takes ``data`` as if it had come over the wire; for those who have octets and no socket."""
        cdef size_t size
        octets = memoryview(data).cast("B")
        while octets and self.phase != PHASE_CLOSED:
            buffer = self.get_buffer(-1)
            size = min(len(octets), len(buffer))
            buffer[:size] = octets[:size]
            octets = octets[size:]
            self.buffer_updated(size)

    def answer(self, bytes reply not None):
        """The reply, with CRLF, to what ``ask`` left open; goes on with what came meanwhile.

        It may be empty for AUTH and for a whole command, when all is said. Raises ``RuntimeError`` when nothing was
        asked. After the end of the connection it does nothing.
        """
        if self.asking == ASK_NOTHING:
            raise RuntimeError("an answer that nobody asked for")
        if self.phase == PHASE_CLOSED:
            # The client is gone, but what a handler did with the message counts.
            if self.asking == ASK_DATA:
                self.engine.counters.bump(MESSAGES + result_of(code_of(reply)), 1)
            self.asking = ASK_NOTHING
            return
        self._answered(reply)
        self.last = self.engine.now
        self._turn(NULL, 0)
        self.take_turn()

    def tell(self, bytes octets not None):
        """Says something, with CRLF, that is no answer: now, after all that was said before."""
        if self.phase == PHASE_CLOSED:
            return
        if len(octets) > 4 and octets[3] == b" ":
            self.engine.counters.bump(word_of_code(code_of(octets)), 1)
        self._put(octets)
        self._flush()

    def challenge(self, bytes reply not None):
        """Within an ask: says ``reply`` (a 334) and gives the client's next line to ``responded``."""
        if self.asking == ASK_NOTHING or self.phase == PHASE_RESPONSE:
            raise RuntimeError("a challenge that nobody asked for")
        if self.phase == PHASE_CLOSED:
            return
        self.phase = PHASE_RESPONSE
        self.last = self.engine.now
        self._put(reply)
        self._turn(NULL, 0)
        self.take_turn()

    def perform(self, str verb not None, argument):
        """Does a command as the dialogue would do it, within the ask for that whole command. Returns whether it is
        done; if not, ``performed`` is called when it is.

        Raises ``RuntimeError`` when no whole command was asked for.
        """
        cdef command c
        if self.asking != ASK_COMMAND or self.phase != PHASE_COMMAND:
            raise RuntimeError(f"{verb} can be done only within the command that a client sent")
        line = verb.encode()
        if argument:
            line += b" " + argument.encode("utf-8", "surrogateescape")
        parse_command(PyBytes_AS_STRING(line), len(line), &c)
        self.asking = ASK_NOTHING
        self.performing = True
        self._perform(&c)
        self.performing = self.phase != PHASE_CLOSED and (self.asking or self.phase != PHASE_COMMAND)
        if not self.performing:
            self.asking = ASK_COMMAND
        done = not self.performing
        self._flush()
        self.take_turn()
        return done

    cdef int _finish_performing(self) except -1:
        """The end of what ``perform`` began and could not finish at once."""
        if self.performing and not self.asking and self.phase == PHASE_COMMAND:
            self.performing = False
            self.asking = ASK_COMMAND
            self.performed()
        return 0

    cdef bint _waits(self) noexcept:
        """Whether nothing that the client sends can be taken now."""
        return (self.held_back or self.phase == PHASE_NEW
                or (self.asking != ASK_NOTHING and self.phase != PHASE_RESPONSE))

    def take_turn(self):
        """Reading goes on after ``give_way``, unless something else keeps it."""
        if not self._waits() and self.phase != PHASE_CLOSED:
            self.resume_reading()

    def hold_back(self):
        """The client does not read its replies: no command is done until ``go_on``."""
        self.held_back = True
        self.pause_reading()

    def go_on(self):
        """The client reads again."""
        self.held_back = False
        if not self._waits() and self.phase != PHASE_CLOSED:
            self._turn(NULL, 0)
            self.take_turn()

    # --- time -----------------------------------------------------------------------------------------------

    def overdue(self):
        """Which of ``TIMEOUT_STATES`` has lasted too long by the engine's clock, or ``None``."""
        cdef Rules rules = self.rules
        cdef double now = self.engine.now
        if self.phase == PHASE_SECURE:
            return None     # the handshake has a time of its own
        if self.phase == PHASE_CLOSED:
            # The last replies are still to be read by the client, which may never do that.
            return "command" if self.connected and now - self.last > rules.idle_timeout else None
        if self.asking and self.phase != PHASE_RESPONSE:
            return "handler" if now - self.asked_at > rules.handler_timeout else None
        if now - self.last > rules.idle_timeout:
            return "data" if self.phase == PHASE_CONTENT else "command"
        if self.transaction and now - self.transaction_began > rules.transaction_timeout:
            return "transaction"
        return None

    def expire(self, str state):
        """Ends what ``overdue`` named: a hook's time with 451 4.4.5, anything else with 421 4.4.2."""
        self.engine.counters.bump(TIMEOUTS + <int>TIMEOUT_STATES.index(state), 1)
        if state == "handler":
            self.answer(self.rules.book.text(REPLY_HANDLER_TIMEOUT))
        elif self.phase != PHASE_CLOSED:
            self._leave(REPLY_IDLE)

    def end(self):
        """Ends the connection without a word."""
        if self.phase != PHASE_CLOSED:
            self._close()
            self._flush()

    def shut_down(self):
        """Tells the client that the server goes away (421 4.3.2) and ends."""
        if self.phase == PHASE_SECURE:
            self._close()   # nothing can be said within a handshake
            self._flush()
        elif self.phase != PHASE_CLOSED:
            self._leave(REPLY_SHUTDOWN)

    cdef int _leave(self, int reply) except -1:
        if self.phase == PHASE_CONTENT:
            self.engine.counters.bump(MESSAGES + RESULT_ABORTED, 1)
        self._say(reply)
        self._close()
        return self._flush()

    # --- the turn -------------------------------------------------------------------------------------------

    cdef int _turn(self, char *p, size_t n) except -1:
        cdef char *tail
        if n:
            self._consume(p, n)
        while self.tail_pending and not (self._waits() or self.phase >= PHASE_SECURE):
            tail = self.tail
            n = self.tail_length
            self.tail = NULL
            self.tail_length = 0
            self.tail_pending = False
            try:
                self._consume(tail, n)
            finally:
                free(tail)
        return self._flush()

    cdef int _consume(self, char *p, size_t n) except -1:
        cdef size_t at = 0, taken
        cdef Py_ssize_t prefaced
        while at < n:
            if self.phase >= PHASE_SECURE:
                return 0    # what follows the last command is nobody's
            if self._waits():
                return self._keep(p + at, n - at, True)
            if self.phase == PHASE_PREFACE:
                prefaced = self.preface(p[at:n])
                if prefaced < 0:
                    return 0
                at += prefaced
                if self.phase == PHASE_PREFACE:
                    self.phase = PHASE_NEW
            elif self.phase == PHASE_CONTENT:
                at += self.reception.take(p + at, n - at)
                if self.reception.ended():
                    self._end_of_content()
            else:
                taken = self._lines(p + at, n - at)
                if taken == 0:
                    return self._keep(p + at, n - at, False)
                at += taken
                if self.phase == PHASE_SECURE:
                    return self._begin_tls(at < n)
                if self.more_replies is not None and len(self.more_replies) > MUCH_REPLY:
                    self._flush()
        return 0

    cdef int _keep(self, const char *p, size_t n, bint pending) except -1:
        """Adds to the tail; without octets, drops it."""
        cdef char *tail
        self.tail_pending = pending
        if n == 0:
            free(self.tail)
            self.tail = NULL
            self.tail_length = 0
            return 0
        tail = <char *>realloc(self.tail, self.tail_length + n)
        if tail == NULL:
            raise MemoryError()
        memcpy(tail + self.tail_length, p, n)
        self.tail = tail
        self.tail_length += n
        return 0

    cdef size_t _lines(self, char *p, size_t n) except? 0:
        """Takes one line, or part of one that is to be discarded; 0 when the line is not whole yet."""
        cdef char *lf = <char *>memchr(p, b"\n", n)
        cdef size_t length = lf - p + 1 if lf != NULL else n
        cdef Counters counters = self.engine.counters
        cdef Rules rules = self.rules
        cdef unsigned longest = max(rules.max_command_line, <unsigned>MUCH_RESPONSE) if self.asking else (
            rules.max_command_line)
        cdef bint after_cr

        if self.phase == PHASE_DISCARD:
            after_cr = p[length - 2] == b"\r" if length > 1 else self.last_cr
            if lf == NULL:
                self.last_cr = p[n - 1] == b"\r"
            elif after_cr or self.rules.lenient:
                self.phase = PHASE_COMMAND
                self.last = self.engine.now
                if self.asking:
                    self._say(REPLY_AUTH_TOO_LONG)
                    self.responded(None)
                elif self.long_line:
                    self._error(REPLY_LINE_TOO_LONG, NULL)
            else:
                self.last_cr = False
            return length

        if not self.spoke:
            self.spoke = True
            if <uint8_t>p[0] == TLS_HANDSHAKE and not rules.lenient and not self._the_session().tls:
                counters.bump(VIOLATIONS + VIOLATION_FOREIGN_PROTOCOL, 1)
                self._say(REPLY_FOREIGN)
                self._close()
                return n
        if length > longest or (lf == NULL and length == longest):
            # Told at its end, for the client is still speaking.
            counters.bump(VIOLATIONS + VIOLATION_LINE_TOO_LONG, 1)
            self.phase = PHASE_DISCARD
            self.long_line = True
            self.last_cr = False
            return self._lines(p, n)
        if lf == NULL:
            return 0
        self.last = self.engine.now
        if rules.lenient:
            n = length
            while n > 0 and (p[n - 1] == b"\n" or p[n - 1] == b"\r"):
                n -= 1
            self._line(p, n)
            return length
        if length < 2 or p[length - 2] != b"\r":
            # A bare LF ends no line (RFC 5321 2.3.8). The error comes at once, as a person with a tool that
            # sends LF would wait forever; the rest is not run as commands.
            counters.bump(VIOLATIONS + VIOLATION_BARE_NEWLINE_COMMAND, 1)
            self.phase = PHASE_DISCARD
            self.long_line = False
            self.last_cr = False
            self._error(REPLY_BARE_NEWLINE, NULL)
            return length
        self._line(p, length - 2)
        return length

    cdef int _line(self, const char *line, size_t n) except -1:
        """A whole line: a command, or what answers a challenge."""
        if self.phase != PHASE_RESPONSE:
            return self._command(line, n)
        self.phase = PHASE_COMMAND
        self.asked_at = monotonic()
        if n == 1 and line[0] == b"*":
            self._say(REPLY_AUTH_ABORTED)
            self.responded(None)
        else:
            self.responded(line[:n])
        return 0

    # --- commands -------------------------------------------------------------------------------------------

    cdef int _command(self, const char *line, size_t n) except -1:
        cdef Engine engine = self.engine
        cdef Rules rules = self.rules
        cdef command c
        cdef uint8_t octets = 0
        cdef bint bad = False
        cdef size_t i
        cdef int refusal
        for i in range(n):
            octets |= <uint8_t>line[i]
            bad |= line[i] == 0 or line[i] == b"\r"
        if rules.traced:
            self.trace(line[:n])
        if n == 0 and rules.lenient:
            return self._say(REPLY_BAD_SYNTAX)
        parse_command(line, n, &c)
        if bad or octets & 0x80:
            refusal = self._bad_octets(&c, line, n, bad)
            if refusal:
                engine.counters.bump(VIOLATIONS + VIOLATION_BAD_OCTETS, 1)
                return self._error(refusal, &c)
        if rules.max_command and n > self._longest(&c):
            return self._error(REPLY_LINE_TOO_LONG, &c)
        if not rules.verbs >> <int>c.verb & 1:
            c.verb = <verb>rules.unoffered
        engine.counters.bump(COMMANDS + <int>c.verb, 1)
        if engine.draining and c.verb != VERB_QUIT:
            engine.counters.bump(CONNECTIONS_REJECTED + REJECTED_DRAIN, 1)
            self._say(REPLY_SHUTDOWN)
            return self._close()
        if self.distrusted and c.verb != VERB_QUIT:
            return self._error(REPLY_DISTRUSTED, &c)
        if rules.require_starttls and not CLEAR_VERBS >> <int>c.verb & 1 and not self._the_session().tls:
            return self._error(REPLY_NEED_STARTTLS, &c)
        if rules.call_limits is not None and self._over_limit(&c):
            engine.counters.bump(VIOLATIONS + VIOLATION_TOO_MANY_ERRORS, 1)
            self._refuse(REPLY_TOO_MANY_CALLS, &c)
            return self._close()
        if rules.whole >> <int>c.verb & 1 or (c.verb == VERB_UNKNOWN and rules.own_verbs
                                              and self._verb(&c) in rules.own_verbs):
            argument = self._text(c.argument, c.length) if c.argument > c.word + c.word_length else None
            return self._ask(ASK_COMMAND, (self._verb(&c), argument), None)
        return self._perform(&c)

    cdef int _bad_octets(self, command *c, const char *line, size_t n, bint bad) except -1:
        """The reply to octets that are not ASCII or that no line may have, or 0."""
        cdef size_t i
        if bad:
            return REPLY_BAD_OCTETS
        if self.rules.lenient:
            for i in range(c.word_length):
                if <uint8_t>c.word[i] & 0x80:
                    return REPLY_BAD_SYNTAX
        if not self.rules.smtputf8:
            return REPLY_NOT_ASCII
        return 0 if self.rules.lenient or valid_utf8(line, n) else REPLY_BAD_OCTETS

    cdef size_t _longest(self, command *c) except 0:
        """Octets that a command may have: MAIL gets room for its parameters (RFC 1870 3, RFC 6531 3.4)."""
        cdef Rules rules = self.rules
        cdef size_t longest = rules.max_command
        if rules.max_commands is not None:
            longest = rules.max_commands.get(self._verb(c), longest)
        if c.verb == VERB_MAIL and self._the_session().extended_smtp:
            longest += (26 if rules.max_message_size else 0) + (10 if rules.smtputf8 else 0)
        return longest

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
        if action == -REPLY_NEED_RCPT and self.rcpt_tried:
            return self._error(REPLY_NO_VALID_RCPT, c)
        return self._error(-action, c)

    cdef int _do(self, int action, command *c) except -1:
        cdef Engine engine = self.engine
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
            engine.counters.bump(VIOLATIONS + VIOLATION_FOREIGN_PROTOCOL, 1)
            self._say(REPLY_FOREIGN)
            return self._close()
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

    cdef int _hello(self, command *c, bint extended) except -1:
        cdef Session session = self._the_session()
        cdef int kind = ASK_EHLO if extended else ASK_HELO
        if c.length == 0 or (c.length > 255 and not self.rules.lenient):
            return self._error(REPLY_HELO_ARGUMENT, c)
        self.previous_name = session.host_name
        self.previous_extended = session.extended_smtp
        session.extended_smtp = extended
        session.host_name = self._text(c.argument, c.length)
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
        if parse_lenient_address(c.argument, c.length, &path, &end) != PATH_OK:
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
            refusal = REFUSALS[<int>parse_mail(c.argument, c.length, offered, &argument)]
        if refusal:
            return self._error(refusal, c)
        if rules.max_message_size and argument.size > rules.max_message_size:
            return self._error(REPLY_TOO_BIG_DECLARED, c)
        if engine.held >= engine.memory_budget:
            return self._say(REPLY_NO_ROOM)
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
        if result in (ARGUMENT_OK, ARGUMENT_PARAMETER) and argument.given & PARAMETER_SMTPUTF8 and not rules.smtputf8:
            return REPLY_SMTPUTF8_DISABLED
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
        self.rcpt_tried = True
        if rules.lenient:
            refusal = self._rcpt_leniently(c, &argument)
        else:
            result = parse_rcpt(c.argument, c.length, envelope.smtp_utf8, &argument)
            refusal = RCPT_REFUSALS[<int>result]
        if refusal:
            engine.counters.bump(RECIPIENTS + RESULT_REJECTED, 1)
            return self._error(refusal, c)
        if rules.max_recipients and self.recipients >= rules.max_recipients:
            engine.counters.bump(RECIPIENTS + RESULT_DEFERRED, 1)
            return self._say(REPLY_TOO_MANY_RCPT)
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
        self.reception = receive(self.engine, self.rules, self, monotonic())
        return self._say(REPLY_DATA)

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

    cdef int _end_of_content(self) except -1:
        cdef Counters counters = self.engine.counters
        cdef Reception reception = self.reception
        cdef content *c = &reception.content
        cdef int refusal = reception.refusal()
        self.phase = PHASE_COMMAND
        counters.measure(MESSAGE_SIZE, <double>c.size)
        counters.measure(DATA_READ, monotonic() - reception.began)
        if c.bare_cr or c.bare_lf:
            counters.bump(VIOLATIONS + VIOLATION_BARE_NEWLINE_CONTENT, 1)
        if reception.rest_length:
            self._keep(reception.rest, reception.rest_length, True)
        if refusal:
            counters.bump(MESSAGES + (RESULT_DEFERRED if refusal == REPLY_NO_ROOM else RESULT_REJECTED), 1)
            self._say_to_each(refusal)
            self._end_transaction()
            return self._finish_performing()
        if self.rules.hooks & 1 << ASK_DATA:
            return self._ask(ASK_DATA, reception.message(), None)
        self._say_to_each(REPLY_ACCEPTED)
        self._settle(ASK_DATA, 250)
        return self._finish_performing()

    cdef int _say_to_each(self, int reply) except -1:
        """Replies to content: under LMTP once for each recipient (RFC 2033 4.2)."""
        for _ in range(self.recipients if self.rules.lmtp else 1):
            self._say(reply)
        return 0

    # --- asks and answers -----------------------------------------------------------------------------------

    cdef int _ask(self, int kind, object argument, object options) except -1:
        self._the_envelope()    # a hook always has one, as aiosmtpd's hooks do
        self.asking = kind
        self.asked_at = monotonic()
        reply = self.ask(kind, argument, options)
        if reply is not None and self.asking == kind:
            self._answered(reply)
        return 0

    cdef int _answered(self, bytes reply) except -1:
        cdef int kind = self.asking
        cdef int code = 0
        cdef Counters counters = self.engine.counters
        if reply or kind < ASK_AUTH:
            code = code_of(reply)
            counters.bump(word_of_code(code), 1)
            self._put(reply)
        self.asking = ASK_NOTHING
        counters.measure(HANDLER_TIME + (kind - 1) * 18, monotonic() - self.asked_at)
        self._settle(kind, code)
        if code == 421 and self.phase != PHASE_CLOSED:
            self._close()
        return self._finish_performing()

    cdef int _settle(self, int kind, int code) except -1:
        """What the reply to a command means for the dialogue."""
        cdef Engine engine = self.engine
        cdef bint ok = 200 <= code < 300
        cdef Session session
        cdef Envelope envelope

        if kind == ASK_MAIL:
            envelope = self._the_envelope()
            if ok:
                if envelope.mail_from is None:
                    envelope.mail_from = self.previous_name
                self.state = MAIL
                self.transaction = True
                self.transaction_began = engine.now
            else:
                self.envelope = None
            self.previous_name = None
        elif kind == ASK_RCPT:
            engine.counters.bump(RECIPIENTS + result_of(code), 1)
            if ok:
                self.recipients += 1
                if len(self.envelope.rcpt_tos):
                    self.state = RCPT
            elif self.rules.hooks & 1 << ASK_RCPT:
                # A hook may have added the address before it failed; its client was told that it is not taken.
                del self.envelope.rcpt_tos[self.listed:]
        elif kind == ASK_DATA:
            engine.counters.bump(MESSAGES + result_of(code), 1)
            self._end_transaction()
        elif kind == ASK_EHLO or kind == ASK_HELO:
            session = self._the_session()
            if ok:
                self.state = READY
                self._end_transaction()
            else:   # "a refused EHLO keeps the state" (RFC 5321 4.1.4)
                session.host_name = self.previous_name
                session.extended_smtp = self.previous_extended
            self.previous_name = None
        elif kind == ASK_CONNECT:
            if ok:
                self.phase = PHASE_COMMAND
            else:
                engine.counters.bump(CONNECTIONS_REJECTED + REJECTED_HANDLER, 1)
                self._close()
        elif kind == ASK_QUIT:
            self._close()
        elif kind == ASK_COMMAND:
            self._look()
        return 0

    cdef int _look(self) except -1:
        """Where the dialogue is after Python did a whole command, by what it left in session and envelope."""
        cdef Envelope envelope = self.envelope
        if self.phase == PHASE_RESPONSE:
            self.phase = PHASE_COMMAND
        self.state = READY if self._the_session().host_name else START
        self.recipients = 0
        if envelope is not None and envelope.mail_from:
            if not self.transaction:
                self.transaction = True
                self.transaction_began = self.engine.now
            self.recipients = len(envelope.rcpt_tos)
            self.state = RCPT if self.recipients else MAIL
        else:
            self.transaction = False
        return 0

    cdef int _end_transaction(self) except -1:
        self.envelope = None
        if self.reception is not None:
            self.reception.drop()
            self.reception = None
        self.transaction = False
        self.rcpt_tried = False
        self.recipients = 0
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

    @cython.nonecheck(True)
    cdef Session _the_session(self):
        if self._session is None:
            self._session = self.make_session() if self.rules.makes_facts else Session.__new__(Session)
        return self._session

    cdef object _text(self, const char *p, size_t n):
        return PyUnicode_DecodeUTF8(p, n, "surrogateescape")

    # --- replies out ----------------------------------------------------------------------------------------

    cdef int _say(self, int reply) except -1:
        cdef Book book = self.rules.book
        self.engine.counters.bump(word_of_code(book.codes[reply]), 1)
        return self._put(book.text(reply))

    cdef int _error(self, int reply, command *c) except -1:
        """Refuses a command; too many of these, and the client is no mail client."""
        cdef Rules rules = self.rules
        if reply == REPLY_UNKNOWN or not rules.lenient:
            self.errors += 1
            if rules.max_errors and self.errors >= rules.max_errors:
                self.engine.counters.bump(VIOLATIONS + VIOLATION_TOO_MANY_ERRORS, 1)
                self._say(REPLY_TOO_MANY_ERRORS)
                return self._close()
        return self._refuse(reply, c)

    cdef int _refuse(self, int reply, command *c) except -1:
        """Says a reply that may name the command."""
        cdef Book book = self.rules.book
        if c == NULL or not book.filled_in[reply]:
            return self._say(reply)
        self.engine.counters.bump(word_of_code(book.codes[reply]), 1)
        text = book.text(reply).replace(b"{verb}", self._verb(c).encode())
        return self._put(text.replace(b"{argument}", c.argument[:c.length]))

    cdef str _verb(self, command *c):
        """The command's name as it is written in replies."""
        return PyUnicode_DecodeUTF8(c.word, c.word_length, "surrogateescape").upper()

    cdef int _put(self, bytes text) except -1:
        if self.first_reply is None:
            self.first_reply = text
            return 0
        if self.more_replies is None:
            self.more_replies = PyByteArray_FromObject(self.first_reply)
        self.more_replies += text
        return 0

    cdef int _close(self) except -1:
        self.phase = PHASE_CLOSED
        self._keep(NULL, 0, False)
        if self.reception is not None and not self.asking:  # else a hook has the content
            self.reception.drop()
        return 0

    cdef int _flush(self) except -1:
        """Writes the replies of the turn; then does what had to wait for them."""
        cdef object replies = None
        if self.first_reply is not None:
            replies = self.first_reply if self.more_replies is None else self.more_replies
            self.first_reply = None
            self.more_replies = None
            if self._write is not None:
                self._write(replies)
        if self.phase == PHASE_CLOSED:
            if self.connected:
                self.hang_up()
        elif self.phase == PHASE_SECURE and replies is not None:
            self.secure()
        return 0
