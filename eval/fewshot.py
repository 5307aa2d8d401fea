"""Few-shot texts by other authors, read from the installed lm-eval package.

They are nobody's to copy into this repository; lm-evaluation-harness ships them as YAML. Nothing
of lm-eval is imported: its files are found and parsed.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from mos.errors import MissingFileError, UserError

# The release whose texts, mapped, were compared with the reference's prompts.
LM_EVAL_VERSION = "0.4.13"


def read_lm_eval_task(relative: str, instead: Path) -> dict[str, Any]:
    """Parse a task file of the installed lm-eval.

    Args:
        relative: path under its `tasks` folder.
        instead: the benchmark's own file that was looked for first, for the message.

    Raises:
        MissingFileError: neither file is there.
        UserError: another release of lm-eval, whose texts may differ.
    """
    spec = find_spec("lm_eval")
    folders = spec.submodule_search_locations if spec else None
    path = Path(next(iter(folders)), "tasks", relative) if folders else None
    if path is None or not path.is_file():
        raise MissingFileError(
            f"No few-shot examples: {instead} does not exist, and lm-eval, which ships them as"
            f" tasks/{relative}, is not installed. Add the file, or"
            f" `pip install lm-eval=={LM_EVAL_VERSION}`."
        )
    if (found := version("lm-eval")) != LM_EVAL_VERSION:
        raise UserError(
            f"lm-eval {found} is installed, but few-shot texts are known to be the protocol's in"
            f" {LM_EVAL_VERSION} only. Install that, or add {instead}."
        )
    return yaml.load(path.read_text("utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
