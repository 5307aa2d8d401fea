"""Build the stub of stub.cpp against the packages of this environment.

    python tests/rehearsal/build.py FOLDER

Needs g++ and nm, and the packages of requirements/cuda.lock.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

SOURCE = Path(__file__).with_name("stub.cpp")
SITE = Path(sysconfig.get_path("purelib"))
# Libraries that call the runtime, cuBLAS or the driver, and where functions are called by name.
CALLERS = (
    "torch/lib/*cuda*.so",
    "torch/lib/libtorch_python.so",
    "bitsandbytes/*cuda13*.so",
    "vllm/**/*.so",
)
SOURCES = ("triton/backends/nvidia/driver.c", "nvidia/cu13/include/cuda.h", "pynvml.py")
NAME = re.compile(r"\b(?:__cuda[A-Z]|cuda[A-Z]|cublas[A-Z]|cu[A-Z]|nvml[A-Z])\w+")
# What a function does, by its name: count a launch or a product, give a handle, or nothing.
KINDS = {
    "LAUNCH": re.compile(r"(?:__)?cu(?:da)?Launch(?:Cooperative)?Kernel\w*"),
    "PRODUCT": re.compile(r"cublas(?:LtMatmul|\w*([gG]em[mv]|[dD]ot|trsm|Batched)\w*)"),
    "HANDLE": re.compile(r"cu\w+Create(?:With\w+|_v2)?"),
    "NOTHING": re.compile(r"(?!cuFile)\w+"),
}
DEFINITIONS = """
#include <atomic>
extern "C" std::atomic<long> rehearsal_counters[];
extern "C" void* rehearsal_handle();
#define WEAK extern "C" __attribute__((weak)) int  // stub.cpp's own definition wins
#define LAUNCH(name) WEAK name() { rehearsal_counters[0]++; return 0; }
#define PRODUCT(name) WEAK name() { rehearsal_counters[1]++; return 0; }
#define HANDLE(name) WEAK name(void** out) { *out = rehearsal_handle(); return 0; }
#define NOTHING(name) WEAK name() { return 0; }
"""


def table() -> str:
    """C++ for every function of CUDA that an installed library takes from another one."""
    libraries = [str(file) for pattern in CALLERS for file in SITE.glob(pattern)]
    listing = ["nm", "--dynamic", "--undefined-only", *libraries]
    text = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    text += "".join((SITE / file).read_text() for file in SOURCES)
    lines = [DEFINITIONS]
    for name in sorted(set(NAME.findall(text))):
        kind = next((kind for kind, names in KINDS.items() if names.fullmatch(name)), None)
        lines += [f"{kind}({name})\n"] if kind else []
    return "".join(lines)


def build(folder: Path) -> Path:
    """Compile into `folder` what LD_LIBRARY_PATH and LD_PRELOAD are to name; once per source."""
    library, rest, stamp = (folder / name for name in ("libcuda.so.1", "rest.cpp", "built-from"))
    wanted = hashlib.sha256(SOURCE.read_bytes() + table().encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return library
    folder.mkdir(parents=True, exist_ok=True)
    rest.write_text(table())
    compiler = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    headers = f"-I{SITE / 'nvidia' / 'cu13' / 'include'}"
    sources = [str(SOURCE), str(rest)]
    subprocess.run([*compiler, headers, *sources, "-o", str(library), "-ldl"], check=True)
    for other in ("libcuda.so", "libnvidia-ml.so.1"):
        (folder / other).unlink(missing_ok=True)
        (folder / other).symlink_to(library.name)
    stamp.write_text(wanted)
    return library


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
