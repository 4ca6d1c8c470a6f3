"""Checkpoints that the study itself saved: a foundation model, a projector, a DeiT and a head.

Source: `defaults/models.py` (`Ymodel_*`) and `defaults/bases.py` of the study's code. One dict
under "state_dict" holds all four, the foundation and the DeiT each under the names they were
published with. So their layouts need no table of their own: they follow from those.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.errors import UserError
from fmi_jax.models.base import (
    ArchConfig,
    Backbone,
    BackboneSpec,
    Execution,
    create_abstract,
    parameters,
)
from fmi_jax.models.deit import DeiT, DeiTArch, TokenDeiT
from fmi_jax.models.registry import BACKBONES
from fmi_jax.protocols.heads.stacked import StackedClassifier
from fmi_jax.types import Features
from weights_convert.engine import (
    Ignored,
    Layout,
    Rule,
    Shapes,
    linear,
    norm,
    plan,
    source_shapes,
)

FOUNDATION = "foundation_model.backbone."
TRANSFORMER = "main_model.backbone."
HEAD = "main_model.fc"
PROJECTOR = "linear_projector"
WRAPPER = "state_dict"
_AGAIN = Ignored("foundation_model.blocks.", "the blocks of the foundation once more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackedArch(ArchConfig):
    """The shape of a stacked classifier; its blocks are those of the foundation.

    Attributes:
      backbone: arch of the foundation; its own `in_channels` gives way to that of the whole.
      transformer: arch of the DeiT, as `DeiTArch.on_tokens` gives it.
      num_classes: number of logits of the head.
    """

    backbone: ArchConfig
    transformer: DeiTArch
    num_classes: int

    @property
    def foundation(self) -> ArchConfig:
        """`backbone` for images of `in_channels`."""
        return dataclasses.replace(self.backbone, in_channels=self.in_channels)

    @property
    def num_blocks(self) -> int:
        """Number of the foundation's blocks."""
        return self.backbone.num_blocks

    @property
    def feature_width(self) -> int:
        """Width of the feature that the head reads."""
        return self.transformer.feature_width

    def truncated(self, block: int) -> "StackedArch":
        """The arch whose foundation ends after `block`."""
        return dataclasses.replace(self, backbone=self.backbone.truncated(block))

    def sized(self, height: int, width: int) -> "StackedArch":
        """The arch whose foundation is for images of that size."""
        return dataclasses.replace(self, backbone=self.backbone.sized(height, width))


class Stacked(StackedClassifier, Backbone[StackedArch]):
    """A stacked classifier of published parts, nothing of it frozen.

    It is a backbone, too, so that the converter makes, fills, checks and adapts it as any other:
    its blocks are the foundation's, its features those that the head reads.

    Args:
      arch: shape of the network.
      execution: compute type, attention, recomputation and stochastic depth.
      rngs: stream `params`.
    """

    def __init__(self, arch: StackedArch, execution: Execution, *, rngs: nnx.Rngs):
        super().__init__(
            _family(arch)(arch.foundation, execution, rngs=rngs),  # type: ignore[call-arg]
            TokenDeiT(arch.transformer, execution, rngs=rngs),
            arch.num_classes,
            eval_mode=False,
            rngs=rngs,
        )
        self.arch, self.execution = arch, execution

    @property
    def blocks(self) -> nnx.List:  # type: ignore[override]
        """Blocks of the foundation."""
        return self.backbone.blocks

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The foundation's."""
        return self.backbone.grid(height, width)

    def embed(self, images: Float[Array, "b h w c"]) -> Array:
        """Compute the input of the foundation's block 0."""
        return self.backbone.embed(images)

    def readout(self, x: Array, block: int, grid: tuple[int, int]) -> Features:
        """Compute the DeiT's features of the foundation's tokens after `block`."""
        tokens = self.backbone.readout(x, block, grid).tokens
        return self.transformer.features(self.projector(tokens))

    @classmethod
    def adapt(
        cls, params: Mapping[str, Any], source: ArchConfig, target: ArchConfig
    ) -> dict[str, Any]:
        """The foundation's parameters made to fit."""
        assert isinstance(source, StackedArch)
        assert isinstance(target, StackedArch)
        before = "backbone."
        own = {k.removeprefix(before): v for k, v in params.items() if k.startswith(before)}
        adapted = _family(source).adapt(own, source.foundation, target.foundation)
        rest = {k: v for k, v in params.items() if not k.startswith(before)}
        return {before + k: v for k, v in adapted.items()} | rest


