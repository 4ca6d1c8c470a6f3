"""Fine-tuning: backbone and linear head learn together (paper, Table 2 "linear")."""

from fmi_jax.protocols.heads.linear import LinearClassifier
from fmi_jax.protocols.spec import ProtocolSpec

SPEC = ProtocolSpec(
    name="finetune",
    summary="fine-tuned backbone, linear head",
    classifier=lambda parts: LinearClassifier(
        parts.backbone, parts.num_classes, frozen=False, rngs=parts.rngs
    ),
    trainable=lambda config, arch: lambda name: True,
    reads=("optim.layer_decay",),
)
