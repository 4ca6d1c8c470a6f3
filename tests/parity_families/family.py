"""How the parity tool runs a family."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fmi_jax.models.base import ArchConfig, Backbone

Groups = Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Family:
    """What the tool must know of a family.

    Attributes:
      backbone: its class.
      arch: from `meta.config` and the tensors of the checkpoint.
      arrays: `(module, images [b, h, w, c], unused tensors)` to the arrays of a run by name,
        in the reference's axes.
    """

    backbone: type[Backbone]
    arch: Callable[[Mapping[str, Any], Groups], ArchConfig]
    arrays: Callable[[Any, Any, Mapping[str, Any]], dict[str, Any]]


def rows(tokens: Any) -> Any:
    """`[b, h, w, d]` as `[b, h * w, d]`, row by row."""
    return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])
