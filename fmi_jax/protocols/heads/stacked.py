"""A DeiT that learns on the tokens of the backbone (paper, Tables 1 and 2 "DeiT-B", Figure 5).

Any backbone, and any block of it as the source of the tokens (`backbone.last_block`). As in the
study, the transformer begins with weights of its own (`config.transformer`), its patch embedding
left out.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.models.base import Backbone
from fmi_jax.nn.linear import linear
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.protocols.spec import HeadSpec, Parts, PretrainedNetwork
from fmi_jax.settings import BaseConfig, section


@dataclasses.dataclass(slots=True)
class TransformerConfig:
    """Transformer on top of a foundation model (protocols `stacked_*`).

    Attributes:
      name: a plain DeiT among the backbones; its patch embedding is left out.
      weights: weights of the transformer, given as in `backbone.weights`; the study's are "in1k".
        Empty: random initialisation.
    """

    name: str = "deit_base"
    weights: str = ""


_NORM_EPS = 1e-5  # of the projector: what torch's LayerNorm has, which the study left as it is


class Projector(nnx.Module):
    """Linear layer and layer norm on every token: from one width to another.

    Args:
      in_width: width of the tokens that come in.
      out_width: width of the tokens that go out.
      dtype: compute type of the linear layer.
      rngs: stream `params`.
    """

    def __init__(self, in_width: int, out_width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.linear = linear(in_width, out_width, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(out_width, eps=_NORM_EPS)

    def __call__(self, tokens: Float[Array, "b h w d"]) -> Float[Array, "b h w e"]:
        """Tokens of the other width."""
        return self.norm(self.linear(tokens)).astype(self.linear.dtype)


class StackedClassifier(nnx.Module):
    """Foundation model, projector, transformer, head (paper, Figure 1).

    The foundation's tokens are a grid in every family, so one class serves all of them.

    Args:
      backbone: the foundation model.
      transformer: takes a grid of tokens where a backbone takes an image: its
        `arch.in_channels` is their width. The study's is a DeiT
        (`fmi_jax.models.deit.TokenDeiT`).
      num_classes: width `k` of the logits.
      eval_mode: True if the foundation is always in evaluation mode.
      rngs: stream that draws projector and head: a truncated normal of std 0.02, zero bias.
    """

    def __init__(
        self,
        backbone: Backbone,
        transformer: Backbone,
        num_classes: int,
        *,
        eval_mode: bool,
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone
        self.transformer = transformer
        self.eval_mode = eval_mode
        self.projector = Projector(
            backbone.arch.token_width,
            transformer.arch.in_channels,
            dtype=transformer.execution.dtype,
            rngs=rngs,
        )
        self.head = linear(
            transformer.arch.feature_width, num_classes, dtype=jnp.float32, rngs=rngs
        )

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b k"]:
        """Logits in float32. `rngs` (stream "dropout") means training."""
        features = self.backbone.features(images, rngs=None if self.eval_mode else rngs)
        pooled = self.transformer.features(self.projector(features.tokens), rngs=rngs).pooled
        return self.head(pooled.astype(jnp.float32))


def _build(parts: Parts) -> StackedClassifier:
    assert parts.transformer is not None
    return StackedClassifier(
        parts.backbone,
        parts.transformer,
        parts.num_classes,
        eval_mode=parts.eval_mode,
        rngs=parts.rngs,
    )


def _transformer(config: BaseConfig) -> PretrainedNetwork:
    options = section(config, TransformerConfig)
    return PretrainedNetwork("transformer.weights", options.name, options.weights)


SPEC = HeadSpec(
    name="deit",
    summary="DeiT on its tokens",
    build=_build,
    transformer=_transformer,
    small={"transformer.name": "deit_nano"},
    options=TransformerConfig,
    reads=("transformer",),
)
