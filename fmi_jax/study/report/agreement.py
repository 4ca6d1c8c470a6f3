"""How the numbers stand beside the published ones: by how much they differ, and in which order."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.statistics import FEW, RankCorrelation, rank_correlation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """Ours and the published numbers of one data set.

    Attributes:
      dataset: its name.
      n: rows that have both.
      mean_difference: ours less theirs, in the mean over these rows.
      largest: the difference that is farthest from nought.
      ranks: rank correlation; None where there are too few rows.
    """

    dataset: str
    n: int
    mean_difference: float
    largest: float
    ranks: RankCorrelation | None

    @property
    def too_few(self) -> bool:
        """Whether there are too few rows for a rank correlation."""
        return self.n < FEW


def agreements(numbers: Sequence[Number]) -> list[Agreement]:
    """One for each data set that has rows with both numbers, of the same metric."""
    found = []
    for dataset in dict.fromkeys(number.setting.dataset for number in numbers):
        both = [
            (number.mean, number.setting.published.mean)
            for number in numbers
            if number.setting.dataset == dataset
            and number.setting.published is not None
            and not np.isnan(number.difference)
        ]
        if both:
            ours, theirs = (np.array(side) for side in zip(*both, strict=True))
            differences = ours - theirs
            found.append(
                Agreement(
                    dataset=dataset,
                    n=len(both),
                    mean_difference=float(differences.mean()),
                    largest=float(differences[np.abs(differences).argmax()]),
                    ranks=rank_correlation(ours.tolist(), theirs.tolist()),
                )
            )
    return found
