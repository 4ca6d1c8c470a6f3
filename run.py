"""Run one experiment: `python run.py --config=configs/quickstart.py --workdir=runs/quickstart`."""

import sys
from pathlib import Path

from fmi_jax.entry import run_main
from fmi_jax.guard import guarded
from fmi_jax.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()
    default = Path(__file__).parent / "configs" / "quickstart.py"
    sys.exit(guarded(lambda: run_main(sys.argv, default)))
