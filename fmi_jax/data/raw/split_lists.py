"""Split lists: one text file of file names per split, as several data sets publish them."""

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from fmi_jax.data.raw.problems import Problems
from fmi_jax.errors import UserError


def read_split_lists(
    folder: Path, lists: Mapping[str, str], images: Iterable[str]
) -> dict[str, str]:
    """Read the split of each image from the lists in `folder`; empty if none of the lists exists.

    A line is the name of an image file and, after a comma or a blank, anything else. Folders and
    the suffix of the name do not count. Blank lines are ignored.

    Args:
      folder: folder of the lists.
      lists: file name of the list of each split.
      images: name of every image of the data set.

    Returns:
      The split of each image, by its name in `images`; images that no list names are left out.

    Raises:
      UserError: some lists exist and others do not, or one is not text, is empty, or names an
        image twice, one that another list names too, or one that is not in `images`.
    """
    missing = [name for name in lists.values() if not (folder / name).is_file()]
    if len(missing) == len(lists):
        return {}
    if missing:
        raise UserError(
            f"{folder} has no {' and no '.join(missing)}; expected all of"
            f" {', '.join(lists.values())}, or none of them."
        )
    known = {PurePosixPath(image).stem: image for image in images}
    found: dict[str, tuple[str, str]] = {}  # image -> split, place
    problems = Problems(folder)
    for split, name in lists.items():
        for number, listed in _names(folder / name):
            place = f"{name} line {number} ({listed!r})"
            image = known.get(PurePosixPath(listed).stem)
            if image is None:
                problems.add("listed, but not an image of the data set", place)
            elif image in found:
                problems.add("listed twice", f"{found[image][1]} and {place}")
            else:
                found[image] = (split, place)
    problems.raise_if_any()
    return {image: split for image, (split, _) in found.items()}


def _names(path: Path) -> list[tuple[int, str]]:
    """Line and name of each image of a list."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; expected one image name per line.") from None
    words = [line.replace(",", " ").split() for line in lines]
    names = [(number, found[0]) for number, found in enumerate(words, start=1) if found]
    if not names:
        raise UserError(f"{path} is empty; expected one image name per line.")
    return names
