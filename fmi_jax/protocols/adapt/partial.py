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

from fmi_jax.errors import UsageError
from fmi_jax.models.base import ArchConfig
from fmi_jax.protocols.spec import AdaptSpec
from fmi_jax.settings import BaseConfig


def learns(config: BaseConfig, arch: ArchConfig) -> Callable[[str], bool]:
    """Select the parameters that learn; `UsageError` when no block is left that does."""
    frozen, blocks = config.backbone.frozen_blocks, arch.num_blocks
    if frozen >= blocks:
        raise UsageError(
            f"backbone.frozen_blocks={frozen}: {config.backbone.name} has {blocks} blocks here;"
            f" expected 0 to {blocks - 1}. To freeze all of them, take a protocol whose backbone is"
            " frozen: linear_probe, stacked_probe, attentive_probe."
        )
    return lambda name: name.startswith(
        tuple(f"backbone.blocks.{i}." for i in range(frozen, blocks))
    )


SPEC = AdaptSpec(
    name="partial",
    summary="partly frozen backbone",
    learns=learns,
    eval_mode=True,
    small={"backbone.frozen_blocks": 1},
    reads=("backbone.frozen_blocks", "optim.layer_decay"),
)
