"""Published numbers of the studies, cell by cell (`published.json`)."""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

PUBLICATIONS: Mapping[str, str] = {
    "huix2024": "Are Natural Domain Foundation Models Useful for Medical Image Classification?"
    " (arXiv 2310.19522)",
    "matsoukas2021": "Is it Time to Replace CNNs with Transformers for Medical Images?"
    " (arXiv 2108.09038)",
    "hosseinzadeh2021": "A Systematic Benchmarking Analysis of Transfer Learning for Medical Image"
    " Analysis (arXiv 2108.05930)",
    "hosseinzadeh2025": "its sequel in Medical Image Analysis (2025)",
}
"""Publications by name, which begins the names of their tables in the file."""

_METRICS = {"balanced_recall": "recall"}  # name in `fmi_jax.tasks`
_PLACES = {
    "hosseinzadeh2021_domain_adaptation": "the table of domain adaptation",
    "hosseinzadeh2021_ssl": "the figure of self-supervised models",
    "hosseinzadeh2021_inat": "the figure of iNat2021",
    "hosseinzadeh2025_architectures": "the figure of architectures",
}  # where a publication has a table or figure without a number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A published number.

    Attributes:
      mean: mean over the runs, or their median (`statistic`), as a fraction of 1.
      std: standard deviation over the runs; None if none was printed.
      runs: number of runs.
      metric: name of the metric in `fmi_jax.tasks`.
      source: table and publication that print it.
      statistic: "mean" or "median".
      digitised: largest error of a number that was read off a figure; None: it was printed.
    """

    mean: float
    std: float | None
    runs: int
    metric: str
    source: str
    statistic: str = "mean"
    digitised: float | None = None

    @property
    def has_spread(self) -> bool:
        """Test whether the spread of its runs is known."""
        return self.std is not None and self.runs > 1


@functools.cache
def rows() -> tuple[Mapping[str, Any], ...]:
    """Read every published number, one mapping each, unchanged from the file."""
    file = importlib.resources.files("fmi_jax.study") / "published.json"
    return tuple(json.loads(file.read_text(encoding="utf-8"))["rows"])


def published(table: str, **where: str) -> Published | None:
    """Look up the published number of a table at a place; None if it has none.

    Args:
      table: name of the table: "huix2024_table1" and so on.
      where: values that the row must have, names of models in lower case: model="dinov2".
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
        source=f"{_PLACES.get(table, number)} of {row['source']}",
        statistic="median" if "median" in row.get("statistic", "") else "mean",
        digitised=row.get("digitised"),
    )
