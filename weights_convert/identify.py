"""Which published backbone a file could be."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from fmi_jax.models.base import BackboneSpec, Execution, create_abstract, parameters
from weights_convert.engine import Match, Shapes, match
from weights_convert.layouts.registry import LAYOUTS, layouts_of
from weights_convert.stacked import FOUNDATION, as_in_study


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A backbone that fits a file, and how the file is read then."""

    spec: BackboneSpec
    match: Match


def identify(groups: Mapping[str, Shapes], specs: Iterable[BackboneSpec]) -> list[Candidate]:
    """The backbones among `specs` that the tensors of a file fit exactly.

    Backbones of one arch (a supervised and a self-supervised one) cannot be told apart.
    """
    sizes = [
        sum(int(np.prod(t.shape)) for key, t in tensors.items() if key.startswith(part))
        for tensors in groups.values()
        for part in ("", FOUNDATION)
    ]
    found = []
    for spec in specs:
        # About as many numbers as it has: saves building all the others. Fewer where the study
        # has dropped or shrunk a part, more where there is a classifier.
        if not any(0.6 * size < spec.num_params < 1.1 * size for size in sizes):
            continue
        spec = as_in_study(spec, groups, LAYOUTS.values())
        native = parameters(create_abstract(spec.family, spec.arch, Execution()))
        best = match(groups, native, layouts_of(spec.family))[0]
        if best.fits:
            found.append(Candidate(spec, best))
    return found
