"""Engines give what the model gives: against transformers without padding, against each other."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPTNeoXConfig,
    PhiConfig,
)

import eval.engines as engines
import eval.engines.vllm as vllm_engine
from eval.benchmark import Decoding, Request
from eval.engines import (
    EngineError,
    EngineSettings,
    NotFiniteError,
    engine_settings,
    products_in,
    start,
    tensor_shapes,
)
from eval.engines.transformers import TransformersEngine
from eval.engines.vllm import VllmEngine
from mos.errors import UserError
from mos.export import to_lora
from tests.adapters.tiny import CASES, adapted

CHOICES = (" A", " B", " C", " D")
PROBE = Path(__file__).with_name("vllm_probe.py")


def requests(decoding: Decoding, count: int = 5) -> list[Request]:
    prompts = ["What is this? " * (1 + 3 * i % 7) + f"No. {i}:" for i in range(count)]
    return [Request(f"q{i}", prompt, decoding) for i, prompt in enumerate(prompts)]


def transformers_engine(model_dir: Path, **options):
    return start(engine_settings("transformers", model_dir, **options), model_dir)


def answer(engine, asked, adapter=None):
    prompts = engine.encode(asked)
    answers = {i: c for batch in engine.complete(prompts, adapter) for i, c in batch}
    return [answers[i] for i in range(len(asked))]


def shifted(model_dir: Path, folder: Path, seed: int) -> Path:
    """The same model with other weights."""
    shutil.copytree(model_dir, folder)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


def random_lora(model_dir: Path, folder: Path, target_modules: list[str], seed: int) -> Path:
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=target_modules, init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(tiny_model_dir):
    options = {"dtype": "float32", "max_model_len": 512, "batch_size": 3}
    with transformers_engine(tiny_model_dir, **options) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(tiny_model_dir)


def other_family(name: str, tokenizer: Path, folder: Path) -> Path:
    """A random model whose biases are not zero, as learned ones are not."""
    shared = {"vocab_size": 260, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.1}
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {
        "phi": PhiConfig(**shared, **sizes, intermediate_size=128, max_position_embeddings=1024),
        "gptneox": GPTNeoXConfig(**shared, **sizes, intermediate_size=128),
        "gpt2": GPT2Config(**shared, n_embd=64, n_layer=2, n_head=2, n_positions=1024),
    }[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def of_plain_model(model, engine, request: Request) -> list[float]:
    """Log-probabilities of the letters, of one prompt without padding."""
    ids = engine.tokenizer(request.prompt, return_tensors="pt").input_ids
    assert ids[0, 0] == engine.tokenizer.bos_token_id
    letters = [engine.tokenizer.encode(c, add_special_tokens=False)[-1] for c in CHOICES]
    with torch.no_grad():
        return model(ids).logits[0, -1].double().log_softmax(-1)[letters].tolist()


@pytest.mark.parametrize("family", ["llama", "phi", "gptneox", "gpt2"])
def test_choices_are_the_logits_of_one_position(family, tiny_model_dir, tmp_path):
    folder = tiny_model_dir
    if family != "llama":
        folder = other_family(family, tiny_model_dir, tmp_path / family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = requests(Decoding(choices=CHOICES))
    with transformers_engine(folder, dtype="float32", batch_size=3) as engine:
        assert engine.settings.max_model_len == model.config.max_position_embeddings
        for request, given in zip(asked, answer(engine, asked), strict=True):
            expected = of_plain_model(model, engine, request)
            assert given.logprobs == pytest.approx(expected, abs=1e-4)
            assert given.texts == ("ABCD"[expected.index(max(expected))],)
            assert (given.finish_reasons, given.output_tokens) == (("choice",), (1,))
            assert given.prompt_tokens == len(request.prompt.encode()) + 1
            assert not given.tied
    vllm = object.__new__(VllmEngine)
    vllm.model_dir = folder
    # keys and values of all layers in float32, for a context that takes more than the usual room
    vllm.settings = EngineSettings("vllm", "cpu", "float32", 2**23)
    layers, width = (2, 64) if family != "llama" else (8, 32)
    assert vllm._kv_cache_bytes() == 2 * layers * width * 4 * 2**23 + 2**26


def test_ties_are_counted_and_the_first_choice_wins(tiny_model_dir, tmp_path):
    shutil.copytree(tiny_model_dir, tmp_path / "tied")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    c, d = (tokenizer.encode(x, add_special_tokens=False)[-1] for x in (" C", " D"))
    with torch.no_grad():
        model.lm_head.weight[c] = model.lm_head.weight[d]
    model.save_pretrained(tmp_path / "tied")
    with transformers_engine(tmp_path / "tied") as engine:
        tied = answer(engine, requests(Decoding(choices=(" D", " C"))))
        apart = answer(engine, requests(Decoding(choices=(" A", " D"))))
    assert all(given.tied and given.texts == ("D",) for given in tied)
    assert not any(given.tied for given in apart)


def test_choices_that_end_in_one_token_are_refused(engine):
    with pytest.raises(UserError, match="same token"):
        answer(engine, requests(Decoding(choices=(" A", "A"))))


def test_greedy_decoding_is_that_of_generate(engine, reference):
    model, tokenizer = reference
    asked = requests(Decoding(max_tokens=8))
    for request, given in zip(asked, answer(engine, asked), strict=True):
        ids = tokenizer(request.prompt, return_tensors="pt").input_ids
        expected = model.generate(ids, do_sample=False, max_new_tokens=8)[0]
        whole = tokenizer.decode(expected, skip_special_tokens=True)
        assert whole.startswith(request.prompt + given.texts[0].rstrip("\ufffd"))
        assert given.finish_reasons == ("length",)
        assert given.output_tokens == (8,)


def test_eos_and_stop_texts_end_an_output(engine):
    free = answer(engine, requests(Decoding(max_tokens=16)))
    longest = max((text for c in free for text in c.texts), key=len)
    stop = longest[len(longest) // 2 : len(longest) // 2 + 2]
    cut = answer(engine, requests(Decoding(max_tokens=16, stop=("never", stop))))
    for before, after in zip(free, cut, strict=True):
        found = before.texts[0].find(stop)
        assert after.texts[0] == (before.texts[0] if found < 0 else before.texts[0][:found])
        assert after.finish_reasons == (("length",) if found < 0 else ("stop",))
    assert any(c.finish_reasons == ("stop",) for c in cut)

    (plain,) = answer(engine, requests(Decoding(max_tokens=12), 1))
    ids = engine.tokenizer.encode(plain.texts[0], add_special_tokens=False)
    eos, engine.tokenizer.eos_token_id = engine.tokenizer.eos_token_id, ids[5]
    try:
        (ended,) = answer(engine, requests(Decoding(max_tokens=12), 1))
    finally:
        engine.tokenizer.eos_token_id = eos
    assert ended.finish_reasons == ("stop",)
    assert ended.output_tokens == (ids.index(ids[5]) + 1,)
    assert plain.texts[0].startswith(ended.texts[0])


def test_sampling_depends_on_nothing_but_request_and_seed(engine):
    asked = requests(Decoding(max_tokens=8, temperature=0.9, top_p=0.95, n=3))
    first = answer(engine, asked)
    again = answer(engine, asked[::-1][:3])[::-1]
    assert again == first[-3:]
    assert len({text for c in first for text in c.texts}) > len(first)
    assert all(len(c.texts) == len(c.finish_reasons) == len(c.output_tokens) == 3 for c in first)
    greedy = answer(engine, requests(Decoding(max_tokens=8)))
    narrow = answer(engine, requests(Decoding(max_tokens=8, temperature=0.9, top_p=1e-6, n=2)))
    assert [c.texts for c in narrow] == [c.texts * 2 for c in greedy]


def test_a_prompt_that_is_too_long_is_named_before_anything_is_computed(engine):
    asked = [*requests(Decoding()), Request("the-long-one", "x" * 600, Decoding())]
    with pytest.raises(UserError, match=r"the-long-one \(601 tokens\).*max_model_len"):
        engine.encode(asked)
    (filled,) = answer(engine, [Request("full", "x" * 505, Decoding())])
    assert filled.output_tokens == (512 - 506,)
    assert filled.finish_reasons == ("length",)


def test_exchanged_weights_are_those_of_a_fresh_engine(engine, tiny_model_dir, tmp_path):
    other = shifted(tiny_model_dir, tmp_path / "other", seed=1)
    asked = requests(Decoding(choices=CHOICES))
    before = answer(engine, asked)
    engine.load_weights(other)
    exchanged = answer(engine, asked)
    engine.load_weights(tiny_model_dir)
    assert answer(engine, asked) == before != exchanged
    with transformers_engine(other, dtype="float32", batch_size=3) as fresh:
        assert answer(fresh, asked) == exchanged


def test_an_adapter_is_applied_and_taken_off(engine, tiny_model_dir, tmp_path):
    folder = random_lora(tiny_model_dir, tmp_path / "adapter", ["q_proj", "down_proj"], seed=0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, folder).merge_and_unload()
    asked = requests(Decoding(choices=CHOICES))
    bare = answer(engine, asked)
    adapted = answer(engine, asked, tmp_path / "adapter")
    assert answer(engine, asked) == bare
    for request, given in zip(asked, adapted, strict=True):
        assert given.logprobs == pytest.approx(of_plain_model(merged, engine, request), abs=1e-3)


def test_an_adapter_that_does_not_fit_is_named(engine, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    with pytest.raises(UserError, match=f"{tmp_path} does not fit the model"):
        answer(engine, requests(Decoding(choices=CHOICES)), tmp_path)


def test_the_head_is_computed_in_float32(tiny_model_dir):
    asked = requests(Decoding(choices=CHOICES))
    with transformers_engine(tiny_model_dir, dtype="bfloat16") as engine:
        given = answer(engine, asked)
    logprobs = torch.tensor([c.logprobs for c in given])
    assert (logprobs.to(torch.bfloat16).float() != logprobs).any(1).all()


def diverged(model_dir: Path, folder: Path) -> Path:
    """The same model with one weight that is infinite."""
    shutil.copytree(model_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = float("inf")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("decoding", [Decoding(choices=CHOICES), Decoding(max_tokens=4)])
def test_logits_that_are_not_finite_are_an_error(tiny_model_dir, tmp_path, decoding):
    infinite = diverged(tiny_model_dir, tmp_path / "infinite")
    with (
        transformers_engine(infinite) as engine,
        pytest.raises(NotFiniteError, match=r"not finite \(weights: .*infinite\)"),
    ):
        answer(engine, requests(decoding))


@pytest.mark.parametrize(
    ("device", "error", "advice"),
    [
        (None, torch.OutOfMemoryError("CUDA out of memory."), r"eval\.batch_size \(now 8\)"),
        ("cuda", torch.OutOfMemoryError("CUDA out of memory."), r"eval\.gpu_memory_utilization"),
        ("cuda", ValueError("Free memory on device is less"), r"eval\.gpu_memory_utilization"),
        ("cpu", RuntimeError("can't allocate memory"), r"eval\.max_model_len \(now 4096\)\.$"),
        ("cpu", ValueError("larger than the available KV cache memory"), r"eval\.max_model_len"),
        ("cuda", RuntimeError("EngineCore encountered an issue"), r"Its own log is some\.log"),
    ],
)
def test_a_dead_engine_says_what_to_do(device, error, advice):
    engine = object.__new__(VllmEngine if device else TransformersEngine)
    engine.settings = EngineSettings("", device or "cpu", "bfloat16", 4096)
    engine._log = "some.log"
    with pytest.raises(EngineError, match=advice):
        raise engine._failed("died", error) if device else engine._died(error)


def gpu_engine(model_dir: Path, monkeypatch, free: float, **options) -> VllmEngine:
    """An engine that is to start on a card of 40 GiB, of which `free` GiB are free."""
    sizes = int(free * 2**30), 40 * 2**30
    monkeypatch.setattr(vllm_engine, "free_memory", lambda gpus: sizes)
    engine = object.__new__(VllmEngine)
    engine.settings = EngineSettings("vllm", "cuda", "bfloat16", 4096, **options)
    engine.model_dir = model_dir
    return engine


def test_vllm_takes_its_share_of_what_is_free_if_the_weights_fit(
    tiny_model_dir, monkeypatch, capsys
):
    engine = gpu_engine(tiny_model_dir, monkeypatch, free=36)
    assert engine._share_of_memory() * 40 == pytest.approx(0.9 * 36)
    assert "engine: takes 32.4 of 40.0 GiB, 36.0 free" in capsys.readouterr().out
    numbers = sum(map(math.prod, tensor_shapes(tiny_model_dir).values()))
    fits = 2 * numbers / 2**30 / 0.9
    gpu_engine(tiny_model_dir, monkeypatch, fits * 1.01)._share_of_memory()
    gpu_engine(tiny_model_dir, monkeypatch, fits * 0.51, tensor_parallel=2)._share_of_memory()
    with pytest.raises(EngineError, match=r"too little for the .* GiB of weights.*nvidia-smi"):
        gpu_engine(tiny_model_dir, monkeypatch, fits * 0.99)._share_of_memory()


def test_free_memory_is_asked_in_another_process(monkeypatch, tmp_path):
    torch_of_a_gpu = "class cuda:\n mem_get_info = lambda gpu: [(7, 9), (5, 9), (3, 9)][gpu]"
    (tmp_path / "torch.py").write_text(torch_of_a_gpu)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert vllm_engine.free_memory(2) == (5, 9)
    (tmp_path / "torch.py").write_text("raise RuntimeError('all GPUs are busy')")
    with pytest.raises(EngineError, match="CUDA does not start: RuntimeError: all GPUs are busy"):
        vllm_engine.free_memory(1)


def test_numerics_hold_what_changes_outputs_and_nothing_else(tiny_model_dir):
    settings = engine_settings("transformers", tiny_model_dir)
    assert settings.dtype == products_in("bfloat16", settings.device)
    assert settings.max_model_len == 8192
    spread = replace(settings, engine="vllm", tensor_parallel=2)
    assert spread.numerics() != replace(spread, tensor_parallel=1).numerics()
    same = replace(settings, gpu_memory_utilization=0.5, longest_request=900, max_lora_rank=8)
    assert same.numerics() == settings.numerics()
    for change in ({"dtype": "float16"}, {"seed": 1}, {"max_model_len": 99}, {"batch_size": 1}):
        assert replace(settings, **change).numerics() != settings.numerics()


@pytest.fixture
def on_gpu(monkeypatch):
    """As if this were a machine with a GPU and vLLM for it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("CUDA is started here"))
    monkeypatch.setattr(engines, "_has_capability", lambda capability: capability <= 90)
    monkeypatch.setattr(engines, "vllm_package", lambda: "vllm")
    monkeypatch.setattr(engines, "_is_cpu_build", lambda: False)


