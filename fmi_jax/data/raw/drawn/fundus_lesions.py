"""Draws a synthetic set of fundus photographs with masks of their lesions, for segmentation.

The raw layout is that of the user's own images with masks: `table.csv` (`path,mask`), `images/` and
`masks/`. A photograph has dark red lesions; the mask of each lesion is a file of its own. What is
not to be found by brightness or by one colour: the lesions lie on unevenly lit retina, beside grey
shadows as dark as they are, pale spots and reflections, vessels, the macula and a black frame.
Nothing here is medical data, and nothing learnt from it says anything about patients.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from fmi_jax import atomic
from fmi_jax.cores import available_cores
from fmi_jax.data.raw.drawn.folder import draw_once
from fmi_jax.data.raw.drawn.fundus import LesionKind, Lesions, View, place, render

LESION = LesionKind(name="lesion", tint=(0.80, 0.28, 0.34), softness=0.25, ragged=0.15)
_SHADOW = LesionKind(name="shadow", tint=(0.42, 0.42, 0.42), softness=0.25, ragged=0.15)
_PALE = LesionKind(name="pale spot", tint=(1.25, 1.70, 1.90), softness=0.6, ragged=0.15)

_DISTRACTORS = (
    Lesions(kind=_SHADOW, count=(1, 4), radius=(0.10, 0.18)),
    Lesions(kind=_PALE, count=(1, 3), radius=(0.08, 0.16)),
)
_DISEASED = (Lesions(kind=LESION, count=(1, 4), radius=(0.13, 0.22)), *_DISTRACTORS)

HEALTHY_SHARE = 0.2
"""Share of photographs without a lesion; their rows name no mask."""

_NOTE = """\
Synthetic fundus photographs with lesion masks: {count} images, seed {seed}.

Drawn by fmi_jax.data.raw.drawn.fundus_lesions. They show no patient; the masks are what the program
drew. For trying out and testing software only.
"""


@draw_once(_NOTE, count=240)
def draw(folder: Path, count: int, seed: int) -> None:
    """Write `count` photographs, their masks and `table.csv` into `folder`.

    The bytes depend only on `count` and `seed`. The folder appears at once, when everything is
    drawn; a folder that already holds this very set is left unchanged.

    Raises:
      UserError: the folder holds something else.
    """
    for name in ("images", "masks"):
        (folder / name).mkdir()
    healthy = np.arange(count) < round(HEALTHY_SHARE * count)
    healthy = np.random.default_rng(seed).permutation(healthy)

    def write(index: int) -> tuple[str, str]:
        pixels, masks = photograph(seed, index, healthy=bool(healthy[index]))
        image = f"images/{index:04}.png"
        Image.fromarray(pixels).save(folder / image, compress_level=1)
        files = [f"masks/{index:04}_{i}.png" for i in range(len(masks))]
        for file, mask in zip(files, masks, strict=True):
            Image.fromarray(mask).save(folder / file)
        return image, "|".join(files)

    # Threads, not processes: numpy and Pillow release the interpreter's lock while they work.
    with ThreadPoolExecutor(len(available_cores())) as pool:
        rows = list(pool.map(write, range(count)))
    (folder / "table.csv").write_bytes(atomic.csv_bytes([("path", "mask"), *rows]))


def photograph(seed: int, index: int, *, healthy: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw photograph `index` of the set of `seed`.

    Returns:
      Pixels, uint8 `[h, w, 3]`, and the mask of each lesion, bool `[h, w]`.
    """
    rng = np.random.default_rng((seed, index))
    view = _view(rng)
    lesions = place(rng, view, _DISTRACTORS if healthy else _DISEASED)
    pixels, covered = render(rng, view, lesions)
    pixels = np.clip(pixels * _uneven_light(rng, view)[..., None], 0, 255).astype(np.uint8)
    masks = [covered == i for i, lesion in enumerate(lesions, start=1) if lesion.kind is LESION]
    return pixels, [mask for mask in masks if mask.any()]


def _view(rng: np.random.Generator) -> View:
    """Draw a small camera that shows nearly the whole field."""
    height = int(rng.integers(150, 190))
    width = round(height * rng.uniform(1.0, 1.2))
    side = rng.choice((-1, 1))  # right or left eye
    disc = (side * rng.uniform(0.48, 0.66), rng.uniform(-0.10, 0.06))
    return View(
        width=width,
        height=height,
        radius=height * rng.uniform(0.47, 0.50),
        centre=(width * rng.uniform(0.49, 0.51), height * rng.uniform(0.49, 0.51)),
        disc=disc,
        macula=(disc[0] - side * rng.uniform(0.56, 0.66), disc[1] + rng.uniform(0.02, 0.10)),
    )


def _uneven_light(rng: np.random.Generator, view: View) -> np.ndarray:
    """Make a factor `[h, w]`: light that falls off to one side, by more than half."""
    x = np.linspace(-1, 1, view.width)
    y = np.linspace(-1, 1, view.height)[:, None]
    angle = rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(0.25, 0.55)
    return 1 + slope * (np.cos(angle) * x + np.sin(angle) * y)
