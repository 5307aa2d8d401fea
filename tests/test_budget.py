"""`mos plan budget=`: the settings of each method that come nearest to a number of parameters."""

from __future__ import annotations

import json
import sys
from unittest.mock import Mock

import pytest
from hydra.core.global_hydra import GlobalHydra

from mos import plan as entry
from mos.budget import nearest, parameters, sized
from mos.config import compose_config, validate
from mos.errors import UserError
from mos.estimate import count
from mos.methods import METHODS

TWO_BLOCKS = [
    "model=tiny_random", "model.architecture.num_hidden_layers=2", "quantization=none", "eval=base",
]  # fmt: skip
LORA = 2 * (4 * 64 + 2 * (64 + 32) + 3 * (64 + 128))  # of rank 1
# file: settings for 5000 parameters, and what they have. The widths are 64, 32 and 128.
AT_5000 = {
    "mos": ("equivalent_rank=2 r=3", 2 * LORA),  # with 2 blocks, 3 * 4 shards
    "lora": ("r=2", 2 * LORA),
    "rslora": ("r=2", 2 * LORA),
    "dora": ("r=2", 2 * (LORA + 512)),
    "hira": ("r=2", 2 * LORA),
    "prolora": ("r=10", 4874),
    "tied_lora": ("r=24", 24 * (64 + 128) + 2 * (24 + 128)),
    "vera": ("r=64", 2 * (7 * 64 + 512)),  # its ceiling
    "miss": ("r=5", 5 * 2 * 512),
    "vblora": ("num_vectors=17 vector_length=32", 17 * (32 + 4 * LORA // 32)),
    "unilora": ("theta_d_length=5000", 5000),
    "lily": ("r=2", 5232),
    "randlora": ("r=11 randlora_alpha=220", 2 * (5 * 6 * 75 + 2 * 3 * 43)),
    "lokr": ("r=5 decompose_factor=2", 5 * LORA // 2 + 14 * 4),
}


def searched(budget, *names, base=TWO_BLOCKS, fixed=()):
    return list(sized(validate(compose_config(base)), budget, names, fixed))


def test_every_method_is_here():
    assert {*AT_5000} == {n for n, m in METHODS.items() if m.config} | {"rslora", "dora"}


@pytest.mark.parametrize("name", AT_5000)
def test_the_overrides_are_of_a_job_with_as_many_parameters(name):
    settings, total = AT_5000[name]
    (found,) = searched(5000, name)
    assert found["overrides"] == [
        f"adapter={name}",
        *(f"adapter.{setting}" for setting in settings.split()),
    ]
    assert found["trainable_parameters"] == total
    assert found["percent_off"] == pytest.approx((total - 5000) / 50)
    assert found["unreachable"] == ("ceiling" if name == "vera" else None)
    assert count(validate(compose_config([*TWO_BLOCKS, *found["overrides"]]))).trainable == total


@pytest.mark.parametrize(
    ("name", "budget", "total", "bound"),
    [
        ("lora", 1, LORA, "floor"),
        ("vera", 1, 2 * (7 + 512), "floor"),
        ("lora", 10**6, 64 * LORA, "ceiling"),
        ("tied_lora", 10**6, 64 * (64 + 128) + 2 * (64 + 128), "ceiling"),
        ("unilora", 10**6, 4 * LORA, "ceiling"),  # each number of A and B its own
        ("vblora", 10**6, LORA // 8 * (32 + LORA // 8), "ceiling"),  # each part of them
        ("mos", LORA, LORA, None),  # with p = e = 1, LoRA
    ],
)
def test_what_a_method_cannot_have(name, budget, total, bound):
    (found,) = searched(budget, name)
    assert (found["trainable_parameters"], found["unreachable"]) == (total, bound)


def test_the_studys_budget_on_smollm2():
    (found,) = searched(610_560, "mos", base=["model=smollm2_135m"])
    assert found["overrides"][1:] == ["adapter.equivalent_rank=2", "adapter.r=8"]
    assert found["percent_off"] == 0


def test_fixed_options_hold_for_all_and_what_does_not_fit_is_said():
    targets = "adapter.target_modules=[q_proj]"
    lora, unilora = searched(1000, "lora", "unilora", fixed=[targets, "adapter.r=1"])
    assert lora["overrides"] == ["adapter=lora", targets, "adapter.r=1", "adapter.r=4"]
    assert unilora["trainable_parameters"] == 2 * 128
    (found,) = searched(1000, "lora", fixed=["adapter.target_modules=[q_porj]"])
    assert "q_porj" in found["problem"]
    with pytest.raises(UserError, match="'none' has no adapter"):
        searched(1000, "none")


@pytest.mark.parametrize(
    "curve",
    [
        lambda n: 7 * n + 3,
        lambda n: n * n,
        lambda n: min(10 * n, 400),
        lambda n: n // 9 * 50,
        lambda n: 2 ** (n // 8),
    ],
    ids=["line", "square", "saturated", "stairs", "exponential"],
)
def test_no_size_is_nearer(curve):
    for budget in (1, 55, 390, 500, 4321, 10**6):
        count = Mock(side_effect=curve)
        size = nearest(count, 1, 100, budget)
        off = min(abs(curve(n) - budget) for n in range(1, 101))
        assert abs(curve(size) - budget) == off
        assert count.call_count < 16


@pytest.mark.parametrize(
    ("text", "number"), [("0.6M", 600_000), ("600k", 600_000), (600_000, 600_000), (6e5, 600_000)]
)
def test_budgets_in_words(text, number):
    assert parameters(text) == number


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mos.plan", *TWO_BLOCKS, *arguments])
        GlobalHydra.instance().clear()
        entry.main()
        return capsys.readouterr().out

    return run


def test_the_command_prints_lines_that_a_sweep_can_be_pasted_from(command):
    arguments = ["budget=5k", "methods=[vera,lora]", "adapter.target_modules=[q_proj,v_proj]"]
    printed = command(*arguments)
    assert "5,000 parameters on tiny-random" in printed
    assert "unreachable: its ceiling" in printed
    assert "adapter=lora 'adapter.target_modules=[q_proj,v_proj]' adapter.r=11\n" in printed
    vera, lora = json.loads(command(*arguments, "format=json"))["methods"]
    assert (vera["unreachable"], lora["trainable_parameters"]) == ("ceiling", 4928)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["budget=many"], "expected a number of parameters such as"),
        (["budget=1.5"], "expected a number of parameters such as"),
        (["budget=5k", "adapter=lora"], "adapter=lora has no effect beside budget="),
        (["budget=5k", "methods=[lroa]"], "Did you mean 'lora'"),
        (["methods=[lora]"], "add budget="),
    ],
)
def test_mistakes_are_one_message(command, arguments, message, capsys):
    with pytest.raises(SystemExit):
        command(*arguments)
    assert message in capsys.readouterr().err
