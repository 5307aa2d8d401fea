"""vLLM's server with our plugin: MoS folders as they are, beside LoRA adapters and the base."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mos import MosConfig, ProloraConfig
from tests.adapters.tiny import adapted, tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(900)]
PROMPTS = ["Name a colour.", "2 + 2 =", "The capital of France"]
TOKENS = 8


@pytest.fixture(scope="module")
def adapters(tiny_model_dir, tmp_path_factory):
    """Good ones (a, b, c: MoS; lora), and ones to refuse."""
    root = tmp_path_factory.mktemp("adapters")

    def save(name, config, base=None, seed=0):
        base = base or AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        adapted(config, base, seed).save_pretrained(root / name)

    for seed, name in enumerate("abc"):
        save(name, MosConfig(r=8, equivalent_rank=2, shards_per_vector=2), seed=seed)
    save("lora", LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    save("prolora", ProloraConfig(r=4, unshared_rank=1, reduction_a=2, reduction_b=2))
    save("wide", MosConfig(r=16, equivalent_rank=4))
    save("foreign", MosConfig(r=8, equivalent_rank=2), tiny_llama(blocks=10))
    shallow = AutoConfig.from_pretrained(tiny_model_dir)
    shallow.num_hidden_layers -= 1
    save("shallow", MosConfig(r=8, equivalent_rank=2), AutoModelForCausalLM.from_config(shallow))
    shutil.copytree(root / "a", root / "broken")
    (root / "broken/adapter_model.safetensors").write_bytes(b"\0" * 100)
    return root


class Server:
    def __init__(self, url: str):
        self.url = url

    def post(self, path: str, body: dict) -> dict | str:
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=120) as response:
            text = response.read().decode()
        return json.loads(text) if text.startswith("{") else text

    def answer(self, model: str, prompt: str) -> list[int]:
        body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
        body |= {"ignore_eos": True, "return_token_ids": True}
        return self.post("/v1/completions", body)["choices"][0]["token_ids"]

    def refusal(self, path: str, body: dict) -> tuple[int, str]:
        with pytest.raises(urllib.error.HTTPError) as caught:
            self.post(path, body)
        return caught.value.code, json.loads(caught.value.read())["error"]["message"]


@pytest.fixture(scope="module")
def server(tiny_model_dir, adapters, repo_dir, tmp_path_factory):
    if find_spec("vllm") is None:
        pytest.skip("NOT TESTED: serving in vLLM, which is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", tiny_model_dir, "--served-model-name", "base", "--dtype", "float32"),
        *("--enable-lora", "--max-lora-rank", "8", "--max-loras", "2", "--max-cpu-loras", "2"),
        *("--max-model-len", "256", "--enforce-eager", "--port", str(port)),
        *("--lora-modules", f"static={adapters / 'a'}"),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{repo_dir}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "MOS_ADAPTERS": str(adapters),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(part) for part in command], env=environment, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + 600
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                waiting = process.poll() is None and time.monotonic() < deadline
                assert waiting, log.read_text()[-3000:]
                time.sleep(0.5)
        yield Server(f"http://127.0.0.1:{port}")
        assert process.poll() is None, log.read_text()[-3000:]
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:  # it was still starting
            process.kill()


@pytest.fixture(scope="module")
def expected(tiny_model_dir, adapters):
    """What PEFT answers, by adapter and prompt."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    found = {}
    for name in ("base", "a", "b", "c", "lora"):
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        if name != "base":
            model = PeftModel.from_pretrained(model, adapters / name)
        for prompt in PROMPTS:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            out = model.generate(
                input_ids=ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False
            )
            found[name, prompt] = out[0, ids.shape[1] :].tolist()
    assert len(set(map(tuple, found.values()))) > 8
    return found


def test_answers_are_peft_s_also_under_eviction(server, expected):
    """Four adapters through two places, three rounds: what was evicted is made again, rightly."""
    for _ in range(3):
        for (name, prompt), tokens in expected.items():
            assert server.answer(name, prompt) == tokens, (name, prompt)
    assert server.answer("static", PROMPTS[0]) == expected["a", PROMPTS[0]]


def test_a_batch_may_mix_adapters_and_the_base(server, expected):
    asked = [key for key in expected if key[0] in ("base", "a", "lora")] * 4
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda key: server.answer(*key), asked))
    assert answers == [expected[key] for key in asked]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("foreign", "trained on another base model"),
        ("shallow", "on another base model, of fewer blocks"),
        ("prolora", "vLLM serves LoRA and MoS adapters, this one is PROLORA"),
        ("broken", "is damaged"),
        ("wide", "--max-lora-rank"),
    ],
)
def test_what_cannot_be_served_is_a_400_with_the_reason(server, adapters, expected, name, reason):
    loading = {"lora_name": f"{name}-loaded", "lora_path": str(adapters / name)}
    asking = {"model": name, "prompt": "Hello", "max_tokens": 1}
    for path, body in (("/v1/load_lora_adapter", loading), ("/v1/completions", asking)):
        code, message = server.refusal(path, body)
        assert code == 400
        assert reason in message
    assert server.answer("a", PROMPTS[0]) == expected["a", PROMPTS[0]]


def test_unknown_names_and_paths_out_of_the_folder_are_404(server):
    for name in ("nobody", "../adapters/a", "../a"):
        assert server.refusal("/v1/completions", {"model": name, "prompt": "x"})[0] == 404
