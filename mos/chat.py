"""Talk to a run's model, or to an adapter's, by greedy decoding: `mos chat RUN|ADAPTER`."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from mos.config import compose_config
from mos.console import console, exit_on_user_error, printable, quiet_libraries
from mos.errors import UserError
from mos.evaluation.subjects import read_adapter_config, read_origin


def converse(folder: Path, max_tokens: int = 512) -> None:
    """Answer lines until the input ends; an empty one begins a new conversation."""
    folder = folder / "adapter" if (folder / "adapter").is_dir() else folder
    if not read_adapter_config(folder).get("base_model_name_or_path"):
        raise UserError(f"{folder} names no base model: give a trained run or an adapter.")
    import torch  # with its companions, it takes seconds
    from transformers import AutoTokenizer, GenerationConfig, TextStreamer

    from mos.adapters.saved import adapter_config, load
    from mos.model_sources import resolve_model
    from mos.modeling import load_base

    class Shown(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            shown = "\n".join(map(printable, text.split("\n")))
            console.out(shown, end="\n" * stream_end, highlight=False)

    quiet_libraries()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config, origin = adapter_config(folder), read_origin(folder) or {}
    cache_dir = compose_config([], "evaluate").paths.cache_dir
    base = resolve_model(str(config.base_model_name_or_path), cache_dir, config.revision)
    as_saved = {"bits": None, "compute_dtype": "bfloat16"}
    model = load_base(base, origin.get("quantization", as_saved), device)
    model.config.use_cache = True
    adapted: Any = load(model, folder, config).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    greedy = GenerationConfig(max_new_tokens=max_tokens, eos_token_id=eos, pad_token_id=pad)
    shown = Shown(tokenizer, skip_prompt=True, skip_special_tokens=True)
    messages: list[dict[str, str]] = []
    while True:
        line = console.input("[bold]you:[/] ")
        messages = [*messages, {"role": "user", "content": line}] if line.strip() else []
        if messages:
            form = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
            prompt = tokenizer.apply_chat_template(messages, **form).to(device)
            ids = adapted.generate(**prompt, generation_config=greedy, streamer=shown)[0]
            reply = tokenizer.decode(ids[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
            messages.append({"role": "assistant", "content": reply.strip()})


if __name__ == "__main__":
    with exit_on_user_error(), suppress(EOFError, KeyboardInterrupt):
        if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
            raise UserError("usage: mos chat RUN|ADAPTER")
        converse(Path(sys.argv[1]).expanduser())
