"""Comparison of the maps of a network with two that know nothing.

These are the same maps of a network with random weights, and a Gaussian at the centre.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fmi_jax.saliency.agreement import standard_error
from fmi_jax.tasks.intervals import Z, scaled

CENTRE = "Centred Gaussian"
_INTERVAL = "standard error between groups, logit scale"

Values = Mapping[str, Float[np.ndarray, "n"]]
"""Value of each image by measure."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yardstick:
    """Measures of a map, one of which decides.

    Attributes:
      titles: column title of each measure, by its name.
      least: smallest value of each measure; the largest is 1.
      deciding: name of the measure that decides; more of it is better.
      words: name of that measure in a sentence.
      claim: predicate of the sentence on maps that are ahead ("find what the masks show").
    """

    titles: Mapping[str, str]
    least: Mapping[str, float]
    deciding: str
    words: str
    claim: str


def compare(
    yardstick: Yardstick,
    own: Mapping[str, Values],
    drawn: Mapping[str, Values],
    centre: Values,
    member: Int[np.ndarray, "n"],
) -> tuple[dict[str, Any], list[str]]:
    """Compare maps, with 95% intervals over groups of images.

    Args:
      yardstick: measures.
      own, drawn: values of the maps of the network, and of one with random weights, by the maps'
        titles.
      centre: values of the Gaussian.
      member: each image's group, numbered from 0.

    Returns:
      JSON values, and a note for each map that is not ahead of both.
    """
    methods, notes = {}, []
    for title, values in own.items():
        ahead = {
            words: _interval_of_mean(values[yardstick.deciding] - rival[yardstick.deciding], member)
            for words, rival in (
                ("random weights", drawn[title]),
                ("the centre of the image", centre),
            )
        }
        methods[title] = {
            "trained": _summary(yardstick, values, member),
            "random weights": _summary(yardstick, drawn[title], member),
            "ahead_of": ahead,
        }
        if lost := [words for words, (low, _) in ahead.items() if not low > 0]:
            notes.append(
                f"{title} is not shown to {yardstick.claim} better than {' and '.join(lost)}: the"
                f" 95% interval of the difference in {yardstick.words} is not above 0."
            )
    return {
        "images": len(member),
        "groups": int(member.max()) + 1,
        "interval": _INTERVAL,
        "methods": methods,
        CENTRE: _summary(yardstick, centre, member),
    }, notes


def table(yardstick: Yardstick, found: Mapping[str, Any], words: str) -> str:
    """Table of a comparison as text.

    Args:
      yardstick: measures.
      found: JSON values from `compare`; empty: there is no table.
      words: property that the images share ("with something in the mask").
    """
    if not found:
        return ""

    def line(name: str, row: Mapping[str, Mapping[str, float]]) -> str:
        cells = [
            f"{one['value']:.3f}"
            + (f" ({one['low']:.3f} to {one['high']:.3f})" if "low" in one else "")
            for one in (row[measure] for measure in yardstick.titles)
        ]
        return f"{name:<36}" + "".join(f"{cell:>26}" for cell in cells)

    lines = [f"{'':<36}" + "".join(f"{title:>26}" for title in yardstick.titles.values())]
    for name, row in found["methods"].items():
        lines.append(line(name, row["trained"]))
        lines.append(line(f"  {name}, random weights", row["random weights"]))
    lines.append(line(CENTRE, found[CENTRE]))
    of = f" of {found['groups']} groups" if found["groups"] < found["images"] else ""
    lines.append(f"{found['images']} images{of} {words}".rstrip())
    return "\n".join(lines)


def _summary(
    yardstick: Yardstick, values: Values, member: Int[np.ndarray, "n"]
) -> dict[str, dict[str, float]]:
    found = {}
    for name in yardstick.titles:
        mean, error = float(values[name].mean()), standard_error(values[name], member)
        interval = scaled(mean, error, (yardstick.least[name], 1.0), _INTERVAL)
        ends = {"low": interval.low, "high": interval.high} if interval.defined else {}
        found[name] = {"value": mean, **ends}
    return found


def _interval_of_mean(
    values: Float[np.ndarray, "n"], member: Int[np.ndarray, "n"]
) -> tuple[float, float]:
    """95% interval of the mean of differences between pairs; NaN with fewer than two groups."""
    mean, half = float(values.mean()), Z * standard_error(values, member)
    return mean - half, mean + half
