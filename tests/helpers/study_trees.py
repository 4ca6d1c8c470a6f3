"""Made-up results of cells, written through the classes that real runs write them with."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from fmi_jax.artifacts.result import Best, Finding, Result
from fmi_jax.config import ExperimentConfig
from fmi_jax.fields import as_dict
from fmi_jax.protocols.registry import PROTOCOLS
from fmi_jax.tasks.classification import Classification, Multiclass, Multilabel
from fmi_jax.tasks.predictions import Predictions

CLASSES = ("none", "mild", "severe")
VERSIONS = {"python": "3.11.7", "fmi_jax": "0.1.0", "jax": "0.10.2"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """The test images of a made-up data set.

    Attributes:
      name: name of the data set; split_sha256 is made of it.
      task, classes, metric: fields of a prepared data set.
      count: number of test images.
      per_group: images of a patient; 0: the data name none.
      synthetic: whether they count as drawn.
    """

    name: str = "aptos2019"
    task: type[Classification] = Multiclass
    classes: tuple[str, ...] = CLASSES
    metric: str = "quadratic_kappa"
    count: int = 60
    per_group: int = 0
    synthetic: bool = False

    @property
    def labels(self) -> np.ndarray:
        rng, k = np.random.default_rng(len(self.name)), len(self.classes)
        if self.task is Multilabel:
            return rng.integers(2, size=(self.count, k))
        return rng.integers(k, size=self.count)

    @property
    def groups(self) -> list[str] | None:
        if not self.per_group:
            return None
        return [f"patient {i // self.per_group}" for i in range(self.count)]

    def predictions(self, skill: float, seed: int) -> Predictions:
        """Those of a classifier: the higher `skill`, the better."""
        rng, k = np.random.default_rng(seed), len(self.classes)
        labels = self.labels
        truth = labels if self.task is Multilabel else np.eye(k)[labels]
        logits = rng.normal(size=(self.count, k)) + skill * (truth - 0.5)
        return Predictions(
            label=self.task.label,
            classes=self.classes,
            ids=[f"image {i}" for i in range(self.count)],
            probabilities=self.task().probabilities(logits),
            labels=labels,
            groups=self.groups,
        )


def _evaluation(images: Images, predictions: Predictions):
    task = images.task(images.classes)
    logits = task.logits(predictions.probabilities)
    return task.evaluate({"logits": logits, "labels": predictions.labels})


def finish(
    folder: Path,
    *,
    images: Images | None = None,
    skill: float = 2.0,
    seed: int = 0,
    val: float = 0.5,
    steps: int = 100,
    protocol: str = "finetune",
    backbone: dict | None = None,
    grid: dict | None = None,
    **changes,
) -> Result:
    """The files of a finished run in `folder`.

    Args:
      folder: folder of the cell.
      images: images that it was tested on.
      skill, seed: skill of its classifier, and seed that draws its predictions.
      val: best validation metric.
      steps: number of its best step.
      protocol: protocol of the config.
      backbone: entries of `Result.backbone`.
      grid: of a `probe_grid`, the skill of each learning rate; its first rate is the chosen one,
        with two seeds.
      changes: other fields of the result.
    """
    images = images or Images()
    folder.mkdir(parents=True, exist_ok=True)
    predictions = images.predictions(skill, seed)
    details = {}
    if grid is not None:
        heads, files = [], {}
        for rate, of_rate in grid.items():
            for head_seed in (0, 1):
                own = images.predictions(of_rate, 7 * head_seed + seed)
                values = _evaluation(images, own).values
                head = {"learning_rate": rate, "seed": head_seed, "best_step": steps}
                heads.append({**head, "val": values, "test": values})
                if rate == next(iter(grid)):
                    files[head_seed] = f"predictions_seed{head_seed}.csv"
                    own.write(folder / files[head_seed])
                    predictions = images.predictions(of_rate, seed)
        chosen = {"learning_rate": next(iter(grid)), "seed": 0}
        details = {"chosen": chosen, "seeds": {"count": 2, "predictions": files}, "heads": heads}
    test = _evaluation(images, predictions)
    config = as_dict(ExperimentConfig(protocol=protocol))
    fields = {
        "config": config,
        "protocol": protocol,
        "backbone": {
            **{"name": "tiny", "params": 1, "trained_params": 1},
            **{"weights": "in1k", "weights_sha256": "ab" * 32},
            **(backbone or {}),
        },
        "dataset": {
            **{"name": images.name, "split": "upstream", "split_sha256": f"sha of {images.name}"},
            **{"counts": {"train": 9, "val": 9, "test": images.count}, "class_groups": {}},
            "synthetic": images.synthetic,
        },
        "seed": seed,
        "steps": steps,
        "best": Best(metric=images.metric, value=val, step=steps, epoch=1.0, seconds=3.0),
        "findings": [
            Finding(
                judge=protocol,
                evaluations={"val": test, "test": test},
                resampled="group" if images.per_group else "image",
                values=details,
            )
        ],
        "seconds": {"training": 10.0, "test": 2.0},
        "device": {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1},
        "versions": VERSIONS,
        "notes": (),
        "started": "2024-01-01T00:00:00+00:00",
        "finished": "2024-01-01T00:01:00+00:00",
        "unread": tuple(PROTOCOLS[protocol].unread),
    }
    result = Result(**{**fields, **changes})
    predictions.write(folder / "predictions.csv")
    result.write(folder)
    return result


def analyse(
    folder: Path, kind: str, values: dict, dataset: str = "aptos2019", of: str = ""
) -> None:
    """The `result.json`, of format 1, of an analysis in `folder`; `of`: the run it looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    made = ExperimentConfig(protocol=kind)
    made.cka.run = of
    config = as_dict(made)
    written = {
        "kind": kind, "config": config, "values": values, "seconds": {kind: 5.0}, "notes": [],
        "backbone": {"name": "tiny", "weights": "in1k", "weights_sha256": "ab" * 32},
        "dataset": {"name": dataset, "split": "upstream", "split_sha256": f"sha of {dataset}",
                    "counts": {"train": 9, "val": 9, "test": 9}},
        "device": {"kind": "cpu", "count": 1}, "versions": VERSIONS,
        "summary": kind, "title": kind, "text": "", "figures": {},
        "started": "2024-01-01T00:00:00+00:00", "finished": "2024-01-01T00:01:00+00:00",
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(written))


