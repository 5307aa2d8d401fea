"""`import mos` makes PEFT know the methods, whatever was imported or looked up before or after."""

from __future__ import annotations

import subprocess
import sys

# What PEFT takes seconds to import is imported once. A process is forked from there for each order.
PROGRAM = """
import os, sys, traceback
import accelerate, bitsandbytes, torch, transformers.masking_utils, transformers.modeling_utils
assert not {"peft", "mos", "datasets"} & set(sys.modules)
failed = []
for order in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            exec(order, {"__name__": "__main__"})
            import peft, pickle
            kind = peft.PeftType("MOS")
            assert pickle.loads(pickle.dumps(kind)) is kind is peft.PeftType.MOS
            assert kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
            assert peft.PeftType("PROLORA") and peft.PeftType("TIED_LORA")
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(order)
if failed:
    sys.exit("not registered after: " + " | ".join(failed))
"""

ORDERS = [
    "import mos; from transformers import Trainer; import peft",
    "import mos, peft",
    "import peft, mos",
    "import mos, transformers; transformers.utils.is_peft_available()",  # as trl does
    "import transformers; transformers.utils.is_peft_available(); import mos",
    "from peft import AutoPeftModelForCausalLM; import mos",
    "import mos, datasets, peft",
    "import datasets, mos",
    "import importlib.util; import mos; importlib.util.find_spec('peft')",
    "from mos import MosConfig; assert MosConfig(equivalent_rank=2).peft_type == 'MOS'",
    "import mos.summarize",
    # parts that import PEFT before anybody else
    "import mos.adapters.linear",
    "from mos.adapters.tied_lora import TiedLoraModel",
]


def test_every_order_of_imports_registers():
    subprocess.run([sys.executable, "-c", PROGRAM, *ORDERS], check=True)


def test_a_command_starts_without_torch(tmp_path):
    (tmp_path / "status.json").write_text("{}")  # a run, though not a whole one
    command = [sys.executable, "-X", "importtime", "-m", "mos.summarize", f"runs={tmp_path}"]
    command.append(f"out={tmp_path}/summary")
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "mos.report.page" in imported
    assert not {"torch", "transformers", "peft", "scipy.stats"} & imported
