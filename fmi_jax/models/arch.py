"""Shapes that most networks have, one width or stages of doubling width; features of stages."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from fmi_jax.models.base import ArchConfig, Backbone
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.types import Features


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerArch(ArchConfig):
    """The shape of a vision transformer of one width; a block is a transformer block.

    Attributes:
      patch_size: pixels per patch side.
      width: width of the tokens.
      depth: number of blocks.
      num_heads: heads of each attention; divides `width`.
      mlp_width: hidden width of the MLP.
      norm_eps: epsilon of every layer norm.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    norm_eps: float

    @property
    def num_blocks(self) -> int:
        """`depth`."""
        return self.depth

    @property
    def feature_width(self) -> int:
        """`width`."""
        return self.width

    @property
    def token_width(self) -> int:
        """`width`."""
        return self.width

    def truncated(self, block: int) -> ArchConfig:
        """The arch that ends after `block`."""
        self.check_block(block)
        return dataclasses.replace(self, depth=block + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagedArch(ArchConfig):
    """The shape of a network of stages, each twice as wide as the one before; a block is a stage.

    Every field that is a tuple has one entry per stage.

    Attributes:
      width: width of the first stage.
      depths: number of residual blocks in each stage.
      mlp_ratio: hidden width of the MLPs over the width of their stage.
      norm_eps: epsilon of every layer norm.
    """

    width: int
    depths: tuple[int, ...]
    mlp_ratio: float
    norm_eps: float

    @property
    def num_blocks(self) -> int:
        """Number of stages."""
        return len(self.depths)

    @property
    def feature_width(self) -> int:
        """Width of the last stage."""
        return self.width * 2 ** (self.num_blocks - 1)

    def truncated(self, block: int) -> ArchConfig:
        """The arch that ends after stage `block`."""
        self.check_block(block)
        kept: dict[str, Any] = {
            name: value[: block + 1]
            for name, value in vars(self).items()
            if isinstance(value, tuple)
        }
        return dataclasses.replace(self, **kept)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormedStagedArch(StagedArch):
    """The shape of a network of stages that ends with a norm.

    Attributes:
      final_norm: True if the network ends in a norm; False where it was cut off.
    """

    final_norm: bool

    def truncated(self, block: int) -> ArchConfig:
        """The arch that ends after stage `block`."""
        final_norm = self.final_norm and block == self.num_blocks - 1
        return dataclasses.replace(super().truncated(block), final_norm=final_norm)


class NormedStages(Backbone):
    """A network of stages with a norm after the last one; without [cls], `pooled` is the mean."""

    arch: NormedStagedArch  # pyright: ignore[reportIncompatibleVariableOverride]
    norm: LayerNorm

    def readout(
        self, x: Float[Array, "b rows cols d"], block: int, grid: tuple[int, int]
    ) -> Features:
        """Features of a network that ends here; the norm is that of the last stage alone."""
        if self.arch.final_norm and block == self.arch.num_blocks - 1:
            x = self.norm(x)
        tokens = x.astype(jnp.float32)
        return Features(tokens.mean(axis=(1, 2)), tokens, None)
