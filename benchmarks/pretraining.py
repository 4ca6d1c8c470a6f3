"""What 200 steps of self-supervised pre-training change, over three seeds.

Per seed: `configs/dino.py` without labels, then kNN and a linear probe of the pre-trained backbone
and of the weights that it began with. Writes a Markdown table with the differences. Finished runs
are not run again.

python -m benchmarks.pretraining --root=runs/pretraining --out=benchmarks/results/pretraining.md
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from fmi_jax.artifacts.result import Result

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (0, 1, 2)
JUDGES = {"knn": "kNN", "probe": "linear probe (logistic regression)"}


def run(root: Path, name: str, config: str, *fields: str) -> Result:
    """Run a config in a process of its own, unless it is finished."""
    workdir = root / name
    if not (workdir / "result.json").is_file():
        flags = [f"--config={ROOT / 'configs' / config}", f"--workdir={workdir}", *fields]
        subprocess.run([sys.executable, str(ROOT / "run.py"), *flags], check=True)
    return Result.read(workdir)


def main() -> None:
    """Run everything, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--out", type=Path, default=None)
    values = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {judge: [] for judge in JUDGES}
    metric = ""
    for seed in SEEDS:
        fields = [f"--config.train.seed={seed}"]
        run(values.root, f"dino{seed}", "dino.py", *fields)
        for judge, scores in found.items():
            config = f"dino.py:{judge}"
            start = run(values.root, f"{judge}{seed}_start", config, *fields)
            origin = f"--config.backbone.run={values.root / f'dino{seed}'}"
            after = run(values.root, f"{judge}{seed}_after", config, *fields, origin)
            assert start.best is not None
            metric = start.best.metric
            scores.append((start.test.values[metric], after.test.values[metric]))
    lines = [
        f"Test {metric} of deit_nano on drawn images, seeds {', '.join(map(str, SEEDS))}:",
        "",
        "| judge | initial weights | after 200 steps | difference, mean (each seed) |",
        "| --- | --- | --- | --- |",
    ]
    for judge, title in JUDGES.items():
        before, after = np.array(found[judge]).T
        each = ", ".join(f"{value:+.3f}" for value in after - before)
        lines.append(
            f"| {title} | {before.mean():.3f} | {after.mean():.3f} |"
            f" {(after - before).mean():+.3f} ({each}) |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if values.out is not None:
        values.out.write_text(text)


if __name__ == "__main__":
    main()
