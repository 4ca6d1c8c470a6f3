"""How the parity tool runs a family."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fmi_jax.models.base import ArchConfig, Backbone
from weights_convert.engine import Layout

Groups = Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Family:
    """What the tool must know of a family.

    Attributes:
      backbone: class of its networks.
      arch: makes the arch from `meta.config` and the tensors of the checkpoint.
      arrays: `(module, images [b, h, w, c], unused tensors and further inputs)` to the arrays of a
        run by name, in the reference's axes. A family with runs in training mode takes `rngs`
        besides.
      run_arch: `(arch, run)` to the arch of a run whose name, or entry in `meta.runs`, asks for
        more than another image size.
      run_layout: layout that a run reads the checkpoint in, from its entry in `meta.runs`; None
        for the one that is recognised.
      layouts: layouts to read the checkpoint in, of an arch; None: all that `backbone` comes in.
      loss: `(arrays of a run, its further inputs)` to what gradients are of; None: what
        `meta.grad.feature` names.
    """

    backbone: type[Backbone]
    arch: Callable[[Mapping[str, Any], Groups], ArchConfig]
    arrays: Callable[..., dict[str, Any]]
    run_arch: Callable[[ArchConfig, Mapping[str, Any]], ArchConfig] = lambda arch, run: arch
    run_layout: Callable[[Mapping[str, Any]], str | None] = lambda run: None
    layouts: Callable[[ArchConfig], Sequence[Layout]] | None = None
    loss: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] | None = None


def rows(tokens: Any) -> Any:
    """`[b, h, w, d]` as `[b, h * w, d]`, row by row."""
    return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])


def study_stem(arch: ArchConfig, run: Mapping[str, Any]) -> ArchConfig:
    """The arch of a run; one called `ch1_study` has the stem that the study's code rebuilds."""
    rebuilt = arch.with_study_stem() if run["name"].endswith("ch1_study") else None
    return arch if rebuilt is None else rebuilt
