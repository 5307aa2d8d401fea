"""A system call filter: what no honest HumanEval program needs is refused with EPERM.

Threads may be started, processes may not (the reference sets `os.fork` and `subprocess.Popen` to
None, so no program that passes there starts any). Hence one kill ends a program, one process's
limits bound it, and a fork bomb is a PermissionError. Sockets of every family are refused too:
a network namespace does not cover all of them. `socketpair` stays, for asyncio.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from . import libc

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Numbers on x86_64 and on aarch64; None where the architecture has no such call.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # special cases of _filter, and namespaces.py
    "clone": (56, 220),
    "clone3": (435, 435),
    "prlimit64": (302, 261),
    "pivot_root": (155, 41),
    # processes: starting, signalling, looking into, slowing down
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "setrlimit": (160, 164),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # the network, and memory that no limit counts
    "socket": (41, 198),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # changes to files that Landlock lets pass
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "truncate": (76, 45),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    # the file system's shape, and the kernel at large
    "mount": (165, 40),
    "umount2": (166, 39),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "fanotify_init": (300, 262),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "syslog": (103, 116),
}

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data


def number(name: str) -> int:
    """The number of a system call here; OSError on a machine that has no column in the table."""
    machine = os.uname().machine
    if machine not in _ARCHITECTURES or sys.maxsize < 2**32:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    value = _NUMBERS[name][_ARCHITECTURES[machine][1]]
    if value is None:
        raise OSError(errno.ENOSYS, f"{machine} has no {name}")
    return value


def _argument(index: int, high: bool = False) -> int:
    return 16 + 8 * index + 4 * high  # little endian, as both architectures are


def _filter() -> bytes:
    """The filter as an array of `struct sock_filter`."""
    architecture, column = _ARCHITECTURES[os.uname().machine]
    program: list[tuple[int, int, int, int]] = []

    def add(code: int, k: int, if_true: int = 0, if_false: int = 0) -> None:
        program.append((code, if_true, if_false, k))

    def refuse(error: int = errno.EPERM) -> None:
        add(_RETURN, _ERRNO | error)

    add(_LOAD, _ARCHITECTURE)
    add(_EQUAL, architecture, if_true=1)
    add(_RETURN, _KILL)
    add(_LOAD, _NUMBER)
    if column == 0:  # the x32 twins of all calls
        add(_AT_LEAST, 0x40000000, if_false=1)
        refuse()
    add(_EQUAL, number("clone3"), if_false=1)
    refuse(errno.ENOSYS)  # its flags are in memory; the C library falls back to clone
    add(_EQUAL, number("clone"), if_false=4)
    add(_LOAD, _argument(0))
    add(_ANY_BIT, libc.CLONE_THREAD, if_true=1)
    refuse()
    add(_LOAD, _NUMBER)
    # Reading one's own limits is all that prlimit64(pid, resource, new, old) may do.
    add(_EQUAL, number("prlimit64"), if_false=10)
    for offset in (_argument(0), _argument(2), _argument(2, high=True)):
        add(_LOAD, offset)
        add(_EQUAL, 0, if_true=1)
        refuse()
    add(_LOAD, _NUMBER)
    special = {"clone", "clone3", "prlimit64"}
    for name, numbers in _NUMBERS.items():
        value = numbers[column]
        if name not in special and value is not None:
            add(_EQUAL, value, if_false=1)
            refuse()
    add(_RETURN, _ALLOW)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install() -> None:
    """Put the filter over this process for good; OSError where the kernel has no filters."""
    code = _filter()
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    program = _Program(len(code) // 8, code)
    libc.call("prctl", libc.PR_SET_SECCOMP, 2, program)
