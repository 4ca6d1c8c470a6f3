"""Functions without a network that the parity tool runs, by the family in `meta.json`."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tolerances import METRIC, PARITY_FORWARD

from fmi_jax import parallel
from fmi_jax.artifacts.result import Evaluation
from fmi_jax.data.labels import class_membership
from fmi_jax.protocols import knn
from fmi_jax.tasks.classification import Binary, Multiclass, Multilabel
from parity_families.clinical import clinical_metrics
from parity_families.dino import dino_ssl
from parity_families.masks import segmentation_metrics

Arrays = Mapping[str, np.ndarray]


Compute = Callable[[Mapping[str, Any], Arrays], Arrays]
"""`(configuration, inputs)` of one set to its arrays, both without the name of the set, which
`meta.config` has as a key."""


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What the tool must know of a family of such functions.

    Attributes:
      of_case: `(description, arrays, folder)` of a case to what is compared, by name.
      tolerance: largest error, relative to the largest magnitude of an array.
    """

    of_case: Callable[[Mapping[str, Any], Arrays, Path], dict[str, np.ndarray]]
    tolerance: float


def _set_by_set(compute: Compute, tolerance: float) -> Numbers:
    def of_case(meta: Mapping[str, Any], arrays: Arrays, folder: Path) -> dict[str, np.ndarray]:
        del folder
        found = {}
        for name, config in meta["config"].items():
            before = f"{name}/"
            own = {k.removeprefix(before): v for k, v in arrays.items() if k.startswith(before)}
            inputs = {k: v for k, v in own.items() if before + k in meta["inputs"]}
            found |= {before + k: np.asarray(v) for k, v in compute(config, inputs).items()}
        return found

    return Numbers(of_case, tolerance)


def _votes(config: Mapping[str, Any], inputs: Arrays) -> Arrays:
    (scores,) = knn.vote(
        inputs["bank_raw"],
        class_membership(inputs["bank_labels"], config["classes"]),
        inputs["query_raw"],
        k=(config["k"],),
        temperature=(config["temperature"],),
        mesh=parallel.make_mesh(),
    )
    return {"pred_scores": scores}


def _metrics(config: Mapping[str, Any], inputs: Arrays) -> Arrays:
    """Metrics with the study's values where ours are undefined (docs/protocols.md, B24, B25)."""
    count, several = config["n_classes"], inputs["labels"].ndim == 2
    names = tuple(map(str, range(count)))
    task = (Multilabel if several else Binary if count == 2 else Multiclass)(names)
    found = task.evaluate(inputs)
    values = {name: np.float64(value) for name, value in found.values.items()}
    values["recall"] = _mean(found, "recall", undefined=0.0)
    if several:
        values["mAP"] = _mean(found, "average_precision", undefined=0.0)
        values["roc_auc"] = _mean(found, "roc_auc", undefined=0.5)
    elif min(row["support"] for row in found.per_class.values()) == 0:
        values["roc_auc"] = np.float64(0.5)
    return {
        "confusion_matrix": found.confusion,
        **{f"expected/{name}": np.asarray(value) for name, value in values.items()},
        **{f"expected_rounded/{name}": np.round(value, 3) for name, value in values.items()},
    }


def _mean(found: Evaluation, metric: str, *, undefined: float) -> np.float64:
    values = np.array([row[metric] for row in found.per_class.values()])
    return np.where(np.isnan(values), undefined, values).mean()


NUMBERS: Mapping[str, Numbers] = {
    "clinical_metrics": _set_by_set(clinical_metrics, METRIC),
    "dino_ssl": Numbers(dino_ssl, PARITY_FORWARD),
    "knn": _set_by_set(_votes, PARITY_FORWARD),
    "metrics": _set_by_set(_metrics, METRIC),
    "segmentation_metrics": _set_by_set(segmentation_metrics, PARITY_FORWARD),  # a loss in float32
}
