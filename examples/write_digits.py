"""Write the 1,797 handwritten digits that ship with scikit-learn as PNG files and a CSV.

    python examples/write_digits.py FOLDER

They stand for "one's own images" in the README: real pixels, no download.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(folder: Path) -> None:
    """Write `digits.csv` (path,label) and `images/*.png` (8 x 8, grey) under `folder`."""
    digits = load_digits()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "digits.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            path = f"images/{i:04}.png"
            Image.fromarray(np.uint8(pixels / 16 * 255)).save(folder / path)
            table.writerow([path, label])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/write_digits.py FOLDER")
    write_digits(Path(sys.argv[1]))
