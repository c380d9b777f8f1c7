# cython: language_level=3
"""What signals do in a child process without help of the interpreter, which may hang."""

from cpython.exc cimport PyErr_SetFromErrno
from posix.types cimport pid_t


cdef extern from "orphan.h":
    int orphan_bound(pid_t parent, unsigned int seconds)


cdef extern from "<signal.h>":
    ctypedef struct stack_t:
        int ss_flags
    enum:
        SS_DISABLE
    int sigaltstack(const stack_t *new, stack_t *old)


def bound_orphan(pid_t parent, unsigned int seconds):
    """Ends this process by SIGALRM at most ``seconds`` after the death of ``parent``, the process that forked it.

    That works although the interpreter hangs. A process that SIGSTOP holds goes on when its parent dies. To be called
    again after a change of the user, which makes the kernel forget it. Does nothing on systems other than Linux.
    Raises ``OSError``.
    """
    if orphan_bound(parent, seconds) < 0:
        PyErr_SetFromErrno(OSError)


def use_ordinary_stack():
    """Has this thread's signal handlers run on its ordinary stack.

    ``faulthandler`` gives them one of 8 KiB and a frame. With AVX-512 or AMX a frame is up to 11 KiB, and a second
    signal within the first overruns it, into the heap. Raises ``OSError``.
    """
    cdef stack_t none
    none.ss_flags = SS_DISABLE
    if sigaltstack(&none, NULL) < 0:
        PyErr_SetFromErrno(OSError)
