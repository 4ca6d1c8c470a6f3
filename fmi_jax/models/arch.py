"""Networks of stages: their shapes and their features."""

import dataclasses
from typing import Any, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from fmi_jax.models.base import ArchConfig, Backbone
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.types import Features


class StageByStage(ArchConfig):
    """The shape of a network whose blocks are stages; a tuple has one entry per stage.

    No dataclass: where `depths` stands among the fields, and so in files, is for families to say.
    """

    depths: tuple[int, ...]

    @property
    def num_blocks(self) -> int:
        """Number of stages."""
        return len(self.depths)

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
class StagedArch(StageByStage):
    """The shape of a network of stages, each twice as wide as the one before.

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
    def feature_width(self) -> int:
        """Width of the last stage."""
        return self.width * 2 ** (self.num_blocks - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormedStagedArch(StagedArch):
    """The shape of a network of stages that ends with a norm.

    Attributes:
      final_norm: True if the network ends in a norm; False where it was cut off.
    """

    final_norm: bool

    def truncated(self, block: int) -> ArchConfig:
        """The arch that ends after stage `block`."""
        return dataclasses.replace(
            super().truncated(block), final_norm=self.final_norm and block == self.num_blocks - 1
        )


N = TypeVar("N", bound=NormedStagedArch)


class NormedStages(Backbone[N]):
    """A network of stages with a norm after the last one; without [cls], `pooled` is the mean."""

    norm: LayerNorm

    def readout(
        self, x: Float[Array, "b rows cols d"], block: int, grid: tuple[int, int]
    ) -> Features:
        """Features of a network that ends here; the norm is that of the last stage alone."""
        if self.arch.final_norm and block == self.arch.num_blocks - 1:
            x = self.norm(x)
        tokens = x.astype(jnp.float32)
        return Features(tokens.mean(axis=(1, 2)), tokens, None)
