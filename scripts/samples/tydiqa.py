"""TyDiQA-GoldP: SQuAD-like JSON, one entry a question, ids `<language>-<hash>-<n>`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from samples.files import TEXT, cells, source_lines, write_json

LANGUAGES = tuple(sorted(path.stem for path in (TEXT / "tydiqa").glob("*.txt")))


def entries(language: str) -> dict[str, list[dict[str, Any]]]:
    """Split -> entries of one language; the source gives a title, a passage and `? q | answers`."""
    splits: dict[str, list[dict[str, Any]]] = {}
    title = context = ""
    for line in source_lines(f"tydiqa/{language}.txt"):
        if line.startswith("# "):
            split = splits.setdefault(line[2:], [])
            title = context = ""
        elif not line:
            title = context = ""
        elif not title:
            title = line
        elif not context:
            context = line
        else:
            question, *texts = cells(line.removeprefix("? "))
            answers = [{"text": text, "answer_start": context.index(text)} for text in texts]
            digest = int.from_bytes(hashlib.sha256(f"{title}\n{question}".encode()).digest()[:7])
            name = f"{language}-{digest}-{len(split)}"
            qa = {"question": question, "answers": answers, "id": name}
            split.append({"title": title, "paragraphs": [{"qas": [qa], "context": context}]})
    return splits


def write(root: Path) -> None:
    by_language = [entries(language) for language in LANGUAGES]
    for split in ("train", "dev"):
        data = [entry for splits in by_language for entry in splits[split]]
        path = root / "tydiqa" / f"tydiqa-goldp-v1.1-{split}.json"
        write_json(path, {"data": data}, indent=None)
