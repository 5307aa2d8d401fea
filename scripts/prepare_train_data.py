"""Fetch the original training corpora: `python scripts/prepare_train_data.py [names]`.

What is there is kept; the same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mos.console import fail
from mos.data.corpora import CORPORA
from mos.data.cot import raw_originals
from mos.data.fetch import FetchError, fetch


def main(arguments: list[str] | None = None) -> int:
    known = {name: corpus for name, corpus in CORPORA.items() if corpus.originals}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="corpus", help=f"of {', '.join(known)}")
    parser.add_argument("--root", type=Path, default=Path("data/full"), help="data folder")
    parser.add_argument(
        "--raw-cot", action="store_true", help="FLAN's raw rationales instead of Tulu's files"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(known):
        parser.error(f"unknown corpus {', '.join(unknown)}: expected of {', '.join(known)}")
    missing = []
    for name in options.names or known:
        corpus = known[name]
        folder = options.root / corpus.folder
        try:
            raw = name == "cot" and options.raw_cot
            new = fetch(raw_originals() if raw else corpus.originals(folder), folder)
            print(f"{name}: {new} files fetched into {folder}")
        except FetchError as error:
            by_hand = corpus.where.partition(", or ")[2]
            missing.append(f"  {name}: {error}\n    By hand, into {folder}: {by_hand}")
    if missing:
        fail("not everything could be fetched; run this again to go on.\n" + "\n".join(missing))
    return 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
