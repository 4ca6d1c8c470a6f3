"""Every metric under several weightings of the same images at once, as arrays.

A weighting `[n]` says how often each image counts: a row of ones for the point estimate, the
number of draws for a bootstrap resample. Shapes: `s` weightings, `n` images, `k` classes. What
is undefined is NaN; `fmi_jax.tasks.classification` says what that means.

Averages run over the classes that have a value on the images as they are, whatever the weighting;
one that leaves such a class without a value has no average. `resample` draws none that
does.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num

_BLOCK = 1_000_000  # numbers of resamples in memory at a time
_TRIES = 1024  # draws for one resample before it is given up


class WeightedMetrics(NamedTuple):
    """Metrics under each of `s` weightings.

    Attributes:
      values: aggregate metrics by name, `[s]`.
      per_class: metrics of each class against the rest by name, `[s, k]`.
      known: classes that have such a metric on the images themselves by name, `[k]`.
      confusion: weight by true and predicted class, `[s, k, k]`; multi-label `[s, k, 2, 2]`.
    """

    values: dict[str, np.ndarray]
    per_class: dict[str, np.ndarray]
    known: dict[str, np.ndarray]
    confusion: np.ndarray


def draw_times(
    num_groups: int, resamples: int, seed: int, *, size: int = 0
) -> Iterator[Float[np.ndarray, "b g"]]:
    """Draw how often each group counts: `num_groups` draws with replacement per resample.

    The same `seed` gives the same resamples, so all runs on these images are measured on the same
    ones. They come in blocks of about a million numbers.

    Args:
      num_groups: number `g` of groups.
      resamples: number of resamples.
      seed: random seed.
      size: numbers that the caller makes of a resample; 0: one for each group.
    """
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // (size or num_groups))
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        draws = rng.integers(num_groups, size=(count, num_groups))
        draws += num_groups * np.arange(count)[:, None]
        times = np.bincount(draws.ravel(), minlength=count * num_groups)
        yield times.reshape(count, num_groups).astype(np.float64)


def resample(
    kinds: Bool[np.ndarray, "n m"],
    member: Int[np.ndarray, "n"],
    resamples: int,
    seed: int,
    *,
    size: int = 0,
) -> Iterator[tuple[Float[np.ndarray, "b g"], int]]:
    """Draw resamples of groups (`draw_times`) that hold an image of every kind.

    One that lacks a kind is redrawn, from a stream of its own, so that the others do not depend on
    it. It is given up after 1,024 draws, and then lacks a kind.

    Args:
      kinds: membership of each image in kinds without which a metric has no value; kinds that no
        image has are not asked for.
      member: each image's group.
      resamples: number of resamples.
      seed: random seed.
      size: numbers that the caller makes of a resample; 0: one for each group.

    Yields:
      A block of resamples, and how many of it were redrawn.
    """
    groups = int(member.max()) + 1
    held = np.zeros((groups, kinds.shape[1]))
    np.maximum.at(held, member, kinds.astype(np.float64))
    held = held[:, held.any(axis=0)]
    start = 0
    for times in draw_times(groups, resamples, seed, size=size):
        lacking = np.flatnonzero((times @ held == 0).any(axis=1))
        for row in lacking:
            times[row] = _redrawn(held, (seed, start + int(row)))
        start += len(times)
        yield times, len(lacking)


def _redrawn(held: Float[np.ndarray, "g m"], seed: tuple[int, int]) -> Float[np.ndarray, "g"]:
    """Draw one resample until it holds every kind, or give up and return the last."""
    rng, groups = np.random.default_rng(seed), len(held)
    at_once = max(1, min(64, _BLOCK // groups))
    times = np.zeros((1, groups))
    for _ in range(0, _TRIES, at_once):
        draws = rng.integers(groups, size=(at_once, groups))
        draws += groups * np.arange(at_once)[:, None]
        times = np.bincount(draws.ravel(), minlength=at_once * groups).reshape(at_once, groups)
        whole = (times @ held > 0).all(axis=1)
        if whole.any():
            return times[whole.argmax()].astype(np.float64)
    return times[-1].astype(np.float64)


def interval(values: Float[np.ndarray, "r"]) -> tuple[float, float]:
    """Compute the 95% percentile interval; NaN if a resample has no value."""
    if not len(values) or np.isnan(values).any():
        return math.nan, math.nan
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def log_softmax(logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Log-probabilities of classes of which an image has one.

    Unlike probabilities they keep their order where those reach 0 or 1.
    """
    logits = np.asarray(logits, np.float64)
    others = np.where(np.eye(logits.shape[-1], dtype=bool), -np.inf, logits[:, None, :])
    with np.errstate(invalid="ignore"):  # an impossible row is reported by `Task.checked`
        return -np.logaddexp(0.0, np.logaddexp.reduce(others, axis=-1) - logits)