@pytest.mark.parametrize("lacks", ["vLLM is not installed", "vLLM on a GPU needs a C compiler"])
def test_auto_falls_back_in_one_line(lacks, tiny_model_dir, monkeypatch, capsys, request):
    if "compiler" in lacks:
        request.getfixturevalue("on_gpu")
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("PATH", "")
    else:
        monkeypatch.setattr(engines, "vllm_package", lambda: None)
    engines._say_once.cache_clear()
    for _ in range(2):
        assert engine_settings("auto", tiny_model_dir).engine == "transformers"
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert lacks in said
    with pytest.raises(UserError, match=rf"{lacks}.*use eval\.engine=transformers"):
        engine_settings("vllm", tiny_model_dir)


def test_a_model_that_cannot_be_spread_is_refused(tiny_model_dir, request):
    with pytest.raises(UserError, match="spreads models, not transformers on cpu"):
        engine_settings("transformers", tiny_model_dir, tensor_parallel=2)
    request.getfixturevalue("on_gpu")
    assert engine_settings("vllm", tiny_model_dir, tensor_parallel=2).tensor_parallel == 2
    with pytest.raises(UserError, match=r"tensor_parallel=3: the \d attention heads of .* do not"):
        engine_settings("vllm", tiny_model_dir, tensor_parallel=3)


