"""Begins a run, whatever its protocol: devices, data, network, record."""

import dataclasses
import datetime
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fmi_jax import atomic, parallel
from fmi_jax.artifacts.checkpoints import model_sha256
from fmi_jax.artifacts.record import RunRecord
from fmi_jax.artifacts.result import FILE_NAME as RESULT, PENDING, Finding
from fmi_jax.data.labels import Label
from fmi_jax.data.loader import Strata
from fmi_jax.data.masks import pixel_counts
from fmi_jax.data.prepared import DatasetInfo, PreparedDataset, open_or_draw
from fmi_jax.data.subset import training_subset
from fmi_jax.errors import UsageError, UserError
from fmi_jax.models.registry import BACKBONES
from fmi_jax.nn import hardware
from fmi_jax.protocols.judging import Judgement, Network, Run, SplitFeatures, batches_of
from fmi_jax.protocols.registry import check, protocol_of, resolved
from fmi_jax.protocols.spec import JudgeSpec, ProtocolSpec
from fmi_jax.run import launch, network as networks, runtime
from fmi_jax.run.assembly import Assembly, assemble, evaluation_step, find_weights
from fmi_jax.run.assessment import Assessor, check_pooling
from fmi_jax.run.features import extract
from fmi_jax.run.origin import CHECKPOINTS, Origin, find_origin
from fmi_jax.settings import BaseConfig
from fmi_jax.tasks.base import Measured, Objective, Task
from fmi_jax.tasks.registry import task_of
from fmi_jax.training.loop import Plan
from fmi_jax.training.step import Arrays


