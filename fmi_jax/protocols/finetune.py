"""Fine-tuning: backbone and linear head learn together (paper, Table 2 "linear")."""

from fmi_jax.classifiers.linear import LinearClassifier
from fmi_jax.protocols.spec import ProtocolSpec

SPEC = ProtocolSpec(
    name="finetune",
    summary="fine-tuned backbone, linear head",
    classifier=lambda backbone, num_classes, rngs: LinearClassifier(
        backbone, num_classes, frozen=False, rngs=rngs
    ),
    trainable=lambda name: True,
)
