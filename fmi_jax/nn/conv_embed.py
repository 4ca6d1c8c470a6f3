"""Embedding that takes a hierarchical network from one grid to a coarser one."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.nn.conv import convolution
from fmi_jax.nn.linear import trunc_normal
from fmi_jax.nn.norm import LayerNorm


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
      eps: epsilon of the layer norm.
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
        eps: float,
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
        self.norm = LayerNorm(width, eps=eps)

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
        return self.norm(self.proj(jnp.pad(x, pads))).astype(self.dtype)

    def _pads(self, side: int) -> tuple[int, int]:
        return self.padding, self.padding + (-side % self.stride if self.fill else 0)
