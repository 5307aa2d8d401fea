"""Runs, adapters and bare models through one engine: tiny model, sample benchmarks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import mos.evaluate
import mos.evaluation.serving
from eval import build_benchmark
from mos.adapters import attach, rank, row_label
from mos.config import Adapter, compose_config, validate
from mos.errors import LeftOutError, UserError
from mos.evaluation.subjects import write_origin
from mos.files import fingerprint, source_hash
from mos.preflight import check_engine
from mos.run import Run

MOS = {
    "method": "mos",
    "r": 4,
    "equivalent_rank": 3,
    "shards_per_vector": 2,
    "private_rank": 1,
    "mos_alpha": 16,
    "target_modules": ["q_proj", "up_proj"],
}
LORA = {"method": "lora", "r": 2, "lora_alpha": 32, "target_modules": ["v_proj", "down_proj"]}
VERA = {"method": "vera", "r": 8, "target_modules": ["q_proj"]}


@pytest.fixture
def base(tiny_model_dir, samples_dir, tmp_path) -> list[str]:
    """Overrides common to training and evaluation."""
    return [
        f"model.path={tiny_model_dir}",
        "model.pad_token='<pad>'",
        "model.architecture=null",
        "model.name=tiny",
        "quantization=none",
        "eval.engine=transformers",
        "eval.dtype=float32",
        "device=cpu",
        f"paths.data_dir={samples_dir}",
        f"paths.output_dir={tmp_path / 'outputs'}",
        f"paths.cache_dir={tmp_path / 'cache'}",
    ]


@pytest.fixture
def make_run(base, tiny_model_dir, tmp_path):
    """A folder as training leaves it, with random adapter weights."""

    def make(name: str, adapter: dict, *overrides: str) -> Run:
        cfg = compose_config([*base, "eval=[base,mmlu]", "eval.limit=4", *overrides])
        config = validate(cfg).but(adapter=Adapter(**adapter))
        run = Run(tmp_path / "outputs" / "made" / name / "seed0")
        run.path.mkdir(parents=True)
        run.write_config(config)
        if adapter["method"] != "none":
            torch.manual_seed(len(name))
            model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
            model = attach(model, adapter)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter, std=0.2)
            model.save_pretrained(run.adapter_dir)
            if adapter["method"] == "full":
                AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(run.adapter_dir)
        run.update_manifest(
            method={
                "name": adapter["method"],
                "label": row_label(adapter),
                "rank": rank(adapter) if adapter["method"] != "full" else None,
                "trainable_parameters": 1,
                "adapter_bytes": 1,
                "config": adapter,
            },
            train={"steps": 1},
        )
        run.set_status("trained")
        return run

    return make


@pytest.fixture
def evaluate(base):
    def run(*overrides: str):
        return mos.evaluate.evaluate(compose_config([*base, *overrides], "evaluate"))

    return run


@pytest.fixture
def starts(monkeypatch) -> list[Path]:
    """The weights that engines were started with."""
    started: list[Path] = []
    start = mos.evaluation.serving.start

    def counted(settings, model_dir, *rest):
        started.append(Path(model_dir))
        return start(settings, model_dir, *rest)

    monkeypatch.setattr(mos.evaluation.serving, "start", counted)
    return started


def letters(run: Run, benchmark: str = "mmlu") -> list[list[float]]:
    lines = (run.path / "eval" / benchmark / "records.jsonl").read_text().splitlines()
    return [json.loads(line)["logprobs"] for line in lines]


def expected_letters(model, tiny_model_dir: Path, samples_dir: Path) -> list[list[float]]:
    """The four log-probabilities, one prompt at a time, without this project's engines."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    ids = [tokenizer.encode(f" {letter}", add_special_tokens=False)[-1] for letter in "ABCD"]
    found = []
    for request in build_benchmark("mmlu", samples_dir / "mmlu", tokenizer, limit=4).requests:
        with torch.no_grad():
            logits = model(tokenizer(request.prompt, return_tensors="pt").input_ids).logits
        found.append(logits[0, -1].log_softmax(-1)[ids].tolist())
    return found


