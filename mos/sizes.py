"""Which settings a method's number of trainable parameters follows, and within which bounds.

What `mos plan budget=` searches. A method says it once, as `Method.sizes`: a function of its
options, as its file in configs/adapter has them, and of the layers that it adapts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layers:
    """The layers that an adapter is put on: their paths, and their (in, out) features."""

    names: tuple[str, ...]
    features: tuple[tuple[int, int], ...]

    @property
    def rank(self) -> int:
        """The largest rank that an update can have."""
        return max(min(widths) for widths in self.features)

    @property
    def width(self) -> int:
        """Features in and out of all layers: the numbers in their A and B, for each rank."""
        return sum(map(sum, self.features))

    @property
    def divisor(self) -> int:
        """The largest number that divides all features."""
        return math.gcd(*(width for widths in self.features for width in widths))

    @property
    def sharing(self) -> int:
        """Layers of the type, by name and shape, that has the fewest."""
        types = zip(self.names, self.features, strict=True)
        return min(Counter((n.rpartition(".")[2], widths) for n, widths in types).values())


@dataclass(frozen=True)
class Sizes:
    """Settings in a row, of which each has at least as many parameters as the one before.

    Args:
        least: number of the first.
        most: number of the last.
        settings: number -> options that take the place of the file's.
    """

    least: int
    most: int
    settings: Callable[[int], dict[str, Any]]


Search = Callable[[Mapping[str, Any], Layers], Sequence[Sizes]]


def by_rank(least: str | None = None) -> Search:
    """Ranks from 1, or from the option named `least`, to the largest that an update can have."""

    def search(options: Mapping[str, Any], layers: Layers) -> list[Sizes]:
        first = max(1, options[least]) if least else 1
        return [Sizes(first, layers.rank, lambda r: {"r": r})]

    return search


RANKS = by_rank()


def mos_sizes(options: Mapping[str, Any], layers: Layers) -> list[Sizes]:
    """Equivalent ranks e. r keeps its ratio to e, up to what the pools have shards for."""
    private, ratio = options["private_rank"], (options["r"], options["equivalent_rank"])

    def settings(e: int) -> dict[str, Any]:
        found = {"equivalent_rank": e, **_dividing("shards_per_vector", options, layers)}
        if ratio[0] == "all":
            return found
        fits = private + (e - private) * layers.sharing
        return {**found, "r": min(math.ceil(e * ratio[0] / ratio[1]), fits, layers.rank)}

    return [Sizes(max(1, private), layers.rank, settings)]


def vblora_sizes(options: Mapping[str, Any], layers: Layers) -> list[Sizes]:
    """Vectors in the bank: no fewer than are mixed, no more than A and B have parts."""
    dividing = _dividing("vector_length", options, layers)
    parts = options["r"] * layers.width // {**options, **dividing}["vector_length"]
    return [Sizes(options["topk"], parts, lambda h: {"num_vectors": h, **dividing})]


def unilora_sizes(options: Mapping[str, Any], layers: Layers) -> list[Sizes]:
    """Lengths of the vector, up to the numbers in A and B that are read from it."""
    return [Sizes(1, options["r"] * layers.width, lambda d: {"theta_d_length": d})]


def randlora_sizes(options: Mapping[str, Any], layers: Layers) -> list[Sizes]:
    """Ranks by the parameters that they make: a higher one needs fewer bases. alpha / r is kept."""
    narrow = Counter(min(widths) for widths in layers.features)

    def parameters(r: int) -> int:
        return sum(n * math.ceil(width / r) * (r + width) for width, n in narrow.items())

    ranks = sorted(range(1, layers.rank + 1), key=parameters)

    def settings(place: int) -> dict[str, Any]:
        r = ranks[place]
        return {"r": r, "randlora_alpha": options["randlora_alpha"] * r // options["r"]}

    return [Sizes(0, layers.rank - 1, settings)]


def lokr_sizes(options: Mapping[str, Any], layers: Layers) -> list[Sizes]:
    """Ranks that leave no second matrix whole, which is larger the smaller the first one is."""
    from peft.tuners.lokr.layer import factorization

    def row(factor: int, changed: dict[str, int]) -> Sizes:
        sides = (max(factorization(n, factor)[1] for n in widths) for widths in layers.features)
        most = max(1, (min(sides) - 1) // 2)
        return Sizes(1, most, lambda r: {"r": r, **changed})

    factor = options["decompose_factor"]
    others = (16, 8, 4, 2) if factor == -1 else ()
    return [row(factor, {}), *(row(f, {"decompose_factor": f}) for f in others)]


def _dividing(key: str, options: Mapping[str, Any], layers: Layers) -> dict[str, int]:
    """The option where it divides all widths (no change), or else its largest divisor that does."""
    fits = math.gcd(options[key], layers.divisor)
    return {} if fits == options[key] else {key: fits}
