"""A control group that bounds all memory of a server and its programs, where we may make one."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_NUMBERS = count()


def make_group(memory_bytes: int) -> Path | None:
    """A new group with a bound on its memory; None where the system lets us make none.

    Pages count in it wherever they are held: mapped, in files in memory, in pipes and sockets.
    """
    name = f"mos-sandbox-{os.getpid()}-{next(_NUMBERS)}"
    for parent, setting in _parents():
        group = parent / name
        with suppress(OSError):
            group.mkdir()
            try:
                (group / setting).write_text(str(memory_bytes))
                return group
            except OSError:
                group.rmdir()
    return None


def _parents() -> list[tuple[Path, str]]:
    """Groups that ours might be made in, and the name of the setting there."""
    own_groups = Path("/proc/self/cgroup")
    for line in own_groups.read_text().splitlines() if own_groups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        own = path.strip("/")
        if "memory" in controllers.split(","):
            return [(_CGROUPS / "memory" / own, "memory.limit_in_bytes")]
        if not controllers and (_CGROUPS / "cgroup.controllers").exists():
            # A group with processes cannot bound the memory of groups in it: beside it, then.
            return [((_CGROUPS / own).parent, "memory.max")] if own else []
    return []


def joining(group: Path, command: list[str]) -> list[str]:
    """A command that puts itself into the group and then is `command`."""
    return ["/bin/sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group), *command]


def remove_group(group: Path) -> None:
    """Remove the group once its last process is gone."""
    for _ in range(100):
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.01)
