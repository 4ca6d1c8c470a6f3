"""Linear heads of all learning rates and seeds in one pass (paper, Table 1 "linear").

A frozen backbone gives the same feature to every head, so it is computed once per image. Head by
head this is the linear probe: initialisation, gradient clipping, AdamW, schedule, plateau and
best step are its own. Order and augmentation of the images are shared; those of
`linear_probe` with the same `train.seed`.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fmi_jax.artifacts.evaluation import Evaluation
from fmi_jax.artifacts.result import Finding
from fmi_jax.errors import UsageError
from fmi_jax.models.base import Backbone, ParameterKeys
from fmi_jax.nn.linear import linear
from fmi_jax.protocols.choice import at_an_end
from fmi_jax.protocols.judging import Run
from fmi_jax.protocols.spec import Head, HeadSpec, JudgeSpec, Parts, Variant, training_images
from fmi_jax.rules import different, positive
from fmi_jax.settings import BaseConfig, OptimConfig, section
from fmi_jax.training.selection import Selection
from fmi_jax.training.side_by_side import is_best, of_head


@dataclasses.dataclass(slots=True)
class ProbeGridConfig:
    """Many linear heads trained in one pass (protocol `probe_grid`).

    Attributes:
      learning_rates: learning rates, one head for each and per seed. The study searched four
        between 1e-5 and 1e-3 and does not print them; linear heads are often best above.
      seeds: initialisations of every head; they share the stream of images.
      cached: True to train on the features of unaugmented images, computed once.
    """

    learning_rates: tuple[float, ...] = different(
        (1e-5, 4.6e-5, 2.2e-4, 1e-3, 4.6e-3, 2.2e-2, 1e-1), earlier=(1e-5, 4.6e-5, 2.2e-4, 1e-3)
    )
    seeds: int = positive(1)
    cached: bool = False


_PREDICTIONS = "predictions_seed{}.csv"  # what the head of a seed says of the test images


class HeadStack(nnx.Module):
    """`g` linear heads: every array has the head as its first axis.

    Args:
      width: width `f` of the feature.
      num_classes: width `k` of the logits.
      rngs: one for each seed, drawn from as `LinearClassifier` draws its head.
      copies: number of heads that start from each seed; head `i * len(rngs) + j` is the `i`-th of
        seed `j`.

    Attributes:
      kernel, bias: `[g, f, k]` and `[g, k]`.
      best_kernel, best_bias: copies taken at each head's best validation; followers.
    """

    def __init__(self, width: int, num_classes: int, rngs: Sequence[nnx.Rngs], copies: int):
        heads = [linear(width, num_classes, dtype=jnp.float32, rngs=each) for each in rngs]
        kernel = jnp.tile(jnp.stack([head.kernel[...] for head in heads]), (copies, 1, 1))
        bias = jnp.zeros((len(kernel), num_classes))
        self.kernel, self.bias = nnx.Param(kernel), nnx.Param(bias)
        self.best_kernel, self.best_bias = nnx.Variable(kernel), nnx.Variable(bias)

    def __call__(self, features: Float[Array, "b f"]) -> Float[Array, "b g k"]:
        """Logits of every head in float32."""
        features = features.astype(jnp.float32)
        return jnp.einsum("bf,gfk->bgk", features, self.kernel[...]) + self.bias[...]


class HeadGrid(nnx.Module):
    """A frozen backbone, computed once, with `g` linear heads.

    Args:
      backbone: the feature extractor, always in evaluation mode.
      num_classes: width `k` of the logits of each head.
      rngs, copies: see `HeadStack`.
    """

    def __init__(self, backbone: Backbone, num_classes: int, rngs: Sequence[nnx.Rngs], copies: int):
        self.backbone = backbone
        self.head = HeadStack(backbone.arch.feature_width, num_classes, rngs, copies)

    def __call__(
        self, images: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b g k"]:
        """Logits of every head in float32."""
        return self.head(self.backbone.features(images, rngs=None).pooled)


class FeatureHeads(nnx.Module):
    """The heads of a `HeadGrid` without its backbone: on features that are computed already."""

    def __init__(self, head: HeadStack):
        self.head = head

    def __call__(
        self, features: Float[Array, "b f"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b g k"]:
        """Logits of every head in float32."""
        return self.head(features)


def heads_of(config: BaseConfig) -> tuple[Head, ...]:
    """List every rate with every seed; those of one rate stand together.

    Raises:
      UsageError: a learning rate is set that no head reads.
    """
    default, grid = OptimConfig().learning_rate, section(config, ProbeGridConfig)
    if config.optim.learning_rate != default:
        raise UsageError(
            f"optim.learning_rate={config.optim.learning_rate!r}: protocol 'probe_grid' trains"
            f" probe_grid.learning_rates={grid.learning_rates!r} instead; expected"
            f" the default {default!r} there, or protocol 'linear_probe'."
        )
    return tuple(
        Head(learning_rate=rate, seed=config.train.seed + i)
        for rate in grid.learning_rates
        for i in range(grid.seeds)
    )


def _build(parts: Parts) -> nnx.Module:
    grid = section(parts.config, ProbeGridConfig)
    return HeadGrid(
        parts.backbone,
        parts.num_classes,
        streams(parts.config.train.seed, grid.seeds, parts.rngs),
        copies=len(grid.learning_rates),
    )


def streams(seed: int, count: int, first: ParameterKeys) -> Sequence[ParameterKeys]:
    """Make the stream that the head of each seed is drawn from, as in a linear probe of that seed.

    There, the backbone has been drawn from the same stream before.
    """
    return [
        first,
        *(ParameterKeys(jax.random.key(seed + i), first.drawn) for i in range(1, count)),
    ]


def _on_features(config: BaseConfig) -> Callable[[Any], nnx.Module] | None:
    """Leave the backbone out where the heads train on kept features."""
    cached = section(config, ProbeGridConfig).cached
    return (lambda model: FeatureHeads(model.head)) if cached else None


def _variants(config: BaseConfig, rates: Sequence[float], seeds: int) -> tuple[Variant, ...]:
    """Put all rates and seeds into one run."""
    config = copy.deepcopy(config)
    grid = section(config, ProbeGridConfig)
    grid.learning_rates, grid.seeds = tuple(rates) or grid.learning_rates, seeds
    return (Variant(config),)


def judge(run: Run) -> Finding:
    """Measure every head at its best step, and report the first head of the best rate."""
    heads, task = heads_of(run.config), run.task
    assert run.selection is not None
    val, test = run.predict("val"), run.predict("test")
    of_val, of_test = (
        [task.evaluate(of_head(measured, i)) for i in range(len(heads))] for measured in (val, test)
    )
    metric = task.metric(run.metric)
    chosen = choose(heads, [metric.score(head.values[run.metric]) for head in of_val])
    if run.active:  # what the run reports is written last
        for i in _same_rate(heads, chosen):
            task.keep(
                run.workdir / _PREDICTIONS.format(heads[i].seed),
                of_head(test, i),
                run.dataset.rows("test"),
            )
    return run.evaluated(
        of_head(val, chosen),
        of_head(test, chosen),
        values=_details(heads, chosen, run.selection, of_val, of_test),
        notes=tuple(_notes(section(run.config, ProbeGridConfig), heads[chosen])),
    )


def choose(heads: Sequence[Head], scores: Sequence[float]) -> int:
    """Choose the first head of the rate that is best by validation, in the mean over its seeds.

    Not the head that is best: of several seeds it would be the luckiest, and no longer comparable
    with the one seed of a linear probe. The first of equal rates.

    Args:
      heads: heads, those of one rate together.
      scores: score of each head at its best step, more being better.
    """
    rates = list(dict.fromkeys(head.learning_rate for head in heads))
    means = np.array(scores).reshape(len(rates), -1).mean(axis=1)
    return int(np.argmax(means)) * (len(heads) // len(rates))


def _same_rate(heads: Sequence[Head], chosen: int) -> list[int]:
    """List the heads of the chosen one's learning rate, itself among them."""
    return [i for i, h in enumerate(heads) if h.learning_rate == heads[chosen].learning_rate]


