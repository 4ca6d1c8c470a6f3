"""Choices that decide numbers, where the code of the study is wrong or unclear.

`docs/protocols.md` lists them with the reasons. The report shows each with the values that the
cells of a table had.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fmi_jax.fields import within
from fmi_jax.study.report.numbers import Number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A choice that decides numbers.

    Attributes:
      finding: number in the list of docs/protocols.md.
      field: config field that makes the choice.
      theirs: behaviour of the study's code.
      empty: meaning of an empty value.
    """

    finding: str
    field: str
    theirs: str
    empty: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A choice with the values it had.

    Attributes:
      choice: choice that was made.
      values: number of cells with each value.
    """

    choice: Choice
    values: Mapping[str, int]


CHOICES = (
    Choice(
        finding="B5",
        field="backbone.stem",
        theirs="first: of a grey image only the red kernel (matters for one-channel data alone)",
    ),
    Choice(
        finding="B1",
        field="backbone.readout",
        empty="the backbone's own: cls of BLIP",
        theirs="first_patch: of BLIP the upper left patch instead of [cls]",
    ),
    Choice(
        finding="B26",
        field="backbone.rel_pos_resize",
        empty="the backbone's own: linear of SAM",
        theirs="nearest, by a missing argument (matters for SAM at other than 1024 pixels)",
    ),
    Choice(
        finding="B29",
        field="image_size",
        theirs="224; 1024, where DINOv2 fails and the paper does not say what was used",
    ),
    Choice(
        finding="B29",
        field="augment.center_crop",
        theirs="0.875: the central 224 of 256 pixels, in training too",
    ),
    Choice(
        finding="B6, B7",
        field="backbone.dtype",
        theirs="float16 or float32 by nesting; float32 in the test",
    ),
    Choice(
        finding="B20",
        field="data.split",
        theirs="a list in the data folder, used again if the sizes match",
    ),
    Choice(
        finding="B16",
        field="optim.schedule",
        theirs="constant, as shipped; the paper says a tenth at each plateau",
    ),
    Choice(
        finding="B16",
        field="optim.plateau_patience",
        theirs="2 in a part of the settings that is not used; the paper gives none",
    ),
    Choice(
        finding="B15, B44",
        field="optim.warmup_steps",
        theirs="by data set, whatever the config says; ends 1/w too high, doubled without warm-up",
    ),
    Choice(
        finding="B15, B44",
        field="optim.warmup_epochs",
        theirs="the same",
    ),
    Choice(
        finding="B45",
        field="optim.weight_decay",
        theirs="the same: on every tensor of rank above 1",
    ),
    Choice(
        finding="rates",
        field="optim.learning_rate",
        theirs="the best of four between 1e-5 and 1e-3, printed nowhere",
    ),
    Choice(
        finding="rates",
        field="probe_grid.learning_rates",
        theirs="the best of four between 1e-5 and 1e-3, printed nowhere",
    ),
    Choice(finding="B14", field="knn.k", theirs="200"),
    Choice(finding="B14", field="knn.temperature", theirs="0.1"),
    Choice(
        finding="CKA",
        field="cka.estimator",
        theirs="averaged: the mean of the CKA of each batch",
    ),
)


def choices_of(numbers: Sequence[Number]) -> list[Made]:
    """Collect the choices that matter to the cells behind these numbers, with their values."""
    outcomes = dict.fromkeys(outcome for number in numbers for outcome in number.used)
    results = [outcome.finished for outcome in outcomes]
    found = []
    for choice in CHOICES:
        values = collections.Counter(
            _text(_value(result.config, choice.field)) or choice.empty or "empty"
            for result in results
            if not within(choice.field, result.unread)
        )
        if values:
            found.append(Made(choice=choice, values=values))
    return found


def _value(config: Mapping[str, Any], field: str) -> Any:
    value: Any = config
    for name in field.split("."):
        value = value.get(name, "") if isinstance(value, Mapping) else ""
    return value


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
