"""Figure of a study, as a plan describes it and a report draws it."""

import dataclasses

# A report starts without jax, so this module imports neither it nor what imports it.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """Figure of a study: its kind and coordinates.

    Attributes:
      kind: "dots" (a value for each model), "curves" (values over `x`), "gain" (relative to a
        baseline), "time" (cost of training and inference), "layers" (CKA of layers) or "models"
        (CKA of the last layers of several models).
      x: coordinate along the horizontal axis of curves, in the order of the settings.
      x_label: label of the horizontal axis.
      lines: coordinate that a line, a colour or a row stands for.
    """

    kind: str
    x: str = ""
    x_label: str = ""
    lines: str = "model"
