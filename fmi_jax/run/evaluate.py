"""A finished run on a data set that it never saw: an external test set."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmi_jax import parallel
from fmi_jax.artifacts.evaluation import Evaluation
from fmi_jax.artifacts.result import FILE_NAME as RESULT, PENDING, Result, tables_in
from fmi_jax.data import loader
from fmi_jax.data.labels import IGNORE, Label, class_membership
from fmi_jax.data.prepared import PreparedDataset, list_prepared, open_dataset
from fmi_jax.data.registry import note_on
from fmi_jax.data.remarks import few_groups, few_images
from fmi_jax.errors import UserError, unknown_name
from fmi_jax.report.console import console_table, per_group_line
from fmi_jax.report.page import FILE_NAME as PAGE, write_report
from fmi_jax.run import runtime
from fmi_jax.run.assembly import BARE, evaluation_step
from fmi_jax.run.assessment import Assessor
from fmi_jax.run.network import Trained, read_trained
from fmi_jax.run.session import now
from fmi_jax.tasks.base import Measured, Task
from fmi_jax.tasks.registry import task_of
from fmi_jax.training.evaluation import predict_split
from fmi_jax.types import Rows

ALL = "all"
"""Word for all splits of a data set together."""


def evaluate(
    workdir: Path,
    name: str,
    out: Path,
    *,
    data_dir: Path | None = None,
    rule: str = "",
    split: str = "test",
    size: int = 0,
    batch_size: int = 32,
) -> Result:
    """Measure the network of the finished run in `workdir` on another prepared data set.

    Classes are matched by name: those of the data set may be fewer, and in another order. The
    images are normalised as those of the run were. Nothing is chosen here.

    Args:
      workdir: folder of a finished run that trained a head.
      name: name of the prepared data set.
      out: folder of the result and its page.
      data_dir: folder that holds the prepared sets; None: the run's.
      rule: split rule that the set was prepared by; empty: see `open_dataset`.
      split: split to measure, or `ALL`.
      size: side in pixels of the prepared images; 0: the run's where the set is prepared at it,
        else the only one.
      batch_size: images per step.

    Raises:
      UsageError: the data set or the split does not exist.
      UserError: the run is not finished or damaged, or the data set does not fit it.
    """
    run = read_trained(workdir)
    if run.assembly.fit is BARE:
        raise UserError(
            f"{workdir} holds a run of protocol {run.config.protocol!r}, which trains no head:"
            " expected the folder of one that does, such as 'linear_probe' or 'finetune'."
        )
    started, own = now(), Result.read(workdir)
    folder = Path(run.config.data.data_dir) if data_dir is None else data_dir
    dataset = open_dataset(folder, name, _size(folder, name, size, run), rule)
    splits = _splits(dataset, split)
    matched = _match(run, dataset, splits, workdir)
    task = task_of(run.info)
    groups = {
        name: members
        for name, members in task.class_groups.items()
        if {*members} <= {*matched.measured}
    }
    task = dataclasses.replace(task, classes=matched.measured, class_groups=groups)
    parts = [_measured(run, dataset, part, matched, task, batch_size) for part in splits]
    measured = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    rows = _rows(dataset, splits)
    best = own.best
    assert best is not None  # a head was trained, and chosen
    if best.metric not in task.metric_names:  # it is that of a group of classes
        best = dataclasses.replace(best, metric=task.selects, value=own.val.values[task.selects])
    assessor = Assessor(task, run.config, best.metric)
    test = assessor.assess(measured, rows, _choices(own.test, matched.measured))
    of_groups = _choices(own.finding.pooled, matched.measured)
    per_group = assessor.assess_groups(measured, rows, of_groups)
    result = dataclasses.replace(
        own,
        best=best,
        dataset={
            **dataset.info.to_json(),
            "counts": {"test": test.count},
            "evaluated_split": split,
            "trained_on": {
                name: own.dataset[name] for name in ("name", "split", "split_sha256", "counts")
            },
        },
        findings=(
            dataclasses.replace(
                own.finding,
                evaluations={"val": own.val, "test": test, **per_group.evaluations},
                resampled="image" if rows.groups is None else "group",
                values={"own_test": own.test.to_json()["values"]},
                figures={},
                notes=per_group.notes,
            ),
        ),
        seconds={},
        notes=tuple(_notes(run, dataset, splits, matched, rows, own, task.warning(test))),
        device=runtime.device(),
        versions=runtime.versions(),
        started=started,
        finished=now(),
    )
    if parallel.is_main():
        out.mkdir(parents=True, exist_ok=True)
        task.keep(out / task.file, measured, rows)
        result = dataclasses.replace(result, tables=tables_in(out))
        places = [(part, row) for part in splits for row in range(len(dataset.split(part)))]
        result.write(out, PENDING)
        shown = run.config.data.thumbnails
        write_report(out, (lambda row: dataset.image(*places[row])) if shown else None, PENDING)
        (out / PENDING).replace(out / RESULT)
    return result


def announce(result: Result, out: Path) -> None:
    """Print what an external test found, and where its report is."""
    name = result.dataset["name"]
    title = f"{_kind(name, result.config['data']['name'])} {name}, {result.test.count} images"
    console_table(result.test, title)
    if (pooled := result.finding.pooled) is not None and result.best is not None:
        print(per_group_line(pooled, result.best.metric))
    for note in result.notes:
        print(f"note: {note}")
    print(f"report: {out / PAGE}")


def _kind(name: str, own: str) -> str:
    """Words for a test on a data set, before its name."""
    return "Test on its own data set" if name == own else "External test on"


def _size(data_dir: Path, name: str, size: int, run: Trained) -> int:
    """Choose among the sizes that a data set is prepared at."""
    sizes = {side for each, side, _ in list_prepared(data_dir) if each == name}
    own = run.config.data.prepared_size
    if size or own in sizes or len(sizes) != 1:
        return size or own
    return sizes.pop()


def _splits(dataset: PreparedDataset, split: str) -> list[str]:
    """Names of the splits to measure, those with images."""
    there = [name for name, count in dataset.info.counts.items() if count]
    if split != ALL and split not in there:
        raise unknown_name(f"split of {dataset.info.name} with images", split, (*there, ALL))
    return there if split == ALL else [split]


class _Matched(NamedTuple):
    """Classes of a data set beside those of a network.

    Attributes:
      measured: classes that metrics are computed of, in the network's order.
      columns: outputs of the network for these.
      to: class of the network for each class of the data set; -1: none.
    """

    measured: tuple[str, ...]
    columns: list[int]
    to: list[int]


def _match(
    run: Trained, dataset: PreparedDataset, splits: Sequence[str], workdir: Path
) -> _Matched:
    """Match classes by name.

    An image or a pixel has one class of those the network knows, or is refused. Of several findings
    only those count that both sides know: what nobody looked for is not absent.
    """
    ours, theirs = run.info, dataset.info
    if (ours.label, ours.channels) != (theirs.label, theirs.channels):
        raise UserError(
            f"{theirs.name} has {theirs.label.words} and {theirs.channels} channel(s), and the run"
            f" in {workdir} was trained on {ours.label.words} and {ours.channels}: expected a data"
            " set of that form."
        )
    to = [ours.classes.index(name) if name in ours.classes else -1 for name in theirs.classes]
    known = sorted(index for index in to if index >= 0)
    if theirs.label in (Label.VECTOR, Label.LAYERS) and known:
        return _Matched(tuple(ours.classes[index] for index in known), known, to)
    labels = np.concatenate([dataset.labels(split) for split in splits])
    counts = np.nansum(class_membership(labels, len(theirs.classes)), axis=0)
    strange = [theirs.classes[i] for i in np.flatnonzero(counts) if to[i] < 0]
    if strange or not known:
        near = difflib.get_close_matches((strange or theirs.classes)[0], ours.classes, 1)
        raise UserError(
            f"{theirs.name} has images of {', '.join(map(repr, strange or theirs.classes))}, which"
            f" the run in {workdir} does not know: expected some of"
            f" {', '.join(map(repr, ours.classes))}"
            + (f" (nearest: {near[0]!r})" if near else "")
            + ". Prepare the set with those names, or without these images."
        )
    return _Matched(ours.classes, [*range(len(ours.classes))], to)


def _measured(
    run: Trained,
    dataset: PreparedDataset,
    split: str,
    matched: _Matched,
    task: Task,
    batch_size: int,
) -> Measured:
    """Measure every image of a split under the classes of the network that are measured."""
    mesh, info, columns = run.mesh, run.info, np.array(matched.columns)
    size = parallel.whole_shares(mesh, batch_size)
    relabelled = _relabelling(info.label, matched)
    places = parallel.held_places(mesh, size)
    batches = loader.eval_batches(dataset, split, batch_size=size, places=places)

    def measure(outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        return task.measure(outputs[..., columns], batch)

    return predict_split(
        evaluation_step(
            run.assembly, run.config, run.pixels, task, mesh, run.placement, measure=measure
        ),
        run.arrays,
        ({**batch, "labels": relabelled(batch["labels"])} for batch in batches),
        len(dataset.ids(split)),
        mesh,
        task.on_host,
    )


def _relabelling(label: Label, matched: _Matched) -> Callable[[np.ndarray], np.ndarray]:
    """Make the function that gives labels of a data set the classes that are measured."""
    to = {c: matched.columns.index(ours) for c, ours in enumerate(matched.to) if ours >= 0}
    values = np.arange(max(256, len(matched.to)))
    if label is Label.LAYERS:
        lookup = np.sum([label.pixels_of(values, c) << place for c, place in to.items()], axis=0)
        lookup[IGNORE] = IGNORE
    else:
        lookup = np.array([to.get(value, IGNORE) for value in values.tolist()])

    def relabelled(labels: np.ndarray) -> np.ndarray:
        if label is not Label.VECTOR:
            return lookup[labels].astype(labels.dtype)
        found = np.zeros((len(labels), len(matched.columns)), labels.dtype)
        found[:, [*to.values()]] = labels[:, [*to]]
        return found

    return relabelled


def _choices(own: Evaluation | None, classes: Sequence[str]) -> dict[str, Any]:
    """What the run chose on its validation images, for the classes that are measured."""
    choices = {} if own is None else dict(own.choices)
    if "thresholds" in choices:
        choices["thresholds"] = {
            name: value for name, value in choices["thresholds"].items() if name in classes
        }
    return choices


def _rows(dataset: PreparedDataset, splits: Sequence[str]) -> Rows:
    """Join what is known of the images of several splits."""
    parts = [dataset.rows(split) for split in splits]
    groups = [name for part in parts for name in part.groups or ()]
    columns = {
        name: [value for part in parts for value in part.columns[name]] for name in parts[0].columns
    }
    return Rows([name for part in parts for name in part.ids], groups or None, columns)


def _notes(
    run: Trained,
    dataset: PreparedDataset,
    splits: Sequence[str],
    matched: _Matched,
    rows: Rows,
    own: Result,
    warning: str,
) -> list[str]:
    """List facts that a reader of an external test must know, and those of the run that hold."""
    ours, theirs = run.info, dataset.info
    found = [
        *filter(None, [warning]),
        f"{_kind(theirs.name, ours.name)} {theirs.name} ({', '.join(splits)}): the network was"
        f" trained on {ours.name}, and everything was chosen on the validation images of"
        f" {ours.name}.",
    ]
    if theirs.size != run.config.data.prepared_size:
        found.append(
            f"Images were prepared at {theirs.size} pixels; those of {ours.name} were at"
            f" {run.config.data.prepared_size}."
        )
    known = {theirs.classes[i] for i, index in enumerate(matched.to) if index >= 0}
    for words, names in (
        (f"Classes of {ours.name} that {theirs.name} does not have", ours.classes),
        (f"Classes of {theirs.name} that were left out", theirs.classes),
    ):
        if missing := [name for name in names if name not in known]:
            found.append(f"{words}: {', '.join(missing)}.")
    if ours.label is Label.INDEX and not known.issuperset(ours.classes):
        found.append(
            "Where a class without images is predicted, the image counts as wrong, and the class as"
            " 0 in macro precision and macro F1."
        )
    of_own_data = (*own.dataset.get("remarks", ()), note_on(ours), task_of(ours).warning(own.test))
    of_run = [note for note in own.notes if note not in of_own_data]
    of_data = [note_on(theirs), *(few_images(theirs, split) for split in splits)]
    of_data.append(few_groups(len({*(rows.groups or ())}), " and ".join(splits)))
    return [*found, *filter(None, of_data), _overlap(run, dataset, splits), *of_run]


def _overlap(run: Trained, dataset: PreparedDataset, splits: Sequence[str]) -> str:
    """Say how many images are files that the network was trained or chosen on."""
    ours, data = run.info, run.config.data
    try:
        seen = open_dataset(Path(data.data_dir), ours.name, data.prepared_size, ours.split)
    except UserError:
        return (
            f"Images that the network was trained on were not looked for among these: {ours.name}"
            f" is not prepared in {data.data_dir}."
        )
    known = {name for split in ("train", "val") for name in seen.file_sha256(split)}
    files = [name for split in splits for name in dataset.file_sha256(split)]
    same = sum(name in known for name in files)
    return (
        f"{same} of {len(files)} image files are also among the training and validation images of"
        f" {ours.name}" + (": the metrics are too good." if same else ".")
    )
