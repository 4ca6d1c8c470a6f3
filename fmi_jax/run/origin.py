"""Origin of a run's backbone: found and checked before anything is computed.

The first that is set: `backbone.run`, a finished run that hands its backbone on;
`backbone.weights`, a converted checkpoint; else `train.seed`, from which it is drawn. `network`
reads the arrays.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from fmi_jax import atomic
from fmi_jax.artifacts import sealed
from fmi_jax.artifacts.checkpoints import check_step, model_sha256
from fmi_jax.artifacts.record import FILE_NAME as RECORD, Ancestor, RunRecord
from fmi_jax.artifacts.result import Finding, Result
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.errors import UsageError, UserError
from fmi_jax.protocols.registry import protocol_of
from fmi_jax.protocols.spec import Fit, Head
from fmi_jax.run.assembly import OPTIONS, Assembly, assemble
from fmi_jax.settings import BaseConfig

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints, in that of a run."""

_WATCHED = "best_by_neighbours"  # value of a pre-training's finding: the step that it chose


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A finished run that trained a network, without the arrays.

    Attributes:
      workdir: run's folder.
      record: settings that it was started with.
      result: result that it ended with.
      config: config of the record, for a mesh with as many devices along "model" as asked for.
      info: data set that it was trained on.
      pixels: data set whose mean and standard deviation its network was trained with.
      assembly: classifier that it trained.
      chosen: step whose network is meant: "kept", or "best" (`backbone.run_step`).
      parent: run that holds what this one froze of its backbone; None if its own checkpoint, a
        weights file or its seed does.
    """

    workdir: Path
    record: RunRecord
    result: Result
    config: BaseConfig
    info: DatasetInfo
    pixels: DatasetInfo
    assembly: Assembly
    chosen: str
    parent: Self | None

    @property
    def checkpoints(self) -> Path:
        """Folder of its checkpoints."""
        return self.workdir / CHECKPOINTS

    @property
    def step(self) -> int:
        """Step whose checkpoint has the network; a grid's last has the best of every head."""
        kept = kept_steps(self.assembly.fit, self.result)
        return kept[-1] if self.chosen == "best" else kept[0]

    @property
    def sha256(self) -> str:
        """Checksum of its network."""
        return model_sha256(self.checkpoints, self.step)

    def check_files(self) -> None:
        """Raise `UserError` if a checkpoint that its backbone is read from is damaged."""
        check_step(self.checkpoints, self.step)
        if self.parent is not None:
            self.parent.check_files()


def kept_steps(fit: Fit, result: Result) -> tuple[int, ...]:
    """Find the steps whose checkpoints a finished run keeps: its own, and one that was better.

    The second is that of a pre-training whose monitor chose another than the last.
    """
    best = result.best
    own = result.steps if fit.heads or best is None else best.step
    watched = result.finding.values.get(_WATCHED, {}).get("step", own)
    return tuple(dict.fromkeys((own, watched)))


def chosen_head(heads: Sequence[Head], finding: Finding) -> int:
    """Find the head that a finding reports, among those trained side by side."""
    return list(heads).index(Head(**finding.values["chosen"]))


