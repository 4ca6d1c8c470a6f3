"""A metric by subgroup of the test images: sex, age, site, device.

A subgroup is a weight of 0 or 1 for each image; its metric is that of the weighted images. All
subgroups are measured on the same resamples of groups (patients), so gaps between them are too.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats
from jaxtyping import Bool

from fmi_jax.artifacts.evaluation import Subgroup, Subgroups
from fmi_jax.tasks.base import Measured, Resampling, Task, members
from fmi_jax.tasks.intervals import Z, holm, scaled
from fmi_jax.tasks.weighted import resample

LEAST = 10
"""Fewest images of each kind (with a class, without it) of a subgroup that is measured."""

_VALUES = 8  # more numbers than these are cut at their quartiles
_POWER = float(scipy.stats.norm.ppf(0.8))


def levels(column: Sequence[str]) -> dict[str, Bool[np.ndarray, "n"]]:
    """Cut a column into subgroups: its values, or quartiles where it holds many numbers.

    An empty text is a missing value, which belongs to no subgroup.
    """
    texts = np.asarray(column, str)
    known = texts != ""
    if len({*texts[known]}) > _VALUES:
        try:
            numbers = np.array([float(text or "nan") for text in texts])
        except ValueError:
            pass
        else:
            cuts = np.unique(np.nanquantile(numbers, (0.25, 0.5, 0.75)))
            at = np.searchsorted(cuts, numbers, side="left")
            names = [f"up to {cuts[0]:g}", *(f"above {cut:g}" for cut in cuts)]
            return {name: known & (at == i) for i, name in enumerate(names)}
    return {str(value): texts == value for value in np.unique(texts[known])}


def subgroups(
    task: Task,
    measured: Measured,
    columns: Mapping[str, Sequence[str]],
    metric: str,
    how: Resampling,
) -> tuple[Subgroups, ...]:
    """Measure a metric by the subgroups of every column, with the gap between best and worst.

    p is that of no difference: the share of resamples whose spread around the observed values is as
    wide as the observed gap, adjusted over the columns (Holm).

    Args:
      task: task of the images.
      measured: per-image measurements.
      columns: value of each image by column.
      metric: metric's name.
      how: resamples of the images; 0 samples measure nothing.
    """
    if how.samples == 0:
        return ()
    measured = task.checked(measured)
    kinds = task.kinds(measured)
    kinds = kinds[:, kinds.any(axis=0)]
    found = []
    for name, column in columns.items():
        parts = levels(column)
        large = {
            level: rows
            for level, rows in parts.items()
            if kinds[rows].sum(axis=0).min(initial=len(rows)) >= LEAST
        }
        small = tuple(level for level in parts if level not in large)
        one = _of_column(task, measured, large, metric, kinds, how)
        found.append(dataclasses.replace(one, column=name, small=small))
    adjusted = holm([one.p for one in found])
    tested = int(np.isfinite(adjusted).sum())
    corrected = float(scipy.stats.norm.isf(0.025 / max(tested, 1)))
    return tuple(
        dataclasses.replace(
            one, p=float(p), detectable=one.detectable * (corrected + _POWER) / (Z + _POWER)
        )
        for one, p in zip(found, adjusted, strict=True)
    )


def _of_column(
    task: Task,
    measured: Measured,
    rows: Mapping[str, Bool[np.ndarray, "n"]],
    metric: str,
    kinds: Bool[np.ndarray, "n m"],
    how: Resampling,
) -> Subgroups:
    nothing = math.nan
    empty = Subgroups("", metric, {}, "", nothing, (nothing, nothing), nothing, nothing, ())
    if not rows:
        return empty
    weights = np.stack([*rows.values()]).astype(np.float64)
    values = task.values(measured, weights)[metric]
    member = members(how.groups, len(kinds))
    needed = np.hstack([kinds & part[:, None] for part in rows.values()])
    drawn = np.concatenate(
        [
            np.stack([task.values(measured, times[:, member] * w)[metric] for w in weights], axis=1)
            for times, _ in resample(needed, member, how.samples, how.seed, size=len(member))
        ]
    )
    about = task.metric(metric)
    levels = {}
    for i, (level, part) in enumerate(rows.items()):
        low, high, _ = scaled(float(values[i]), float(drawn[:, i].std()), about.bounds)
        levels[level] = Subgroup(int(part.sum()), float(values[i]), (low, high))
    scores = [about.score(float(value)) for value in values]
    worst, best = int(np.argmin(scores)), int(np.argmax(scores))
    found = dataclasses.replace(empty, levels=levels, worst=[*rows][worst])
    if len(rows) < 2 or np.isnan(drawn).any() or np.isnan(values).any():
        return found
    gap = float(abs(values[best] - values[worst]))
    error = float((drawn[:, best] - drawn[:, worst]).std())
    spread = np.ptp(drawn - values, axis=1)
    return dataclasses.replace(
        found,
        gap=gap,
        interval=(max(0.0, gap - Z * error), gap + Z * error),
        p=float((1 + (spread >= gap).sum()) / (1 + len(spread))),
        detectable=(Z + _POWER) * error,
    )
