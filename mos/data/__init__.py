"""Training data: originals -> conversations -> token ids with labels, cached."""

from mos.data.corpora import check_source, convert

__all__ = ["check_source", "convert", "load_training_data"]


def __getattr__(name: str):
    if name == "load_training_data":  # imports torch and transformers; conversion needs neither
        from mos.data.dataset import load_training_data

        return load_training_data
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