def finished_run(workdir: Path, model_parallel: int = 1, step: str = "kept") -> FinishedRun:
    """Describe the finished run in `workdir`.

    Args:
      workdir: run's folder.
      model_parallel: devices along "model" of the mesh that its arrays are for.
      step: step whose network is meant: "kept", or "best" (`backbone.run_step`).

    Raises:
      UserError: the run is not finished or damaged, it trained no network, or what it started
        from (its weights, or the run of which it froze the backbone) has changed.
    """
    record = RunRecord.read(ExperimentConfig, workdir)
    if record is not None and not protocol_of(record.config).trains:
        raise UserError(
            f"{workdir} holds a run of protocol {record.config.protocol!r}, which trains no"
            " network: expected the folder of one that does, such as 'linear_probe' or 'finetune'."
        )
    result = Result.read(workdir)
    if record is None:
        raise UserError(f"{workdir} holds no run.json: expected the folder of a finished run.")
    if step == "best" and result.best is None and _WATCHED not in result.finding.values:
        raise UsageError(
            f"backbone.run_step='best': the run in {workdir} chose no step, since its images had no"
            " labels that tell neighbours apart; expected 'kept', its last step."
        )
    config = dataclasses.replace(
        record.config,
        train=dataclasses.replace(record.config.train, model_parallel=model_parallel),
    )
    with sealed.reading(workdir / RECORD, "the record of a run"):  # of an older format
        info = DatasetInfo.from_json(record.dataset)
        pixels = _pixels(record.ancestors, info)
    assembly = assemble(config, info.channels, len(info.classes))
    if assembly.weights is not None:
        found, expected = atomic.sha256(assembly.weights), record.weights_sha256
        if found != expected:
            raise UserError(
                f"{assembly.weights} is not the file that the run in {workdir} started from: its"
                f" sha256 is {found}, expected {expected}. Put that file back: what a run freezes"
                " it does not save."
            )
    parent = None
    if config.backbone.run and _of_backbone(assembly.partition.frozen):
        parent = finished_run(Path(config.backbone.run), model_parallel, config.backbone.run_step)
        record.check_parent(parent.sha256, workdir)
    return FinishedRun(
        workdir=workdir,
        record=record,
        result=result,
        config=config,
        info=info,
        pixels=pixels,
        assembly=assembly,
        chosen=step,
        parent=parent,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Origin of a run's backbone.

    Attributes:
      identity: origin of the backbone's arrays; see `Network.identity`.
      info: data set whose mean and standard deviation normalise the images.
      ancestors: runs that the backbone went through, the latest first; none without `backbone.run`.
      notes: facts that a reader must know about those runs, one sentence each.
    """

    identity: Mapping[str, Any]
    info: DatasetInfo
    ancestors: tuple[Ancestor, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def weights_sha256(self) -> str | None:
        """Checksum of the pretrained weights file; None if there is none."""
        return self.identity.get("weights")


def find_origin(assembly: Assembly, config: BaseConfig, info: DatasetInfo) -> Origin:
    """Find and check what the backbone of a run on the data set `info` comes from.

    Raises:
      UserError: the run that `backbone.run` names cannot hand its backbone on to this one: it is
        not finished, damaged, trains no network, or its backbone is another one.
    """
    folder = config.backbone.run
    if not folder:
        if assembly.weights is None:
            return Origin(identity={"seed": config.train.seed}, info=info)
        return Origin(identity={"weights": atomic.sha256(assembly.weights)}, info=info)
    try:
        run = finished_run(Path(folder), step=config.backbone.run_step)
        _check_fits(run, assembly, config, info)
        run.check_files()
    except UserError as error:
        raise type(error)(f"backbone.run: {error}") from error
    parent = Ancestor(
        folder=folder,
        sha256=run.sha256,
        protocol=run.config.protocol,
        learned=_of_backbone(run.assembly.partition.params),
        dataset=run.record.dataset,
    )
    ancestors = (parent, *run.record.ancestors)
    return Origin(
        identity={"run": parent.sha256},
        info=_pixels(ancestors, info),
        ancestors=ancestors,
        notes=tuple(_notes(ancestors, info)),
    )


def _of_backbone(names: Sequence[str]) -> bool:
    """Test whether an array of the backbone is among the named ones."""
    return any(name.startswith("backbone.") for name in names)


def _pixels(ancestors: Sequence[Ancestor], info: DatasetInfo) -> DatasetInfo:
    """Find the data set that normalises the images: that of the backbone's first run."""
    return DatasetInfo.from_json(ancestors[-1].dataset) if ancestors else info


def _check_fits(
    run: FinishedRun, assembly: Assembly, config: BaseConfig, info: DatasetInfo
) -> None:
    """Raise one `UsageError` that lists how the run's backbone differs from the one asked for.

    Another image size is no difference: positions are resized, as those of weights files are.
    """
    there, here = run.assembly.arch, assembly.arch
    name, own = run.assembly.spec.name, assembly.spec.name
    if name != own:
        raise UsageError(
            f"{run.workdir} holds a run of {name}, and backbone.name is {own!r}: expected a run of"
            f" {own}, or --config.backbone.name={name}."
        )
    wrong = []
    if there.in_channels != here.in_channels:
        wrong.append(
            f"its backbone takes images of {there.in_channels} channel(s), and those of"
            f" {info.name} have {here.in_channels}; expected a run on such images (or weights,"
            " whose stem is adapted)"
        )
    if there.num_blocks < here.num_blocks:
        wrong.append(
            f"it kept {there.num_blocks} block(s) of its backbone"
            f" (backbone.last_block={run.config.backbone.last_block}), and this config needs"
            f" {here.num_blocks}; expected --config.backbone.last_block={there.num_blocks - 1} or"
            " less, from 0 on"
        )
    if type(there) is not type(here):
        stem = run.config.backbone.stem
        wrong.append(
            f"its backbone has the stem of backbone.stem={stem!r}, and this config asks for"
            f" {config.backbone.stem!r}; expected --config.backbone.stem={stem}"
        )
    for option in OPTIONS:
        held, asked = getattr(there, option, ""), getattr(here, option, "")
        if held != asked:
            wrong.append(
                f"its backbone has backbone.{option}={held!r}, and this config {asked!r}; expected"
                f" --config.backbone.{option}={held}"
            )
    if wrong:
        raise UsageError(f"{run.workdir} cannot hand its backbone on: {'; '.join(wrong)}.")


def _notes(ancestors: Sequence[Ancestor], info: DatasetInfo) -> list[str]:
    """List facts that a reader must know about runs that a backbone went through."""
    words = [
        f"the run in {each.folder} (protocol {each.protocol!r}, data set {each.dataset['name']!r})"
        for each in ancestors
    ]
    found = [f"The backbone comes from {', which started from '.join(words)}."]
    pixels = _pixels(ancestors, info)
    if (pixels.mean, pixels.std) != (info.mean, info.std):
        found.append(
            f"Images are normalised by the mean and standard deviation of {pixels.name}, as in"
            f" {ancestors[-1].folder}, and not by those of {info.name}."
        )
    overlaps = (_overlap(each, info) for each in ancestors if each.learned)
    return [*found, *dict.fromkeys(filter(None, overlaps))]


def _overlap(ancestor: Ancestor, info: DatasetInfo) -> str | None:
    """Say whether images that are tested here may have been trained on there."""
    there = DatasetInfo.from_json(ancestor.dataset)
    if there.name != info.name:
        return (
            f"Test images of {info.name} may be among the images of {there.name} that the backbone"
            f" was trained on in {ancestor.folder}: overlap was not checked."
        )
    if there.manifest_sha256 == info.manifest_sha256 or there.split_sha256 == info.split_sha256:
        return None
    return (
        f"The backbone was trained in {ancestor.folder} on another split of {info.name}"
        f" ({there.split!r} there, {info.split!r} here): test images may have been training images."
    )
