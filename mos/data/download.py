"""Getting original files: resumable, verified downloads that do nothing twice.

A file is downloaded beside its place (`<name>.part`), checked, and moved into place whole, so that
a file in place is a checked one. What was checked is remembered in `.downloads.json` under its
size and SHA-256; a later call finds it and fetches nothing.
"""

from __future__ import annotations

import http.client
import json
import shutil
import tarfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Literal
from urllib.parse import quote

import httpx
from filelock import FileLock
from huggingface_hub import constants, get_hf_file_metadata
from huggingface_hub.errors import HfHubHTTPError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from mos.data.verify import problem_with, sha256_of
from mos.errors import UserError

CHUNK = 1 << 20
RECORD = ".downloads.json"
Outcome = Literal["present", "downloaded"]


class DownloadError(UserError):
    """A file could not be had; the message says why, and how to get it by hand."""


@dataclass(frozen=True)
class RemoteFile:
    """A file to have, and how to know that it is whole.

    Attributes:
        path: where it goes, relative to the data folder.
        urls: addresses to try in order (https, http, file).
        by_hand: what a person can do where no address works.
        sha256: its checksum, if known; for files on the hub it is asked for there.
        git_sha1: its git blob hash, if known.
        size: its length in bytes, if known.
        rows: how many rows it holds, if known; counted by `count_rows`.
        members: for an archive (zip, tar), patterns of members -> folder, relative to the data
            folder, they are unpacked to by their base name; the archive itself is not kept.
    """

    path: str
    urls: tuple[str, ...]
    by_hand: str
    sha256: str | None = None
    git_sha1: str | None = None
    size: int | None = None
    rows: int | None = None
    members: Mapping[str, str] | None = None


def hub_url(repo: str, name: str, revision: str = "main", kind: str = "datasets") -> str:
    """Address of a file on the hub, of a `datasets` or `models` repository."""
    prefix = "" if kind == "models" else f"{kind}/"
    return f"{constants.ENDPOINT}/{prefix}{repo}/resolve/{revision}/{quote(name)}"


def github_url(repo: str, name: str, revision: str) -> str:
    """Address of a file of a GitHub repository at a commit."""
    return f"https://raw.githubusercontent.com/{repo}/{revision}/{quote(name)}"


def download_all(
    files: Sequence[RemoteFile],
    root: str | Path,
    *,
    console: Console | None = None,
    retries: int = 5,
    workers: int = 4,
    backoff_s: float = 1.0,
) -> dict[str, Outcome]:
    """Have every file in `root`; what can be had is had before a failure is raised.

    Safe under two processes at once: the second waits, then finds the files.

    Args:
        files: what to have.
        root: data folder.
        console: for progress; standard error by default.
        retries: attempts per address, each continuing where the last one broke off.
        workers: files at a time.
        backoff_s: pause before the second attempt, doubled each time.

    Returns:
        path -> "present" or "downloaded".

    Raises:
        DownloadError: naming every file that is missing, why, and how to get it by hand.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    console = console or Console(stderr=True)
    outcomes: dict[str, Outcome] = {}
    failures: dict[str, DownloadError] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with FileLock(root / f"{RECORD}.lock"), Progress(*columns, console=console) as progress:
        record = _Record(root / RECORD)
        fetcher = _Fetcher(root, record, progress, retries, backoff_s)

        def attempt(file: RemoteFile) -> None:
            try:
                outcomes[file.path] = fetcher.have(file)
            except DownloadError as error:
                failures[file.path] = error

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(attempt, files))
    if failures:
        raise DownloadError(_summary(files, failures, root))
    return {file.path: outcomes[file.path] for file in files}


class _Record:
    """What was verified, under its size and checksum; one JSON file a data folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.entries: dict[str, dict] = json.loads(path.read_text()) if path.is_file() else {}

    def add(self, name: str, entry: dict) -> None:
        with self.lock:
            self.entries[name] = entry
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.entries, indent=1, sort_keys=True))
            partial.replace(self.path)


