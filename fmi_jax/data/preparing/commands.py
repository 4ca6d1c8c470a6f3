"""The commands `fmi-jax prepare`, `check-data` and `draw`: their arguments and output."""

import argparse
import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path

from fmi_jax.arguments import place, whole
from fmi_jax.data.prepared import PreparedDataset
from fmi_jax.data.preparing.check import check
from fmi_jax.data.preparing.masks import RESIZES
from fmi_jax.data.preparing.prepare import ON_BAD, find_task, prepare_sizes
from fmi_jax.data.raw.class_folders import folder_spec
from fmi_jax.data.raw.csv_table import csv_spec
from fmi_jax.data.raw.problems import SHOWN
from fmi_jax.data.raw.spec import SPLITS, DatasetSpec
from fmi_jax.data.registry import DATASETS
from fmi_jax.data.remarks import few_images
from fmi_jax.drawing.wording import percent
from fmi_jax.errors import UsageError, UserError


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fmi-jax prepare` to a parser."""
    add_check_arguments(parser)
    parser.add_argument(
        "--data-dir", type=place, default=Path("data"), help="folder of the prepared data sets"
    )
    parser.add_argument(
        "--size",
        type=whole(1, 2**16),
        nargs="+",
        default=[256],
        help="side of the images in pixels (default: 256); several: each image is still read once",
    )
    parser.add_argument("--split", default="", help="split rule (default: the data set's first)")
    parser.add_argument(
        "--limit",
        type=whole(0),
        default=0,
        metavar="N",
        help="a smoke run: only the first N rows of every split, in a folder that says so",
    )
    parser.add_argument(
        "--on-bad",
        default=ON_BAD[0],
        choices=ON_BAD,
        help="refuse the data set for an image that cannot be read, or leave the image out",
    )
    parser.add_argument(
        "--mask-resize",
        default=RESIZES[0],
        choices=RESIZES,
        help="resize masks to the class at the centre of each pixel, or to the one of most area",
    )
    parser.add_argument(
        "--no-thumbnails", action="store_true", help="show no images on the data card"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what was prepared from other data"
    )


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fmi-jax check-data` to a parser: raw data and how to read them."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "NAME and what --source is:\n" + "\n".join(
        textwrap.fill(f"{spec.name}: {spec.layout}", initial_indent="  ", subsequent_indent="    ")
        for spec in DATASETS.values()
    )
    parser.add_argument("dataset", metavar="NAME", help="the data set; csv and folder: your own")
    parser.add_argument("--source", type=place, help="the raw data (see below)")
    parser.add_argument(
        "--processes",
        type=whole(0, 1024),
        default=0,
        metavar="N",
        help="how many read images (default: one per core, fewer for few images)",
    )
    parser.add_argument(
        "--boxes",
        action="store_true",
        help=f"read the boxes around findings, which judge maps ({', '.join(_with_boxes())})",
    )
    own = parser.add_argument_group("your own data (NAME is csv or folder)")
    own.add_argument("--name", help="what to call the data set")
    own.add_argument(
        "--image-root", type=place, help="csv: where its paths start (default: beside the table)"
    )
    own.add_argument(
        "--label-columns",
        type=_names,
        default=(),
        help="csv: columns with a 0 or 1 for each class, in place of 'label': a,b,c."
        " (Several classes in the column 'label' are written a|b.)",
    )
    own.add_argument(
        "--classes",
        type=_names,
        default=(),
        help="class names in order: a,b,c (default: those found, in numeric or alphabetic order);"
        " of masks the background first (default: background,foreground)",
    )
    own.add_argument("--channels", type=int, choices=(1, 3), help="3 colour (default), 1 grey")
    own.add_argument(
        "--ordinal", action="store_true", help="the classes are grades, in their order"
    )
    own.add_argument("--metric", help="validation metric that selects the best checkpoint")


