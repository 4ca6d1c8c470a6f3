"""Sharding of arrays: the device mesh, and rules for parameters and batches.

One mesh with axes ("data", "model") serves one CPU, eight GPUs and a pod. Batches are divided
along "data". Parameters are copied to every device ("replicated"), divided along "data" as
well ("fsdp"), and, where the "model" axis has more than one device, the large matrices of
attention and MLP are divided along it too.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from fmi_jax.errors import UsageError
from fmi_jax.types import Batch

_FSDP_MIN_SIZE = 1024  # below this many scalars a parameter is cheaper to copy than to gather

_TENSOR_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # Column-parallel into the block, row-parallel out of it: one reduction per half block. Fused
    # kernels are divided within each part (`shards.kept_shape`).
    (r"(.*\.)?attn\.qkv\.kernel", PartitionSpec(None, None, "model")),
    (r"(.*\.)?attn\.proj\.kernel", PartitionSpec("model", None)),
    (r"(.*\.)?mlp\.w12\.kernel", PartitionSpec(None, None, "model")),
    (r"(.*\.)?mlp\.fc1\.kernel", PartitionSpec(None, "model")),
    (r"(.*\.)?mlp\.fc1\.bias", PartitionSpec("model")),
    (r"(.*\.)?mlp\.(fc2|w3)\.kernel", PartitionSpec("model", None)),
)
# Whole on every device along "model", like every one-dimensional parameter without a rule.
_WHOLE = (
    r"(.*\.)?(cls_token|dist_token|register_tokens|pos_embed)",
    r"(.*\.)?(patch_embed|stem|downsample|neck|modulation)\..*",
    r"(.*\.)?attn\.(rel_pos_[hw]|relative_position_bias_table.*|pool_layers\..*)",
    r"(.*\.)?(conv\d*|conv_dw|dw\d)\.kernel",
    r"(.*\.)?lora_[ab]",
    r"(.*\.)?backbone\.proj",
    r"(.*\.)?(head|pool|projector)\..*",
)


def is_main() -> bool:
    """Test whether this process is the first of several: only it writes files and prints."""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Test whether this is the only process."""
    return jax.process_count() == 1


def everywhere(here: bool) -> bool:
    """Test whether something holds on every process."""
    if is_alone():
        return here
    return bool(np.all(multihost_utils.process_allgather(np.array(here))))


def make_mesh(model_parallel: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Make a mesh over all devices, or those given: `model_parallel` of them along "model", the
    rest along "data"."""
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if count % model_parallel:
        divisors = [n for n in range(1, count + 1) if count % n == 0]
        raise UsageError(
            f"train.model_parallel={model_parallel} does not divide the {count} devices;"
            f" valid: {divisors}."
        )
    # Auto: XLA propagates shardings. The default (Explicit) would require every concatenation in a
    # network to state its own.
    return jax.make_mesh(
        (count // model_parallel, model_parallel),
        ("data", "model"),
        devices=devices,
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def check_batch_size(mesh: Mesh, batch_size: int, accumulate: int, name: str) -> None:
    """Raise `UsageError` unless every share of "data" gets the same whole number of images in
    every micro-batch. The number of processes that hold the shares does not matter."""
    share = mesh.shape["data"] * accumulate
    if batch_size % share:
        low = batch_size // share * share
        valid = [size for size in (low, low + share) if size]
        whose = "devices" if mesh.shape["model"] == 1 else "groups of devices"
        raise UsageError(
            f"{name}={batch_size} cannot be divided over {mesh.shape['data']} {whose}"
            f" x {accumulate} micro-batches; nearest valid: {' or '.join(map(str, valid))}."
        )


def parameter_sharding(
    mesh: Mesh, name: str, shape: tuple[int, ...], strategy: str
) -> NamedSharding:
    """Sharding of the parameter `name`.

    Args:
      mesh: mesh from `make_mesh`.
      name: native parameter name ("blocks.0.attn.qkv.kernel"). The first tensor rule that
        matches the whole name decides the "model" axis.
      shape: shape of the parameter.
      strategy: "replicated" or "fsdp". "fsdp" divides along "data" the first dimension that is
        still whole and that the size of "data" divides. The first, because its parts are contiguous
        in memory when gathered. Tiny parameters stay whole.

    Raises:
      ValueError: heads are divided, but no rule covers this parameter.
    """
    spec: list[Any] = [None] * len(shape)
    if mesh.shape["model"] > 1:
        for pattern, rule in _TENSOR_RULES:
            if re.fullmatch(pattern, name) and len(rule) == len(shape):
                spec = list(rule)
                break
        else:
            known = (*(pattern for pattern, _ in _TENSOR_RULES), *_WHOLE)
            if len(shape) > 1 and not any(re.fullmatch(pattern, name) for pattern in known):
                raise ValueError(
                    f"no rule says how {name} {shape} is divided along 'model': expected one in"
                    " fmi_jax/parallel.py (_TENSOR_RULES, or _WHOLE)."
                )
        spec = [
            axis if axis is None or size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, shape, strict=True)
        ]
    if strategy == "fsdp" and np.prod(shape) >= _FSDP_MIN_SIZE:
        free = [
            i for i, size in enumerate(shape) if spec[i] is None and size % mesh.shape["data"] == 0
        ]
        if free:
            spec[free[0]] = "data"
    return NamedSharding(mesh, PartitionSpec(*spec))


def parameter_shardings(
    mesh: Mesh, params: Mapping[str, Any], strategy: str
) -> dict[str, NamedSharding]:
    """`parameter_sharding` of every array (or shape) in `params`, by name."""
    return {
        name: parameter_sharding(mesh, name, tuple(leaf.shape), strategy)
        for name, leaf in params.items()
    }


def like_parameters(mesh: Mesh, tree: Any, shardings: Mapping[str, NamedSharding]) -> Any:
    """Shardings for a tree with slots per parameter, such as an optimizer state.

    A leaf whose path ends in the name of a parameter gets that parameter's sharding; all other
    leaves (counters) are replicated.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        key = getattr(path[-1], "key", "") if path else ""
        if key in shardings and len(shardings[key].spec) <= leaf.ndim:
            return shardings[key]
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, tree)


