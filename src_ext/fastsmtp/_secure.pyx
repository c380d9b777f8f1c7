# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""TLS over octets that somebody else moves: what came over the wire goes in, what is for it comes out.

Knows the handshake and the records, by Python's ``ssl``. Refuses to know sockets, time, and what is said.
"""

from ssl import MemoryBIO, SSLError, SSLWantReadError, SSLZeroReturnError

import cython

from cpython.memoryview cimport PyMemoryView_FromMemory

cdef extern from "Python.h":
    enum:
        PyBUF_WRITE


cdef enum:
    PIECE = 16 * 1024


@cython.final
cdef class Seal:
    """The server's side of one TLS connection. ``shaking`` until the handshake is done, ``ended`` when the client has
    said that nothing more comes.
    """

    def __init__(self, context):
        self.coming = MemoryBIO()
        self.going = MemoryBIO()
        self.ssl = context.wrap_bio(self.coming, self.going, server_side=True)
        self.shaking = True

    cdef int take(self, const char *p, size_t n) except -1:
        """Octets of the wire, which must stay there until ``keep``. OpenSSL gets them in pieces, since a ``MemoryBIO``
        never shrinks: pieces of 128 KiB would take more memory than all else of a connection.
        """
        if self.rest is not None:
            self.rest += p[:n]
        else:
            self.fresh = p
            self.fresh_length = n
        self.feed()
        return 0

    cdef bint feed(self) except -1:
        """Gives OpenSSL the next piece; whether there was one."""
        cdef size_t n
        if self.fresh_length:
            n = min(self.fresh_length, <size_t>PIECE)
            self.coming.write(self.fresh[:n])
            self.fresh += n
            self.fresh_length -= n
            return True
        if self.rest is None:
            return False
        self.coming.write(self.rest[:PIECE])
        self.rest = self.rest[PIECE:] or None
        return True

    cdef int keep(self) except -1:
        """The octets go away: copies those that were not needed yet."""
        if self.fresh_length:
            self.rest = self.fresh[:self.fresh_length]
            self.fresh_length = 0
        return 0

    cdef bint shake(self) except -1:
        """Whether the handshake is done. Raises ``ssl.SSLError`` if it cannot be."""
        try:
            self.ssl.do_handshake()
        except SSLWantReadError:
            return False
        self.shaking = False
        return True

    cdef size_t read(self, char *p, size_t room) except? 0:
        """Puts what has come in clear at p, ``room`` octets at most; returns how many. Raises ``ssl.SSLError``."""
        cdef size_t n, filled = 0
        while filled < room and not self.ended:
            # Asked first, since to raise SSLWantReadError costs as much as to read a record.
            if not (self.coming.pending or self.ssl.pending() or self.feed()):
                break
            view = PyMemoryView_FromMemory(p + filled, room - filled, PyBUF_WRITE)
            try:
                n = self.ssl.read(room - filled, view)
            except SSLWantReadError:
                if self.feed():
                    continue
                break
            except SSLZeroReturnError:
                n = 0
            self.ended = n == 0
            filled += n
        return filled

    cdef bint waiting(self) except -1:
        """Whether there may be something to read."""
        return self.coming.pending or self.fresh_length or self.rest is not None or self.ssl.pending()

    cdef bytes sealed(self, data):
        """What goes over the wire for ``data``."""
        self.ssl.write(data)
        return self.going.read()

    cdef bytes parting(self):
        """What goes over the wire at last (RFC 8446 6.1)."""
        try:
            self.ssl.unwrap()
        except SSLError:
            pass    # it would wait for the client's
        return self.going.read()

    cdef bytes out(self):
        """What goes over the wire by itself: the handshake, and answers to the client's TLS."""
        return self.going.read()
