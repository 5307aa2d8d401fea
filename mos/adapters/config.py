"""What the configs of all linear methods have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig

# 2: trained tensors are stored as `<name>.weight`, and shared ones under the base model.
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
        version = self.format_version
        if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise ValueError(
                f"The adapter has format_version={version!r}, but this version of mos reads "
                f"versions 1 to {FORMAT_VERSION}. Upgrade mos, or save the adapter with this one."
            )
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("`layers_to_transform` needs `target_modules` to be a list of names.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("`layers_pattern` needs `layers_to_transform`.")
