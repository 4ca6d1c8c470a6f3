"""Patch embedding: turns pixels into tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.nn.conv import convolution


class PatchEmbed(nnx.Module):
    """One token per `patch_size` x `patch_size` patch: `proj`, a convolution whose stride is
    its kernel size.

    Args:
      in_channels: channels of the images.
      width: width of the tokens.
      patch_size: side of a patch in pixels.
      use_bias: True if `proj` has a bias.
      dtype: compute type.
      rngs: stream `params`.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        patch_size: int,
        *,
        use_bias: bool = True,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.proj = nnx.Conv(
            in_channels,
            width,
            kernel_size=(patch_size, patch_size),
            strides=patch_size,
            padding="VALID",
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=jnp.float32,
            # PyTorch's own for a convolution, which DeiT and DINOv2 leave as it is.
            kernel_init=jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            conv_general_dilated=convolution,
            rngs=rngs,
        )

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b rows cols d"]:
        """The grid of patch tokens; `h` and `w` are multiples of the patch size."""
        return self.proj(images)
