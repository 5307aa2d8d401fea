"""The engine for machines without vLLM: transformers, batched by length, left padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from eval.benchmark import Completion, Decoding
from eval.engines import (
    Engine,
    EngineError,
    EngineSettings,
    NotFiniteError,
    Prompt,
    choose,
    is_out_of_memory,
    request_seed,
)
from mos.console import quiet_transformers
from mos.errors import UserError


class TransformersEngine(Engine):
    """Batches of requests with the same decoding and nearly the same length, the longest first.

    The order of the batches depends on the prompts alone, so a run that was interrupted continues
    with the batches it would have had.
    """

    def __init__(
        self, model_dir: str | Path, settings: EngineSettings, tokenizer: Any = None
    ) -> None:
        super().__init__(model_dir, settings, tokenizer)
        self._model = self._load(self.model_dir)

    def _load(self, model_dir: Path) -> PreTrainedModel:
        try:
            with quiet_transformers():
                model: Any = AutoModelForCausalLM.from_pretrained(
                    model_dir, dtype=getattr(torch, self.settings.dtype), trust_remote_code=False
                )
            model.to(self.settings.device).eval()
        except (RuntimeError, MemoryError) as error:
            raise self._died(error) from error
        # In bfloat16 the likeliest tokens often tie. A copy: embeddings may be tied to the head.
        # Frozen, as PEFT leaves it: torch orders its sums by whether there is a gradient.
        head = deepcopy(model.get_output_embeddings()).float().requires_grad_(False)
        head.register_forward_pre_hook(lambda _, args: (args[0].float(),))
        model.set_output_embeddings(head)
        return model

    def load_weights(self, model_dir: str | Path) -> None:
        del self._model
        self.model_dir = Path(model_dir)
        self._model = self._load(self.model_dir)

    def close(self) -> None:
        self.__dict__.pop("_model", None)
        if self.settings.device == "cuda":
            torch.cuda.empty_cache()

    def complete(
        self, prompts: Sequence[Prompt], adapter: str | Path | None = None
    ) -> Iterator[list[tuple[int, Completion]]]:
        with self._adapter(adapter):
            for decoding, positions in self._batches(prompts):
                batch = [prompts[i] for i in positions]
                try:
                    answers = self._choices(batch) if decoding.choices else self._outputs(batch)
                except (RuntimeError, MemoryError) as error:
                    raise self._died(error) from error
                yield list(zip(positions, answers, strict=True))

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[tuple[Decoding, list[int]]]:
        def decoding(position: int) -> Decoding:
            return prompts[position].request.decoding

        alike = sorted(range(len(prompts)), key=lambda i: (repr(decoding(i)), -len(prompts[i].ids)))
        for settings, group in groupby(alike, decoding):
            positions = list(group)
            size = max(1, self.settings.batch_size // settings.n)
            for start in range(0, len(positions), size):
                yield settings, positions[start : start + size]

    @contextmanager
    def _adapter(self, adapter: str | Path | None) -> Iterator[None]:
        if adapter is None:
            yield
            return
        from peft import PeftModel

        try:
            tuned = PeftModel.from_pretrained(self._model, str(adapter))
        except (ValueError, RuntimeError, KeyError, OSError) as error:
            raise UserError(
                f"The adapter {adapter} does not fit the model {self.model_dir}: {error}"
            ) from error
        try:
            yield
        finally:
            self._model = tuned.unload()

    @torch.inference_mode()
    def _choices(self, batch: list[Prompt]) -> list[Completion]:
        ids, mask = self._pad([prompt.ids for prompt in batch])
        choices = batch[0].request.decoding.choices
        logits = self._forward(ids, mask)  # (batch, vocabulary), float32
        logprobs = logits.log_softmax(-1)[:, self.choice_ids(choices)].tolist()
        return [
            choose(choices, row, len(prompt.ids))
            for prompt, row in zip(batch, logprobs, strict=True)
        ]

    @torch.inference_mode()
    def _outputs(self, batch: list[Prompt]) -> list[Completion]:
        n = batch[0].request.decoding.n
        outputs = [_Output(prompt, self, index) for prompt in batch for index in range(n)]
        ids, mask = self._pad([output.prompt.ids for output in outputs])
        cache = DynamicCache()
        live = outputs
        while live:
            logits = self._forward(ids, mask, cache)
            tokens = [output.sample(row) for output, row in zip(live, logits, strict=True)]
            going = [i for i, (o, t) in enumerate(zip(live, tokens, strict=True)) if o.append(t)]
            if len(going) < len(live):
                live = [live[i] for i in going]
                kept = torch.tensor(going, device=mask.device, dtype=torch.long)
                cache.batch_select_indices(kept)
                mask = mask[kept]
            ids = torch.tensor([[tokens[i]] for i in going], device=mask.device)
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
        return [
            Completion(
                texts=tuple(o.text for o in rows),
                finish_reasons=tuple(o.finish_reason for o in rows),
                prompt_tokens=len(prompt.ids),
                output_tokens=tuple(o.tokens for o in rows),
            )
            for prompt, rows in (
                (prompt, outputs[i * n : i * n + n]) for i, prompt in enumerate(batch)
            )
        ]

    def _pad(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Left-pad to (batch, longest); the masked id is never seen, so any will do."""
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return ids.to(self.settings.device), mask.to(self.settings.device)

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache | None = None
    ) -> torch.Tensor:
        """Logits (batch, vocabulary) at the last position; an error if they are not finite."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1]
        if not torch.isfinite(logits.amax(-1)).all():
            raise NotFiniteError(self.model_dir)
        return logits

    def _died(self, error: BaseException) -> BaseException:
        if not is_out_of_memory(error):
            return error
        return EngineError(
            f"Out of memory on {self.settings.device}: lower eval.batch_size (now"
            f" {self.settings.batch_size}) or eval.max_model_len (now {self.settings.window})."
        )


class _Output:
    """One output as it grows, cut as vLLM cuts it."""

    def __init__(self, prompt: Prompt, engine: Engine, index: int) -> None:
        self.prompt, settings = prompt, engine.settings
        self.decoding = prompt.request.decoding
        self.text, self.tokens, self.finish_reason = "", 0, ""
        self._limit = min(self.decoding.max_tokens, settings.window - len(prompt.ids))
        self._eos = engine.tokenizer.eos_token_id
        self._tokenizer = engine.tokenizer._tokenizer
        self._stream = DecodeStream(ids=prompt.ids, skip_special_tokens=True)
        self._generator = torch.Generator()
        self._generator.manual_seed(request_seed(settings.seed, prompt.request) + index)

    def sample(self, logits: torch.Tensor) -> int:
        """Choose a token from the logits (vocabulary,)."""
        if self.decoding.temperature == 0:
            return int(logits.argmax())
        probabilities = (logits.cpu() / self.decoding.temperature).softmax(-1)
        if self.decoding.top_p < 1:
            ranked, order = probabilities.sort(descending=True, stable=True)
            outside = ranked.cumsum(0) - ranked >= self.decoding.top_p
            probabilities[order[outside]] = 0
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def append(self, token: int) -> bool:
        """Add a token; return whether the output goes on."""
        self.tokens += 1
        if token == self._eos:
            self.finish_reason = "stop"
            return False
        new = self._decode(token)
        self.text += new
        if new and (end := self._stop_at(len(new))) is not None:
            self.text, self.finish_reason = self.text[:end], "stop"
        elif self.tokens >= self._limit:
            self.finish_reason = "length"
        return not self.finish_reason

    def _decode(self, token: int) -> str:
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception as error:
            # Bytes that are no UTF-8 can break the stream: begin a new one, as vLLM does.
            if not str(error).startswith("Invalid prefix encountered"):
                raise
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._stream.step(self._tokenizer, token) or ""

    def _stop_at(self, new: int) -> int | None:
        """Where the first complete stop text begins, if the last `new` characters end one."""
        found = []
        for stop in self.decoding.stop:
            start = self.text.find(stop, max(0, len(self.text) - new - len(stop) + 1))
            if start >= 0:
                found.append((start + len(stop), start))
        return min(found)[1] if found else None
