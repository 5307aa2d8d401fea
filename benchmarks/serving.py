"""Serving MoS adapters in vLLM as they are saved, beside the same adapters exported as LoRA.

    python benchmarks/serving.py                                  # SmolLM2, this CPU
    python benchmarks/serving.py --adapters 4 --requests 40 --resident 8 --rounds 3     # a minute
    python benchmarks/serving.py --parts memory load              # without the trace

Adapters are random, of one configuration, and each is exported as LoRA. The parts, which vLLM's own
LoRA manager does in a process of theirs:

memory  What the process grows by for each adapter in the host cache (bfloat16), the median along
        `--resident` adapters of either kind, LoRA no further than half of the free memory. The
        folders are read again under other names.
load    Milliseconds, medians of `--rounds` rounds in which the two kinds take turns and the first
        changes. `disk`: reading an adapter and activating it, its file dropped from the page cache;
        `file`: the same, the file in the page cache; `again`: activating one from the host cache.
trace   `--requests` requests, of which the popularity of the adapters follows a power law (exponent
        1), one member being the base model; at most 32 under way, 8 slots, 32 places in the host
        cache, float32. Each answer is compared with that of vLLM without the plugin, to the
        exported LoRA, no other adapter being in the batch.

Results go to benchmarks/results/serving.{md,json,svg}.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
from machine import machine  # noqa: E402
from tqdm import tqdm  # noqa: E402

from mos.files import SMOLLM2  # noqa: E402
from mos.models.sources import resolve_model  # noqa: E402

LABELS = {"mos": "MoS", "lora": "LoRA"}
KINDS = tuple(LABELS)
PARTS = ("memory", "load", "trace")
RANK, UNDER_WAY, SLOTS, PLACES = 32, 32, 8, 32
PROMPTS = (
    "The capital of France",
    "Name a colour:",
    "2 + 2 =",
    "Once upon a time",
    "def add(a,",
    "My favourite food",
    "Water boils at",
    "Dear Sir",
)
OUTPUT_TOKENS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=SMOLLM2, help="a model folder or package")
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=30, help="no request begins later")
    parser.add_argument("--resident", type=int, default=1000, help="adapters in the host cache")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--cache-dir", type=Path, default=REPO / "data" / "cache")
    parser.add_argument("--folder", type=Path, help="keeps the adapters; default: a temporary one")
    parser.add_argument("--out", type=Path, default=REPO / "benchmarks/results/serving.md")
    parser.add_argument("--one", choices=[*PARTS, "reference"], help=argparse.SUPPRESS)
    typed = " ".join(["python", "benchmarks/serving.py", *sys.argv[1:]])
    parser.add_argument("--command", default=typed, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        result = globals()[arguments.one](arguments) | {"command": arguments.command}
        (arguments.folder / f"{arguments.one}.json").write_text(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as scratch:
        arguments.folder = arguments.folder or Path(scratch)
        make_adapters(arguments)
        for part in PARTS:
            if part in arguments.parts:
                in_process_of_its_own(part, arguments)
        if "trace" in arguments.parts:
            in_process_of_its_own("reference", arguments)
        files = {part: arguments.folder / f"{part}.json" for part in (*PARTS, "reference")}
        found = {p: json.loads(file.read_text()) for p, file in files.items() if file.exists()}
    if "trace" in found:
        found["trace"] = compared(found["trace"], found.pop("reference"), arguments)
    report(found, arguments)


def make_adapters(arguments: argparse.Namespace) -> None:
    """Random MoS adapters in `<folder>/mos/<i>`, and each as LoRA in `<folder>/lora/<i>`."""
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from mos import MosConfig
    from mos.export import to_lora

    base = AutoConfig.from_pretrained(resolve_model(arguments.model, arguments.cache_dir))
    config = MosConfig(
        r=RANK,
        equivalent_rank=8,
        shards_per_vector=4,
        private_rank=1,
        target_modules="all-linear",
        save_dtype="bfloat16",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(AutoModelForCausalLM.from_config(base, dtype=torch.bfloat16), config)
    trained = [p.data for p in model.parameters() if p.requires_grad]
    for i in tqdm(range(1, arguments.adapters + 1), "adapters"):
        folders = [arguments.folder / kind / str(i) for kind in KINDS]
        if folders[-1].is_dir():
            continue
        torch.manual_seed(i)
        for tensor in trained:
            tensor.normal_(std=0.05)
        model.save_pretrained(folders[0])
        to_lora(model, folders[1], torch.bfloat16)


def in_process_of_its_own(part: str, arguments: argparse.Namespace) -> None:
    """Measure a part, into `<folder>/<part>.json`."""
    command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(arguments.folder)]
    command += ["--one", part, "--command", arguments.command]
    environment = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    if part == "reference":
        environment["VLLM_PLUGINS"] = ""  # vLLM as it is
    subprocess.run(command, check=True, env=environment)


def engine(arguments: argparse.Namespace, dtype: str, slots: int, places: int) -> Any:
    """vLLM in this process."""
    from vllm import LLM

    return LLM(
        str(resolve_model(arguments.model, arguments.cache_dir)),
        dtype=dtype,
        enable_lora=True,
        max_lora_rank=RANK,
        max_loras=slots,
        max_cpu_loras=places,
        max_num_seqs=UNDER_WAY,
        max_model_len=64,
        kv_cache_memory_bytes=1 << 30,
        enforce_eager=True,
        enable_prefix_caching=False,
    )


def lora_manager(llm: Any) -> Any:
    """The engine's `WorkerLoRAManager`."""
    (manager,) = llm.collective_rpc(lambda worker: worker.model_runner.lora_manager)
    return manager


