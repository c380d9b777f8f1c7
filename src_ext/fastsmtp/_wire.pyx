# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""One connection's octets: lines and content in, replies out.

Knows buffers, line ends, pipelining and turns: octets come (``get_buffer``, ``buffer_updated``), what is whole is
taken piece after piece without leaving C, and all replies go out in one write. While something is asked for, nothing
more is taken, and what the client sends meanwhile is kept. Refuses to know commands, sockets and event loops.
"""

import cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcpy

from fastsmtp._engine cimport *
from fastsmtp._engine import VERBS as VERB_NAMES
from fastsmtp._envelope cimport Session
from fastsmtp._rules cimport *
from fastsmtp.command cimport *

cdef extern from "Python.h":
    enum:
        PyBUF_WRITE

cdef enum:
    MUCH_RESPONSE = 12288       # octets of a line that answers a challenge (RFC 4954 4)
    MUCH_REPLY = 32 * 1024      # replies of one turn beyond this are written before the next command is done
    SMALL_TAIL = 2048           # octets that wait and do not count against the budget: the beginning of a line
    # A turn ends after so many commands, or when so many took this long, and others have theirs before it goes on: one
    # read may bring 11,000 NOOPs, and 20 such clients made an honest one wait a quarter of a second for a message.
    MANY_COMMANDS = 128
    SOME_COMMANDS = 8
    MUCH_SHOWN = 400            # octets of a client's words in a reply: a line has 512 at most (RFC 5321 4.5.3.1.5)
    TLS_HANDSHAKE = 0x16        # the first octet of a TLS record that no SMTP client in clear begins with

# Seconds that the commands of a turn may take when there are many.
cdef double TURN = 250e-6

# Control characters of a client's words do not go back to it, where they may be shown on a terminal.
SHOWN = bytes.maketrans(bytes({*range(32), 127} - {9}), b"?" * 32)

# Reasons to hold a client back.
HELD_UNREAD, HELD_BY_DISK, HELD_BY_VERDICT = 1, 2, 4

# What the log calls the verb of a command; by ``command.verb``.
LOG_STAGES = tuple(verb.lower() for verb in VERB_NAMES) + ("connect",)
assert len(LOG_STAGES) == VERBS + 1


@cython.no_gc_clear     # the memory goes back to the engine, which must still be there
cdef class Wire:
    """What the dialogue is on. ``engine`` is what all dialogues of the worker share; ``rules`` hold from the next
    command on if they are changed.
    """

    def __cinit__(self, engine=None, *args, **kwargs):
        self.tail = NULL
        self.phase = PHASE_NEW
        self.verb = VERBS
        if isinstance(engine, Engine):
            self.join(engine)

    def __dealloc__(self):
        free(self.tail)
        if self.engine is not None:
            self.engine.release(self.tail_held + self.recipients_held)

    def join(self, Engine engine not None):
        """Makes ``engine`` its own, with its rules; for a subclass that is not made with one."""
        self.engine = engine
        self.rules = engine.rules

    # --- what a subclass gives ------------------------------------------------------------------------------

    def hang_up(self):
        """Called when the last reply was written: the connection is to be closed."""

    def secure(self):
        """Called when the reply to STARTTLS was written: TLS is to begin, then ``secured`` to be called."""

    def pause_reading(self):
        """Called when nothing more is to be read for now."""

    def resume_reading(self):
        """Called when reading may go on."""

    def give_way(self):
        """Called when content filled a whole read, or a turn took long: there is more, and others may be waiting. Then
        ``take_turn`` is to be called, which without a method of the subclass happens at once.
        """
        self.take_turn()

    def preface(self, octets):
        """Called with what comes before the greeting, after ``expect_preface``: returns how many octets of it belong
        to the preface, which is then whole, or -1 when all do and it is not. After it ``connect`` is called, now or
        later.
        """
        raise NotImplementedError

    def foreign(self, str what not None):
        """Called when the client turns out to speak another protocol: ``"HTTP"``, ``"TLS"`` or ``"PROXY"``."""

    def log_reply(self, str stage not None, bytes reply not None):
        """Called where the rules have mail logged, before the envelope is reset: with each reply that refuses
        something, and if they say so with each that accepts a message. ``stage`` is the verb of the last command in
        lower case, or ``"connect"`` before the first one. An empty ``reply`` means that the client left within DATA.
        """

    @property
    def command_line(self):
        """The command that is being done, as octets without CRLF; ``None`` when it waits for a hook."""
        return self.said[:self.said_length] if self.said != NULL else None

    @property
    def message_size(self):
        """Octets of content of the message that is being received, or was just received; 0 without one."""
        return self.reception.content.size if self.reception is not None else 0

    def responded(self, line):
        """Called with the line that answers ``challenge``, or ``None`` when the client was refused instead."""
        raise NotImplementedError

    def make_session(self):
        """Called for a ``Session``, where the rules say that they are made elsewhere."""
        raise NotImplementedError

    cdef int _line(self, const char *line, size_t n) except -1:
        """Takes a whole line."""
        raise NotImplementedError

    cdef int _end_of_content(self) except -1:
        """The content is whole."""
        raise NotImplementedError

    cdef int _begin_tls(self, bint more) except -1:
        """STARTTLS was the last line; ``more`` octets came behind it."""
        raise NotImplementedError

    # --- octets in ------------------------------------------------------------------------------------------

    @property
    def session(self):
        """The facts of this connection."""
        return self._the_session()

    @session.setter
    def session(self, Session session not None):
        self._session = session

    @cython.nonecheck(True)
    cdef char *room(self, size_t *n) except NULL:
        """Where the next octets go, and how many may: the worker's buffer, or the memory of the message that comes."""
        cdef char *p = NULL
        self.in_memory = False
        n[0] = RECEIVE_COMMANDS
        if self.phase == PHASE_CONTENT and not self.held_back:
            n[0] = RECEIVE_CONTENT
            p = self.reception.room(self, n)
            self.in_memory = p != NULL
        return p if self.in_memory else self.engine.receive + HEADROOM

    cdef int received(self, size_t nbytes) except -1:
        """``nbytes`` octets came into what ``room`` gave last: does a turn."""
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
                return self._keep(p, nbytes, True)
            if self._waits():
                # One read may be kept; then nothing more is read until there is an answer.
                self._keep(p, nbytes, True)
                if self.phase != PHASE_NEW or self.tail_length > SMALL_TAIL:
                    self.pause_reading()    # before the greeting only the next read tells that the client has left
                return self._flush() if self.phase == PHASE_CLOSED else 0   # the budget had no room for it
            if self.tail_length:
                memcpy(p - self.tail_length, self.tail, self.tail_length)
                p -= self.tail_length
                nbytes += self.tail_length
                self._keep(NULL, 0, False)
        return self._turn(p, nbytes)

    # The same for transports of an event loop, which ask for a buffer.

    def get_buffer(self, sizehint):
        """Where the next octets go, as a writable buffer."""
        cdef char *p = self.room(&self.offered)
        if not self.in_memory:
            return self.engine.commands_view if self.offered == RECEIVE_COMMANDS else self.engine.content_view
        return PyMemoryView_FromMemory(p, self.offered, PyBUF_WRITE)

    def buffer_updated(self, size_t nbytes):
        """``nbytes`` octets came into what ``get_buffer`` gave last: does a turn."""
        self.received(nbytes)
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

    @property
    def pending(self):
        """Whether there are commands of the client that wait to be done. Before the greeting that is a whole line, of
        a client that talks early.
        """
        if self.phase == PHASE_NEW:
            return self.tail_length and memchr(self.tail, b"\n", self.tail_length) != NULL
        return self.asking != ASK_NOTHING or self.tail_pending

    cdef bint _waits(self) noexcept:
        """Whether nothing that the client sends can be taken now."""
        return (self.held_back or self.yielded or self.phase == PHASE_NEW
                or (self.asking != ASK_NOTHING and self.phase == PHASE_COMMAND))

    cdef bint wants_more(self) noexcept:
        """Whether the client has begun something that its next octets go on with."""
        return self.phase == PHASE_CONTENT or (self.tail_length and not self.tail_pending)

    def take_turn(self):
        """The turn that ended with ``give_way`` goes on, and then reading, unless something else keeps them."""
        self.resume_turn()

    cdef int resume_turn(self) except -1:
        self.yielded = False
        if not self._waits() and self.phase != PHASE_CLOSED:
            self._go_on()
        return 0

    def hold_back(self, unsigned why):
        """No command is done, and nothing is read, until ``go_on`` for the same reason, which is ``HELD_UNREAD`` (the
        client does not read its replies), ``HELD_BY_DISK`` or ``HELD_BY_VERDICT``.
        """
        if not self.held_back:
            self.held_since = monotonic()
        self.held_back |= why
        self.pause_reading()

    def go_on(self, unsigned why=0):
        """Goes on with what has come, and with reading, unless there is another reason to hold the client back."""
        if self.held_back and not self.held_back & ~why and self.phase == PHASE_CONTENT:
            # The time in which nothing was read is not the client's.
            self.reception.began += monotonic() - max(self.held_since, self.reception.began)
        self.held_back &= ~why
        if not self._waits() and self.phase != PHASE_CLOSED:
            self._go_on()

    cdef int _go_on(self) except -1:
        """Does what has come and waited, and has reading go on unless there is something else to wait for."""
        self._turn(NULL, 0)
        if not self._waits() and self.phase != PHASE_CLOSED:
            self.resume_reading()
        return 0

    # --- the turn -------------------------------------------------------------------------------------------

    cdef int _turn(self, char *p, size_t n) except -1:
        cdef char *tail
        self.done = 0
        if n:
            self._consume(p, n)
        while self.tail_pending and not (self._waits() or self.phase >= PHASE_SECURE):
            tail = self.tail
            n = self.tail_length
            self.tail = NULL
            self.tail_length = 0
            self.tail_pending = False
            self.engine.release(self.tail_held)
            self.tail_held = 0
            try:
                self._consume(tail, n)
            finally:
                free(tail)
        self._flush()
        if self.yielded and self.phase != PHASE_CLOSED:
            self.give_way()
        return 0

    cdef bint _is_over(self) noexcept:
        """Whether a turn has taken long enough. The clock is read now and then, as that costs as much as a NOOP."""
        cdef double now
        self.done += 1
        if self.done % SOME_COMMANDS:
            return False
        now = monotonic()
        if self.done == SOME_COMMANDS:
            self.turn_began = now
        return self.done >= MANY_COMMANDS or now - self.turn_began > TURN

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
                at += self.reception.take(self, p + at, n - at)
                if self.reception.ended():
                    self._end_of_content()
            else:
                taken = self._lines(p + at, n - at)
                if taken == 0:
                    return self._keep(p + at, n - at, False)
                at += taken
                if self.phase == PHASE_SECURE or (self.starting_tls and at < n):
                    return self._begin_tls(at < n)
                if self.more_replies is not None and self.octets_said > MUCH_REPLY:
                    self._flush()
            if at < n and self.phase != PHASE_CONTENT and not self._waits() and self._is_over():
                self.yielded = True
        return 0

    cdef int _keep(self, const char *p, size_t n, bint pending) except -1:
        """Adds to the tail; without octets, drops it."""
        cdef char *tail
        self.tail_pending = pending
        if n == 0:
            free(self.tail)
            self.tail = NULL
            self.tail_length = 0
        if self.tail_held:
            self.engine.release(self.tail_held)
            self.tail_held = 0
        if n == 0:
            return 0
        if self.tail_length + n > SMALL_TAIL:
            if not self.engine.obtain(self.tail_length + n):
                self._say(REPLY_MEMORY_SHORT)
                return self._close()
            self.tail_held = self.tail_length + n
        tail = <char *>realloc(self.tail, self.tail_length + n)
        if tail == NULL:
            raise MemoryError()
        memcpy(tail + self.tail_length, p, n)
        self.tail = tail
        self.tail_length += n
        return 0

    cdef int _adopt(self, char *p, size_t n) except -1:
        """Makes the tail of memory that becomes its own. It counts against the budget if there is room: these octets
        came behind a whole message, which is not to be lost for them.
        """
        self._keep(NULL, 0, False)
        if self.engine.obtain(n):
            self.tail_held = n
        self.tail = p
        self.tail_length = n
        self.tail_pending = True
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
                if not self.long_line:
                    # A client that ends all lines with LF hears of each: it would wait in silence for the rest.
                    counters.bump(VIOLATIONS + VIOLATION_BARE_NEWLINE_COMMAND, 1)
                    self._error(REPLY_BARE_NEWLINE, NULL)
            return length

        if not self.spoke:
            self.spoke = True
            if <uint8_t>p[0] == TLS_HANDSHAKE and not rules.lenient and not self._the_session().tls:
                self._foreign("TLS")
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

    # --- replies out ----------------------------------------------------------------------------------------

    cdef int _say(self, int reply) except -1:
        cdef Book book = self.rules.book
        self.engine.counters.bump(word_of_code(book.codes[reply]), 1)
        return self._put(book.text(reply))

    cdef int _error(self, int reply, command *c) except -1:
        """Refuses a command; too many of these, and the client is no mail client."""
        return self._count_error(ERROR, reply, c)

    cdef int _count_error(self, unsigned tenths, int reply, command *c) except -1:
        cdef Rules rules = self.rules
        if reply == REPLY_UNKNOWN or not rules.lenient:
            self.errors += tenths
            if rules.max_errors and self.errors >= rules.max_errors * ERROR:
                self.engine.counters.bump(VIOLATIONS + VIOLATION_TOO_MANY_ERRORS, 1)
                self._say(REPLY_TOO_MANY_ERRORS)
                return self._close()
        return self._refuse(reply, c)

    cdef int _end_of_junk(self) except -1:
        """Ends a connection whose commands lead to no message."""
        self.engine.counters.bump(VIOLATIONS + VIOLATION_TOO_MUCH_JUNK, 1)
        self._say(REPLY_TOO_MUCH_JUNK)
        return self._close()

    cdef int _refuse(self, int reply, command *c) except -1:
        """Says a reply that may name the command."""
        cdef Book book = self.rules.book
        if c == NULL or not book.filled_in[reply]:
            return self._say(reply)
        self.engine.counters.bump(word_of_code(book.codes[reply]), 1)
        text = book.text(reply).replace(b"{verb}", self._verb(c).encode()[:MUCH_SHOWN])
        text = text.replace(b"{argument}", c.argument[:min(c.length, <size_t>MUCH_SHOWN)])
        return self._put(text.removesuffix(b"\r\n").translate(SHOWN) + b"\r\n")

    cdef int _foreign(self, str what) except -1:
        """Ends a connection on which another protocol is spoken."""
        self.engine.counters.bump(VIOLATIONS + VIOLATION_FOREIGN_PROTOCOL, 1)
        self.foreign(what)
        self._say(REPLY_FOREIGN)
        return self._close()

    cdef int _put(self, bytes text) except -1:
        if self.rules.log_mail and is_refusal(PyBytes_AS_STRING(text)):
            self._log(text)
        if self.first_reply is None:
            self.first_reply = text
            return 0
        if self.more_replies is None:
            self.more_replies = [self.first_reply]
            self.octets_said = PyBytes_GET_SIZE(self.first_reply)
        self.more_replies.append(text)
        self.octets_said += PyBytes_GET_SIZE(text)
        return 0

    cdef int _log(self, bytes reply) except -1:
        self.log_reply(LOG_STAGES[self.verb], reply)
        return 0

    cdef int _close(self) except -1:
        self.phase = PHASE_CLOSED
        self._keep(NULL, 0, False)
        if self.reception is not None and not self.asking:  # else a hook has the content
            self.reception.drop()
        return 0

    cdef int _flush(self) except -1:
        """Writes the replies of the turn; then does what had to wait for them."""
        cdef bytes replies = self.first_reply
        if replies is not None:
            self.first_reply = None
            if self.more_replies is not None:
                replies = b"".join(self.more_replies)
                self.more_replies = None
            if self._write is not None:
                self._write(replies)
        if self.phase == PHASE_CLOSED:
            if self.connected:
                self.hang_up()
        elif self.phase == PHASE_SECURE and replies is not None:
            self.secure()
        return 0

    cdef str _verb(self, command *c):
        """The command's name as it is written in replies."""
        return PyUnicode_DecodeUTF8(c.word, c.word_length, "surrogateescape").upper()

    cdef object _text(self, const char *p, size_t n):
        return PyUnicode_DecodeUTF8(p, n, "surrogateescape")

    @cython.nonecheck(True)
    cdef Session _the_session(self):
        if self._session is None:
            self._session = self.make_session() if self.rules.makes_facts else Session.__new__(Session)
        return self._session
