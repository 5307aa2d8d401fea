"""A checkpoint is taken only if it is whole and unchanged."""

from __future__ import annotations

import io
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainingArguments

from mos.errors import UserError
from mos.files import SEAL, SET_ASIDE, damage, seal
from mos.training.checkpoints import check_same_state, leaves, newest_valid, page_state, rotate
from mos.training.trainer import CrashSafeTrainer, examples_seen


@pytest.fixture
def checkpoints(tmp_path):
    for step in (2, 4, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(bytes([step]) * 100)
        (folder / "optimizer.pt").write_bytes(b"state")
        seal(folder)
    return tmp_path


def test_the_newest_is_taken_by_step_not_by_name(checkpoints):
    assert newest_valid(checkpoints).name == "checkpoint-10"


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda c: (c / SEAL).unlink(), "not finished"),
        *(
            (lambda c, seal=seal: (c / SEAL).write_bytes(seal), "damaged")
            for seal in (b"{", b"[]", b"null", b'{"optimizer.pt": 1}', b"\xff")
        ),
        (lambda c: (c / SEAL).write_text("{}"), "names no file"),
        (lambda c: (c / "optimizer.pt").unlink(), "missing"),
        (lambda c: (c / "optimizer.pt").write_bytes(b"other"), "changed"),
        (lambda c: (c / "adapter_model.safetensors").write_bytes(b"\x0a" * 99), "changed"),
    ],
)
def test_a_damaged_one_is_named_and_passed_over(checkpoints, break_it, reason, capsys):
    broken = checkpoints / "checkpoint-10"
    break_it(broken)
    before = {path.name: path.read_bytes() for path in broken.iterdir()}
    assert reason in damage(broken, trust_times=False)
    assert newest_valid(checkpoints).name == "checkpoint-4"
    said = capsys.readouterr().out
    assert "checkpoint-10" in said
    assert reason in said
    assert not broken.exists()
    for aside in filter(Path.is_dir, checkpoints.iterdir()):  # what is not as it was written
        if SET_ASIDE.search(aside.name):
            assert {p.name: p.read_bytes() for p in aside.iterdir()}.items() <= before.items()


def test_odd_names_beside_are_left_alone(checkpoints):
    for name in ("checkpoint-11.bak", "checkpoint-old", "checkpoint-"):
        (checkpoints / name).mkdir()
    (checkpoints / "checkpoint-12").write_text("no folder")
    assert newest_valid(checkpoints).name == "checkpoint-10"
    assert (checkpoints / "checkpoint-11.bak").is_dir()


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [2, 4, 10]),
        (2, None, [4, 10]),
        (1, None, [10]),
        (1, 2, [2, 10]),
        (2, 2, [2, 10]),
    ],
)
def test_the_oldest_are_removed_and_odd_names_are_not_counted(checkpoints, limit, best, left):
    (checkpoints / "checkpoint-11.bak").mkdir()
    rotate(checkpoints, limit, best)
    assert sorted(int(path.name[11:]) for path in checkpoints.glob("checkpoint-*[0-9]")) == left
    assert (checkpoints / "checkpoint-11.bak").is_dir()


def test_what_a_user_put_into_a_checkpoint_survives(checkpoints):
    for step in (2, 4):
        (checkpoints / f"checkpoint-{step}" / "mine.txt").write_text("mine")
    (checkpoints / "checkpoint-10" / "optimizer.pt").write_bytes(b"edited")
    assert newest_valid(checkpoints).name == "checkpoint-4"
    rotate(checkpoints, 1)
    (edited,) = checkpoints.glob("checkpoint-10.old-*/optimizer.pt")
    assert edited.read_bytes() == b"edited"
    (note,) = checkpoints.glob("checkpoint-2.old-*/mine.txt")
    assert note.read_text() == "mine"
    assert not list(note.parent.glob("*.safetensors"))


def test_none_is_left(tmp_path):
    assert newest_valid(tmp_path) is None


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0), (1, 4), (2, 8), (3, 10), (4, 14), (6, 20), (7, 24)]
)
def test_examples_seen_counts_the_short_last_batch(step, expected):
    assert examples_seen(step, examples=10, batch=4) == expected


