"""PEFT's own tests with `MosConfig` in the place of its methods.

    pip install diffusers && python benchmarks/peft_suite.py    # tests of the installed PEFT
    python benchmarks/peft_suite.py --peft <folder with tests/> test_seq_classifier.py -k merge

PEFT tests a method by a row of its own in the lists that its tests are parametrised with. Here each
such list is exchanged for `cases` of MoS while pytest collects; the tests are what they are. The
models are not fetched from a hub: those of the same architectures are made, with random weights, in
a cache of the hub's own layout. Modules that name their methods in each test are left out. Whole
runs are written to results/peft_suite.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
HUB = tempfile.TemporaryDirectory(prefix="hub-")
os.environ |= {"HF_HOME": HUB.name, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

import pytest  # noqa: E402
import transformers  # noqa: E402
from datasets import Dataset, DatasetDict  # noqa: E402
from machine import machine  # noqa: E402
from peft import LoraConfig, PeftConfig  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from tokenizers.models import BPE  # noqa: E402
from tokenizers.pre_tokenizers import ByteLevel  # noqa: E402

from mos import MosConfig  # noqa: E402

MODULES = (
    "test_config.py",
    "test_custom_models.py",
    "test_decoder_models.py",
    "test_encoder_decoder_models.py",
    "test_feature_extraction_models.py",
    "test_quantization.py",
    "test_seq_classifier.py",
    "test_token_classification_qa.py",
)
# Two for each test. One test converts to LoRA of rank 4 and allows for little error; another breaks
# the first shard of a pool and wants a layer that reads it, which not all seeds have.
SETTINGS: tuple[dict[str, Any], ...] = (
    {"r": 4, "routing_seed": 2},
    {"r": 2, "equivalent_rank": 2, "private_rank": 0, "shards_per_vector": 2, "mos_dropout": 0.05},
)
# The widths of PEFT's MLP are 10, 20 and 2.
MLP = {"shards_per_vector": 2}
CUSTOM: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("1", "MLP", {"target_modules": "lin0", **MLP}),
    ("2", "MLP", {"target_modules": ["lin0"], **MLP, "private_rank": 0}),
    ("3", "MLP", {"target_modules": ["lin1"], **MLP}),
    ("4", "MLP", {"target_modules": ["lin0", "lin1"], **MLP}),
    ("5", "MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"], **MLP}),
    ("Conv1D", "EmbConv1D", {"target_modules": ["conv1d"], "shards_per_vector": 1}),
)
TWO: tuple[tuple[str, str, str], ...] = (("Same", "lin0", "lin0"), ("Different", "lin0", "lin1"))
NOT_HERE = {
    "layer_indexing": "counts tensors, of which sharing makes no fewer; PEFT skips its own such",
    "test_from_pretrained_cache_dir": "needs the hub itself",
}
QUOTES = {"quote": ["What is mine is yours.", "Sharing is not losing.", "All for one."] * 4}


@dataclass
class MlpConfig(MosConfig):
    """`MosConfig` for tests that leave the sizes to it: a default that divides 10, 20 and 2."""

    shards_per_vector: int = 2


def cases(names: str | Sequence[str], rows: Iterable[Any]) -> list[Any] | None:
    """Cases of MoS for one list of parameters, or None if it has nothing to do with methods.

    Args:
        names: what the list is called by in `pytest.mark.parametrize`.
        rows: its rows; task type and targets are those of the first.
    """
    match [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names):
        case ["config_cls", "config_kwargs"]:
            _, first = next(iter(rows))
            same = {name: first.get(name) for name in ("target_modules", "task_type")}
            return [(MosConfig, {**same, **sizes}) for sizes in SETTINGS]
        case ["config_class", "mandatory_kwargs"]:
            return [(MosConfig, {})]
        case ["test_name", "model_id", "config_cls", "config_kwargs"]:
            return [(f"MoS {name}", model, MosConfig, kwargs) for name, model, kwargs in CUSTOM]
        case ["test_name", "tuner_method", "config_cls", "config_kwargs_1", "config_kwargs_2"]:
            made = {"init_weights": False, **MLP}
            return [
                (f"MoS {name}", "mos", MosConfig, *({"target_modules": [t], **made} for t in both))
                for name, *both in TWO
            ]
        case ["config_cls"] if len(list(rows)) > 2:  # not those that are about two named methods
            return [MlpConfig]
    return None


class Exchange:
    """A plugin of pytest: MoS' cases in, all others out, and a count of what became of them."""

    def __init__(self, models: Iterable[str]) -> None:
        self.models = models
        self.outcomes: dict[str, Counter[str]] = {}
        self.reasons: Counter[str] = Counter()
        self.failed: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        marks = metafunc.definition.own_markers
        for place, mark in enumerate(marks):
            if mark.name == "parametrize" and (made := cases(*mark.args[:2])) is not None:
                marks[place] = pytest.mark.parametrize(mark.args[0], made).mark

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # The tests go online for a model that they meet for the first time.
        testing_utils: Any = sys.modules["tests.testing_utils"]
        testing_utils._HUB_MODEL_ACCESSES.update(dict.fromkeys(self.models, 1))
        testing_utils.load_dataset = lambda _: DatasetDict(train=Dataset.from_dict(QUOTES))
        items[:] = [item for item in items if {MosConfig, MlpConfig} & _classes(item)]
        for item, (test, reason) in product(items, NOT_HERE.items()):
            if test in item.name:
                item.add_marker(pytest.mark.skip(reason=reason))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        module = report.nodeid.partition("::")[0].rpartition("/")[2]
        self.outcomes.setdefault(module, Counter())[report.outcome] += 1
        if report.skipped and isinstance(report.longrepr, tuple):
            self.reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1
        if report.failed:
            self.failed.append(report.nodeid)

    def table(self) -> Iterator[str]:
        outcomes = ("passed", "failed", "skipped")
        yield f"| PEFT's module | {' | '.join(outcomes)} |"
        yield "| --- " + "| ---: " * len(outcomes) + "|"
        for module, counts in sorted(self.outcomes.items()):
            yield f"| {module} | {' | '.join(str(counts[name]) for name in outcomes)} |"
        total = sum(self.outcomes.values(), Counter())
        yield f"| all | {' | '.join(str(total[name]) for name in outcomes)} |"
        yield ""
        yield "Skipped, for the most part by the tests themselves:"
        yield ""
        yield from (f"- {n}: {reason}" for reason, n in self.reasons.most_common())
        yield from (f"- failed: {name}" for name in self.failed)


