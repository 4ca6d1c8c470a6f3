"""Reader of the user's own images: one folder per class, or one folder of images without labels."""

import functools
from pathlib import Path

from fmi_jax.data.labels import Label
from fmi_jax.data.preparing.images import SUFFIXES
from fmi_jax.data.raw import twin_folders
from fmi_jax.data.raw.labels import encode_classes
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import SPLITS, DatasetSpec, RawDataset, RawExample
from fmi_jax.data.raw.splits import all_test, all_train, official, stratified
from fmi_jax.errors import UserError


def folder_spec(
    name: str = "folder",
    *,
    classes: tuple[str, ...] = (),
    channels: int = 3,
    metric: str = "",
    ordinal: bool = False,
) -> DatasetSpec:
    """Make the spec of a data set whose classes are folders of images.

    Args:
      name: name for the data set.
      classes: folders in the order of the classes; empty: numeric or alphabetic order.
      channels: 3 for colour, 1 for grey.
      metric: validation metric that selects the best checkpoint; empty: by the task.
      ordinal: True if the classes are grades, in their order.
    """
    return DatasetSpec(
        name=name,
        read=functools.partial(read, classes=classes),
        channels=channels,
        mean=None,
        std=None,
        metric=metric,
        splits={
            "official": official,
            "train": all_train,
            "stratified": stratified,
            "all": all_test,
        },
        layout="a folder with one folder of images per class, or with images/ and masks/, or"
        " train/, val/ and test/ with these; or a folder of images alone, without labels, for"
        " pre-training",
        citation="",
        licence="",
        url="",
        ordinal=ordinal,
    )


def read(source: Path, *, classes: tuple[str, ...] = ()) -> RawDataset:
    """List `source/<class>/**`, or `source/{train,val,test}/<class>/**` if those exist.

    Folders `images` and `masks` are no classes but twins (`twin_folders`). Where no folder stands
    in the place of a class, the images have no labels. Hidden files are ignored. The id of an image
    is its path under `source`.

    Raises:
      UserError: there is no such folder or there are no class folders, only some of train, val
        and test exist, or a file is not an image.
    """
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; expected one that holds a folder per class.")
    names = {entry.name for entry in source.iterdir() if entry.is_dir()}
    divided = names >= set(SPLITS)
    if names & set(SPLITS) and not divided:
        raise UserError(
            f"{source} has {', '.join(sorted(names & set(SPLITS)))} but not all of"
            f" {', '.join(SPLITS)}; expected all three, or one folder per class."
        )
    depth = 2 if divided else 1  # folders between the source and the images
    parents = [source / split for split in SPLITS] if divided else [source]
    if all(map(twin_folders.are_twins, parents)):
        splits = SPLITS if divided else (None,)
        return twin_folders.read(source, zip(splits, parents, strict=True), classes)
    labelled = any(
        entry.is_dir() and not entry.name.startswith(".")
        for parent in parents
        for entry in parent.iterdir()
    )
    if classes and not labelled:
        raise UserError(
            f"{source} has no class folders, and the classes {', '.join(classes)} were named;"
            " expected a folder for each, or no classes for images without labels."
        )

    problems = Problems(source)
    found: list[tuple[str, ...]] = []
    for path in sorted(source.rglob("*")):
        parts = path.relative_to(source).parts
        if path.is_dir() or any(part.startswith(".") for part in parts):
            continue
        if labelled and len(parts) <= depth:
            problems.add("file beside the class folders", "/".join(parts))
        elif path.suffix.lower() not in SUFFIXES:
            problems.add(f"not an image file ({', '.join(SUFFIXES)})", "/".join(parts))
        else:
            found.append(parts)
    problems.raise_if_any("Move them out of the folder.")

    paths = ["/".join(parts) for parts in found]
    labels, names, form = [()] * len(found), (), Label.NONE
    if labelled or not found:
        labels, names, form = encode_classes(
            [parts[depth - 1] for parts in found], paths, classes, problems
        )
    problems.raise_if_any()
    return RawDataset(
        table=source,
        image_root=source,
        examples=[
            RawExample(id=path, path=path, label=label, split=parts[0] if divided else None)
            for path, parts, label in zip(paths, found, labels, strict=True)
        ],
        classes=names,
        label=form,
    )
