"""Sweep members whose training is a moment's work: a folder for PYTHONPATH. Not a test.

In the processes of submitit's jobs, `mos.train` is what it is but for the part that needs torch:
instead, a member notes in `trainings` that it trained, and fails if another process is training the
same run.
"""

import os
import sys
import time

if "submitit.core._submit" in sys.orig_argv:
    import mos.train
    from mos.records import Metrics
    from mos.run import log_files

    def train_adapter(config, run, wanted) -> None:
        if not wanted:
            return
        run.set_status("running")
        run.write_config(config)
        run.update_manifest(logs=log_files())
        at_work = os.open(run.path / "at-work", os.O_CREAT | os.O_EXCL)
        time.sleep(0.5)
        os.close(at_work)
        (run.path / "at-work").unlink()
        with (run.path / "trainings").open("a") as trainings:
            trainings.write(f"{os.getpid()}\n")
        method = {"name": "lora", "label": "LoRA", "trainable_parameters": 1}
        run.update_manifest(method=method, train=None)
        Metrics(metrics={"loss": 1.0}, n=1).write(run.path / "eval" / "heldout", [])
        run.write_results()
        run.set_status("trained")

    mos.train.train_adapter = train_adapter
    mos.train.missing = lambda config: []
    mos.train.check_shapes = lambda config: None
