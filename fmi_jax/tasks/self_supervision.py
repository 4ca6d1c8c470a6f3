"""Self-supervision: a student learns to say of each view what a teacher says of the others.

The loss is DINO's (arXiv 2104.14294, equations 1 to 3 and algorithm 1): cross-entropy of a centred
and sharpened softmax of the teacher and a softmax of the student. No label is read, and nothing is
measured afterwards: other protocols judge the backbone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmi_jax.tasks.base import Objective


class Distillation(NamedTuple):
    """Outputs of a student and its teacher for several views of each image.

    Attributes:
      student: logits of every view; the first `g` are the views that the teacher sees.
      teacher: logits of these `g` views, neither centred nor scaled.
      centre: moving average of the teacher's logits.
      temperature: temperature of the teacher's softmax.
    """

    student: Float[Array, "b v k"]
    teacher: Float[Array, "b g k"]
    centre: Float[Array, " k"]
    temperature: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class SelfSupervision(Objective):
    """Agreement of a student with its teacher across views, without labels.

    Attributes:
      student_temperature: temperature of the student's softmax.
    """

    student_temperature: float
    name = "self_supervision"

    def loss(
        self, outputs: Distillation, batch: Mapping[str, Any]
    ) -> tuple[Float[Array, "b"], dict[str, Array]]:
        """Compute the mean cross-entropy over all pairs of a teacher's view and another view.

        Seen of each image:
          teacher: the teacher's logits, `[k]`; mean over its views.
          teacher_entropy: entropy of what the teacher says of one view, in nats. Collapse to the
            uniform distribution ends at `log(k)`.
          kl: divergence of the student from the teacher, in nats: the loss without the teacher's
            entropy. Collapse to the same output for all images ends at 0.
        """
        log_target = log_targets(outputs)
        target = jnp.exp(log_target)
        said = jax.nn.log_softmax(outputs.student / self.student_temperature)
        # HIGHEST, because by default GPU and TPU would round the factors to 10 or to 7 bits.
        cross = -jnp.einsum("bgk,bvk->bgv", target, said, precision=jax.lax.Precision.HIGHEST)
        _, g, v = cross.shape
        pairs = 1 - jnp.eye(g, v)  # no view with itself
        losses = jnp.einsum("bgv,gv->b", cross, pairs) / pairs.sum()
        # Every view of the teacher is in as many pairs as any other.
        entropy = -(target * log_target).sum(-1).mean(1)
        return losses, {
            "teacher": outputs.teacher.mean(1),
            "teacher_entropy": entropy,
            "kl": losses - entropy,
        }


def log_targets(outputs: Distillation) -> Float[Array, "b g k"]:
    """Logarithms of what the teacher says: a softmax of its centred and sharpened logits."""
    teacher = (outputs.teacher - outputs.centre) / outputs.temperature
    return jax.nn.log_softmax(jax.lax.stop_gradient(teacher))
