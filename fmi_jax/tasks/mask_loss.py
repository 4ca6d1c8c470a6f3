"""Loss of masks: cross entropy of the pixels, soft Dice of the foreground, or their sum.

Soft Dice is the Tversky index (arXiv 1706.05721) that weighs false and missed pixels the same. One
pixel is added above and below, so that an image without a class asks for no pixel of it: the third
study's Dice, with which it is identical over a batch and two classes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from fmi_jax.data.labels import IGNORE, Label, resized_maps
from fmi_jax.errors import UsageError
from fmi_jax.settings import LossConfig
from fmi_jax.tasks.base import Objective
from fmi_jax.tasks.imbalance import focal, refuse_soft_labels


@dataclasses.dataclass(frozen=True)
class MaskLoss(Objective):
    """Loss of logits `[b, h, w, k]` for maps, which are resized to them.

    Attributes:
      num_classes: number `k` of classes; class 0 is the background.
      options: terms and their weights; see `LossConfig`.
    """

    name = "masks"
    num_classes: int
    options: LossConfig

    def loss(
        self, outputs: Any, batch: Mapping[str, Any]
    ) -> tuple[Float[Any, "b"], dict[str, Any]]:
        """Compute the loss of each image."""
        import jax  # which reading results does without
        import jax.numpy as jnp

        from fmi_jax.nn.shards import batch_sum

        options = self.options
        labels = resized_maps(batch["labels"], *outputs.shape[1:3])
        log_p = jax.nn.log_softmax(outputs.astype(jnp.float32))
        truth = members(labels, self.num_classes)
        loss = jnp.zeros(len(labels), jnp.float32)
        if options.terms != "dice":
            known = truth.sum(axis=-1, keepdims=True)
            target = truth * (1 - options.label_smoothing)
            target += known * options.label_smoothing / self.num_classes
            cost = (target * focal(log_p, options.focal_gamma)).sum(axis=(1, 2, 3))
            loss += cost / jnp.maximum(known.sum(axis=(1, 2, 3)), 1)
        if options.terms != "cross_entropy":
            p = jnp.exp(log_p) * (labels != IGNORE)[..., None]
            sums = ((p * truth).sum(axis=(1, 2)), p.sum(axis=(1, 2)), truth.sum(axis=(1, 2)))
            if options.dice_over == "batch":
                counts = batch["mask"][:, None]
                sums = tuple(batch_sum((x * counts).sum(axis=0, keepdims=True)) for x in sums)
            loss += 1 - self._overlap(*sums)[:, 1:].mean(axis=-1)
        return loss, {}

    def _overlap(self, both: Any, predicted: Any, true: Any) -> Any:
        """Tversky index of soft counts of pixels."""
        false, missed = self.options.tversky
        return (both + 0.5) / (both + false * (predicted - both) + missed * (true - both) + 0.5)


def members(classes: Any, num_classes: int) -> Any:
    """Membership of each pixel in each class, 0 or 1, `[b, h, w, k]`; `IGNORE` is in none."""
    return (classes[..., None] == np.arange(num_classes)).astype(np.float32)


def mask_loss(num_classes: int, options: LossConfig) -> MaskLoss:
    """Make the loss that a config asks for.

    Raises:
      UsageError: an option is not for masks.
    """
    refuse_soft_labels(options, Label.MAP)
    plain = LossConfig()
    for field in ("class_weights", "logit_adjustment"):
        if getattr(options, field) != getattr(plain, field):
            raise UsageError(
                f"loss.{field}={getattr(options, field)!r} counts images, and these labels are"
                f" masks: expected {getattr(plain, field)!r}; Dice weighs a small class as much as"
                " a large one, and loss.tversky its missed pixels more than false ones."
            )
    return MaskLoss(num_classes, options)
