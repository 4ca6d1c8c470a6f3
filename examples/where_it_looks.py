"""Where a small ViT looks in photographs, beside the lesions that it was never shown.

Draws fundus-like photographs, trains a classifier from random weights to tell those with a lesion
from those without, and draws its maps over other photographs, with the outlines of their lesions.
Everything is drawn by a program, and says nothing about patients.

It takes some four minutes on 2 CPU cores. A second call draws the figure anew.

python examples/where_it_looks.py --root=runs/where_it_looks --out=docs/saliency.png
"""

import argparse
import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image

from fmi_jax import atomic
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.csv_table import csv_spec
from fmi_jax.data.raw.drawn import fundus_lesions
from fmi_jax.report.charts import draw_chart
from fmi_jax.run import experiment
from fmi_jax.saliency.pictures import overlays

SIZE = 96
SHOWN = ("attention", "grad_cam", "gradient_times_input")
ROWS, WIDTH = 3, 800


def prepare_both(root: Path) -> None:
    """Draw two sets: photographs with labels, and others with masks of their lesions."""
    for name, seed, count in (("lesion_or_none", 0, 1500), ("lesion_masks", 1, 240)):
        raw = root / "raw" / name
        raw.parent.mkdir(parents=True, exist_ok=True)
        fundus_lesions.draw(raw, count=count, seed=seed)
        table = raw / "table.csv"
        if name == "lesion_or_none":
            rows = list(csv.DictReader(table.read_text().splitlines()))
            labels = [(row["path"], "lesion" if row["mask"] else "none") for row in rows]
            table = raw / "labels.csv"
            table.write_bytes(atomic.csv_bytes([("path", "label"), *labels]))
        prepare(csv_spec(name), table, root / "data", size=SIZE, split="stratified")


def training(root: Path) -> ExperimentConfig:
    """Make the config of the classifier."""
    config = ExperimentConfig(protocol="finetune", image_size=SIZE, metric="roc_auc")
    config.data.name, config.data.data_dir = "lesion_or_none", str(root / "data")
    config.data.prepared_size = SIZE
    config.augment.center_crop = 1.0
    config.augment.crop_scale = (0.7, 1.0)
    config.augment.hue = 0.02
    config.backbone.name = "deit_nano"
    config.optim.learning_rate = 2e-3
    config.optim.weight_decay = 0.05
    config.optim.warmup_epochs = 3
    config.optim.schedule = "cosine"
    config.train.epochs = 15
    config.train.batch_size = 32
    config.train.eval_every_epochs = 5
    return config


def main() -> None:
    """Draw, prepare, train, look, and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("runs/where_it_looks"))
    parser.add_argument("--out", type=Path, default=Path("docs/saliency.png"))
    values = parser.parse_args()
    prepare_both(values.root)
    config = training(values.root)
    experiment.run(config, values.root / "trained")

    looks = ExperimentConfig(protocol="saliency", image_size=SIZE)
    looks.data.name, looks.data.data_dir = "lesion_masks", config.data.data_dir
    looks.data.prepared_size, looks.backbone.name = SIZE, config.backbone.name
    looks.saliency.run, looks.saliency.cases = str(values.root / "trained"), 3
    looks.saliency.curves = 36
    experiment.run(looks, values.root / "looks")
    write_figure(values.root / "looks" / "saliency.npz", values.out)


def write_figure(maps: Path, out: Path) -> None:
    """Draw the first photographs that have a lesion."""
    with np.load(maps) as kept:
        rows = [row for row, mask in enumerate(kept["masks"]) if mask.any()][:ROWS]
        drawn = {name: kept[name][rows] for name in ("images", *SHOWN, "masks")}
    names = ["Photograph", *[""] * (len(rows) - 1)]
    picture = Image.open(io.BytesIO(draw_chart(overlays(names, drawn)))).convert("RGB")
    picture.thumbnail((WIDTH, WIDTH))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    atomic.write_bytes(out, file.getvalue())


if __name__ == "__main__":
    main()
