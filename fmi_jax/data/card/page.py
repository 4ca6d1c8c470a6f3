"""The card of a prepared data set: what is in it, and what to beware of, on one page."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fmi_jax import atomic
from fmi_jax.data.card import figures
from fmi_jax.data.card.areas import find_areas
from fmi_jax.data.labels import Label
from fmi_jax.data.masks import are_counted
from fmi_jax.data.prepared import DatasetInfo, PreparedDataset
from fmi_jax.data.remarks import find_duplicates, find_groups, remarks
from fmi_jax.drawing.style import class_colour
from fmi_jax.drawing.template import jpeg_uri, png_uri, render, thumbnail

PAGE, PICTURE = "card.html", "card.png"

_SEED = 0
_SAMPLED_CLASSES = 16
_TINT = 0.45  # share of a class's colour in the pixels of its mask
_SHOWN = 50  # entries of a list that someone may want to look through


def write_card(dataset: PreparedDataset, *, thumbnails: bool = True) -> Path:
    """Write `card.html`, which needs nothing but itself, and `card.png` into the prepared folder.

    The same data give the same bytes.

    Args:
      dataset: prepared data.
      thumbnails: show images of every class.

    Returns:
      Path of the page.

    Raises:
      UserError: the data set is damaged.
    """
    info = dataset.info
    duplicates, groups = find_duplicates(dataset), find_groups(dataset)
    notes = remarks(dataset, duplicates, groups)
    pixels = np.concatenate([dataset.sizes(split) for split in info.counts])
    samples = _samples(dataset) if thumbnails else {}
    banners = _banners(dataset)
    areas = find_areas(dataset) if are_counted(dataset) else None
    overview = figures.overview(
        info,
        headline=_headline(dataset),
        banners=banners,
        pixels=pixels,
        remarks=notes,
        samples={name: [picture for _, picture in chosen] for name, chosen in samples.items()},
    )
    page = render(
        "fmi_jax.data.card",
        PAGE,
        info=info,
        manifest=dataset.manifest,
        headline=_headline(dataset),
        banners=banners,
        remarks=notes,
        multilabel=info.label is not Label.INDEX,
        colours=_colours(info),
        areas=areas,
        total=sum(info.counts.values()),
        sizes=_sizes(pixels, info.size),
        samples={
            name: [(id_, jpeg_uri(picture)) for id_, picture in chosen]
            for name, chosen in samples.items()
        },
        duplicates=duplicates,
        groups=groups,
        shown=_SHOWN,
        sampled=shown_split(info),
        figures={
            **({"classes": png_uri(figures.classes(info))} if info.classes else {}),
            "sizes": png_uri(figures.sizes(pixels, info.size)),
            **({"areas": png_uri(figures.areas(areas))} if areas else {}),
        },
    )
    atomic.write_bytes(dataset.folder / PICTURE, overview)
    atomic.write_bytes(dataset.folder / PAGE, page)
    return dataset.folder / PAGE


def _headline(dataset: PreparedDataset) -> str:
    info = dataset.info
    task = info.task.replace("multi", "multi-").replace("_", " ")
    colour = "grey" if info.channels == 1 else "colour"
    classes = f" ({len(info.classes)} classes)" if info.classes else ""
    total, counts = sum(info.counts.values()), info.counts.items()
    return (
        f"{total:,} {colour} images of {_by(info.size, info.size)} pixels, {task}{classes},"
        f" split {info.split!r}: " + ", ".join(f"{count:,} {split}" for split, count in counts)
    )


def _banners(dataset: PreparedDataset) -> list[str]:
    synthetic, limit = dataset.info.synthetic, dataset.info.limit
    banners = {
        "Synthetic data: drawn by a program. They say nothing about patients.": synthetic,
        f"Not the whole data set: at most {limit:,} images of every split.": limit,
    }
    return [banner for banner, applies in banners.items() if applies]


def shown_split(info: DatasetInfo) -> str:
    """Split that the samples are from: the training images, or what there is instead."""
    return next(split for split, count in info.counts.items() if count)


def _samples(dataset: PreparedDataset) -> dict[str, list[tuple[str, Image.Image]]]:
    """Id and picture of images of each class of `shown_split`, drawn at random.

    One that has several classes is shown twice only where there is no other. Masks are shown on
    their images; those that are empty stand in the place of the background.
    """
    info = dataset.info
    shown = shown_split(info)
    ids, labels = dataset.ids(shown), dataset.labels(shown)
    count = 7 if len(info.classes) <= 6 else 4
    split, rng = dataset.split(shown), np.random.default_rng(_SEED)
    if not info.classes:
        rows = sorted(rng.permutation(len(ids))[:count].tolist())
        return {"without labels": [(ids[row], thumbnail(split[row][0])) for row in rows]}
    frequent = np.argsort(-np.asarray(info.class_counts[shown]), kind="stable")
    drawn: dict[int, list[int]] = {}
    taken = np.zeros(len(ids), bool)
    for c in frequent[:_SAMPLED_CLASSES][::-1]:  # the rarest choose first
        here = labels == c if info.label is Label.INDEX else labels[:, c] > 0.5
        if c < info.label.background:
            here = (labels[:, info.label.background :] == 0).all(axis=1)
        rows = rng.permutation(np.flatnonzero(here))
        rows = rows[np.argsort(taken[rows], kind="stable")][:count]
        taken[rows] = True
        drawn[int(c)] = sorted(rows.tolist())
    return {
        "no finding" if c < info.label.background else info.classes[c]: [
            (ids[row], thumbnail(_tinted(info, *split[row]))) for row in drawn[c]
        ]
        for c in sorted(drawn)
    }


def _colours(info: DatasetInfo) -> dict[str, str]:
    """Colour of each class that masks are shown in."""
    if not info.label.of_pixels:
        return {}
    foreground = info.classes[info.label.background :]
    return {name: f"#{bytes(class_colour(i)).hex()}" for i, name in enumerate(foreground)}


def _tinted(info: DatasetInfo, image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Tint the pixels of each class of a mask in its colour; without a mask, the image itself."""
    if not info.label.of_pixels:
        return image
    pixels = np.repeat(image, 3 // image.shape[-1], axis=-1).astype(np.float32)
    for i, c in enumerate(range(info.label.background, len(info.classes))):
        inside = info.label.pixels_of(label, c)
        pixels[inside] += _TINT * (np.array(class_colour(i)) - pixels[inside])
    return pixels.astype(np.uint8)


def _sizes(pixels: np.ndarray, size: int) -> dict[str, Any]:
    """What is to be said of the sizes of the raw images, `[n, 2]` width and height."""
    different, counts = np.unique(pixels, axis=0, return_counts=True)
    order = np.argsort(different.prod(axis=1), kind="stable")
    middle = order[np.searchsorted(np.cumsum(counts[order]), counts.sum() / 2)]
    aspect = pixels.max(axis=1) / pixels.min(axis=1)
    return {
        "facts": {
            "smallest": _by(*different[order[0]]),
            "median": _by(*different[middle]),
            "largest": _by(*different[order[-1]]),
            "most frequent": _by(*different[counts.argmax()]),
        },
        "different": len(different),
        "frequent_share": counts.max() / len(pixels),
        "enlarged": float((pixels.min(axis=1) < size).mean()),
        "stretched": float((aspect > 1.1).mean()),
    }


def _by(width: int, height: int) -> str:
    return f"{width:,} \N{MULTIPLICATION SIGN} {height:,}"