def stacked_layouts(arch: StackedArch, layouts: Iterable[Layout]) -> tuple[Layout, ...]:
    """Make the layouts in which the study saves a stacked classifier like `arch`.

    Args:
      arch: arch of the classifier.
      layouts: all layouts; those that the foundation and DeiT were published in are used.
    """
    published = [layout for layout in layouts if "original" in layout.publishers]
    deit = next(layout for layout in published if layout.family is DeiT)
    return tuple(
        dataclasses.replace(
            layout,
            name=f"stacked_{layout.name}",
            title=f"stacked classifier of the study on {layout.title}",
            publishers=("original",),
            rules=(
                *_below(layout.rules, FOUNDATION, "backbone."),
                *linear(f"{PROJECTOR}.0", "projector.linear"),
                *norm(f"{PROJECTOR}.1", "projector.norm"),
                *_below(deit.rules, TRANSFORMER, "transformer."),
                *linear(HEAD, "head"),
            ),
            ignored=(
                _AGAIN,
                *(Ignored(f"{FOUNDATION}{rule.key}", rule.reason) for rule in layout.ignored),
            ),
            wrappers=(WRAPPER,),
            prefixes=("",),
        )
        for layout in published
        if layout.family is _family(arch)
    )


def foundation_layouts(layouts: Iterable[Layout]) -> tuple[Layout, ...]:
    """Make the layouts in which the study saves backbones as the foundation of a classifier."""
    return tuple(
        dataclasses.replace(
            layout,
            name=f"{layout.name}_study",
            title=f"{layout.title}, as the foundation in a checkpoint of the study",
            publishers=(),
            ignored=(
                *layout.ignored,
                _AGAIN,
                Ignored("main_model.", "the DeiT on top, and the head"),
                Ignored(f"{PROJECTOR}.", "the projector between the two"),
            ),
            wrappers=(WRAPPER,),
            prefixes=(FOUNDATION,),
        )
        for layout in layouts
        if "original" in layout.publishers
    )


def as_in_study(
    spec: BackboneSpec, groups: Mapping[str, Shapes], layouts: Iterable[Layout]
) -> BackboneSpec:
    """`spec` as a checkpoint of the study holds it; `spec` itself for any other file.

    Before it trains, the study cuts the stem to the channels of its images, resizes position
    tables to their size, and drops what no feature depends on. All that is in what it saves.
    """
    tensors = groups.get(WRAPPER, {})
    if not any(key.startswith(FOUNDATION) for key in tensors):
        return spec
    published = [layout for layout in layouts if "original" in layout.publishers]
    arch = spec.arch.truncated(spec.arch.num_blocks - 1)
    for layout in (found for found in published if found.family is spec.family):
        for key, (found, expected) in _other_shapes(spec, arch, layout, tensors).items():
            if len(found) == 4 and (found[0], *found[2:]) == (expected[0], *expected[2:]):
                arch = dataclasses.replace(arch, in_channels=found[1])
            elif "pos_embed" in key or "positional" in key:
                arch = _with_positions(arch, spec.patch_size, found)
        if not _other_shapes(spec, arch, layout, tensors):
            break
    return dataclasses.replace(spec, arch=arch)


