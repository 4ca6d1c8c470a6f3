"""The study's stacked classifier, on any foundation."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fmi_jax.models.base import ArchConfig
from fmi_jax.models.deit import DeiTArch
from parity_families import blip, dinov2, sam, seem
from parity_families.family import Family, Groups, rows, study_stem
from parity_families.vit import vit_arrays
from weights_convert.engine import Layout
from weights_convert.layouts.registry import LAYOUTS
from weights_convert.stacked import (
    FOUNDATION,
    TRANSFORMER,
    WRAPPER,
    Stacked,
    StackedArch,
    stacked_layouts,
)


@dataclasses.dataclass(frozen=True)
class Foundation:
    """How a foundation appears in the cases.

    Attributes:
      family: its own adaptor.
      implied: what `meta.config.found` leaves out.
      grid: whether its tokens are a grid in the reference, too, and not rows.
      resized: whether its position tables were resized when the reference loaded them, and the
        checkpoint holds them so.
      prefix: what its adaptor expects before its keys.
    """

    family: Family
    implied: Mapping[str, Any]
    grid: bool = False
    resized: bool = False
    prefix: str = ""


_VIT = {"mlp_ratio": 4.0, "norm_eps": 1e-6}
_SEEM = {
    "conv_embed": True,
    "use_postln": True,
    "use_postln_in_modulation": False,
    "scaling_modulator": True,
    "mlp_ratio": 4,
    "focal_levels": (3, 3, 3, 3),
    "focal_windows": (3, 3, 3, 3),
    "norm_eps": 1e-5,
}
FOUNDATIONS = {
    "dinov2": Foundation(
        dinov2.FAMILY,
        {
            **_VIT,
            "ffn_layer": "mlp",
            "num_register_tokens": 0,
            "interpolate_antialias": False,
            "interpolate_offset": 0.1,
        },
    ),
    "sam": Foundation(sam.FAMILY, _VIT, grid=True, resized=True),
    "seem": Foundation(seem.FAMILY, _SEEM, prefix="backbone."),
    "focal": Foundation(seem.FAMILY, _SEEM, prefix="backbone."),
    "blip": Foundation(blip.FAMILY, _VIT, resized=True),
}


def _arch(config: Mapping[str, Any], groups: Groups) -> StackedArch:
    foundation, main = FOUNDATIONS[config["foundation"]], config["main"]
    tensors = groups[WRAPPER]
    found = {**foundation.implied, **config["found"]}
    if foundation.resized:
        found = {k: v for k, v in found.items() if k != "pos_embed_grid"}
        found["img_size"] = config["input"]
    own = {
        foundation.prefix + key.removeprefix(FOUNDATION): tensor
        for key, tensor in tensors.items()
        if key.startswith(FOUNDATION)
    }
    backbone = foundation.family.arch(found, {"": own})
    cut = {}
    if "drop_cutoff" in config:
        (last,) = config["drop_cutoff"]
        cut = {"last": last}
        if not any(_block(key) == last + 1 for key in tensors):  # saved without what is cut off
            backbone = backbone.truncated(last)
    transformer = DeiTArch(
        in_channels=3,
        patch_size=main["patch_size"],
        width=main["embed_dim"],
        depth=main["depth"],
        num_heads=main["num_heads"],
        mlp_width=tensors[f"{TRANSFORMER}blocks.0.mlp.fc1.weight"].shape[0],
        distilled=False,
        grid_size=main["img_size"] // main["patch_size"],
        norm_eps=config.get("main_norm_eps", 1e-6),
    )
    return (CutArch if cut else StackedArch)(
        in_channels=backbone.in_channels,
        backbone=backbone,
        transformer=transformer.on_tokens(),
        num_classes=config["n_classes"],
        **cut,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutArch(StackedArch):
    """A classifier on the tokens that leave block `last` of its foundation."""

    last: int


def _block(key: str) -> int:
    """Number of the foundation's block (or stage) that a tensor belongs to; -1: none."""
    part, _, rest = key.removeprefix(FOUNDATION).partition(".")
    number = rest.split(".")[0]
    return int(number) if part in ("blocks", "layers") and number.isdigit() else -1


def _run_arch(arch: ArchConfig, run: Mapping[str, Any]) -> ArchConfig:
    assert isinstance(arch, StackedArch)
    arch = dataclasses.replace(arch, backbone=study_stem(arch.foundation, run))
    return arch.truncated(arch.last) if isinstance(arch, CutArch) else arch


def _arrays(module: Any, images: Any, unused: Mapping[str, Any]) -> dict[str, Any]:
    foundation = next(f for f in FOUNDATIONS.values() if type(module.backbone) is f.family.backbone)
    of_foundation = foundation.family.arrays(module.backbone, images, unused)
    module.before_norm = isinstance(module.arch, CutArch)
    tokens = module.tokens(images)
    projected = module.projector(tokens)
    shape = (lambda x: x) if foundation.grid else rows
    arrays = {"foundation_tokens": shape(tokens), "projected": shape(projected)}
    for name, value in of_foundation.items():
        if name.startswith("block_"):
            arrays[f"foundation_{name}"] = value
    of_transformer, _ = vit_arrays(module.transformer, projected)
    logits = module(images)  # the way a user goes
    return arrays | of_transformer | {"final_logits": logits}


def _layouts(arch: Any) -> Sequence[Layout]:
    return stacked_layouts(arch, LAYOUTS.values())


FAMILY = Family(Stacked, _arch, _arrays, run_arch=_run_arch, layouts=_layouts)
