"""Images of one patient, lesion or study pooled into one case.

All rules work on logarithms, so that probabilities close to 0 or 1 stay apart.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

RULES = ("mean", "max", "noisy_or")


class Pooled(NamedTuple):
    """Measurements of groups of images, one for each group.

    Attributes:
      measured: measurements of the groups by name, as those of images.
      names: name of each group.
      left_out: number of groups that are not among them, because their images disagree.
    """

    measured: Mapping[str, np.ndarray]
    names: Sequence[str]
    left_out: int


def log_mean(
    logarithms: Float[np.ndarray, "n k"], member: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "g k"]:
    """Compute the logarithm of each group's mean from logarithms."""
    total = np.full((member.max() + 1, logarithms.shape[1]), -np.inf)
    np.logaddexp.at(total, member, logarithms)
    return total - np.log(np.bincount(member))[:, None]


def highest(
    values: Shaped[np.ndarray, "n ..."], member: Int[np.ndarray, "n"]
) -> Shaped[np.ndarray, "g ..."]:
    """Find each group's largest value of each column."""
    found = np.full((member.max() + 1, *values.shape[1:]), values.min(), values.dtype)
    np.maximum.at(found, member, values)
    return found


def noisy_or(
    log_odds: Float[np.ndarray, "n k"], member: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "g k"]:
    """Compute log-odds of a finding in any image of a group, as if images were independent."""
    absent = np.zeros((member.max() + 1, log_odds.shape[1]))  # logarithm of "in none"
    np.add.at(absent, member, -np.logaddexp(0.0, log_odds))
    with np.errstate(divide="ignore"):
        return np.log(-np.expm1(absent)) - absent
