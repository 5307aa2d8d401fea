"""Training: the Trainer, checkpoints that survive kills, logs, sweeps."""
