"""Draws a small raw DDSM: pictures that look faintly like mammograms, and the study's lists."""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fmi_jax.data.raw.drawn.folder import draw_once

_NOTE = """\
Synthetic mammograms: {count} images, seed {seed}.

Drawn by fmi_jax.data.raw.drawn.ddsm in the raw layout of the DDSM lists. They show no patient: a
benign mass is drawn round, a malignant one bright with spicules.
For trying out and testing software only.
"""

_KINDS = {"normal": "A", "benign": "B", "cancer": "C"}
_SPLITS = ("train", "train", "val", "test")  # splits of every four cases of a kind
_VIEWS = [f"{side}_{view}" for side in ("LEFT", "RIGHT") for view in ("CC", "MLO")]


@draw_once(_NOTE, count=48)
def draw(folder: Path, count: int, seed: int) -> None:
    """Write up to `count` mammograms, four per case, and the three lists into `folder`.

    As in the real lists, a case is in two of them: benign in one volume, cancer in another.

    Raises:
      UserError: the folder holds something else.
    """
    rng = np.random.default_rng(seed)
    images, lists = folder / "ddsm_raw", folder / "ddsm_raw_image_lists"
    images.mkdir()
    lists.mkdir()
    names: dict[str, list[str]] = {split: [] for split in _SPLITS}
    for number in range(count // len(_VIEWS)):
        turn, kind = number // len(_KINDS), tuple(_KINDS)[number % len(_KINDS)]
        split = _SPLITS[turn % len(_SPLITS)]
        case = f"{_KINDS[kind]}_{3000 + turn}"
        if kind == "cancer" and turn == _SPLITS.index("test"):
            case = "B_3000"  # the first benign case, which is in train
        volume = "benign_without_callback" if kind == "benign" and turn % 2 else kind
        for view in _VIEWS:
            name = f"{volume}_{turn % 12 + 1:02}-{case}_1.{view}.LJPEG.1.jpg"
            _mammogram(rng, kind, view).save(images / name, quality=90)
            names[split].append(name)
    for split, found in names.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in found))


def _mammogram(rng: np.random.Generator, kind: str, view: str) -> Image.Image:
    """Draw a breast against one edge of a black film, with a mass unless it is normal."""
    height, width = int(rng.integers(75, 96)), int(rng.integers(55, 76))
    x, y = np.arange(width) / width, np.arange(height)[:, None] / height
    reach = rng.uniform(0.70, 0.85)
    inside = np.clip(1 - (x / reach) ** 2 - ((y - 0.5) / 0.46) ** 2, 0, 1) ** 0.3
    tissue = Image.fromarray(rng.normal(0, 22, (9, 7)).astype(np.float32))
    tissue = np.asarray(tissue.resize((width, height), Image.Resampling.BICUBIC))
    pixels = inside * (rng.uniform(70, 100) + tissue)

    mass = Image.new("L", (width, height))
    pen = ImageDraw.Draw(mass)
    at = np.array((rng.uniform(0.25, 0.5) * width, rng.uniform(0.35, 0.65) * height))
    radius = rng.uniform(5, 7)
    fill = {"normal": 0, "benign": 110, "cancer": 170}[kind]
    pen.ellipse((*(at - radius), *(at + radius)), fill=fill)
    if kind == "cancer":
        for angle in rng.uniform(0, 2 * math.pi, 11):
            tip = at + radius * rng.uniform(1.6, 2.4) * np.array((math.cos(angle), math.sin(angle)))
            pen.line((*at, *tip), fill=fill, width=1)
    pixels += np.asarray(mass.filter(ImageFilter.GaussianBlur(0.7)), np.float32)
    pixels = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels if view.startswith("LEFT") else pixels[:, ::-1].copy())
