"""Downloads against a loopback server that breaks off, changes its mind, and counts."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from mos.data import download as module
from mos.data import sources
from mos.data.download import DownloadError, RemoteFile, download_all
from mos.data.verify import count_rows

BODY = b"".join(b'{"row": %d}\n' % i for i in range(20_000))
QUIET = Console(quiet=True)


class Server(ThreadingHTTPServer):
    """Serves `files`; `break_after[path]` cuts the next answer for that path short."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.break_after: dict[str, list[int]] = {}
        self.requests: list[tuple[str, str | None, int]] = []

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        body = self.server.files.get(self.path)
        asked = self.headers.get("Range")
        if body is None:
            self.server.requests.append((self.path, asked, 404))
            self.send_error(404)
            return
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        start, status = 0, 200
        if asked and self.headers.get("If-Range") == etag:
            start, status = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]), 206
            if start >= len(body):
                self.server.requests.append((self.path, asked, 416))
                self.send_error(416)
                return
        if with_body:
            self.server.requests.append((self.path, asked, status))
        self.send_response(status)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if not with_body:
            return
        cuts = self.server.break_after.get(self.path, [])
        self.wfile.write(body[start : start + cuts.pop(0)] if cuts else body[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def get(files, root, **options):
    return download_all(files, root, console=QUIET, backoff_s=0.0, **options)


def remote(server, path="/a.jsonl", **known):
    return RemoteFile(f"x{path}", (server.url(path),), "Ask the librarian.", **known)


def test_broken_downloads_go_on_where_they_stopped(server, tmp_path):
    server.files["/a.jsonl"] = BODY
    server.break_after["/a.jsonl"] = [100_000, 50_000]
    file = remote(server, sha256=hashlib.sha256(BODY).hexdigest(), size=len(BODY), rows=20_000)
    assert get([file], tmp_path) == {"x/a.jsonl": "downloaded"}
    assert (tmp_path / "x" / "a.jsonl").read_bytes() == BODY
    ranges = [asked for _, asked, _ in server.requests]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert not list(tmp_path.glob("x/*.part*"))


def test_downloads_go_on_in_a_later_run(server, tmp_path):
    server.files["/a.jsonl"] = BODY
    server.break_after["/a.jsonl"] = [100_000]
    with pytest.raises(DownloadError, match="broke off after 100000 of"):
        get([remote(server)], tmp_path, retries=1)
    assert not (tmp_path / "x" / "a.jsonl").exists()
    get([remote(server)], tmp_path)
    assert (tmp_path / "x" / "a.jsonl").read_bytes() == BODY
    assert server.requests[-1][1:] == ("bytes=100000-", 206)


def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(server, tmp_path):
    server.files["/a.jsonl"] = BODY
    server.break_after["/a.jsonl"] = [100_000]
    with pytest.raises(DownloadError):
        get([remote(server)], tmp_path, retries=1)
    server.files["/a.jsonl"] = changed = BODY[::-1]
    get([remote(server)], tmp_path)
    assert (tmp_path / "x" / "a.jsonl").read_bytes() == changed
    server.break_after["/b.jsonl"] = [100_000]
    server.files["/b.jsonl"] = BODY
    with pytest.raises(DownloadError):
        get([remote(server, "/b.jsonl")], tmp_path, retries=1)
    server.files["/b.jsonl"] = BODY[:100_000]
    (tmp_path / "x" / "b.jsonl.part.etag").write_text(
        f'"{hashlib.sha256(BODY[:100_000]).hexdigest()}"'
    )
    get([remote(server, "/b.jsonl")], tmp_path)  # answered 416: begins again
    assert (tmp_path / "x" / "b.jsonl").read_bytes() == BODY[:100_000]


def test_nothing_twice(server, tmp_path):
    server.files["/a.jsonl"] = BODY
    get([remote(server)], tmp_path)
    count = len(server.requests)
    assert get([remote(server)], tmp_path) == {"x/a.jsonl": "present"}
    assert len(server.requests) == count
    record = json.loads((tmp_path / ".downloads.json").read_text())["x/a.jsonl"]
    assert record["sha256"] == hashlib.sha256(BODY).hexdigest()
    assert record["origin"] == server.url("/a.jsonl")


def test_files_put_in_place_by_hand_are_verified(server, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.jsonl").write_bytes(BODY)
    file = remote(server, rows=20_000)
    assert get([file], tmp_path) == {"x/a.jsonl": "present"}
    assert not server.requests
    (tmp_path / "x" / "a.jsonl").write_bytes(BODY[:50])
    with pytest.raises(DownloadError, match="has changed since it was downloaded"):
        get([file], tmp_path)
    (tmp_path / ".downloads.json").unlink()
    with pytest.raises(DownloadError, match=r"is there but has 5 rows .*delete it"):
        get([file], tmp_path)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"sha256": "0" * 64}, "has SHA-256"),
        ({"git_sha1": "0" * 40}, "has git hash"),
        ({"size": 7}, "bytes where 7 were expected"),
        ({"rows": 7}, "has 20000 rows where 7 were expected"),
    ],
)
def test_wrong_content_is_refused(server, tmp_path, known, message):
    server.files["/a.jsonl"] = BODY
    with pytest.raises(DownloadError, match=message):
        get([remote(server, **known)], tmp_path)
    assert [p.name for p in (tmp_path / "x").iterdir()] == []


