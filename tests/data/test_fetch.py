"""Downloads from a loopback server: whole, pinned, once; and without a network."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mos.data import fetch as module
from mos.data import super_ni
from mos.data.corpora import CORPORA
from mos.data.cot import raw_originals
from mos.data.fetch import FetchError, Original, fetch

BODY = b'{"row": 1}\n' * 1000


class Handler(BaseHTTPRequestHandler):
    files: dict[str, bytes]
    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        body = self.files.get(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    handler = type("Served", (Handler,), {"files": {"/a.jsonl": BODY}, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        handler.url = f"http://127.0.0.1:{running.server_port}"
        yield handler
        running.shutdown()


def test_a_file_is_fetched_once_and_checked(server, tmp_path):
    sha256 = hashlib.sha256(BODY).hexdigest()
    file = Original("in/a.jsonl", f"{server.url}/a.jsonl", sha256)
    assert fetch([file], tmp_path) == 1
    assert fetch([file], tmp_path) == 0
    assert (tmp_path / "in" / "a.jsonl").read_bytes() == BODY
    assert server.asked == ["/a.jsonl"]
    (tmp_path / "in" / "a.jsonl").write_bytes(b"mine")
    with pytest.raises(FetchError, match=r"is not the file that was expected.*Delete it"):
        fetch([file], tmp_path)
    assert (tmp_path / "in" / "a.jsonl").read_bytes() == b"mine"


def test_what_cannot_be_had_is_named_and_leaves_no_folder(server, tmp_path):
    for file, reason in (
        (Original("a.jsonl", f"{server.url}/a.jsonl", "0" * 64), "does not match the known hash"),
        (Original("b.jsonl", f"{server.url}/b.jsonl"), "404"),
        (Original("c.jsonl", "http://127.0.0.1:9/c.jsonl"), "no connection"),
    ):
        with pytest.raises(FetchError, match=f"{file.path}: .*{reason}"):
            fetch([file], tmp_path / "data" / "deep")
        assert not (tmp_path / "data").exists()


def test_folders_of_an_archive_are_unpacked(server, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("data/test/x.csv", "data/dev/y.csv", "data/README"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
    server.files["/data.tar"] = buffer.getvalue()
    folders = {"data/test": "test", "data/dev": "dev"}
    file = Original("data.tar", f"{server.url}/data.tar", folders=folders)
    assert fetch([file], tmp_path) == 1
    assert fetch([file], tmp_path) == 0
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"test/x.csv", "dev/y.csv"}


def test_hub_files_come_at_their_commit(tmp_path, monkeypatch):
    asked = {}

    def download(repo, name, **options):
        asked.update(options, repo=repo, name=name)
        path = tmp_path / "from_hub"
        path.write_bytes(BODY)
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("requests.head", lambda *_, **__: None)
    fetch([Original("a.jsonl", "hf://datasets/o/n@c0ffee/sub/b.jsonl")], tmp_path / "out")
    assert (tmp_path / "out" / "a.jsonl").read_bytes() == BODY
    assert (asked["repo"], asked["name"], asked["revision"]) == ("o/n", "sub/b.jsonl", "c0ffee")


def script(repo_dir, name):
    spec = importlib.util.spec_from_file_location(name, repo_dir / "scripts" / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_every_original_is_pinned_by_content_or_commit(repo_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(super_ni, "fetch", lambda files, folder: list(files))
    (tmp_path / "splits" / "xlingual").mkdir(parents=True)
    (tmp_path / "splits" / "xlingual" / "train_tasks.txt").write_text("t1\nt2_mmmlu_x\n")
    originals = raw_originals()
    originals += [o for c in CORPORA.values() if c.originals for o in c.originals(tmp_path)]
    for files in script(repo_dir, "prepare_eval_data").ORIGINALS.values():
        originals += files
    assert "tasks/t1.json" in {original.path for original in originals}
    assert not any("mmmlu" in original.path for original in originals)
    for original in originals:
        commit = re.search(r"[@/][0-9a-f]{40}[./]", original.url)
        assert commit or re.fullmatch(r"[0-9a-f]{64}", original.sha256), original


@pytest.mark.parametrize("name", ["prepare_train_data", "prepare_eval_data"])
def test_without_a_network_one_message_says_what_to_do(
    name, repo_dir, tmp_path, monkeypatch, capsys
):
    def no_network(original, scratch, progress):
        raise OSError("no connection")

    monkeypatch.setattr(module, "_download", no_network)
    monkeypatch.chdir(tmp_path)
    assert script(repo_dir, name).main([]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) <= 12
    assert error.count("By hand, into data/full/") >= 4
    assert not list(tmp_path.iterdir())