def one_class(
    logits: Float[np.ndarray, "n k"],
    labels: Int[np.ndarray, "n"],
    weights: Float[np.ndarray, "s n"],
    *,
    binary: bool,
) -> WeightedMetrics:
    """Metrics of images that have one of `k` classes each.

    Args:
      logits: float64 scores, not NaN.
      labels: class indices.
      weights: number of times that each image counts; every row counts at least one.
      binary: True to take AUROC and average precision from the second of two classes.
    """
    n, k = logits.shape
    scores = log_softmax(logits)
    predicted = logits.argmax(axis=1)
    cell = np.zeros((n, k * k))
    cell[np.arange(n), labels * k + predicted] = 1
    confusion = (weights @ cell).reshape(-1, k, k)
    truth = np.eye(k, dtype=bool)[labels]

    hits = np.diagonal(confusion, axis1=1, axis2=2)
    of_class = (confusion.sum(2), confusion.sum(1))
    per_class = _per_class(hits, *of_class, scores, truth, ~truth, weights)
    known = _known(truth, ~truth, np.eye(k, dtype=bool)[predicted])
    macro = _macro(per_class, known)
    index = np.arange(k)
    values = {
        "quadratic_kappa": _kappa(confusion, (index[:, None] - index) ** 2),
        "cohen_kappa": _kappa(confusion, index[:, None] != index),
        "accuracy": _ratio(hits.sum(axis=1), weights.sum(axis=1)),
        "balanced_accuracy": macro["recall"],
        **macro,
    }
    if binary:
        values["roc_auc"] = per_class["roc_auc"][:, 1]
        values["average_precision"] = per_class["average_precision"][:, 1]
    else:
        values["roc_auc"] = _one_vs_one(scores, labels, weights)
        values["roc_auc_ovr"] = mean_over(known["roc_auc"], per_class["roc_auc"])
        values["average_precision"] = mean_over(
            known["average_precision"], per_class["average_precision"]
        )
    values["loss"] = _mean_loss(-scores[np.arange(n), labels], weights)
    return WeightedMetrics(values, per_class, known, confusion)


def several_classes(
    logits: Float[np.ndarray, "n k"],
    labels: Num[np.ndarray, "n k"],
    weights: Float[np.ndarray, "s n"],
) -> WeightedMetrics:
    """Metrics of images that have any number of `k` classes.

    Metrics of a class are those of the images whose label of it is known, the accuracy is that of
    the images whose labels are all known, and the loss is the mean over all known labels.

    Args:
      logits: float64 scores, not NaN; positive where a class is more probable than not.
      labels: 1 for classes that an image has, 0 for others, NaN where it is not known.
      weights: number of times that each image counts; every row counts at least one.
    """
    stated = ~np.isnan(labels)
    truth, predicted = labels == 1, (logits > 0) & stated  # a probability above one half
    hits = weights @ (truth & predicted)
    positive, called = weights @ truth, weights @ predicted
    lacks, whole = stated & ~truth, stated.all(axis=1)
    per_class = _per_class(hits, positive, called, logits, truth, lacks, weights)
    known = _known(truth, lacks, predicted)
    loss = np.where(stated, np.logaddexp(0.0, np.where(truth, -logits, logits)), 0.0)
    values = {
        "accuracy": _ratio(weights @ (whole & (truth == predicted).all(axis=1)), weights @ whole),
        **_macro(per_class, known),
        "roc_auc": mean_over(known["roc_auc"], per_class["roc_auc"]),
        "mAP": mean_over(known["average_precision"], per_class["average_precision"]),
        "loss": _mean_loss(loss.mean(axis=1), weights, stated.mean(axis=1)),
    }
    false_alarms, misses = called - hits, positive - hits
    rest = weights @ lacks - false_alarms
    table = np.stack([rest, false_alarms, misses, hits], axis=-1)
    return WeightedMetrics(values, per_class, known, table.reshape(*hits.shape, 2, 2))


