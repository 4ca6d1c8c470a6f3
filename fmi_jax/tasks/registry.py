"""Every task by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmi_jax.data.labels import Label
from fmi_jax.errors import UserError, unknown_name
from fmi_jax.tasks.base import Metric, Task
from fmi_jax.tasks.classification import Binary, Multiclass, Multilabel
from fmi_jax.tasks.segmentation import MultilabelSegmentation, Segmentation
from fmi_jax.tasks.unlabelled import Unlabelled

if TYPE_CHECKING:  # it imports TFDS, which reading results does without
    from fmi_jax.data.prepared import DatasetInfo

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Binary,
        Multiclass,
        Multilabel,
        Segmentation,
        MultilabelSegmentation,
        Unlabelled,
    )
}


def suitable(label: Label, classes: Sequence[str]) -> type[Task]:
    """Find the first task that labels of this form, with these classes, are for.

    Raises:
      UserError: there is none.
    """
    for task in TASKS.values():
        if task.suits(label, classes):
            return task
    known = dict.fromkeys(task.label.words for task in TASKS.values())
    raise UserError(f"no task is for {label.words}: expected {' or '.join(known)}.")


def task_of(info: DatasetInfo) -> Task:
    """Make the task of a data set; `UsageError` where this program has none of that name."""
    if info.task not in TASKS:
        raise unknown_name("task", info.task, TASKS)
    return TASKS[info.task](info.classes, info.class_groups, info.ordinal)


def describe(metric: str, task: str = "") -> Metric:
    """Describe a metric by its name, as a task does, or the first that has it.

    Raises:
      UsageError: no task has it.
    """
    tasks = [TASKS[task]] if task else [*TASKS.values()]
    for one in tasks:
        if found := one.find_metric(metric):
            return found
    raise unknown_name("metric", metric, {name for one in tasks for name in one.metrics})
