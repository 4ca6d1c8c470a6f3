"""What a protocol is: one of three kinds, each a way of judging a backbone."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from fmi_jax import config as config_module
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.prepared import DatasetInfo, PreparedDataset
from fmi_jax.errors import UsageError
from fmi_jax.models.base import ArchConfig, Backbone, BackboneSpec
from fmi_jax.training.partition import Partition
from fmi_jax.training.step import Arrays, Placement, Preprocess

OPTIONAL = (
    "transformer",
    "probe_grid",
    "knn",
    "logistic",
    "lora",
    "attentive",
    "cka",
    "timing",
    "backbone.frozen_blocks",
    "optim.layer_decay",
)
"""Sections and fields of a config that only some protocols read; the rest belongs to all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What a classifier is built from.

    Attributes:
      backbone: the backbone of the experiment.
      transformer: takes its tokens; None unless the protocol `needs_transformer`.
      num_classes: width `k` of the logits.
      config: the experiment.
      rngs: stream `params`.
    """

    backbone: Backbone
    transformer: Backbone | None
    num_classes: int
    config: ExperimentConfig
    rngs: nnx.Rngs


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtocolSpec:
    """A protocol that trains: a classifier, and which of its parameters learn.

    Attributes:
      name: as in `config.protocol`.
      summary: one line for help and reports.
      classifier: builds the model, with the backbone under the attribute `backbone`; called as
        `model(images, rngs=...)`, it returns logits.
      trainable: `(config, arch of the backbone)` -> whether the parameter of a native name
        ("backbone.blocks.0...", "transformer...", "projector...", "head.kernel") learns. What
        does not gets no gradient, no optimizer slot and no place in the checkpoints of the run.
        Raises `UsageError` where the config asks for what the arch does not have.
      needs_transformer: whether a transformer is put on the tokens of the backbone.
      reads: which of `OPTIONAL` it reads.
    """

    name: str
    summary: str
    classifier: Callable[[Parts], nnx.Module]
    trainable: Callable[[ExperimentConfig, ArchConfig], Callable[[str], bool]]
    needs_transformer: bool = False
    reads: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """One of the heads that train side by side.

    Attributes:
      learning_rate: after warm-up.
      seed: of its initialisation.
    """

    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """As its scalars are written under ("lr0.001_seed0")."""
        return f"lr{self.learning_rate}_seed{self.seed}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridProtocolSpec(ProtocolSpec):
    """A protocol that trains many heads on one frozen feature.

    Attributes:
      heads: of an experiment, in the order of the first axis of what learns. The logits of the
        classifier are `[b, g, k]`.
    """

    heads: Callable[[ExperimentConfig], tuple[Head, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitFeatures:
    """Features of every image of a split, in the order of its rows.

    Attributes:
      features: float32 `[n, f]`, `Features.pooled` of the evaluation transform.
      labels: int `[n]`, or float `[n, k]` for a multi-label set.
      ids: of the images.
    """

    features: np.ndarray
    labels: np.ndarray
    ids: Sequence[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """What came of judging features.

    Attributes:
      val, test: class probabilities `[n, k]` in the order of the rows; no activation is applied
        to them again.
      details: what was tried and chosen, as JSON values; goes to `result.json` as it is.
      notes: what a reader must know, one sentence each.
    """

    val: np.ndarray
    test: np.ndarray
    details: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureProtocolSpec:
    """A protocol that reads frozen features, computed once and kept.

    Attributes:
      name, summary, reads: as of `ProtocolSpec`.
      judge: `(features by split, config, info) -> Judgement`.
      check: raises `UsageError` where the config does not fit the data; asked before anything is
        computed.
    """

    name: str
    summary: str
    judge: Callable[[Mapping[str, SplitFeatures], ExperimentConfig, DatasetInfo], Judgement]
    reads: tuple[str, ...] = ()
    check: Callable[[ExperimentConfig, DatasetInfo], None] = lambda config, info: None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A classifier with its arrays, on the devices.

    Attributes:
      name: for figures: the backbone's, and where it stands ("dinov2_vitb14, fine-tuned").
      config: what it was built by.
      spec, arch: its backbone's.
      dtype: compute type of its backbone.
      partition: its structure; `partition.merge(arrays)` is the module, its backbone under the
        attribute `backbone`.
      arrays: every array by native name.
      placement: where each of them is.
      preprocess: from prepared uint8 images to what the module takes; traceable.
    """

    name: str
    config: ExperimentConfig
    spec: BackboneSpec
    arch: ArchConfig
    dtype: Any
    partition: Partition
    arrays: Arrays
    placement: Placement
    preprocess: Preprocess


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisContext:
    """What an analysis works with.

    Attributes:
      config: the experiment.
      workdir: where figures and tables go.
      dataset: the prepared data set.
      mesh: the devices.
      build: the network that a config describes, with its pretrained weights; its head is drawn.
      trained: the best network of the finished run in a folder.
    """

    config: ExperimentConfig
    workdir: Path
    dataset: PreparedDataset
    mesh: Mesh
    build: Callable[[ExperimentConfig], Network]
    trained: Callable[[Path], Network]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisResult:
    """What an analysis found.

    Attributes:
      title: of the report.
      values: JSON values; go to `result.json` under this name.
      text: a short table for the console.
      figures: captions of the PNG files it wrote into the workdir, by file name.
      notes: what a reader must know, one sentence each.
    """

    title: str
    values: dict[str, Any]
    text: str
    figures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisSpec:
    """A protocol that measures something else than a score.

    Attributes:
      name, summary, reads: as of `ProtocolSpec`.
      run: measures; writes figures and tables into the workdir.
    """

    name: str
    summary: str
    run: Callable[[AnalysisContext], AnalysisResult]
    reads: tuple[str, ...] = ()


AnyProtocol = ProtocolSpec | FeatureProtocolSpec | AnalysisSpec


def check_read(protocol: AnyProtocol, config: ExperimentConfig) -> None:
    """Raise `UsageError` if `config` sets something that only other protocols read."""
    unread = [section for section in OPTIONAL if section not in protocol.reads]
    changed = [
        name
        for name in config_module.differences(ExperimentConfig(), config)
        if any(name == section or name.startswith(section + ".") for section in unread)
    ]
    if changed:
        raise UsageError(
            f"protocol {protocol.name!r} does not read {', '.join(changed)}: expected the"
            " default there, or a protocol that reads it."
        )
