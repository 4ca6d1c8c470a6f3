"""The course of a run, from the `metrics.jsonl` it wrote."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FILE_NAME = "metrics.jsonl"
Series = tuple[np.ndarray, np.ndarray]
"""Steps `[t]` and values `[t]` of one scalar."""


def read_history(path: Path) -> dict[str, Series]:
    """Every scalar of a run by name ("train/loss"); empty where no file was written.

    Damaged lines are left out, and so is a value that is not a number.
    """
    if not path.is_file():
        return {}
    rows = map(row_of, path.read_bytes().splitlines(keepends=True))
    return series([row for row in rows if row is not None])


def row_of(line: bytes) -> dict[str, Any] | None:
    """Read a line of the file: a JSON object with "step" and scalars; None: it is damaged.

    A line without its end counts as damaged: the run was killed while writing it.
    """
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def part(history: Mapping[str, Series], name: str) -> dict[str, Series]:
    """The scalars under "<name>/", without that: of one of many heads that trained together."""
    prefix = name + "/"
    return {
        scalar.removeprefix(prefix): values
        for scalar, values in history.items()
        if scalar.startswith(prefix)
    }


def series(rows: Sequence[dict[str, Any]]) -> dict[str, Series]:
    """Rows with a "step" and scalars, turned into one series for each scalar."""
    points: dict[str, dict[float, float]] = {}
    for row in rows:
        step = row["step"]
        assert step is not None
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                points.setdefault(name, {})[step] = value
    return {
        name: (np.array(sorted(values)), np.array([values[step] for step in sorted(values)]))
        for name, values in points.items()
    }
