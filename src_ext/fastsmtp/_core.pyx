# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The SMTP dialogue, without input and output: octets in, replies out, and asks where Python has a hook.

Knows how a connection begins and ends, what is asked for, what an answer means, and how long anything may take.
Refuses to know sockets, event loops, files and handlers, and how content is kept.
"""

import cython

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport strchr

from fastsmtp._commands cimport *
from fastsmtp._engine cimport *
from fastsmtp._envelope cimport Envelope, Session
from fastsmtp._reception cimport Reception
from fastsmtp._rules cimport *
from fastsmtp._wire cimport *

TIMEOUT_STATES = ("command", "data", "transaction", "handler", "data_rate")

cdef enum:
    DATA_GRACE = 60     # seconds of content before its rate counts

# Seconds that tell a time which was put off from that of the tick.
cdef double AFTER = 1e-6


cdef int code_of(bytes reply) except -1:
    cdef const char *p = PyBytes_AS_STRING(reply)
    if PyBytes_GET_SIZE(reply) < 5:
        raise ValueError(f"no reply: {reply!r}")
    return (p[0] - 48) * 100 + (p[1] - 48) * 10 + p[2] - 48


cdef bint has_refusal(bytes replies) except -1:
    """Whether one of several replies, as LMTP gives to DATA, is 4yz or 5yz."""
    cdef const char *p = PyBytes_AS_STRING(replies)
    while p != NULL:
        if is_refusal(p):
            return True
        p = strchr(p, b"\n")
        if p != NULL:
            p += 1
    return False


@cython.no_gc_clear
cdef class Dialogue(Commands):
    """One connection's dialogue. A subclass gives ``ask``, ``hang_up``, ``secure``, ``pause_reading``,
    ``resume_reading``, ``give_way``, ``failed``; some rules want more of it.

    A dialogue begins with ``connect`` and ends with ``disconnect``.
    """

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

    def failed(self, error):
        """Called when content could not be stored, with the exception; the client is told 452 4.3.1."""

    def performed(self):
        """Called when the command that ``perform`` began, and that was not done at once, is done."""
        raise NotImplementedError

    # --- beginning and end ----------------------------------------------------------------------------------

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
        self._keep(NULL, 0, False)

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
            if self.rules.log_mail:
                self.log_reply("data", b"")
        self._close()
        self._write = None
        if self.asking:
            engine.unanswered.add(self)     # a hook has the message, or works on it
        else:
            self._end_transaction()

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
        """Whether the client is between two messages, or in a handshake or preface, and has nothing under way."""
        if self.phase == PHASE_SECURE or self.phase == PHASE_PREFACE:
            return True
        return (self.phase == PHASE_COMMAND and self.state < MAIL and self.asking == ASK_NOTHING
                and self.tail_length == 0)

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

    # --- time -----------------------------------------------------------------------------------------------

    def overdue(self):
        """Which of ``TIMEOUT_STATES`` has lasted too long by the engine's clock, or ``None``."""
        cdef Rules rules = self.rules
        cdef double now = self.engine.now
        cdef double elapsed
        # What happened since the last tick bears its time. It counts as of this one: deadlines may be late by a tick,
        # and are never early.
        if self.last == self.engine.before:
            self.last = now + AFTER
        if self.transaction_began == self.engine.before:
            self.transaction_began = now + AFTER
        if self.phase == PHASE_SECURE:
            return None     # the handshake has a time of its own
        if self.phase == PHASE_CLOSED:
            if not self.connected:
                return "handler" if self.asking and now - self.asked_at > rules.handler_timeout else None
            # The last replies are still to be read by the client, which may never do that.
            return "command" if now - self.last > rules.idle_timeout else None
        if self.asking and self.phase <= PHASE_COMMAND:
            return "handler" if now - self.asked_at > rules.handler_timeout else None
        if now - self.last > rules.idle_timeout:
            return "data" if self.phase == PHASE_CONTENT else "command"
        if self.transaction and now - self.transaction_began > rules.transaction_timeout:
            return "transaction"
        if self.phase == PHASE_CONTENT and rules.min_data_rate and not self.held_back:
            elapsed = now - self.reception.began - DATA_GRACE
            if elapsed > 0 and self.reception.content.size < rules.min_data_rate * elapsed:
                return "data_rate"
        return None

    def expire(self, str state):
        """Ends what ``overdue`` named: a hook's time with 451 4.4.5, anything else with 421 4.4.2."""
        self.engine.counters.bump(TIMEOUTS + <int>TIMEOUT_STATES.index(state), 1)
        if state == "handler":
            self.answer(self.rules.book.text(REPLY_HANDLER_TIMEOUT))
        elif self.phase != PHASE_CLOSED:
            self._leave(REPLY_TOO_SLOW if state == "data_rate" else REPLY_IDLE)

    # --- memory ---------------------------------------------------------------------------------------------

    def data_rate(self):
        """Octets a second at which content comes that is held in memory, or ``None`` if there is no such."""
        cdef Reception reception = self.reception
        if self.phase != PHASE_CONTENT or reception.busy or reception.memory.data == NULL:
            return None
        return reception.content.size / (monotonic() - reception.began + 1)

    def relieve(self, bint end):
        """Gives the memory of a message back that is being received: its content goes to a spill. If that cannot be,
        the connection ends, where ``end`` says so.
        """
        if self.data_rate() is None:
            return
        if self.reception.may_spill(0):
            self.reception.relieve(self)
        elif end:
            self._leave(REPLY_MEMORY_SHORT)

    # --- asks and answers -----------------------------------------------------------------------------------

    cdef int _ask(self, int kind, object argument, object options) except -1:
        self._the_envelope()    # a hook always has one, as aiosmtpd's hooks do
        self.asking = kind
        self.asked_at = monotonic()
        reply = self.ask(kind, argument, options)
        if reply is not None and self.asking == kind:
            self._answered(reply)
        return 0

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
                if self.rules.log_mail and (self.rules.log_mail == LOG_ALL or has_refusal(reply)):
                    self._log(reply)
            self.asking = ASK_NOTHING
            if not self.connected:
                self.engine.unanswered.discard(self)
                self._end_transaction()
            return
        self._answered(reply)
        self.last = self.engine.now
        self._go_on()

    cdef int _answered(self, bytes reply) except -1:
        cdef int kind = self.asking
        cdef int code = 0
        cdef Counters counters = self.engine.counters
        if reply or kind < ASK_AUTH:
            code = code_of(reply)
            counters.bump(word_of_code(code), 1)
            if kind == ASK_DATA and code < 400 and self.rules.log_mail:     # ``_put`` logs what begins with 4yz or 5yz
                if self.rules.log_mail == LOG_ALL or has_refusal(reply):
                    self._log(reply)
            self._put(reply)
        self.asking = ASK_NOTHING
        counters.measure(HANDLER_TIME + (kind - 1) * 18, monotonic() - self.asked_at)
        self._settle(kind, code)
        if self.rules.lenient and self.phase == PHASE_COMMAND and kind != ASK_COMMAND:
            self._look(kind)
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
                if self.rules.log_mail:
                    self.message_began = monotonic()
            else:
                self.envelope = None
            self.previous_name = None
        elif kind == ASK_RCPT:
            engine.counters.bump(RECIPIENTS + result_of(code), 1)
            if ok:
                self.taken += 1
                if len(self.envelope.rcpt_tos):
                    self.state = RCPT
            elif self.rules.hooks & 1 << ASK_RCPT:
                # A hook may have added the address before it failed; its client was told that it is not taken.
                del self.envelope.rcpt_tos[self.listed:]
        elif kind == ASK_DATA:
            engine.counters.bump(MESSAGES + result_of(code), 1)
            if ok:
                self.errors = self.junk = 0
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
            self._look(kind)
        return 0

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
        self._go_on()

    cdef int _line(self, const char *line, size_t n) except -1:
        """A whole line: a command, or what answers a challenge."""
        if self.phase != PHASE_RESPONSE:
            if not self.rules.log_mail:
                return self._command(line, n)
            self.said = line
            self.said_length = n
            try:
                return self._command(line, n)
            finally:
                self.said = NULL
        self.phase = PHASE_COMMAND
        self.asked_at = monotonic()
        if n == 1 and line[0] == b"*":
            self._say(REPLY_AUTH_ABORTED)
            self.responded(None)
        else:
            self.responded(line[:n])
        return 0

    # --- commands that Python does as a whole ---------------------------------------------------------------

    def perform(self, str verb not None, argument):
        """Does a command as the dialogue would do it, within the ask for that whole command. Returns whether it is
        done; if not, ``performed`` is called when it is.

        Raises ``RuntimeError`` when no whole command was asked for.
        """
        if self.asking != ASK_COMMAND or self.phase != PHASE_COMMAND:
            raise RuntimeError(f"{verb} can be done only within the command that a client sent")
        self.asking = ASK_NOTHING
        self._perform_text(verb if argument is None else f"{verb} {argument}")
        if self.phase == PHASE_SECURE:
            self._begin_tls(self.tail_length > 0)
        self.performing = self.phase != PHASE_CLOSED and (self.asking or self.phase != PHASE_COMMAND)
        if not self.performing:
            self.asking = ASK_COMMAND
        done = not self.performing
        self._go_on()   # content may have come behind DATA
        return done

    cdef int _finish_performing(self) except -1:
        """The end of what ``perform`` began and could not finish at once."""
        if self.performing and not self.asking and self.phase == PHASE_COMMAND:
            self.performing = False
            self.asking = ASK_COMMAND
            self.performed()
        return 0

    cdef int _look(self, int kind) except -1:
        """Where the dialogue is by what Python left in session and envelope, where that counts (as in aiosmtpd)."""
        cdef Envelope envelope = self.envelope
        if self.phase == PHASE_RESPONSE:
            self.phase = PHASE_COMMAND
        self.starting_tls = False
        self.state = READY if self._the_session().host_name else START
        if envelope is not None and envelope.mail_from:
            if not self.transaction:
                self.transaction = True
                self.transaction_began = self.engine.now
            self.state = RCPT if envelope.rcpt_tos else MAIL
            if kind == ASK_COMMAND:     # which replies it gave is not known
                self.taken = len(envelope.rcpt_tos)
        else:
            self.transaction = False
            self.taken = 0
        return 0
