"""What `optim.plateau_floor` changes: steps that are saved, and results, which should be the same.

    python -m benchmarks.plateau_floor

Heads of four learning rates and three seeds train on the features of a small ViT by the recipe of
the study's tables (100 epochs, a warm-up of 5, the plateau schedule), on three drawn data sets.
Every run is made without a floor and with each of several; best steps of all heads and the test
outputs of all seeds are compared. Writes `benchmarks/results/plateau_floor.json`, prints a table.
"""

import copy
import json
import tempfile
from pathlib import Path

from fmi_jax import cli
from fmi_jax.artifacts.result import Result
from fmi_jax.config import ExperimentConfig
from fmi_jax.run import experiment
from fmi_jax.study.spec import RATES

RESULTS = Path(__file__).parent / "results" / "plateau_floor.json"
DATASETS = ("aptos2019", "isic2019", "chexpert")
PATIENCES = (2, 5)
FLOORS = (1e-2, 1e-3, 1e-4)


def config(dataset: str, patience: int, data_dir: str) -> ExperimentConfig:
    """Make the run without a floor."""
    made = ExperimentConfig(protocol="probe_grid", image_size=48)
    made.data.name, made.data.data_dir = dataset, data_dir
    made.data.prepared_size, made.data.split = 48, "upstream"
    made.augment.center_crop = 1.0
    made.backbone.name = "deit_nano"
    made.optim.warmup_epochs, made.optim.schedule = 5, "plateau"
    made.optim.plateau_patience, made.optim.plateau_floor = patience, 0.0
    made.probe_grid.learning_rates, made.probe_grid.seeds = RATES, 3
    made.probe_grid.cached = True
    made.train.batch_size = 16
    made.train.bootstrap_samples = 0
    return made


def outputs(folder: Path, result: Result) -> dict[str, bytes]:
    """Read what the heads of the chosen rate say of the test images."""
    names = result.finding.values["seeds"]["predictions"].values()
    return {name: (folder / name).read_bytes() for name in names}


def rows(folder: Path) -> list[dict[str, object]]:
    """Run and compare; `folder` takes the data and the runs."""
    found = []
    for dataset in DATASETS:
        raw = folder / "raw" / dataset
        cli.main(["draw", dataset, str(raw), "--images", "400"])
        asked = ["--source", str(raw), "--data-dir", str(folder / "data"), "--size", "48"]
        cli.main(["prepare", dataset, *asked, "--split", "upstream"])
        for patience in PATIENCES:
            whole = config(dataset, patience, str(folder / "data"))
            at = folder / f"{dataset}-{patience}"
            expected = experiment.run(whole, at)
            best = [head["best_step"] for head in expected.finding.values["heads"]]
            for floor in FLOORS:
                made = copy.deepcopy(whole)
                made.optim.plateau_floor = floor
                result = experiment.run(made, Path(f"{at}-{floor}"))
                steps = [head["best_step"] for head in result.finding.values["heads"]]
                found.append(
                    {
                        "dataset": dataset,
                        "patience": patience,
                        "floor": floor,
                        "steps": result.steps,
                        "of": expected.steps,
                        "heads": len(best),
                        "same_best_step": sum(a == b for a, b in zip(best, steps, strict=True)),
                        "same_outputs": outputs(at, expected)
                        == outputs(Path(f"{at}-{floor}"), result),
                    }
                )
    return found


def main() -> None:
    """Measure, write and print."""
    with tempfile.TemporaryDirectory() as folder:
        found = rows(Path(folder))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print("| data set | patience | floor | steps | same best step | same test outputs |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in found:
        print(
            f"| {row['dataset']} | {row['patience']} | {row['floor']:g} |"
            f" {row['steps']} of {row['of']} |"
            f" {row['same_best_step']} of {row['heads']} heads |"
            f" {'yes' if row['same_outputs'] else 'no'} |"
        )


if __name__ == "__main__":
    main()
