"""Progressive freezing: the first blocks of the backbone stay as they are (paper, Figure 4).

`backbone.frozen_blocks` = k freezes blocks 0 to k-1. As in the study, what is outside the blocks
(stem, [cls] token, position embedding, final norms) is frozen at any k, 0 included, and the whole
backbone is in evaluation mode: no stochastic depth, and batch norms keep their statistics, in the
blocks that learn, too. A layer that leads from one stage to the next belongs to the block behind
it.

Unlike the study, whose stacked classifiers freeze the backbone again at every step
(docs/protocols.md, B34), a stacked transformer can learn on a partly frozen backbone.
"""

from collections.abc import Callable

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.models.base import ArchConfig
from fmi_jax.protocols.heads.linear import LinearClassifier
from fmi_jax.protocols.heads.stacked import StackedClassifier
from fmi_jax.protocols.spec import Parts, ProtocolSpec


def trainable(config: ExperimentConfig, arch: ArchConfig) -> Callable[[str], bool]:
    """Whether a parameter learns; `UsageError` when no block is left that does."""
    frozen, blocks = config.backbone.frozen_blocks, arch.num_blocks
    if frozen >= blocks:
        instead = "linear_probe" if config.protocol == "partial" else "stacked_probe"
        raise UsageError(
            f"backbone.frozen_blocks={frozen}: {config.backbone.name} has {blocks} blocks here;"
            f" expected 0 to {blocks - 1}. To freeze all of them: --config.protocol={instead}."
        )
    learns = tuple(f"backbone.blocks.{i}." for i in range(frozen, blocks))
    return lambda name: not name.startswith("backbone.") or name.startswith(learns)


def _stacked(parts: Parts) -> StackedClassifier:
    assert parts.transformer is not None
    return StackedClassifier(
        parts.backbone, parts.transformer, parts.num_classes, frozen=True, rngs=parts.rngs
    )


LINEAR = ProtocolSpec(
    name="partial",
    summary="partly frozen backbone, linear head",
    classifier=lambda parts: LinearClassifier(
        parts.backbone, parts.num_classes, frozen=True, rngs=parts.rngs
    ),
    trainable=trainable,
    small={"backbone.frozen_blocks": 1},
    reads=("backbone.frozen_blocks", "optim.layer_decay"),
)
STACKED = ProtocolSpec(
    name="stacked_partial",
    summary="partly frozen backbone, DeiT on its tokens",
    classifier=_stacked,
    trainable=trainable,
    needs_transformer=True,
    small={"backbone.frozen_blocks": 1, "transformer.name": "deit_nano"},
    reads=("backbone.frozen_blocks", "transformer", "optim.layer_decay"),
)
