"""`import mos` makes PEFT know the methods, in either order, and by itself costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "program",
    [
        "import mos, peft; assert peft.PeftType('MOS')",
        "import peft, mos; assert peft.PeftType('MOS')",
        "from mos import MosConfig; import peft; assert peft.PeftType('MOS')",
        "import mos.report, sys; assert 'torch' not in sys.modules and 'peft' not in sys.modules",
    ],
)
def test_imports_in_any_order(program):
    subprocess.run([sys.executable, "-c", program], check=True)
