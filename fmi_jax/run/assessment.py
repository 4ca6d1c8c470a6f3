"""Assessment of test images: metrics with intervals, calibration, decisions, subgroups, patients.

Whatever is chosen is chosen on validation images; a run and an external test are assessed alike.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from fmi_jax.artifacts.evaluation import Evaluation
from fmi_jax.artifacts.result import POOLED
from fmi_jax.data.prepared import PreparedDataset
from fmi_jax.errors import UsageError
from fmi_jax.settings import BaseConfig
from fmi_jax.tasks.base import Measured, Resampling, Task
from fmi_jax.tasks.operating import Rule
from fmi_jax.tasks.subgroups import subgroups
from fmi_jax.types import Rows

Choices = Mapping[str, Any]
"""What `Task.chosen` chose on validation images; empty: nothing."""


class PerGroup(NamedTuple):
    """Test metrics of groups, the images of each pooled.

    Attributes:
      evaluations: evaluation by its name in `Finding.evaluations`; none where nothing was pooled.
      notes: facts that a reader must know.
    """

    evaluations: Mapping[str, Evaluation] = MappingProxyType({})
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Assessor:
    """Assesses what a network says of images.

    Attributes:
      task: task on them.
      config: experiment, which says how to resample, to choose and to pool.
      metric: metric of the subgroups.
    """

    task: Task
    config: BaseConfig
    metric: str

    @property
    def _rule(self) -> Rule:
        return Rule(**dataclasses.asdict(self.config.operating))

    def choose(self, val: Measured) -> Choices:
        """Choose thresholds and a temperature on the validation images."""
        return self.task.chosen(val, self._rule)

    def choose_per_group(self, val: Measured, groups: Sequence[str] | None) -> Choices:
        """Choose once more for groups of images, if they are pooled: that moves probabilities."""
        rule = self.config.group_pooling
        if not rule or groups is None:
            return {}
        found = self.task.pooled(val, groups, rule)
        return self.choose(found.measured) if found.names else {}

    def assess(self, measured: Measured, rows: Rows, choices: Choices) -> Evaluation:
        """Evaluate test images.

        Args:
          measured: measurements of every image.
          rows: further facts about the images.
          choices: result of `choose`.
        """
        task, train = self.task, self.config.train
        how = Resampling(train.bootstrap_samples, train.seed, rows.groups)
        found = task.bounded(task.evaluate(measured), measured, how)
        if choices:
            found = task.assessed(found, measured, choices, self._rule, how)
        by = subgroups(task, measured, rows.columns, self.metric, how)
        return dataclasses.replace(found, subgroups=by)

    def assess_groups(self, measured: Measured, rows: Rows, choices: Choices) -> PerGroup:
        """Evaluate groups of test images, if `config.group_pooling` asks for it.

        Args:
          measured: measurements of every test image.
          rows: ids, groups and columns of the test images, in the same order.
          choices: result of `choose_per_group`.
        """
        if not self.config.group_pooling:
            return PerGroup()
        if rows.groups is None:
            return PerGroup(notes=("The data name no groups, so no images were pooled.",))
        found = self.task.pooled(measured, rows.groups, self.config.group_pooling)
        notes = ()
        if found.left_out:
            notes = (
                f"{found.left_out} of {len({*rows.groups})} groups have images of different"
                " classes: the metrics per group leave them out.",
            )
        if not found.names:
            return PerGroup(notes=notes)
        pooled = self.assess(found.measured, Rows(found.names), choices)
        return PerGroup({POOLED: pooled}, notes)


def check_pooling(rule: str, task: Task, dataset: PreparedDataset) -> None:
    """Raise `UsageError` where the images of a group cannot be pooled by a rule; empty: none."""
    if not rule:
        return
    if rule not in task.pools:
        raise task.no_pooling(rule)
    if dataset.groups("test") is None:
        raise UsageError(
            f"group_pooling={rule!r} pools the images of a patient, lesion or study, and"
            f" {dataset.info.name!r} names none: expected '', or a data set with groups."
        )
