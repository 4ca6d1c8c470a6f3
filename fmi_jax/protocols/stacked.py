"""Stacked: a DeiT learns on the tokens of the backbone (paper, Tables 1 and 2 "DeiT-B", Figure 5).

Any backbone, and any block of it as the source of the tokens (`backbone.last_block`). As in the
study, the transformer begins with weights of its own (`config.transformer`), its patch embedding
left out.
"""

from collections.abc import Callable

from flax import nnx

from fmi_jax.protocols.heads.stacked import StackedClassifier
from fmi_jax.protocols.spec import Parts, ProtocolSpec


def _stacked(*, frozen: bool) -> Callable[[Parts], nnx.Module]:
    def classifier(parts: Parts) -> nnx.Module:
        assert parts.transformer is not None
        return StackedClassifier(
            parts.backbone, parts.transformer, parts.num_classes, frozen=frozen, rngs=parts.rngs
        )

    return classifier


PROBE = ProtocolSpec(
    name="stacked_probe",
    summary="frozen backbone, DeiT on its tokens",
    classifier=_stacked(frozen=True),
    trainable=lambda config, arch: lambda name: not name.startswith("backbone."),
    needs_transformer=True,
    small={"transformer.name": "deit_nano"},
    reads=("transformer",),
)
FINETUNE = ProtocolSpec(
    name="stacked_finetune",
    summary="fine-tuned backbone, DeiT on its tokens",
    classifier=_stacked(frozen=False),
    trainable=lambda config, arch: lambda name: True,
    needs_transformer=True,
    small={"transformer.name": "deit_nano"},
    reads=("transformer", "optim.layer_decay"),
)
