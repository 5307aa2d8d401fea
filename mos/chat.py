"""Try an adapter in the terminal, in the format it was trained on: `mos chat RUN|ADAPTER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mos.config import Model, compose_config
from mos.console import console, exit_on_user_error, fail, printable, quiet_libraries, say
from mos.data.chat import Message, render_chat
from mos.errors import UserError
from mos.evaluation.subjects import read_adapter_config
from mos.preflight import check_model_files
from mos.run import Run

USAGE = """usage: mos chat RUN|ADAPTER [max_tokens=256]

RUN is a run's folder (.../seed0), ADAPTER a folder as PEFT saves it. Decoding is greedy. An empty
line begins a new conversation; Ctrl-D ends."""


def load(folder: Path) -> tuple[Any, Any]:
    """The model of a run or an adapter, and its tokenizer, on a GPU where there is one.

    A run's base is quantised as in training; an adapter's is taken in bfloat16.

    Raises:
        UserError: neither a trained run nor an adapter, or its base is not there.
    """
    run = Run(folder)
    if (folder / "config.yaml").is_file():
        if not run.trained:
            raise UserError(f"{folder} is not trained yet ({run.status}).")
        config = run.config
        base, quantization, adapter = config.model, config.quantization.dump(), run.adapter_dir
        if not adapter.is_dir() and config.adapter.method != "none":
            raise UserError(f"{folder} has lost its adapter ({adapter.name}/ is not there).")
    elif (folder / "adapter_config.json").is_file():
        saved = read_adapter_config(folder)
        if not (path := saved.get("base_model_name_or_path")):
            raise UserError(f"{folder}/adapter_config.json names no base model.")
        base = Model(name=path, path=path, revision=saved.get("revision"))
        quantization, adapter = {"bits": None, "compute_dtype": "bfloat16"}, folder
    else:
        raise UserError(f"{folder} is neither a run (config.yaml) nor an adapter of PEFT.")
    check_model_files(base)

    # Torch and its companions take seconds to import.
    import torch

    from mos.adapters.saved import adapter_config
    from mos.adapters.saved import load as load_adapter
    from mos.model_sources import resolve_model
    from mos.modeling import load_base, load_tokenizer

    quiet_libraries()
    cache_dir = compose_config([], "evaluate").paths.cache_dir
    base_dir = resolve_model(base.path, cache_dir, base.revision)
    tokenizer = load_tokenizer(base_dir, base.pad_token)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    on_base = not adapter.is_dir() or bool(read_adapter_config(adapter))
    if on_base:
        model: Any = load_base(base_dir, quantization, device)
        if adapter.is_dir():
            model = load_adapter(model, adapter, adapter_config(adapter))
    else:  # all weights were trained
        model = load_base(adapter, {**quantization, "bits": None}, device)
    model.config.use_cache = True
    return model.eval(), tokenizer


def answer(model: Any, tokenizer: Any, messages: list[Message], max_tokens: int) -> str:
    """What the model says after a conversation, by greedy decoding."""
    import torch

    prompt = tokenizer(render_chat(messages), return_tensors="pt").to(model.device)
    with torch.inference_mode():
        ids = model.generate(
            **prompt,
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )  # (1, prompt + answer)
    return tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def converse(model: Any, tokenizer: Any, max_tokens: int) -> None:
    """Ask for lines and answer them until the input ends."""
    messages: list[Message] = []
    while True:
        try:
            line = console.input("[bold]you:[/] ")
        except EOFError:
            return
        if not line.strip():
            messages.clear()
            say("(a new conversation)")
            continue
        messages.append({"role": "user", "content": line})
        reply = answer(model, tokenizer, messages, max_tokens).strip()
        messages.append({"role": "assistant", "content": reply})
        for text in reply.splitlines() or ["(nothing)"]:
            console.print(printable(text), markup=False, highlight=False)


def main() -> None:
    """Read the command line, load, and converse."""
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    folder, *options = arguments
    with exit_on_user_error():
        max_tokens = 256
        for option in options:
            key, _, value = option.partition("=")
            if key != "max_tokens" or not value.isdecimal() or not int(value):
                raise UserError(f"{option}: expected max_tokens=<number>.")
            max_tokens = int(value)
        say(f"loading {folder}")
        model, tokenizer = load(Path(folder).expanduser())
        try:
            converse(model, tokenizer, max_tokens)
        except KeyboardInterrupt:
            fail("stopped")
            sys.exit(130)


if __name__ == "__main__":
    main()
