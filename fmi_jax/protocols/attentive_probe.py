"""Attentive probe: frozen backbone; a learned query over its tokens and a linear layer learn.

Not in the paper: what the tokens hold beside the pooled feature that a linear probe reads.
"""

from fmi_jax.protocols.heads.attentive import AttentiveClassifier
from fmi_jax.protocols.spec import Parts, ProtocolSpec


def _classifier(parts: Parts) -> AttentiveClassifier:
    return AttentiveClassifier(
        parts.backbone,
        parts.num_classes,
        num_heads=parts.config.attentive.num_heads,
        rngs=parts.rngs,
    )


SPEC = ProtocolSpec(
    name="attentive_probe",
    summary="frozen backbone, attention pooling and linear head",
    classifier=_classifier,
    trainable=lambda config, arch: lambda name: name.startswith(("pool.", "head.")),
    reads=("attentive",),
)