def _details(
    heads: Sequence[Head],
    chosen: int,
    selection: Selection,
    val: Sequence[Evaluation],
    test: Sequence[Evaluation],
) -> dict[str, Any]:
    """Describe every head, and the chosen rate over its seeds, as JSON for `Finding.values`.

    Each head stands with the metrics of its best step; `seeds` has the mean and the standard
    deviation (of a sample) of the test metrics over the seeds of the chosen rate.
    """
    same = _same_rate(heads, chosen)
    over_seeds = {name: [test[i].values[name] for i in same] for name in test[chosen].values}
    return {
        "chosen": {"learning_rate": heads[chosen].learning_rate, "seed": heads[chosen].seed},
        "curves": heads[chosen].name,
        "seeds": {
            "count": len(same),
            "predictions": {heads[i].seed: _PREDICTIONS.format(heads[i].seed) for i in same},
            "test_mean": {name: float(np.mean(values)) for name, values in over_seeds.items()},
            "test_std": {
                name: float(np.std(values, ddof=1))
                for name, values in over_seeds.items()
                if len(same) > 1
            },
        },
        "heads": [
            {
                "learning_rate": head.learning_rate,
                "seed": head.seed,
                "best_step": selection.tracks[i].best_step,
                "val": val[i].values,
                "test": test[i].values,
            }
            for i, head in enumerate(heads)
        ],
    }


def _notes(settings: ProbeGridConfig, chosen: Head) -> Iterator[str]:
    """Say where the choice lies, and what sets a grid apart from separate linear probes."""
    if end := at_an_end("learning rate", chosen.learning_rate, settings.learning_rates):
        yield end
    if settings.seeds > 1:
        yield (
            f"The {settings.seeds} seeds of a learning rate share the order and augmentation of"
            " the images; they differ in the initialisation of the head alone."
        )
    if settings.cached:
        yield "The heads were trained on features of images without augmentation."


SPEC = HeadSpec(
    name="grid",
    summary="linear heads of all learning rates at once",
    build=_build,
    follows=is_best,
    heads=heads_of,
    on_features=_on_features,
    alone="linear",
    judge=JudgeSpec(
        name="heads", summary="metrics of every head", judge=judge, images=training_images
    ),
    variants=_variants,
    small={"probe_grid.learning_rates": (1e-3, 1e-2)},
    options=ProbeGridConfig,
    reads=("probe_grid",),
    ignores=("optim.learning_rate",),
)
