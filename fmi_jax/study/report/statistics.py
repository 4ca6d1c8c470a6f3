"""How sure the numbers of a study are: pure functions of arrays.

Shapes: `r` resamples, `s` seeds (runs) of a setting, `g` groups of test images that are drawn as
one (patients, where the data name them, else single images).
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float

_EXACT = 8
"""Rows up to which every permutation is looked at: 8! are 40,320."""

_BLOCK = 1_000_000  # counts of groups that are held at a time

FEW = 4
"""Rows below which a rank correlation says nothing: with 3, p cannot be less than 1/3."""


def draw_times(num_groups: int, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "b g"]]:
    """How often each group is drawn, `num_groups` draws with replacement a resample.

    The same `seed` gives the same resamples, so that all that is measured on these images is
    measured on the same ones. They come in blocks of a few megabytes.
    """
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // num_groups)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        draws = rng.integers(num_groups, size=(size, num_groups))
        draws += num_groups * np.arange(size)[:, None]
        times = np.bincount(draws.ravel(), minlength=size * num_groups)
        yield times.reshape(size, num_groups).astype(np.float64)


def two_level(values: Float[np.ndarray, "s r"], seed: int) -> Float[np.ndarray, "r"]:
    """The mean over the seeds on each resample of the images, the seeds drawn anew each time.

    Seeds are drawn with replacement, as many as there are; a single one is always itself, and
    what comes out then varies with the images alone.
    """
    count, resamples = values.shape
    drawn = np.random.default_rng(seed).integers(count, size=(count, resamples))
    return np.take_along_axis(values, drawn, axis=0).mean(axis=0)


def interval(values: Float[np.ndarray, "r"]) -> tuple[float, float]:
    """95% percentile interval; resamples without a value do not count."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.percentile(defined, (2.5, 97.5))
    return float(low), float(high)


def paired_p(difference: float, resampled: Float[np.ndarray, "r"]) -> float:
    """Two-sided p of no difference, from its bootstrap centred on nought.

    (1 + the number of resamples that are at least as far from the difference as it is from
    nought) / (1 + the number of resamples) (Davison and Hinkley 1997, section 4.4).

    Args:
      difference: as observed.
      resampled: the same on each resample; those without a value do not count.
    """
    defined = resampled[~np.isnan(resampled)]
    if math.isnan(difference) or not len(defined):
        return math.nan
    as_far = np.abs(defined - difference) >= abs(difference)
    return float((1 + as_far.sum()) / (1 + len(defined)))


def holm(p: Sequence[float]) -> Float[np.ndarray, "m"]:
    """p adjusted for as many tests (Holm 1979); NaN was not tested and does not count."""
    values = np.asarray(p, np.float64)
    adjusted = np.full(len(values), np.nan)
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    stepped = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


class RankCorrelation(NamedTuple):
    """How much two orders of the same things agree.

    Attributes:
      n: how many things.
      tau, tau_p: Kendall's tau-b and its two-sided p.
      rho, rho_p: Spearman's rank correlation and its two-sided p.
      exact: whether p counts all orders; else it is estimated from 50,000 drawn ones.
    """

    n: int
    tau: float
    tau_p: float
    rho: float
    rho_p: float
    exact: bool


def rank_correlation(ours: Sequence[float], theirs: Sequence[float]) -> RankCorrelation | None:
    """Rank correlation of paired values; None of fewer than `FEW`, or where one side is constant.

    p is that of a permutation test: how often a random order agrees or disagrees as much.
    """
    x, y = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    n = len(x)
    if n < FEW or len({*x}) == 1 or len({*y}) == 1:
        return None
    tau: Any = scipy.stats.kendalltau(x, y)
    rho: Any = scipy.stats.spearmanr(x, y)
    if n <= _EXACT:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        orders = np.random.default_rng(0).permuted(np.tile(np.arange(n), (50_000, 1)), axis=1)
    first, second = np.triu_indices(n, 1)
    agreement = np.sign(x[first] - x[second])
    of_orders = np.sign(y[orders[:, first]] - y[orders[:, second]]) @ agreement
    ranks_x, ranks_y = scipy.stats.rankdata(x), scipy.stats.rankdata(y)
    products = ranks_y[orders] @ (ranks_x - ranks_x.mean())
    return RankCorrelation(
        n=n,
        tau=float(tau.statistic),
        tau_p=_two_sided(of_orders, float(np.sign(y[first] - y[second]) @ agreement), n),
        rho=float(rho.statistic),
        rho_p=_two_sided(products, float(ranks_y @ (ranks_x - ranks_x.mean())), n),
        exact=n <= _EXACT,
    )


def _two_sided(of_orders: np.ndarray, observed: float, n: int) -> float:
    as_far = int((np.abs(of_orders) >= abs(observed) - 1e-9).sum())
    drawn = n > _EXACT  # the observed order is then not among those that were drawn
    return (as_far + drawn) / (len(of_orders) + drawn)


class Reliability(NamedTuple):
    """Whether a classifier is as often right as it is sure.

    Attributes:
      confidence: mean probability in each of `b` bins of equally many predictions, ascending.
      frequency: share of them that came true.
      ece: expected calibration error: the mean distance of the two.
    """

    confidence: Float[np.ndarray, "b"]
    frequency: Float[np.ndarray, "b"]
    ece: float


def reliability(
    probabilities: Float[np.ndarray, "m"], true: Bool[np.ndarray, "m"], bins: int = 10
) -> Reliability:
    """Reliability of predictions, in bins of equal counts (fewer where there are too few).

    Predictions of one probability share a bin, so bins may differ in size.
    """
    order = np.argsort(probabilities, kind="stable")
    p, hits = probabilities[order], true[order].astype(np.float64)
    starts = np.linspace(0, len(p), min(bins, len(p)), endpoint=False).astype(int)
    starts = np.unique(np.searchsorted(p, p[starts], side="left"))
    counts = np.diff(np.r_[starts, len(p)])
    confidence = np.add.reduceat(p, starts) / counts
    frequency = np.add.reduceat(hits, starts) / counts
    ece = float((counts * np.abs(confidence - frequency)).sum() / len(p))
    return Reliability(confidence, frequency, ece)


def mean_relative(
    values: Mapping[str, np.ndarray], bases: Mapping[str, np.ndarray]
) -> Float[np.ndarray, "..."]:
    """100 (value / base - 1) in the mean over the data sets of `bases`: a gain in percent."""
    return np.mean([100 * (values[name] / bases[name] - 1) for name in bases], axis=0)