def close(found, expected) -> bool:
    return torch.allclose(torch.tensor(found), torch.tensor(expected), atol=2e-3)


def test_one_engine_serves_all_runs_of_a_base(
    make_run, evaluate, starts, tiny_model_dir, samples_dir, tmp_path
):
    adapters = {"mos": MOS, "lora": LORA, "vera": VERA, "none": {"method": "none"}}
    runs = {name: make_run(name, adapter) for name, adapter in adapters.items()}
    evaluate(f"runs={tmp_path}/outputs/**")
    assert len(starts) == 1
    for name, run in runs.items():
        assert run.status == "evaluated"
        result = run.results.metrics["mmlu"]
        assert (result.n, result.partial) == (4, "limit=4")
        weights = run.manifest.evaluation["mmlu"].weights
        assert weights["adapter"] == (None if name == "none" else "merged")
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        if name != "none":
            model = PeftModel.from_pretrained(model, run.adapter_dir)
        assert close(letters(run), expected_letters(model.eval(), tiny_model_dir, samples_dir))
    assert not close(letters(runs["mos"]), letters(runs["none"]))
    assert not close(letters(runs["mos"]), letters(runs["lora"]))

    evaluate(f"runs={tmp_path}/outputs/**")
    assert len(starts) == 1
    assert not list((tmp_path / "cache" / "merged").iterdir())


def test_adapters_as_lora_answer_like_merged_ones(make_run, evaluate, starts):
    run = make_run("mos", MOS)
    evaluate(f"runs={run.path}", "eval.weights=merged")
    merged = letters(run)
    evaluate(f"runs={run.path}", "eval.weights=adapter")
    assert run.manifest.evaluation["mmlu"].weights["adapter"] == "lora"
    assert close(letters(run), merged)
    assert len(starts) == 2
    with pytest.raises(UserError, match=r"VERA adapter.*eval\.weights=merged"):
        evaluate(f"runs={make_run('vera', VERA).path}", "eval.weights=adapter")


def test_full_fine_tuning_is_its_own_weights(make_run, evaluate, tiny_model_dir, samples_dir):
    run = make_run("full", {"method": "full"})
    evaluate(f"runs={run.path}")
    model = AutoModelForCausalLM.from_pretrained(run.adapter_dir, dtype=torch.float32)
    assert close(letters(run), expected_letters(model, tiny_model_dir, samples_dir))


def test_quantised_runs_use_the_weights_that_training_saw(make_run, evaluate):
    run = make_run("lora", LORA, "quantization=nf4")
    evaluate(f"runs={run.path}")
    assert run.manifest.evaluation["mmlu"].weights["quantization"]["quant_type"] == "nf4"
    dequantised = letters(run)
    evaluate(f"runs={run.path}", "eval.weights=original")
    assert run.manifest.evaluation["mmlu"].weights["quantization"] is None
    assert not close(letters(run), dequantised)


def test_what_is_given_on_purpose_beats_the_run(make_run, evaluate):
    run = make_run("lora", LORA, "eval.benchmarks.mmlu.answer_cue=open_instruct")
    evaluate(f"runs={run.path}", "eval.limit=3", "eval.batch_size=2")
    mmlu = run.manifest.evaluation["mmlu"]
    assert mmlu.options["limit"] == 3
    assert mmlu.options["answer_cue"] == "open_instruct"
    assert mmlu.engine["batch_size"] == 2
    assert run.status == "trained"  # its config asks for four examples

    evaluate(f"runs={run.path}", "benchmarks=[tydiqa]", "eval.limit=1")
    assert set(run.results.metrics) == {"mmlu", "tydiqa"}
    assert run.results.metrics["tydiqa"].n == 1
    assert run.results.metrics["mmlu"].n == 3


