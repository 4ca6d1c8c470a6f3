"""Monitors of a pre-training: whether features still differ, and whether they are still of use.

The backbone that the run hands on sees the same training images again and again, at step 0 and at
every `train.eval_every_epochs`, as an evaluation does. No monitor has a gradient.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from fmi_jax.data.labels import Label, class_membership
from fmi_jax.protocols.judging import Monitor, Run
from fmi_jax.rules import not_negative
from fmi_jax.settings import BaseConfig
from fmi_jax.tasks.base import Task
from fmi_jax.tasks.classification import Classification
from fmi_jax.tasks.representation import (
    effective_dimensions,
    neighbour_votes,
    similarity,
    spread_of,
)
from fmi_jax.training.loop import Plan
from fmi_jax.training.selection import Selection

NEIGHBOURS, TEMPERATURE = 20, 0.07  # DINO's own
ALIKE = 0.1  # share of the first spread, and of the first effective dimensions, that is collapse
TITLES = {
    "knn": "Agreement of neighbours",
    "effective_dimensions": "Effective dimensions",
    "feature_spread": "Spread of features",
    "similarity": "Similarity to the first features",
}


@dataclasses.dataclass(slots=True)
class MonitorConfig:
    """Options of every pre-training.

    Attributes:
      monitor_images: number of training images whose features are watched; all of them, if there
        are fewer. 0: no monitor, and nothing stops a run that has collapsed.
    """

    monitor_images: int = not_negative(1024)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureMonitor(Monitor):
    """Monitor of the features of a fixed set of training images.

    Attributes:
      labels: labels of these images; None where there are none, or not all are known.
      groups: patient or lesion of these images; None if the data name none.
      task: meaning of the labels.
      outputs: says of the means of the training's scalars what has collapsed; empty: nothing has.
        None: the training has a target that cannot collapse, and nothing stops it.
    """

    labels: np.ndarray | None
    groups: tuple[str, ...] | None
    task: Task
    outputs: Callable[[Mapping[str, float]], str] | None

    def values(self, features: np.ndarray, first: np.ndarray) -> dict[str, float]:
        """Measure features of the watched images."""
        found = {
            "effective_dimensions": effective_dimensions(features),
            "feature_spread": spread_of(features),
            "similarity": similarity(features, first),
        }
        if self.labels is None:
            return found
        assert isinstance(self.task, Classification)
        votes = neighbour_votes(
            features,
            class_membership(self.labels, len(self.task.classes)),
            self.groups,
            k=NEIGHBOURS,
            temperature=TEMPERATURE,
        )
        evaluation = self.task.evaluate({"logits": self.task.logits(votes), "labels": self.labels})
        return {"knn": evaluation.values[self.metric], **found}

    def collapse(
        self,
        values: Mapping[str, float],
        first: Mapping[str, float],
        recent: Mapping[str, float],
        progress: float,
    ) -> str:
        """Say what has collapsed; empty where nothing has.

        What the networks say is judged in the second half alone: at first it is nearly the same
        for all images wherever the weights are random.
        """
        if self.outputs is None:
            return ""
        return feature_collapse(values, first) or (self.outputs(recent) if progress > 0.5 else "")


def feature_collapse(values: Mapping[str, float], first: Mapping[str, float]) -> str:
    """Say that features have become alike, given the monitors now and at step 0."""
    for name, words in (
        ("feature_spread", "all images have nearly the same feature (spread"),
        ("effective_dimensions", "features differ along one line alone (effective dimensions"),
    ):
        if values[name] < ALIKE * first[name]:
            return f"{words} {values[name]:.3g}; {first[name]:.3g} at step 0)"
    return ""


def watch(
    options: MonitorConfig, outputs: Callable[[Mapping[str, float]], str] | None, run: Run
) -> FeatureMonitor | None:
    """Choose the images to watch in a run; None where its options ask for no monitor."""
    count, dataset = options.monitor_images, run.dataset
    if count == 0:
        return None
    # The same images in every run on these data, whatever its seed.
    rows = np.sort(np.random.default_rng(0).permutation(len(dataset.ids("train")))[:count])
    labels, groups = None, dataset.groups("train")
    if dataset.info.label in (Label.INDEX, Label.VECTOR):
        labels = dataset.labels("train")[rows]
        labels = None if np.isnan(labels).any() else labels
    groups = None if groups is None else tuple(groups[row] for row in rows)
    if len(rows if groups is None else {*groups}) < 2:  # nobody's neighbours
        labels = None
    return FeatureMonitor(
        rows=rows,
        labels=labels,
        groups=groups,
        task=run.task,
        metric="" if labels is None else run.metric,
        outputs=outputs,
    )


def images(options: MonitorConfig, config: BaseConfig, counts: Mapping[str, int]) -> int:
    """Count the images that the monitor of a run looks at, each as often as it does."""
    looks = 1 + len(Plan.of(config, counts["train"]).save_at)
    return looks * min(options.monitor_images, counts["train"])


def notes(
    selection: Selection | None, first: Mapping[str, float], last: Mapping[str, float]
) -> Iterator[str]:
    """Say what the monitors of a finished run mean; nothing where there were none."""
    if "feature_spread" not in last:
        return
    if words := feature_collapse(last, first):
        yield f"The pre-training has collapsed: {words}."
    if "knn" not in last or selection is None:
        return
    yield (
        "Labels of watched training images were read to say how well neighbours agree, and not to"
        " learn from."
    )
    best = selection.tracks[0]
    assert best.best_value is not None
    if selection.score(best.best_value) <= selection.score(first["knn"]):
        yield (
            f"After no step did neighbours agree better than at first ({first['knn']:.3f}; best"
            f" {best.best_value:.3f}): the pre-training may not have helped."
        )
    elif selection.score(best.best_value) > selection.score(last["knn"]):
        yield (
            f"Neighbours agreed best after step {best.best_step} ({best.best_value:.3f}; at the end"
            f" {last['knn']:.3f}): --config.backbone.run_step=best hands that network on."
        )
