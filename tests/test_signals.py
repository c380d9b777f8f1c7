"""What signals do in a process of the server without the interpreter's help, and in the processes that a hook forks."""

import subprocess
import sys

import pytest

FORKED_BY_A_HOOK = """\
import os
import signal

from fastsmtp import _signals

_signals.bound_orphan(os.getppid(), 60)
pid = os.fork()
if pid == 0:
    os.kill(os.getpid(), signal.SIGCONT)
    os._exit(signal.alarm(0))  # the seconds that were left
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
os.kill(os.getpid(), signal.SIGCONT)
assert signal.alarm(0) == 0
"""

CHILD = """\
import ctypes
import os

from fastsmtp import children

class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def body(reporter):
    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.size != 1 << 20

child = children.fork("child", body, drop=(), strays=(), patience=60)
assert os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) == 0
"""

on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="stack_t and a parent's death as Linux has them"
)


def _run(program: str, *options: str) -> None:
    done = subprocess.run(
        [sys.executable, *options, "-c", program], capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stderr) == (0, "")


@on_linux
def test_a_process_that_a_hook_forks_may_be_stopped_and_continued() -> None:
    _run(FORKED_BY_A_HOOK)


@on_linux
@pytest.mark.parametrize("options", [(), ("-X", "faulthandler")], ids=["", "with faulthandler"])
def test_signals_of_a_child_have_room_for_all_that_come_at_once(options: tuple[str, ...]) -> None:
    _run(CHILD, *options)
