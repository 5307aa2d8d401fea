"""What the processes of a program give up before they see any foreign code.

The list of system calls is what CPython, the libraries shown and ordinary programs call on
themselves, their folder and their own memory; every other call fails with EPERM. Threads may be
started, processes may not (the reference sets `os.fork` and `subprocess.Popen` to None, so no
program that passes there starts any): one kill ends a program and one process's limits bound it.
Nothing reaches another process: no socket but the connected pair that asyncio makes, no signal but
to oneself, no owner of a descriptor's signals. Nothing holds memory that the limits do not count:
no memfd, no shared memory segment, no page given to a pipe. Nothing tells of the machine's mounts.

Landlock is for kernels that refuse us namespaces: every open, create and remove outside its list
fails with EACCES, as does reaching into any process outside (`/proc/<pid>/mem`, ptrace). That a
path exists can still be found out.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on all architectures
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_ALL_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}


@dataclass(frozen=True)
class Limits:
    """Limits on one program.

    Attributes:
        cpu_s: processor seconds, what the reference's 3.0 s timer is meant to measure; of the
            solution, and as many of its test. A busy machine stretches wall time and leaves this
            alone, so it cannot flip a verdict.
        wall_s: seconds on the clock, generous, to end programs that sleep or wait.
        memory_mb: address space of the solution, and of its test, in MiB.
        threads: threads at one time (further processes are refused altogether).
        file_mb: size of one file, in MiB.
        folder_mb: size of the private folder, in MiB.
        entries: files and folders in it.
        open_files: open file descriptors.
        value_mb: size of one returned value as it crosses to the referee, in MiB.
    """

    cpu_s: float = 3.0
    wall_s: float = 30.0
    memory_mb: int = 1024
    threads: int = 128
    file_mb: int = 16
    folder_mb: int = 64
    entries: int = 4096
    open_files: int = 64
    value_mb: int = 8


@dataclass(frozen=True)
class Walls:
    """What holds for both processes of a program.

    Attributes:
        limits: of each program.
        restricted: there are no namespaces: file access is by Landlock's list of the next two, and
            the kernel counts others' threads as ours.
        readable: files and folders that may be read: libraries.
        listable: folders that may be listed, as an import does.
    """

    limits: Limits
    restricted: bool
    readable: Sequence[str] = ()
    listable: Sequence[str] = ()


def confine(walls: Walls, folder: str) -> None:
    """Give up, for good, all that the walls and the limits say; `folder` stays writable."""
    _call("capset", (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)  # no other process can look into this one
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if walls.restricted:
        _limit_files(walls.readable, walls.listable, folder)
    _limit_resources(walls)
    code = _filter()
    _call("prctl", _PR_SET_SECCOMP, 2, _Filter(len(code) // 8, code))


def _call(name: str, *arguments: int | ctypes.Array | ctypes.Structure | None) -> int:
    """Call a C library function; integers travel as unsigned longs, the rest by reference.

    Raises:
        OSError: the function returned -1.
    """
    passed = [ctypes.c_ulong(a) if isinstance(a, int) else a and ctypes.byref(a) for a in arguments]
    result = getattr(_LIBC, name)(*passed)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def prctl(option: int, argument: int) -> None:
    _call("prctl", option, argument, 0, 0, 0)


def _limit_resources(walls: Walls) -> None:
    limits, megabyte = walls.limits, 1 << 20
    # A second line: the server ends a program at cpu_s exactly. SIGXCPU, the soft limit's signal,
    # says which limit struck; SIGKILL, the hard one's, would not.
    cpu_s = math.ceil(limits.cpu_s) + 1
    values = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: limits.memory_mb * megabyte,
        resource.RLIMIT_FSIZE: limits.file_mb * megabyte,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_STACK: 8 * megabyte,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if not walls.restricted:
        values[resource.RLIMIT_NPROC] = limits.threads
    for kind, value in values.items():
        hard = resource.getrlimit(kind)[1]
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        spare = 1 if kind == resource.RLIMIT_CPU and bounded == value else 0
        resource.setrlimit(kind, (bounded, bounded + spare))


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def landlock_version() -> int:
    """The kernel's; OSError if it has no Landlock."""
    try:
        return _call("syscall", _CREATE_RULESET, None, 0, 1)
    except OSError as error:
        raise OSError("this kernel has no Landlock") from error


def outside(paths: Iterable[str], hidden: Iterable[str]) -> list[str]:
    """The paths without the hidden folders in them: for what a rule cannot take back."""
    found = []
    for path in paths:
        if path in hidden or not Path(path).exists():  # a dangling symbolic link
            continue
        if any(folder.startswith(f"{path}/") for folder in hidden):
            found += outside((str(child) for child in Path(path).iterdir()), hidden)
        else:
            found.append(path)
    return found


def _limit_files(readable: Iterable[str], listable: Iterable[str], writable: str) -> None:
    everything = _ALL_BY_ABI[min(landlock_version(), max(_ALL_BY_ABI))]
    attributes = _Ruleset(everything)
    ruleset = _call("syscall", _CREATE_RULESET, attributes, ctypes.sizeof(attributes), 0)
    for paths, access in (
        (readable, _READ_FILE | _READ_DIR),
        (listable, _READ_DIR),
        ([writable], everything),
    ):
        for path in paths:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            # A right that is about folders may not be given on a file.
            allowed = access if Path(path).is_dir() else access & ~_READ_DIR
            _call("syscall", _ADD_RULE, ruleset, 1, _PathBeneath(allowed, fd), 0)
            os.close(fd)
    _call("syscall", _RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


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
_CLONE_DETACHED, _MAP_HUGETLB = 0x400000, 0x40000
_SOCK_FLAGS, _SOCK_STREAM, _AF_UNIX = 0x80800, 1, 1
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


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))
