"""Linear probe: the backbone is frozen, one linear layer learns (paper, Table 1 "linear")."""

from fmi_jax.protocols.heads.linear import LinearClassifier
from fmi_jax.protocols.spec import ProtocolSpec

SPEC = ProtocolSpec(
    name="linear_probe",
    summary="frozen backbone, linear head",
    classifier=lambda parts: LinearClassifier(
        parts.backbone, parts.num_classes, frozen=True, rngs=parts.rngs
    ),
    trainable=lambda config, arch: lambda name: not name.startswith("backbone."),
)
