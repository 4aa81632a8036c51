"""Runs a command as the process of a given id, one that was another's before: python as_pid.py PID
COMMAND… Its output, its input and its end are this process's.

It asks for the id with the fork (set_tid of clone3, Linux 5.5, clone(2)): what is written into
/proc/sys/kernel/ns_last_pid is for whoever forks next on the machine, and the id then taken.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_CLONE3 = 435  # the same on every architecture


class _CloneArgs(ctypes.Structure):
    """struct clone_args of linux/sched.h, as of Linux 5.5"""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("pidfd", ctypes.c_uint64),
        ("child_tid", ctypes.c_uint64),
        ("parent_tid", ctypes.c_uint64),
        ("exit_signal", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("stack_size", ctypes.c_uint64),
        ("tls", ctypes.c_uint64),
        ("set_tid", ctypes.c_uint64),
        ("set_tid_size", ctypes.c_uint64),
    )


def as_pid(pid: int) -> tuple[str, ...]:
    """What to put before a command."""
    return (sys.executable, "-S", __file__, str(pid))


def main(pid: int, command: list[str]) -> int:
    """Its exit code; raises OSError where the id is taken (EEXIST)."""
    wanted = ctypes.c_int(pid)
    arguments = _CloneArgs(
        exit_signal=signal.SIGCHLD, set_tid=ctypes.addressof(wanted), set_tid_size=1
    )
    libc = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock: the child needs it
    child = libc.syscall(_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments))
    if child < 0:
        raise OSError(ctypes.get_errno(), f"process {pid}: {os.strerror(ctypes.get_errno())}")
    if child == 0:
        try:
            for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python
                signal.signal(ignored, signal.SIG_DFL)
            os.execv(command[0], command)
        finally:
            os._exit(127)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
