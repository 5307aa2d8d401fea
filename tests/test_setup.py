"""scripts/setup.py, without a network: its .venv has a Python that only notes what it is asked."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from eval.engines import vllm_package

REPO = Path(__file__).resolve().parent.parent
LOCKS = sorted((REPO / "requirements").glob("*.lock"))


def script(name):
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", REPO / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


setup = script("setup")
Gpu = setup.Gpu


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_locks_pin_every_package_with_hashes_and_name_no_index(lock):
    text = lock.read_text()
    entries = re.findall(
        r"^(\S+?==\S+) \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.M
    )
    assert "".join(f"{pin} \\\n{hashes}" for pin, hashes in entries) == text.partition("\n")[2]
    assert entries


def pinned(kind):
    text = (REPO / f"requirements/{kind}.lock").read_text()
    return dict(re.findall(r"^(\S+?)==(\S+)", text, re.M))


def test_locks_agree_with_the_project_and_with_each_other():
    lock = script("lock")
    pins = {kind: pinned(kind) for kind in lock.EXTRAS}
    for kind, left_out in lock.LEFT_OUT.items():
        assert not set(pins[kind]) & set(left_out)
    assert [kind for kind in pins if "torch" in pins[kind]] == ["cuda"]
    assert f"torch=={pins['cuda']['torch']}" == lock.torch_pin()
    assert set(pins["cuda12"].items()) <= set(pins["cpu"].items())
    # without torchvision, and the one for this torch, no vLLM starts on a GPU
    minor = int(pins["cuda"]["torch"].split(".")[1])
    assert pins["cuda"]["torchvision"].startswith(f"0.{minor + 15}.")


def test_a_lock_has_all_that_vllm_names_or_a_reason_why_not():
    if (package := vllm_package()) is None:
        pytest.skip("vLLM is not installed")
    kind = "cuda" if package == "vllm" else "cpu"
    pins, left_out = pinned(kind), script("lock").LEFT_OUT[kind]
    for need in map(Requirement, requires(package)):
        name = canonicalize_name(need.name)
        wanted = need.marker is None or need.marker.evaluate({"extra": ""})
        if wanted and name not in {*left_out, "torch"}:
            assert need.specifier.contains(pins[name]), f"{need}, and {pins[name]} is locked"


@pytest.mark.parametrize(
    ("gpus", "kind"),
    [
        ([], "cpu"),
        ([Gpu("A100", 580, 8.0)], "cuda"),
        ([Gpu("B200", 595, 10.0)], "cuda"),
        ([Gpu("A100", 535, 8.0)], "cuda12"),
        ([Gpu("V100", 580, 7.0)], "cuda12"),
        ([Gpu("V100", 580, 7.0), Gpu("A100", 580, 8.0)], "cuda"),
    ],
)
def test_the_driver_and_the_gpu_choose_the_build(gpus, kind):
    assert setup.kind_for(gpus) == kind


@pytest.mark.parametrize(
    "gpu", [Gpu("K80", 470, 3.7), Gpu("A100", 510, 8.0), Gpu("B200", 570, 10.0)]
)
def test_a_gpu_that_no_build_serves_is_refused_in_one_line(gpu):
    with pytest.raises(SystemExit) as refused:
        setup.kind_for([gpu])
    message = str(refused.value)
    assert "\n" not in message
    assert all(part in message for part in (gpu.name, f"driver {gpu.driver}", "setup.py cpu"))


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (
            "NVIDIA A100-SXM4-40GB, 580.65.06, 8.0\n" * 2,
            [Gpu("NVIDIA A100-SXM4-40GB", 580, 8.0)] * 2,
        ),
        ("Tesla V100, PCIe, 535.104, 7.0\n", [Gpu("Tesla V100, PCIe", 535, 7.0)]),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", []),
        ("No devices were found\n", []),
    ],
)
def test_what_nvidia_smi_says(answer, found, tmp_path, monkeypatch, capsys):
    fake(tmp_path / "nvidia-smi", f"cat <<'END'\n{answer}END")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert setup.gpus() == found
    assert capsys.readouterr().out.count("\n") == (0 if found else 1)


def test_a_driver_that_does_not_know_of_capabilities_is_named(tmp_path, monkeypatch):
    fake(
        tmp_path / "nvidia-smi",
        'case "$*" in *compute_cap*) echo \'Field "compute_cap" is not a valid field to query.\';'
        " exit 2;; esac; echo Tesla K80, 470.82.01",
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert setup.gpus() == [Gpu("Tesla K80", 470, 0.0)]


@pytest.fixture
def checkout(tmp_path):
    """A checkout with an environment whose Python answers and installs nothing."""
    for name in (
        "scripts/setup.py",
        "pyproject.toml",
        "requirements/cpu.lock",
        "requirements/cuda.lock",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPO / name, tmp_path / name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python(tmp_path)
    return tmp_path


def python(checkout, on_lock=""):
    fake(
        checkout / ".venv/bin/python",
        f'echo "$*" >> {checkout}/asked; case "$*" in'
        ' *--dry-run*) echo \'{"install": [{"metadata": {}}]}\';;'
        f" *.lock*) true; {on_lock};; esac",
    )


def fake(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


OFFLINE = {**os.environ, "MOS_SETUP": "pip", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/nowhere"}


def run(checkout, *arguments):
    command = [sys.executable, "scripts/setup.py", *arguments]
    return subprocess.run(command, cwd=checkout, env=OFFLINE, capture_output=True, text=True)


def asked(checkout):
    return (checkout / "asked").read_text().splitlines()


def test_a_second_call_does_nothing_and_a_new_lock_is_installed(checkout):
    first = run(checkout, "cpu")
    assert first.returncode == 0, first.stderr
    installed = asked(checkout)
    assert any(
        line.endswith("requirements/cpu.lock") and "--require-hashes" in line for line in installed
    )
    # The machine would choose the CPU, or a GPU: what a user asked for stays.
    assert run(checkout).stdout == ""
    assert asked(checkout) == installed
    with (checkout / "requirements/cpu.lock").open("a") as lock:
        lock.write("# newer\n")
    run(checkout)
    assert asked(checkout)[len(installed) + 1 :] == installed[1:]


def test_a_failed_set_up_is_finished_by_the_next(checkout):
    python(checkout, on_lock="echo no such package >&2; exit 1")
    failed = run(checkout, "cpu")
    assert failed.returncode == 1
    assert "no such package" in failed.stderr
    assert "Traceback" not in failed.stderr
    python(checkout)
    assert run(checkout).returncode == 0
    assert run(checkout).stdout == ""


def test_an_interrupt_is_one_line_and_the_next_call_goes_on(checkout):
    python(checkout, on_lock=f"touch {checkout}/waiting; exec sleep 60")
    process = subprocess.Popen(
        [sys.executable, "scripts/setup.py", "cpu"],
        cwd=checkout,
        env=OFFLINE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (checkout / "waiting").exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C
    stderr = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert stderr.strip() == "interrupted: the next `make setup` goes on from here"
    python(checkout)
    assert run(checkout).returncode == 0


def test_an_environment_for_another_kind_is_not_built_upon(checkout):
    """torch's CPU build satisfies the CUDA lock's version: it would stay."""
    run(checkout, "cpu")
    (checkout / ".venv/leftover").touch()
    (checkout / ".venv/pyvenv.cfg").touch()
    shutil.copy(checkout / ".venv/bin/python", checkout / "python")
    (checkout / "scripts/venv.py").write_text(
        "import shutil\n"
        "def create(folder, with_pip, clear):\n"
        "    if clear:\n"
        "        shutil.rmtree(folder)\n"
        "    (folder / 'bin').mkdir(parents=True, exist_ok=True)\n"
        "    shutil.copy('python', folder / 'bin/python')\n"
    )
    assert run(checkout, "cuda").returncode == 0
    assert not (checkout / ".venv/leftover").exists()
    assert (checkout / ".venv/.mos-setup").read_text().startswith("cuda asked ")
    (checkout / ".venv/mine").touch()
    for name in ("bin/python", ".mos-setup"):  # and no pyvenv.cfg: it is no environment
        (checkout / ".venv" / name).unlink()
    assert run(checkout, "cuda").returncode == 0
    assert (checkout / ".venv/mine").exists()
