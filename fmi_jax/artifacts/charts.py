"""Charts of a finding: the numbers and words to draw. `report.charts` draws them."""

import dataclasses
from collections.abc import Mapping, Sequence

from jaxtyping import Bool, Float, UInt8
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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Outlines:
    """Images with the outlines of their true and predicted masks.

    Attributes:
      names: name of each image.
      images: pixels of each image, of one channel or three.
      true, predicted: pixels of each foreground class.
    """

    names: Sequence[str]
    images: UInt8[ndarray, "n h w c"]
    true: Bool[ndarray, "n h w k"]
    predicted: Bool[ndarray, "n h w k"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Overlays:
    """Images in rows, each beside itself under several maps.

    Attributes:
      names: words about each image.
      images: pixels of each image, of one channel or three.
      maps: values from 0 to 1 for each pixel of each image, by the name of their column.
      masks: pixels whose outline is drawn over the image and its maps; None: there are none.
    """

    names: Sequence[str]
    images: UInt8[ndarray, "n h w c"]
    maps: Mapping[str, Float[ndarray, "n h w"]]
    masks: Bool[ndarray, "n h w"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """Course of several quantities over the steps of a training.

    Attributes:
      panels: steps `[t]` and values `[t]` of each quantity, by its name, one below the other.
    """

    panels: Mapping[str, tuple[ndarray, ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Lines:
    """Quantities between 0 and 1 over a share from 0 to 1, in panels side by side.

    Attributes:
      x, y: labels of the axes.
      panels: lines by name, by the title of their panel: values at equal distances, and in a second
        row those of a rival, if there is one.
    """

    x: str
    y: str
    panels: Mapping[str, Mapping[str, Float[ndarray, "r t"]]]


Chart = Matrix | Ratios | Outlines | Overlays | Curves | Lines

PICTURES = (Outlines, Overlays)
"""Charts that show images of the data."""
