# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Sockets that a worker accepts on and receives from, without a transport of the event loop for each.

All sockets of a worker are in one set (epoll), and the event loop watches only that: accepting, receiving and sending
are system calls from C, and Python is called for a connection when it begins and when it ends. Where there are no such
sets, the loop watches each socket. Knows descriptors, readiness, when TLS begins, what is unsent, and the end of a
connection. Refuses to know what is said.
"""

import resource
import selectors
from collections import deque
from asyncio.trsock import TransportSocket
from socket import socket
from ssl import SSLError

import cython

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, EMFILE, errno
from libc.limits cimport INT_MAX
from libc.stdlib cimport free, malloc
from libc.string cimport memset, strerror

from fastsmtp._engine cimport monotonic
from fastsmtp._secure cimport Seal
from fastsmtp._wire cimport Wire

cdef extern from "sys/socket.h":
    enum:
        AF_INET
        AF_INET6
    ssize_t recv(int fd, void *buffer, size_t length, int flags) nogil
    ssize_t send(int fd, const void *buffer, size_t length, int flags) nogil
    enum:
        SHUT_WR
        IPPROTO_TCP
    int shutdown(int fd, int how)
    int setsockopt(int fd, int level, int option, const void *value, socklen_t size) nogil

cdef extern from "arpa/inet.h":
    enum:
        INET6_ADDRSTRLEN
    const char *inet_ntop(int family, const void *source, char *target, socklen_t size)
    unsigned short ntohs(unsigned short n)
    unsigned int ntohl(unsigned int n)

cdef extern from "unistd.h":
    int close(int fd)
    int dup(int fd)

cdef extern from "readiness.h":
    enum:
        READY_READ
        READY_WRITE
        READY_ENDED
        MSG_NOSIGNAL
    const int READINESS_SETS
    const int ACKNOWLEDGE_NOW
    ctypedef struct readiness:
        pass
    int readiness_open()
    int readiness_add(int set, int fd, int wanted, void *owner)
    int readiness_change(int set, int fd, int wanted, void *owner)
    int readiness_remove(int set, int fd)
    int readiness_bell()
    int readiness_add_alone(int set, int fd, int name)
    int readiness_look(int set, readiness *found, int most)
    int readiness_what(const readiness *one)
    void *readiness_owner(const readiness *one)
    int accept_nonblocking(int fd, sockaddr *address, socklen_t *length)

cdef enum:
    LOOKS = 4               # at the set, before the loop has its turn: a look is cheaper than a turn
    FOUND = 64              # sockets that are served after one look
    ACCEPTS = 16            # connections accepted at once: a burst is spread over the workers
    SEALED = 128 * 1024     # octets of one read under TLS
    SHORT = 16 * 1024       # a read of fewer octets may be all that a client sends before it has an acknowledgement
    RESERVE = 256           # descriptors that connections leave for their messages, or an eighth of all
    MUCH_UNSENT = 64 * 1024     # beyond this the dialogue waits until the client reads

HAS_SETS = bool(READINESS_SETS)

# Seconds that a look at the sockets may take before the loop has its turn, if clients have more to do than they may.
cdef double LOOK = 0.001


cdef int set_of(loop) except -2:
    """The set of the system that the event loop waits on; -1 if it does not tell."""
    if hasattr(loop, "_get_backend_id"):
        return loop._get_backend_id()       # uvloop
    selector = getattr(loop, "_selector", None)
    if READINESS_SETS and isinstance(selector, selectors.EpollSelector):
        return selector.fileno()
    return -1


cdef object error_now():
    """The OSError, of the class that fits, for errno."""
    cdef int number = errno
    return OSError(number, strerror(number).decode())


cdef inline bint passing() noexcept:
    """Whether errno says no more than that nothing can be done now."""
    return errno == EAGAIN or errno == EINTR


@cython.final
cdef class Poller:
    """The sockets of one event loop. ``sets`` says whether to use a set of the system, where there is one."""

    def __cinit__(self):
        self.set = self.outer = -1

    def __init__(self, loop, *, bint sets=True):
        self._loop = loop
        self.all = set()
        self.passed = []
        self.leaving = []
        self.backlog = deque()
        self.owing = []
        self.shaking = set()
        if sets and READINESS_SETS:
            self.set = readiness_open()
            if self.set < 0:
                raise error_now()
            self.outer = set_of(loop)
            loop.add_reader(self.set, self.look)

    def __dealloc__(self):
        if self.set >= 0:
            close(self.set)
        free(self.sealed)

    def close(self):
        """Ends connections that are in the handshake they begin with, and lets go of the loop as soon as all streams
        have ended.
        """
        cdef Stream stream
        for stream in tuple(self.shaking):
            if not stream.made:
                stream.abort()
        self.closing = True
        if self.looking:
            self._loop.call_soon(self.see_off)
        else:
            self.see_off()

    cdef int _let_go(self) except -1:
        if self.set >= 0:
            self._loop.remove_reader(self.set)
            close(self.set)
            self.set = -1
        return 0

    def look(self):
        """Serves the sockets that are ready, and in between those that have a backlog."""
        cdef readiness found[FOUND]
        cdef Watched watched
        cdef int i, n, looks = 0
        cdef double end = 0
        while self.set >= 0:
            n = readiness_look(self.set, found, FOUND)
            if n <= 0 and not self.backlog:
                break
            self.looking = True
            try:
                for i in range(n):
                    watched = <Watched>readiness_owner(&found[i])   # held, as it may leave the set meanwhile
                    self._serve(watched, readiness_what(&found[i]))
                if self.backlog:
                    self._work_off()
            finally:    # a signal's handler may have raised what ends the program
                self._looked()
            looks += 1
            if not self.backlog:
                if looks >= LOOKS:
                    break
            elif end == 0:
                end = monotonic() + LOOK
            elif monotonic() >= end:
                break
        self._acknowledge()
        self._call_again()

    cdef int _acknowledge(self) except -1:
        """Acknowledges at once what clients may wait on, of whom nothing more came since."""
        cdef Stream stream
        if self.owing:
            for stream in self.owing:
                if stream.owes:
                    stream._acknowledge()
            self.owing.clear()
        return 0

    cdef int _work_off(self) except -1:
        """A turn of the stream that waits longest for one. All that are not busy were served before: a client that
        sends commands without end waits for those that do not, and they for one turn of it at most.
        """
        cdef Stream stream = self.backlog.popleft()
        if stream.left:
            return 0
        try:
            stream._busy_turn()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self._loop.call_exception_handler({"message": "a connection failed", "exception": error})
            stream._failed(error)
        if stream.busy and not stream.left:
            self.backlog.append(stream)
        return 0

    cdef int _call_again(self) except -1:
        if self.backlog and not self.called:
            self.called = True
            self._loop.call_soon(self.look_again)
        return 0

    def look_again(self):
        """Called by the loop while there is a backlog."""
        self.called = False
        if self.set >= 0:
            self.look()
            return
        self.looking = True
        try:
            if self.backlog:
                self._work_off()
        finally:
            self._looked()
        self._call_again()

    cdef int _looked(self) except -1:
        self.looking = False
        self.passed.clear()
        if self.leaving:
            self.see_off()
        return 0

    cdef int _serve(self, Watched watched, int what) except -1:
        if not watched.watched:
            return 0    # it left since the look
        try:
            watched._ready(what)
        except (KeyboardInterrupt, SystemExit):
            raise   # a signal's handler ends the program; a hook's are caught where hooks are called
        except BaseException as error:
            self._loop.call_exception_handler({"message": "a connection failed", "exception": error})
            watched._failed(error)
        return 0

    def see_off(self):
        """Closes the streams that are leaving, and tells their dialogues."""
        cdef Stream stream
        while self.leaving:
            leaving, self.leaving = self.leaving, []
            for stream in leaving:
                try:
                    stream._see_off()
                except (KeyboardInterrupt, SystemExit):
                    raise
                except BaseException as error:
                    self._loop.call_exception_handler({"message": "connection_lost failed", "exception": error})
        if self.closing and not self.all:
            self._let_go()

    cdef int _leave(self, Stream stream) except -1:
        # Not at once: it may be in the midst of a turn.
        if not self.leaving and not self.looking:
            self._loop.call_soon(self.see_off)
        self.leaving.append(stream)
        return 0

    cdef int _add(self, Watched watched, int wanted) except -1:
        if self.set < 0:
            watched.watched = True
            self.all.add(watched)
            return self._change(watched, wanted)
        if readiness_add(self.set, watched.fd, wanted, <void *>watched) < 0:
            raise error_now()
        watched.watched = True
        watched.wanted = wanted
        self.all.add(watched)   # the set keeps nothing alive
        return 0

    cdef int _change(self, Watched watched, int wanted) except -1:
        cdef int now = watched.wanted
        watched.wanted = wanted
        if self.set >= 0:
            if readiness_change(self.set, watched.fd, wanted, <void *>watched) < 0:
                raise error_now()
            return 0
        if (now ^ wanted) & READY_READ:
            if wanted & READY_READ:
                self._loop.add_reader(watched.fd, self.serve, watched, READY_READ)
            else:
                self._loop.remove_reader(watched.fd)
        if (now ^ wanted) & READY_WRITE:
            if wanted & READY_WRITE:
                self._loop.add_writer(watched.fd, self.serve, watched, READY_WRITE)
            else:
                self._loop.remove_writer(watched.fd)
        return 0

    cdef int _remove(self, Watched watched) except -1:
        if watched.watched:
            if self.set < 0:
                self._change(watched, 0)
            else:
                readiness_remove(self.set, watched.fd)
            watched.watched = False
            watched.wanted = 0
            self.all.discard(watched)
            if self.looking:
                self.passed.append(watched)     # it may have been found in this look, too
        return 0

    def serve(self, Watched watched not None, int what):
        """Called by the loop for a socket that it watches itself."""
        self.looking = True
        try:
            self._serve(watched, what)
        finally:
            self._looked()
        self._acknowledge()
        self._call_again()


cdef class Watched:
    """A socket in a poller."""

    def __cinit__(self):
        self.fd = -1

    cdef int _ready(self, int what) except -1:
        raise NotImplementedError

    cdef int _failed(self, error) except -1:
        raise NotImplementedError

    cdef int _want(self, int wanted) except -1:
        if self.watched and wanted != self.wanted:
            self.poller._change(self, wanted)
        return 0


@cython.final
cdef class Entrance(Watched):
    """A listening socket, which stays its owner's. ``accepted`` is called with each new stream, which it begins;
    ``failed`` with the ``OSError`` if there can be none, after which nothing is accepted until ``open``.

    Of several processes that wait on one socket, a new connection should wake one, and rather the same: in the poller's
    set, which the loop's set has in it, it woke all, and 8 workers took 1.5 times the CPU of one for a message. So the
    socket is in the loop's set, where the system can do that, as another name of a descriptor that the loop watches.
    """

    def __cinit__(self):
        self.bell = -1

    def __init__(self, Poller poller not None, listening, accepted, failed):
        self.poller = poller
        self.listening = listening
        self.accepted = accepted
        self.failed = failed
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit == resource.RLIM_INFINITY:
            limit = INT_MAX
        self.most = limit - min(<long>RESERVE, limit // 8)

    def __dealloc__(self):
        if self.bell >= 0:
            close(self.bell)

    def open(self):
        """Accepts from now on."""
        if self.watched:
            return
        self.fd = self.listening.fileno()
        if self.poller.outer < 0:
            self.poller._add(self, READY_READ)
            return
        if self.bell < 0:
            self.bell = readiness_bell()
            if self.bell < 0:
                raise error_now()
            self.poller._loop.add_reader(self.bell, self.poller.serve, self, READY_READ)
        if readiness_add_alone(self.poller.outer, self.fd, self.bell) < 0:
            raise error_now()
        self.watched = True

    def shut(self):
        """Accepts no more for now; who connects waits in the socket's queue."""
        if self.poller.outer < 0:
            self.poller._remove(self)
        elif self.watched:
            readiness_remove(self.poller.outer, self.fd)
            self.watched = False

    def accept(self):
        """Accepts who waits, if open."""
        if self.watched:
            self.poller._serve(self, READY_READ)

    def close(self):
        """Accepts no more."""
        self.shut()
        if self.bell >= 0:
            self.poller._loop.remove_reader(self.bell)
            close(self.bell)
            self.bell = -1

    cdef int _ready(self, int what) except -1:
        cdef Stream stream
        cdef Address address
        cdef socklen_t length
        cdef int fd
        if self.full and not self._has_room():
            self.shut()
            self.failed(OSError(EMFILE, strerror(EMFILE).decode()))
            return 0
        for _ in range(ACCEPTS):
            length = sizeof(address)
            memset(&address, 0, sizeof(address))
            fd = accept_nonblocking(self.fd, &address.any, &length)
            if fd < 0:
                if errno == EINTR or errno == ECONNABORTED:
                    continue    # that one is gone already
                if errno != EAGAIN:
                    # Out of descriptors or memory: the queue stays ready, and to look again at once is no use.
                    error = error_now()
                    self.shut()
                    self.failed(error)
                return 0
            stream = Stream.__new__(Stream)
            stream.poller = self.poller
            stream.fd = fd
            stream.address = address
            self.full = fd >= self.most
            self.accepted(stream)
            if not self.watched or self.full:
                return 0
        return 0

    cdef bint _has_room(self) noexcept:
        """Whether the next connection leaves descriptors for the messages of those that are here."""
        cdef int fd = dup(self.fd)
        if fd >= 0:
            close(fd)
        return 0 <= fd < self.most

    cdef int _failed(self, error) except -1:
        return 0


