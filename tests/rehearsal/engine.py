"""vLLM's GPU engine on the stub, without graphs: `python -m tests.rehearsal.engine ADAPTER`"""

import sys
from dataclasses import replace
from pathlib import Path

from eval.benchmark import Decoding, Request
from eval.engines import engine_settings, start
from mos.files import TINY
from mos.models.sources import resolve_model
from tests.rehearsal.rehearsing import CACHE

DECODINGS = (
    Decoding(max_tokens=4),
    Decoding(max_tokens=1, choices=(" A", " B")),
    Decoding(max_tokens=4, n=2, temperature=0.1, top_p=0.95, stop=("x",)),
)

if __name__ == "__main__":
    model = resolve_model(TINY, CACHE)
    settings = engine_settings("vllm", model, max_lora_rank=8, longest_request=256)
    assert settings.device == "cuda"
    requests = [Request(str(i), "Is it?", decoding) for i, decoding in enumerate(DECODINGS)]
    with start(replace(settings, enforce_eager=True), model) as engine:
        prompts = engine.encode(requests)

        def answers(adapter: Path | None) -> int:
            return sum(len(batch) for batch in engine.complete(prompts, adapter))

        adapter = Path(sys.argv[1])
        for asked in (None, adapter, None, adapter):
            assert answers(asked) == len(requests)
        engine.load_weights(model)
        assert answers(adapter) == len(requests)
    print("answered without, with, without, with the adapter, and after reloading")
