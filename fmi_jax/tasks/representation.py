"""Measures of a set of features: how far they differ, and whether neighbours share labels.

Each takes `[n, f]`, one row for each image, and computes on the host in float64.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

_LEAST = 1e-12
_ROWS = 512  # images that look for neighbours at once


def spread_of(features: Float[np.ndarray, "n f"]) -> float:
    """Standard deviation of the features' unit vectors about their mean: 0 if all are alike."""
    centred = _unit(features)
    centred = centred - centred.mean(0)
    return float(np.sqrt(np.square(centred).sum(1).mean()))


def effective_dimensions(features: Float[np.ndarray, "n f"]) -> float:
    """Effective rank of the centred features: exponential of the entropy of singular values.

    The definition is Roy and Vetterli's (2007); RankMe (arXiv 2210.02885) predicts by it how well
    a self-supervised network will do. It is 0 where all features are the same.
    """
    centred = features.astype(np.float64)
    centred = centred - centred.mean(0)
    values = np.linalg.svd(centred, compute_uv=False)
    if values.sum() <= _LEAST * max(1.0, float(np.abs(features).max())) * len(values):
        return 0.0
    share = values / values.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def similarity(first: Float[np.ndarray, "n f"], second: Float[np.ndarray, "n f"]) -> float:
    """Mean cosine of the features of the same image in two networks, each set centred first."""
    a, b = (_unit(x - x.mean(0, dtype=np.float64)) for x in (first, second))
    return float((a * b).sum(1).mean())


def neighbour_votes(
    features: Float[np.ndarray, "n f"],
    membership: Float[np.ndarray, "n c"],
    groups: Sequence[str] | None,
    *,
    k: int,
    temperature: float,
) -> Float[np.ndarray, "n c"]:
    """Class probabilities of every image by the nearest of the others.

    Args:
      features: features; not normalised.
      membership: vote of each image: one-hot, or 0 to 1 for every class.
      groups: patient or lesion of each image, of which no other image votes; at least two. None:
        each its own.
      k: number of neighbours; fewer where there are not as many.
      temperature: temperature in the weights `exp(cosine / temperature)`.
    """
    unit = _unit(features)
    own = np.arange(len(unit)) if groups is None else np.unique(groups, return_inverse=True)[1]
    found = np.empty(membership.shape)
    for start in range(0, len(unit), _ROWS):
        rows = slice(start, start + _ROWS)
        cosine = unit[rows] @ unit.T
        cosine[own[rows, None] == own] = -np.inf
        nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
        closeness = np.take_along_axis(cosine, nearest, axis=1)
        # Relative to the nearest: the weights are the same, and none is too large.
        weights = np.exp((closeness - closeness[:, :1]) / temperature)
        weights /= weights.sum(1, keepdims=True)
        found[rows] = np.einsum("qk,qkc->qc", weights, membership[nearest])
    return found.clip(0, 1)  # rounding may exceed 1


def _unit(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), _LEAST)
