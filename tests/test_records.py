"""A run's files: read as they were written, those of earlier versions too; damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mos.config import compose_config, validate
from mos.errors import UserError
from mos.records import DamagedError, Manifest, Metrics, Results, Status, read_records
from mos.report.runs import read_runs
from mos.run import Run
from mos.runs import show_runs

EARLIER = Path(__file__).parent / "golden" / "run_of_schema_1"
RECORDS = [
    {"id": "a/0", "prompt_sha256": "c0", "output": "A", "scores": {"exact_match": 1.0}},
    {"id": "a/1", "prompt_sha256": "c1", "output": "B", "scores": {"exact_match": 0.0}},
]


@pytest.fixture
def run(tmp_path):
    """A run with every file that training and evaluation leave."""
    run = Run(tmp_path / "superni_mmlu" / "mos-r32-0a1b2c3d" / "seed3")
    run.adapter_dir.mkdir(parents=True)
    run.write_config(validate(compose_config(["+experiment=superni_mmlu", "seed=3"])))
    weights = {"model": "m", "model_sha256": "c0ffee", "adapter_sha256": "ad"}
    run.update_manifest(
        logs=["job.out"], versions={"peft": "0.21.2"}, git=None, command=["mos", "train"],
        data={"sha256": "5ha", "statistics": {"train_rows": 1730}},
        train={"steps": 16, "train_loss": 2.5, "eval_loss": 2.0, "seconds": 9.0},
        method={"name": "mos", "label": "MoS", "rank": 32, "trainable_parameters": 2, "config": {}},
        evaluation={"mmlu": {"options": {"limit": 2}, "weights": weights}},
    )  # fmt: skip
    Metrics(
        schema=1, benchmark="mmlu", partial="limit=2", options={"limit": 2}, weights=weights, n=2,
        metrics={"exact_match": 50.0}, stderr={"exact_match": 35.0}, timing={"seconds": 1.5},
    ).write(run.path / "eval" / "mmlu", RECORDS)  # fmt: skip
    run.write_results()
    run.set_status("evaluated")
    return run


def test_results_have_the_form_of_schema_1(run):
    text = (run.path / "results.json").read_text()
    assert json.loads(text)["metrics"] == {
        "mmlu": {"exact_match": 50.0, "stderr": 35.0, "n": 2, "partial": "limit=2"}
    }
    assert list(json.loads(text)) == [
        "schema", "run_id", "experiment", "scale", "model", "method", "seed", "train", "metrics",
        "sha256",
    ]  # fmt: skip
    run.write_results()
    assert (run.path / "results.json").read_text() == text


def test_runs_of_earlier_versions_are_read_and_written_as_they_were():
    run, heldout = Run(EARLIER), EARLIER / "eval" / "heldout"
    for cls, folder in (
        (Status, EARLIER), (Manifest, EARLIER), (Results, EARLIER), (Metrics, heldout),
    ):  # fmt: skip
        text = (folder / cls.FILE).read_text()
        assert json.dumps(cls.load(folder).content(), indent=2) + "\n" == text
    assert run.results.metrics["heldout"] == Metrics.load(heldout).scores


@pytest.mark.parametrize(
    "name", ["results.json", "eval/mmlu/metrics.json", "eval/mmlu/records.jsonl"]
)
def test_what_was_changed_after_it_was_written_is_damaged(run, name):
    file = run.path / name
    file.write_text(file.read_text().replace("1", "0", 1))
    with pytest.raises(DamagedError, match=file.name):
        _ = run.results, read_records(run.path / "eval" / "mmlu")


def test_a_newer_schema_is_said(run):
    file = run.path / "results.json"
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(DamagedError, match=r"newer schema 2.*update it"):
        _ = run.results


def keys(tree, path=()):
    """The paths to all values of nested objects."""
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from keys(value, (*path, key))


def broken(tree, path, value):
    """A copy of nested objects in which one value is another, or, of `...`, is left out."""
    copy = {key: json.loads(json.dumps(of)) for key, of in tree.items()}
    *above, last = path
    place = copy
    for key in above:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copy


FILES = (
    "status.json", "manifest.json", "results.json", "eval/mmlu/metrics.json",
    "eval/mmlu/records.jsonl",
)  # fmt: skip


def fault(run) -> str | None:
    """What reading all of a run says."""
    try:
        _ = run.state, run.manifest, run.results, run.complete
        Metrics.load(run.path / "eval" / "mmlu")
        read_records(run.path / "eval" / "mmlu")
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", FILES)
def test_any_broken_field_is_one_line_or_no_matter(run, name, capsys):
    """Each value of each file in turn is missing, null, a text, a list."""
    file = run.path / name
    lines = file.read_text().splitlines() if name.endswith("l") else [file.read_text()]
    tree = {key: value for key, value in json.loads(lines[0]).items() if "sha256" not in key}
    if name.endswith("records.jsonl"):
        metrics = Metrics.load(file.parent)
        metrics.model_copy(update={"records_sha256": None}).save(file.parent)
    refused = 0
    for path in [(), *keys(tree)]:
        for value in (..., None, "text", [1]):
            if path:
                lines[0] = json.dumps(broken(tree, path, value))
            else:
                lines[0] = json.dumps(None if value is ... else value)
            file.write_text("\n".join(lines))
            problems = []
            show_runs([run])
            read_runs([run.path], problems)
            if found := fault(run):
                refused += 1
                assert file.name in found
                assert "\n" not in found
                said = capsys.readouterr().out.replace("\n", "") + "".join(map(str, problems))
                assert file.name in said or name.endswith("records.jsonl")
    assert refused


@pytest.mark.parametrize("content", ['{"status": "eval', "", "[]", "[" * 100_000, '{"status": 7}'])
def test_what_is_no_whole_json_is_named(run, content):
    (run.path / "status.json").write_text(content)
    with pytest.raises(DamagedError, match=r"status\.json"):
        _ = run.status