def _per_class(
    hits: np.ndarray,
    positive: np.ndarray,
    called: np.ndarray,
    scores: np.ndarray,
    has: np.ndarray,
    lacks: np.ndarray,
    weights: np.ndarray,
) -> dict[str, np.ndarray]:
    """Each class against the rest, `[s, k]`: `positive` have it, `called` were given it."""
    negative, auc, precision = (np.empty_like(hits) for _ in range(3))
    for c in range(scores.shape[1]):
        at = _by_threshold(scores[:, c], has[:, c], lacks[:, c], weights)
        negative[:, c] = at[1].sum(axis=1)
        auc[:, c], precision[:, c] = _roc_auc(*at), _average_precision(*at)
    return {
        "support": positive,
        "precision": _ratio(hits, called),
        "recall": _ratio(hits, positive),
        "specificity": _ratio(negative - (called - hits), negative),
        "f1": _ratio(2 * hits, positive + called),
        "roc_auc": auc,
        "average_precision": precision,
    }


def _known(has: np.ndarray, lacks: np.ndarray, called: np.ndarray) -> dict[str, np.ndarray]:
    """Find the classes `[k]` that have each metric on the rows as they are."""
    has, lacks, called = (part.sum(axis=0) > 0 for part in (has, lacks, called))
    return {
        "precision": has | called,
        "recall": has,
        "f1": has | called,
        "roc_auc": has & lacks,
        "average_precision": has,
    }


def _macro(per_class: dict[str, np.ndarray], known: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    # Precision is 0 where a class that has images is never predicted. A class without images that
    # was predicted has precision and F1 0 on the images, and under a weighting without these too.
    return {
        "precision": mean_over(known["precision"], np.nan_to_num(per_class["precision"])),
        "recall": mean_over(known["recall"], per_class["recall"]),
        "f1": mean_over(known["f1"], np.nan_to_num(per_class["f1"])),
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, NaN where the whole is nothing."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole != 0)


def mean_over(
    known: Bool[np.ndarray, "k"], values: Float[np.ndarray, "s k"]
) -> Float[np.ndarray, "s"]:
    """Mean over the `known` classes: NaN if one has no value, or if there are none."""
    return _ratio(np.where(known, values, 0.0).sum(axis=-1), np.asarray(known.sum()))


def _mean_loss(
    loss: np.ndarray, weights: np.ndarray, share: np.ndarray | None = None
) -> np.ndarray:
    """Mean over the images; NaN where one counts whose true class has probability 0 (kNN).

    An image of which a `share` of the labels is known counts as this part of one.
    """
    infinite = np.isinf(loss)
    total = weights.sum(axis=1) if share is None else weights @ share
    mean = _ratio(weights @ np.where(infinite, 0.0, loss), total)
    return np.where(weights @ infinite > 0, np.nan, mean)


def _kappa(confusion: np.ndarray, disagreement: np.ndarray) -> np.ndarray:
    """Cohen's kappa under the cost `[k, k]` of each disagreement (Cohen 1968).

    Costs follow the class index even when a class between two others is absent, where
    scikit-learn without `labels` would close the gap.
    """
    chance = confusion.sum(2)[:, :, None] * confusion.sum(1)[:, None, :]
    observed = (disagreement * confusion).sum((1, 2)) * confusion.sum((1, 2))
    return 1 - _ratio(observed, (disagreement * chance).sum((1, 2)))


def _by_threshold(
    scores: np.ndarray, has: np.ndarray, lacks: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of positives and of negatives at each distinct score, ascending, `[s, t]`."""
    order = np.argsort(scores, kind="stable")
    ranked, has, lacks, weights = scores[order], has[order], lacks[order], weights[:, order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    return (
        np.add.reduceat(weights * has, starts, axis=1),
        np.add.reduceat(weights * lacks, starts, axis=1),
    )


def _roc_auc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Chance that a positive outranks a negative, ties counting half (Mann-Whitney)."""
    outranked = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return _ratio((positive * outranked).sum(axis=1), pairs)


def _average_precision(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Precision at each threshold, weighted by the recall gained there; no interpolation."""
    positive, negative = positive[:, ::-1], negative[:, ::-1]
    found = np.cumsum(positive, axis=1)
    called = found + np.cumsum(negative, axis=1)
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    return _ratio((precision * positive).sum(axis=1), positive.sum(axis=1))


def _one_vs_one(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean AUROC over all ordered pairs of classes (Hand and Till 2001), as in the study."""
    pairs, known = [], []
    for a, b in itertools.permutations(range(scores.shape[1]), 2):
        rows = np.flatnonzero((labels == a) | (labels == b))
        if len(rows):
            has = labels[rows] == a
            at = _by_threshold(scores[rows, a], has, ~has, weights[:, rows])
            pairs.append(_roc_auc(*at))
            known.append(len({*labels[rows]}) == 2)
    return mean_over(np.array(known), np.stack(pairs, axis=-1))
