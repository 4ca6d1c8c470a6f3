"""What layers know of how a batch is divided over devices.

A step computes every device's share of the batch as a program of its own (`parallel.by_shard`):
nothing crosses devices but what is asked for here. Parameters that are divided over the "data"
axis are gathered where they are used, statistics of the batch are averaged over it, and random
numbers of an image do not depend on its device. Outside of such a program every function returns
what it is given.

The "model" axis divides heads and hidden channels; there XLA's partitioner does the work, told by
`along_model` what is divided.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

DATA, MODEL = "data", "model"

_DIVIDED = "divided"  # metadata of a variable: its dimension that DATA divides


def num_shards() -> int:
    """Number of devices that share the batch; 1 outside of a program by shard."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[DATA] if DATA in mesh.manual_axes else 1


def _in_shards() -> bool:
    return DATA in jax.sharding.get_abstract_mesh().manual_axes


def local_share(images: int, heads: int) -> tuple[int, int]:
    """The images and heads of one device, given those that a layer sees."""
    mesh = jax.sharding.get_abstract_mesh()
    shares = (1 if name in mesh.manual_axes else mesh.shape.get(name, 1) for name in (DATA, MODEL))
    data, model = shares
    return max(images // data, 1), max(heads // model, 1)


def batch_mean(local: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The mean over the whole batch, from the mean over this device's share of it."""
    return jax.lax.pmean(local, DATA) if _in_shards() else local


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
    mesh = jax.sharding.get_abstract_mesh()
    if MODEL in mesh.manual_axes or mesh.shape.get(MODEL, 1) == 1:
        return x
    spec: list[Any] = [None] * x.ndim
    if axis is not None and x.shape[axis] % mesh.shape[MODEL] == 0:
        spec[axis] = MODEL
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def per_device(kernel: Callable[..., Array], *args: Array, heads: int) -> Array:
    """`kernel(*args)`, for a kernel that XLA's partitioner cannot divide by itself.

    Args:
      kernel: of arrays with images first, and one array with images first as its result.
      args: its arrays.
      heads: dimension of all of them, the result too, that "model" divides.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = [name for name in (DATA, MODEL) if name in mesh.shape and name not in mesh.manual_axes]
    if not free:
        return kernel(*args)
    spec: list[Any] = [None] * (heads + 1)
    if DATA in free:
        spec[0] = DATA
    if MODEL in free:
        spec[heads] = MODEL
    where = PartitionSpec(*spec)
    return jax.shard_map(
        kernel,
        in_specs=(where,) * len(args),
        out_specs=where,
        axis_names=set(free),
        check_vma=False,
    )(*args)
