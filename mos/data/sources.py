"""Where the original training corpora are to be had, as the pinned reference got them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mos.data import code_alpaca, cot, flan_v2, super_ni
from mos.data.download import (
    DownloadError,
    Outcome,
    RemoteFile,
    download_all,
    github_url,
    hub_url,
)
from mos.data.verify import count_rows

FOLDERS = {
    "super_ni": "natural-instructions",
    "flan_v2": "flan_v2",
    "cot": "cot",
    "code_alpaca": "codealpaca",
}
TULU_STORE = "hamishivi/tulu_mix_store"
NATURAL_INSTRUCTIONS = "allenai/natural-instructions"
TREE_URL = f"https://api.github.com/repos/{NATURAL_INSTRUCTIONS}/git/trees/master?recursive=1"
CODE_ALPACA = "sahil280114/codealpaca"
FLAN = "google-research/FLAN"
FLAN_COMMIT = "e9e4ec6e2701182c7a91af176f705310da541277"
RAW_COT = {  # task -> (rows, SHA-256), as far as known
    "aqua": (2728, "2e43bd7900e739a78d7b7b7444e19bae4259399327eb76b78a30f4e4fb7dfdda"),
    "creak": (6915, "ee6b9a3d88fbc1bdf7cd751c7f266edfc4c15e475560408ffb79490b2fe7bdea"),
    "ecqa": (7112, "cf6967d587851f25a834cdd16c73f17a4da08bae5b8821922a64b3107160e01c"),
    "esnli": (None, None),
    "gsm8k": (7473, "acecbb7438cccae1b2eaa212a291c127ece02670d8bb39600164ab20f1d759a7"),
    "qasc": (1084, "566ba8c3945b5fe8e3125ca4919c15f36e1067b881c251e75d071ad38c861b9a"),
    "qed": (None, None),
    "sensemaking": (6070, "c978b40455ed62b1755956f25327c7cec6f9d4954f7185e6fb14b03db74c65af"),
    "strategyqa": (2061, "0e56b9f46b4d1569e45bf4c7f10d7854be81ae62303098fbd03d3e0bf912201f"),
}


def prepare(
    corpus: str, root: str | Path, *, raw_cot: bool = False, console: Console | None = None
) -> dict[str, Outcome]:
    """Download the originals of a corpus into `root`, in the layout that `convert` reads.

    Args:
        corpus: one of `FOLDERS`.
        root: data folder; the corpus goes into its folder there.
        raw_cot: for cot, FLAN's raw rationales instead of Tulu's sampled files.
        console: for progress.

    Raises:
        DownloadError: what could not be had, and how to get it by hand.
    """
    if corpus == "super_ni":
        return _prepare_super_ni(Path(root), console)
    files = {"flan_v2": _flan_v2, "cot": _raw_cot if raw_cot else _cot, "code_alpaca": _code_alpaca}
    return download_all(files[corpus](), root, console=console)


def _flan_v2() -> list[RemoteFile]:
    name = flan_v2.FILE
    return [
        RemoteFile(
            f"{FOLDERS['flan_v2']}/{name}",
            (hub_url(TULU_STORE, name),),
            flan_v2.WHERE,
            rows=100_000,
        )
    ]


def _cot() -> list[RemoteFile]:
    return [
        RemoteFile(f"{FOLDERS['cot']}/{name}", (hub_url(TULU_STORE, name),), cot.WHERE)
        for name in cot.FILES
    ]


def _raw_cot() -> list[RemoteFile]:
    return [
        RemoteFile(
            f"{FOLDERS['cot']}/{task}_train.tsv",
            (github_url(FLAN, f"flan/v2/cot_data/{task}_train.tsv", FLAN_COMMIT),),
            cot.WHERE,
            sha256=checksum,
            rows=rows,
        )
        for task, (rows, checksum) in RAW_COT.items()
    ]


def _code_alpaca() -> list[RemoteFile]:
    name = code_alpaca.FILE
    return [
        RemoteFile(
            f"{FOLDERS['code_alpaca']}/{name}",
            (
                github_url(CODE_ALPACA, f"data/{name}", "master"),
                hub_url("sahil2801/CodeAlpaca-20k", name),
            ),
            code_alpaca.WHERE,
            rows=20_022,
        )
    ]


def _prepare_super_ni(root: Path, console: Console | None) -> dict[str, Outcome]:
    """The tasks of the reference's split, each verified by its git hash.

    The listing is fetched once; files that changed upstream since then are refused.
    """
    folder = FOLDERS["super_ni"]
    listing = RemoteFile(f"{folder}/tree.json", (TREE_URL,), super_ni.WHERE)
    split = f"splits/{super_ni.SPLITS[0]}/{super_ni.LISTS[0]}"
    outcomes = download_all([listing], root, console=console)
    tree = json.loads((root / listing.path).read_bytes())
    blobs = {entry["path"]: entry["sha"] for entry in tree["tree"] if entry["type"] == "blob"}

    def remote(names: Sequence[str]) -> list[RemoteFile]:
        unknown = [name for name in names if name not in blobs]
        if unknown:
            raise DownloadError(
                f"{NATURAL_INSTRUCTIONS} has no {unknown[0]} ({len(unknown)} files missing)."
                f" {super_ni.WHERE}"
            )
        return [
            RemoteFile(
                f"{folder}/{name}",
                (github_url(NATURAL_INSTRUCTIONS, name, "master"),),
                super_ni.WHERE,
                git_sha1=blobs[name],
            )
            for name in names
        ]

    outcomes |= download_all(remote([split]), root, console=console)
    tasks = [t for t in (root / folder / split).read_text("utf-8").split() if "_mmmlu_" not in t]
    outcomes |= download_all(
        remote([f"tasks/{task}.json" for task in tasks]), root, console=console, workers=8
    )
    empty = [task for task in tasks if not count_rows(root / folder / "tasks" / f"{task}.json")]
    if empty:
        raise DownloadError(f"super_ni: tasks without instances: {', '.join(empty[:5])}.")
    return outcomes
