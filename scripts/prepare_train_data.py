"""Download the original training corpora: verified, resumable, nothing twice.

python scripts/prepare_train_data.py [super_ni flan_v2 cot code_alpaca] [--root data/full]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from mos.data.sources import FOLDERS, prepare
from mos.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", nargs="*", help=f"of {', '.join(FOLDERS)}; all by default")
    parser.add_argument("--root", type=Path, default=Path("data/full"), help="data folder")
    parser.add_argument(
        "--raw-cot", action="store_true", help="FLAN's raw rationales instead of Tulu's files"
    )
    options = parser.parse_args()
    corpora = options.corpora or list(FOLDERS)
    if unknown := set(corpora) - set(FOLDERS):
        parser.error(f"unknown corpus {', '.join(unknown)}: expected of {', '.join(FOLDERS)}")
    console = Console(stderr=True)
    failed = False
    for corpus in corpora:
        try:
            outcomes = prepare(corpus, options.root, raw_cot=options.raw_cot, console=console)
        except UserError as error:
            console.print(f"[red]{corpus}[/red]", str(error), sep="\n", highlight=False)
            failed = True
            continue
        new = sum(outcome == "downloaded" for outcome in outcomes.values())
        console.print(f"{corpus}: {new} files downloaded, {len(outcomes) - new} there already")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
