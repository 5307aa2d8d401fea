"""The entry point: files, the page, the terminal, messages."""

from __future__ import annotations

import csv
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mos import summarize as entry
from mos.config import compose_config
from mos.report import plots
from tests.report.synthetic import write_run


def summarize(*overrides):
    return entry.summarize(compose_config(overrides, "summarize"))


@pytest.fixture(scope="module")
def page(paper_runs, tmp_path_factory):
    """Report with every plot: the paper's figures and a sweep."""
    root = tmp_path_factory.mktemp("report")
    (root / "outputs").mkdir()
    (root / "outputs" / "paper").symlink_to(paper_runs)
    for rank in (8, 16):
        for shards in (1, 4):
            for private in (0, 1):
                setup = f"{rank:04x}{shards}{private}aa"
                write_run(
                    root / "outputs" / "sweep", "MoS", rank, 7, setup=setup,
                    config={
                        "r": rank, "shards_per_vector": shards, "private_rank": private,
                        "equivalent_rank": 8,
                    },
                    metrics={
                        "mmlu": {"exact_match": 40.0 + rank / 8 + shards, "n": 14042},
                        "riddles": {"exact_match": 50.0 + rank, "stderr": 1.0, "n": 4},
                    },
                )  # fmt: skip
    metrics = {"riddles": {"exact_match": 99.0, "n": 4}}
    write_run(root / "outputs" / "other", "Gate", 8, 9, method="gate", metrics=metrics)
    by = ["rows=method.config.r", "columns=method.config.shards_per_vector"]
    summarize(f"runs={root}/outputs", f"out={root}/summary", *by)
    return root / "summary"