class Clock:
    """Wall-clock seconds by phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, name: str) -> None:
        """End the phase that began with the last lap; phases of one name add up."""
        now = time.monotonic()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._since
        self._since = now


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """Result of a training.

    Attributes:
      arrays: arrays of what was trained, as they are kept.
      step: step whose checkpoint holds them.
      steps: steps that were done; fewer than planned where the learning rate has become too low.
      plan: schedule of the training.
      predict: measures every image of a split; each head on axis 1.
    """

    arrays: Arrays
    step: int
    steps: int
    plan: Plan
    predict: Callable[[str], Measured]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session(Run):
    """A run that has begun: what its judges see of it (`Run`), and what else it works with.

    Attributes:
      protocol: training and judges.
      assembly: model without its arrays.
      origin: origin of the backbone's arrays, found and checked.
      record: settings that the run was first started with.
      clock: wall-clock time by phase.
      fitted: result of the training; None before it, and in a run that trains nothing.
      judging: judge at work; None: none.
    """

    protocol: ProtocolSpec
    assembly: Assembly
    origin: Origin
    record: RunRecord
    clock: Clock
    fitted: Fitted | None = None
    judging: JudgeSpec | None = None

    @property
    def info(self) -> DatasetInfo:
        """Description of the data set."""
        return self.dataset.info

    @property
    def objective(self) -> Objective:
        """Objective of the training, as `config.loss` has it."""
        return objective_of(self.task, self.config, self.dataset)

    @property
    def strata(self) -> Strata | None:
        """Rows of each class of training images, where all are drawn equally often."""
        if self.config.data.sampling == "uniform":
            return None
        labels = self.dataset.labels("train")
        return [np.flatnonzero(labels == each) for each in np.unique(labels)]

    def predict(self, split: str) -> Measured:
        """Measure every image of a split with the trained network; each head on axis 1."""
        assert self.fitted is not None
        return self.fitted.predict(split)

    def measured(self, split: str, rows: np.ndarray) -> Measured:
        """Measure some images of a split with the trained network, as `Task.measure` does."""
        network, mesh = self.network(), self.mesh
        step = evaluation_step(
            self.assembly, self.config, self.origin.info, self.task, mesh, network.placement
        )
        (batch,) = batches_of(self, split, [rows])
        found = jax.device_get(step(network.arrays, parallel.to_devices(mesh, batch)))
        return {name: value[: len(rows)] for name, value in found.items()}

    def network(self, config: BaseConfig | None = None) -> Network:
        """Build the network that the run judges, or that of a config before training.

        Without a config it is the trained one, as it was best; in a run that trains none, and in
        one that trains heads side by side on a frozen backbone, the one that the run began with.

        Raises:
          UserError: see `network.pretrained`.
        """
        if config is not None:
            return networks.pretrained(config, self.info, self.mesh)
        begun = (self.assembly, self.config, self.origin, self.mesh)
        if self.fitted is None or self.assembly.fit.heads:
            return networks.begun(*begun)
        return networks.trained(
            *begun,
            self.fitted.arrays,
            model_sha256(self.workdir / CHECKPOINTS, self.fitted.step),
            self.protocol.summary,
        )

    def finished(self, workdir: Path) -> Network:
        """Read the best network of another finished run; errors as in `network.finished`."""
        return networks.finished(workdir, self.mesh)

    def started(self, workdir: Path) -> Network:
        """Build the network that another finished run started from; its head is drawn.

        Raises:
          UserError: see `network.started`.
        """
        return networks.started(workdir, self.info, self.mesh)

    def features(self) -> Mapping[str, SplitFeatures]:
        """Read the features of every split, or compute and keep them.

        They are kept in `features` under `config.data.data_dir`, for all runs that read the same.

        Raises:
          UserError: the weights or the data are damaged, or features are not finite.
        """
        found = extract(
            self.network(),
            self.dataset,
            Path(self.config.data.data_dir) / "features",
            mesh=self.mesh,
            say=self.say,
        )
        self._lap("features")
        return found

    def judged(self, judge: JudgeSpec) -> Finding:
        """Have a judge of the run measure."""
        run = dataclasses.replace(self, judging=judge)
        finding = judge.judge(run)
        run._lap("test" if finding.evaluations else self.protocol.name)
        return finding

    def classified(self, judgement: Judgement) -> Finding:
        """Evaluate a judgement and keep what it says of the test images."""
        self._lap("judging")
        return self.evaluated(
            judgement.val, judgement.test, values=judgement.details, notes=judgement.notes
        )

    def evaluated(
        self,
        val: Measured,
        test: Measured,
        *,
        values: Mapping[str, Any] | None = None,
        notes: tuple[str, ...] = (),
    ) -> Finding:
        """Evaluate measurements of both splits and keep those of the test images.

        Args:
          val, test: measurements of every image under what was chosen.
          values: further results, for `Finding.values`.
          notes: facts about the measurement that a reader must know.
        """
        task, rows = self.task, self.dataset.rows("test")
        on_val, assessor = task.evaluate(val), Assessor(task, self.config, self.metric)
        on_test = assessor.assess(test, rows, assessor.choose(val))
        of_groups = assessor.choose_per_group(val, self.dataset.groups("val"))
        groups = assessor.assess_groups(test, rows, of_groups)
        self._lap("test")
        judge, file, title = self.protocol.name, task.file, ""
        if (added := self._added) is not None:
            judge, file = added.name, f"{added.name}_{task.file}"
            title = added.summary[:1].upper() + added.summary[1:]
        if self.active:
            task.keep(self.workdir / file, test, rows)
        return Finding(
            judge=judge,
            title=title,
            evaluations={"val": on_val, "test": on_test, **groups.evaluations},
            resampled="image" if rows.groups is None else "group",
            values=dict(values or {}),
            notes=(*notes, *groups.notes),
        )

    @property
    def _added(self) -> JudgeSpec | None:
        """Judge at work, if it is one that the config adds to the run's own."""
        return None if self.judging == self.protocol.own else self.judging

    def _lap(self, phase: str) -> None:
        """End a phase of the judge at work; all those of an added judge go by its name."""
        self.clock.lap(phase if self._added is None else self._added.name)

    def say(self, line: str) -> None:
        """Print a line, on one process."""
        if self.active:
            print(line)

    def heading(self) -> str:
        """Say what runs on what; before it, what the compute type costs here."""
        note = hardware.compute_type_note(self.config.backbone.dtype)
        counts = ", ".join(f"{n} {split}" for split, n in self.info.counts.items())
        where = runtime.device()
        return (f"{note}\n" if note else "") + (
            f"{self.assembly.spec.name}, {self.protocol.summary}, on {self.info.name} ({counts}"
            f" images), {where['count']} {where['kind']} device(s)"
        )


