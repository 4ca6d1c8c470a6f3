"""Fully connected layer, initialised as vision transformers are."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

trunc_normal = jax.nn.initializers.truncated_normal(stddev=0.02)
"""Normal of deviation 0.02 cut at two deviations: weights and tokens of ViT, DeiT and DINOv2."""


def linear(
    in_width: int, out_width: int, *, use_bias: bool = True, dtype: Any, rngs: nnx.Rngs
) -> nnx.Linear:
    """`kernel [in, out]` and `bias [out]` in float32, computing in `dtype`."""
    return nnx.Linear(
        in_width,
        out_width,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=trunc_normal,
        dot_general=flat_product,
        rngs=rngs,
    )


def flat_product(
    x: Float[Array, "*n i"], kernel: Float[Array, "i o"], *_: Any, **options: Any
) -> Float[Array, "*n o"]:
    """`jax.lax.dot_general` of `x @ kernel`, in an `nnx.Linear`, as a product of two matrices.

    The gradient of the kernel sums over all of `n`. Over several axes XLA on a CPU copies what
    comes from above with its axes turned round before it multiplies, and that took a third of the
    backward pass of a layer of DeiT-B.
    """
    *n, width = x.shape
    flat = x.reshape(math.prod(n), width)
    y = jax.lax.dot_general(flat, kernel, (((1,), (0,)), ((), ())), **options)
    return y.reshape(*n, kernel.shape[1])
