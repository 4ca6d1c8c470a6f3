"""Loss of masks: cross entropy of the pixels, soft Dice of the foreground, or their sum.

Where masks overlap, each class has a cross entropy of its own (a sigmoid), and their mean counts.

Soft Dice is the Tversky index (arXiv 1706.05721) that weighs false and missed pixels the same. One
pixel is added above and below, so that an image without a class asks for no pixel of it: the third
study's Dice, with which it is identical over a batch and two classes.

Class weights act on the cross entropy. A class counts in inverse proportion to its pixels in the
training masks; where masks overlap, the pixels of a class as much as those without it. As in
`imbalance`, the weighted cost is divided by the number of pixels, not by the sum of their weights.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from fmi_jax.data.labels import IGNORE, Label, resized_maps
from fmi_jax.errors import UsageError
from fmi_jax.settings import LossConfig
from fmi_jax.tasks.base import Objective
from fmi_jax.tasks.imbalance import balanced_weights, focal, refuse_soft_labels


@dataclasses.dataclass(frozen=True)
class MaskLoss(Objective):
    """Loss of logits `[b, h, w, k]` for maps, which are resized to them.

    Attributes:
      label: form of the maps.
      options: terms and their weights; see `LossConfig`.
      weights: factor of each of the `k` classes in the cross entropy (of its pixels alone, where
        masks overlap).
    """

    name = "masks"
    label: Label
    options: LossConfig
    weights: tuple[float, ...]

    def loss(
        self, outputs: Any, batch: Mapping[str, Any]
    ) -> tuple[Float[Any, "b"], dict[str, Any]]:
        """Compute the loss of each image."""
        import jax.numpy as jnp  # which reading results does without

        from fmi_jax.nn.shards import batch_sum

        options = self.options
        labels = resized_maps(batch["labels"], *outputs.shape[1:3])
        logits = outputs.astype(jnp.float32)
        truth = members(self.label, labels, len(self.weights))
        known = (labels != IGNORE).astype(jnp.float32)[..., None]
        loss = jnp.zeros(len(labels), jnp.float32)
        if options.terms != "dice":
            cost = self._cross_entropy(logits, truth, known).sum(axis=(1, 2))
            loss += cost / jnp.maximum(known.sum(axis=(1, 2, 3)), 1)
        if options.terms != "cross_entropy":
            p = probabilities(self.label, logits) * known
            sums = ((p * truth).sum(axis=(1, 2)), p.sum(axis=(1, 2)), truth.sum(axis=(1, 2)))
            if options.dice_over == "batch":
                counts = batch["mask"][:, None]
                sums = tuple(batch_sum((x * counts).sum(axis=0, keepdims=True)) for x in sums)
            loss += 1 - self._overlap(*sums)[:, self.label.background :].mean(axis=-1)
        return loss, {}

    def _cross_entropy(self, logits: Any, truth: Any, known: Any) -> Any:
        """Weighted cross entropy of each pixel, `[b, h, w]`; 0 where the truth is not known."""
        import jax

        k, gamma, smoothing = (
            len(self.weights),
            self.options.focal_gamma,
            self.options.label_smoothing,
        )
        weights = np.array(self.weights, np.float32)
        if self.label is Label.MAP:
            target = truth * (1 - smoothing) + known * smoothing / k
            return (weights * target * focal(jax.nn.log_softmax(logits), gamma)).sum(axis=-1)
        target = truth * (1 - smoothing) + known * smoothing / 2
        yes, no = (focal(jax.nn.log_sigmoid(x), gamma) for x in (logits, -logits))
        return (weights * target * yes + (known - target) * no).mean(axis=-1)

    def _overlap(self, both: Any, predicted: Any, true: Any) -> Any:
        """Tversky index of soft counts of pixels."""
        false, missed = self.options.tversky
        return (both + 0.5) / (both + false * (predicted - both) + missed * (true - both) + 0.5)


def probabilities(label: Label, logits: Any) -> Any:
    """Compute the probability of each class in each pixel, `[b, h, w, k]`, of maps in this form."""
    import jax

    return jax.nn.softmax(logits) if label is Label.MAP else jax.nn.sigmoid(logits)


def members(label: Label, maps: Any, num_classes: int) -> Any:
    """Membership of each pixel in each class, 0 or 1, `[b, h, w, k]`; `IGNORE` is in none."""
    return label.pixels_of(maps[..., None], np.arange(num_classes)).astype(np.float32)


def mask_loss(
    label: Label,
    classes: Sequence[str],
    options: LossConfig,
    counts: Sequence[float],
    total: ArrayLike,
) -> MaskLoss:
    """Make the loss that a config asks for.

    Args:
      label: form of the maps.
      classes: names of the classes.
      options: terms and their weights.
      counts: pixels of each class in the training masks; read for class weights alone.
      total: pixels of all training masks.

    Raises:
      UsageError: an option is not for masks, or needs pixels of a class that has none.
    """
    refuse_soft_labels(options, label)
    if options.logit_adjustment:
        raise UsageError(
            f"loss.logit_adjustment={options.logit_adjustment!r} counts images, and these labels"
            " are masks: expected 0.0; loss.class_weights='balanced' counts their pixels."
        )
    weights = (1.0,) * len(classes)
    if options.class_weights == "balanced":
        weights = balanced_weights(
            label is Label.MAP, classes, counts, total, things="pixel of the training masks"
        )
    return MaskLoss(label, options, weights)
