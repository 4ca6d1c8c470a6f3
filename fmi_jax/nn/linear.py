"""Fully connected layer, initialised as vision transformers are."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.nn import hardware

trunc_normal = jax.nn.initializers.truncated_normal(stddev=0.02)
"""Normal of deviation 0.02 cut at two deviations: weights and tokens of ViT, DeiT and DINOv2."""

# PyTorch's own for linear layers and convolutions: uniform, of variance `1 / (3 * inputs)`.
pytorch_uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def linear(
    in_width: int, out_width: int, *, use_bias: bool = True, dtype: Any, rngs: nnx.Rngs
) -> nnx.Linear:
    """`kernel [in, out]` and `bias [out]` in float32, computing in `dtype`."""
    return Linear(
        in_width,
        out_width,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=trunc_normal,
        dot_general=flat_product,
        rngs=rngs,
    )


class Linear(nnx.Linear):
    """An `nnx.Linear` that rounds once where a CPU has instructions for bfloat16.

    There the gradient of the bias is a sum in float32, too: in bfloat16 XLA on a CPU takes as
    long for it as for a product.
    """

    def __call__(self, inputs: Float[Array, "*n i"], out_sharding=None) -> Float[Array, "*n o"]:
        """The layer's output, in its compute type."""
        if self.dtype != jnp.bfloat16 or not hardware.bfloat16_products():
            return super().__call__(inputs, out_sharding)
        *n, width = inputs.shape
        y = _bfloat16_product(inputs.reshape(math.prod(n), width), self.kernel[...])
        if self.bias is not None:
            y = y + self.bias[...]
        return y.astype(self.dtype).reshape(*n, self.out_features)


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
    if x.dtype == kernel.dtype == jnp.bfloat16 and hardware.bfloat16_products():
        y = _bfloat16_product(flat, kernel).astype(jnp.bfloat16)
    else:
        y = jax.lax.dot_general(flat, kernel, (((1,), (0,)), ((), ())), **options)
    return y.reshape(*n, kernel.shape[1])


@jax.custom_vjp
def _bfloat16_product(x: Float[Array, "n i"], kernel: Float[Array, "i o"]) -> Float[Array, "n o"]:
    """`x @ kernel` of both rounded to bfloat16, summed in float32, and so its gradients.

    XLA on a CPU takes its bfloat16 instructions only for a product that sums in float32 and whose
    left operand lies with the summed axis last; any other it computes in float32, its operands
    converted first. It decides so before it simplifies the program, and where a neighbouring
    transposition is drawn into the product later on, the program fails as it runs. Hence the
    walls around it.
    """
    return _bfloat16_forward(x, kernel)[0]


def _bfloat16_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    narrow = x.astype(jnp.bfloat16)
    y = _summed_in_float32(narrow, kernel.astype(jnp.bfloat16), 0)
    return y, (narrow, kernel, jnp.zeros((), x.dtype))


def _bfloat16_backward(kept: tuple[Array, Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel, like_x = kept
    dy = dy.astype(jnp.bfloat16)
    dx = _summed_in_float32(dy, kernel.astype(jnp.bfloat16), 1)
    dkernel = _summed_in_float32(_turned(x), dy, 0)
    return dx.astype(like_x.dtype), dkernel.astype(kernel.dtype)


_bfloat16_product.defvjp(_bfloat16_forward, _bfloat16_backward)


def _turned(x: Float[Array, "n i"]) -> Float[Array, "i n"]:
    """The transpose of `x`, held in memory row by row.

    XLA gives the transpose of a matrix the memory order of the matrix itself; by way of three
    axes it gets that of any other array.
    """
    return jax.lax.optimization_barrier(x.T[None])[0]


def _summed_in_float32(a: Array, b: Array, axis: int) -> Array:
    """Product of two matrices over the last axis of `a` and `axis` of `b`."""
    wall = jax.lax.optimization_barrier
    dimensions = (((1,), (axis,)), ((), ()))
    a, b = wall((a, b))
    return wall(jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32))
