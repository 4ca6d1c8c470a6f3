"""Reader of the user's own images with masks in a folder beside them: `images/` and `masks/`."""

import collections
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from fmi_jax.data.preparing.images import SUFFIXES
from fmi_jax.data.preparing.masks import SUFFIXES as MASK_SUFFIXES
from fmi_jax.data.raw.labels import MASK_CLASSES, encode_masks
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import RawDataset, RawExample

IMAGES, MASKS = "images", "masks"

_NUMBERED = re.compile(r"(.+)_mask(?:_?\d+)?")


def are_twins(folder: Path) -> bool:
    """Test whether a folder holds `images/` and `masks/` and no other folder."""
    names = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    return {name for name in names if not name.startswith(".")} == {IMAGES, MASKS}


def read(
    source: Path, parents: Iterable[tuple[str | None, Path]], classes: tuple[str, ...]
) -> RawDataset:
    """List `images/**` and, for each, the mask of the same name in `masks/**`.

    The mask of `images/a/b.jpg` is `masks/a/b.png` or `masks/a/b_mask.png`, with any suffix of a
    mask; further ones, `masks/a/b_mask_1.png` and so on, are united with it. The id of an image is
    its path under `source`.

    Args:
      source: folder of the data set.
      parents: folders that hold `images` and `masks`, with their split.
      classes: names of the classes, the background first; empty: `MASK_CLASSES`.

    Raises:
      UserError: an image has no mask, a mask no image, or a file is neither.
    """
    problems = Problems(source)
    examples: list[tuple[str, str | None, tuple[str, ...]]] = []
    for split, parent in parents:
        images = _files(parent / IMAGES, SUFFIXES, problems, source)
        masks = collections.defaultdict(list)
        for name, path in _files(parent / MASKS, MASK_SUFFIXES, problems, source):
            numbered = _NUMBERED.fullmatch(name)
            if numbered and name not in dict(images):
                name = numbered[1]
            masks[name].append(_under(path, source))
        for name, path in images:
            found = masks.pop(name, [])
            if not found:
                problems.add(f"no mask of that name in {MASKS}/", _under(path, source))
            examples.append((_under(path, source), split, tuple(found)))
        problems.add(
            f"mask without an image of that name in {IMAGES}/",
            *(mask for some in masks.values() for mask in some),
        )
    problems.raise_if_any("An image without a finding has a mask that is black.")
    masks_of = [files for *_, files in examples]
    labels, names, form = encode_masks(masks_of, classes or MASK_CLASSES, problems)
    return RawDataset(
        table=source,
        image_root=source,
        examples=[
            RawExample(id=path, path=path, label=label, split=split, masks=files)
            for (path, split, files), label in zip(examples, labels, strict=True)
        ],
        classes=names,
        label=form,
    )


def _files(
    folder: Path, suffixes: Sequence[str], problems: Problems, source: Path
) -> list[tuple[str, Path]]:
    """Find the files in a folder with their names; those of another suffix are a problem.

    A name is the path in the folder without its suffix. Hidden files are left out.
    """
    found: list[tuple[str, Path]] = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or any(p.startswith(".") for p in path.relative_to(folder).parts):
            continue
        if path.suffix.lower() in suffixes:
            found.append((path.relative_to(folder).with_suffix("").as_posix(), path))
        else:
            problems.add(f"not one of {', '.join(suffixes)}", _under(path, source))
    return found


def _under(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()
