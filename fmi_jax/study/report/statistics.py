"""Statistics of a study's numbers, as pure functions of arrays.

Shapes: `r` resamples, `s` seeds (runs) of a setting, `g` groups of test images that are drawn as
one (patients if the data name them, else single images).
"""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float

from fmi_jax.tasks.calibration import BINS, equal_width

_EXACT = 8
"""Largest number of rows for which every permutation is counted: 8! is 40,320."""

FEW = 4
"""Fewest rows for a rank correlation: with 3, p cannot be less than 1/3."""


def two_level(values: Float[np.ndarray, "s r"], seed: int) -> Float[np.ndarray, "r"]:
    """Mean over the seeds on each resample of the images, with the seeds drawn anew each time.

    Seeds are drawn with replacement, as many as there are. With a single seed the result varies
    with the images alone.
    """
    count, resamples = values.shape
    drawn = np.random.default_rng(seed).integers(count, size=(count, resamples))
    return np.take_along_axis(values, drawn, axis=0).mean(axis=0)


def paired_p(difference: float, resampled: Float[np.ndarray, "r"]) -> float:
    """Two-sided p-value of no difference, from a bootstrap centred on zero.

    (1 + the number of resamples that are at least as far from the difference as it is from
    zero) / (1 + the number of resamples) (Davison and Hinkley 1997, section 4.4).

    Args:
      difference: observed difference.
      resampled: difference on each resample; those without a value do not count.
    """
    defined = resampled[~np.isnan(resampled)]
    if math.isnan(difference) or not len(defined):
        return math.nan
    as_far = np.abs(defined - difference) >= abs(difference)
    return float((1 + as_far.sum()) / (1 + len(defined)))


def two_sample_p(first: Float[np.ndarray, "s"], second: Float[np.ndarray, "t"]) -> float:
    """Two-sided p-value of Student's t-test of two independent samples with equal variances.

    It is of the runs alone: the test images count as given. NaN where a sample has fewer than two
    values, or all values are equal.
    """
    if min(len(first), len(second)) < 2:
        return math.nan
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of samples without a spread
        found: Any = scipy.stats.ttest_ind(first, second)
    return float(found.pvalue)


def drawn_mean(
    mean: float, std: float, runs: int, resamples: int, seed: int
) -> Float[np.ndarray, "r"]:
    """Draw means that a published mean over a few runs may stand for: Student's t about it.

    Args:
      mean, std: published mean and sample standard deviation over the runs.
      runs: number of runs, at least 2.
      resamples: number of draws.
      seed: seed of the draws.
    """
    t = np.random.default_rng(seed).standard_t(runs - 1, resamples)
    return mean + std / math.sqrt(runs) * t


def optimism(values: Float[np.ndarray, "k r"]) -> float:
    """Mean excess of the highest of `k` scores over its expectation, were all `k` equally good.

    Each row's resamples are moved to mean zero, and the highest is taken on each resample. For
    independent rows this is 1.42 standard errors of 8 rows and 1.67 of 13.

    Args:
      values: score of each row on each resample, more being better; resamples without a value
        count as NaN and are left out.
    """
    defined = values[:, ~np.isnan(values).any(axis=0)]
    if not defined.size:
        return math.nan
    return float((defined - defined.mean(axis=1, keepdims=True)).max(axis=0).mean())


class RankCorrelation(NamedTuple):
    """Agreement of two orders of the same things.

    Attributes:
      n: number of things.
      tau, tau_p: Kendall's tau-b and its two-sided p.
      rho, rho_p: Spearman's rank correlation and its two-sided p.
      exact: True if p counts all orders; else it is estimated from 50,000 drawn ones.
    """

    n: int
    tau: float
    tau_p: float
    rho: float
    rho_p: float
    exact: bool


def rank_correlation(ours: Sequence[float], theirs: Sequence[float]) -> RankCorrelation | None:
    """Rank correlation of paired values; None for fewer than `FEW`, or if one side is constant.

    p is that of a permutation test: how often a random order agrees or disagrees as much.
    """
    x, y = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    n = len(x)
    if n < FEW or len({*x}) == 1 or len({*y}) == 1:
        return None
    tau: Any = scipy.stats.kendalltau(x, y)
    rho: Any = scipy.stats.spearmanr(x, y)
    orders = (
        np.array(list(itertools.permutations(range(n))))
        if n <= _EXACT
        else np.random.default_rng(0).permuted(np.tile(np.arange(n), (50_000, 1)), axis=1)
    )
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
    """Reliability of the probabilities of one class: whether it is as frequent as they say.

    Attributes:
      confidence: mean probability in each of the `b` bins that hold a prediction, ascending.
      frequency: share of predictions in each bin that came true.
      ece: expected calibration error: the mean distance of the two.
    """

    confidence: Float[np.ndarray, "b"]
    frequency: Float[np.ndarray, "b"]
    ece: float


def reliability(
    probabilities: Float[np.ndarray, "m"], true: Bool[np.ndarray, "m"], bins: int = BINS
) -> Reliability:
    """Compute the reliability of predictions, in bins of equal width."""
    at = equal_width(probabilities, bins)
    counts = np.bincount(at, minlength=bins)
    used = counts > 0
    confidence = np.bincount(at, probabilities, bins)[used] / counts[used]
    frequency = np.bincount(at, true, bins)[used] / counts[used]
    ece = float((counts[used] * np.abs(confidence - frequency)).sum() / counts.sum())
    return Reliability(confidence, frequency, ece)


def mean_relative(
    values: Mapping[str, np.ndarray], bases: Mapping[str, np.ndarray]
) -> Float[np.ndarray, "..."]:
    """Mean gain in percent, 100 (value / base - 1), over the data sets of `bases`."""
    return np.mean([100 * (values[name] / bases[name] - 1) for name in bases], axis=0)
