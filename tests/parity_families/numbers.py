"""Functions without a network that the parity tool runs, by the family in `meta.json`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tolerances import METRIC, PARITY_FORWARD

from fmi_jax import parallel
from fmi_jax.artifacts.result import Evaluation
from fmi_jax.data.labels import class_membership
from fmi_jax.protocols import knn
from fmi_jax.tasks.classification import Binary, Multiclass, Multilabel
from parity_families.clinical import clinical_metrics

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What the tool must know of a family of such functions.

    Attributes:
      compute: `(configuration, inputs)` of one set to its arrays, both without the name of the
        set, which `meta.config` has as a key.
      tolerance: largest error, relative to the largest magnitude of an array.
    """

    compute: Callable[[Mapping[str, Any], Arrays], Arrays]
    tolerance: float

    def of_case(self, meta: Mapping[str, Any], arrays: Arrays) -> dict[str, np.ndarray]:
        """Compute the arrays of all sets of a case, by their name there."""
        found = {}
        for name, config in meta["config"].items():
            before = f"{name}/"
            own = {k.removeprefix(before): v for k, v in arrays.items() if k.startswith(before)}
            inputs = {k: v for k, v in own.items() if before + k in meta["inputs"]}
            found |= {before + k: np.asarray(v) for k, v in self.compute(config, inputs).items()}
        return found


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
    "clinical_metrics": Numbers(clinical_metrics, METRIC),
    "knn": Numbers(_votes, PARITY_FORWARD),
    "metrics": Numbers(_metrics, METRIC),
}