def data_axis(sharding: NamedSharding) -> int | None:
    """Dimension that is divided along "data", or None."""
    return next((i for i, axis in enumerate(sharding.spec) if axis == "data"), None)


def by_shard(
    mesh: Mesh, function: Callable[..., Any], *, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """Wrap `function` so that every device computes its own share along "data".

    Devices exchange only what `nn.shards` asks for. XLA's partitioner would guess by size: with few
    images per device it gathers tokens instead of parameters, 6 times the bytes. Divisions along
    "model" are left to it.

    Args:
      mesh: device mesh.
      function: function that takes and returns this device's shares of arrays.
      in_specs, out_specs: partition specs (or shardings) of the arguments and results, or
        prefixes of them. Axes other than "data" are ignored.
    """

    if mesh.shape["data"] == 1 < mesh.shape["model"]:
        # XLA refuses an exchange over an axis of one device beside an axis that is left to it.
        def alone(*args: Any) -> Any:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return function(*args)

        return alone

    def data_only(spec: Any) -> PartitionSpec:
        spec = spec.spec if isinstance(spec, NamedSharding) else spec
        return PartitionSpec(*(axis if axis == "data" else None for axis in spec))

    def specs(tree: Any) -> Any:
        return jax.tree.map(
            data_only, tree, is_leaf=lambda x: isinstance(x, PartitionSpec | NamedSharding)
        )

    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=specs(in_specs),
        out_specs=specs(out_specs),
        # Kernels that XLA cannot divide allow no axis left to it, not even one of one device.
        axis_names={"data"} if mesh.shape["model"] > 1 else {"data", "model"},
        check_vma=False,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding with one copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding with the first dimension divided along "data"."""
    return NamedSharding(mesh, PartitionSpec("data"))


def held_places(mesh: Mesh, batch_size: int) -> Int[np.ndarray, "p"]:
    """Places in a batch whose images this process's devices hold, ascending, each once.

    They need not be consecutive: on a TPU pod the mesh runs along the torus and may come back to a
    process. With `model_parallel` several processes may hold the same places.

    Args:
      mesh: mesh from `make_mesh`.
      batch_size: images in the whole batch; "data" divides it.
    """
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    parts = {index[0].indices(batch_size) for index in held.values() if index is not None}
    return np.concatenate([np.arange(*part) for part in sorted(parts)])


def to_devices(mesh: Mesh, batch: Batch) -> dict[str, jax.Array]:
    """Put a whole batch on the mesh, each process contributing its part.

    Args:
      mesh: mesh from `make_mesh`.
      batch: images at `held_places`, in that order.
    """
    count, sharding = mesh.shape["data"], batch_sharding(mesh)
    shares = held_places(mesh, count).tolist()

    def put(value: np.ndarray) -> jax.Array:
        rows = len(value) // len(shares)  # per share

        def part(index: Any) -> np.ndarray:
            at = shares.index((index[0].start or 0) // rows) * rows
            return value[at : at + rows]

        return jax.make_array_from_callback((count * rows, *value.shape[1:]), sharding, part)

    return {name: put(value) for name, value in batch.items()}  # type: ignore[misc, arg-type]


def place(value: np.ndarray | np.generic, sharding: NamedSharding) -> jax.Array:
    """Put a host array, the same on every process, onto devices as `sharding` says."""
    array = np.asarray(value)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def whole_shares(mesh: Mesh, rows: int) -> int:
    """Round `rows` up to a number that divides evenly along "data"."""
    share = mesh.shape["data"]
    return -(-rows // share) * share


def place_rows(values: np.ndarray, rows: int, sharding: NamedSharding) -> jax.Array:
    """Put a host array, the same on every process, onto devices as float32, zero-padded to `rows`.

    The host copies only the part of one device at a time.
    """

    def part(index: Any) -> np.ndarray:
        first, last, _ = index[0].indices(rows)
        filled = np.zeros((last - first, *values.shape[1:]), np.float32)
        there = values[first:last]
        filled[: len(there)] = there
        return filled

    return jax.make_array_from_callback((rows, *values.shape[1:]), sharding, part)
