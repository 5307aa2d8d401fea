"""What the configs of all linear methods have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig
from safetensors import safe_open

from mos.methods import WEIGHTS

FORMAT_VERSION = 2


@dataclass
class FactoredConfig(PeftConfig):
    """What every linear method is told: which layers, which of them, what else to train.

    Args:
        target_modules: names or regex of the linear layers. Default: all of a decoder's but its
            head, those that PEFT takes for an encoder or encoder-decoder.
        exclude_modules: names or regex of layers to leave alone.
        layers_to_transform: indices of the blocks to adapt. Default: all.
        layers_pattern: name of the module list that `layers_to_transform` counts in.
        modules_to_save: further modules that are trained and saved in full.
        trainable_token_indices: rows of embeddings that are trained and saved, by layer name.
        init_weights: start from a zero update. False starts from a random one, for tests.
        format_version: version of the adapter file's layout.

    Raises:
        ValueError: values that do not go together, or a file of a newer version.
    """

    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    trainable_token_indices: dict[str, list[int]] | None = field(default=None)
    init_weights: bool = field(default=True)
    format_version: int = field(default=FORMAT_VERSION)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"The adapter has format_version={self.format_version!r}, but this version of mos "
                f"reads version {FORMAT_VERSION}. Upgrade mos, or save the adapter with this one."
            )
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("`layers_to_transform` needs `target_modules` to be a list of names.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("`layers_pattern` needs `layers_to_transform`.")
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))

    def check_whole(self, name: str, least: int, most: int | None = None) -> None:
        """Refuse a value that is not a whole number between `least` and `most`.

        Raises:
            ValueError: naming it.
        """
        value = getattr(self, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < least or (most is not None and value > most):
            upper = "" if most is None else f" and at most {most}"
            raise ValueError(f"{name}={value!r} must be an integer of at least {least}{upper}.")

    def check_dropout(self, name: str) -> None:
        """Refuse a probability of dropout outside of [0, 1).

        Raises:
            ValueError: naming it.
        """
        if not 0 <= getattr(self, name) < 1:
            raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1).")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        """As PEFT's. The tensors beside the config must be of the sizes that it says, so that a
        config that was edited is refused before memory is taken for it.

        Raises:
            ValueError: they are not.
        """
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        if isinstance(config, FactoredConfig):
            config.check_folder(Path(pretrained_model_name_or_path, subfolder or ""))
        return config

    def check_folder(self, folder: Path) -> None:
        """`check_file` with the adapter's file in a folder, if it is there.

        Raises:
            ValueError: naming the tensor.
        """
        if (file := folder / WEIGHTS).is_file():
            with safe_open(file, framework="pt") as tensors:
                keys = list(tensors.keys())
                self.check_file({k: tuple(tensors.get_slice(k).get_shape()) for k in keys})

    def check_file(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check the shapes of a file's tensors against this config, as far as it tells them.

        Raises:
            ValueError: naming the tensor.
        """
        for key, shape in shapes.items():
            for part, (axis, size) in self.file_sizes().items():
                if part in key and shape[axis] != size:
                    expected = tuple(size if i == axis else n for i, n in enumerate(shape))
                    raise ValueError(
                        f"shape {shape}, expected {expected} by adapter_config.json: {key}. "
                        "The config is not the one that was saved beside this file."
                    )

    def file_sizes(self) -> dict[str, tuple[int, int]]:
        """Part of a tensor's name -> (axis, size there by this config)."""
        return {}
