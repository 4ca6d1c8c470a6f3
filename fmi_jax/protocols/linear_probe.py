"""Linear probe: the backbone is frozen, one linear layer learns (paper, Table 1 "linear")."""

from fmi_jax.classifiers.linear import LinearClassifier
from fmi_jax.protocols.spec import ProtocolSpec

SPEC = ProtocolSpec(
    name="linear_probe",
    summary="frozen backbone, linear head",
    classifier=lambda backbone, num_classes, rngs: LinearClassifier(
        backbone, num_classes, frozen=True, rngs=rngs
    ),
    trainable=lambda name: name.startswith("head."),
)
