"""Charts of a finding: the numbers and words to draw. `report.charts` draws them."""

import dataclasses
from collections.abc import Sequence

from jaxtyping import Float
from numpy import ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Matrix:
    """Heat map of values between 0 and 1.

    Attributes:
      values: value of every row and column; NaN is left grey.
      unit: label of the colour bar ("CKA").
      rows, columns: names.
      titles: networks whose layers the rows and the columns are, from the first layer to the
        last, to be shown by their numbers; None: every name is written out.
    """

    values: Float[ndarray, "n m"]
    unit: str
    rows: Sequence[str]
    columns: Sequence[str]
    titles: tuple[str, str] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """Ratios of one quantity, a row each.

    Attributes:
      title: name of the quantity.
      spreads: lowest, median and highest ratio.
      values: the quantity itself, in words.
    """

    title: str
    spreads: Float[ndarray, "n 3"]
    values: Sequence[str]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ratios:
    """Medians and ranges of ratios to a reference, in panels side by side.

    Attributes:
      reference: name of what is at 1.
      rows: names, the same in all panels.
      panels: quantities, one or two.
    """

    reference: str
    rows: Sequence[str]
    panels: Sequence[Panel]


Chart = Matrix | Ratios