def fail(folder: Path, reason: str) -> None:
    """The `failed.json` of a cell."""
    folder.mkdir(parents=True, exist_ok=True)
    failure = {"reason": reason, "exit_code": 1, "host": "here", "time": "2024-01-01T00:00:00"}
    (folder / "failed.json").write_text(json.dumps(failure))


def cells(name: str, rates=(1e-3,), seeds: int = 1, of: str = "") -> list[dict]:
    """Planned cells by rate and then by seed, named `<name>-<rate>-<seed>`."""
    return [
        {
            "id": f"{name}-{rate:g}-{seed}",
            "learning_rate": rate,
            "seed": seed,
            "of": f"{of}-{rate:g}-{seed}" if of else None,
        }
        for rate in rates
        for seed in range(seeds)
    ]


def single(name: str) -> list[dict]:
    """The one cell of a protocol without rates and seeds."""
    return [{"id": name, "learning_rate": None, "seed": None, "of": None}]


def setting(at: dict, planned: list[dict], protocol="finetune", published=None, why_not="") -> dict:
    """A setting as `Plan.to_json` has it; `published`: its mean in another's metric or ours."""
    if published is not None:
        common = {"std": 0.01, "runs": 5, "metric": "quadratic_kappa", "source": "a table"}
        published = {"mean": published, **common}
    return {
        "at": at, "protocol": protocol if planned else None, "published": published,
        "why_not": why_not, "cells": planned,
    }  # fmt: skip


def write_plan(root: Path, settings: list[dict], **fields) -> None:
    """`<study>.json` under `root`."""
    plan = {
        "name": "mine", "title": "A study", "note": "", "rows": ["model"], "figure": None,
        "rates": [1e-3], "seeds": 1, "product": False, "changed": {}, "settings": settings,
        **fields,
    }  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{plan['name']}.json").write_text(json.dumps(plan))