@cython.final
cdef class Stream(Watched):
    """An accepted connection, in clear or under TLS, as a transport of its dialogue: it has the methods of
    ``asyncio.Transport`` that a protocol uses.
    """

    def __dealloc__(self):
        if self.fd >= 0 and not self.lent:
            close(self.fd)

    def begin(self, Wire wire not None, context=None, double timeout=0):
        """Serves the connection with ``wire``, whose ``connection_made`` is called now, or after a TLS handshake with
        ``context``, which takes at most ``timeout`` seconds; if that fails, only ``tls_failed`` is called.
        """
        self.wire = wire
        self.awaited = None
        if not self.watched:
            self.poller._add(self, READY_READ)
        if context is None:
            self._made()
        else:
            self.begin_tls(context, timeout)

    def expect(self, ready not None):
        """Before ``begin``: has ``ready`` called whenever something can be read, and reads nothing."""
        self.awaited = ready
        self.poller._add(self, READY_READ)

    @property
    def sock(self):
        """The socket, which stays the stream's."""
        return self._its_socket()

    def detach(self):
        """Instead of ``begin``: gives the socket away, and is no stream any more."""
        cdef object its = self._its_socket()
        self.poller._remove(self)
        self.awaited = self._socket = None
        self.lent = False
        self.left = True
        self.fd = -1
        return its

    def begin_tls(self, context, double timeout):
        """Begins TLS: what comes from now on is the client's part of a handshake. At its end ``tls_begun`` or
        ``tls_failed`` is called.
        """
        self.seal = Seal(context)
        if self.poller.sealed == NULL:
            self.poller.sealed = <char *>malloc(SEALED)
            if self.poller.sealed == NULL:
                raise MemoryError()
        self.poller.shaking.add(self)
        self.timer = self.poller._loop.call_later(timeout, self._too_long, timeout)

    def _too_long(self, double timeout):
        if self.seal.shaking and not self.left:
            self._tls_failed(TimeoutError(f"it was not done after {timeout:g} s"))

    cdef int _made(self) except -1:
        self.made = True
        try:
            self.wire.connection_made(self)
        except BaseException:
            self._leave(None)
            raise
        return 0

    # --- what a protocol calls ------------------------------------------------------------------------------

    @cython.nonecheck(True)
    def write(self, data):
        """Sends ``data``, or keeps what the client does not take yet."""
        cdef Py_buffer buffer
        if self.left or self.closing:
            return
        if self.seal is not None:
            data = self.seal.sealed(data)
        if isinstance(data, bytes):
            self._write(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        else:
            PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
            try:
                self._write(<const char *>buffer.buf, buffer.len)
            finally:
                PyBuffer_Release(&buffer)

    cdef int _write(self, const char *p, size_t n) except -1:
        cdef ssize_t sent = 0
        self.wrote = True
        if self.unsent is None:
            sent = send(self.fd, p, n, MSG_NOSIGNAL)
            if sent < 0:
                if not passing():
                    return self._leave(error_now())
                sent = 0
        if <size_t>sent < n:
            self._keep(p + sent, n - sent)
        return 0

    def writelines(self, data):
        """Sends all of ``data``, an iterable of octets."""
        self.write(b"".join(data))

    def can_write_eof(self):
        """Whether there is ``write_eof``: TLS has no half of a connection."""
        return self.seal is None

    def write_eof(self):
        """Tells the client, when all is sent, that nothing more comes. What it sends is received on."""
        if self.seal is not None:
            raise NotImplementedError("TLS has no half of a connection")
        if not self.closing and not self.left:
            self.said_all = True
            if self.unsent is None:
                shutdown(self.fd, SHUT_WR)

    cdef int _keep(self, const char *p, size_t n) except -1:
        if self.unsent is None:
            self.unsent = PyByteArray_FromStringAndSize(p, n)
            self._want(self.wanted | READY_WRITE)
        else:
            self.unsent += p[:n]
        if not self.choked and PyByteArray_GET_SIZE(self.unsent) > MUCH_UNSENT:
            self.choked = True
            self.wire.pause_writing()
        return 0

    def close(self):
        """Ends the connection when all is sent."""
        if self.closing or self.left:
            return
        if self.seal is not None:
            if self.seal.shaking:
                self._leave(None)
            else:
                self._pass_on(self.seal.parting())
        self.closing = True
        if self.unsent is None:
            self._leave(None)
        else:
            self._want(READY_WRITE)

    def abort(self):
        """Ends the connection now."""
        self._leave(None)

    def is_closing(self):
        """Whether the connection is ended or ending."""
        return self.closing or self.left

    def pause_reading(self):
        """Receives nothing for now."""
        self._want(self.wanted & ~READY_READ)

    def resume_reading(self):
        """Receives again."""
        if not self.closing and not self.at_end:
            self._want(self.wanted | READY_READ)
            if self.seal is not None and self.seal.waiting() and not self.busy:
                self.poller._loop.call_soon(self.unseal)    # no readiness of the socket tells of it

    def yield_turn(self):
        """Has others served before the dialogue goes on with what it has; it is then told by ``take_turn``."""
        self._want(self.wanted & ~READY_READ)
        if not self.busy:
            self.busy = True
            self.poller.backlog.append(self)
            if not self.poller.looking:
                self.poller._call_again()

    def is_reading(self):
        """Whether anything is received."""
        return self.wanted & READY_READ != 0

    def get_protocol(self):
        """The dialogue that this is the transport of."""
        return self.wire

    def get_write_buffer_size(self):
        """How many octets are unsent."""
        return 0 if self.unsent is None else PyByteArray_GET_SIZE(self.unsent)

    def get_extra_info(self, str name not None, default=None):
        """``peername``, ``sockname``, ``socket``, ``ssl_object``, ``sslcontext``, ``cipher``, ``compression`` or
        ``peercert``, as asyncio's transports tell them.
        """
        if name == "peername":
            return self._peer()
        if self.seal is not None:
            if name == "ssl_object":
                return self.seal.ssl
            if name == "sslcontext":
                return self.seal.ssl.context
            if name == "peercert":
                return self.seal.ssl.getpeercert()
            if name == "cipher" or name == "compression":
                return getattr(self.seal.ssl, name)()
        if self.fd < 0:
            return default
        if name == "sockname":
            return self._its_socket().getsockname()
        if name == "socket":
            return TransportSocket(self._its_socket())
        return default

    # --- what happens ---------------------------------------------------------------------------------------

    cdef int _ready(self, int what) except -1:
        if self.awaited is not None:
            self.awaited()
            return 0
        if what & READY_WRITE and self.unsent is not None:
            self._send_rest()
        if self.left:
            return 0
        if self.wanted & READY_READ:
            if what & (READY_READ | READY_ENDED):
                self._receive()
        elif what & READY_ENDED:
            self._leave(None)
        return 0

    cdef int _receive(self) except -1:
        cdef size_t room = SEALED
        cdef char *p = self.poller.sealed if self.seal is not None else self.wire.room(&room)
        cdef ssize_t n = recv(self.fd, p, room, 0)
        self.owes = False
        if n > 0:
            self.wrote = False
            if self.seal is None:
                self.wire.received(n)
            else:
                self.seal.take(p, n)
                try:
                    self._unseal()
                finally:
                    self.seal.keep()
            if n < SHORT and not self.wrote and not self.left and self.wire.wants_more():
                self.owes = True
                self.poller.owing.append(self)
        elif n == 0:
            self._end_of_input()
        elif not passing():
            error = error_now()
            if self.seal is not None and self.seal.shaking:
                self._tls_failed(error)
            else:
                self._leave(error)
        return 0

    cdef int _busy_turn(self) except -1:
        """Goes on with what the dialogue has, or else with what has come. A client stays busy until it leaves time for
        others by itself, so that each of its reads waits for theirs.
        """
        if self.wire.yielded:
            self.wire.resume_turn()
            if self.wire.yielded or self.left:
                return 0
        if not self.wanted & READY_READ:
            self.busy = False   # it waits for a hook, or for the client to read
            return 0
        if self.seal is not None and self.seal.waiting():
            self._unseal()
        else:
            self._receive()
        if not self.wire.yielded:
            self.busy = False
            if self.seal is not None and not self.left and self.wanted & READY_READ and self.seal.waiting():
                self.poller._loop.call_soon(self.unseal)
        return 0

    cdef int _acknowledge(self) noexcept:
        """Has the kernel acknowledge a short read now. A client that sends its content, or a command, in small segments
        by the algorithm of Nagle (RFC 896) waits for that, while the kernel waits 40 ms for a reply to send it with
        (RFC 1122 4.2.3.2).
        """
        cdef int on = 1
        if ACKNOWLEDGE_NOW and not self.left and (
                self.address.any.sa_family == AF_INET or self.address.any.sa_family == AF_INET6):
            setsockopt(self.fd, IPPROTO_TCP, ACKNOWLEDGE_NOW, &on, sizeof(on))
        return 0

    cdef int _end_of_input(self) except -1:
        self.at_end = True
        if self.seal is not None and self.seal.shaking:
            self._tls_failed(ConnectionResetError("the client ended the connection"))
        elif self.wire.eof_received():
            self._want(self.wanted & ~READY_READ)
        else:
            self.close()
        return 0

    cdef int _send_rest(self) except -1:
        cdef Py_ssize_t n = PyByteArray_GET_SIZE(self.unsent)
        cdef ssize_t sent = send(self.fd, PyByteArray_AS_STRING(self.unsent), n, MSG_NOSIGNAL)
        if sent < 0:
            if not passing():
                self._leave(error_now())
            return 0
        if sent < n:
            del self.unsent[:sent]
            return 0
        self.unsent = None
        if self.closing:
            return self._leave(None)
        if self.said_all:
            shutdown(self.fd, SHUT_WR)
        self._want(self.wanted & ~READY_WRITE)
        if self.choked:
            self.choked = False
            self.wire.resume_writing()
        return 0

    # --- TLS ------------------------------------------------------------------------------------------------

    def unseal(self):
        """Takes what has come and was not read while reading was paused."""
        if not self.left:
            try:
                self._unseal()
            finally:
                if self.poller.leaving and not self.poller.looking:
                    self.poller.see_off()

    cdef int _unseal(self) except -1:
        cdef Seal seal = self.seal
        cdef size_t room, n
        cdef char *p
        if seal.shaking:
            try:
                done = seal.shake()
            except (SSLError, OSError) as error:
                self._pass_on(seal.out())   # an alert
                return self._tls_failed(error)
            self._pass_on(seal.out())
            if self.left:   # the client is gone, which a reset may tell at the last message of the handshake
                self.wire.tls_failed(self.error or ConnectionResetError("the client ended the connection"))
                return 0
            if not done:
                if seal.feed():
                    return self._unseal()
                return 0
            self._secured()
        while self.wanted & READY_READ and not seal.ended:
            p = self.wire.room(&room)
            try:
                n = seal.read(p, room)
            except (SSLError, OSError) as error:
                self._pass_on(seal.out())
                return self._leave(error)
            self._pass_on(seal.out())
            if n == 0 or self.left:
                break
            self.wire.received(n)
        if seal.ended and not self.left and not self.at_end:
            self._end_of_input()
        return 0

    cdef int _secured(self) except -1:
        self.poller.shaking.discard(self)
        self.timer.cancel()
        self.timer = None
        if self.made:
            self.wire.tls_begun()
            return 0
        return self._made()

    cdef int _tls_failed(self, error) except -1:
        if not self.left:
            self.wire.tls_failed(error)
            self._leave(error)
        return 0

    cdef int _pass_on(self, bytes octets) except -1:
        if octets and not self.left:
            self._write(PyBytes_AS_STRING(octets), PyBytes_GET_SIZE(octets))
        return 0

    # --- the end --------------------------------------------------------------------------------------------

    cdef int _failed(self, error) except -1:
        return self._leave(error)

    cdef int _leave(self, error) except -1:
        if not self.left:
            self.left = True
            self.error = error
            self.unsent = None
            self.awaited = None
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None
                self.poller.shaking.discard(self)
            self.poller._leave(self)    # which holds it, as the set does no more
            self.poller._remove(self)
        return 0

    cdef int _see_off(self) except -1:
        cdef Wire wire = self.wire
        self.wire = None
        try:
            if self.made:
                wire.connection_lost(self.error)
        finally:
            self.error = None
            if self.lent:
                self._socket.close()
            elif self.fd >= 0:
                close(self.fd)
            self.fd = -1
        return 0

    cdef object _its_socket(self):
        if not self.lent:
            self._socket = socket(fileno=self.fd)
            self._socket.setblocking(False)
            self.lent = True
        return self._socket

    cdef object _peer(self):
        cdef char text[INET6_ADDRSTRLEN]
        if self.address.any.sa_family == AF_INET:
            inet_ntop(AF_INET, &self.address.v4.sin_addr, text, sizeof(text))
            return text.decode(), ntohs(self.address.v4.sin_port)
        if self.address.any.sa_family == AF_INET6:
            inet_ntop(AF_INET6, &self.address.v6.sin6_addr, text, sizeof(text))
            return (text.decode(), ntohs(self.address.v6.sin6_port), ntohl(self.address.v6.sin6_flowinfo),
                    self.address.v6.sin6_scope_id)
        return ""
