"""Loss of a classification whose classes are of unequal frequency.

Class weights, focal loss (arXiv 1708.02002), label smoothing and logit adjustment (arXiv
2007.07314), alone or together. They act on training alone: the loss among the metrics stays the
plain cross entropy. A weighted loss is divided by the number of images, not by the sum of their
weights as in PyTorch, so that the loss of a batch is the mean over its parts however it is cut.
Balanced weights have the mean 1 over the training images, so that over these the two agree.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from fmi_jax.data.labels import Label
from fmi_jax.errors import UsageError
from fmi_jax.settings import LossConfig
from fmi_jax.tasks.base import Objective


@dataclasses.dataclass(frozen=True)
class ImbalanceLoss(Objective):
    """Cross entropy of a softmax, or of a sigmoid for each class, with weights and corrections.

    Attributes:
      label: form of the labels, a class or a yes or no for each.
      focal_gamma, label_smoothing: see `LossConfig`.
      weights: factor of each class (of its positives, where there is a sigmoid for each).
      shift: summand of the logits.
    """

    name = "imbalance"
    label: Label
    focal_gamma: float
    label_smoothing: float
    weights: tuple[float, ...]
    shift: tuple[float, ...]

    def loss(
        self, outputs: Any, batch: Mapping[str, Any]
    ) -> tuple[Float[Any, "b"], dict[str, Any]]:
        """Compute the loss of each image."""
        import jax  # which reading results does without
        import jax.numpy as jnp

        labels, k, smoothing = batch["labels"], len(self.weights), self.label_smoothing
        logits = outputs.astype(jnp.float32) + np.array(self.shift, np.float32)
        weights = np.array(self.weights, np.float32)
        if self.label is Label.INDEX:
            truth = jax.nn.one_hot(labels, k) * (1 - smoothing) + smoothing / k
            surprise = focal(jax.nn.log_softmax(logits), self.focal_gamma)
            return (weights * truth * surprise).sum(axis=-1), {}
        yes, no = (focal(jax.nn.log_sigmoid(x), self.focal_gamma) for x in (logits, -logits))

        def cost(labels: Any) -> Any:
            truth = labels * (1 - smoothing) + smoothing / 2
            return weights * truth * yes + (1 - truth) * no

        return over_known(cost, labels), {}


def focal(log_p: Any, gamma: float) -> Any:
    """Compute what a truth costs whose probability has this logarithm; `gamma` 0: its surprise."""
    import jax.numpy as jnp

    return -((1 - jnp.exp(log_p)) ** gamma) * log_p if gamma else -log_p


def over_known(cost: Callable[[Any], Any], labels: Float[Any, "b k"]) -> Float[Any, "b"]:
    """Mean over the classes of what their labels cost, 0 where a label is not known (NaN).

    The sum is divided by the number of all classes, so that every known label counts the same,
    however many others of its image are known.

    Args:
      cost: computes what labels without NaN cost, `[b, k]`.
      labels: labels, 0 to 1 or NaN.
    """
    import jax.numpy as jnp  # which reading results does without

    known = ~jnp.isnan(labels)
    return jnp.where(known, cost(jnp.where(known, labels, 0)), 0).mean(axis=-1)


def refuse_soft_labels(config: LossConfig, label: Label) -> None:
    """Raise `UsageError` if soft labels are to be drawn of labels that are never soft."""
    plain = LossConfig().soft_labels
    if config.soft_labels != plain and label is not Label.VECTOR:
        raise UsageError(
            f"loss.soft_labels={config.soft_labels!r} is for {Label.VECTOR.words}, and these labels"
            f" are {label.words}: expected {plain!r}."
        )


def imbalance_loss(
    label: Label,
    classes: Sequence[str],
    config: LossConfig,
    counts: Sequence[float],
    total: ArrayLike,
) -> ImbalanceLoss:
    """Make the loss that a config asks for.

    Args:
      label: form of the labels.
      classes: names of the classes.
      config: options.
      counts: training images of each class.
      total: training images whose label of a class is known, one number or one for each class.

    Raises:
      UsageError: an option is not for these labels, or needs images of a class that has none.
    """
    for field in ("terms", "dice_over", "tversky"):
        if getattr(config, field) != getattr(LossConfig(), field):
            raise UsageError(
                f"loss.{field}={getattr(config, field)!r} is for masks, and these labels are"
                f" {label.words}: expected {getattr(LossConfig(), field)!r}."
            )
    refuse_soft_labels(config, label)
    one, n, total = label is Label.INDEX, np.array(counts, float), np.asarray(total)
    if config.logit_adjustment and not one:
        raise UsageError(
            f"loss.logit_adjustment={config.logit_adjustment:g} is for images of one class each:"
            " expected 0, or loss.class_weights='balanced'."
        )
    weights, shift = (1.0,) * len(n), np.zeros(len(n))
    if config.class_weights == "balanced":
        weights = balanced_weights(one, classes, counts, total, things="training image")
    if config.logit_adjustment:
        _check_present("logit_adjustment", classes, n, "training image")
        shift = config.logit_adjustment * np.log(n / total)
    return ImbalanceLoss(
        label=label,
        focal_gamma=config.focal_gamma,
        label_smoothing=config.label_smoothing,
        weights=weights,
        shift=tuple(shift.tolist()),
    )


def balanced_weights(
    one: bool, classes: Sequence[str], counts: Sequence[float], total: ArrayLike, *, things: str
) -> tuple[float, ...]:
    """Weigh each class in inverse proportion to how often it occurs in training.

    Args:
      one: True where each image or pixel has one class: the mean weight over them is 1. False
        where it has any number: the positives of a class weigh as much as its negatives.
      classes: names of the classes.
      counts: images or pixels of each class.
      total: images or pixels whose label of a class is known, one number or one for each class.
      things: word for what is counted, in the message.

    Raises:
      UsageError: a class never occurs.
    """
    n = np.asarray(counts, float)
    _check_present("class_weights='balanced'", classes, n, things)
    weights = total / (len(n) * n) if one else (np.asarray(total) - n) / n
    return tuple(weights.tolist())


def _check_present(field: str, classes: Sequence[str], n: np.ndarray, things: str) -> None:
    if not n.all():
        raise UsageError(
            f"loss.{field}: no {things} is of class {classes[int(np.argmin(n))]!r}; expected at"
            " least one of each."
        )
