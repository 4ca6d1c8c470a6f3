"""Draws a synthetic fundus set: photographs whose grade is the number and size of drawn lesions.

The files have the raw layout of APTOS2019 (`train.csv`, `train_images/<id_code>.png`), so that
the quickstart and the tests follow the same path as real data. Nothing here is medical data, and
nothing learnt from it says anything about patients.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fmi_jax import atomic
from fmi_jax.cores import available_cores
from fmi_jax.data.raw.drawn.folder import draw_once

GRADE_SHARES = (0.35, 0.15, 0.25, 0.12, 0.13)
"""Share of grades 0 (no retinopathy) to 4 (proliferative): unequal, as in APTOS2019."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LesionKind:
    """Appearance of one kind of lesion.

    Attributes:
      name: name in the grading scales.
      tint: red, green and blue of the lesion relative to the healthy retina around it.
      softness: width of its edge relative to its radius.
      ragged: departure of its outline from an ellipse, relative to its radius.
    """

    name: str
    tint: tuple[float, float, float]
    softness: float
    ragged: float


MICROANEURYSM = LesionKind(name="microaneurysm", tint=(0.50, 0.22, 0.30), softness=0.6, ragged=0.05)
HAEMORRHAGE = LesionKind(name="haemorrhage", tint=(0.42, 0.15, 0.22), softness=0.35, ragged=0.22)
EXUDATE = LesionKind(name="hard exudate", tint=(1.32, 1.85, 1.55), softness=0.35, ragged=0.18)
COTTON_WOOL = LesionKind(
    name="cotton-wool spot", tint=(1.22, 1.60, 1.95), softness=1.0, ragged=0.15
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lesions:
    """One line of the grading rule: number and size of the lesions of a kind.

    Attributes:
      kind: kind of lesion.
      count: fewest and most in one photograph; the ranges of two grades never overlap.
      radius: smallest and largest, relative to the radius of the field of view.
    """

    kind: LesionKind
    count: tuple[int, int]
    radius: tuple[float, float]


RULE: tuple[tuple[Lesions, ...], ...] = (
    (),
    (Lesions(kind=MICROANEURYSM, count=(7, 11), radius=(0.018, 0.028)),),
    (
        Lesions(kind=MICROANEURYSM, count=(13, 17), radius=(0.018, 0.028)),
        Lesions(kind=HAEMORRHAGE, count=(4, 7), radius=(0.034, 0.052)),
        Lesions(kind=EXUDATE, count=(5, 10), radius=(0.016, 0.026)),
    ),
    (
        Lesions(kind=MICROANEURYSM, count=(19, 24), radius=(0.018, 0.030)),
        Lesions(kind=HAEMORRHAGE, count=(10, 14), radius=(0.040, 0.060)),
        Lesions(kind=EXUDATE, count=(14, 22), radius=(0.018, 0.030)),
        Lesions(kind=COTTON_WOOL, count=(1, 2), radius=(0.050, 0.080)),
    ),
    (
        Lesions(kind=MICROANEURYSM, count=(26, 33), radius=(0.018, 0.032)),
        Lesions(kind=HAEMORRHAGE, count=(19, 26), radius=(0.045, 0.072)),
        Lesions(kind=EXUDATE, count=(28, 42), radius=(0.020, 0.034)),
        Lesions(kind=COTTON_WOOL, count=(4, 7), radius=(0.055, 0.090)),
    ),
)
"""Grading rule: the lesions of a photograph of grade g are exactly those of `RULE[g]`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lesion:
    """A drawn lesion: centre and radius in units of the field radius, from the field's centre."""

    kind: LesionKind
    x: float
    y: float
    radius: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Photograph:
    """One drawn photograph.

    Attributes:
      id: file name without suffix, 12 hexadecimal digits as in APTOS2019.
      pixels: uint8 `[h, w, 3]`.
      lesions: drawn lesions, the ground truth of the grade.
      covered: number of the lesion on each pixel, counted from 1, or 0: uint8 `[h, w]`.
    """

    id: str
    pixels: np.ndarray
    lesions: tuple[Lesion, ...]
    covered: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Camera: image size in pixels, field of view, and the eye in field-radius units."""

    width: int
    height: int
    radius: float
    centre: tuple[float, float]
    disc: tuple[float, float]
    macula: tuple[float, float]

    def pixel(self, x: float, y: float) -> tuple[float, float]:
        """Convert field-radius units to pixels."""
        return self.centre[0] + self.radius * x, self.centre[1] + self.radius * y


_NOTE = """\
Synthetic fundus photographs: {count} images, seed {seed}.

Drawn by fmi_jax.data.raw.drawn.fundus in the raw layout of the APTOS2019 challenge. They show no
patient; the grade (diagnosis, 0 to 4) is the number and size of the drawn lesions.
For trying out and testing software only.
"""


@draw_once(_NOTE, count=600)
def draw(folder: Path, count: int, seed: int) -> None:
    """Write `count` photographs and their grades into `folder`, in the raw APTOS2019 layout.

    The bytes depend only on `count` and `seed`. The folder appears at once, when everything is
    drawn; a folder that already holds this very set is left unchanged.

    Raises:
      UserError: the folder holds something else.
    """
    images = folder / "train_images"
    images.mkdir()
    grades = grades_of(count, seed)

    def write(index: int) -> str:
        photo = photograph(seed, index, int(grades[index]))
        Image.fromarray(photo.pixels).save(images / f"{photo.id}.png", compress_level=1)
        return photo.id

    # Threads, not processes: numpy and Pillow release the interpreter's lock while they work.
    with ThreadPoolExecutor(len(available_cores())) as pool:
        ids = list(pool.map(write, range(count)))
    rows = [("id_code", "diagnosis"), *zip(ids, grades, strict=True)]
    (folder / "train.csv").write_bytes(atomic.csv_bytes(rows))


def grades_of(count: int, seed: int) -> np.ndarray:
    """Grade of every photograph of a set: `GRADE_SHARES` of each, in random order."""
    bounds = np.round(np.cumsum(GRADE_SHARES) * count).astype(int)
    grades = np.searchsorted(bounds, np.arange(count), side="right")
    return np.random.default_rng(seed).permutation(grades)


def photograph(seed: int, index: int, grade: int) -> Photograph:
    """Draw photograph `index` of the set of `seed`; the same grade always gives the same bytes."""
    rng = np.random.default_rng((seed, index))
    name = rng.bytes(6).hex()
    view = draw_view(rng)
    lesions = place(rng, view, RULE[grade])
    pixels, covered = render(rng, view, lesions)
    return Photograph(id=name, pixels=pixels, lesions=lesions, covered=covered)


_COLOUR = np.array((1.0, 0.50, 0.23))
"""Red, green and blue of the retina, relative to red."""


def _colour(red: float, green: float, blue: float) -> np.ndarray:
    """Make three factors that broadcast over an image `[3, h, w]`."""
    return np.array((red, green, blue), np.float32)[:, None, None]


def draw_view(rng: np.random.Generator) -> View:
    """Draw a camera: the whole field on a wide frame, one cut above and below, or a tight crop."""
    width = int(rng.integers(360, 600))
    framing = rng.choice(3, p=(0.4, 0.4, 0.2))
    if framing == 0:
        height = round(width / rng.uniform(1.25, 1.4))
        radius = height * rng.uniform(0.46, 0.49)
    elif framing == 1:
        height = round(width / rng.uniform(1.2, 1.4))
        radius = width * rng.uniform(0.46, 0.50)
    else:
        height = round(width / rng.uniform(0.99, 1.05))
        radius = min(width, height) * rng.uniform(0.475, 0.50)
    side = rng.choice((-1, 1))  # right or left eye
    disc = (side * rng.uniform(0.48, 0.66), rng.uniform(-0.10, 0.06))
    macula = (disc[0] - side * rng.uniform(0.56, 0.66), disc[1] + rng.uniform(0.02, 0.10))
    return View(
        width=width,
        height=height,
        radius=radius,
        centre=(width * rng.uniform(0.49, 0.51), height * rng.uniform(0.49, 0.51)),
        disc=disc,
        macula=macula,
    )


def place(rng: np.random.Generator, view: View, rule: Sequence[Lesions]) -> tuple[Lesion, ...]:
    """Place the lesions of a rule on the visible retina, off the disc; exudates lie in clusters."""
    lesions: list[Lesion] = []
    for line in rule:
        count = int(rng.integers(line.count[0], line.count[1] + 1))
        clusters = rng.uniform(-0.6, 0.6, (3, 2))
        for i in range(count):
            radius = rng.uniform(*line.radius)
            cluster = clusters[i % 3] if line.kind is EXUDATE else None
            x, y = _find_room(rng, view, lesions, radius, cluster)
            lesions.append(Lesion(kind=line.kind, x=x, y=y, radius=radius))
    return tuple(lesions)


def _find_room(
    rng: np.random.Generator,
    view: View,
    lesions: list[Lesion],
    radius: float,
    cluster: np.ndarray | None,
) -> tuple[float, float]:
    """Find a place for one more lesion: near `cluster`, or anywhere."""
    for attempt in itertools.count():
        spacing = 1.3 * 0.995**attempt  # on a crowded retina lesions may touch
        if cluster is None:
            x, y = rng.uniform(-0.88, 0.88, 2).tolist()
        else:  # a full cluster spreads
            x, y = (cluster + rng.normal(0, 0.16 + 0.01 * attempt, 2)).tolist()
        margin = (radius + 0.02) * view.radius
        if (
            x * x + y * y < 0.88**2
            and margin < view.pixel(x, y)[1] < view.height - margin
            and (x - view.disc[0]) ** 2 + (y - view.disc[1]) ** 2 > (0.18 + radius) ** 2
            and all(
                (x - o.x) ** 2 + (y - o.y) ** 2 > (spacing * (radius + o.radius)) ** 2
                for o in lesions
            )
        ):
            return x, y
    raise AssertionError("unreachable: the spacing shrinks until there is room")


def render(
    rng: np.random.Generator, view: View, lesions: tuple[Lesion, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Paint the retina, its vessels and lesions, then camera effects.

    Returns:
      Pixels, uint8 `[h, w, 3]`, and where the lesions are; see `Photograph.covered`.
    """
    x = (np.arange(view.width, dtype=np.float32) - view.centre[0]) / view.radius
    y = (np.arange(view.height, dtype=np.float32)[:, None] - view.centre[1]) / view.radius
    distance = np.sqrt(x * x + y * y)
    field = np.clip((1 - distance) * view.radius / 1.5, 0, 1)

    # Light falls off towards the rim, comes a little from one side, and is mottled by the choroid.
    lean_x, lean_y = rng.normal(0, 0.09), rng.normal(0, 0.09)
    light = 1 - rng.uniform(0.22, 0.42) * distance**2 + lean_x * x + lean_y * y
    light *= 1 + _mottle(rng, view, 9, 0.035) + _mottle(rng, view, 40, 0.022)
    size = rng.uniform(0.13, 0.19)
    macula = np.exp(-((x - view.macula[0]) ** 2) / (2 * size * size))
    macula = macula * np.exp(-((y - view.macula[1]) ** 2) / (2 * size * size))
    light *= 1 - rng.uniform(0.25, 0.40) * macula

    tint = _COLOUR * rng.normal(1, (0.0, 0.05, 0.07))
    image = light * tint[:, None, None].astype(np.float32)
    vessels = _vessels(rng, view)
    image *= 1 - vessels * _colour(0.30, 0.48, 0.38)
    _paint_disc(rng, view, image, vessels)
    covered = np.zeros((view.height, view.width), np.uint8)
    for number, lesion in enumerate(lesions, start=1):
        window, cover = _paint_lesion(rng, view, image, lesion)
        covered[window[1:]][cover >= 0.5] = number
    covered[field == 0] = 0

    # Exposure and white balance are set last, so that the lesions do not move the mean colour.
    weight = field / field.sum()
    target = rng.uniform(105, 160) * _COLOUR * rng.normal(1, (0, 0.07, 0.12))
    for plane, level in zip(image, target.tolist(), strict=True):
        plane *= level / float(np.vdot(plane, weight))
    image *= field
    image += 4
    planes = np.clip(image, 0, 255).astype(np.uint8)
    photo = Image.merge("RGB", [Image.fromarray(plane) for plane in planes])
    photo = photo.filter(ImageFilter.BoxBlur(rng.uniform(0.0, 0.9)))
    # Grain makes up most of a PNG's size, and its range hides the few bytes that lesions add.
    strength = math.exp(rng.uniform(math.log(0.5), math.log(2.8)))
    grain = rng.standard_normal(field.shape, np.float32) * strength
    grain = np.rint(grain * (0.3 + 0.7 * field)).astype(np.int16)
    return np.clip(np.asarray(photo) + grain[..., None], 0, 255).astype(np.uint8), covered


def _mottle(rng: np.random.Generator, view: View, cells: int, strength: float) -> np.ndarray:
    """Make a smooth random texture `[h, w]` with `cells` bumps across the image."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), np.float32) * strength)
    return np.asarray(coarse.resize((view.width, view.height), Image.Resampling.BICUBIC))


def _paint_disc(
    rng: np.random.Generator, view: View, image: np.ndarray, vessels: np.ndarray
) -> None:
    """Paint the optic disc, pale yellow with a paler cup; the vessels stay visible on it."""
    size = rng.uniform(0.125, 0.155)
    window, x, y = _window(view, view.disc, 2.5 * size)
    away = np.hypot(x, y / rng.uniform(1.02, 1.15)) / size
    glow = np.clip(1 - away / 2.5, 0, 1)
    rim = np.clip((1 - away) / 0.25 + 0.5, 0, 1)
    cup = np.clip((rng.uniform(0.40, 0.55) - away) / 0.4 + 0.5, 0, 1)
    pale = _colour(1.32, 0.90, 0.48) + cup * _colour(0.10, 0.16, 0.20)
    pale = pale * (1 - vessels[window[1:]] * _colour(0.30, 0.62, 0.55))
    image[window] *= 1 + 0.30 * glow * glow
    image[window] += 0.9 * rim * (pale - image[window])


def _paint_lesion(
    rng: np.random.Generator, view: View, image: np.ndarray, lesion: Lesion
) -> tuple[tuple[slice, slice, slice], np.ndarray]:
    """Paint one lesion by tinting the retina under it; returns the part painted on, and how much of
    the tint each of its pixels got, 0 to 1."""
    kind = lesion.kind
    reach = lesion.radius * (1.3 + 2 * kind.ragged + kind.softness)
    window, x, y = _window(view, (lesion.x, lesion.y), reach)
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.3)
    along = (x * math.cos(turn) + y * math.sin(turn)) / stretch
    across = (y * math.cos(turn) - x * math.sin(turn)) * stretch
    angle = np.arctan2(across, along)
    outline = np.float32(1)
    for waves in (2, 3, 5):
        swing = kind.ragged * rng.normal(0, 1.2 / waves)
        outline = outline + swing * np.cos(waves * angle + rng.uniform(0, 6.3))
    edge = (outline - np.hypot(along, across) / lesion.radius) / kind.softness + 0.5
    cover = np.clip(edge, 0, 1) * rng.uniform(0.85, 1.0)
    image[window] *= 1 + cover * (_colour(*kind.tint) - 1)
    return window, cover


def _window(
    view: View, at: tuple[float, float], reach: float
) -> tuple[tuple[slice, slice, slice], np.ndarray, np.ndarray]:
    """Slices of the image part within `reach` of `at`, and its x and y from `at` in field radii."""
    column, row = view.pixel(*at)
    reach = reach * view.radius + 1
    columns = np.arange(max(int(column - reach), 0), min(int(column + reach) + 2, view.width))
    rows = np.arange(max(int(row - reach), 0), min(int(row + reach) + 2, view.height))
    x = ((columns - column) / view.radius).astype(np.float32)
    y = ((rows - row) / view.radius).astype(np.float32)[:, None]
    return np.s_[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], x, y


def _vessels(rng: np.random.Generator, view: View) -> np.ndarray:
    """Absorption of light by the vessels, `[h, w]` in 0..1: arcades that arch from the disc."""
    fine = 2  # drawn at twice the size, for smooth edges
    canvas = Image.new("L", (view.width * fine, view.height * fine))
    pen = ImageDraw.Draw(canvas)
    toward = np.sign(view.macula[0] - view.disc[0])

    def grow(start, heading, final, length, width, strength, depth) -> None:
        steps = max(int(length / 0.02), 4)
        along = np.linspace(0, length, steps)
        wander = np.cumsum(rng.normal(0, 0.05 + 0.03 * (2 - depth), steps))
        angles = final + (heading - final) * np.exp(-2.2 * along) + wander
        xs = start[0] + toward * np.cumsum(np.cos(angles)) * 0.02
        ys = start[1] + np.cumsum(np.sin(angles)) * 0.02
        widths = width * (1 - 0.65 * along / length)
        scale = view.radius * fine
        points = [
            (view.centre[0] * fine + scale * a, view.centre[1] * fine + scale * b)
            for a, b in zip(xs, ys, strict=True)
        ]
        for first in range(0, steps - 1, 6):
            thickness = max(round(float(widths[first]) * scale), 1)
            pen.line(points[first : first + 7], fill=strength, width=thickness, joint="curve")
        if depth == 0:
            return
        for at in range(int(rng.integers(6, 12)), steps - 3, int(rng.integers(10, 18))):
            side = rng.choice((-1, 1))
            turn = angles[at] + side * rng.uniform(0.5, 1.0)
            grow(
                (float(xs[at]), float(ys[at])),
                turn,
                turn - side * rng.uniform(0.0, 0.5),
                length * rng.uniform(0.25, 0.5),
                float(widths[at]) * rng.uniform(0.5, 0.75),
                int(strength * 0.8),
                depth - 1,
            )

    for up in (-1, 1):
        for vein in (True, False):
            strength, width = (215, 0.030) if vein else (165, 0.021)
            spread = rng.uniform(-0.35, 0.35)
            origin = (view.disc[0] + rng.uniform(-0.04, 0.04), view.disc[1] + up * 0.02)
            temporal = up * rng.uniform(-0.15, 0.25)
            grow(origin, up * (1.55 + spread), temporal, 1.7, width, strength, 2)
            nasal = up * rng.uniform(2.1, 2.9)
            grow(origin, up * (1.9 + spread), nasal, 0.9, width * 0.75, strength, 2)
    return np.asarray(canvas.reduce(fine), np.float32) / 255
