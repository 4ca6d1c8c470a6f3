"""The processor cores that this process may use."""

import os


def available_cores() -> tuple[int, ...]:
    """Their numbers: fewer than the machine has, where a batch system or `taskset` says so."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))
