"""What a person sees of a corpus and of prompts."""

from __future__ import annotations

import json
import re

import pytest
from rich.console import Console

import mos.inspect
from eval import build_benchmark
from mos.config import compose_config
from mos.errors import DataError


@pytest.fixture
def shown(tmp_path, monkeypatch):
    def run(*overrides):
        console = Console(
            width=100, record=True, force_terminal=True, color_system="standard", soft_wrap=True
        )
        monkeypatch.setattr(mos.inspect, "console", console)
        given = ["model=tiny_random", f"paths.cache_dir={tmp_path / 'cache'}", *overrides]
        mos.inspect.inspect(compose_config(given, "inspect"))
        return console.export_text(styles=True)

    return run


def test_supervised_tokens_stand_out(shown, tmp_path):
    source = tmp_path / "own.jsonl"
    rows = [{"prompt": "ask", "completion": "answer"}, {"prompt": "q" * 600, "completion": "lost"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    own = ["data=messages", f"data.source={source}", "data.max_seq_length=512"]
    with pytest.raises(DataError, match=r"own\.jsonl:3"):
        shown(*own)
    text = shown(*own, "data.on_bad_row=skip")
    assert "\x1b[1;32manswer</s>\x1b[0m" in text  # bold green
    assert "\x1b[2mask⏎\x1b[0m" in text  # dim
    assert "own.jsonl:3: broken JSON" in text
    assert "dropped, first: own.jsonl:2" in text
    assert "in 1 rows" in text
    assert "the longest row has 6" in text


def test_prompts_are_counted_and_hashed(shown, samples_dir, capsys):
    prompts = ["what=prompts", f"paths.data_dir={samples_dir}", "eval=[base,gsm8k]"]
    assert "<|user|>" in shown(*prompts, "examples=1")
    (line,) = re.findall("^gsm8k .*", capsys.readouterr().out, re.MULTILINE)
    count = len(build_benchmark("gsm8k", samples_dir / "gsm8k").requests)
    assert line.split()[:2] == ["gsm8k", str(count)]
    shown(*prompts, "examples=0")
    assert line in capsys.readouterr().out
