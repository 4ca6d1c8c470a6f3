"""The tiny networks that the registered families name, for tests over all of them."""

import dataclasses
import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fmi_jax.models.base import ArchConfig, Backbone, Execution, create_abstract
from fmi_jax.models.registry import BACKBONES
from fmi_jax.registry import Registry


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A tiny network with its family.

    Attributes:
      name: name of the network.
      family: class of the network.
      arch: shape of the network.
      side: side in pixels of the square images it takes.
    """

    name: str
    family: type[Backbone]
    arch: ArchConfig
    side: int


AnyModule = TypeVar("AnyModule", bound=nnx.Module)


def fill(abstract: AnyModule, seed: int = 0) -> AnyModule:
    """The abstract network with arrays that NumPy draws: JAX compiles a program for each shape.

    Every parameter is moved from where a network starts, so that no term is hidden by a scale
    of 1 or a bias of 0; running variances are positive.
    """
    rng = np.random.default_rng(seed)
    graphdef, state = nnx.split(abstract)
    filled = []
    for path, variable in nnx.to_flat_state(state):
        shape, dtype = variable.get_value().shape, variable.get_value().dtype
        start = 1.0 if path[-1] in ("scale", "var") else 0.0
        drawn = start + 0.2 * rng.normal(size=shape) if dtype.kind == "f" else np.zeros(shape)
        filled.append((path, variable.replace(jnp.asarray(drawn, dtype))))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


@functools.cache
def abstract(family: type[Backbone], arch: ArchConfig, execution: Execution) -> Backbone:
    """What many tests build once more each; to read, not to change."""
    return create_abstract(family, arch, execution)


TINY: dict[str, Tiny] = dict(
    Registry(
        "tiny network",
        tuple(
            Tiny(tiny.name, family, tiny.arch, tiny.image_size)
            for family in dict.fromkeys(spec.family for spec in BACKBONES.values())
            for tiny in family.tiny
        ),
    )
)
"""By name; a family that is registered is in here by its own `tiny`."""

ONE_PER_FAMILY = {tiny.family: tiny.name for tiny in reversed(TINY.values())}
"""The first of each family, by class."""


def count_params(module: nnx.Module) -> int:
    """Number of trainable scalars (running statistics not counted)."""
    leaves = jax.tree.leaves(nnx.state(module, nnx.Param))
    return sum(int(np.prod(leaf.shape)) for leaf in leaves)