def _classes(item: pytest.Item) -> set[type]:
    callspec = getattr(item, "callspec", None)
    return {p for p in callspec.params.values() if isinstance(p, type)} if callspec else set()


def tiny_models() -> dict[str, tuple[str, dict[str, Any]]]:
    """The models of PEFT's tests: name on the hub, architecture, and sizes of a small one."""
    small = {"vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 2}
    llama = {**small, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    bert = {**small, "intermediate_size": 64, "num_attention_heads": 4}
    opt = {**bert, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 4}
    gpt = {"vocab_size": 1024, "n_embd": 32, "n_layer": 2, "n_head": 4}
    t5 = {"vocab_size": 1024, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    t5["decoder_start_token_id"] = 0
    half = {"layers": 2, "ffn_dim": 64, "attention_heads": 4}
    bart = {f"{part}_{key}": n for part in ("encoder", "decoder") for key, n in half.items()}
    encoders = ("BertModel", "RobertaModel", "DebertaModel", "DebertaV2Model")
    classifiers = ("BertForSequenceClassification", "RobertaForSequenceClassification")
    ours = "peft-internal-testing/tiny-random-"
    return {
        f"{ours}OPTForCausalLM": ("OPTForCausalLM", opt),
        f"{ours}GPT2LMHeadModel": ("GPT2LMHeadModel", gpt),
        f"{ours}GPTJForCausalLM": ("GPTJForCausalLM", {**gpt, "rotary_dim": 4}),
        f"{ours}T5ForConditionalGeneration-calibrated": ("T5ForConditionalGeneration", t5),
        f"{ours}BartForConditionalGeneration": (
            "BartForConditionalGeneration",
            {"vocab_size": 1024, "d_model": 32, **bart},
        ),
        **{ours + name: (name, bert) for name in (*encoders, *classifiers)},
        "peft-internal-testing/opt-125m": (
            "OPTForCausalLM",
            {**bert, "hidden_size": 64, "word_embed_proj_dim": 64, "num_hidden_layers": 12},
        ),
        "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", llama),
        "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", gpt),
        "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", llama),
        "hf-internal-testing/tiny-random-Gemma3ForCausalLM": (
            "Gemma3ForCausalLM",
            {**llama, "head_dim": 8},
        ),
        "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", llama),
        "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": (
            "LlamaForSequenceClassification",
            {**llama, "pad_token_id": 0},
        ),
    }


def make(architecture: str, sizes: dict[str, Any]) -> transformers.PreTrainedModel:
    """A model with random weights. What it generates ends, where it may, after 20 tokens."""
    transformers.set_seed(0)
    kind = getattr(transformers, architecture)
    model = kind(kind.config_class(**sizes))
    if model.can_generate():
        model.generation_config.max_length = 20
    return model


def put(
    name: str, content: transformers.PreTrainedModel | PeftConfig, revision: str = "main"
) -> None:
    """Writes a model or config into the hub's cache, as if it had been fetched."""
    folder, commit = Path(HUB.name) / "hub" / f"models--{name.replace('/', '--')}", "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / revision).write_text(commit)
    content.save_pretrained(folder / "snapshots" / commit)
    backend = Tokenizer(BPE({c: i for i, c in enumerate(["</s>", *ByteLevel.alphabet()])}, []))
    backend.pre_tokenizer = ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.save_pretrained(folder / "snapshots" / commit)


def fetch_tests(folder: Path) -> Path:
    """The tests of the installed PEFT, from its source distribution."""
    wanted = f"peft=={version('peft')}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, "--no-binary", "peft", wanted], check=True)
    (archive,) = folder.glob("peft-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peft", type=Path, help="a folder with PEFT's tests/, of the same version"
    )
    args, given = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        peft = args.peft or fetch_tests(Path(scratch))
        (peft / "tests" / "__init__.py").touch()  # the tests import each other as a package
        models = tiny_models()
        for name, (architecture, sizes) in models.items():
            put(name, make(architecture, sizes))
        put("peft-internal-testing/tiny-opt-lora-revision", LoraConfig(), revision="test")
        exchange, begin = Exchange(models), time.monotonic()
        os.chdir(peft / "tests")
        options = ["-q", "--rootdir", str(peft), "-p", "no:cacheprovider", "-o", "addopts="]
        code = pytest.main([*options, *(given or MODULES)], plugins=[exchange])
    lines = list(exchange.table())
    print("\n".join(lines))
    if not given:
        minutes = (time.monotonic() - begin) / 60
        head = [
            f"# PEFT {version('peft')}'s own tests with MosConfig",
            "",
            "    python benchmarks/peft_suite.py",
            "",
            f"{machine()}; {minutes:.0f} min.",
            "",
        ]
        results = REPO / "benchmarks" / "results" / "peft_suite.md"
        results.write_text("\n".join([*head, *lines, ""]))
    sys.exit(code)


if __name__ == "__main__":
    main()