# All of transformers' that need no more than torch and bitsandbytes; "sgd" has no state.
OPTIMIZERS = (
    "adamw_torch adamw_torch_fused adafactor adagrad rmsprop adamw_8bit adamw_bnb_8bit ademamix"
    " ademamix_8bit lion_32bit lion_8bit rmsprop_bnb rmsprop_bnb_8bit rmsprop_bnb_32bit"
    " paged_adamw_32bit paged_adamw_8bit paged_ademamix_32bit paged_ademamix_8bit paged_lion_32bit"
    " paged_lion_8bit"
)


def optimizer(name: str, folder: Path) -> torch.optim.Optimizer:
    arguments = TrainingArguments(output_dir=str(folder), optim=name, use_cpu=True)
    cls, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    # Large enough for a state in 8 bits.
    return cls([torch.nn.Parameter(torch.ones(96, 96))], **options)


def stepped(optim: torch.optim.Optimizer) -> torch.optim.Optimizer:
    (parameter,) = optim.param_groups[0]["params"]
    for _ in range(2):
        parameter.grad = torch.randn_like(parameter)
        optim.step()
    return optim


@pytest.mark.parametrize("name", OPTIMIZERS.split())
def test_a_state_that_is_lost_is_noticed(name, tmp_path):
    file = io.BytesIO()
    torch.save(stepped(optimizer(name, tmp_path)).state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = optimizer(name, tmp_path)
    resumed.load_state_dict(deepcopy(saved))
    check_same_state(saved, resumed.state_dict(), name)
    kinds = dict(leaves(saved["state"]))
    assert any(value.numel() > 1 for value in kinds.values() if isinstance(value, torch.Tensor))
    for place, value in kinds.items():
        lost = deepcopy(resumed.state_dict())
        if isinstance(value, torch.Tensor):
            dict(leaves(lost["state"]))[place].zero_()
        else:
            lost["state"][0]["step"] = 0
        with pytest.raises(UserError, match=rf"{name} did not get its state back .*{place}"):
            check_same_state(saved, lost, name)


def test_a_state_that_was_paged_is_not_taken_for_paged_after_a_resume(tmp_path):
    name = "paged_adamw_32bit"
    saved = stepped(optimizer(name, tmp_path))
    for _, value in leaves(saved.state_dict()):
        if isinstance(value, torch.Tensor):
            value.is_paged = True  # as on a GPU, where it is
    torch.save(saved.state_dict(), tmp_path / "optimizer.pt")
    resumed = optimizer(name, tmp_path)
    schedule = torch.optim.lr_scheduler.ConstantLR(resumed)
    torch.save(schedule.state_dict(), tmp_path / "scheduler.pt")
    one_of_two = SimpleNamespace(
        is_fsdp_enabled=False,
        optimizer=resumed,
        lr_scheduler=schedule,
        args=SimpleNamespace(optim=name, world_size=2, device=torch.device("meta")),
    )
    CrashSafeTrainer._load_optimizer_and_scheduler(one_of_two, tmp_path)
    states = [value for _, value in leaves(resumed.state_dict()) if isinstance(value, torch.Tensor)]
    assert len(states) == 2
    assert not any(getattr(state, "is_paged", False) for state in states)
    stepped(resumed)


def test_loaded_state_of_a_paged_optimizer_is_paged_again(monkeypatch):
    def get_paged(*shape, dtype, device):
        buffer = torch.zeros(shape, dtype=dtype)
        buffer.is_paged = True
        return buffer

    monkeypatch.setattr("mos.training.checkpoints.get_paged", get_paged)
    large, small = (torch.nn.Parameter(torch.ones(n, n, device="meta")) for n in (400, 40))
    state = {p: {"state1": torch.randn(p.shape), "absmax1": torch.ones(4)} for p in (large, small)}
    loaded = {p: state[p]["state1"] for p in state}
    page_mng = SimpleNamespace(paged_tensors=[])
    page_state(SimpleNamespace(is_paged=True, page_mng=page_mng, state=state))
    assert state[large]["state1"].is_paged
    assert torch.equal(state[large]["state1"], loaded[large])
    assert page_mng.paged_tensors == [state[large]["state1"]]
    assert state[small]["state1"] is loaded[small]
