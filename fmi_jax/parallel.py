"""Where arrays live: the device mesh, sharding rules for parameters and batches, multi-host start.

One mesh with axes ("data", "model") serves one CPU, eight GPUs and a pod. Batches are divided
along "data". Parameters are copied to every device ("replicated"), divided along "data" as
well ("fsdp"), and, where the "model" axis has more than one device, the large matrices of
attention and MLP are divided along it too.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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


def start_multi_host(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Join the other processes of the run, if there are any.

    With arguments, or under `JAX_COORDINATOR_ADDRESS`, Slurm, Open MPI or a TPU pod, calls
    `jax.distributed.initialize`; on a lone machine does nothing. Must come before the first use
    of a device.

    Args:
      coordinator: "host:port" of process 0.
      num_processes: how many processes there are.
      process_id: which one this is, from 0.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise UsageError(
                "multi-host start needs all of --coordinator_address=HOST:PORT,"
                f" --num_processes and --process_id; got {given}."
            )
        jax.distributed.initialize(coordinator, num_processes, process_id)
        return
    many_slurm_tasks = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and (
        "SLURM_STEP_NODELIST" in os.environ
    )
    many_mpi_ranks = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    tpu_pod = len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    if "JAX_COORDINATOR_ADDRESS" in os.environ or many_slurm_tasks or many_mpi_ranks or tpu_pod:
        jax.distributed.initialize()


def make_mesh(model_parallel: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices, or those given: `model_parallel` of them along "model", the rest
    along "data"."""
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if count % model_parallel:
        divisors = [n for n in range(1, count + 1) if count % n == 0]
        raise UsageError(
            f"train.model_parallel={model_parallel} does not divide the {count} devices;"
            f" valid: {divisors}."
        )
    # Auto: XLA propagates shardings. The default (Explicit) would have every concatenation in a
    # network state its own.
    return jax.make_mesh(
        (count // model_parallel, model_parallel),
        ("data", "model"),
        devices=devices,
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def check_batch_size(mesh: Mesh, batch_size: int, accumulate: int, name: str) -> None:
    """Raise `UsageError` unless every device gets the same whole number of images."""
    share = mesh.shape["data"] * accumulate
    if batch_size % share or (batch_size // accumulate) % jax.process_count():
        low = batch_size // share * share
        valid = [size for size in (low, low + share) if size]
        raise UsageError(
            f"{name}={batch_size} cannot be divided over {mesh.shape['data']} devices"
            f" x {accumulate} micro-batches; nearest valid: {' or '.join(map(str, valid))}."
        )


def parameter_sharding(
    mesh: Mesh, name: str, shape: tuple[int, ...], strategy: str
) -> NamedSharding:
    """Where the parameter `name` lives.

    Args:
      mesh: from `make_mesh`.
      name: native parameter name ("blocks.0.attn.qkv.kernel"). The first tensor rule that
        matches the whole name decides the "model" axis; a name without a rule is not divided
        along it.
      shape: its shape.
      strategy: "replicated", or "fsdp": the largest dimension that "data" divides and that is
        not divided already is divided along "data"; tiny parameters stay whole.
    """
    spec: list[Any] = [None] * len(shape)
    if mesh.shape["model"] > 1:
        for pattern, rule in _TENSOR_RULES:
            if re.fullmatch(pattern, name) and len(rule) == len(shape):
                spec = list(rule)
                break
        spec = [
            axis if axis is None or size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, shape, strict=True)
        ]
    if strategy == "fsdp" and np.prod(shape) >= _FSDP_MIN_SIZE:
        free = [
            i for i, size in enumerate(shape) if spec[i] is None and size % mesh.shape["data"] == 0
        ]
        if free:
            spec[max(free, key=lambda i: shape[i])] = "data"
    return NamedSharding(mesh, PartitionSpec(*spec))


def parameter_shardings(
    mesh: Mesh, params: Mapping[str, Any], strategy: str
) -> dict[str, NamedSharding]:
    """`parameter_sharding` for every array (or shape) of `params`."""
    return {
        name: parameter_sharding(mesh, name, tuple(leaf.shape), strategy)
        for name, leaf in params.items()
    }


def like_parameters(mesh: Mesh, tree: Any, shardings: Mapping[str, NamedSharding]) -> Any:
    """Shardings for a tree with slots per parameter, such as an optimizer state.

    A leaf whose path ends in the name of a parameter lives where that parameter lives;
    everything else (counters) is copied.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        key = getattr(path[-1], "key", "") if path else ""
        if key in shardings and len(shardings[key].spec) <= leaf.ndim:
            return shardings[key]
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, tree)


def data_axis(sharding: NamedSharding) -> int | None:
    """The dimension that is divided along "data", or None."""
    return next((i for i, axis in enumerate(sharding.spec) if axis == "data"), None)


def by_shard(
    mesh: Mesh, function: Callable[..., Any], *, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """`function`, computed by every device on its share along "data" alone.

    Nothing is exchanged but what `nn.shards` is asked for, and `jax.lax.psum`: XLA's partitioner
    guesses by size otherwise, and with few images a device it gathers tokens instead of
    parameters, 6 times the bytes. What is divided along "model" is left to it.

    Args:
      mesh: from `make_mesh`.
      function: of arrays that are this device's shares.
      in_specs, out_specs: partition specs (or shardings) of its arguments and results, or
        prefixes of them. Axes beside "data" do not count.
    """

    def data_only(spec: Any) -> PartitionSpec:
        spec = spec.spec if isinstance(spec, NamedSharding) else spec
        return PartitionSpec(*(axis if axis == "data" else None for axis in spec))

    def specs(tree: Any) -> Any:
        leaf = lambda x: isinstance(x, PartitionSpec | NamedSharding)  # noqa: E731
        return jax.tree.map(data_only, tree, is_leaf=leaf)

    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=specs(in_specs),
        out_specs=specs(out_specs),
        # Kernels that XLA cannot divide want no axis left to it, not even one of one device.
        axis_names={"data"} if mesh.shape["model"] > 1 else {"data", "model"},
        check_vma=False,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """One copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension divided along "data"."""
    return NamedSharding(mesh, PartitionSpec("data"))


def to_devices(mesh: Mesh, batch: Batch) -> dict[str, jax.Array]:
    """This process's rows of a batch, as part of the global batch on the mesh."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()  # type: ignore[misc]
    }


def place(value: np.ndarray | np.generic, sharding: NamedSharding) -> jax.Array:
    """A host array, the same on every process, put where `sharding` says."""
    array = np.asarray(value)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def whole_shares(mesh: Mesh, rows: int) -> int:
    """`rows` rounded up to what divides evenly along "data"."""
    share = mesh.shape["data"]
    return -(-rows // share) * share


def place_rows(values: np.ndarray, rows: int, sharding: NamedSharding) -> jax.Array:
    """A host array, the same on every process, in float32, filled up to `rows` with zeros.

    Nothing but the part of one device at a time is copied on the host.
    """

    def part(index: Any) -> np.ndarray:
        first, last, _ = index[0].indices(rows)
        filled = np.zeros((last - first, *values.shape[1:]), np.float32)
        there = values[first:last]
        filled[: len(there)] = there
        return filled

    return jax.make_array_from_callback((rows, *values.shape[1:]), sharding, part)


def bytes_per_device(tree: Any) -> dict[str, int]:
    """Bytes that the arrays of `tree` take on each local device, by device name."""
    total = {str(device): 0 for device in jax.local_devices()}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            total[str(shard.device)] += shard.data.nbytes
    return total
