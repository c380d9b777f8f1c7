# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The sending side of SMTP for a load generator: octets of replies in, commands and messages out, times measured.

Knows what a client says next, which reply it waits for, and how long each took. It reads and writes a plain socket by
itself, since that is all that most of its connections do. Refuses to know how connections are made, TLS, and when a
message is due.
"""

import cython

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.string cimport memchr, memcpy, memmove, memset, strerror

cdef extern from *:
    """
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <time.h>
    #ifdef __linux__
    #include <sys/prctl.h>
    static void fastsmtp_fine_timers(void) { prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL); }
    #else
    static void fastsmtp_fine_timers(void) {}
    #endif
    static uint64_t fastsmtp_now(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    }
    static int fastsmtp_highest_bit(uint64_t value) { return 63 - __builtin_clzll(value); }
    """
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t recv(int fd, void *buffer, size_t length, int flags)
    ssize_t writev(int fd, const iovec *vector, int count)
    void fastsmtp_fine_timers()
    uint64_t fastsmtp_now()
    int fastsmtp_highest_bit(uint64_t value)

# What a turn ends with: a reply is awaited; octets wait until the socket takes them; TLS is to begin; nothing is
# under way; the connection is over.
BUSY, WRITE, SECURE, IDLE, ENDED = range(5)
cdef enum State:
    _BUSY, _WRITE, _SECURE, _IDLE, _ENDED

MEASURED_STAGES = ("connect", "greeting", "tls", "ehlo", "auth", "final", "mail", "rcpt", "data", "message")
assert len(MEASURED_STAGES) == MEASURED

cdef tuple _WORDS = ("connect", "greeting", "STARTTLS", "EHLO", "AUTH", "content", "MAIL", "RCPT", "DATA",
                     "message", "QUIT")
cdef enum:
    DIGITS = 12
    SCRATCH = 64 * 1024
    KINDS = 50                  # of failures that are told apart: some servers put a new name into each reply
    TEXT = 200

cdef enum:
    EVENT_READ = 1              # as selectors has them
    EVENT_WRITE = 2


def fine_timers():
    """Has the kernel wake this thread when it asked to be woken, and not up to 50 us later. Linux only."""
    fastsmtp_fine_timers()


# --- times --------------------------------------------------------------------------------------------------

cdef inline int bucket_of(uint64_t value) noexcept:
    cdef int highest
    if value < STEPS:
        return <int>value
    highest = fastsmtp_highest_bit(value)
    if highest > HIGHEST_BIT:
        return BUCKETS - 1
    return (highest - STEP_BITS) * STEPS + <int>(value >> (highest - STEP_BITS))


cdef inline double middle_of(int bucket) noexcept:
    cdef int shift
    if bucket < STEPS:
        return bucket
    shift = bucket // STEPS - 1
    return ((<uint64_t>(bucket % STEPS + STEPS)) << shift) + ((<uint64_t>1 << shift) - 1) / 2.0


@cython.final
cdef class Histogram:
    """Times, each kept to less than 1 %, from nanoseconds to 19 hours. Histograms can be added and pickled."""

    cdef void put(self, uint64_t nanoseconds) noexcept:
        self.times.count += 1
        self.times.total += nanoseconds
        if nanoseconds > self.times.longest:
            self.times.longest = nanoseconds
        self.times.buckets[bucket_of(nanoseconds)] += 1

    def record(self, uint64_t nanoseconds):
        """Counts a time."""
        self.put(nanoseconds)

    def add(self, Histogram other not None):
        """Counts all that ``other`` has counted."""
        cdef int bucket
        self.times.count += other.times.count
        self.times.total += other.times.total
        self.times.longest = max(self.times.longest, other.times.longest)
        for bucket in range(BUCKETS):
            self.times.buckets[bucket] += other.times.buckets[bucket]

    def clear(self):
        """Forgets all."""
        memset(&self.times, 0, sizeof(Times))

    def quantile(self, double share):
        """The time in seconds that ``share`` of all, from 0 to 1, did not exceed; 0 without any."""
        cdef uint64_t rank, seen = 0
        cdef int bucket
        if self.times.count == 0:
            return 0.0
        rank = <uint64_t>(share * self.times.count)
        if rank < share * self.times.count or rank == 0:
            rank += 1
        for bucket in range(BUCKETS):
            seen += self.times.buckets[bucket]
            if seen >= rank:
                if bucket == BUCKETS - 1:
                    break
                return min(middle_of(bucket), <double>self.times.longest) / 1e9
        return self.times.longest / 1e9

    @property
    def count(self):
        """How many times there are."""
        return self.times.count

    @property
    def mean(self):
        """Their mean in seconds; 0 without any."""
        return self.times.total / 1e9 / self.times.count if self.times.count else 0.0

    @property
    def longest(self):
        """The longest, in seconds."""
        return self.times.longest / 1e9

    def __reduce__(self):
        return _restored, ((<char *>&self.times)[:sizeof(Times)],)


def _restored(bytes state not None):
    cdef Histogram histogram = Histogram()
    if len(state) != sizeof(Times):
        raise ValueError("these are not the times of a histogram")
    memcpy(&histogram.times, PyBytes_AS_STRING(state), sizeof(Times))
    return histogram


# --- what is sent -------------------------------------------------------------------------------------------

@cython.final
cdef class Load:
    """What all connections of a process send, and what became of it.

    ``commands`` are MAIL, each RCPT, and DATA. A message is ``head``, with its number in twelve digits at ``digits``,
    and ``body``, as they go over the wire with the final dot. ``auth`` may be empty. The numbers are ``first``,
    ``first + stride``, and so on, as long as any are ``left``. ``single``: a connection ends after one message.
    ``closed``: a connection that has sent its message takes the next by itself.
    """

    def __init__(self, *, bytes hello not None, bytes auth not None, list commands not None, bytes head not None,
                 size_t digits, bytes body not None, bint pipeline, bint starttls, bint single, bint closed,
                 int64_t first, int64_t stride):
        if len(head) > HEAD or digits + DIGITS > <size_t>len(head) or len(commands) < 3:
            raise ValueError(f"a head has at most {HEAD} octets, and {DIGITS} digits in it")
        self.hello, self.auth, self.commands, self.head, self.body = hello, auth, commands, head, body
        self.envelope = b"".join(commands)
        self.recipients = len(commands) - 2
        self.digits = digits
        self.pipeline, self.starttls, self.single, self.closed = pipeline, starttls, single, closed
        self.next, self.stride = first, stride
        self.histograms = tuple([Histogram() for _ in range(MEASURED)])
        self.failures = {}
        self.scratch = bytearray(SCRATCH)

    @property
    def latency(self):
        """The histogram of each stage by its name."""
        return dict(zip(MEASURED_STAGES, self.histograms))

    def clear(self):
        """Forgets what became of the messages so far."""
        self.accepted = self.failed = 0
        self.failures.clear()
        for histogram in self.histograms:
            histogram.clear()

    def fail(self, str text not None, int64_t messages):
        """Counts a failure, and the messages that were lost by it."""
        text = "".join([c if c.isprintable() else "?" for c in text[:TEXT]])
        if text not in self.failures and len(self.failures) >= KINDS:
            text = "other failures"
        self.failures[text] = self.failures.get(text, 0) + max(messages, 1)
        self.failed += messages

    def skip(self):
        """Takes a message that will not be sent."""
        cdef int64_t number
        self.take(&number)

    cdef bint take(self, int64_t *number) noexcept:
        if self.left <= 0:
            return False
        self.left -= 1
        number[0] = self.next
        self.next += self.stride
        return True

    cdef void measure(self, Stage stage, uint64_t nanoseconds) noexcept:
        (<Histogram>self.histograms[<int>stage]).put(nanoseconds)


# --- one connection -----------------------------------------------------------------------------------------

cdef class Talk:
    """One connection's talk with the server.

    It begins with ``connected``. Over a plain socket, whose descriptor is ``fd``, ``turn`` does all the rest; under TLS
    ``received``, ``output`` and ``sent`` do it together. Each returns a state: BUSY, WRITE, SECURE, IDLE or ENDED.
    With ``due``, in nanoseconds of the monotonic clock, the first message is begun as soon as that is possible.
    """

    def __init__(self, Load load not None, int fd, uint64_t due=0):
        self.load = load
        self.fd = fd
        self.number = self.following = -1
        self.moved = self.written = fastsmtp_now()
        self.due = due
        if due and not load.take(&self.number):
            raise ValueError("no message is left")

    # --- what the driver does -------------------------------------------------------------------------------

    def connected(self):
        """The socket is connected: a greeting is awaited."""
        cdef uint64_t now = fastsmtp_now()
        self.load.measure(CONNECT, now - self.written)
        self.written = self.moved = now
        self.pending[<int>GREETING] = 1
        return _BUSY

    def secured(self):
        """TLS has begun, before the greeting or because of STARTTLS."""
        cdef uint64_t now = fastsmtp_now()
        self.load.measure(TLS, now - self.written)
        self.written = self.moved = now
        self.secure = True
        self.handshake = False
        if not self.pending[<int>GREETING]:
            self.greet(now)
        return self.state()

    def turn(self, int events):
        """Reads and writes what the socket has and takes."""
        cdef ssize_t n
        cdef uint64_t now
        if self.ended:
            return _ENDED
        if events & EVENT_READ:
            n = recv(self.fd, self.inbox + self.have, INBOX - self.have, 0)
            if n > 0:
                now = fastsmtp_now()
                self.have += n
                self.moved = now
                self.parse(now)
                self.push(now)
                return self.state()
            if n == 0:
                return self.lost("the server closed the connection")
            if errno != EAGAIN and errno != EINTR:
                return self.lost((<bytes>strerror(errno)).decode("utf-8", "replace").lower())
        self.push(fastsmtp_now())
        return self.state()

    def send(self, uint64_t due):
        """Begins a message on a connection that is IDLE."""
        cdef uint64_t now = fastsmtp_now()
        if self.idle and self.load.take(&self.number):
            self.due = due
            self.moved = now
            self.begin(now)
            self.push(now)
        return self.state()

    def quit(self):
        """Says QUIT on a connection that is IDLE."""
        cdef uint64_t now = fastsmtp_now()
        if self.idle:
            self.idle = False
            self.moved = now
            self.say(b"QUIT\r\n")
            self.pending[<int>QUIT] = 1
            self.push(now)
        return self.state()

    def lost(self, str text not None):
        """The connection has ended."""
        # Whoever has nothing to say may hang up, and after QUIT nobody waits.
        if not self.idle and not self.pending[<int>QUIT] or self.number >= 0:
            self.fail_with(f"{self.where()}: {text}", False)
        self.ended = True
        return _ENDED

    def fail(self, str text not None, bint fatal=False):
        """Ends it for a reason that lies outside of the talk."""
        self.fail_with(text, fatal)
        return _ENDED

    def overdue(self, uint64_t limit):
        """Whether the server owes something, and nothing has moved for ``limit`` nanoseconds."""
        return not self.idle and not self.ended and fastsmtp_now() - self.moved > limit

    # --- under TLS ------------------------------------------------------------------------------------------

    def received(self, bytes octets not None):
        """Takes what the server sent."""
        cdef uint64_t now = fastsmtp_now()
        cdef size_t n = PyBytes_GET_SIZE(octets), taken = 0, part
        self.moved = now
        while taken < n and not self.ended:
            part = min(n - taken, INBOX - self.have)
            memcpy(self.inbox + self.have, PyBytes_AS_STRING(octets) + taken, part)
            self.have += part
            taken += part
            self.parse(now)
        return self.state()

    def output(self):
        """The next octets to write, at most 64 KiB: the same until ``sent``; empty if there are none.

        The view is good until the next call for any connection of the load.
        """
        cdef char *scratch = PyByteArray_AS_STRING(self.load.scratch)
        cdef size_t length = 0, offset = self.offset, part
        cdef int at = self.at
        while at < self.count and length < SCRATCH:
            part = min(self.pieces[at].length - offset, <size_t>SCRATCH - length)
            memcpy(scratch + length, self.pieces[at].octets + offset, part)
            length += part
            at += 1
            offset = 0
        return memoryview(self.load.scratch)[:length]

    def sent(self, size_t n):
        """``n`` octets of the output were written."""
        self.move(n, fastsmtp_now())
        return self.state()

    # --- writing --------------------------------------------------------------------------------------------

    cdef int state(self) noexcept:
        if self.ended:
            return _ENDED
        if self.at < self.count:
            return _WRITE
        if self.handshake:
            return _SECURE
        return _IDLE if self.idle else _BUSY

    cdef void piece(self, const char *octets, size_t length) noexcept:
        if self.at == self.count:
            self.at = self.count = self.body_ends = 0
            self.offset = 0
        self.pieces[self.count].octets = octets
        self.pieces[self.count].length = length
        self.count += 1

    cdef void say(self, bytes octets) noexcept:
        self.piece(PyBytes_AS_STRING(octets), PyBytes_GET_SIZE(octets))

    cdef int push(self, uint64_t now) except -1:
        """Writes what the socket takes at once."""
        cdef iovec vector[PIECES]
        cdef int i, count = 0
        cdef ssize_t n
        # Under TLS the driver writes.
        if self.at == self.count or self.secure or self.ended:
            return 0
        self.written = now
        for i in range(self.at, self.count):
            vector[count].iov_base = <void *>self.pieces[i].octets
            vector[count].iov_len = self.pieces[i].length
            count += 1
        vector[0].iov_base = <void *>(self.pieces[self.at].octets + self.offset)
        vector[0].iov_len -= self.offset
        n = writev(self.fd, vector, count)
        if n >= 0:
            self.move(n, now)
        # What went wrong with the connection, reading will find, and what the server said before that.
        return 0

    cdef void move(self, size_t n, uint64_t now) noexcept:
        cdef size_t left
        if n:
            self.moved = self.written = now
        while n:
            left = self.pieces[self.at].length - self.offset
            if n < left:
                self.offset += n
                return
            n -= left
            self.at += 1
            self.offset = 0

    # --- reading --------------------------------------------------------------------------------------------

    cdef int parse(self, uint64_t now) except -1:
        cdef const char *p = self.inbox
        cdef const char *end = self.inbox + self.have
        cdef const char *newline
        while not self.ended:
            newline = <const char *>memchr(p, 10, end - p)
            if newline == NULL:
                break
            self.line(p, newline - p, now)
            p = newline + 1
        self.have = end - p
        if self.have == INBOX:
            return self.fail_with(f"{self.where()}: a reply of more than {INBOX} octets in a line", False)
        memmove(self.inbox, p, self.have)
        return 0

    cdef int line(self, const char *p, size_t n, uint64_t now) except -1:
        """One line of a reply, without LF."""
        cdef int code
        cdef str text
        if n and p[n - 1] == 13:
            n -= 1
        if not (n >= 3 and 50 <= p[0] <= 53 and 48 <= p[1] <= 57 and 48 <= p[2] <= 57
                and (n == 3 or p[3] == 32 or p[3] == 45)):
            text = p[:n].decode("utf-8", "replace")
            return self.fail_with(f"{self.where()}: not a reply: {text}", False)
        code = (p[0] - 48) * 100 + (p[1] - 48) * 10 + p[2] - 48
        if self.code and code != self.code:
            return self.fail_with(f"{self.where()}: a reply with the codes {self.code} and {code}", False)
        if n > 3 and p[3] == 45:
            if not self.code:
                self.code = code
                self.lines = []
            self.lines.append(p[:n])
            return 0
        # Most replies are a line that nobody looks at further.
        text = None
        if self.code or p[0] > 51 or not self.ready:
            if not self.code:
                self.lines = []
            self.lines.append(p[:n])
            text = self.lines[0].decode("utf-8", "replace")
        self.code = 0
        return self.reply(code, text, now)

    cdef Stage awaited(self) noexcept:
        """What the next reply is to; ``MESSAGE`` if none is awaited."""
        cdef int stage
        for stage in range(<int>ALL_STAGES):
            if self.pending[stage]:
                return <Stage>stage
        return MESSAGE

    cdef str where(self):
        cdef Stage stage = self.awaited()
        if stage == MESSAGE:
            return "TLS" if self.handshake else "connection" if self.ready else "connect"
        return _WORDS[<int>stage]

    cdef int reply(self, int code, str text, uint64_t now) except -1:
        cdef Stage stage = self.awaited()
        if stage == MESSAGE:
            if self.idle:
                # "421 too long idle" harms nobody.
                self.ended = True
                return 0
            return self.fail_with(f"nobody had asked: {text or code}", False)
        if stage == QUIT:
            self.ended = True
            return 0
        if code // 100 != (3 if stage == DATA else 2):
            # A user that is not known will not be known to the next connection.
            return self.fail_with(f"{self.where()}: {text or code}", stage == AUTH and code >= 500)
        if stage == FINAL and self.at < self.body_ends:
            return self.fail_with(f"content: {text or code}, before its end", False)
        self.pending[<int>stage] -= 1
        if stage != TLS:
            self.load.measure(stage, now - self.written)
        if stage == FINAL:
            self.load.measure(MESSAGE, now - self.due)
            self.load.accepted += 1
            self.number, self.due = self.following, self.following_due
            self.following = -1
        elif stage == EHLO:
            self.offers = self.lines
        if self.awaited() == MESSAGE:
            self.go_on(stage, now)
        return 0

    # --- what comes next ------------------------------------------------------------------------------------

    cdef int go_on(self, Stage stage, uint64_t now) except -1:
        """All replies to ``stage`` and what was before it are there."""
        if stage == GREETING:
            return self.greet(now)
        if stage == TLS:
            self.handshake = True
        elif stage == EHLO:
            return self.offered(now)
        elif stage == AUTH:
            return self.rest(now)
        elif stage == MAIL or stage == RCPT:
            self.say(self.load.commands[self.named + 1])
            self.named += 1
            self.pending[<int>(RCPT if self.named <= self.load.recipients else DATA)] = 1
        elif stage == DATA:
            self.content(now)
        elif stage == FINAL:
            return self.rest(now)
        return 0

    cdef int greet(self, uint64_t now) except -1:
        self.say(self.load.hello)
        self.pending[<int>EHLO] = 1
        return 0

    cdef int offered(self, uint64_t now) except -1:
        """The server has said what it can do: is that what was asked for?"""
        offers = {offer[4:].upper().decode("ascii", "replace") for offer in self.offers}
        words = {offer.partition(" ")[0] for offer in offers}
        mechanisms = {word for offer in offers if offer[:5] == "AUTH " for word in offer.split()[1:]}
        if self.load.starttls and not self.secure:
            if "STARTTLS" not in words:
                return self.fail_with("the server does not offer STARTTLS", True)
            self.say(b"STARTTLS\r\n")
            self.pending[<int>TLS] = 1
            return 0
        if self.load.pipeline and "PIPELINING" not in words:
            return self.fail_with("the server does not offer PIPELINING", True)
        if self.load.auth:
            if "PLAIN" not in mechanisms:
                return self.fail_with("the server does not offer AUTH PLAIN", True)
            self.say(self.load.auth)
            self.pending[<int>AUTH] = 1
            return 0
        return self.rest(now)

    cdef int rest(self, uint64_t now) except -1:
        """Between two messages."""
        cdef bint first = not self.ready
        self.ready = True
        if self.number >= 0:
            self.begin(now)
        elif self.load.single and not first:
            self.say(b"QUIT\r\n")
            self.pending[<int>QUIT] = 1
        elif self.load.closed and self.load.take(&self.number):
            self.due = now
            self.begin(now)
        else:
            self.idle = True
        return 0

    cdef void begin(self, uint64_t now) noexcept:
        self.idle = False
        self.named = 0
        if self.load.pipeline:
            self.envelope()
        else:
            self.say(self.load.commands[0])
            self.pending[<int>MAIL] = 1

    cdef void envelope(self) noexcept:
        self.say(self.load.envelope)
        self.pending[<int>MAIL] = self.pending[<int>DATA] = 1
        self.pending[<int>RCPT] = self.load.recipients

    cdef void content(self, uint64_t now) noexcept:
        cdef size_t length = PyBytes_GET_SIZE(self.load.head)
        cdef int64_t number = self.number
        cdef int digit
        memcpy(self.head, PyBytes_AS_STRING(self.load.head), length)
        for digit in range(DIGITS):
            self.head[self.load.digits + DIGITS - 1 - digit] = 48 + number % 10
            number //= 10
        self.piece(self.head, length)
        self.say(self.load.body)
        self.body_ends = self.count
        self.pending[<int>FINAL] = 1
        if not self.load.pipeline:
            return
        if self.load.single:
            self.say(b"QUIT\r\n")
            self.pending[<int>QUIT] = 1
        elif self.load.closed and self.load.take(&self.following):
            self.following_due = now
            self.envelope()

    cdef int fail_with(self, str text, bint fatal) except -1:
        cdef int64_t lost = (self.number >= 0) + (self.following >= 0)
        if self.ended:
            return 0
        self.ended = True
        self.fatal = fatal
        self.error = text
        self.load.fail(text, min(lost, 1))
        if lost > 1:
            self.load.fail("sent behind a message that failed", 1)
        self.number = self.following = -1
        return 0
