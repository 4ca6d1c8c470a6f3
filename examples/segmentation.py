"""Lesions in drawn fundus photographs: a network beside the best threshold on one colour channel.

Draws photographs with masks, trains a small ViT under a convolutional decoder from random weights,
and writes masks for the first test images. Everything is drawn by a program, and says nothing about
patients. It takes some three minutes on 2 CPU cores; a second call continues or shows what is done.

python examples/segmentation.py --root=runs/segmentation
"""

import argparse
import runpy
from pathlib import Path

import numpy as np
from PIL import Image

from fmi_jax.artifacts.result import Result
from fmi_jax.data.prepared import open_or_draw
from fmi_jax.run import experiment
from fmi_jax.run.masks import MaskOptions, write_masks

CONFIG = Path(__file__).parent.parent / "configs" / "lesions.py"
SHOWN = 4


def best_threshold(images: np.ndarray, masks: np.ndarray) -> float:
    """Best pooled Dice of one threshold on one colour channel, from either side, in hindsight."""
    found = []
    for channel in np.moveaxis(images, -1, 0):
        for level in range(1, 256):
            for predicted in (channel < level, channel >= level):
                both = (predicted & (masks == 1)).sum()
                found.append(2 * both / (predicted.sum() + (masks == 1).sum()))
    return max(found)


def main() -> None:
    """Draw, prepare, train, compare, and write masks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("runs/segmentation"))
    root = parser.parse_args().root
    config = runpy.run_path(str(CONFIG))["get_config"]()
    config.adapt, config.data.data_dir = "full", str(root / "data")
    experiment.run(config, root / "trained")

    dataset = open_or_draw(
        root / "data", config.data.name, config.data.prepared_size, config.data.split
    )
    test = dataset.split("test")
    pairs = [test[row] for row in range(len(dataset.ids("test")))]
    images, masks = (np.stack(each) for each in zip(*pairs, strict=True))
    dice = Result.read(root / "trained").test.values["dice"]
    print(f"Dice {dice:.3f}; of the best threshold {best_threshold(images, masks):.3f}")

    files = [root / f"test_{row}.png" for row in range(SHOWN)]
    for file, image in zip(files, images, strict=False):
        Image.fromarray(image).save(file)
    write_masks(root / "trained", files, root / "masks.csv", root / "masks", MaskOptions())
    print(f"masks of {SHOWN} images: {root / 'masks'}")


if __name__ == "__main__":
    main()
