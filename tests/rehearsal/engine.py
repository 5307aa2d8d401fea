"""vLLM's GPU engine on the stub, without graphs: `python -m tests.rehearsal.engine FOLDER`

The engine's process imports this module too, and gets here what it reads back from kernels.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch.utils._pytree import tree_map
from transformers import AutoModelForCausalLM
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.sample import sampler

from eval.benchmark import Decoding, Request
from eval.engines import engine_settings, start
from mos import MosConfig
from mos.files import TINY
from mos.models.sources import resolve_model
from tests.rehearsal.rehearsing import CACHE

DECODINGS = (
    Decoding(max_tokens=4),
    Decoding(max_tokens=1, choices=(" A", " B")),
    Decoding(max_tokens=4, n=2, temperature=0.1, top_p=0.95, stop=("x",)),
)

TOKEN = 65  # which every request draws at every step
asked_for: dict[int, list[int]] = {}  # tokens to be scored, by the number of the request
unique, add_request = torch.unique, sampler.LogprobTokenIdsState.add_request


def unique_of_copy(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    return tree_map(lambda part: part.to(tensor.device), unique(tensor.cpu(), *args, **kwargs))


def remember_asked(state: Any, request: int, parameters: Any) -> None:
    asked_for[request] = list(parameters.logprob_token_ids or [])
    add_request(state, request, parameters)


def draw(logits: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return torch.full((len(logits),), TOKEN).to(logits.device)


def count_drawn(drawn: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    counts = torch.ones(len(drawn), dtype=torch.int32)
    return counts.to(drawn.device), (0 * counts).to(drawn.device)


def score(logits: torch.Tensor, top: int, *_: Any, **asked: Any) -> LogprobsTensors:
    most = asked["max_per_req_token_ids"]
    ids = torch.full((len(logits), 1 + max(top, most)), TOKEN)
    for row, request in enumerate(asked["expanded_idx_mapping"].tolist() if most else []):
        for column, token in enumerate(asked_for[request], start=1):
            ids[row, column] = token
    made: Any = ids, torch.full(ids.shape, -1.0), torch.ones(len(ids), dtype=torch.int64)
    return LogprobsTensors(*(tensor.to(logits.device) for tensor in made))


setattr(torch, "unique", unique_of_copy)  # noqa: B010 - for mypy these have one meaning
setattr(sampler.LogprobTokenIdsState, "add_request", remember_asked)  # noqa: B010
vars(sampler).update(
    gumbel_sample=draw, get_num_sampled_and_rejected=count_drawn, compute_topk_scores=score
)

if __name__ == "__main__":
    model = resolve_model(TINY, CACHE)
    adapter = Path(sys.argv[1])
    base = AutoModelForCausalLM.from_pretrained(model)
    get_peft_model(base, MosConfig(r=8, equivalent_rank=2)).save_pretrained(str(adapter))
    settings = engine_settings("vllm", model, max_lora_rank=8, longest_request=256)
    assert settings.device == "cuda"
    requests = [Request(str(i), "Is it?", decoding) for i, decoding in enumerate(DECODINGS)]
    with start(replace(settings, enforce_eager=True), model) as engine:
        prompts = engine.encode(requests)

        def answers(adapter: Path | None) -> int:
            return sum(len(batch) for batch in engine.complete(prompts, adapter))

        for asked in (None, adapter, None, adapter):
            assert answers(asked) == len(requests)
        engine.load_weights(model)
        assert answers(adapter) == len(requests)
    print("answered without, with, without, with the adapter, and after reloading")
