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
from fmi_jax.rules import one_of
from fmi_jax.settings import BaseConfig, section


@dataclasses.dataclass(slots=True)
class TransformerConfig:
    """Transformer on top of a foundation model (protocols `stacked_*`).

    Attributes:
      name: a plain DeiT among the backbones; its patch embedding is left out.
      weights: weights of the transformer, given as in `backbone.weights`; the study's are "in1k".
        Empty: random initialisation.
      tokens: tokens of the foundation that it learns on: "normed", as the foundation hands them on,
        or "block", as they leave the last block that is kept (the study, where the foundation is
        cut; the same for SAM, SEEM and DINOv2).
    """

    name: str = "deit_base"
    weights: str = ""
    tokens: str = one_of("normed", "normed", "block")


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
      before_norm: True to read the tokens as they leave the last block of the foundation.
      rngs: stream that draws projector and head: a truncated normal of std 0.02, zero bias.
    """

    def __init__(
        self,
        backbone: Backbone,
        transformer: Backbone,
        num_classes: int,
        *,
        eval_mode: bool,
        before_norm: bool = False,
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone
        self.transformer = transformer
        self.eval_mode = eval_mode
        self.before_norm = before_norm
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
        tokens = self.tokens(images, rngs=None if self.eval_mode else rngs)
        pooled = self.transformer.features(self.projector(tokens), rngs=rngs).pooled
        return self.head(pooled.astype(jnp.float32))

    def tokens(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b rows cols d"]:
        """Tokens of the foundation that the projector reads."""
        if not self.before_norm:
            return self.backbone.features(images, rngs=rngs).tokens
        count = self.backbone.arch.num_blocks
        *_, x = self.backbone.outputs(images, count, rngs=rngs)
        return self.backbone.tokens_of(x, count - 1, self.backbone.grid(*images.shape[1:3]))


def _build(parts: Parts) -> StackedClassifier:
    assert parts.transformer is not None
    return StackedClassifier(
        parts.backbone,
        parts.transformer,
        parts.num_classes,
        eval_mode=parts.eval_mode,
        before_norm=section(parts.config, TransformerConfig).tokens == "block",
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
