"""What a protocol is: which classifier is built, and which of its parameters learn."""

import dataclasses
from collections.abc import Callable

from flax import nnx

from fmi_jax.models.base import Backbone


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtocolSpec:
    """A way of judging a backbone.

    Attributes:
      name: as in `config.protocol`.
      summary: one line for help and reports.
      classifier: builds the model from `(backbone, num_classes, rngs)`; called as
        `model(images, rngs=...)`, it returns logits.
      trainable: whether the parameter of this native name ("backbone.blocks.0...",
        "head.kernel") learns. What does not gets no gradient, no optimizer slot and no place in
        the checkpoints of the run.
    """

    name: str
    summary: str
    classifier: Callable[[Backbone, int, nnx.Rngs], nnx.Module]
    trainable: Callable[[str], bool]
