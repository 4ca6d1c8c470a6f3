"""Many heads that share one stream of images: the first axis of each of their arrays."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmi_jax.training.step import Arrays

BEST = "best_"
"""Prefix of best values: `head.kernel` at its best validation is kept as `head.best_kernel`."""


def best_name(name: str) -> str:
    """Name under which the best values of a parameter are kept."""
    module, _, leaf = name.rpartition(".")
    return f"{module}.{BEST}{leaf}"


def is_best(name: str) -> bool:
    """Test whether a native name belongs to the copy taken at a head's best validation."""
    return name.rpartition(".")[2].startswith(BEST)


def each(function: Callable[[Any, Arrays], Any]) -> Callable[[Any, Arrays], Any]:
    """Map a loss or a measure over heads: outputs `[b, g, ...]` give `[b, g]` of each."""
    return jax.vmap(function, in_axes=(1, None), out_axes=1)


def of_head(measured: Mapping[str, np.ndarray], head: int) -> dict[str, np.ndarray]:
    """One head's share of what was measured of `each`."""
    return {name: value[:, head] for name, value in measured.items()}


def at_their_best(arrays: Arrays) -> Arrays:
    """Replace every head's arrays by their values at its best validation."""
    return {name: arrays.get(best_name(name), value) for name, value in arrays.items()}


def keep(params: Arrays, followers: Arrays, improved: np.ndarray) -> Arrays:
    """Copy the parameters of `improved` heads (bool `[g]`) into the best values in `followers`."""
    kept = dict(followers)
    for name, value in params.items():
        old = followers[best_name(name)]
        which = improved.reshape(-1, *(1,) * (value.ndim - 1))
        kept[best_name(name)] = jax.device_put(jnp.where(which, value, old), old.sharding)
    return kept
