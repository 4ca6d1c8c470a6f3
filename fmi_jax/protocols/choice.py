"""The best of several settings by validation, with all of them on record."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from fmi_jax.artifacts.result import Finding
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.protocols.judging import Judgement, Run, SplitFeatures
from fmi_jax.protocols.spec import Images
from fmi_jax.settings import BaseConfig
from fmi_jax.tasks.classification import Classification
from fmi_jax.tasks.registry import task_of


def choose_by_validation(
    settings: Sequence[Mapping[str, Any]],
    probabilities: Callable[[SplitFeatures], Float[np.ndarray, "s n k"]],
    splits: Mapping[str, SplitFeatures],
    config: BaseConfig,
    info: DatasetInfo,
) -> Judgement:
    """Judge every setting on validation and test, and report the one that validates best.

    Args:
      settings: settings that were tried, as JSON values.
      probabilities: class probabilities of a split under each of the settings, in their order.
      splits: the features.
      config, info: name the metric that selects; the first setting wins a tie.
    """
    task, metric = task_of(info), config.metric or info.metric
    assert isinstance(task, Classification)
    found = {
        split: [
            {"logits": task.logits(scores), "labels": splits[split].labels}
            for scores in probabilities(splits[split])
        ]
        for split in ("val", "test")
    }
    tried, scores = [], []
    for i, setting in enumerate(settings):
        values = {split: task.evaluate(measured[i]) for split, measured in found.items()}
        tried.append({**setting, **{s: v.to_json()["values"] for s, v in values.items()}})
        scores.append(task.metric(metric).score(values["val"].values[metric]))
    best = int(np.argmax(scores))
    return Judgement(
        val=found["val"][best],
        test=found["test"][best],
        details={"metric": metric, "chosen": dict(settings[best]), "tried": tried},
    )


def at_an_end(
    name: str, chosen: float, tried: Sequence[float], limits: Sequence[float] = ()
) -> str:
    """Say that the chosen value is the smallest or largest of those tried; empty if it is not.

    Args:
      name: value's name in the sentence ("learning rate").
      chosen: value that is best on validation.
      tried: values that were tried; a single one is no search.
      limits: values beyond which there is nothing to try.
    """
    if len(tried) < 2 or chosen not in {min(tried), max(tried)} - {*limits}:
        return ""
    return f"The best {name}, {chosen:g}, is at an end of the grid: others may be better."


def of_features(
    judge: Callable[[Mapping[str, SplitFeatures], BaseConfig, DatasetInfo], Judgement],
) -> Callable[[Run], Finding]:
    """Make a judge of a network from one of its features, `(features by split, config, info)`."""
    return lambda run: run.classified(judge(run.features(), run.config, run.dataset.info))


def every_image(config: BaseConfig, counts: Mapping[str, int]) -> Images:
    """Count every image once, in a forward pass."""
    return Images(0, sum(counts.values()))