def test_a_run_does_not_consent_for_the_caller(make_run, evaluate):
    run = make_run("lora", LORA, "eval=[base,humaneval]", "eval.allow_code_execution=true")
    with pytest.raises(UserError, match=r"eval\.allow_code_execution=true"):
        evaluate(f"runs={run.path}")


def test_paths_and_device_come_from_the_caller(make_run, evaluate, samples_dir, tmp_path):
    theirs = [f"paths.{key}={tmp_path}/theirs" for key in ("data_dir", "cache_dir", "output_dir")]
    run = make_run("lora", LORA, *theirs, "device=cuda")
    run.update_manifest(benchmarks_sha256={"mmlu": source_hash(samples_dir / "mmlu", tmp_path)})
    (subject,) = evaluate(f"runs={run.path}")
    assert subject.evaluation.benchmarks["mmlu"].data_dir == f"{samples_dir}/mmlu"
    assert subject.results["mmlu"].n == 4
    assert not (tmp_path / "theirs").exists()

    run.update_manifest(benchmarks_sha256={"mmlu": "other"})
    with pytest.raises(UserError, match=r"other files of mmlu.*paths\.data_dir="):
        evaluate(f"runs={run.path}")
    evaluate(f"runs={run.path}", f"+eval.benchmarks.mmlu.data_dir={samples_dir}/mmlu")


def test_a_bare_model_becomes_a_run(evaluate, starts):
    (chat,) = evaluate("eval=[base,mmlu]", "eval.limit=4")
    (plain,) = evaluate("eval=[base,mmlu]", "eval.limit=4", "eval.chat=false")
    assert chat.run.results.method.label == "Vanilla (chat)"
    assert plain.run.results.method.label == "Vanilla (no-chat)"
    assert chat.run.path != plain.run.path
    assert letters(chat.run) != letters(plain.run)
    evaluate("eval=[base,mmlu]", "eval.limit=4")
    assert len(starts) == 2


def test_an_adapter_that_belongs_to_no_run(make_run, evaluate, tmp_path):
    run = make_run("lora", LORA)
    evaluate(f"runs={run.path}")
    (alone,) = evaluate(f"adapters=[{run.adapter_dir}]", "benchmarks=[mmlu]", "eval.limit=4")
    assert alone.results["mmlu"].timing["computed"] == 0
    assert alone.out_dir.parent == tmp_path / "outputs" / "adapters"
    assert (alone.out_dir / "eval" / "mmlu" / "records.jsonl").is_file()
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        evaluate(f"adapters=[{run.path}]", "benchmarks=[mmlu]")


def test_broken_members_are_named_and_left_out(make_run, evaluate, tmp_path):
    names = ("misfit", "diverged", "cut", "swapped", "good")
    runs = {name: make_run(name, LORA) for name in names}
    misfit = runs["misfit"].adapter_dir / "adapter_config.json"
    misfit.write_text(misfit.read_text().replace('"v_proj"', '"no_such_layer"'))
    weights = runs["diverged"].adapter_dir / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, weights, {"format": "pt"})
    (runs["cut"].path / "config.yaml").write_text("eval: [")
    runs["swapped"].update_manifest(adapter_sha256="another")
    with pytest.raises(LeftOutError, match="4 of 5 were left out") as left_out:
        evaluate(f"runs={tmp_path}/outputs/**")
    failures = left_out.value.failures
    reasons = {
        "cut": "config.yaml is damaged",
        "diverged": f"not finite: {name}",
        "swapped": "not the adapter that this run trained",
        "misfit": "not part of this adapter",
    }
    assert failures.keys() == {str(runs[name].path) for name in reasons}
    for name, reason in reasons.items():
        assert reason in failures[str(runs[name].path)]
    assert left_out.value.exit_status == 1
    assert runs["good"].status == "evaluated"
    assert runs["misfit"].status == "trained"


