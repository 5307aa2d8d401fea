"""Trackers: one run a job, under the job's own id, closed with its outcome."""

from __future__ import annotations

import os
from contextlib import suppress
from types import SimpleNamespace

import pytest

from mos.config import compose_config, validate
from mos.run import open_run
from mos.training.fit import tracked


@pytest.fixture
def config(tmp_path):
    overrides = ["+experiment=superni_mmlu", "logging=wandb", f"paths.output_dir={tmp_path}"]
    return validate(compose_config(overrides))


@pytest.fixture
def wandb(monkeypatch):
    """Stands for the service: what a run was opened with, and how it was closed."""
    wandb = pytest.importorskip("wandb", reason="NOT TESTED: W&B, it is not installed")
    calls = SimpleNamespace(opened=[], closed=[])

    def init(**options):
        calls.opened.append(options)
        online = options["mode"] == "online"
        return SimpleNamespace(
            finish=lambda exit_code: calls.closed.append(exit_code),
            url="https://wandb.example/run" if online else None,
            dir="outputs/wandb/offline-run-1/files",
        )

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return calls


@pytest.mark.parametrize(("stop", "exit_code"), [(None, 0), (KeyboardInterrupt, 1)])
def test_a_run_has_its_own_id_and_is_closed_as_it_ends(config, wandb, stop, exit_code):
    run = open_run(config)
    with suppress(KeyboardInterrupt), tracked(config, run, group="night"):
        assert wandb.closed == []
        if stop:
            raise stop
    (opened,) = wandb.opened
    assert (opened["id"], opened["group"], opened["resume"]) == (run.id, "night", "allow")
    assert opened["config"]["adapter"]["method"] == "mos"
    assert wandb.closed == [exit_code]


def test_it_is_offline_without_a_key_and_says_so(config, wandb, monkeypatch, capsys):
    for key in (None, "a key"):
        monkeypatch.setattr("wandb.api", SimpleNamespace(api_key=key))
        with tracked(config, open_run(config), group=None):
            pass
    assert [opened["mode"] for opened in wandb.opened] == ["offline", "online"]
    offline, online = capsys.readouterr().out.splitlines()
    assert "wandb sync outputs/wandb/offline-run-1" in offline
    assert "https://wandb.example/run" in online


def test_only_the_first_process_opens_a_run(config, wandb, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with tracked(config, open_run(config), group=None):
        pass
    assert wandb.opened == []


def test_tensorboard_writes_into_the_run_s_folder(config, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    config = config.but(logging=config.logging.but(report_to=["tensorboard"]))
    run = open_run(config)
    with tracked(config, run, group=None):
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(run.path / "tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR")
