"""Fault campaign: `python -m tests.faults --minutes 5 --seed 1`.

Every case takes a command of the program (`commands`), disturbs it by one fault (`injections`), and
gives the same command again, undisturbed. Then it must be as if nothing had happened
(`invariants`). `planning` draws the cases from a seed, `campaign` runs them in `processes`.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "helpers"))  # as pytest does
