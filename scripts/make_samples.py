"""Write the sample corpora and benchmarks: `python scripts/make_samples.py [folder]`.

Everything is made from the hand-written sources in `scripts/samples/text` and from seeded
generators, so a second run gives the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from samples import (
    bbh,
    code_alpaca,
    cot,
    flan,
    gsm8k,
    humaneval,
    mmlu,
    natural_instructions,
    tydiqa,
)

SAMPLES = Path(__file__).resolve().parent.parent / "data" / "samples"
PARTS = (natural_instructions, flan, cot, code_alpaca, mmlu, bbh, gsm8k, tydiqa, humaneval)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=SAMPLES)
    folder = parser.parse_args().folder
    for part in PARTS:
        part.write(folder)
    print(f"Wrote {folder}")


if __name__ == "__main__":
    main()
