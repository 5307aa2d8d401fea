"""A system call filter that lists what is allowed; every other call fails with EPERM.

The list is what CPython, the libraries shown and ordinary programs call on themselves, their
folder and their own memory. Threads may be started, processes may not (the reference sets
`os.fork` and `subprocess.Popen` to None, so no program that passes there starts any): one kill
ends a program and one process's limits bound it. Nothing reaches another process: no socket but
the connected pair that asyncio makes, no signal but to oneself, no owner of a descriptor's
signals. Nothing holds memory that the limits do not count: no memfd, no shared memory segment, no
page given to a pipe. Nothing tells of the machine's mounts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from . import libc

# The audit architecture, and the column in the table below.
_ARCHITECTURES = {"x86_64": (0xC000003E, 1), "aarch64": (0xC00000B7, 2)}

# Name, number on x86_64 and on aarch64; - where the architecture has no such call.
_ALLOWED = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69,
pwritev 296 70, preadv2 327 286, pwritev2 328 287, lseek 8 62, close 3 57, close_range 436 436,
dup 32 23, dup2 33 -, dup3 292 24, fcntl 72 25, ioctl 16 29, flock 73 32, pipe 22 -, pipe2 293 59,
open 2 -, openat 257 56, creat 85 -, stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79,
statx 332 291, statfs 137 43, fstatfs 138 44, access 21 -, faccessat 269 48, faccessat2 439 439,
readlink 89 -, readlinkat 267 78, getdents 78 -, getdents64 217 61, getcwd 79 17, chdir 80 49,
fchdir 81 50, mkdir 83 -, mkdirat 258 34, rmdir 84 -, rename 82 -, renameat 264 38,
renameat2 316 276, link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36, unlink 87 -,
unlinkat 263 35, umask 95 166, ftruncate 77 46, fallocate 285 47, fadvise64 221 223, fsync 74 82,
fdatasync 75 83,
brk 12 214, mmap 9 222, munmap 11 215, mprotect 10 226, mremap 25 216, madvise 28 233,
msync 26 227, mincore 27 232,
clone 56 220, futex 202 98, set_robust_list 273 99, set_tid_address 218 96, rseq 334 293,
membarrier 324 283, sched_yield 24 124, sched_getaffinity 204 123, getcpu 309 168, exit 60 93,
exit_group 231 94,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136,
rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132, tgkill 234 131,
restart_syscall 219 128, pause 34 -, alarm 37 -, setitimer 38 103, getitimer 36 102,
nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114,
gettimeofday 96 169, time 201 -, times 100 153,
select 23 -, pselect6 270 72, poll 7 -, ppoll 271 73, epoll_create 213 -, epoll_create1 291 20,
epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441, eventfd2 290 19,
socketpair 53 199, sendto 44 206, recvfrom 45 207, shutdown 48 210, getsockopt 55 209,
getsockname 51 204, getpeername 52 205,
getpid 39 172, getppid 110 173, gettid 186 178, getuid 102 174, geteuid 107 175, getgid 104 176,
getegid 108 177, getresuid 118 148, getresgid 120 150, getgroups 115 158, getpgid 121 155,
getpgrp 111 -, getsid 124 156, getpriority 140 141, getrusage 98 165, getrlimit 97 163,
prlimit64 302 261, prctl 157 167, uname 63 160, sysinfo 99 179, getrandom 318 278
"""
_CLONE3 = 435  # on both

_ANY = 0xFFFFFFFF
_CLONE_DETACHED, _MAP_HUGETLB, _SOCK_FLAGS, _SOCK_STREAM, _AF_UNIX = (
    0x400000,
    0x40000,
    0x80800,
    1,
    1,
)
# What pthread_create asks for: a thread that shares everything, descriptors too.
_THREAD = 0x3D0F00
# Duplicating, flags, locks of files: not who gets a descriptor's signals, nor a pipe's size.
_FCNTL = (*range(8), 36, 37, 38, 1030)
# Terminals: attributes and size (both fail); close-on-exec, blocking, bytes to read.
_IOCTL = (0x5401, 0x5413, 0x5450, 0x5451, 0x5421, 0x541B)
_SIGNALS = tuple(set(range(1, 65)) - {9, 19})  # those that a process can handle
_NAME = (15, 16)  # prctl: set and get a thread's name

_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data


def _conditions() -> dict[str, list[tuple[int, int, tuple[int, ...]]]]:
    """By call: 32-bit words of its arguments (2 * index, + 1 for the high half), what is masked
    from them, and the values that are then allowed."""
    return {
        # With descriptors of its own, each thread could hold as many as the limit says.
        "close_range": [(4, _ANY, (0, 4))],
        "clone": [(0, _ANY ^ _CLONE_DETACHED, (_THREAD,))],
        "fcntl": [(2, _ANY, _FCNTL)],
        "ioctl": [(2, _ANY, _IOCTL)],
        "mmap": [(6, _MAP_HUGETLB, (0,))],
        "prctl": [(0, _ANY, _NAME)],
        # Reading one's own limits is all that prlimit64(pid, resource, new, old) may do.
        "prlimit64": [(word, _ANY, (0,)) for word in (0, 4, 5)],
        "sendto": [(word, _ANY, (0,)) for word in (8, 9)],  # no address: to the peer only
        "socketpair": [(0, _ANY, (_AF_UNIX,)), (2, _ANY ^ _SOCK_FLAGS, (_SOCK_STREAM,))],
        "tgkill": [(0, _ANY, (os.getpid(),)), (4, _ANY, _SIGNALS)],
    }


def _filter() -> bytes:
    """The filter for this process, an array of `struct sock_filter`."""
    machine = os.uname().machine
    if machine not in _ARCHITECTURES or sys.maxsize < 2**32:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    architecture, column = _ARCHITECTURES[machine]
    program: list[tuple[int, int, int, int]] = []

    def add(code: int, k: int, if_true: int = 0, if_false: int = 0) -> None:
        program.append((code, if_true, if_false, k))

    add(_LOAD, _ARCHITECTURE)
    add(_EQUAL, architecture, if_true=1)
    add(_RETURN, _KILL)
    add(_LOAD, _NUMBER)
    # Its flags are in memory; the C library falls back to clone.
    add(_EQUAL, _CLONE3, if_false=1)
    add(_RETURN, _ERRNO | errno.ENOSYS)
    conditions = _conditions()
    for row in _ALLOWED.replace("\n", " ").split(","):
        fields = row.split()
        if fields[column] == "-":
            continue
        checks = conditions.get(fields[0], [])
        length = sum(3 + len(values) for _, _, values in checks)
        add(_EQUAL, int(fields[column]), if_false=length + 1)
        for word, mask, values in checks:
            add(_LOAD, 16 + 4 * word)  # little endian, as both architectures are
            add(_AND, mask)
            for left, value in zip(range(len(values), 0, -1), values, strict=True):
                add(_EQUAL, value, if_true=left)
            add(_RETURN, _ERRNO | errno.EPERM)
        add(_RETURN, _ALLOW)
    add(_RETURN, _ERRNO | errno.EPERM)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install() -> None:
    """Put the filter over this process for good; OSError where the kernel has no filters."""
    code = _filter()
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    program = _Program(len(code) // 8, code)
    libc.call("prctl", libc.PR_SET_SECCOMP, 2, program)