def probe(tmp_path: Path, rank: int, model: Path, *steps: str) -> list:
    """What one vLLM engine gives at each step (see vllm_probe.py)."""
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    command = [sys.executable, str(PROBE), str(tmp_path / "log"), str(rank), str(model), *steps]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def probe_requests() -> list[list[Request]]:
    return [
        requests(Decoding(choices=CHOICES)),
        requests(Decoding(max_tokens=12)),
        requests(Decoding(max_tokens=12, stop=("e", "\x11", "\n"))),
    ]


def sampled_requests() -> list[Request]:
    """With a token a byte, these fill a step on CPU (4,096 tokens) twice over."""
    decoding = Decoding(max_tokens=4, temperature=1.0, n=2)
    return [Request(f"{i}", f"{i} " + "counts " * 50, decoding) for i in range(24)]


def assert_agree(found: list[dict], model: Path, adapter: Path | None = None) -> None:
    """Letters, texts, lengths and reasons are those of transformers; log-probabilities to 1e-4."""
    with transformers_engine(model, dtype="float32") as engine:
        expected = [c for asked in probe_requests() for c in answer(engine, asked, adapter)]
    assert len(found) == len(expected)
    for ours, theirs in zip(expected, found, strict=True):
        assert list(ours.texts) == theirs["texts"]
        assert list(ours.finish_reasons) == theirs["finish_reasons"]
        assert list(ours.output_tokens) == theirs["output_tokens"]
        assert ours.prompt_tokens == theirs["prompt_tokens"]
        assert ours.tied == theirs["tied"]
        assert ours.logprobs == pytest.approx(theirs["logprobs"], abs=1e-4)


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_vllm_agrees_with_transformers_and_exchanges_weights(tiny_model_dir, tmp_path):
    stops = {"eos_token_id": [2, *range(30, 200)]}  # of the model's maker, not of a benchmark
    chatty = shutil.copytree(tiny_model_dir, tmp_path / "chatty")
    (chatty / "generation_config.json").write_text(json.dumps(stops))
    other = shifted(tiny_model_dir, tmp_path / "other", seed=1)
    infinite = diverged(tiny_model_dir, tmp_path / "infinite")
    steps = ["none", "sampled", f"weights={other}", f"weights={tiny_model_dir}", "sampled"]
    steps.append(f"weights={infinite}")
    found = probe(tmp_path, 0, chatty, *steps)
    base, drawn, exchanged, again, drawn_again, failed = found
    assert "not finite" in failed
    assert drawn == drawn_again
    assert len({text for completion in drawn for text in completion["texts"]}) > 24
    assert base == again
    assert_agree(base, tiny_model_dir)
    assert_agree(exchanged, other)


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_vllm_for_gpus_takes_what_is_asked_of_it(tiny_model_dir, tmp_path):
    found = probe(tmp_path, 0, tiny_model_dir, "gpu")
    assert found["lacking"] == []
    assert found["options"]["gpu_memory_utilization"] == pytest.approx(0.9 * 36 / 40)
    assert found["options"]["tensor_parallel_size"] == 2
    assert found["options"]["max_lora_rank"] == 8
    # A fork cannot use CUDA, and FlashInfer would want a compiler.
    environment = found["environment"]
    assert environment["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert environment["VLLM_USE_FLASHINFER_SAMPLER"] == "0"


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_vllm_serves_adapters_and_survives_broken_ones(tiny_model_dir, tmp_path):
    good = random_lora(tiny_model_dir, tmp_path / "good", ["q_proj", "down_proj"], seed=0)
    exports = []
    for name, make in CASES.items():
        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        adapted(make(), base).save_pretrained(tmp_path / name)
        exports.append(to_lora(tmp_path / name, tmp_path / f"{name}-as-lora"))
    mos, exported = tmp_path / "mos", exports[0]
    broken = shutil.copytree(good, tmp_path / "broken")
    factors = load_file(broken / "adapter_model.safetensors")
    cut = {name: f[:, :5].contiguous() if "_A" in name else f for name, f in factors.items()}
    save_file(cut, broken / "adapter_model.safetensors")
    weights = shifted(tiny_model_dir, tmp_path / "weights", seed=1)
    steps = ["none", f"adapter={good}", f"adapter={mos}", f"broken={broken}", "none"]
    steps += [f"stopped={good}", f"adapter={good}", f"weights={weights}", f"adapter={good}"]
    steps += [f"weights={tiny_model_dir}", f"adapter={exported}"]
    steps += [f"adapter={folder}" for folder in exports[1:]]
    found = probe(tmp_path, 16, tiny_model_dir, *steps)
    assert_agree(found[0], tiny_model_dir)
    assert_agree(found[1], tiny_model_dir, good)
    assert_agree(found[2], tiny_model_dir, mos)
    assert found[2] == found[10]  # as it is saved, and as the LoRA that it is exported to
    assert "does not fit the model" in found[3]
    assert found[4] == found[0]
    assert found[6] == found[1]
    assert_agree(found[7], weights)
    assert_agree(found[8], weights, good)
    for folder, completions in zip(exports, found[10:], strict=True):
        assert_agree(completions, tiny_model_dir, folder)
