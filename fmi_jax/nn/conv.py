"""Convolutions that the library ones are no match for, and the patch embedding made of one."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.nn import hardware
from fmi_jax.nn.linear import flat_product, pytorch_uniform
from fmi_jax.nn.norm import BatchNorm
from fmi_jax.nn.recompute import compute_once


class DepthwiseConv(nnx.Module):
    """A convolution of each channel by itself that keeps the size of its input.

    Args:
      width: number of channels.
      kernel_size: odd side of the square kernel, in pixels.
      use_bias: True to add a bias.
      init: draws the kernel.
      dtype: compute type.
      rngs: stream `params`.
    """

    def __init__(
        self,
        width: int,
        kernel_size: int,
        *,
        use_bias: bool,
        init: Callable[..., Array] = pytorch_uniform,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        shape = (kernel_size, kernel_size, 1, width)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32)) if use_bias else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Convolved, with zeros around `x`."""
        y = depthwise_conv(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


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
            kernel_init=pytorch_uniform,  # DeiT and DINOv2 leave it as it is
            conv_general_dilated=convolution,
            rngs=rngs,
        )

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b rows cols d"]:
        """The grid of patch tokens; `h` and `w` are multiples of the patch size."""
        return self.proj(images)


class ConvNorm(nnx.Module):
    """A square convolution without bias, a batch norm and ReLU: the layer of decoders.

    Padded by half its side, and drawn as segmentation_models_pytorch draws it (Kaiming uniform).

    Args:
      in_width, width: channels before and after.
      size: side of the kernel, odd.
      stride: stride in both directions.
      dtype: compute type of the convolution.
      rngs: stream `params`.
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        size: int,
        stride: int = 1,
        *,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            in_width,
            width,
            kernel_size=(size, size),
            strides=stride,
            padding=size // 2,
            use_bias=False,
            dtype=dtype,
            param_dtype=jnp.float32,
            kernel_init=nnx.initializers.he_uniform(),
            conv_general_dilated=convolution,
            rngs=rngs,
        )
        self.norm = BatchNorm(width, eps=1e-5, momentum=0.1)

    def __call__(self, x: Float[Array, "b h w c"], *, training: bool) -> Float[Array, "b h2 w2 d"]:
        """The layer's output in its compute type; a training batch moves the running statistics."""
        return nnx.relu(self.norm(self.conv(x), training=training))


def depthwise_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"]
) -> Float[Array, "b h w c"]:
    """Each channel correlated with its own odd kernel, zeros around.

    On a CPU it is written out as a sum of shifted products, and so is its gradient: XLA's own
    takes 14 times the processor time there (7x7, 56x56 pixels, 96 channels).
    """
    if hardware.platform() == "cpu":
        return _shifted_products(x, kernel)
    return _lax_convolution(x, kernel, (1, 1), "SAME", feature_group_count=x.shape[-1])


def convolution(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k c d"],
    strides: tuple[int, int],
    padding: str | Sequence[tuple[int, int]],
    **_: Any,
) -> Float[Array, "b rows cols d"]:
    """`jax.lax.conv_general_dilated`, in an `nnx.Conv` too; without dilation and groups.

    Patches without overlap are a matrix product: XLA on a CPU fuses a convolution with the
    products before it, to the loss of both (FocalNet-T's forward pass took a tenth longer). On a
    CPU the gradients of the others are written out with the axes in the order of a forward
    convolution, which XLA brings about at the top of a program alone: in a loop, as of accumulated
    micro-batches, or in a branch they took thirty times as long.
    """
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    pads = tuple(padding)
    if tuple(strides) == kernel.shape[:2] and not any(map(any, pads)):
        return _patch_product(x, kernel)
    if hardware.platform() == "cpu":
        return _convolution(x, kernel, tuple(strides), pads)
    return _lax_convolution(x, kernel, strides, pads)


def _patch_product(x: Array, kernel: Array) -> Array:
    k, _, c, _ = kernel.shape
    return flat_product(cut_patches(x, k), kernel.reshape(k * k * c, -1))


def cut_patches(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b rows cols n"]:
    """The pixels of each whole patch of `size` x `size`, row by row, channels last."""
    b, h, w, c = images.shape
    rows, cols = h // size, w // size
    patches = images[:, : rows * size, : cols * size].reshape(b, rows, size, cols, size, c)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows, cols, size * size * c)


Pads = Sequence[tuple[int, int]]


