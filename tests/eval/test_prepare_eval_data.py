"""The preparation of benchmarks, from local stand-ins of what is downloaded."""

import importlib.util
import json
import shutil
import tarfile
import zipfile
from dataclasses import replace

import pytest

from eval import build_benchmark


@pytest.fixture
def script(repo_dir):
    spec = importlib.util.spec_from_file_location(
        "prepare_eval_data", repo_dir / "scripts/prepare_eval_data.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def serve(script, monkeypatch):
    """Put local files in the place of a benchmark's remote ones."""

    def put(name, *paths, **changed):
        files = [
            replace(file, urls=(path.as_uri(),), **changed)
            for file, path in zip(script.FILES[name], paths, strict=True)
        ]
        monkeypatch.setitem(script.FILES, name, files)

    return put


def archives(data, folder):
    """The archives of MMLU and BBH as their publishers pack them."""
    with tarfile.open(folder / "data.tar", "w") as tar:
        for part in ("test", "dev"):
            for path in (data / "mmlu" / part).glob("*.csv"):
                tar.add(path, f"data/{part}/{path.name}")
        tar.add(__file__, "data/README.txt")
    with zipfile.ZipFile(folder / "bbh.zip", "w") as zipped:
        for part in ("bbh", "cot-prompts"):
            for path in (data / "bbh" / part).iterdir():
                zipped.write(path, f"BIG-Bench-Hard-9ee07bd/{part}/{path.name}")
    return folder / "data.tar", folder / "bbh.zip"


def test_real_benchmarks_are_verified(script, serve, shared_dir, tmp_path, capsys):
    data, output = shared_dir / "data", tmp_path / "full"
    tar, zipped = archives(data, tmp_path)
    serve("mmlu", tar)
    serve("bbh", zipped)
    serve("gsm8k", data / "gsm8k/test.jsonl")
    serve("humaneval", data / "humaneval/HumanEval.jsonl.gz")
    names = ["mmlu", "bbh", "gsm8k", "humaneval"]
    assert script.main([*names, "--output", str(output)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "mmlu: 57 subjects, 14042 test, 285 dev",
        "bbh: 27 tasks, 6511 examples, 27 cot-prompts",
        "gsm8k: 1319 test, 8 exemplars",
        "humaneval: 164 problems",
    ]
    for name in names:
        prepared = build_benchmark(name, output / name)
        assert prepared.prompts_sha256() == build_benchmark(name, data / name).prompts_sha256()


def test_a_second_call_needs_no_network(script, serve, samples_dir, tmp_path, monkeypatch):
    source = tmp_path / "test.jsonl"
    shutil.copyfile(samples_dir / "gsm8k/test.jsonl", source)
    (tmp_path / "out/gsm8k").mkdir(parents=True)
    shutil.copyfile(samples_dir / "gsm8k/exemplars.jsonl", tmp_path / "out/gsm8k/exemplars.jsonl")
    rows = len(source.read_text().splitlines())
    serve("gsm8k", source, sha256=None)
    counted = (script.count_gsm8k, {"test": rows, "exemplars": 8})
    monkeypatch.setitem(script.EXPECTED, "gsm8k", counted)
    arguments = ["gsm8k", "--output", str(tmp_path / "out")]
    assert script.main(arguments) == 0
    source.unlink()
    assert script.main(arguments) == 0


def test_wrong_content_is_refused(script, serve, samples_dir, tmp_path, capsys):
    serve("gsm8k", samples_dir / "gsm8k/test.jsonl")
    tydiqa = samples_dir / "tydiqa"
    parts = [tydiqa / f"tydiqa-goldp-v1.1-{part}.json" for part in ("train", "dev")]
    serve("tydiqa", *parts)
    counts = [
        sum(
            len(p["qas"])
            for article in json.loads(part.read_text())["data"]
            for p in article["paragraphs"]
        )
        for part in parts
    ]
    assert script.main(["gsm8k", "tydiqa", "--output", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert "SHA-256" in printed
    assert f"{{'train': {counts[0]}, 'dev': {counts[1]}}}; expected {{'train': 49881" in printed
    assert not (tmp_path / "gsm8k/test.jsonl").exists()


def test_every_file_says_how_to_get_it_by_hand(script):
    for name, files in script.FILES.items():
        for file in files:
            assert file.path.startswith(f"{name}/")
            assert file.by_hand
            assert all(url.startswith(("https://", "file://")) for url in file.urls)
    assert set(script.FILES) == set(script.EXPECTED)
