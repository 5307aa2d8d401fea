"""What a person sees of a corpus."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from mos.data import inspect as module
from mos.errors import MissingFileError


@pytest.fixture
def shown(tiny_model_dir, tmp_path, monkeypatch):
    def run(*arguments):
        console = Console(
            width=100, record=True, force_terminal=True, color_system="standard", soft_wrap=True
        )
        monkeypatch.setattr(module, "console", console)
        cache = str(tmp_path / "cache")
        code = module.main(["--model", str(tiny_model_dir), "--cache-dir", cache, *arguments])
        return code, console.export_text(styles=True)

    return run


def test_supervised_tokens_stand_out(shown, tmp_path):
    source = tmp_path / "own.jsonl"
    rows = [{"prompt": "ask", "completion": "answer"}, {"prompt": "q" * 600, "completion": "lost"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    arguments = ["--source", str(source), "--corpus", "messages"]
    code, _ = shown(*arguments)
    assert code == 2
    code, text = shown(*arguments, "--on-bad-row", "skip")
    assert code == 0
    assert "\x1b[1;32manswer</s>\x1b[0m" in text  # bold green
    assert "\x1b[2mask⏎\x1b[0m" in text  # dim
    assert "own.jsonl:3: broken JSON" in text
    assert "dropped, first: own.jsonl:2" in text
    assert "576-639" in text


def test_every_corpus_of_a_data_folder_is_found(shown, samples_dir, tmp_path):
    code, text = shown("--data-dir", str(samples_dir), "--examples", "0", "--max-rows", "50")
    assert code == 0
    for corpus in ("super_ni", "flan_v2", "cot", "code_alpaca"):
        assert corpus in text
    with pytest.raises(MissingFileError, match="no corpus in"):
        module.found_corpora(tmp_path)
