"""Fetch the benchmarks in their original files: `python scripts/prepare_eval_data.py [names]`.

What is there is kept; the same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mos.console import fail
from mos.data.fetch import FetchError, Original, fetch, github

BBH = "9ee07bd481feebf959a6b59d61ea57bdcf30964d"
ORIGINALS = {
    "mmlu": [
        Original(
            "data.tar",
            "hf://datasets/cais/mmlu@c30699e8356da336a370243923dbaf21066bb9fe/data.tar",
            "bec563ba4bac1d6aaf04141cd7d1605d7a5ca833e38f994051e818489592989b",
            folders={"data/dev": "dev", "data/test": "test"},
        )
    ],
    "bbh": [
        Original(
            "bbh.zip",
            f"https://github.com/suzgunmirac/BIG-Bench-Hard/archive/{BBH}.zip",
            folders={f"BIG-Bench-Hard-{BBH}/{name}": name for name in ("bbh", "cot-prompts")},
        )
    ],
    "gsm8k": [
        Original(
            "test.jsonl",
            github(
                "openai/grade-school-math",
                "3101c7d5072418e28b9008a6636bde82a006892c",
                "grade_school_math/data/test.jsonl",
            ),
            "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        )
    ],
    "tydiqa": [
        Original(name, f"https://storage.googleapis.com/tydiqa/v1.1/{name}", sha256)
        for name, sha256 in {
            "tydiqa-goldp-v1.1-train.json": (
                "cefc8e09ff2548d9b10a678d3a6bbbe5bc036be543f92418819ea676c97be23b"
            ),
            "tydiqa-goldp-v1.1-dev.json": (
                "b286e0f34bc7f52259359989716f369b160565bd12ad8f3a3e311f9b0dbad1c0"
            ),
        }.items()
    ],
    "humaneval": [
        Original(
            "HumanEval.jsonl.gz",
            github(
                "openai/human-eval",
                "6d43fb980f9fee3c892a914eda09951f772ad10d",
                "data/HumanEval.jsonl.gz",
            ),
            "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
        )
    ],
}
BY_HAND = {
    "mmlu": "the folders dev and test of data.tar of github.com/hendrycks/test",
    "bbh": "the folders bbh and cot-prompts of github.com/suzgunmirac/BIG-Bench-Hard",
    "gsm8k": "grade_school_math/data/test.jsonl of github.com/openai/grade-school-math",
    "tydiqa": "tydiqa-goldp-v1.1-{train,dev}.json of github.com/google-research-datasets/tydiqa",
    "humaneval": "data/HumanEval.jsonl.gz of github.com/openai/human-eval (it is also in the"
    " package human-eval)",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="benchmark", help="all five if left out")
    parser.add_argument("--output", type=Path, default=Path("data/full"), help="data folder")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(ORIGINALS):
        parser.error(f"unknown benchmark {', '.join(unknown)}; known: {', '.join(ORIGINALS)}")
    missing = []
    for name in options.names or ORIGINALS:
        folder = options.output / name
        try:
            print(f"{name}: {fetch(ORIGINALS[name], folder)} files fetched into {folder}")
        except FetchError as error:
            missing.append(f"  {name}: {error}\n    By hand, into {folder}: {BY_HAND[name]}.")
    if missing:
        fail("not everything could be fetched; run this again to go on.\n" + "\n".join(missing))
    return 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
