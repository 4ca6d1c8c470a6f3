"""Images whose maps a reader should see."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float


class Case(NamedTuple):
    """An image to show.

    Attributes:
      row: row of the split.
      kind: "correct", "wrong" or "uncertain"; "image" where that is not known.
      words: words about it.
    """

    row: int
    kind: str
    words: str


def chosen(
    logits: Float[np.ndarray, "n k"], labels: np.ndarray, classes: Sequence[str], count: int
) -> Iterator[Case]:
    """Choose the surest correct, the surest wrong and the most uncertain images of every class.

    An image is of the class of its label; one that may have several labels is of the class of its
    largest logit, and is left out where that class's label is not known.

    Args:
      logits: logits of every image.
      labels: class of each image, or its label for each class.
      classes: names of the classes.
      count: images of each class and kind.
    """
    everywhere, predicted = np.arange(len(logits)), logits.argmax(axis=1)
    if labels.ndim == 1:
        sure = scipy.special.softmax(logits, axis=1)[everywhere, predicted]
        correct, of_class, known = predicted == labels, labels, np.full(len(labels), True)
    else:
        p, label = scipy.special.expit(logits), labels[everywhere, predicted]
        sure = np.abs(p[everywhere, predicted] - 0.5)
        correct, of_class, known = label == 1, predicted, ~np.isnan(label)
    for kind, member, order in (
        ("correct", correct, np.argsort(-sure, kind="stable")),
        ("wrong", ~correct, np.argsort(-sure, kind="stable")),
        ("uncertain", np.full(len(sure), True), np.argsort(sure, kind="stable")),
    ):
        for c in range(len(classes)):
            rows = [row for row in order if member[row] and known[row] and of_class[row] == c]
            for row in rows[:count]:
                said = classes[int(predicted[row])]
                words = said if labels.ndim > 1 else f"{classes[c]}, said to be {said}"
                yield Case(int(row), kind, classes[c] if classes[c] == said else words)
