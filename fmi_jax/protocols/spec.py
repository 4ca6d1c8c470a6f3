"""What a protocol is: a network that is trained and tested, or a judge of networks.

Other parts of the program read facts about a protocol from its spec and never test its name.
"""

import copy
import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from fmi_jax import config as config_module
from fmi_jax.artifacts.result import Finding, Shows
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.prepared import DatasetInfo, PreparedDataset
from fmi_jax.errors import UsageError
from fmi_jax.models.base import ArchConfig, Backbone, BackboneSpec
from fmi_jax.tasks.base import Measured
from fmi_jax.training.loop import Plan
from fmi_jax.training.partition import Partition, nothing
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
"""Config sections and fields that only some protocols read; `Protocol.reads` lists them."""


class Variant(NamedTuple):
    """One experiment behind a number of a study.

    Attributes:
      config: experiment to run.
      learning_rate, seed: values that the study chose; None if the protocol has no such choice.
    """

    config: ExperimentConfig
    learning_rate: float | None = None
    seed: int | None = None


class Images(NamedTuple):
    """Number of images that go through the network in an experiment.

    Attributes:
      trained: images in training steps; one seen twice counts twice.
      judged: images in forward passes without a gradient.
    """

    trained: int
    judged: int


class PretrainedNetwork(NamedTuple):
    """A converted checkpoint that an experiment reads.

    Attributes:
      field: config field that asks for it, for messages.
      backbone: backbone's name.
      weights: tag of published weights, or path of a file.
    """

    field: str
    backbone: str
    weights: str


def one_cell(config: ExperimentConfig, rates: Sequence[float], seeds: int) -> tuple[Variant, ...]:
    """Return the experiment unchanged, for protocols without a learning rate or a random draw."""
    del rates, seeds
    return (Variant(config),)


def rates_and_seeds(
    config: ExperimentConfig, rates: Sequence[float], seeds: int
) -> tuple[Variant, ...]:
    """Combine every learning rate (the config's own, if `rates` is empty) with every seed."""
    made = []
    for rate in rates or (config.optim.learning_rate,):
        for seed in range(seeds):
            own = copy.deepcopy(config)
            own.optim.learning_rate = rate
            own.train.seed += seed
            made.append(Variant(own, rate, own.train.seed))
    return tuple(made)


