"""Small raw data sets on disk, as a user would have them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fmi_jax.data.preparing.locate import locate_files
from fmi_jax.data.raw.spec import RawDataset


def write_image(path: Path, seed: int) -> None:
    """A coloured gradient with noise, of a size and shape that follow from `seed`."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(11, 43, size=2)
    ramp = np.linspace(0, 200, height * width).reshape(height, width, 1)
    pixels = ramp * rng.uniform(0.3, 1, size=3) + rng.integers(0, 40, (height, width, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_aptos(folder: Path, count: int = 31) -> Path:
    """The raw layout of APTOS2019; image `i` has grade `i % 5`."""
    lines = ["id_code,diagnosis"]
    for i in range(count):
        write_image(folder / "train_images" / f"eye{i:03}.png", seed=i)
        lines.append(f"eye{i:03},{i % 5}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_csv(folder: Path, header: str, rows: Sequence[str]) -> Path:
    """A table `folder/table.csv`, with an image for the first field of each row."""
    for i, row in enumerate(rows):
        write_image(folder / row.split(",")[0], seed=i)
    table = folder / "table.csv"
    table.write_text("\n".join([header, *rows]) + "\n")
    return table


def locate_images(raw: RawDataset) -> list[Path]:
    """The path of each row's image."""
    return [files.image for files in locate_files(raw)]