def add_draw_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fmi-jax draw` to a parser."""
    parser.add_argument("dataset", metavar="NAME", help=f"one of {', '.join(_drawable())}")
    parser.add_argument("folder", metavar="FOLDER", type=place, help="a new or an empty folder")
    parser.add_argument(
        "--images", type=whole(20, 10**6), metavar="N", help="how many, about (default: some fifty)"
    )


def run_prepare(args: argparse.Namespace) -> list[PreparedDataset]:
    """Prepare a data set, print its summary and return it at every size.

    Raises:
      UsageError, UserError: same as `prepare_sizes`.
    """
    datasets = prepare_sizes(
        _spec(args),
        args.source,
        args.data_dir,
        sizes=args.size,
        split=args.split,
        on_bad=args.on_bad,
        overwrite=args.overwrite,
        limit=args.limit,
        processes=args.processes,
        mask_resize=args.mask_resize,
    )
    print("\n".join(_summary(datasets)))
    return datasets


def run_check(args: argparse.Namespace) -> None:
    """Check raw data and print a summary.

    Raises:
      UserError: lists everything that is wrong with them.
    """
    spec = _spec(args, unnamed="unnamed")  # nothing is written, so nothing needs a name
    if args.source is None:
        raise UsageError(f"check-data {spec.name} needs --source: {spec.layout}.")
    raw, problems, doubts = check(spec, args.source, processes=args.processes)
    if raw is not None:
        named = f": {', '.join(raw.classes)}" if raw.classes else ""
        print(f"{raw.table}: {len(raw.examples)} rows, {find_task(raw).name}{named}")
    if problems:
        raise UserError(f"{args.source} has problems:\n  " + "\n  ".join([*problems, *doubts]))
    if doubts:
        print("prepare accepts these data. Look at:\n  " + "\n  ".join(doubts))
    else:
        print("No problems found.")


def run_draw(args: argparse.Namespace) -> None:
    """Draw a small raw data set.

    Raises:
      UsageError: there is no such data set, or it stands for the user's own data.
      UserError: the folder holds something else.
    """
    draw = DATASETS[args.dataset].draw
    if draw is None:
        raise UsageError(
            f"{args.dataset} cannot be drawn: it stands for your own data;"
            f" expected one of {', '.join(_drawable())}."
        )
    draw(args.folder, **({} if args.images is None else {"count": args.images}))
    print(
        f"{args.folder}: a drawn {args.dataset}, which shows nothing real. To prepare it:\n"
        f"  fmi-jax prepare {args.dataset} --source {args.folder}"
    )


def _drawable() -> list[str]:
    return [spec.name for spec in DATASETS.values() if spec.draw]


def _with_boxes() -> list[str]:
    return [spec.name for spec in DATASETS.values() if spec.read_boxes]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _spec(args: argparse.Namespace, unnamed: str = "") -> DatasetSpec:
    """Make the spec that the arguments describe; `UsageError` if they do not fit together.

    `unnamed` is the name of one's own data without `--name`; empty: a name is required.
    """
    spec = DATASETS[args.dataset]
    own = {
        "--name": args.name,
        "--image-root": args.image_root,
        "--label-columns": args.label_columns,
        "--classes": args.classes,
        "--channels": args.channels,
        "--ordinal": args.ordinal,
        "--metric": args.metric,
    }
    allowed = {
        "csv": set(own),
        "folder": set(own) - {"--image-root", "--label-columns"},
    }.get(spec.name, set())
    if wrong := [flag for flag, value in own.items() if value and flag not in allowed]:
        raise UsageError(
            f"{', '.join(wrong)} cannot be used with {spec.name}; expected"
            f" {', '.join(sorted(allowed)) or 'none of the options for your own data'}."
        )
    if args.boxes:
        if spec.read_boxes is None:
            raise UsageError(
                f"--boxes cannot be used with {spec.name}; expected {', '.join(_with_boxes())}."
            )
        spec = dataclasses.replace(spec, read=spec.read_boxes)
    if not allowed:
        return spec
    name = args.name or unnamed
    if not name or name in DATASETS:
        raise UsageError(
            f"{spec.name} needs --name: what to call your data set, and none of"
            f" {', '.join(DATASETS)}."
        )
    common = {
        "classes": args.classes,
        "channels": args.channels or 3,
        "metric": args.metric or "",
        "ordinal": args.ordinal,
    }
    if spec.name == "folder":
        return folder_spec(name, **common)
    return csv_spec(name, image_root=args.image_root, label_columns=args.label_columns, **common)


def _summary(datasets: Sequence[PreparedDataset]) -> list[str]:
    """Describe the contents of a data set, which are the same at every size."""
    info, manifest = datasets[0].info, datasets[0].manifest
    lines = [
        f"{dataset.folder}: {info.name}, {info.task}, {dataset.info.size} x {dataset.info.size}, "
        f"{info.channels} channel(s), split {info.split}"
        for dataset in datasets
    ]
    width = max(len(f"share of {name}") for name in (*info.classes, "images"))
    lines.append(f"  {'':{width}}" + "".join(f"{split:>9}" for split in SPLITS))
    lines.append(f"  {'images':{width}}" + "".join(f"{info.counts[s]:>9}" for s in SPLITS))
    lines += [
        f"  {name:{width}}" + "".join(f"{info.class_counts[s][i]:>9g}" for s in SPLITS)
        for i, name in enumerate(info.classes)
    ]
    everything = {"images": [info.counts[s] for s in SPLITS]} | {
        name: [info.class_counts[s][i] for s in SPLITS] for i, name in enumerate(info.classes)
    }
    for name, counts in everything.items():
        if total := sum(counts):
            shares = "".join(f"{percent(count / total):>9}" for count in counts)
            lines.append(f"  {f'share of {name}':{width}}{shares}")
    for words, key in (("with boxes", "with_boxes"), ("empty masks", "empty_masks")):
        if found := manifest.get(key):
            lines.append(f"  {words:{width}}" + "".join(f"{found[s]:>9}" for s in SPLITS))
    if info.limit:
        lines.append(f"  Note: a smoke run, only the first {info.limit} rows of every split.")
    notes = {
        "quarantined": "image(s) left out because they cannot be read",
        "duplicates_across_splits": "image(s) occur in more than one split",
        "duplicates_within_splits": "image(s) occur more than once in a split",
        "groups_across_splits": "group(s) have images in more than one split",
    }
    lines += [
        f"  Note: {len(manifest[what])} {note} ({what} in manifest.json)."
        for what, note in notes.items()
        if manifest[what]
    ]
    lines += [f"  Note: {text}" for s in ("val", "test") if (text := few_images(info, s))]
    for split in filter(info.counts.get, SPLITS):
        counts = zip(info.classes, info.class_counts[split], strict=True)
        if unseen := [name for name, count in counts if not count]:
            more = f" and {len(unseen) - SHOWN} more" * (len(unseen) > SHOWN)
            lines.append(f"  Note: no image of class {', '.join(unseen[:SHOWN])}{more} in {split}.")
    return lines
