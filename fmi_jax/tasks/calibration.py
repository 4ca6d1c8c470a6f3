"""Calibration: whether a class is as frequent as its probability says.

The expected calibration error depends on its bins, and is above 0 for a calibrated model too, the
more so the fewer the images: `calibration` states what a calibrated model would show.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.optimize
from jaxtyping import Bool, Float, Int

from fmi_jax.artifacts.evaluation import Calibration
from fmi_jax.tasks.weighted import draw_times, log_softmax

BINS = 15
_TINY = float(np.finfo(np.float64).eps)  # scikit-learn's smallest probability in a log loss
_SIMULATIONS = 200

Binning = Callable[[np.ndarray], np.ndarray]
"""Gives the bin of each probability."""


def brier(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared error of probabilities `[n]`; of `[n, k]` classes their sum per image."""
    squares = (probabilities - truth) ** 2
    return float(squares.reshape(len(squares), -1).sum(axis=1).mean())


def log_loss(probabilities: Float[np.ndarray, "n"], truth: Bool[np.ndarray, "n"]) -> float:
    """Mean negative log-likelihood; probabilities 0 and 1 are moved by one rounding step."""
    p = np.clip(probabilities, _TINY, 1 - _TINY)
    return float(-np.log(np.where(truth, p, 1 - p)).mean())


def equal_width(probabilities: Float[np.ndarray, "n"], bins: int = BINS) -> Int[np.ndarray, "n"]:
    """Bin of each probability: of equal width, each with its upper end, the first with 0."""
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], probabilities, side="left")


def equal_counts(probabilities: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Bin of each probability: 15 of equal counts by rank; equal probabilities may be parted."""
    bins = np.empty(len(probabilities), int)
    for i, rows in enumerate(np.array_split(np.argsort(probabilities, kind="stable"), BINS)):
        bins[rows] = i
    return bins


def quantiles(probabilities: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Bin of each probability: 15 between quantiles; equal probabilities stay together."""
    edges = np.percentile(probabilities, np.linspace(0, 1, BINS + 1) * 100)
    return np.searchsorted(edges[1:-1], probabilities)


def calibration_error(
    probabilities: Float[np.ndarray, "n"],
    truth: Bool[np.ndarray, "n"],
    binning: Binning = equal_width,
) -> tuple[float, float]:
    """Mean distance of frequency and mean probability of the bins, weighted, and the largest."""
    bins = binning(probabilities)
    count = np.bincount(bins)
    gap = np.abs(np.bincount(bins, probabilities - truth))
    used = count > 0
    return float(gap.sum() / len(bins)), float((gap[used] / count[used]).max())


def temperature(logits: Float[np.ndarray, "n k"], labels: np.ndarray) -> float:
    """Temperature that minimises the mean cross-entropy of `logits / temperature`.

    Args:
      logits: logits of a softmax, or of a sigmoid each.
      labels: class indices `[n]`, or 0/1 `[n, k]` for sigmoids, NaN where it is not known.

    Returns:
      Temperature; NaN where the cross-entropy has no minimum between 1/1000 and 1000.
    """
    if not np.isfinite(logits).all():
        return math.nan
    one_of = labels.ndim == 1
    truth = np.eye(logits.shape[1])[labels] if one_of else labels
    known = ~np.isnan(truth)

    def slope(log_sharpness: float) -> float:
        sharp = math.exp(log_sharpness) * logits
        p = np.exp(log_softmax(sharp)) if one_of else np.exp(-np.logaddexp(0, -sharp))
        return float((np.where(known, p - truth, 0.0) * logits).sum())

    ends = (-math.log(1000), math.log(1000))
    if slope(ends[0]) >= 0 or slope(ends[1]) <= 0:
        return math.nan
    sharpness: Any = scipy.optimize.brentq(slope, *ends, xtol=1e-12)
    return math.exp(-sharpness)


def slope_and_intercept(
    probabilities: Float[np.ndarray, "n"], truth: Bool[np.ndarray, "n"]
) -> tuple[float, float]:
    """Logistic regression of the truth on the log-odds: 1 and 0 for a calibrated model.

    NaN where it has no solution: a class without both kinds of images, or one told apart perfectly.
    """
    nowhere = (math.nan, math.nan)
    if truth.all() or not truth.any():
        return nowhere
    if min(probabilities[truth]) >= max(probabilities[~truth]):
        return nowhere
    p = np.clip(probabilities, _TINY, 1 - _TINY)
    design = np.stack([np.log(p) - np.log1p(-p), np.ones(len(p))], axis=1)

    def loss(beta: np.ndarray) -> tuple[float, np.ndarray]:
        z = design @ beta
        error = np.exp(-np.logaddexp(0, -z)) - truth
        return float(np.logaddexp(0, np.where(truth, -z, z)).mean()), error @ design / len(z)

    found = scipy.optimize.minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS")
    return float(found.x[0]), float(found.x[1])


def calibration(
    probabilities: Float[np.ndarray, "n"],
    truth: Bool[np.ndarray, "n"],
    member: Int[np.ndarray, "n"],
    resamples: int,
    seed: int,
    scaled: Float[np.ndarray, "n"] | None = None,
) -> Calibration:
    """Calibration of one class.

    Args:
      probabilities: probability of the class.
      truth: images that have it.
      member: each image's group, which is drawn as one.
      resamples: bootstrap resamples of the interval.
      seed: random seed.
      scaled: probability of the class after temperature scaling; None without it.
    """
    observed, _ = calibration_error(probabilities, truth)
    bins, away = equal_width(probabilities), probabilities - truth
    in_bin = np.eye(BINS)[bins] * away[:, None]
    groups = int(member.max()) + 1
    sums, counts = np.zeros((groups, BINS)), np.bincount(member, minlength=groups)
    np.add.at(sums, member, in_bin)
    drawn = np.concatenate(
        [
            np.abs(times @ sums).sum(axis=1) / (times @ counts)
            for times in draw_times(groups, resamples, seed, size=max(groups, BINS))
        ]
    )
    # The bootstrap adds its own noise to that of the images: reflected, the two cancel.
    low, high = np.clip(2 * observed - np.percentile(drawn, (97.5, 2.5)), 0, 1)
    rng = np.random.default_rng(seed)
    ideal = [
        calibration_error(probabilities, rng.random(len(probabilities)) < probabilities)[0]
        for _ in range(_SIMULATIONS)
    ]
    slope, intercept = slope_and_intercept(probabilities, truth)
    return Calibration(
        error=observed,
        interval=(float(low), float(high)),
        ideal=float(np.mean(ideal)),
        scaled=math.nan if scaled is None else calibration_error(scaled, truth)[0],
        brier=brier(probabilities, truth),
        slope=slope,
        intercept=intercept,
    )
