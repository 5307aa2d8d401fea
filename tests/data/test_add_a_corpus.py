"""docs/add_a_corpus.md, followed to the letter, gives a corpus that everything knows."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest

import mos.config
import mos.data
from mos.config import compose_config, validate
from mos.data import check_source, corpora, load_training_data
from mos.errors import DataError, MissingFileError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_a_corpus.md"
FILE = re.compile(r"^`([\w/.]+)`[^\n]*\n\n```\w*\n(.*?)```", re.DOTALL | re.MULTILINE)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A job on the page's corpus: its files beside the package, its line in the table."""
    page = PAGE.read_text("utf-8")
    shutil.copytree(mos.config.CONFIG_DIR, tmp_path / "configs")
    for name, content in FILE.findall(page):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, "utf-8")
    monkeypatch.setattr(mos.data, "__path__", [*mos.data.__path__, str(tmp_path / "mos/data")])
    table = Path(corpora.__file__).read_text("utf-8")
    [line] = re.findall(r'^    "\w+",$', page, re.MULTILINE)
    edited = tmp_path / "corpora.py"
    edited.write_text(table.replace("NAMES = (\n", f"NAMES = (\n{line}\n"), "utf-8")
    monkeypatch.setattr(corpora, "CORPORA", runpy.run_path(str(edited))["CORPORA"])
    monkeypatch.setattr(mos.config, "CONFIG_DIR", tmp_path / "configs")
    places = [f"paths.data_dir={tmp_path}", f"paths.cache_dir={tmp_path}/cache"]
    options = ["+experiment=superni_mmlu", "data=proverbs", "data.eval_size=1", "eval=[base]"]
    return validate(compose_config([*options, *places]))


def test_the_page_makes_a_corpus(config, tiny_tokenizer, tmp_path):
    with pytest.raises(MissingFileError, match=r"no .*proverbs.*prepare_train_data"):
        check_source("proverbs", config.data.source)
    path = tmp_path / "proverbs" / "proverbs.jsonl"
    path.parent.mkdir()
    path.write_text('{"begin": "A stitch in time", "end": "saves nine."}\n' * 3)
    data = load_training_data(tiny_tokenizer, cache_dir=tmp_path / "cache", **config.data.dump())
    assert (len(data.train), len(data.eval)) == (2, 1)
    text = tiny_tokenizer.decode(data.train[0]["input_ids"])
    assert re.search(r"(Finish|Go on): A stitch in time\n<\|assistant\|>\nsaves nine\.</s>", text)
    path.write_text(json.dumps({"begin": "A rolling stone"}))
    with pytest.raises(DataError, match=r"proverbs\.jsonl:1: field 'end' is missing"):
        load_training_data(tiny_tokenizer, cache_dir=tmp_path / "cache", **config.data.dump())