def request(arguments: argparse.Namespace, kind: str, adapter: int, number: int) -> Any:
    from vllm.lora.request import LoRARequest

    folder = arguments.folder / kind / str(adapter)
    return LoRARequest(f"{kind}-{number}", number, str(folder))


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Bytes of the process for each adapter, and their growth as points (adapters, bytes)."""
    manager = lora_manager(engine(arguments, "bfloat16", 1, arguments.resident))
    process, found, number = psutil.Process(), {}, 0
    for kind in KINDS:
        warm_up = [request(arguments, kind, 1, number := number + 1) for _ in range(3)]
        for asked in warm_up:
            manager.add_adapter(asked)
        count = arguments.resident - len(warm_up)
        points: list[tuple[int, int]] = []
        room = psutil.virtual_memory().available / 2
        for i in tqdm(range(count), f"memory, {kind}"):
            if i % max(1, count // 50) == 0 or i == count - 1:
                gc.collect()
                points.append((i, process.memory_info().rss))
                if points[-1][1] - points[0][1] > room:
                    break
            adapter = 1 + i % arguments.adapters
            manager.add_adapter(request(arguments, kind, adapter, number := number + 1))
        found[kind] = {
            "adapters": points[-1][0],
            "bytes": statistics.median((n - m) / (j - i) for (i, m), (j, n) in pairwise(points)),
            "points": [(i, rss - points[0][1]) for i, rss in points],
        }
        manager.remove_all_adapters()
    return found


def load(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds by measure and kind, a number for each round."""
    manager = lora_manager(engine(arguments, "bfloat16", 1, 4))
    times: dict[str, dict[str, list[float]]] = {
        measure: {kind: [] for kind in KINDS} for measure in ("disk", "file", "again")
    }
    number = 0
    for turn in tqdm(range(arguments.rounds + 1), "load"):
        adapter = 1 + turn % arguments.adapters
        for kind in KINDS if turn % 2 else KINDS[::-1]:
            found = {}
            for measure in ("disk", "file"):
                asked = request(arguments, kind, adapter, number := number + 1)
                if measure == "disk":
                    drop_from_page_cache(Path(asked.lora_path))
                found[measure] = milliseconds(partial(manager.add_adapter, asked))
            inner = manager._adapter_manager
            inner.deactivate_adapter(number)
            found["again"] = milliseconds(partial(inner.activate_adapter, number))
            if turn:  # the first one warms up
                for measure, value in found.items():
                    times[measure][kind].append(value)
    return {"times": times, "threads": torch.get_num_threads()}


