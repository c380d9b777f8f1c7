# cython: language_level=3
"""The facts that a dialogue learns: a Session for the connection, an Envelope for the transaction.

Compiled because the dialogue writes them in its hot path; hooks and sinks read them, and may add attributes
of their own. Knows names and defaults. Refuses to know who sets what, and when.
"""

import logging
import os

import cython

from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport uint32_t, uint64_t
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept, void (*parent)() noexcept, void (*child)() noexcept)

_log = logging.getLogger("mail.log")
_LOGIN_DATA = "Session.login_data is deprecated and will be removed in version 2.0"

# --- ids ----------------------------------------------------------------------------------------------------

# Crockford's base 32: digits and letters stand in ASCII order, so that ids sort as their numbers do. No letter is
# easily misread, and the ids differ where a file system ignores case.
cdef const char *DIGITS = b"0123456789abcdefghjkmnpqrstvwxyz"

cdef enum:
    TIME_DIGITS = 11        # microseconds since 1970, until the year 3111
    PROCESS_DIGITS = 6      # 30 random bits

cdef uint64_t _last = 0             # microseconds: what the last id says
cdef uint32_t _process = 0          # random bits of this process
cdef bint _process_known = False


cdef void _forked() noexcept nogil:
    global _process_known
    _process_known = False


if pthread_atfork(NULL, NULL, _forked) != 0:
    raise MemoryError()


cdef str _next_id():
    global _last, _process, _process_known
    cdef timespec now
    cdef char text[TIME_DIGITS + PROCESS_DIGITS]
    cdef uint64_t microseconds, rest
    cdef int i
    if not _process_known:
        _process = <uint32_t>int.from_bytes(os.urandom(4), "little")
        _process_known = True
    clock_gettime(CLOCK_REALTIME, &now)
    microseconds = <uint64_t>now.tv_sec * 1000000 + <uint64_t>(now.tv_nsec // 1000)
    # No two ids of a process are alike, whatever is done to the clock.
    _last = max(microseconds, _last + 1)
    rest = _last
    for i in range(TIME_DIGITS - 1, -1, -1):
        text[i] = DIGITS[rest & 31]
        rest >>= 5
    rest = _process
    for i in range(TIME_DIGITS, TIME_DIGITS + PROCESS_DIGITS):
        text[i] = DIGITS[rest & 31]
        rest >>= 5
    return PyUnicode_DecodeASCII(text, TIME_DIGITS + PROCESS_DIGITS, NULL)


def new_id():
    """A new id: 17 digits and small letters that sort by time, unique among threads, processes, hosts and restarts."""
    return _next_id()


# --- facts --------------------------------------------------------------------------------------------------


@cython.freelist(64)
cdef class Session:
    """What is known of a connection; it outlives STARTTLS, which resets the hello name and what AUTH told.

    ``peer`` is the client's address as the socket gives it; ``tls`` tells whether TLS of either kind is on, and
    ``ssl`` of what kind: the ``ssl.SSLObject``, or in aiosmtpd's interface its facts by name; ``host_name`` what
    HELO or EHLO said; ``proxy_data`` what a PROXY header said; ``authenticated`` and ``auth_data`` what AUTH
    found. ``loop`` is the event loop, where somebody gave it.
    """

    def __init__(self, loop=None):
        self.loop = loop

    @property
    def id(self):
        """What names this connection in replies, trace lines and logs; made when first asked for. See ``new_id``."""
        if self._id is None:
            self._id = _next_id()
        return self._id

    @id.setter
    def id(self, value):
        self._id = value

    @property
    def login_data(self):
        """What ``auth_data`` was before aiosmtpd had it; each use is logged."""
        _log.warning(_LOGIN_DATA)
        return self._login_data

    @login_data.setter
    def login_data(self, value):
        _log.warning(_LOGIN_DATA)
        self._login_data = value

    def note_login(self, login):
        """Sets ``login_data`` without a word, for those who keep it up to date."""
        self._login_data = login


@cython.freelist(256)
cdef class Envelope:
    """One transaction: the reverse-path ``mail_from`` (``"<>"`` is the null path), the forward-paths
    ``rcpt_tos``, the parameters as they were sent, and the message as a ``body``.
    """

    def __init__(self):
        self.rcpt_tos = []

    @property
    def id(self):
        """What names this transaction in replies, trace lines and logs; made when first asked for. See ``new_id``."""
        if self._id is None:
            self._id = _next_id()
        return self._id

    @id.setter
    def id(self, value):
        self._id = value

    @property
    def mail_options(self):
        if self._mail_options is None:
            self._mail_options = []
        return self._mail_options

    @mail_options.setter
    def mail_options(self, value):
        self._mail_options = value

    @property
    def rcpt_options(self):
        if self._rcpt_options is None:
            self._rcpt_options = []
        return self._rcpt_options

    @rcpt_options.setter
    def rcpt_options(self, value):
        self._rcpt_options = value

    @property
    def content(self):
        """The message as ``bytes``, made from ``body`` when first asked for; ``None`` before DATA."""
        if self._content is None and self.body is not None:
            self._content = self.original_content
        return self._content

    @content.setter
    def content(self, value):
        self._content = value

    @property
    def original_content(self):
        """The message as ``bytes``, whatever a hook made of ``content``."""
        if self._original_content is None and self.body is not None:
            self._original_content = bytes(self.body)
        return self._original_content

    @original_content.setter
    def original_content(self, value):
        self._original_content = value