class _Fetcher:
    def __init__(
        self, root: Path, record: _Record, progress: Progress, retries: int, backoff_s: float
    ) -> None:
        self.root = root
        self.record = record
        self.progress = progress
        self.retries = retries
        self.backoff_s = backoff_s

    def have(self, file: RemoteFile) -> Outcome:
        target = self.root / file.path
        if file.members is None and target.is_file():
            self._verify_in_place(file, target)
            return "present"
        if file.members is not None and self._unpacked(file):
            return "present"
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        errors = []
        for url in file.urls:
            try:
                wanted, location = self._ask_hub(file, url)
                self._fetch(location, part, wanted)
                if problem := problem_with(wanted, part):
                    _discard(part)
                    raise DownloadError(f"{url}: the file {problem}")
                if file.members is None:
                    part.replace(target)
                    self._remember(file, target, url)
                else:
                    self._unpack(file, part, url)
            except DownloadError as error:
                errors.append(str(error))
                continue
            _discard(part)
            return "downloaded"
        raise DownloadError("; ".join(errors))

    def _ask_hub(self, file: RemoteFile, url: str) -> tuple[RemoteFile, str]:
        """For a file on the hub: its checksum there, and an address that needs no token."""
        if not url.startswith(constants.ENDPOINT):
            return file, url
        try:
            known = get_hf_file_metadata(url)
        except (OSError, httpx.HTTPError, HfHubHTTPError) as error:
            raise DownloadError(f"{url}: {error}") from error
        etag = known.etag or ""  # a file in LFS has its SHA-256 there, another its git hash
        file = replace(
            file,
            sha256=file.sha256 or (etag if len(etag) == 64 else None),
            git_sha1=file.git_sha1 or (etag if len(etag) == 40 else None),
            size=file.size or known.size,
        )
        return file, known.location

    def _fetch(self, url: str, part: Path, file: RemoteFile) -> None:
        task = self.progress.add_task(Path(file.path).name, total=file.size)
        try:
            for attempt in range(self.retries):
                if attempt:
                    time.sleep(self.backoff_s * 2 ** (attempt - 1))
                try:
                    _continue_download(
                        url,
                        part,
                        lambda done, total: self.progress.update(task, completed=done, total=total),
                    )
                    return
                except urllib.error.HTTPError as error:
                    reason = f"{url}: HTTP {error.code} {error.reason}"
                    if error.code < 500 and error.code not in (408, 429):
                        break
                except (OSError, http.client.HTTPException) as error:
                    reason = f"{url}: {getattr(error, 'reason', None) or error}"
            raise DownloadError(reason)
        finally:
            self.progress.remove_task(task)

    def _verify_in_place(self, file: RemoteFile, path: Path) -> None:
        known = self.record.entries.get(file.path)
        if known and known["size"] == path.stat().st_size:
            if file.sha256 in (None, known["sha256"]):
                return
        elif known:
            raise DownloadError(
                f"{path} has changed since it was downloaded; delete it to download it again"
            )
        if problem := problem_with(file, path):
            raise DownloadError(f"{path} is there but {problem}; delete it to download it again")
        self._remember(file, path, "found in place")

    def _remember(self, file: RemoteFile, path: Path, origin: str) -> None:
        self.record.add(
            file.path,
            {"size": path.stat().st_size, "sha256": sha256_of(path), "origin": origin},
        )

    def _unpacked(self, file: RemoteFile) -> bool:
        known = self.record.entries.get(file.path)
        return known is not None and all(
            (self.root / name).is_file() and (self.root / name).stat().st_size == size
            for name, size in known["members"].items()
        )

    def _unpack(self, file: RemoteFile, archive: Path, url: str) -> None:
        assert file.members is not None
        sizes: dict[str, int] = {}
        try:
            for name, source in _members(archive):
                member = PurePosixPath(name)
                folders = [to for pattern, to in file.members.items() if member.match(pattern)]
                if not folders:
                    continue
                target = self.root / folders[0] / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(target.name + ".part")
                with partial.open("wb") as out:
                    shutil.copyfileobj(source, out)
                partial.replace(target)
                sizes[str(target.relative_to(self.root))] = target.stat().st_size
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            _discard(archive)
            raise DownloadError(f"{url}: not a readable archive: {error}") from error
        if not sizes:
            raise DownloadError(f"{url}: the archive holds none of {', '.join(file.members)}")
        self.record.add(file.path, {"sha256": sha256_of(archive), "origin": url, "members": sizes})


def _continue_download(url: str, part: Path, progress: Callable[[int, int | None], None]) -> None:
    """Append what is missing to `part`, or start over if the file at `url` has changed."""
    done = part.stat().st_size if part.is_file() else 0
    validator = _validator_path(part)
    request = urllib.request.Request(url, headers={"User-Agent": "mos-tuning"})
    if done and validator.is_file():
        request.add_header("Range", f"bytes={done}-")
        request.add_header("If-Range", validator.read_text())
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        part.unlink()  # as long as, or longer than, what is there now: begin again
        raise ConnectionError("the partial file does not fit; starting over") from error
    with response:
        resumed = getattr(response, "status", None) == 206
        done = done if resumed else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if tag and not tag.startswith("W/"):
            validator.write_text(tag)
        else:
            validator.unlink(missing_ok=True)
        with part.open("ab" if resumed else "wb") as out:
            while chunk := response.read(CHUNK):
                out.write(chunk)
                done += len(chunk)
                progress(done, total)
    if total is not None and done != total:
        raise ConnectionError(f"broke off after {done} of {total} bytes")


def _validator_path(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator_path(part).unlink(missing_ok=True)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if not info.is_dir():
                    with zipped.open(info) as source:
                        yield info.filename, source
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and (content := tar.extractfile(member)) is not None:
                yield member.name, content


def _summary(files: Sequence[RemoteFile], failures: Mapping[str, DownloadError], root: Path) -> str:
    lines = [f"{len(failures)} of {len(files)} files could not be had in {root}:"]
    shown = [file for file in files if file.path in failures]
    lines += [f"  {file.path}: {failures[file.path]}" for file in shown[:10]]
    if len(shown) > 10:
        lines.append(f"  and {len(shown) - 10} more")
    lines += [f"By hand: {hint}" for hint in dict.fromkeys(file.by_hand for file in shown)]
    lines.append("Run the same command again to go on; what is there is kept.")
    return "\n".join(lines)