def milliseconds(action: Any) -> float:
    started = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - started)


def drop_from_page_cache(folder: Path) -> None:
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def requests_of_trace(arguments: argparse.Namespace) -> list[tuple[int, int]]:
    """(adapter, prompt) of each request; adapter 0 is the base model."""
    generator = np.random.default_rng(0)
    popularity = 1 / np.arange(1, arguments.adapters + 2)
    members = generator.permutation(arguments.adapters + 1)
    drawn = generator.choice(members, arguments.requests, p=popularity / popularity.sum())
    prompts = generator.integers(len(PROMPTS), size=arguments.requests)
    return list(zip(drawn.tolist(), prompts.tolist(), strict=True))


def sampling() -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)


def trace(arguments: argparse.Namespace) -> dict[str, Any]:
    """The tokens and the seconds of each request, and what was loaded and activated."""
    llm = engine(arguments, "float32", SLOTS, PLACES)
    manager = lora_manager(llm)
    counts = (
        counted(manager, "_load_adapter"),
        counted(manager._adapter_manager, "activate_adapter"),
    )
    asked = requests_of_trace(arguments)
    waiting = iter(enumerate(asked))
    begun: dict[str, float] = {}
    answers: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    started = time.perf_counter()
    with tqdm(total=len(asked), desc="trace", mininterval=5) as bar:
        while True:
            if time.perf_counter() - started > 60 * arguments.minutes:
                waiting = iter(())
            while len(begun) < UNDER_WAY and (one := next(waiting, None)) is not None:
                i, (adapter, prompt) = one
                begun[str(i)] = time.perf_counter()
                llm.llm_engine.add_request(
                    str(i),
                    PROMPTS[prompt],
                    sampling(),
                    lora_request=request(arguments, "mos", adapter, adapter) if adapter else None,
                )
            if not begun:
                break
            for output in llm.llm_engine.step():
                if output.finished:
                    i = int(output.request_id)
                    answers[i] = list(output.outputs[0].token_ids)
                    seconds[i] = time.perf_counter() - begun.pop(output.request_id)
                    bar.update()
    took = time.perf_counter() - started
    loads, activations = (len(count) for count in counts)
    return {
        "answers": [answers[i] for i in range(len(answers))],
        "seconds": list(seconds.values()),
        "took": took,
        "loads": loads,
        "activations": activations,
    }


def counted(owner: Any, name: str) -> list[Any]:
    """What a method returns from now on that is true."""
    method, returned = getattr(owner, name), []

    def counting(*args: Any) -> Any:
        result = method(*args)
        if result:
            returned.append(name)
        return result

    setattr(owner, name, counting)
    return returned


def reference(arguments: argparse.Namespace) -> dict[str, Any]:
    """(adapter, prompt, tokens) of all that the trace asks, adapter by adapter."""
    llm = engine(arguments, "float32", 1, 1)
    wanted: dict[int, set[int]] = {}
    answered = json.loads((arguments.folder / "trace.json").read_text())["answers"]
    for adapter, prompt in requests_of_trace(arguments)[: len(answered)]:
        wanted.setdefault(adapter, set()).add(prompt)
    found = []
    for adapter in tqdm(sorted(wanted), "one by one"):
        outputs = llm.generate(
            [PROMPTS[prompt] for prompt in sorted(wanted[adapter])],
            sampling(),
            use_tqdm=False,
            lora_request=request(arguments, "lora", adapter, adapter) if adapter else None,
        )
        for prompt, output in zip(sorted(wanted[adapter]), outputs, strict=True):
            found.append((adapter, prompt, list(output.outputs[0].token_ids)))
    return {"answers": found}


