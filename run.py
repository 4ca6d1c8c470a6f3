"""Run one experiment: `python run.py --config=configs/quickstart.py --workdir=runs/quickstart`."""

import sys
from pathlib import Path

from fmi_jax.entry import guarded, run_main

if __name__ == "__main__":
    default = Path(__file__).parent / "configs" / "quickstart.py"
    sys.exit(guarded(lambda: run_main(sys.argv, default)))
