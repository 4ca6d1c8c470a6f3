"""Input of a training: images that are augmented anew in every step, or kept features."""

import dataclasses
from collections.abc import Callable, Iterator

from fmi_jax.data import feature_batches, loader
from fmi_jax.run.assembly import augmentation, evaluation_preprocess
from fmi_jax.run.session import Session
from fmi_jax.training.step import Augment, Preprocess
from fmi_jax.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feed:
    """Batches of a training and of its evaluations, this process's part of each.

    Attributes:
      batches: training batches from a step on.
      eval_batches: batches of one pass over a split.
      augment: function that makes the model's inputs of a training batch, on the device.
      preprocess: function that makes them in an evaluation.
    """

    batches: Callable[[int], Iterator[Batch]]
    eval_batches: Callable[[str], Iterator[Batch]]
    augment: Augment
    preprocess: Preprocess


def images(run: Session) -> Feed:
    """Feed images."""
    config, pixels = run.config, run.origin.info
    return Feed(
        batches=lambda start_step: loader.train_batches(
            run.dataset,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            start_step=start_step,
            threads=config.data.threads,
            workers=config.data.workers,
            places=run.held_places(config.train.batch_size),
        ),
        eval_batches=lambda split: loader.eval_batches(
            run.dataset,
            split,
            batch_size=run.eval_batch_size,
            threads=config.data.threads,
            places=run.held_places(run.eval_batch_size),
        ),
        augment=augmentation(run.assembly, config, pixels, run.info.label),
        preprocess=evaluation_preprocess(run.assembly, config, pixels),
    )


def features(run: Session) -> Feed:
    """Feed the features of the frozen backbone, which sees every image once, unaugmented."""
    config, splits = run.config, run.features()
    return Feed(
        batches=lambda start_step: feature_batches.train_batches(
            splits["train"].features,
            splits["train"].labels,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            start_step=start_step,
            places=run.held_places(config.train.batch_size),
        ),
        eval_batches=lambda split: feature_batches.eval_batches(
            splits[split].features,
            splits[split].labels,
            batch_size=run.eval_batch_size,
            places=run.held_places(run.eval_batch_size),
        ),
        augment=lambda keys, batch: batch,
        preprocess=lambda features: features,
    )
