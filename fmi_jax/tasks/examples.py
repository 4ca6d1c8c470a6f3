"""Images of the test split that a reader of a classification should see."""

import numpy as np

from fmi_jax.data.labels import Label
from fmi_jax.drawing.template import jpeg_uri, thumbnail
from fmi_jax.tasks.base import Example, ExampleGroup, ImageOf
from fmi_jax.tasks.predictions import Predictions

_COUNT = 14


def groups(predictions: Predictions, image_of: ImageOf) -> list[ExampleGroup]:
    """Make the groups of a page: images of every class, and the surest mistakes."""
    if predictions.label is Label.VECTOR:
        note = (
            "In bold the true classes, below them the predicted ones. The percentage is how sure"
            " the classifier was of the class it is most wrong about, or of its surest class where"
            " all are right. Not selected: images at even distances through the test set."
        )
    else:
        note = (
            "In bold the true class, below it the prediction with its probability. Not selected:"
            " the first images of every class."
        )
    chosen = (
        ("Test images", note, typical_rows(predictions, _COUNT)),
        ("Most confident mistakes", "", confident_mistakes(predictions, _COUNT)),
    )
    return [
        ExampleGroup(title, note, [example(predictions, row, image_of) for row in rows])
        for title, note, rows in chosen
    ]


def typical_rows(predictions: Predictions, count: int) -> list[int]:
    """Up to `count` rows, the classes in turn and in order; multi-label: evenly spread."""
    labels = _labels(predictions)
    n = len(labels)
    if predictions.label is Label.VECTOR:
        return sorted({int(row) for row in np.linspace(0, n - 1, min(count, n))})
    place = np.empty(n, np.int64)  # how many earlier images have the same class
    for c in range(len(predictions.classes)):
        place[labels == c] = np.arange((labels == c).sum())
    chosen = np.lexsort((labels, place))[:count]
    return [int(row) for row in chosen[np.lexsort((place[chosen], labels[chosen]))]]


def confident_mistakes(predictions: Predictions, count: int) -> list[int]:
    """Up to `count` rows that were classified wrongly, the surest first."""
    certainty, correct = _certainty(predictions)
    wrong = np.flatnonzero(~correct)
    return [int(row) for row in wrong[np.argsort(-certainty[wrong], kind="stable")][:count]]


def example(predictions: Predictions, row: int, image_of: ImageOf) -> Example:
    """The image in `row` of the split with its true and predicted class."""
    certainty, correct = _certainty(predictions)

    def name(value: np.ndarray) -> str:
        if predictions.label is Label.VECTOR:
            return ", ".join(predictions.classes[c] for c in np.flatnonzero(value == 1)) or "none"
        return predictions.classes[int(value)]

    return Example(
        id=predictions.ids[row],
        label=name(_labels(predictions)[row]),
        predicted=name(predictions.predicted[row]),
        certainty=float(certainty[row]),
        correct=bool(correct[row]),
        image=jpeg_uri(thumbnail(image_of(row))),
    )


def _labels(predictions: Predictions) -> np.ndarray:
    if predictions.labels is None:
        raise ValueError("examples need predictions with labels")
    return predictions.labels


def _certainty(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """How sure each prediction is, and whether it is right."""
    labels, predicted, p = _labels(predictions), predictions.predicted, predictions.probabilities
    if predictions.label is Label.VECTOR:
        sure = np.where(predicted == 1, p, 1 - p)
        wrong = (predicted != labels) & ~np.isnan(labels)
        right = ~wrong.any(axis=1)
        counted = np.where(right[:, None], True, wrong)
        return np.where(counted, sure, 0).max(axis=1), right
    return p.max(axis=1), predicted == labels
