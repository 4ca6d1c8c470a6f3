"""Constraints that hold each library at the lowest version that pyproject.toml allows.

`python tests/helpers/lowest.py` prints them for `pip install --constraint`.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def lowest() -> list[str]:
    """`NAME==VERSION` for every dependency, as its lower bound says.

    Raises:
      ValueError: a dependency has none.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    constraints = []
    for dependency in project["dependencies"]:
        found = re.fullmatch(r"([\w.-]+)>=([\w.]+)(,<[\w.]+)?", dependency)
        if found is None:
            raise ValueError(f"{dependency}: expected NAME>=VERSION, or NAME>=VERSION,<VERSION")
        constraints.append(f"{found[1]}=={found[2]}")
    return constraints


if __name__ == "__main__":
    print("\n".join(lowest()))