_lax_convolution = functools.partial(
    jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC")
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
    return _lax_convolution(x, kernel, strides, pads)


def _convolution_backward(
    strides: Sequence[int], pads: Pads, kept: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    # Along each axis `dy` has `reach` positions, its gaps counted. Pads on the far side make up
    # for positions that no patch read.
    around_dy, around_x = [], []
    for axis, (stride, (near, _)) in enumerate(zip(strides, pads, strict=True)):
        size, side = x.shape[1 + axis], kernel.shape[axis]
        reach = (dy.shape[1 + axis] - 1) * stride + 1
        around_dy.append((side - 1 - near, size + near - reach))
        around_x.append((near, reach + side - 1 - size - near))
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    dx = _lax_convolution(dy, turned, (1, 1), around_dy, lhs_dilation=strides)
    # Channels take the place of images, and images that of channels.
    by_channel = _lax_convolution(
        x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), (1, 1), around_x, rhs_dilation=strides
    )
    return dx, by_channel.transpose(1, 2, 0, 3)


_convolution.defvjp(
    lambda x, kernel, strides, pads: (_convolution(x, kernel, strides, pads), (x, kernel)),
    _convolution_backward,
)


@jax.custom_vjp
def _shifted_products(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"]
) -> Float[Array, "b h w c"]:
    """The convolution, one product per tap, which XLA fuses to one loop over an image.

    In bfloat16, too, the taps are summed in float32: XLA rounds after every operation otherwise.
    """
    return _sum_of_taps(_padded(x, kernel.shape[0]), kernel, *x.shape[1:3]).astype(x.dtype)


def _shifted_products_backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = kept
    side = kernel.shape[0]
    # Padded once for both: XLA computes what leads to `dy` again for each of its readers.
    dy_padded = _padded(dy, side)
    dx = _sum_of_taps(dy_padded, kernel[::-1, ::-1], *x.shape[1:3])
    dkernel = _kernel_gradient(_padded(x, side), dy_padded, side)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


_shifted_products.defvjp(
    lambda x, kernel: (_shifted_products(x, kernel), (x, kernel)), _shifted_products_backward
)

_ROWS = 16  # of all images in a step of the loop below: 8 took twice as long


def _padded(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b rows cols c"]:
    """`x` in float32, with `side // 2` zeros around."""
    pad = side // 2
    return jnp.pad(x.astype(jnp.float32), ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def _sum_of_taps(
    padded: Float[Array, "b rows cols c"], kernel: Float[Array, "k k 1 c"], h: int, w: int
) -> Float[Array, "b {h} {w} c"]:
    side, kernel = kernel.shape[0], kernel.astype(jnp.float32)
    taps = [(i, j) for i in range(side) for j in range(side)]

    def one_pass(padded: Array, kernel: Array) -> Array:
        return sum(padded[:, i : i + h, j : j + w] * kernel[i, j] for i, j in taps)  # type: ignore[return-value]

    return compute_once(one_pass, padded, kernel)


def _kernel_gradient(
    x: Float[Array, "b rows cols c"], dy: Float[Array, "b rows cols c"], side: int
) -> Float[Array, "k k 1 c"]:
    """`sum over b, h, w of x[b, h + i, w + j] * dy[b, h, w]` for all taps `i, j` at once, both
    arrays padded.

    A reduction per tap would read both `side ** 2` times. Here the images lie one below the
    other, zero rows between them, and a loop takes a few rows of all that at a time, small
    enough for the cache, and adds their products to a sum per tap and column.
    """
    pad, (_, _, cols, c) = side // 2, x.shape
    w = cols - 2 * pad
    x, tall_dy = x.reshape(-1, cols, c), dy.reshape(-1, cols, c)

    def add(first: Array | int, count: int, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        x_rows = jax.lax.dynamic_slice_in_dim(x, first, count + 2 * pad)
        dy_rows = jax.lax.dynamic_slice(tall_dy, (first + pad, pad, 0), (count, w, c))
        return tuple(
            total + sum(x_rows[r : r + side, j : j + w] * dy_rows[r] for r in range(count))
            for j, total in enumerate(sums)
        )

    steps, rest = divmod(x.shape[0] - 2 * pad, _ROWS)
    # For each j, [i, w, c].
    by_column = tuple(jnp.zeros((side, w, c), jnp.float32) for _ in range(side))
    if steps:
        step: Callable[..., Any] = lambda i, sums: add(i * _ROWS, _ROWS, sums)  # noqa: E731
        by_column = jax.lax.fori_loop(0, steps, step, by_column)
    if rest:
        by_column = add(steps * _ROWS, rest, by_column)
    gradient = jnp.stack([total.sum(1) for total in by_column], axis=1)
    return gradient[:, :, None]
