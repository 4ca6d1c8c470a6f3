"""A model as named arrays: trained parameters, running statistics and frozen arrays."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding

from fmi_jax import parallel
from fmi_jax.nn import shards


@dataclasses.dataclass(frozen=True)
class Partition:
    """Structure of a model and the role of each of its arrays.

    Attributes:
      graphdef: structure of the model, without arrays.
      variables: path and abstract variable of every array, by native name.
      params: names of the parameters that learn.
      followers: names of arrays that change without a gradient: BatchNorm statistics of trained
        layers, and any that the protocol names.
      frozen: names of all other arrays.
    """

    graphdef: Any
    variables: Mapping[str, tuple[tuple[Any, ...], nnx.Variable]]
    params: tuple[str, ...]
    followers: tuple[str, ...]
    frozen: tuple[str, ...]

    @property
    def running(self) -> tuple[str, ...]:
        """Names of the followers that the forward pass updates."""
        return tuple(n for n in self.followers if isinstance(self.variables[n][1], nnx.BatchStat))

    def merge(
        self, *parts: Mapping[str, Any], placement: Mapping[str, NamedSharding] | None = None
    ) -> Any:
        """Build the model from `parts`, which together name every variable once.

        Args:
          parts: arrays by name.
          placement: sharding of each array, for a program by shard (`parallel.by_shard`), in which
            each device sees its own part. Arrays divided over "data" are gathered: those of a block
            when the block runs, all others here. Arrays without an entry are whole.
        """
        values = {name: value for part in parts for name, value in part.items()}
        placement = placement or {}
        state = []
        for name, (path, abstract) in self.variables.items():
            value = values[name]
            if (fused := shards.num_parts(name)) > 1:
                value = shards.interleaved(value, fused)
            variable = abstract.replace(value)
            axis = parallel.data_axis(placement[name]) if name in placement else None
            if axis is not None:
                variable = shards.divided(variable, axis)
                if "blocks" not in path:
                    variable = shards.gathered(variable, variable.get_value().dtype)
            state.append((path, variable))
        return nnx.merge(self.graphdef, nnx.from_flat_state(state))

    def read(self, model: nnx.Module, names: tuple[str, ...]) -> dict[str, Any]:
        """Read the arrays of these names from `model`."""
        values = named_values(model)
        return {name: values[name] for name in names}

    def shapes(self, names: tuple[str, ...]) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of the arrays of these names."""
        return {name: self.variables[name][1].get_value() for name in names}


def named_values(model: nnx.Module) -> dict[str, Any]:
    """Every array of `model` by native name, which is the attribute path joined with dots."""
    return {
        ".".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(nnx.state(model))
    }


def nothing(name: str) -> bool:
    """Select no array, whatever its name."""
    return False


def partition(
    model: nnx.Module,
    trainable: Callable[[str], bool],
    follows: Callable[[str], bool] = nothing,
    *,
    divided: bool = False,
) -> Partition:
    """Divide the arrays of an abstract `model` into trained, following and frozen ones.

    Running statistics go with the parameters beside them: those of a frozen layer do not change.

    Args:
      model: network with its head.
      trainable: predicate on a native name: the array learns.
      follows: predicate on a native name: the array changes without a gradient.
      divided: True if the "model" axis divides heads. Fused kernels are then kept as
        `[i, parts, w]`, each part divided, while files have them as `[i, parts * w]`.
    """
    graphdef, state = nnx.split(model)
    variables = {
        ".".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(state)
    }
    if divided:
        for name, (path, variable) in variables.items():
            value, parts = variable.get_value(), shards.num_parts(name)
            if parts > 1:
                shape = shards.kept_shape(name, value.shape)
                variables[name] = (path, variable.replace(jax.ShapeDtypeStruct(shape, value.dtype)))
    learns = {name for name in variables if trainable(name)}
    following = {name for name in variables if follows(name)}
    if both := sorted(learns & following):
        raise ValueError(f"{both[0]} is to learn and to follow: expected one of them")
    params = tuple(n for n in variables if n in learns and isinstance(variables[n][1], nnx.Param))
    running = {n for n in learns if isinstance(variables[n][1], nnx.BatchStat)}
    followers = tuple(n for n in variables if n in following | running)
    frozen = tuple(n for n in variables if n not in {*params, *followers})
    return Partition(graphdef, variables, params, followers, frozen)
