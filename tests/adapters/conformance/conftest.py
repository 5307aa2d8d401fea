"""Every test of this folder that asks for `make_config` runs once for each method of ours."""

from __future__ import annotations

import pytest

from tests.adapters.tiny import CASES, MAIN_CASES, tiny_llama


def pytest_generate_tests(metafunc):
    for fixture, names in (("make_config", list(CASES)), ("make_main_config", MAIN_CASES)):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, [pytest.param(CASES[n], id=n) for n in names])


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory):
    """The tiny model as a folder that transformers loads."""
    path = tmp_path_factory.mktemp("tiny_llama")
    tiny_llama().save_pretrained(path)
    return path