@pytest.mark.parametrize("change", [lambda text: text.replace("4", "5"), lambda text: text[:99]])
def test_damaged_results_are_named_and_made_again_from_the_evaluation(
    change, make_run, evaluate, capsys
):
    run = make_run("lora", LORA)
    evaluate(f"runs={run.path}")
    right, file = run.results, run.path / "results.json"
    assert run.complete
    file.write_text(change(file.read_text()))
    with pytest.raises(UserError, match=r"results\.json .*Remove it"):
        _ = run.complete
    evaluate(f"runs={run.path}")
    assert "It is made again" in capsys.readouterr().out
    assert run.results == right
    assert run.complete
    file.unlink()
    assert not run.complete
    evaluate(f"runs={run.path}")
    assert run.results == right


def test_an_adapter_of_another_base_is_refused(make_run, evaluate, tiny_model_dir):
    run = make_run("lora", LORA)
    write_origin(run.adapter_dir, run.config, fingerprint(tiny_model_dir, run.path / "cache"))
    evaluate(f"runs={run.path}")
    write_origin(run.adapter_dir, run.config, "c0ffee")
    with pytest.raises(UserError, match=r"trained on another base model \(tiny, content c0ffee\)"):
        evaluate(f"runs={run.path}")


def test_a_part_does_not_take_the_place_of_the_whole(make_run, evaluate):
    run = make_run("lora", LORA, "eval.limit=null")
    evaluate(f"runs={run.path}")
    whole = run.results.metrics["mmlu"]
    assert whole.partial is None
    (part,) = evaluate(f"runs={run.path}", "eval.limit=2")
    assert part.results["mmlu"].partial == "limit=2"
    assert (run.path / "eval" / "mmlu.partial" / "metrics.json").is_file()
    assert run.results.metrics["mmlu"] == whole


@pytest.mark.parametrize(
    ("gpus", "overrides", "expected"),
    [
        (8, ["eval.tensor_parallel=2"], None),
        (2, ["eval.tensor_parallel=4"], "needs so many GPUs; 2 are here"),
        (0, ["eval.tensor_parallel=2"], "needs so many GPUs; 0 are here"),
        (0, ["device=cuda"], "device=cuda asks for a GPU"),
    ],
)
def test_engines_are_held_against_the_machine(gpus, overrides, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("mos.preflight.gpu_driver_is_there", lambda: gpus > 0)
    if not gpus:  # then nobody waits for torch
        monkeypatch.setitem(sys.modules, "torch", None)
    config = validate(compose_config(overrides))
    if expected is None:
        check_engine(config)
    else:
        with pytest.raises(UserError, match=expected):
            check_engine(config)


def test_untrained_runs_are_passed_over(make_run, evaluate, capsys):
    done, killed = make_run("done", LORA), make_run("killed", LORA)
    (killed.path / "manifest.json").unlink()
    evaluate(f"runs={done.path.parents[1]}")
    assert f"{killed.path} is not trained yet" in capsys.readouterr().out
    assert done.status == "evaluated"
    with pytest.raises(UserError, match="no run there is trained"):
        evaluate(f"runs={killed.path}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["benchmarks=[mmul]"], "Did you mean 'mmlu'"),
        (["benchmarks=[mmlu]", "+eval.benchmarks.mmlu.tasks=[anatomi]"], "Did you mean 'anatomy'"),
        (["runs=/nowhere/*"], "no such folder"),
        (["adapter=mos"], "nothing trained to evaluate"),
        (["benchmarks=[mmlu]", "eval.engine=onnx"], "expected 'auto', 'vllm' or 'transformers'"),
        (["benchmarks=[mmlu]", "paths.data_dir=/nowhere"], "/nowhere/mmlu"),
        (["paths.cache_dir=/proc/cache"], "paths.cache_dir=/proc/cache cannot be written"),
        (["benchmarks=[humaneval]"], "allow_code_execution=true"),
        (["benchmarks=[mmlu]", "eval.max_model_len=64"], "longer than the 63 tokens"),
    ],
)
def test_the_command_line_gives_one_message_and_exit_code_2(
    overrides, message, base, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["mos.evaluate", *base, *overrides])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stopped:
        mos.evaluate.main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
