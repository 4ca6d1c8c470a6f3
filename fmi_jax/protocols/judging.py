"""Interface of a judge: the run it measures in, networks, and their features."""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from fmi_jax import parallel
from fmi_jax.artifacts.result import Finding
from fmi_jax.data import loader
from fmi_jax.data.prepared import DatasetInfo, PreparedDataset
from fmi_jax.models.base import ArchConfig, BackboneSpec
from fmi_jax.settings import BackboneConfig, BaseConfig
from fmi_jax.tasks.base import Measured, Task
from fmi_jax.training.partition import Partition
from fmi_jax.training.selection import Selection
from fmi_jax.training.step import Arrays, Placement, Preprocess
from fmi_jax.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitFeatures:
    """Features of every image of a split, in the order of its rows.

    Attributes:
      features: float32 `[n, f]`, `Features.pooled` of the evaluation transform.
      labels: int `[n]`, or float `[n, k]` for a multi-label set.
      ids: ids of the images.
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
    """A model with its arrays, on the devices.

    Attributes:
      name: name for figures: the backbone's, and where it stands ("dinov2_vitb14, fine-tuned").
      config: experiment that it was built for.
      spec, arch: spec and arch of its backbone.
      dtype: compute type of its backbone.
      partition: structure; `partition.merge(arrays)` is the module, its backbone under the
        attribute `backbone`.
      arrays: every array by native name.
      placement: sharding of each of them.
      preprocess: function from prepared uint8 images to the module's input; traceable.
      info: data set whose mean and standard deviation `preprocess` applies.
      identity: origin of its backbone's arrays: {"weights": sha256 of a file}, {"seed": number}, or
        {"run": sha256 of a finished run's network}, with the "head" of a grid. Kept features are
        found by it.
    """

    name: str
    config: BaseConfig
    spec: BackboneSpec
    arch: ArchConfig
    dtype: Any
    partition: Partition
    arrays: Arrays
    placement: Placement
    preprocess: Preprocess
    info: DatasetInfo
    identity: Mapping[str, Any]

    def step(
        self,
        mesh: Mesh,
        compute: Callable[..., Any],
        finish: Callable[[Any, Arrays], Any],
        *beside: str,
    ) -> Callable[[Arrays, Arrays], Any]:
        """Make the jitted `(arrays, batch) -> results`, whole on every process.

        Args:
          mesh: devices, which share the images of a batch.
          compute: `(module, its input, *beside) -> arrays` of each image, on the device that has
            it.
          finish: `(computed, batch) -> results` of the whole batch.
          beside: names of parts of the batch that `compute` takes beside the images.
        """

        def of_images(arrays: Arrays, images: Array, *others: Array) -> Any:
            module = self.partition.merge(arrays, placement=self.placement)
            return compute(module, self.preprocess(images), *others)

        by_shard = parallel.by_shard(
            mesh,
            of_images,
            in_specs=(dict(self.placement), *[PartitionSpec("data")] * (1 + len(beside))),
            out_specs=PartitionSpec("data"),
        )
        return jax.jit(
            lambda arrays, batch: finish(
                by_shard(arrays, batch["inputs"], *(batch[name] for name in beside)), batch
            ),
            in_shardings=(dict(self.placement), parallel.batch_sharding(mesh)),
            out_shardings=parallel.replicated(mesh),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(abc.ABC):
    """The run that a judge works in.

    Attributes:
      config: config of the experiment.
      workdir: folder of the run.
      mesh: devices; every network of the run lives on them.
      dataset: images, the training subset taken.
      task: meaning of the data set's labels.
      metric: validation metric that selects.
      selection: validations of the training, of each head; None before the training, and in a run
        that trains nothing.
    """

    config: BaseConfig
    workdir: Path
    mesh: Mesh
    dataset: PreparedDataset
    task: Task
    metric: str
    selection: Selection | None = None

    @property
    def active(self) -> bool:
        """True on the one process that writes files and prints."""
        return parallel.is_main()

    @property
    def trained(self) -> bool:
        """True if the run has trained the network that it judges."""
        return self.selection is not None

    @abc.abstractmethod
    def network(self, config: BaseConfig | None = None) -> Network:
        """Build the network that the run judges, or that of a config before training."""

    @abc.abstractmethod
    def finished(self, workdir: Path) -> Network:
        """Read the best network of another finished run."""

    @abc.abstractmethod
    def started(self, workdir: Path) -> Network:
        """Build the network that another finished run started from; its head is drawn."""

    @abc.abstractmethod
    def features(self) -> Mapping[str, SplitFeatures]:
        """Read the kept features of every split, or compute them."""

    @abc.abstractmethod
    def predict(self, split: str) -> Measured:
        """Measure every image of a split with the trained network; each head on axis 1."""

    @abc.abstractmethod
    def measured(self, split: str, rows: np.ndarray) -> Measured:
        """Measure some images of a split with the trained network, as `Task.measure` does."""

    @abc.abstractmethod
    def classified(self, judgement: Judgement) -> Finding:
        """Evaluate a judgement and keep what it says of the test images."""

    @abc.abstractmethod
    def evaluated(
        self,
        val: Measured,
        test: Measured,
        *,
        values: Mapping[str, Any] | None = None,
        notes: tuple[str, ...] = (),
    ) -> Finding:
        """Evaluate measurements of both splits and keep those of the test images."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Monitor(abc.ABC):
    """Watch over a training that nothing is validated in.

    Attributes:
      rows: rows of the training split whose features are watched, in their order.
      metric: metric behind the value "knn", by which the best step is kept beside the last; empty:
        there is no such value, and the last step alone is kept.
    """

    rows: np.ndarray
    metric: str

    @abc.abstractmethod
    def values(self, features: np.ndarray, first: np.ndarray) -> dict[str, float]:
        """Measure features of the watched images.

        Args:
          features: `Features.pooled` of the backbone that the run hands on, `[n, f]`.
          first: features of the same images at step 0.
        """

    @abc.abstractmethod
    def collapse(
        self,
        values: Mapping[str, float],
        first: Mapping[str, float],
        recent: Mapping[str, float],
        progress: float,
    ) -> str:
        """Say what has collapsed; empty where nothing has.

        Args:
          values: monitors now.
          first: monitors at step 0.
          recent: means of the training's scalars since the last measurement.
          progress: share of all steps that are done.
        """


def batches_of(run: Run, split: str, rows: Sequence[np.ndarray]) -> Iterator[Batch]:
    """Read the images of a split in these batches of rows, padded so that devices can share them.

    Args:
      run: run whose data set, devices and decoding threads are used.
      split: split of the images.
      rows: rows of each batch.
    """
    size = parallel.whole_shares(run.mesh, max(map(len, rows)))
    return loader.batches_of_rows(
        run.dataset,
        split,
        np.stack([np.pad(some, (0, size - len(some)), constant_values=-1) for some in rows]),
        threads=run.config.data.threads,
        places=parallel.held_places(run.mesh, size),
    )


def plain(config: BaseConfig, backbone: BackboneConfig, protocol: str) -> BaseConfig:
    """Describe another backbone under a protocol with its defaults, on the same images."""
    return type(config)(
        protocol=protocol,
        image_size=config.image_size,
        data=config.data,
        augment=config.augment,
        backbone=backbone,
        train=config.train,
    )
