"""Frozen: nothing of the backbone learns (paper, Table 1)."""

from fmi_jax.protocols.spec import AdaptSpec
from fmi_jax.training.partition import nothing

SPEC = AdaptSpec(
    name="frozen",
    summary="frozen backbone",
    learns=lambda config, arch: nothing,
    eval_mode=True,
    frozen=True,
)
