"""Effect of computing in bfloat16: features, logits and metrics of two runs side by side.

    for type in float32 bfloat16; do
      fmi-jax run --config=configs/logistic.py --workdir=runs/$type --config.backbone.dtype=$type
    done
    python benchmarks/bfloat16.py runs/float32 runs/bfloat16

Both are finished runs on one data set. Logits are the logarithms of the test probabilities, minus
their mean over the classes. Features are compared if the protocol stores them.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from fmi_jax.artifacts.evaluation import Evaluation
from fmi_jax.artifacts.result import Result
from fmi_jax.tasks.predictions import read_predictions
from fmi_jax.tasks.registry import TASKS


def relative(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Compute the error of every row relative to its length: `|ours - theirs| / |theirs|`."""
    return np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)


def spread(errors: np.ndarray) -> str:
    """Format the median and the largest error."""
    return f"{np.median(errors):.1e} (largest {errors.max():.1e})"


def logits(folder: Path, run: Result) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Read ids, predicted classes and logits of the test images."""
    task = TASKS[run.test.task]
    table = read_predictions(folder / task.file, task.label, run.test.classes)
    scores = np.log(np.maximum(table.probabilities, 1e-30))
    return list(table.ids), table.predicted, scores - scores.mean(axis=1, keepdims=True)


def features(run: Result) -> np.ndarray | None:
    """Read the stored features of the test images; None if there are none."""
    about = {
        "backbone": run.config["backbone"]["name"],
        "dtype": run.config["backbone"]["dtype"],
        "weights_sha256": run.backbone.get("weights_sha256"),
        "image_size": run.config["image_size"],
    }
    for record in sorted(Path(run.config["data"]["data_dir"]).glob("features/*/test-*.json")):
        kept = json.loads(record.read_text())["about"]
        if about.items() <= kept.items():
            return np.load(record.with_suffix(".npy"))
    return None


def value(found: Evaluation, name: str) -> str:
    """Format a metric with its interval."""
    low, high = found.intervals[name]
    return f"{found.values[name]:.4f} ({low:.3f} to {high:.3f})"


def rows(folders: tuple[Path, Path]) -> list[tuple[str, str]]:
    """Describe the differences between the runs."""
    runs = [Result.read(folder) for folder in folders]
    (ids, predicted, wide), (other_ids, other_predicted, narrow) = map(logits, folders, runs)
    if ids != other_ids:
        raise SystemExit(f"{folders[0]} and {folders[1]}: expected runs with the same test images.")
    found = []
    kept = [features(run) for run in runs]
    if kept[0] is not None and kept[1] is not None:
        found.append(("features, relative error", spread(relative(kept[1], kept[0]))))
    found.append(("logits, relative error", spread(relative(narrow, wide))))
    found.append(("another class", f"{(predicted != other_predicted).sum()} of {len(ids)} images"))
    for name in runs[0].test.intervals:
        found.append((name, " | ".join(value(run.test, name) for run in runs)))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("float32", type=Path, help="folder of the run in float32")
    parser.add_argument("bfloat16", type=Path, help="folder of the run in bfloat16")
    args = parser.parse_args()
    for label, text in rows((args.float32, args.bfloat16)):
        print(f"{label:<28} {text}")
