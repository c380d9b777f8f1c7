"""TLS without a transport, as streams see it."""


cdef class Seal:
    cdef readonly object ssl
    cdef object coming, going
    cdef const char *fresh      # what was received and not given to OpenSSL yet ...
    cdef size_t fresh_length
    cdef bytes rest             # ... and what of it had to be copied
    cdef bint shaking, ended

    cdef int take(self, const char *p, size_t n) except -1
    cdef bint feed(self) except -1
    cdef int keep(self) except -1
    cdef bint shake(self) except -1
    cdef size_t read(self, char *p, size_t room) except? 0
    cdef bint waiting(self) except -1
    cdef bytes sealed(self, data)
    cdef bytes parting(self)
    cdef bytes out(self)
