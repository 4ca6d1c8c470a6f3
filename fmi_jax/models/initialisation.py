"""Random initialisations of a backbone by name, in place of the family's own."""

from collections.abc import Mapping

import jax
from flax import nnx

from fmi_jax.models.base import Backbone, ParameterKeys
from fmi_jax.nn.linear import trunc_normal

RULES: Mapping[str, jax.nn.initializers.Initializer] = {
    "kaiming": jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
    "trunc_normal": trunc_normal,
}
"""Draws of a kernel by name. "kaiming" is `torch.nn.init.kaiming_normal_` with its defaults, which
takes the inputs; torchvision draws the convolutions of a ResNet so from the outputs, and so does
the family by itself. "trunc_normal" is the own draw of ViT, DeiT and DINOv2."""


def redraw(backbone: Backbone, rule: str, rngs: ParameterKeys) -> None:
    """Draw every kernel of a backbone anew, in place; tokens, positions and norms stay.

    Args:
      backbone: backbone with random parameters.
      rule: one of `RULES`; empty: nothing is drawn.
      rngs: stream `params`.
    """
    if not rule:
        return
    for path, variable in nnx.to_flat_state(nnx.state(backbone, nnx.Param)):
        if path[-1] == "kernel":
            variable.set_value(RULES[rule](rngs.params(), variable.get_value().shape))
