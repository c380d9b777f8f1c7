# cython: language_level=3
"""What signals do in a child process without help of the interpreter, which may hang."""

from cpython.exc cimport PyErr_SetFromErrno
from posix.types cimport pid_t


cdef extern from "orphan.h":
    int orphan_bound(pid_t parent, unsigned int seconds)


cdef extern from "<signal.h>":
    ctypedef struct stack_t:
        void *ss_sp
        int ss_flags
        size_t ss_size
    int sigaltstack(const stack_t *new, stack_t *old)

cdef char[1 << 20] _stack   # its pages take memory only where a signal has come


def bound_orphan(pid_t parent, unsigned int seconds):
    """Ends this process by SIGALRM at most ``seconds`` after the death of ``parent``, the process that forked it.

    That works although the interpreter hangs. A process that SIGSTOP holds goes on when its parent dies. To be called
    again after a change of the user, which makes the kernel forget it. Does nothing on systems other than Linux.
    Raises ``OSError``.
    """
    if orphan_bound(parent, seconds) < 0:
        PyErr_SetFromErrno(OSError)


def use_large_stack():
    """Gives this thread's signal handlers a stack of 1 MiB.

    ``faulthandler`` gives them one of 8 KiB and a frame. With AVX-512 or AMX a frame is up to 11 KiB, and a second
    signal within the first overruns it, into the heap. Linux has 64 signals, and each blocks itself while its handler
    runs. ``faulthandler`` needs a stack of its own, which shows where the ordinary one overflowed. Raises ``OSError``.
    """
    cdef stack_t large
    large.ss_sp = _stack
    large.ss_size = sizeof(_stack)
    large.ss_flags = 0
    if sigaltstack(&large, NULL) < 0:
        PyErr_SetFromErrno(OSError)
