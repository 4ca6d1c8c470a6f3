"""Agreement with published numbers: mean and largest difference, and rank correlation."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.statistics import FEW, RankCorrelation, rank_correlation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement between our numbers and the published ones on one data set.

    Attributes:
      dataset: name of the data set.
      n: number of rows with both numbers.
      mean_difference: our number minus the published one, averaged over these rows.
      largest: difference that is farthest from zero.
      ranks: rank correlation; None if there are too few rows.
    """

    dataset: str
    n: int
    mean_difference: float
    largest: float
    ranks: RankCorrelation | None

    @property
    def too_few(self) -> bool:
        """Test whether there are too few rows for a rank correlation."""
        return self.n < FEW


def agreements(numbers: Sequence[Number]) -> list[Agreement]:
    """Compute the agreement for each data set with rows that have both numbers in one metric."""
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
