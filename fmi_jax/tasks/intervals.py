"""95% intervals of a metric: Wilson's for a proportion, DeLong's for an AUROC, else a bootstrap's.

`docs/statistics.md` has the coverage of each, which decided between them. Images of one patient,
lesion or study are not independent: `member` says which images belong together, and every method
has a form that counts groups.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
from jaxtyping import Bool, Float, Int

_ROUNDING = 1e-12  # spread of resamples that all have the same value

Z = float(scipy.stats.norm.ppf(0.975))

WILSON, DELONG, BOOTSTRAP = "Wilson", "DeLong, logit scale", "bootstrap, logit scale"
NEWCOMBE = "Newcombe"


class Interval(NamedTuple):
    """A 95% interval.

    Attributes:
      low, high: ends; NaN where the data give none.
      method: name of the method, for a reader.
    """

    low: float
    high: float
    method: str

    @property
    def defined(self) -> bool:
        """True if there are ends."""
        return not math.isnan(self.low)


def wilson(share: float, size: float) -> Interval:
    """Wilson's score interval of a proportion (1927).

    Args:
      share: observed proportion.
      size: number of independent observations, or their effective number.
    """
    if not size > 0:
        return Interval(math.nan, math.nan, WILSON)
    shrink = 1 + Z**2 / size
    centre = (share + Z**2 / (2 * size)) / shrink
    half = Z / shrink * math.sqrt(share * (1 - share) / size + Z**2 / (4 * size**2))
    # It holds the share, and at 0 and 1 ends there, but for rounding.
    low, high = min(share, centre - half), max(share, centre + half)
    return Interval(max(0.0, low), min(1.0, high), WILSON)


def proportion(
    hit: Bool[np.ndarray, "n"], counted: Bool[np.ndarray, "n"], member: Int[np.ndarray, "n"]
) -> Interval:
    """Wilson's interval of the share of hits among the counted images.

    Groups enter by the effective number of images: that which has the binomial variance equal to
    the variance between groups (of a ratio, by linearisation); with no or only hits, the number of
    groups.

    Args:
      hit: images that are hits; those not counted do not matter.
      counted: images that the share is of.
      member: each image's group.
    """
    rows, group = np.flatnonzero(counted), np.unique(member[counted], return_inverse=True)[1]
    if not len(rows):
        return wilson(math.nan, 0)
    share, groups = float(hit[rows].mean()), int(group.max()) + 1
    if groups == len(rows):
        return wilson(share, len(rows))
    if groups == 1:
        return wilson(share, math.nan)
    between = np.bincount(group, hit[rows] - share)
    variance = groups / (groups - 1) * (between**2).sum() / len(rows) ** 2
    size = share * (1 - share) / variance if variance else groups
    return wilson(share, min(size, len(rows)))


def delong(
    scores: Float[np.ndarray, "r n"],
    truth: Bool[np.ndarray, "n"],
    member: Int[np.ndarray, "n"] | None = None,
) -> tuple[Float[np.ndarray, "r"], Float[np.ndarray, "r r"]]:
    """AUROC of several scores of the same images, and their covariance.

    DeLong et al. (1988); with groups Obuchowski (1997), which is the same where each group is one
    image.

    Args:
      scores: scores of `r` models; larger ones speak for a positive.
      truth: True for positives.
      member: each image's group; None: every image is its own.

    Returns:
      AUROCs, NaN without a positive and a negative; covariance, NaN without two groups of each.
    """
    count, positive, negative = len(scores), int(truth.sum()), int((~truth).sum())
    if not positive or not negative:
        return np.full(count, np.nan), np.full((count, count), np.nan)
    rank = scipy.stats.rankdata
    ahead = (rank(scores, axis=1)[:, truth] - rank(scores[:, truth], axis=1)) / negative
    behind = 1 - (rank(scores, axis=1)[:, ~truth] - rank(scores[:, ~truth], axis=1)) / positive
    area = ahead.mean(axis=1)
    member = np.arange(len(truth)) if member is None else np.unique(member, return_inverse=True)[1]
    groups = int(member.max()) + 1

    def summed(parts: np.ndarray, of: np.ndarray) -> tuple[np.ndarray, int]:
        away = parts - area[:, None]
        sums = np.stack([np.bincount(member[of], row, groups) for row in away])
        return sums / of.sum(), len({*member[of].tolist()})

    (up, ups), (down, downs) = summed(ahead, truth), summed(behind, ~truth)
    if min(ups, downs) < 2:
        return area, np.full((count, count), np.nan)
    across = up @ down.T
    covariance = (
        ups / (ups - 1) * up @ up.T
        + downs / (downs - 1) * down @ down.T
        + groups / (groups - 1) * (across + across.T)
    )
    return area, covariance


def delong_p(
    scores: Float[np.ndarray, "2 n"],
    truth: Bool[np.ndarray, "n"],
    member: Int[np.ndarray, "n"] | None = None,
) -> float:
    """Two-sided p-value of equal AUROCs of two scores of the same images (DeLong et al. 1988)."""
    area, covariance = delong(scores, truth, member)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if not variance > 0:
        return math.nan
    return float(2 * scipy.stats.norm.sf(abs(area[0] - area[1]) / math.sqrt(variance)))


def auroc(
    scores: Float[np.ndarray, "n"], truth: Bool[np.ndarray, "n"], member: Int[np.ndarray, "n"]
) -> Interval:
    """DeLong's interval of an AUROC on the logit scale, and Newcombe's of one that is 0 or 1."""
    area, covariance = delong(scores[None], truth, member)
    variance = float(covariance[0, 0])
    if variance > 0:
        return scaled(float(area[0]), math.sqrt(variance), (0.0, 1.0), DELONG)
    if math.isnan(variance) or area[0] not in (0, 1):
        return Interval(math.nan, math.nan, DELONG)
    return _newcombe(float(area[0]), len({*member[truth]}), len({*member[~truth]}))


def _newcombe(area: float, positive: int, negative: int) -> Interval:
    """Newcombe's interval (2006, method 5): areas within `Z` standard errors of themselves."""
    other = (positive + negative) / 2 - 1

    def error(at: float) -> float:
        tail = 1 + other * (1 - at) / (2 - at) + other * at / (1 + at)
        return math.sqrt(at * (1 - at) * tail / (positive * negative))

    # Symmetric: an area of 0 is one of 1 with the classes exchanged.
    end: Any = scipy.optimize.brentq(lambda at: 1 - at - Z * error(at), 1e-9, 1 - 1e-12)
    return Interval(end, 1.0, NEWCOMBE) if area == 1 else Interval(0.0, 1 - end, NEWCOMBE)


