"""Fine-tuning: the whole backbone learns (paper, Table 2)."""

from fmi_jax.protocols.spec import AdaptSpec

SPEC = AdaptSpec(
    name="full",
    summary="fine-tuned backbone",
    learns=lambda config, arch: lambda name: True,
    eval_mode=False,
    reads=("optim.layer_decay",),
)
