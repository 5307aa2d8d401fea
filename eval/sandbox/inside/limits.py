"""What one program may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits on one program.

    Attributes:
        cpu_s: processor seconds, what the reference's 3.0 s timer is meant to measure; of the
            solution, and as many of its test. A busy machine stretches wall time and leaves this
            alone, so it cannot flip a verdict.
        wall_s: seconds on the clock, generous, to end programs that sleep or wait.
        memory_mb: address space of the solution, and of its test, in MiB.
        threads: threads at one time (further processes are refused altogether).
        file_mb: size of one file, in MiB.
        folder_mb: size of the private folder, in MiB (where it is a file system of its own).
        open_files: open file descriptors.
        value_mb: size of one returned value as it crosses to the referee, in MiB.
    """

    cpu_s: float = 3.0
    wall_s: float = 30.0
    memory_mb: int = 1024
    threads: int = 128
    file_mb: int = 16
    folder_mb: int = 64
    open_files: int = 64
    value_mb: int = 8

    @classmethod
    def for_timeout(cls, timeout_s: float) -> Limits:
        """`timeout_s` of processor time, and ten times as much on the clock."""
        return cls(cpu_s=timeout_s, wall_s=10 * timeout_s)
