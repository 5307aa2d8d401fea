"""MMLU: `{dev,test}/<subject>_{dev,test}.csv`, rows question, A, B, C, D, letter, no header."""

from __future__ import annotations

from pathlib import Path

from samples.files import cells, sections, seeded, write_csv

LETTERS = "ABCD"
DEV_ROWS = 5


def subject_rows(subject: str, lines: list[str]) -> list[list[str]]:
    """Rows with the right choice moved to a letter; the letters of a subject are balanced."""
    rng = seeded(f"mmlu {subject}")
    letters = [LETTERS[i % 4] for i in range(len(lines))]
    rng.shuffle(letters)
    rows = []
    for line, letter in zip(lines, letters, strict=True):
        question, right, *wrong = cells(line)
        rng.shuffle(wrong)
        wrong.insert(LETTERS.index(letter), right)
        rows.append([question, *wrong, letter])
    return rows


def questions() -> dict[str, list[list[str]]]:
    return {
        subject: subject_rows(subject, lines) for subject, lines in sections("mmlu.txt").items()
    }


def write(root: Path) -> None:
    for subject, rows in questions().items():
        write_csv(root / "mmlu" / "dev" / f"{subject}_dev.csv", rows[:DEV_ROWS])
        write_csv(root / "mmlu" / "test" / f"{subject}_test.csv", rows[DEV_ROWS:])
