"""Stages of hierarchical vision transformers: maps of tokens that grow coarser and wider."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.nn.conv import convolution
from fmi_jax.nn.linear import trunc_normal
from fmi_jax.nn.mlp import Mlp
from fmi_jax.nn.norm import LayerNorm
from fmi_jax.nn.transformer import linear_rates


class ConvEmbed(nnx.Module):
    """A strided convolution and a layer norm: the stem, and what halves the grid before a stage.

    Args:
      in_width: channels that enter.
      width: width of the tokens that leave.
      kernel_size: side of the kernel, in pixels.
      stride: stride of the convolution.
      padding: zeros on every side.
      fill: True to fill sides that are no multiple of `stride` up with zeros at the bottom and on
        the right first; without it their last pixels may go unread.
      eps: epsilon of the layer norm; None: there is none.
      dtype: compute type.
      rngs: stream `params`.
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        *,
        kernel_size: int,
        stride: int,
        padding: int,
        fill: bool,
        eps: float | None,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.fill, self.dtype = fill, dtype
        self.proj = nnx.Conv(
            in_width,
            width,
            kernel_size=(kernel_size, kernel_size),
            strides=stride,
            padding="VALID",
            dtype=dtype,
            param_dtype=jnp.float32,
            kernel_init=trunc_normal,
            conv_general_dilated=convolution,
            rngs=rngs,
        )
        self.norm = None if eps is None else LayerNorm(width, eps=eps)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that leave for `height` x `width` that enter; below 1 for none."""
        rows, cols = (
            (side + sum(self._pads(side)) - self.kernel_size) // self.stride + 1
            for side in (height, width)
        )
        return rows, cols

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b rows cols d"]:
        """The coarser grid."""
        pads = ((0, 0), *(self._pads(side) for side in x.shape[1:3]), (0, 0))
        x = self.proj(jnp.pad(x, pads))
        return (x if self.norm is None else self.norm(x)).astype(self.dtype)

    def _pads(self, side: int) -> tuple[int, int]:
        return self.padding, self.padding + (-side % self.stride if self.fill else 0)


class MapMlp(Mlp):
    """An `Mlp` for maps, which it computes as sequences of tokens.

    XLA on a CPU sums the gradients of a map in another order.
    """

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """Each token by itself."""
        b, h, w, d = x.shape
        return super().__call__(x.reshape(b, h * w, d)).reshape(b, h, w, d)


class Stage(nnx.Module):
    """Blocks of one width, behind the layer that leads to them from the stage before.

    Args:
      downsample: makes the map coarser and wider; None in the first stage.
      blocks: called as `block(x, rngs)`.
    """

    def __init__(self, downsample: nnx.Module | None, blocks: Iterable[nnx.Module]):
        self.downsample = downsample
        self.blocks = nnx.List(blocks)

    def __call__(
        self, x: Float[Array, "b h w d"], rngs: nnx.Rngs | None
    ) -> Float[Array, "b rows cols width"]:
        """The stage's output, before the layer that leads to the next stage."""
        if self.downsample is not None:
            x = self.downsample(x)
        for block in self.blocks:
            x = block(x, rngs)
        return x


def stages(
    depths: Sequence[int],
    drop_path: float,
    downsample: Callable[[int], nnx.Module],
    block: Callable[[int, int, float], nnx.Module],
) -> list[Stage]:
    """The stages of a network, one after another.

    Args:
      depths: number of blocks in each stage.
      drop_path: stochastic-depth rate of the last block, rising linearly from 0 at the first.
      downsample: makes the layer that leads to a stage from its number; the first has none.
      block: makes a block from the number of its stage, its own number there, and its rate.
    """
    rates = iter(linear_rates(drop_path, sum(depths)))
    return [
        Stage(
            downsample(stage) if stage else None,
            [block(stage, i, next(rates)) for i in range(depth)],
        )
        for stage, depth in enumerate(depths)
    ]


def pad_map(x: Float[Array, "b h w d"], multiple: int) -> Float[Array, "b rows cols d"]:
    """`x` with zero tokens added below and on the right, to multiples of `multiple`."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, -x.shape[2] % multiple), (0, 0)))