class Page(HTMLParser):
    """Tags that are open at the end, sources of what the page loads, and its text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_every_file_is_written(page):
    names = {f.name for f in page.iterdir()}
    tables = {
        f"{t}.{kind}" for t in ("table1", "table2", "table3") for kind in ("md", "tex", "csv")
    }
    assert tables < names
    assert {"report.html", "claims.md", "cells.csv", "runs.csv", "sweep.md", "grouped.md"} < names


def test_the_page_is_one_well_formed_file(page):
    text = (page / "report.html").read_text()
    parsed = Page(text)
    assert not parsed.open
    assert parsed.sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in parsed.sources)
    assert not re.search(r"https?://", text)


def test_the_page_shows_tables_verdicts_plots_and_what_was_left_out(page):
    parsed = Page((page / "report.html").read_text())
    for wanted in (
        "Table 1: Sharing and differentiation", "Table 3: LLaMA2-13B", "37.63", "+0.01",
        "MoS beats every method at 5.00M", "Quality over size, LLaMA2-7B.", "By method.config.r",
        "Sweep superni_mmlu on LLaMA2-7B", "method.config.shards_per_vector",
    ):  # fmt: skip
        assert wanted in parsed.text
    assert len(parsed.sources) >= 3


def test_the_runs_behind_each_cell_are_in_cells_csv(page):
    rows = list(csv.DictReader((page / "cells.csv").open()))
    assert list(rows[0]) == ["table", "row", "column", "seed", "value", "run"]
    assert {row["table"] for row in rows} == {"table1", "table2", "table3", "grouped", "sweep"}
    wanted = ["table2", "MoS 16/32", "gsm8k.exact_match", "1"]
    (own,) = (row for row in rows if list(row.values())[:4] == wanted)
    assert float(own["value"]) == 30.93
    results = json.loads((Path(own["run"]) / "results.json").read_text())
    assert results["metrics"]["gsm8k"]["exact_match"] == 30.93
    assert results["seed"] == 1


def test_text_of_runs_is_escaped(tmp_path, capsys):
    """In HTML, Markdown, LaTeX, for spreadsheets and for the terminal."""
    write_run(tmp_path / "runs")
    write_run(tmp_path / "runs", "=HYPERLINK(1)<script>|[x](y)\\input{a}\x1b[2J\n\u202e")
    summarize(f"runs={tmp_path}/runs", f"out={tmp_path}/out", "plots=false")
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    written = {f.suffix: f.read_text() for f in (tmp_path / "out").glob("sweep.*")}
    assert "<script>" not in (tmp_path / "out" / "report.html").read_text()
    assert "=HYPERLINK(1)&lt;script>\\|\\[x\\](y)\\\\input{a}\\\\x1b\\[2J" in written[".md"]
    assert r"(y)\textbackslash{}input\{a\}" in written[".tex"]
    assert "'=HYPERLINK(1)" in written[".csv"]
    assert "'=HYPERLINK(1)" in (tmp_path / "out" / "runs.csv").read_text()
    assert ",=HYPERLINK" not in (tmp_path / "out" / "cells.csv").read_text()


def test_a_refused_run_ends_with_status_1_and_a_report(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "runs")
    (write_run(tmp_path / "runs", seed=1) / "results.json").write_text("{")
    with pytest.raises(SystemExit) as stopped:
        run_main(monkeypatch, f"runs={tmp_path}/runs", f"out={tmp_path}/out", "plots=false")
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert "1 of 2 run folders used (scale paper), 1 of them in the paper's tables" in printed
    assert "0 left out, 1 refused" in printed
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_benchmark_and_a_method_from_outside_are_in_tables_and_runs_csv(page):
    assert "riddles exact_match" in (page / "sweep.md").read_text().splitlines()[2]
    assert "| Gate |" in (page / "sweep.md").read_text()
    rows = list(csv.DictReader((page / "runs.csv").open()))
    (row,) = (row for row in rows if row["label"] == "Gate")
    assert (row["rank"], row["riddles.exact_match"]) == ("8", "99.0")


def test_runs_csv_lists_every_run(page, paper_runs):
    rows = list(csv.DictReader((page / "runs.csv").open()))
    assert len(rows) == len(list(paper_runs.rglob("results.json"))) + 9
    assert rows[0]["path"].startswith("/")


def test_other_grouping_and_several_sources(tmp_path, capsys):
    for seed in (0, 1):
        write_run(tmp_path / "a", rank=16, seed=seed)
        write_run(tmp_path / "b", "LoRA", 8, seed=seed)
    summarize(
        f"runs='{tmp_path}/a,{tmp_path}/b'", f"out={tmp_path}/out", "plots=false",
        "rows='method.label,method.rank'", "filter='seed==0'",
    )  # fmt: skip
    text = (tmp_path / "out" / "grouped.md").read_text()
    assert "| LoRA | 8 | 47.00 (1) | 51.00 (1) | 38.00 (1) |" in text
    printed = capsys.readouterr().out
    assert "By method.label, method.rank" in printed
    assert "4 of 4" not in printed
    assert f"written: {tmp_path}/out/report.html" in printed


def test_the_terminal_fits_80_columns(paper_runs, tmp_path, capsys):
    summarize(f"runs={paper_runs}", f"out={tmp_path}/out", "plots=false")
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if line.startswith(("MoS", "Vanilla", "+"))]
    assert table
    assert all(len(line.rstrip()) <= 80 for line in table)
    assert "claims: 22 held" in printed


def test_partial_results_are_offered(tmp_path, capsys):
    metrics = {"mmlu": {"exact_match": 50.0, "n": 6, "partial": "limit=6"}}
    write_run(tmp_path / "runs", metrics=metrics)
    given = [f"runs={tmp_path}/runs", f"out={tmp_path}/out", "plots=false"]
    summarize(*given)
    assert "partial=true tabulates them" in capsys.readouterr().out
    summarize(*given, "partial=true")
    printed = capsys.readouterr().out
    assert "50.00" in printed
    assert "PARTIAL: benchmarks were cut (limit=6)." in printed
    text = (tmp_path / "out" / "table2.md").read_text()
    assert "PARTIAL: benchmarks were cut (limit=6)." in text
    assert "measured minus paper" not in text


def test_what_is_said_on_the_terminal_is_short_and_leaves_no_model_out(tmp_path, capsys):
    """The commonest model does not hide the others; a long reason is cut, not in problems.csv."""
    for seed in range(3):
        write_run(tmp_path / "runs", model="tiny", scale="local", seed=seed)
    write_run(tmp_path / "runs", model="SmolLM2-135M", scale="local")
    bad = write_run(tmp_path / "runs", seed=9, scale="local")
    reason = "the disk is full " * 30
    (bad / "status.json").write_text(json.dumps({"status": "failed", "reason": reason}))
    summarize(f"runs={tmp_path}/runs", f"out={tmp_path}/out", "plots=false")
    printed = capsys.readouterr().out
    assert "Table 2: Main results and ablations, tiny" in printed
    assert "Table 2: Main results and ablations, SmolLM2-135M" in printed
    assert "Table 3" not in printed
    assert "claims" not in printed
    assert not list((tmp_path / "out").glob("table[13]*"))
    (line,) = (line for line in printed.splitlines() if line.startswith("left out: "))
    assert len(line) <= 150
    assert reason.strip() in (tmp_path / "out" / "problems.csv").read_text()


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["summarize", *arguments])
    entry.main()


def test_the_command_line(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "runs")
    out = tmp_path / "out"
    run_main(
        monkeypatch,
        f"runs={tmp_path}/runs",
        f"out={out}",
        "plots=false",
        "rows=[seed,method.label]",
    )
    assert (out / "grouped.csv").read_text().startswith("seed,method.label,MMLU EM")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs=nowhere"], "runs=nowhere: no such folder"),
        (["scale=huge"], "scale=huge: no such results; there are paper (1)"),
        (["model=huge"], "model=huge: no such results; there are LLaMA2-7B (1)"),
        (["rows=colour"], "colour: none of the 1 runs has it"),
        (["filter=seed"], "Expected an expression"),
        (["out=/proc/none"], "out=/proc/none cannot be written"),
    ],
)
def test_mistakes_get_one_message_and_exit_2(tmp_path, monkeypatch, capsys, arguments, message):
    write_run(tmp_path / "runs")
    given = [f"runs={tmp_path}/runs", f"out={tmp_path}/out", "plots=false", *arguments]
    with pytest.raises(SystemExit) as stopped:
        run_main(monkeypatch, *{a.split("=")[0]: a for a in given}.values())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error.replace("\n", "")
    assert "Traceback" not in error


def test_without_matplotlib_the_report_says_so(tmp_path, monkeypatch):
    write_run(tmp_path / "runs")
    monkeypatch.setattr(plots, "available", lambda: False)
    summarize(f"runs={tmp_path}/runs", f"out={tmp_path}/out")
    assert "matplotlib is not installed" in (tmp_path / "out" / "report.html").read_text()
