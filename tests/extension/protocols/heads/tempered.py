"""A linear head whose logits are divided by a temperature."""

import dataclasses

from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float

from fmi_jax.protocols.spec import HeadSpec, Parts
from fmi_jax.rules import positive
from fmi_jax.settings import section


@dataclasses.dataclass(slots=True)
class TemperedConfig:
    """Linear head with a temperature (head `tempered`).

    Attributes:
      temperature: divisor of the logits.
    """

    temperature: float = positive(1.0)


class TemperedClassifier(nnx.Module):
    """`head(backbone.features(images).pooled) / temperature`."""

    def __init__(self, parts: Parts):
        self.backbone = parts.backbone
        self.eval_mode = parts.eval_mode
        self.temperature = section(parts.config, TemperedConfig).temperature
        self.head = nnx.Linear(
            parts.backbone.arch.feature_width, parts.num_classes, rngs=parts.rngs
        )

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b k"]:
        """Logits in float32."""
        features = self.backbone.features(images, rngs=None if self.eval_mode else rngs)
        return self.head(features.pooled.astype(jnp.float32)) / self.temperature


SPEC = HeadSpec(
    name="tempered",
    summary="linear head with a temperature",
    build=TemperedClassifier,
    options=TemperedConfig,
    reads=("tempered",),
    small={"tempered.temperature": 0.7},
)
