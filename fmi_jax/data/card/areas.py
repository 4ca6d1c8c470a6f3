"""Areas of masks: the share of its image that each class of a data set covers."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from fmi_jax.data.masks import pixel_counts
from fmi_jax.data.prepared import PreparedDataset


@dataclasses.dataclass(frozen=True)
class ClassAreas:
    """Shares of their image that prepared masks of one class cover.

    Attributes:
      name: name of the class.
      shares: more than 0 to 1 for every image that has the class, by split.
    """

    name: str
    shares: Mapping[str, Float[np.ndarray, "n"]]

    def quartiles(self) -> tuple[float, ...]:
        """Smallest share, quartiles and largest over all splits; none where no image has it."""
        found = np.concatenate([*self.shares.values()])
        return tuple(np.quantile(found, np.linspace(0, 1, 5)).tolist()) if len(found) else ()


def find_areas(dataset: PreparedDataset) -> list[ClassAreas]:
    """Read the areas of every class but the background.

    Raises:
      UserError: an older version prepared the set, and did not count pixels.
    """
    info = dataset.info
    counts = {split: pixel_counts(dataset, split) / info.size**2 for split in info.counts}
    return [
        ClassAreas(
            info.classes[c],
            {split: shares[shares[:, c] > 0, c] for split, shares in counts.items()},
        )
        for c in range(info.label.background, len(info.classes))
    ]
