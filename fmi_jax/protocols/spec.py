"""Parts of a protocol: what is trained (an adaptation with a head), and what is measured.

Other parts of the program read facts about a protocol from its spec and never test its name.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from flax import nnx

from fmi_jax.artifacts.result import Finding, Shows
from fmi_jax.augment import count_views
from fmi_jax.data.labels import Label
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.models.base import ArchConfig, Backbone, ParameterKeys
from fmi_jax.protocols.judging import Monitor, Run
from fmi_jax.settings import BaseConfig
from fmi_jax.tasks.base import Objective
from fmi_jax.training.loop import Plan
from fmi_jax.training.optim import Held
from fmi_jax.training.partition import nothing
from fmi_jax.training.step import Augment, Follow, Logged, nothing_seen

_Config = TypeVar("_Config", bound=BaseConfig)


class Variant(NamedTuple, Generic[_Config]):
    """One experiment behind a number of a study.

    Attributes:
      config: experiment to run.
      learning_rate, seed: values that the study chose; None if the protocol has no such choice.
    """

    config: _Config
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
      weights: tag of published weights, or path of a file; empty: random.
    """

    field: str
    backbone: str
    weights: str


Variants = Callable[[Any, Sequence[float], int], tuple[Variant, ...]]
"""`(config, learning rates, seeds) -> experiments` that a study runs, ordered by rate and then by
seed; an empty list of rates stands for the config's own."""


def one_cell(config: _Config, rates: Sequence[float], seeds: int) -> tuple[Variant[_Config], ...]:
    """Return the experiment unchanged, for protocols without a learning rate or a random draw."""
    return (Variant(config),)


def seeds_alone(
    config: _Config, rates: Sequence[float], seeds: int
) -> tuple[Variant[_Config], ...]:
    """Give the experiment every seed, for protocols that choose nothing on validation."""
    made = rates_and_seeds(config, (), seeds)
    return tuple(variant._replace(learning_rate=None) for variant in made)


def rates_and_seeds(
    config: _Config, rates: Sequence[float], seeds: int
) -> tuple[Variant[_Config], ...]:
    """Combine every learning rate (the config's own, if `rates` is empty) with every seed."""
    made = []
    for rate in rates or (config.optim.learning_rate,):
        for seed in range(seeds):
            own = copy.deepcopy(config)
            own.optim.learning_rate = rate
            own.train.seed += seed
            made.append(Variant(own, rate, own.train.seed))
    return tuple(made)