def test_failures_name_every_file_and_how_to_get_it_by_hand(server, tmp_path):
    server.files["/b.jsonl"] = b"{}\n"
    files = [remote(server, path) for path in ("/a.jsonl", "/b.jsonl", "/c.jsonl")]
    with pytest.raises(DownloadError) as caught:
        get(files, tmp_path)
    message = str(caught.value)
    assert "2 of 3 files" in message
    assert "x/a.jsonl: " in message
    assert "HTTP 404" in message
    assert message.count("Ask the librarian.") == 1
    assert (tmp_path / "x" / "b.jsonl").is_file()  # what could be had was
    assert sum(path == "/a.jsonl" for path, *_ in server.requests) == 1  # 404 is final


def test_the_next_address_is_tried(server, tmp_path):
    local = tmp_path / "mirror.jsonl"
    local.write_bytes(BODY)
    file = RemoteFile("a.jsonl", (server.url("/gone"), local.as_uri()), "", rows=20_000)
    assert get([file], tmp_path / "root") == {"a.jsonl": "downloaded"}


def test_archives_are_unpacked_flat_and_not_twice(server, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("top/data/a.csv", "1\n")
        archive.writestr("top/data/../../../escape.csv", "1\n")
        archive.writestr("top/readme.txt", "no")
    server.files["/all.zip"] = buffer.getvalue()
    file = RemoteFile("all.zip", (server.url("/all.zip"),), "", members={"*.csv": "csv"})
    assert get([file], tmp_path / "root") == {"all.zip": "downloaded"}
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*") if p.is_file()}
    assert {"root/csv/a.csv", "root/csv/escape.csv"} <= found
    assert not any("readme" in name or name.endswith(".zip") for name in found)
    assert get([file], tmp_path / "root") == {"all.zip": "present"}
    (tmp_path / "root" / "csv" / "a.csv").unlink()
    assert get([file], tmp_path / "root") == {"all.zip": "downloaded"}
    server.files["/bad.zip"] = b"PK nonsense"
    with pytest.raises(DownloadError, match="not a readable archive"):
        get([RemoteFile("b", (server.url("/bad.zip"),), "", members={"*": "."})], tmp_path)


def test_checksums_of_hub_files_are_asked_for_there(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module.constants, "ENDPOINT", server.url(""))
    url = module.hub_url("owner/name", "a.jsonl")
    assert url == server.url("/datasets/owner/name/resolve/main/a.jsonl")
    server.files["/datasets/owner/name/resolve/main/a.jsonl"] = BODY
    monkeypatch.setattr(
        module,
        "get_hf_file_metadata",
        lambda u: type("Metadata", (), {"etag": "1" * 64, "size": len(BODY), "location": u})(),
    )
    with pytest.raises(DownloadError, match=f"has SHA-256 .* where {'1' * 64} was expected"):
        get([RemoteFile("a.jsonl", (url,), "")], tmp_path)


def test_count_rows(tmp_path):
    for name, content, rows in [
        ("a.jsonl", "{}\n\n{}\n", 2),
        ("a.json", "[1, 2, 3]", 3),
        ("b.json", '{"canary": "x", "examples": [1, 2]}', 2),
        ("a.tsv", "a\tb\n", 1),
    ]:
        (tmp_path / name).write_text(content)
        assert count_rows(tmp_path / name) == rows


def test_super_ni_takes_the_tasks_of_the_split_by_their_git_hashes(server, tmp_path, monkeypatch):
    task = json.dumps({"Definition": ["d"], "Positive Examples": [], "Instances": [{}]}).encode()
    files = {
        "splits/xlingual/train_tasks.txt": b"t1\nt2_mmmlu_x\n",
        "tasks/t1.json": task,
        "tasks/t2_mmmlu_x.json": b"{}",
    }
    blobs = {
        name: hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        for name, body in files.items()
    }
    tree = {"tree": [{"path": p, "type": "blob", "sha": s} for p, s in blobs.items()]}
    server.files = {f"/raw/{name}": body for name, body in files.items()}
    server.files["/tree"] = json.dumps(tree).encode()
    monkeypatch.setattr(sources, "TREE_URL", server.url("/tree"))
    monkeypatch.setattr(sources, "github_url", lambda _, name, __: server.url(f"/raw/{name}"))
    outcomes = sources.prepare("super_ni", tmp_path, console=QUIET)
    folder = tmp_path / "natural-instructions"
    assert len(outcomes) == 3
    assert [p.name for p in (folder / "tasks").iterdir()] == ["t1.json"]
    (folder / "tasks" / "t1.json").unlink()
    server.files["/raw/tasks/t1.json"] = task + b" "
    with pytest.raises(DownloadError, match="git hash"):
        sources.prepare("super_ni", tmp_path, console=QUIET)


def test_script_reports_what_is_missing(tmp_path, repo_dir, monkeypatch, capsys):
    import importlib.util

    path = repo_dir / "scripts" / "prepare_train_data.py"
    spec = importlib.util.spec_from_file_location("prepare_train_data", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    body = json.dumps([{"instruction": "i", "input": "", "output": "o"}])
    original = tmp_path / "code_alpaca_20k.json"
    original.write_text(body)
    monkeypatch.setattr(sources, "github_url", lambda *_: original.as_uri())
    monkeypatch.setattr(sources, "hub_url", lambda *_: (tmp_path / "absent").as_uri())
    monkeypatch.setattr("time.sleep", lambda _: None)
    argv = ["prepare_train_data", "code_alpaca", "--root", str(tmp_path / "root")]
    monkeypatch.setattr("sys.argv", argv)
    assert script.main() == 2
    error = capsys.readouterr().err
    assert "has 1 rows where 20022" in error.replace("\n", " ")
    assert "github.com/sahil280114/codealpaca" in error
