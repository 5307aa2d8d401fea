"""Talk to a run's model, or to an adapter's, by greedy decoding: `mos chat RUN|ADAPTER`."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from mos.config import compose_config
from mos.console import console, exit_on_user_error, printable, quiet_libraries, working
from mos.errors import UserError
from mos.evaluation.subjects import read_adapter_config, read_origin


def converse(folder: Path, max_tokens: int = 512) -> None:
    """Answer lines until the input ends; an empty one begins a new conversation."""
    folder = folder / "adapter" if (folder / "adapter").is_dir() else folder
    if not (base := read_adapter_config(folder).get("base_model_name_or_path")):
        raise UserError(f"{folder} names no base model: give a trained run or an adapter.")
    with working(f"loading {base} and {folder}"):
        import torch
        from transformers import AutoTokenizer, GenerationConfig, TextStreamer

        from mos.adapters.saved import adapter_config, load
        from mos.models.loading import load_base
        from mos.models.sources import resolve_model

        quiet_libraries()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        config = adapter_config(folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        as_saved = {"bits": None, "compute_dtype": "bfloat16"}
        cache_dir = compose_config([], "evaluate").paths.cache_dir
        base_dir = resolve_model(base, cache_dir, config.revision)
        origin = read_origin(folder, base_dir, cache_dir) or {}
        model = load_base(base_dir, origin.get("quantization", as_saved), device)
        adapted: Any = load(model, folder, config).eval()
    # `generate` takes what it is not told, such as penalties, from the model's own settings.
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(max_new_tokens=max_tokens, **ends)
    messages: list[dict[str, str]] = []
    while True:
        line = console.input("[bold]you:[/] ")
        messages = [*messages, {"role": "user", "content": line}] if line.strip() else []
        if messages:
            form = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
            prompt = tokenizer.apply_chat_template(messages, **form).to(device)
            shown: Any = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
            shown.on_finalized_text = lambda text, stream_end=False: console.out(
                *map(printable, text.split("\n")), sep="\n", end="\n" * stream_end, highlight=False
            )
            ids = adapted.generate(**prompt, streamer=shown)[0, prompt["input_ids"].shape[1] :]
            reply = tokenizer.decode(ids, skip_special_tokens=True)
            messages.append({"role": "assistant", "content": reply.strip()})


if __name__ == "__main__":
    with exit_on_user_error(), suppress(EOFError, KeyboardInterrupt):
        if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
            raise UserError("usage: mos chat RUN|ADAPTER")
        converse(Path(sys.argv[1]).expanduser())