def training_images(config: BaseConfig, counts: Mapping[str, int]) -> Images:
    """Count the images of a run that trains, validates, and tests its best step."""
    plan = Plan.of(config, counts["train"])
    validation = count_views(config, config.views.of_validation)
    test = count_views(config, config.views.name)
    return Images(
        trained=plan.total_steps * config.train.batch_size,
        judged=len(plan.evaluate_at) * counts["val"] * validation
        + (counts["val"] + counts["test"]) * test,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a protocol, with the facts that other parts of the program read.

    Attributes:
      name: name in configs.
      summary: one line for help and reports.
      options: class of its own section of the config; None: it has none.
      reads: config sections and fields that belong to this part, its own section among them; a run
        without it must leave them as they are.
      ignores: other sections and fields that the part does not read.
      labels: forms of labels that the part takes.
      unknown: True if it takes training labels some of which are not known.
      check: raises `UsageError` where the config does not fit the data; asked before anything is
        computed.
      small: fields to set in an experiment on tiny backbones and few images, by dotted name.
    """

    name: str
    summary: str
    options: type | None = None
    reads: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    labels: tuple[Label, ...] = (Label.INDEX, Label.VECTOR)
    unknown: bool = True
    check: Callable[[BaseConfig, DatasetInfo], None] = lambda config, info: None
    small: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Ingredients of a model.

    Attributes:
      backbone: the backbone of the experiment.
      transformer: takes its tokens; None unless the head has a `transformer`.
      num_classes: width `k` of the logits.
      config: the experiment.
      rngs: stream `params`.
      new_backbone: makes another backbone of the same arch with random arrays, without stochastic
        depth.
      eval_mode: True if the backbone is always in evaluation mode: no stochastic depth, and batch
        norms keep their statistics.
    """

    backbone: Backbone
    transformer: Backbone | None
    num_classes: int
    config: BaseConfig
    rngs: ParameterKeys
    new_backbone: Callable[[], Backbone] | None = None
    eval_mode: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """One of the heads that train side by side.

    Attributes:
      learning_rate: learning rate after warm-up.
      seed: random seed of its initialisation.
    """

    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Prefix of its scalars ("lr0.001_seed0")."""
        return f"lr{self.learning_rate}_seed{self.seed}"


class Pixels(NamedTuple):
    """Facts that an augmentation needs.

    Attributes:
      config: experiment.
      mean, std: pixel statistics of the data set, from 0 to 1.
      dtype: compute type of the network.
    """

    config: BaseConfig
    mean: Sequence[float]
    std: Sequence[float]
    dtype: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Training of a run; arrays go by their native names.

    Attributes:
      module: builds the model, with the backbone under the attribute `backbone`; called as
        `model(inputs, rngs=...)`.
      learns: predicate on a name ("backbone.blocks.0...", "head.kernel"): the parameter learns.
        The others get no gradient, no optimizer slot and no place in the run's checkpoints.
      follows: predicate on a name: the array changes without a gradient and is saved with the
        parameters. Running statistics of trained layers follow without being named.
      begins: name of the array that an array begins as a copy of; None: it is loaded or drawn.
      task: objective of the training; None: the data set's own task.
      augment: augmentation of training batches; None: images alone, as `config.augment` says.
      follow: update of the followers after a step, given the plan of the run; None: none.
      held: parameters that do not learn in the first steps, given the plan of the run.
      logged: makes scalars of the batch means of what the loss has `seen`.
      heads: heads trained side by side, in the order of the first axis of every trained array;
        empty: a single model.
      on_features: reduces the model to the part that reads kept features of its frozen backbone;
        None: the model reads images.
      keeps: "best" keeps the best step by validation, "last" the last, without validation.
      monitor: watches over a training that keeps its last step, given the run; None: nothing does.
      hands_on: path of the backbone that the run hands on ("teacher.backbone").
      merge: turns a trained backbone into a plain one that computes the same, in place; None: it is
        plain.
    """

    module: Callable[[Parts], nnx.Module]
    learns: Callable[[str], bool]
    follows: Callable[[str], bool] = nothing
    begins: Callable[[str], str | None] = lambda name: None
    task: Objective | None = None
    augment: Callable[[Pixels], Augment] | None = None
    follow: Callable[[Plan], Follow] | None = None
    held: Callable[[Plan], Held | None] = lambda plan: None
    logged: Logged = nothing_seen
    heads: tuple[Head, ...] = ()
    on_features: Callable[[Any], nnx.Module] | None = None
    keeps: Literal["best", "last"] = "best"
    monitor: Callable[[Run], Monitor | None] = lambda run: None
    hands_on: str = "backbone"
    merge: Callable[[Backbone], None] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeSpec(Part):
    """A judge: measures a network, the one that the run has trained or another.

    Attributes:
      judge: measures in a run and asks it for the networks that it needs.
      images: `(config, images by split) -> Images`.
      networks: `config -> checkpoints` needed besides `backbone.weights` and
        `transformer.weights`.
      after: config field that names the finished run to analyse; empty if there is none.
      shows: form of the result in a study's report. The report imports no protocol: plans and
        results carry `shows`, `label` and `unread`.
      label: an analysis's headline number in words; empty if there is none.
    """

    judge: Callable[[Run], Finding]
    ignores: tuple[str, ...] = ("optim",)
    images: Callable[[BaseConfig, Mapping[str, int]], Images]
    networks: Callable[[BaseConfig], Sequence[PretrainedNetwork]] = lambda config: ()
    after: str = ""
    shows: Shows = "score"
    label: str = ""


def tested(run: Run) -> Finding:
    """Evaluate the trained network on both splits."""
    return run.evaluated(run.predict("val"), run.predict("test"))


TEST = JudgeSpec(
    name="test",
    summary="metrics of the trained network on the test images",
    labels=tuple(Label),
    judge=tested,
    images=training_images,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSpec(Part):
    """Training of a protocol.

    Attributes:
      fit: `(config, arch of the backbone) -> Fit`; raises `UsageError` where the config asks for
        what the arch does not have.
      adapt, head: names of the adaptation and the head; empty for a fit of its own.
      transformer: `config -> PretrainedNetwork` to put on the tokens of the backbone; None: none.
      judge: measures what was trained, for the run's own number.
      variants: experiments that a study makes of one.
    """

    fit: Callable[[BaseConfig, ArchConfig], Fit]
    adapt: str = ""
    head: str = ""
    transformer: Callable[[BaseConfig], PretrainedNetwork] | None = None
    judge: JudgeSpec = TEST
    variants: Variants = rates_and_seeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptSpec(Part):
    """An adaptation: what of the backbone learns.

    Attributes:
      learns: `(config, arch) -> predicate` on the name of a parameter of the backbone. Raises
        `UsageError` where the config asks for what the arch does not have.
      change: puts trainable layers into the backbone, before the head is drawn; None: none.
      merge: inverse of `change` once the layers have learned; see `Fit`.
      eval_mode: True if the backbone is always in evaluation mode.
      frozen: True if nothing of the backbone learns, so that its features stay the same.
    """

    learns: Callable[[BaseConfig, ArchConfig], Callable[[str], bool]]
    change: Callable[[Parts], None] | None = None
    merge: Callable[[Backbone], None] | None = None
    eval_mode: bool
    frozen: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSpec(Part):
    """A head: what stands on the backbone. Its parameters all learn.

    Attributes:
      build: builds the model from backbone and transformer.
      follows: predicate on a name: the array changes without a gradient (`Fit.follows`).
      transformer: `config -> PretrainedNetwork` to put on the tokens of the backbone; None: none.
      heads: `config -> heads` that train side by side on one frozen feature; the logits are then
        `[b, g, k]`. None: it is a single head.
      on_features: `config -> Fit.on_features`.
      alone: name of the head that each of `heads` is.
      judge: measures what was trained, for the run's own number.
      variants: experiments that a study makes of one.
    """

    build: Callable[[Parts], nnx.Module]
    follows: Callable[[str], bool] = nothing
    transformer: Callable[[BaseConfig], PretrainedNetwork] | None = None
    heads: Callable[[BaseConfig], tuple[Head, ...]] | None = None
    on_features: Callable[[BaseConfig], Callable[[Any], nnx.Module] | None] = lambda config: None
    alone: str = ""
    judge: JudgeSpec = TEST
    variants: Variants = rates_and_seeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtocolSpec:
    """A protocol: what is trained, and the judges that measure it.

    Attributes:
      name: value of `config.protocol`.
      summary: one line for help and reports.
      fit: network that is trained; None if the backbone is judged as it is.
      judges: judges; the first finds the run's own number.
      unread: dotted names of the config sections and fields that the protocol does not read.
    """

    name: str
    summary: str
    fit: FitSpec | None
    judges: tuple[JudgeSpec, ...]
    unread: list[str] = dataclasses.field(default_factory=list)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Parts that read the config."""
        return self.judges if self.fit is None else (self.fit, *self.judges[1:])

    @property
    def trains(self) -> bool:
        """True if a network is trained."""
        return self.fit is not None

    @property
    def small(self) -> dict[str, Any]:
        """Fields to set in an experiment on tiny backbones and few images."""
        return {name: value for part in self.parts for name, value in part.small.items()}

    @property
    def own(self) -> JudgeSpec:
        """Judge that finds the run's own number."""
        return self.judges[0]

    def variants(
        self, config: _Config, rates: Sequence[float], seeds: int
    ) -> tuple[Variant[_Config], ...]:
        """Make the experiments that a study runs for one number; see `Variants`."""
        return (one_cell if self.fit is None else self.fit.variants)(config, rates, seeds)

    def images(self, config: BaseConfig, counts: Mapping[str, int]) -> Images:
        """Count the images that go through the network."""
        each = [judge.images(config, counts) for judge in self.judges]
        return Images(sum(one.trained for one in each), sum(one.judged for one in each))

    def networks(self, config: BaseConfig) -> list[PretrainedNetwork]:
        """List the networks that are needed besides the backbone."""
        found = [network for judge in self.judges for network in judge.networks(config)]
        if self.fit is not None and self.fit.transformer is not None:
            found.append(self.fit.transformer(config))
        return found
