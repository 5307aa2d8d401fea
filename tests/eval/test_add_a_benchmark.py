"""docs/add_a_benchmark.md, followed to the letter, gives a benchmark that everything knows."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from pkgutil import resolve_name

import pytest

import eval
import mos.config
import mos.evaluate
from mos.errors import UserError
from mos.summarize import summarize

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_a_benchmark.md"
FILE = re.compile(r"^`([\w/.]+)`[^\n]*\n\n```\w*\n(.*?)```", re.DOTALL | re.MULTILINE)


@pytest.fixture
def followed(tmp_path, monkeypatch) -> Path:
    """A copy of the configs with the page's files beside, and its line in the registry."""
    page = PAGE.read_text("utf-8")
    shutil.copytree(mos.config.CONFIG_DIR, tmp_path / "configs")
    for name, content in FILE.findall(page):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, "utf-8")
    monkeypatch.setattr(eval, "__path__", [*eval.__path__, str(tmp_path / "eval")])
    [line] = re.findall(r'^    "(eval\.\w+:\w+)",$', page, re.MULTILINE)
    benchmark = resolve_name(line)
    monkeypatch.setitem(eval.BENCHMARKS, benchmark.name, benchmark)
    monkeypatch.setattr(mos.config, "CONFIG_DIR", tmp_path / "configs")
    return tmp_path


def test_the_page_makes_a_benchmark(followed, tiny_model_dir):
    overrides = [
        "eval=[base,riddles]",
        "model=tiny_random",
        f"model.path={tiny_model_dir}",
        "quantization=none",
        "device=cpu",
        "eval.engine=transformers",
        f"paths.data_dir={followed}/data/samples",
        f"paths.output_dir={followed}/outputs",
        f"paths.cache_dir={followed}/cache",
    ]
    [vanilla] = mos.evaluate.evaluate(mos.config.compose_config(overrides, "evaluate"))
    result = vanilla.run.results.metrics["riddles"]
    assert result.n == 4
    assert 0 <= result.metrics["exact_match"] <= 100

    report = [f"runs={followed}/outputs", f"out={followed}/summary", "rows=method.label"]
    summarize(mos.config.compose_config([*report, "plots=false"], "summarize"))
    for name in ("grouped.md", "grouped.tex", "report.html"):
        assert "Riddles EM" in (followed / "summary" / name).read_text("utf-8")
    assert "riddles.exact_match" in (followed / "summary" / "runs.csv").read_text("utf-8")

    wrong = "eval.benchmarks.riddles.hint=perhaps"
    with pytest.raises(UserError, match=r"riddles\.hint"):
        mos.evaluate.evaluate(mos.config.compose_config([*overrides, wrong], "evaluate"))