def training_images(config: ExperimentConfig, counts: Mapping[str, int]) -> Images:
    """Count the images of a run that trains, validates, and tests its best step."""
    plan = Plan.of(config, counts["train"])
    judged = (len(plan.evaluate_at) + 1) * counts["val"] + counts["test"]
    return Images(plan.total_steps * config.train.batch_size, judged)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Facts about a protocol that other parts of the program read.

    Attributes:
      name: value of `config.protocol`.
      summary: one line for help and reports.
      reads: sections and fields of `OPTIONAL` that the protocol reads.
      ignores: sections and fields outside `OPTIONAL` that the protocol does not read.
      check: raises `UsageError` where the config does not fit the data; asked before anything is
        computed.
      variants: `(config, learning rates, seeds) -> experiments` that a study runs, ordered by
        rate and then by seed; an empty list of rates stands for the config's own.
      images: `(config, images by split) -> Images`.
      networks: `config -> checkpoints` needed besides `backbone.weights` and
        `transformer.weights`.
      after: config field that names the finished run to analyse; empty if there is none.
      small: fields to set in an experiment on tiny backbones and few images, by dotted name.
      shows: how a study's report shows the result. The report imports no protocol: plans and
        results carry `shows`, `label` and `unread`.
      label: an analysis's headline number in words; empty if there is none.
      trains: whether the protocol trains a network.
    """

    name: str
    summary: str
    reads: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    check: Callable[[ExperimentConfig, DatasetInfo], None] = lambda config, info: None
    variants: Callable[[ExperimentConfig, Sequence[float], int], tuple[Variant, ...]] = one_cell
    images: Callable[[ExperimentConfig, Mapping[str, int]], Images]
    networks: Callable[[ExperimentConfig], Sequence[PretrainedNetwork]] = lambda config: ()
    after: str = ""
    small: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shows: Shows = "score"
    label: str = ""
    trains: ClassVar[bool] = False

    @property
    def unread(self) -> list[str]:
        """Dotted names of the config sections and fields that the protocol does not read."""
        return [*(name for name in OPTIONAL if name not in self.reads), *self.ignores]


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
class Grid:
    """Grid of heads trained side by side on one frozen feature.

    Attributes:
      heads: `config -> heads`, ordered as the first axis of every trained array; the classifier's
        logits are `[b, g, k]`.
      alone: name of the protocol that trains a single such head.
    """

    heads: Callable[[ExperimentConfig], tuple[Head, ...]]
    alone: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtocolSpec(Protocol):
    """A protocol that trains: a classifier, and which of its parameters learn.

    Attributes:
      classifier: builds the model, with the backbone under the attribute `backbone`; called as
        `model(images, rngs=...)`, it returns logits.
      trainable: `(config, arch of the backbone)` -> whether the parameter of a native name
        ("backbone.blocks.0...", "transformer...", "projector...", "head.kernel") learns. What
        does not gets no gradient, no optimizer slot and no place in the checkpoints of the run.
        Raises `UsageError` where the config asks for what the arch does not have.
      follows: native name -> whether the array changes without a gradient and is saved with the
        parameters; running statistics of trained layers are followers without being named.
      needs_transformer: whether a transformer is put on the tokens of the backbone.
      grid: heads trained side by side; None if a single model is trained.
    """

    classifier: Callable[[Parts], nnx.Module]
    trainable: Callable[[ExperimentConfig, ArchConfig], Callable[[str], bool]]
    follows: Callable[[str], bool] = nothing
    needs_transformer: bool = False
    grid: Grid | None = None
    variants: Callable[[ExperimentConfig, Sequence[float], int], tuple[Variant, ...]] = (
        rates_and_seeds
    )
    images: Callable[[ExperimentConfig, Mapping[str, int]], Images] = training_images
    trains: ClassVar[bool] = True


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
    """Measurements of both splits under the setting that was chosen on validation.

    Attributes:
      val, test: measurements of every image, as the task takes them.
      details: settings that were tried and chosen, as JSON values, for `Finding.values`.
      notes: facts that a reader must know, one sentence each.
    """

    val: Measured
    test: Measured
    details: dict[str, Any]
    notes: tuple[str, ...] = ()


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
      info: data set whose mean and standard deviation `preprocess` applies.
      identity: origin of its backbone's arrays: {"weights": sha256 of a file}, {"seed": number}, or
        {"run": sha256 of a finished run's network}, with the "head" of a grid. Kept features are
        found by it.
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
    info: DatasetInfo
    identity: Mapping[str, Any]


class Run(typing.Protocol):
    """The run that a judge works in."""

    @property
    def config(self) -> ExperimentConfig:
        """Experiment."""
        ...

    @property
    def workdir(self) -> Path:
        """Folder for figures and tables."""
        ...

    @property
    def dataset(self) -> PreparedDataset:
        """Prepared data set, the training subset taken."""
        ...

    @property
    def mesh(self) -> Mesh:
        """Devices; every network of the run lives on them."""
        ...

    @property
    def active(self) -> bool:
        """Whether this process writes files."""
        ...

    def network(self, config: ExperimentConfig | None = None) -> Network:
        """Build the network of the run, or of another config, as it is before training."""
        ...

    def finished(self, workdir: Path) -> Network:
        """Read the best network of another finished run."""
        ...

    def started(self, workdir: Path) -> Network:
        """Build the network that another finished run started from; its head is drawn."""
        ...

    def features(self) -> Mapping[str, SplitFeatures]:
        """Read the kept features of every split, or compute them."""
        ...

    def classified(self, judgement: Judgement) -> Finding:
        """Evaluate a judgement and keep what it says of the test images."""
        ...


Judge = Callable[[Run], Finding]
"""Measures in a run; it asks the run for the networks that it needs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeSpec(Protocol):
    """A protocol that trains no network.

    Attributes:
      judge: measures; writes figures and tables into the run's folder.
    """

    judge: Judge
    ignores: tuple[str, ...] = ("optim",)


AnyProtocol = ProtocolSpec | JudgeSpec


def check_read(protocol: AnyProtocol, config: ExperimentConfig) -> None:
    """Raise `UsageError` if `config` sets something that only other protocols read."""
    unread = [section for section in OPTIONAL if section not in protocol.reads]
    changed = [
        name
        for name in config_module.differences(ExperimentConfig(), config)
        if config_module.within(name, unread)
    ]
    if changed:
        raise UsageError(
            f"protocol {protocol.name!r} does not read {', '.join(changed)}: expected the"
            " default there, or a protocol that reads it."
        )
