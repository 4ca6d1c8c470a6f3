"""Classification: which of the classes, or which of several findings, an image shows."""

from collections.abc import Callable, Mapping
from typing import Any

import optax
from jaxtyping import Array, Float

from fmi_jax.types import Task


def per_example_loss(task: Task, logits: Float[Array, "b k"], labels: Array) -> Float[Array, "b"]:
    """Cross entropy of each image: softmax, or the mean over classes of sigmoids."""
    if task is Task.MULTILABEL:
        return optax.sigmoid_binary_cross_entropy(logits, labels).mean(axis=-1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def loss_of(task: Task) -> Callable[[Any, Mapping[str, Any]], tuple[Float[Array, "b"], dict]]:
    """Make the loss of a training step: `(logits, batch) -> (loss of each image, {})`."""
    return lambda logits, batch: (per_example_loss(task, logits, batch["labels"]), {})
