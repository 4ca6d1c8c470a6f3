"""Division of a batch over devices, as far as layers know of it.

A step computes every device's share of the batch as a program of its own (`parallel.by_shard`):
nothing crosses devices but what is asked for here. Parameters that are divided over the "data"
axis are gathered where they are used, statistics of the batch are averaged over it, and random
numbers of an image do not depend on its device. Outside of such a program every function returns
what it is given.

The "model" axis divides heads and hidden channels; there XLA's partitioner does the work, told by
`along_model` what is divided. A fused kernel, of queries, keys and values or of a gate and what it
gates, would be cut across its parts, where the outputs of a device have to be the same share of
each part. So its outputs are ordered by device first (`interleaved`); `fused_parts` takes them
apart.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

DATA, MODEL = "data", "model"

FUSED = {"attn.qkv": 3, "mlp.w12": 2}
"""Number of parts of each fused layer, by the end of its name."""

_DIVIDED = "divided"  # metadata of a variable: its dimension that DATA divides


def num_shards() -> int:
    """Number of devices that share the batch; 1 outside of a program by shard."""
    return jax.sharding.get_abstract_mesh().shape[DATA] if _in_shards() else 1


def _in_shards() -> bool:
    return DATA in jax.sharding.get_abstract_mesh().manual_axes


def _divisor(axis: str) -> int:
    """Devices that XLA's partitioner divides an array over along `axis` of the mesh; 1 for none."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if axis in mesh.manual_axes else mesh.shape.get(axis, 1)


def local_share(images: int, heads: int) -> tuple[int, int]:
    """The images and heads of one device, given those that a layer sees."""
    return max(images // _divisor(DATA), 1), max(heads // _divisor(MODEL), 1)


def batch_mean(local: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The mean over the whole batch, from the mean over this device's share of it."""
    return jax.lax.pmean(local, DATA) if _in_shards() else local


def batch_sum(local: Array) -> Array:
    """The sum over the whole batch, from the sum over this device's share of it."""
    return jax.lax.psum(local, DATA) if _in_shards() else local


def own_rows(draw: Callable[[int], Array], count: int) -> Array:
    """The `count` rows of this device, from `draw(n)`, which draws those of the whole batch.

    They are the rows that one device would draw, however the batch is divided.
    """
    if not _in_shards():
        return draw(count)
    whole = draw(count * num_shards())
    return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(DATA) * count, count)


def divided(variable: nnx.Variable, axis: int) -> nnx.Variable:
    """The variable, marked as this device's part along `axis` of the whole array."""
    variable.set_metadata(_DIVIDED, axis)
    return variable


def gathered(state: Any, dtype: Any) -> Any:
    """A state whose divided variables are whole.

    Args:
      state: tree of `nnx.Variable`.
      dtype: compute type. Matrices cross the devices in it, for they are used in it; vectors as
        they are.
    """

    def gather(variable: nnx.Variable) -> nnx.Variable:
        axis = variable.get_metadata().get(_DIVIDED)
        if axis is None:
            return variable
        value = variable.get_value()
        if value.ndim > 1:
            value = value.astype(dtype)
        whole = variable.replace(jax.lax.all_gather(value, DATA, axis=axis, tiled=True))
        whole.set_metadata(_DIVIDED, None)
        return whole

    return jax.tree.map(gather, state, is_leaf=lambda x: isinstance(x, nnx.Variable))


def along_model(x: Array, axis: int | None) -> Array:
    """`x`, with dimension `axis` divided along "model"; None: whole on every device of it."""
    size = _divisor(MODEL)
    if size == 1:
        return x
    spec: list[Any] = [None] * x.ndim
    if axis is not None and x.shape[axis] % size == 0:
        spec[axis] = MODEL
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def num_parts(name: str) -> int:
    """Number of parts of the fused kernel or bias of this native name; 1 for any other."""
    layer, _, leaf = name.rpartition(".")
    if leaf not in ("kernel", "bias"):
        return 1
    return next((n for end, n in FUSED.items() if f".{layer}".endswith("." + end)), 1)


def kept_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in memory, where "model" divides heads, of what files have as `shape`.

    A fused kernel `[i, parts * w]` is `[i, parts, w]`, whose last dimension is divided.
    """
    parts = num_parts(name)
    if parts == 1 or len(shape) != 2:
        return shape
    return shape[0], parts, shape[1] // parts


def filed_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The inverse of `kept_shape`."""
    return (shape[0], shape[1] * shape[2]) if num_parts(name) > 1 and len(shape) == 3 else shape


def interleaved(x: Array, parts: int) -> Array:
    """A fused kernel or bias as layers take it: outputs by device of "model", then by part.

    Args:
      x: outputs by part, `[..., parts * w]`, or a kernel as it is kept in memory where "model"
        divides it, `[i, parts, w]`.
      parts: number of parts.

    Returns:
      `[..., parts * w]`.
    """
    kept = x.ndim == 3
    lead, width = (x.shape[:1], x.shape[2]) if kept else (x.shape[:-1], x.shape[-1] // parts)
    size = _divisor(MODEL)
    if width % size == 0 and size > 1:
        x = jnp.moveaxis(x.reshape(*lead, parts, size, width // size), -2, -3)
        return along_model(x.reshape(*lead, parts * width), len(lead))
    return x.reshape(*lead, parts * width)


def fused_parts(y: Array, parts: int) -> list[Array]:
    """The outputs of a fused layer by part, `[..., w]` each."""
    size, width = _divisor(MODEL), y.shape[-1] // parts
    if size == 1 or width % size:
        return jnp.split(y, parts, axis=-1)
    y = along_model(y, y.ndim - 1).reshape(*y.shape[:-1], size, parts, width // size)
    return [y[..., i, :].reshape(*y.shape[:-3], width) for i in range(parts)]


def per_device(kernel: Callable[..., Array], *args: Array, heads: int) -> Array:
    """`kernel(*args)`, for a kernel that XLA's partitioner cannot divide by itself.

    Args:
      kernel: function of arrays with images first, whose result is one such array.
      args: arrays that the function takes.
      heads: dimension of all of them, the result too, that "model" divides.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = [name for name in (DATA, MODEL) if name in mesh.shape and name not in mesh.manual_axes]
    if not free:
        return kernel(*args)
    data, model = (name if name in free else None for name in (DATA, MODEL))
    where = PartitionSpec(data, *[None] * (heads - 1), model)
    return jax.shard_map(
        kernel,
        in_specs=(where,) * len(args),
        out_specs=where,
        axis_names=set(free),
        check_vma=False,
    )(*args)