def compared(
    found: dict[str, Any], reference: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """The trace's figures, its answers held against those of one adapter at a time."""
    alone = {(adapter, prompt): tokens for adapter, prompt, tokens in reference["answers"]}
    asked = requests_of_trace(arguments)[: len(found["answers"])]
    wrong = [key for key, got in zip(asked, found["answers"], strict=True) if got != alone[key]]
    seconds = np.array(found["seconds"])
    return {
        "requests": len(asked),
        "minutes": found["took"] / 60,
        "members": len({adapter for adapter, _ in asked}),
        "distinct_answers": len({tuple(tokens) for tokens in alone.values()}),
        "wrong": len(wrong),
        "wrong_by_adapter_and_prompt": Counter(map(str, wrong)),
        "command": found["command"],
        "per_second": len(asked) / found["took"],
        "loads": found["loads"],
        "activations": found["activations"],
        "latency": {f"p{q}": np.quantile(seconds, q / 100) for q in (50, 99)},
    }


def report(found: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Write and print the results."""
    commands = dict.fromkeys(part["command"] for part in found.values())
    lines = [
        f"# MoS (e=8, r={RANK}, l=4, p=1) served as it is saved, beside the same adapters as LoRA",
        "",
        *(f"`{command}`" for command in commands),
        f"on {machine()}; vLLM's CPU build, {arguments.model}.",
        "",
        "| | LoRA | MoS | ratio |",
        "| --- | ---: | ---: | ---: |",
    ]
    if memory := found.get("memory"):
        per = {kind: memory[kind]["bytes"] / 2**20 for kind in KINDS}
        counts = {kind: memory[kind]["adapters"] for kind in KINDS}
        name = f"MiB for an adapter in the host cache ({counts['lora']}, {counts['mos']} adapters)"
        lines.append(row(name, per["lora"], per["mos"], 2))
    names = {
        "disk": "ms to read and activate, file on disk",
        "file": "ms to read and activate, file in page cache",
        "again": "ms to activate again",
    }
    for measure, times in found.get("load", {}).get("times", {}).items():
        lora, mos = (statistics.median(times[kind]) for kind in ("lora", "mos"))
        lines.append(row(names[measure], lora, mos, 1))
    if "load" in found:
        rounds = len(found["load"]["times"]["again"]["mos"])
        lines += [
            "",
            f"Medians of {rounds} rounds in one process, {found['load']['threads']} threads.",
        ]
    if trace := found.get("trace"):
        lines += [
            "",
            f"Trace: {trace['requests']:,} of {arguments.requests:,} requests, in"
            f" {trace['minutes']:.0f} minutes, to {trace['members']} members (power law),"
            f" {SLOTS} slots, {PLACES} host places: **{trace['wrong']} answers differ** from those"
            f" of vLLM without the plugin to one exported LoRA at a time"
            f" ({trace['distinct_answers']} different ones). {trace['loads']:,} adapters were read,"
            f" {trace['activations']:,} activated; {trace['per_second']:.1f} requests a second,"
            f" {trace['latency']['p50']:.2f} s each in the median, {trace['latency']['p99']:.2f} s"
            " in the 99th percentile.",
        ]
    arguments.out.write_text("\n".join(lines) + "\n")
    arguments.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    plot(found, arguments.out.with_suffix(".svg"))
    print(arguments.out.read_text())


def row(name: str, lora: float, mos: float, digits: int) -> str:
    return f"| {name} | {lora:.{digits}f} | {mos:.{digits}f} | {mos / lora:.2f} |"


def plot(found: dict[str, Any], file: Path) -> None:
    """Memory over the number of adapters, and the milliseconds of loading."""
    from matplotlib.figure import Figure

    from mos.adapters import METHODS

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind in KINDS:
        style = {"color": METHODS[kind].colour, "label": LABELS[kind]}
        if "memory" in found:
            points = np.array(found["memory"][kind]["points"])
            left.plot(points[:, 0], points[:, 1] / 2**30, **style)
        if "load" in found:
            times = found["load"]["times"]
            places = np.arange(len(times)) + (0.2 if kind == "mos" else -0.2)
            right.bar(places, [statistics.median(t[kind]) for t in times.values()], 0.38, **style)
            right.set_xticks(range(len(times)), ["from disk", "from\npage cache", "again"])
    left.set(xlabel="adapters in the host cache", ylabel="resident GiB")
    right.set(ylabel="ms until active")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        if axes.has_data():
            axes.legend(frameon=False)
    figure.savefig(file)


if __name__ == "__main__":
    main()
