"""The numbers that the studies published, cell by cell (`published.json`)."""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

_METRICS = {"balanced_recall": "recall"}  # as `fmi_jax.tasks.metrics` calls it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A number as it was printed.

    Attributes:
      mean: over the runs, a fraction of 1.
      std: over the runs; None where none was printed.
      runs: how many there were.
      metric: a name of `fmi_jax.tasks.metrics`.
      source: where it stands.
    """

    mean: float
    std: float | None
    runs: int
    metric: str
    source: str


@functools.cache
def rows() -> tuple[Mapping[str, Any], ...]:
    """Every published number, one mapping each, as the file has them."""
    file = importlib.resources.files("fmi_jax.study") / "published.json"
    return tuple(json.loads(file.read_text(encoding="utf-8"))["rows"])


def published(table: str, **where: str) -> Published | None:
    """The number of a table at a place, or None where it has none.

    Args:
      table: "huix2024_table1" and so on.
      where: what the row must say, names of models in lower case: model="dinov2".
    """
    found = [
        row
        for row in rows()
        if row["table"] == table
        and all(str(row.get(name)).lower() == value for name, value in where.items())
    ]
    if not found:
        return None
    (row,) = found
    number = table.partition("_")[2].replace("table", "Table ")
    return Published(
        mean=row["mean"],
        std=row["std"],
        runs=row["runs"],
        metric=_METRICS.get(row["metric"]) or row["metric"],
        source=f"{number} of {row['source']}",
    )
