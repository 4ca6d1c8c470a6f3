"""Fully connected layer, initialised as vision transformers are."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

trunc_normal = jax.nn.initializers.truncated_normal(stddev=0.02)
"""Normal of deviation 0.02 cut at two deviations: weights and tokens of ViT, DeiT and DINOv2."""


def linear(in_width: int, out_width: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Linear:
    """`kernel [in, out]` and `bias [out]` in float32, computing in `dtype`."""
    return nnx.Linear(
        in_width,
        out_width,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=trunc_normal,
        rngs=rngs,
    )
