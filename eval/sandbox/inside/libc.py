"""System calls that Python has no function for."""

from __future__ import annotations

import ctypes
import os

_LIBC = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38


def call(name: str, *arguments: int | bytes | ctypes.Array | ctypes.Structure | None) -> int:
    """Call a C library function; integers travel as unsigned longs, structures by reference.

    Raises:
        OSError: the function returned -1.
    """
    passed: list = []
    for argument in arguments:
        if isinstance(argument, int):
            passed.append(ctypes.c_ulong(argument))
        elif isinstance(argument, ctypes.Structure):
            passed.append(ctypes.byref(argument))
        else:
            passed.append(argument)
    result = getattr(_LIBC, name)(*passed)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def prctl(option: int, argument: int) -> None:
    call("prctl", option, argument, 0, 0, 0)
