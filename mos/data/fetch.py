"""Fetching files as their publishers have them, each pinned by its content or by a commit."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mos.errors import UserError
from mos.files import build_once, hash_json

RETRIES = 1


class FetchError(UserError):
    """A file could not be had; the message says which, and why."""


@dataclass(frozen=True)
class Original:
    """A file to have.

    Attributes:
        path: where it goes, relative to the folder of its corpus or benchmark.
        url: an https address, or `hf://datasets/<owner>/<name>@<commit>/<file>` on the hub.
        sha256: of its content; None where the address names a commit.
        folders: for an archive (.zip, .tar): a folder in it -> the name it gets beside `path`. The
            archive itself is not kept.
    """

    path: str
    url: str
    sha256: str | None = None
    folders: Mapping[str, str] = field(default_factory=dict)


def github(repo: str, commit: str, name: str) -> str:
    """Address of a file of a GitHub repository at a commit."""
    return f"https://raw.githubusercontent.com/{repo}/{commit}/{name}"


def fetch(originals: Iterable[Original], folder: str | Path) -> int:
    """Have every file in `folder`; what is there is kept.

    Returns:
        How many files were fetched.

    Raises:
        FetchError: at the first file that cannot be had. What was fetched before is kept, and a
            folder that stays empty is removed.
    """
    from rich.progress import track

    folder = Path(folder)
    missing = [original for original in originals if not _in_place(original, folder)]
    many = len(missing) > 5
    for original in track(missing, f"{folder.name}:", transient=True, disable=not many):
        target = folder / original.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
                _download(original, Path(scratch), progress=not many)
                for source, name in (original.folders or {target.name: target.name}).items():
                    Path(scratch, source).replace(target.with_name(name))
        except (OSError, ValueError, RuntimeError) as error:
            raise FetchError(f"{original.url}: {_reason(error)}") from error
        finally:
            with suppress(OSError):
                os.removedirs(target.parent)
    return len(missing)


def _in_place(original: Original, folder: Path) -> bool:
    target = folder / original.path
    if original.folders:
        return all(target.with_name(name).is_dir() for name in original.folders.values())
    if target.is_file() and original.sha256:
        import pooch

        if pooch.file_hash(str(target)) != original.sha256:
            raise FetchError(
                f"{target} is there, but is not the file that was expected (SHA-256"
                f" {original.sha256}). Delete it to fetch it again."
            )
    return target.is_file()


def _download(original: Original, scratch: Path, progress: bool) -> None:
    """Have a file, or the folders of an archive, in `scratch`."""
    import pooch

    pooch.get_logger().setLevel("ERROR")
    name = Path(original.path).name
    unpack: Any = None
    if original.folders:
        unpacker = pooch.Untar if name.endswith(".tar") else pooch.Unzip
        unpack = unpacker(members=list(original.folders), extract_dir=".")
    files = pooch.create(
        path=scratch,
        base_url="",
        registry={name: original.sha256},
        urls={name: original.url},
        retry_if_failed=RETRIES,
    )
    downloader = _from_hub if original.url.startswith("hf://") else None
    files.fetch(name, processor=unpack, downloader=downloader, progressbar=progress)


def _from_hub(url: str, output_file: str, _: Any) -> None:
    import requests
    from huggingface_hub import constants, hf_hub_download

    requests.head(constants.ENDPOINT, timeout=30)  # hf_hub_download tries for half a minute
    kind, owner, name, file = url.removeprefix("hf://").split("/", 3)
    name, commit = name.split("@")
    with tempfile.TemporaryDirectory(dir=Path(output_file).parent) as folder:
        path = hf_hub_download(
            f"{owner}/{name}",
            file,
            repo_type=kind.removesuffix("s"),
            revision=commit,
            local_dir=folder,
        )
        shutil.move(path, output_file)


def is_on_hub(source: str | Path) -> bool:
    """Whether a source is `owner/name` or `owner/name@revision`, and no path of this machine."""
    path = Path(source)
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", str(source))
    return bool(is_name) and not path.exists() and not path.parent.exists()


def from_hub(source: str, split: str | None, cache_dir: str | Path) -> Path:
    """The parquet file of a split of a data set on the hub, or the folder of all its splits.

    Fetched once: name a revision to have another later.

    Raises:
        FetchError: there is none of that name, or it cannot be had.
    """
    name, _, revision = source.partition("@")

    def build(folder: Path) -> None:
        from datasets import load_dataset

        try:
            data: Any = load_dataset(name, split=split, revision=revision or None)
        except Exception as error:  # each kind of data set has its own
            raise FetchError(
                f"data.source={source}: no such file or folder here, and no data set of the hub"
                f" could be had{f' with data.split={split}' if split else ''} ({_reason(error)})."
            ) from error
        for part, rows in ({"rows": data} if split else data).items():
            rows.to_parquet(folder / f"{part}.parquet")

    folder = build_once(Path(cache_dir) / "hub" / hash_json([source, split])[:24], build)
    return folder / "rows.parquet" if split else folder


def _reason(error: Exception) -> str:
    from requests.exceptions import ConnectionError as NoConnection

    if isinstance(error, NoConnection):
        return "no connection"
    return " ".join(str(error).split("\n\n")[0].split())
