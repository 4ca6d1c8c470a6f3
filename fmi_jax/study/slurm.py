"""Submits drivers to Slurm; each job works on the cells that are left until none is."""

import argparse
import copy
from collections.abc import Mapping
from typing import Any

from fmi_jax.errors import UsageError
from fmi_jax.guard import guarded
from fmi_jax.study.commands import driver_of, run_driver

_COMMON = ("nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb", "timeout_min")
"""Options that submitit supports for every kind of cluster, by these names."""


class Job:
    """Work of one job; when it is preempted or its time is up, it is queued again.

    Args:
      values: command line of `fmi-jax study run`.
    """

    def __init__(self, values: argparse.Namespace):
        self._values = copy.copy(values)
        self._driver: Any = None

    def __call__(self) -> int:
        """Run the cells that are left of the study; returns the exit code."""
        return guarded(self._run)

    def _run(self) -> None:
        self._driver = driver_of(self._values)
        run_driver(self._driver, self._values)

    def checkpoint(self) -> Any:
        """Save, and continue in a new job; submitit calls this when the job has to end."""
        import submitit

        if self._driver is not None:
            self._driver.stop()
            self._driver.wait()
        return submitit.helpers.DelayedSubmission(Job(self._values))  # without the driver


def submit(values: argparse.Namespace, workers: int, options: Mapping[str, str]) -> None:
    """Submit `workers` jobs as one array, and print how to follow them.

    Args:
      values: command line of `fmi-jax study run`.
      workers: number of jobs.
      options: options of each job, by submitit's names; those for Slurm alone without "slurm_".

    Raises:
      UsageError: submitit is missing, an option is unknown, or there is no Slurm here.
    """
    try:
        import submitit
    except ImportError as error:
        raise UsageError("--slurm-workers needs submitit: pip install 'fmi_jax[slurm]'.") from error
    folder = values.root / "slurm"
    parameters = {"name": f"fmi-{values.study.split('/')[-1].removesuffix('.py')}"}
    for name, text in options.items():
        value: Any = int(text) if text.isdecimal() else text
        parameters[name if name in _COMMON else f"slurm_{name}"] = value
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
        executor.update_parameters(**parameters)
        jobs = executor.submit_array([Job(values)] * workers)
    except Exception as error:  # submitit raises several types, and those of subprocess
        raise UsageError(f"--slurm: {error}") from error
    print(f"submitted {len(jobs)} jobs: {', '.join(job.job_id for job in jobs)}")
    print(f"logs: {folder}; progress: fmi-jax study status {values.study} --root {values.root}")
