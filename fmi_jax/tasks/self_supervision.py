"""Self-supervision: a student learns to say of each view what a teacher says of the others.

`SelfSupervision` is DINO's loss (arXiv 2104.14294, equations 1 to 3 and algorithm 1): cross-entropy
of a centred and sharpened softmax of the teacher and a softmax of the student. `ViewPrediction` is
that of BYOL (arXiv 2006.07733) and SimSiam (arXiv 2011.10566): the cosine of what is predicted from
a view and of what another view gives. No label is read, and nothing is measured afterwards: other
protocols judge the backbone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmi_jax.tasks.base import Objective

_LEAST_NORM = 1e-12


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


class Predictions(NamedTuple):
    """Outputs of two networks for several views of each image.

    Attributes:
      predicted: prediction of one network from each view.
      target: projection of each view by the other; no gradient flows into it.
    """

    predicted: Float[Array, "b v d"]
    target: Float[Array, "b v d"]


@dataclasses.dataclass(frozen=True)
class ViewPrediction(Objective):
    """Agreement of what is predicted from one view with another view, without labels.

    The loss is `scale * (1 - cosine) + offset`, with the mean cosine over all pairs of two views.
    A view is never compared with itself, as it is in the second study's code (M2 in
    docs/protocols.md).

    Attributes:
      scale: 4 in BYOL, which adds `2 - 2 * cosine` of two pairs; 1 in SimSiam.
      offset: 0 in BYOL; -1 in SimSiam, which is `-cosine`.
    """

    scale: float
    offset: float
    name = "view_prediction"

    def loss(
        self, outputs: Predictions, batch: Mapping[str, Any]
    ) -> tuple[Float[Array, "b"], dict[str, Array]]:
        """Compute the loss of each image.

        Seen of each image:
          cosine: mean cosine of a prediction and its target.
          feature: mean unit vector of the targets, `[d]`. `spread` of its mean over the batch says
            whether they are all the same.
        """
        predicted, target = unit(outputs.predicted), unit(jax.lax.stop_gradient(outputs.target))
        cosines = jnp.einsum("bvd,bwd->bvw", predicted, target, precision=jax.lax.Precision.HIGHEST)
        v = cosines.shape[1]
        pairs = 1 - jnp.eye(v)
        cosine = jnp.einsum("bvw,vw->b", cosines, pairs) / pairs.sum()
        losses = self.scale * (1 - cosine) + self.offset
        return losses, {"cosine": cosine, "feature": target.mean(1)}


def spread(mean_feature: Float[Array, "d"]) -> Float[Array, ""]:
    """Standard deviation of unit vectors about their mean, over all axes: 0 if all are the same."""
    return jnp.sqrt(jnp.maximum(1 - jnp.square(mean_feature).sum(), 0.0))


def unit(x: Float[Array, "*n f"]) -> Float[Array, "*n f"]:
    """Divide vectors by their Euclidean norms, in float32."""
    x = x.astype(jnp.float32)
    return _divided(x, jnp.square(x).sum(-1, keepdims=True))


def unit_columns(x: Float[Array, "f k"]) -> Float[Array, "f k"]:
    """Divide the columns of a matrix by their Euclidean norms, in float32.

    The squares are added by a product. XLA on a CPU puts a sum of columns into whatever product
    follows, and adds anew for every row of it: 4.4 s instead of 0.04 for 65,536 columns of 256.
    """
    x = x.astype(jnp.float32)
    ones = jnp.ones((1, len(x)), jnp.float32)
    return _divided(x, jnp.matmul(ones, jnp.square(x), precision=jax.lax.Precision.HIGHEST))


def _divided(x: Array, squared_norms: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.maximum(squared_norms, _LEAST_NORM**2))
