"""Sockets that are watched together, as the other compiled modules see them."""

from libc.stdint cimport uint8_t

from fastsmtp._secure cimport Seal
from fastsmtp._wire cimport Wire

cdef extern from "sys/socket.h":
    ctypedef unsigned int socklen_t
    struct sockaddr:
        unsigned short sa_family

cdef extern from "netinet/in.h":
    struct in_addr:
        pass
    struct in6_addr:
        pass
    struct sockaddr_in:
        unsigned short sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_port
        unsigned int sin6_flowinfo
        in6_addr sin6_addr
        unsigned int sin6_scope_id

cdef union Address:     # of a TCP peer; of a UNIX socket only the family is of interest
    sockaddr any
    sockaddr_in v4
    sockaddr_in6 v6


cdef class Poller:
    cdef int set
    cdef int outer      # the loop's own set, if that is known
    cdef object _loop
    cdef bint looking, closing, called
    cdef object backlog         # streams with more to do than a turn allows, in a deque
    cdef list owing             # streams whose last read may wait for its acknowledgement
    cdef set all        # the sockets
    cdef list passed    # those that left during a look
    cdef list leaving
    cdef set shaking    # streams whose TLS handshake is not done
    cdef char *sealed   # where what is received under TLS lies for a moment

    cdef int _add(self, Watched watched, int wanted) except -1
    cdef int _change(self, Watched watched, int wanted) except -1
    cdef int _remove(self, Watched watched) except -1
    cdef int _leave(self, Stream stream) except -1
    cdef int _let_go(self) except -1
    cdef int _serve(self, Watched watched, int what) except -1
    cdef int _looked(self) except -1
    cdef int _work_off(self) except -1
    cdef int _call_again(self) except -1
    cdef int _acknowledge(self) except -1


cdef class Watched:
    cdef Poller poller
    cdef int fd
    cdef uint8_t wanted     # READY_READ, READY_WRITE
    cdef bint watched

    cdef int _ready(self, int what) except -1
    cdef int _failed(self, error) except -1
    cdef int _want(self, int wanted) except -1


cdef class Entrance(Watched):
    cdef object listening, accepted, failed
    cdef int bell               # what the loop watches in place of the socket
    cdef int most               # descriptors: beyond them nothing is accepted
    cdef bint full

    cdef bint _has_room(self) noexcept


cdef class Stream(Watched):
    cdef Wire wire
    cdef bytearray unsent
    cdef Seal seal
    cdef bint closing, left, at_end, choked, lent, made, said_all, busy, wrote, owes
    cdef object error, timer, _socket
    cdef object awaited     # called when something can be read, before there is a dialogue
    cdef Address address

    cdef int _write(self, const char *p, size_t n) except -1
    cdef int _made(self) except -1
    cdef int _receive(self) except -1
    cdef int _busy_turn(self) except -1
    cdef int _acknowledge(self) noexcept
    cdef int _unseal(self) except -1
    cdef int _secured(self) except -1
    cdef int _tls_failed(self, error) except -1
    cdef int _pass_on(self, bytes octets) except -1
    cdef int _end_of_input(self) except -1
    cdef int _send_rest(self) except -1
    cdef int _keep(self, const char *p, size_t n) except -1
    cdef int _leave(self, error) except -1
    cdef int _see_off(self) except -1
    cdef object _its_socket(self)
    cdef object _peer(self)
