"""A model as named arrays: what learns, what it keeps count of, what is frozen."""

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
    """The structure of a model and the part that each of its arrays plays.

    Attributes:
      graphdef: the structure, without arrays.
      variables: every variable by native name, abstract.
      params: names of the parameters that learn.
      followers: names of arrays that change without a gradient: BatchNorm statistics of trained
        layers, and those that the protocol names.
      frozen: names of everything else.
    """

    graphdef: Any
    variables: Mapping[str, tuple[tuple[Any, ...], nnx.Variable]]
    params: tuple[str, ...]
    followers: tuple[str, ...]
    frozen: tuple[str, ...]

    @property
    def running(self) -> tuple[str, ...]:
        """The followers that the forward pass writes."""
        return tuple(n for n in self.followers if isinstance(self.variables[n][1], nnx.BatchStat))

    def merge(
        self, *parts: Mapping[str, Any], placement: Mapping[str, NamedSharding] | None = None
    ) -> Any:
        """The model with the arrays of `parts`, which together name every variable once.

        Args:
          parts: arrays by name.
          placement: sharding of each array, in a program by shard (`parallel.by_shard`), which
            sees its own part of them. What is divided over "data" is gathered: that of a block when
            the block runs, everything else here. An array that is not named is whole.
        """
        values: dict[str, Any] = {}
        for part in parts:
            values |= part
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
        """The arrays of these names as they stand in `model`."""
        values = named_values(model)
        return {name: values[name] for name in names}

    def shapes(self, names: tuple[str, ...]) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of the arrays of these names."""
        return {name: self.variables[name][1].get_value() for name in names}


def named_values(model: nnx.Module) -> dict[str, Any]:
    """Every array of `model` by native name: the attribute path joined with dots."""
    return {
        ".".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(nnx.state(model))
    }


def nothing(name: str) -> bool:
    """No array, whatever its name."""
    del name
    return False


def partition(
    model: nnx.Module,
    trainable: Callable[[str], bool],
    follows: Callable[[str], bool] = nothing,
    *,
    divided: bool = False,
) -> Partition:
    """Divide the arrays of an abstract `model` by native name.

    Running statistics go with the parameters beside them: those of a frozen layer stand still.

    Args:
      model: the network with its head.
      trainable: whether the array of a native name learns.
      follows: native name -> whether the array changes without a gradient.
      divided: whether the "model" axis divides heads. Fused kernels are then kept as
        `[i, parts, w]`, each part divided, and files have them as `[i, parts * w]`.
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
    if not params:
        raise ValueError("the protocol trains no parameter of this model")
    running = {n for n in learns if isinstance(variables[n][1], nnx.BatchStat)}
    followers = tuple(n for n in variables if n in following | running)
    frozen = tuple(n for n in variables if n not in {*params, *followers})
    return Partition(graphdef, variables, params, followers, frozen)
