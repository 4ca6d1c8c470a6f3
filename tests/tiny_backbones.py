"""One tiny network per family, and per variant of its structure, for tests over all of them."""

import dataclasses

from fmi_jax.models.base import ArchConfig, Backbone
from fmi_jax.models.deit import DeiT, DeiTArch
from fmi_jax.models.dinov2 import DINOv2, DINOv2Arch


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

TINY: dict[str, Tiny] = {
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
}
