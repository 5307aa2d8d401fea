"""What others chose (names, paths, values) is shown as it is, and never steers the terminal."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from rich.console import Console

from mos import console
from mos.records import Results
from mos.runs import results_table

HOSTILE = "a\x1b[2J\x07[red]b[v1]\u202e"
SHOWN = r"a\x1b[2J\x07[red]b[v1]\u202e"


def rendered(thing) -> str:
    terminal = Console(width=200, color_system=None)
    with terminal.capture() as captured:
        terminal.print(thing)
    return captured.get()


@pytest.mark.parametrize("speak", [console.say, console.fail])
def test_messages_write_out_control_characters_and_keep_their_lines(speak, capsys):
    speak(f"first {HOSTILE}\nsecond: Привет 日本語")
    printed = "".join(capsys.readouterr())
    assert f"first {SHOWN}\nsecond: Привет 日本語\n" in printed


def test_configs_and_results_show_names_as_they_are():
    results = Results(
        schema=1, run_id="", experiment="", scale="", model=HOSTILE, seed=0,
        method={"name": "mos", "label": HOSTILE, "rank": 8, "trainable_parameters": 1},
        metrics={HOSTILE: {HOSTILE: 1.0, "n": 4}},
    )  # fmt: skip
    assert rendered(results_table(results)).count(SHOWN) == 4


@pytest.mark.parametrize(
    "path",
    [
        *("/a/b-c_1.2", "a/[v1]", "it's", "a=b", "a,b", "~/a", "a b", "#a", "-a", "", "ü", "${a}"),
        *("true", "null", "1e5", "12", r"a\b", "a\\", "a\\'", "{a: 1}", "a\tb", '"a"', "glob(*)"),
    ],
)
def test_an_override_gives_any_value_as_it_is(path):
    (parsed,) = OverridesParser.create().parse_overrides([console.override("key", path)])
    assert OmegaConf.create({"key": parsed.value()}).key == path