def scaled(
    value: float, error: float, bounds: tuple[float, float], method: str = BOOTSTRAP
) -> Interval:
    """Interval that is symmetric on the scale without bounds, so it never leaves them.

    The scale is the logit of the place between the bounds, or the logarithm where there is no upper
    one. There is no interval of a value at a bound, or without a spread.

    Args:
      value: metric.
      error: standard error of the metric, as it is.
      bounds: smallest and largest value of the metric.
      method: name of the method.
    """
    low, high = bounds
    if not (error > _ROUNDING and low < value < high):
        return Interval(math.nan, math.nan, method)
    if math.isinf(high):
        factor = math.exp(Z * error / (value - low))
        return Interval(low + (value - low) / factor, low + (value - low) * factor, method)
    width = high - low
    at = (value - low) / width
    centre, half = math.log(at / (1 - at)), Z * error / width / (at * (1 - at))
    ends = low + width * scipy.special.expit([centre - half, centre + half])
    return Interval(float(ends[0]), float(ends[1]), method)


def holm(p: Sequence[float]) -> Float[np.ndarray, "m"]:
    """Adjust p-values for multiple tests (Holm 1979); NaN was not tested and does not count."""
    values = np.asarray(p, np.float64)
    adjusted = np.full(len(values), np.nan)
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    stepped = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted
