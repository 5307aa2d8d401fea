"""A clean process that forks a referee per program; it never holds a program's text itself."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import tempfile
import traceback
from contextlib import nullcontext, suppress
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from . import confine, landlock, libc, namespaces, referee, wire
from .folder import on_disk
from .limits import Limits

# What solutions import, loaded once. Not numpy: every fork would pay for its pages.
_PRELOADED = (
    *("bisect", "collections", "copy", "datetime", "functools", "hashlib", "heapq", "itertools"),
    *("math", "multiprocessing", "operator", "re", "shutil", "statistics", "string", "typing"),
)


class _Libraries:
    """Imports the third-party packages that are shown, and no other that lies beside them."""

    def __init__(self, paths: list[str], folders: list[str]):
        self.names = {Path(path).stem for path in paths}
        self.folders = folders

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, self.folders) if name in self.names else None


def main() -> None:
    """Serve until the programs on descriptor 0 end; the first frame on 1 says what is in force.

    The second argument of the command line is a JSON object of `isolation`, `limits`, and the
    paths of a `View`.
    """
    config = json.loads(sys.argv[2])
    sys.argv = [""]
    del sys.path[0]
    programs, verdicts = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for name in _PRELOADED:
        import_module(name)
    random.seed(42)
    try:
        plan = _isolate(config)
    except OSError as error:
        wire.send(verdicts, {"error": str(error)})
        return
    sys.meta_path.append(_Libraries(config["libraries"], config["site"]))
    wire.send(
        verdicts,
        {"namespaces": plan.namespaces, "landlock": plan.landlock, "uid": plan.uid},
    )
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    gc.freeze()
    while _serve_one(plan, Limits(**config["limits"]), programs, verdicts):
        pass


def _isolate(config: dict) -> confine.Plan:
    """Take this process (a child, if there are namespaces) behind the walls the kernel grants."""
    readable, libraries = config["readable"], config["libraries"]
    isolation = config["isolation"]
    uid = confine.spare_uid(
        [*readable, f"{tempfile.gettempdir()}/program"], new_root=isolation != "restricted"
    )
    names: list[str] = []
    if isolation == "namespaces":
        names = namespaces.separate()
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        namespaces.build_root(readable, config["hidden"], libraries)
    listed = not names and landlock.available()
    if isolation == "restricted" and not listed and uid is None:
        # Then a program could write to /proc/<pid>/mem of its referee and of our caller.
        raise OSError("no Landlock either, and no other user to run programs as")
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    return confine.Plan(
        namespaces=tuple(names),
        landlock=listed,
        uid=None if "user" in names else uid,
        readable=(*landlock.outside(readable, config["hidden"]), *libraries, *namespaces.DEVICES),
        listable=(*readable, *config["site"]),
    )


def _serve_one(plan: confine.Plan, limits: Limits, programs: int, verdicts: int) -> bool:
    own = "mount" in plan.namespaces
    with nullcontext() if own else on_disk(plan.uid) as folder:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = referee.referee(plan, limits, folder, programs, verdicts)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code in (0, referee.NO_MORE_PROGRAMS):
            return code == 0
        _kill_orphans(plan)
    # A crash (compiling a monstrous text, say) is the program's doing: it vanished, see referee.
    crashed = code < 0 and code != -signal.SIGKILL
    result = "timed out" if crashed else f"the referee ended with status {code}"
    verdict = {"result": result, "seconds": 0.0, "infrastructure_error": not crashed}
    wire.send(verdicts, verdict)
    return True


def _kill_orphans(plan: confine.Plan) -> None:
    """Kill what a crashed referee left; it is our child now, for we are a subreaper."""
    if "process" in plan.namespaces:
        orphans = [-1]  # all in our namespace, of which we are the first process
    else:
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        orphans = [int(pid) for pid in children.read_text().split()]
    for pid in orphans:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
