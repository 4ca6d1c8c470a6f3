"""One tiny network per family, and per variant of its structure, for tests over all of them."""

import dataclasses
import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fmi_jax.models.base import ArchConfig, Backbone, Execution, create_abstract
from fmi_jax.models.blip import BLIP, BLIPArch
from fmi_jax.models.deit import DeiT, DeiTArch
from fmi_jax.models.dinov2 import DINOv2, DINOv2Arch
from fmi_jax.models.focal_transformer import FocalTransformer, FocalTransformerArch
from fmi_jax.models.focalnet import FocalNet, FocalNetArch
from fmi_jax.models.open_clip import OpenCLIP, OpenCLIPArch
from fmi_jax.models.resnet import ResNet, ResNetArch
from fmi_jax.models.sam import SAM, SAMArch
from fmi_jax.models.seem import SEEM, SEEMArch
from fmi_jax.models.swin import Swin, SwinArch


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A network of a family.

    Attributes:
      family: its class.
      arch: sizes that are not multiples of one another, so that mixed-up axes show.
      side: of square images it takes, in pixels; not the one it was trained at.
    """

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


_VIT = {
    "in_channels": 3,
    "patch_size": 5,
    "width": 33,
    "depth": 3,
    "num_heads": 3,
    "mlp_width": 37,
    "grid_size": 4,
    "norm_eps": 1e-6,
}
_DEIT = DeiTArch(**_VIT, distilled=False)
_DINOV2 = DINOv2Arch(**_VIT, swiglu=False, num_registers=0, pos_antialias=False, pos_offset=0.1)
_GRID = {name: value for name, value in _VIT.items() if name != "grid_size"} | {"grid": (7, 7)}
_CLIP = OpenCLIPArch(**_GRID, embed_width=29, quick_gelu=False, norm_tokens=False)
_BLIP = BLIPArch(**_GRID, readout="cls")

_FOCAL: dict[str, Any] = {
    "in_channels": 3,
    "width": 7,
    "depths": (2, 1, 1),
    "focal_levels": (2, 1, 1),
    "focal_windows": (1, 3, 3),
    "mlp_ratio": 1.5,
    "norm_eps": 1e-5,
}
_FOCALNET = FocalNetArch(
    **_FOCAL,
    patch_size=3,
    conv_embed=False,
    layer_scale=False,
    post_norm=False,
    post_norm_in_modulation=False,
    normalise_modulator=False,
    final_norm=True,
)

_SAM = SAMArch(**_GRID, window_size=3, global_blocks=(1,), rel_pos_resize="linear", neck_width=13)

_STAGES: dict[str, Any] = {
    "in_channels": 3,
    "patch_size": 3,
    "width": 6,
    "depths": (1, 2),
    "num_heads": (2, 3),
    "windows": (5, 3),
    "mlp_ratio": 1.5,
    "norm_eps": 1e-5,
    "final_norm": True,
}
_SWIN = SwinArch(**_STAGES)
_FOCAL_TRANSFORMER = FocalTransformerArch(
    **_STAGES,
    expand_sizes=((2,), (1, 0)),
    focal_levels=(3, 2),
    focal_windows=(3, 1),
    conv_embed=False,
    shift=False,
    pre_norm=False,
    layer_scale=False,
)

_RESNET = ResNetArch(
    in_channels=3,
    stem_width=5,
    depths=(1, 2, 1),
    widths=(3, 5, 7),
    expansion=4,
    norm_eps=1e-5,
    norm_momentum=0.1,
)

TINY: dict[str, Tiny] = {
    "resnet": Tiny(ResNet, _RESNET, 37),
    "deit": Tiny(DeiT, _DEIT, 35),
    "deit_distilled": Tiny(DeiT, dataclasses.replace(_DEIT, distilled=True), 35),
    "dinov2": Tiny(DINOv2, _DINOV2, 35),
    "dinov2_reg": Tiny(
        DINOv2,
        dataclasses.replace(
            _DINOV2, swiglu=True, num_registers=2, pos_antialias=True, pos_offset=0.0
        ),
        35,
    ),
    "open_clip": Tiny(OpenCLIP, _CLIP, 35),
    "open_clip_quickgelu": Tiny(
        OpenCLIP, dataclasses.replace(_CLIP, quick_gelu=True, norm_tokens=True), 35
    ),
    "blip": Tiny(BLIP, _BLIP, 35),
    "blip_first_patch": Tiny(BLIP, dataclasses.replace(_BLIP, readout="first_patch"), 35),
    "focalnet": Tiny(FocalNet, _FOCALNET, 37),
    "focalnet_post": Tiny(
        FocalNet,
        dataclasses.replace(
            _FOCALNET,
            conv_embed=True,
            layer_scale=True,
            post_norm=True,
            post_norm_in_modulation=True,
            normalise_modulator=True,
        ),
        37,
    ),
    "sam": Tiny(SAM, _SAM, 35),
    "seem": Tiny(
        SEEM, SEEMArch(**_FOCAL, post_norm_in_modulation=False, normalise_modulator=True), 37
    ),
    "swin": Tiny(Swin, _SWIN, 37),
    "focal_transformer": Tiny(FocalTransformer, _FOCAL_TRANSFORMER, 37),
    "focal_transformer_options": Tiny(
        FocalTransformer,
        dataclasses.replace(
            _FOCAL_TRANSFORMER, conv_embed=True, shift=True, pre_norm=True, layer_scale=True
        ),
        37,
    ),
}


def count_params(module: nnx.Module) -> int:
    """Number of trainable scalars (running statistics not counted)."""
    leaves = jax.tree.leaves(nnx.state(module, nnx.Param))
    return sum(int(np.prod(leaf.shape)) for leaf in leaves)