def objective_of(task: Task, config: BaseConfig, dataset: PreparedDataset) -> Objective:
    """Make the objective of a training; `UsageError` where the config does not fit the labels."""
    info = dataset.info
    if config.data.sampling == "balanced" and info.label is not Label.INDEX:
        raise UsageError(
            f"data.sampling='balanced' is for images of one class each, and the labels of"
            f" {info.name!r} are {info.label.words}: expected 'uniform'."
        )
    if config.loss.dice_over == "batch" and config.optim.accumulate > 1:
        raise UsageError(
            f"loss.dice_over='batch' with optim.accumulate={config.optim.accumulate} would be Dice"
            " over a part of the batch: expected optim.accumulate=1, or 'image'."
        )
    if info.label.of_pixels and config.loss.class_weights != "none":
        pixels, total = pixel_counts(dataset, "train"), info.counts["train"] * info.size**2
        return task.objective(config.loss, pixels.sum(axis=0).tolist(), total)
    counts = info.class_counts.get("train", ())
    return task.objective(config.loss, counts, info.known_counts("train"))


def begin(config: BaseConfig, workdir: Path) -> Session:
    """Open the data, describe the network, and write or check the record of the run.

    Nothing is written before everything that `config` names has been found.

    Raises:
      UsageError: something in `config` does not exist or does not fit, or `workdir` holds a run
        with other settings.
      UserError: the prepared data or the record are damaged.
    """
    clock = Clock()
    config = resolved(config)
    mesh = parallel.make_mesh(config.train.model_parallel)
    if (unused := launch.unused_devices()) is not None:
        print(f"note: {unused}", file=sys.stderr)
    parallel.check_batch_size(
        mesh, config.train.batch_size, config.optim.accumulate, "train.batch_size"
    )
    parallel.check_batch_size(mesh, config.train.evaluation_batch_size, 1, "train.eval_batch_size")

    data = config.data
    dataset = training_subset(
        open_or_draw(Path(data.data_dir), data.name, data.prepared_size, data.split),
        fraction=data.fraction,
        shots=data.shots,
        seed=data.subset_seed,
    )
    info = dataset.info
    metric = config.metric or info.metric
    task = task_of(info)
    task.metric(metric)  # refuses one that the task does not have
    check_pooling(config.group_pooling, task, dataset)
    clock.lap("data")

    protocol = protocol_of(config)
    check(config, info)
    objective_of(task, config, dataset)
    for needed in protocol.networks(config):  # by a judge that may come after a long training
        find_weights(
            needed.weights,
            config.backbone.weights_dir,
            BACKBONES[needed.backbone],
            needed.field,
        )
    assembly = assemble(config, info.channels, len(info.classes))
    if config.train.augment_validation and assembly.fit.on_features is not None:
        raise UsageError(
            "train.augment_validation: heads on kept features see every image as it is; expected"
            " False, or a protocol whose backbone reads the images."
        )
    origin = find_origin(assembly, config, info)
    transformer = assembly.transformer_weights
    record = RunRecord(
        config=config,
        dataset=info.to_json(),
        weights_sha256=origin.weights_sha256,
        transformer_sha256=None if transformer is None else atomic.sha256(transformer),
        started=now(),
        ancestors=origin.ancestors,
    )
    earlier = RunRecord.read(type(config), workdir)
    if earlier is None and (left := _leftovers(workdir)):
        raise UserError(
            f"{workdir} holds {left} of a run and no run.json, which says what was run: put that"
            " file back, or use another --workdir."
        )
    if earlier is not None:
        earlier.check_same(record, workdir, protocol.unread)
        record = earlier
    elif parallel.is_main():
        record.write(workdir)
    return Session(
        config=config,
        workdir=workdir,
        protocol=protocol,
        mesh=mesh,
        dataset=dataset,
        task=task,
        metric=metric,
        assembly=assembly,
        origin=origin,
        record=record,
        clock=clock,
    )


def _leftovers(workdir: Path) -> str:
    """Name what a run has left in a folder that would be resumed; empty: nothing."""
    if any(path.name.isdecimal() for path in (workdir / CHECKPOINTS).glob("*/")):
        return "checkpoints"
    return next((name for name in (RESULT, PENDING) if (workdir / name).is_file()), "")


def now() -> str:
    """The time as ISO 8601, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
