"""Linear probes of all learning rates and seeds in one pass (paper, Table 1 "linear").

A frozen backbone gives the same feature to every head, so it is computed once per image. Head by
head this is the linear probe: initialisation, gradient clipping, AdamW, schedule, plateau and
best step are its own. Order and augmentation of the images are shared; those of
`linear_probe` with the same `train.seed`.
"""

import copy
from collections.abc import Callable, Sequence

from flax import nnx

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.models.base import ArchConfig
from fmi_jax.protocols.heads.head_grid import HeadGrid
from fmi_jax.protocols.spec import Grid, Head, Parts, ProtocolSpec, Variant
from fmi_jax.training.side_by_side import is_best


def heads(config: ExperimentConfig) -> tuple[Head, ...]:
    """Every rate with every seed; those of one rate stand together."""
    default = ExperimentConfig().optim.learning_rate
    if config.optim.learning_rate != default:
        raise UsageError(
            f"optim.learning_rate={config.optim.learning_rate!r}: protocol 'probe_grid' trains"
            f" probe_grid.learning_rates={config.probe_grid.learning_rates!r} instead; expected"
            f" the default {default!r} there, or protocol 'linear_probe'."
        )
    seeds = range(config.train.seed, config.train.seed + config.probe_grid.seeds)
    return tuple(
        Head(learning_rate=rate, seed=seed)
        for rate in config.probe_grid.learning_rates
        for seed in seeds
    )


def _classifier(parts: Parts) -> nnx.Module:
    config = parts.config
    return HeadGrid(
        parts.backbone,
        parts.num_classes,
        streams(config.train.seed, config.probe_grid.seeds, parts.rngs),
        copies=len(config.probe_grid.learning_rates),
    )


def streams(seed: int, count: int, first: nnx.Rngs) -> Sequence[nnx.Rngs]:
    """What the head of each seed is drawn from: as in a linear probe of that `train.seed`.

    There, the backbone has been drawn from the same stream before.
    """
    streams = [first]
    for i in range(1, count):
        other = nnx.Rngs(seed + i)
        other.default.count.set_value(first.default.count.get_value())
        streams.append(other)
    return streams


def _trainable(config: ExperimentConfig, arch: ArchConfig) -> Callable[[str], bool]:
    del arch
    heads(config)  # refuses what no head reads
    return lambda name: not name.startswith("backbone.") and not is_best(name)


def _variants(config: ExperimentConfig, rates: Sequence[float], seeds: int) -> tuple[Variant, ...]:
    """All rates and seeds in one run."""
    config = copy.deepcopy(config)
    config.probe_grid.learning_rates = tuple(rates) or config.probe_grid.learning_rates
    config.probe_grid.seeds = seeds
    return (Variant(config),)


SPEC = ProtocolSpec(
    name="probe_grid",
    summary="frozen backbone, linear heads of all learning rates at once",
    classifier=_classifier,
    trainable=_trainable,
    follows=is_best,
    grid=Grid(heads=heads, alone="linear_probe"),
    variants=_variants,
    small={"probe_grid.learning_rates": (1e-3, 1e-2)},
    reads=("probe_grid",),
    ignores=("optim.learning_rate",),
)