def _with_positions(arch: ArchConfig, patch_size: int, shape: tuple[int, ...]) -> ArchConfig:
    """`arch` for square images with that many positions, with or without one for [cls]."""
    count = math.prod(shape[:-1])
    for patches in (count, count - 1):
        side = math.isqrt(patches)
        if side and side**2 == patches:
            return arch.sized(side * patch_size, side * patch_size)
    return arch


def _other_shapes(
    spec: BackboneSpec, arch: ArchConfig, layout: Layout, tensors: Shapes
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shape in the file and expected shape of the tensors where these differ."""
    native = parameters(create_abstract(spec.family, arch, Execution()))
    expected = source_shapes(plan(layout, native, FOUNDATION), native)
    return {
        key: (tuple(tensors[key].shape), tuple(value.shape))
        for key, value in expected.items()
        if key in tensors and tuple(tensors[key].shape) != tuple(value.shape)
    }


def stacked_of_checkpoint(spec: BackboneSpec, groups: Mapping[str, Shapes]) -> BackboneSpec:
    """The classifier on `spec` that a checkpoint of the study holds.

    Raises:
      UserError: it holds no such classifier, or one on a DeiT that is none of the published.
    """
    tensors = groups.get(WRAPPER, {})
    head, cls = tensors.get(f"{HEAD}.weight"), tensors.get(f"{TRANSFORMER}cls_token")
    if head is None or cls is None:
        raise UserError(
            f"no stacked classifier of the study: expected the entry {WRAPPER!r} with"
            f" {HEAD}.weight and {TRANSFORMER}cls_token."
        )
    return _stacked_spec(
        spec,
        width=cls.shape[-1],
        depth=_depth(tensors, f"{TRANSFORMER}blocks."),
        num_classes=head.shape[0],
    )


def stacked_of_native(spec: BackboneSpec, params: Shapes) -> BackboneSpec:
    """The classifier on `spec` whose parameters these are, by native name."""
    return _stacked_spec(
        spec,
        width=params["transformer.cls_token"].shape[-1],
        depth=_depth(params, "transformer.blocks."),
        num_classes=params["head.bias"].shape[0],
    )


def blocks_again(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """`tensors` of the study's checkpoint with the foundation's blocks a second time.

    Its classifier registers the list of blocks under another name, too, and loads both.
    """
    again = {
        f"foundation_model.blocks.{key.removeprefix(before)}": value
        for before in (f"{FOUNDATION}blocks.", f"{FOUNDATION}layers.")
        for key, value in tensors.items()
        if key.startswith(before)
    }
    return {**tensors, **again}


def _depth(tensors: Shapes, before: str) -> int:
    return len({k.removeprefix(before).split(".")[0] for k in tensors if k.startswith(before)})


def _stacked_spec(spec: BackboneSpec, *, width: int, depth: int, num_classes: int) -> BackboneSpec:
    archs = [b.arch for b in BACKBONES.values() if isinstance(b.arch, DeiTArch)]
    fits = [a for a in archs if (a.width, a.depth, a.distilled) == (width, depth, False)]
    if not fits:
        raise UserError(
            f"the transformer of this classifier has {depth} blocks of width {width}:"
            " expected those of a published DeiT."
        )
    arch = StackedArch(
        in_channels=spec.arch.in_channels,
        backbone=spec.arch,
        transformer=fits[0].on_tokens(),
        num_classes=num_classes,
    )
    return dataclasses.replace(
        spec, name=f"stacked_{spec.name}", family=Stacked, arch=arch, sources=()
    )


def _below(rules: Iterable[Rule], source: str, target: str) -> Iterable[Rule]:
    """`rules` with something before every name on either side."""
    for rule in rules:
        yield dataclasses.replace(
            rule,
            sources=tuple(source + name for name in rule.sources),
            targets=tuple(target + name for name in rule.targets),
        )


def _family(arch: StackedArch) -> type[Backbone]:
    kind = type(arch.backbone)
    return next(spec.family for spec in BACKBONES.values() if issubclass(kind, type(spec.arch)))
