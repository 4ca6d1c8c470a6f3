"""Process of a cell: `python -m fmi_jax.study.worker FOLDER CORES`."""

import os
import sys
from pathlib import Path

from fmi_jax.guard import guarded


def main(folder: Path, cores: str) -> None:
    """Run the experiment that `cell.json` in `folder` describes, in that folder."""
    if hasattr(os, "sched_setaffinity"):  # before JAX counts them
        os.sched_setaffinity(0, map(int, cores.split(",")))
    from fmi_jax.config import from_dict
    from fmi_jax.run import experiment
    from fmi_jax.study.state import read_config

    experiment.run(from_dict(read_config(folder)), folder)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(Path(sys.argv[1]), sys.argv[2])))
