"""`fmi-jax prepare` and `fmi-jax check-data`: their arguments and what they print."""

import argparse
from pathlib import Path

from fmi_jax.data.check import check
from fmi_jax.data.class_folders import folder_spec
from fmi_jax.data.csv_table import csv_spec
from fmi_jax.data.prepare import ON_BAD, prepare
from fmi_jax.data.prepared import PreparedDataset
from fmi_jax.data.registry import DATASETS
from fmi_jax.data.spec import SPLITS, DatasetSpec
from fmi_jax.errors import UsageError, UserError


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fmi-jax prepare`."""
    _add_source_arguments(parser)
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="folder of the prepared data sets"
    )
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--split", default="", help="split rule (default: the data set's first)")
    parser.add_argument(
        "--on-bad",
        default=ON_BAD[0],
        choices=ON_BAD,
        help="refuse the data set for an image that cannot be read, or leave the image out",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what was prepared from other data"
    )


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fmi-jax check-data`."""
    _add_source_arguments(parser)


def run_prepare(args: argparse.Namespace) -> None:
    """Prepare a data set and print what is in it.

    Raises:
      UsageError, UserError: as `prepare`.
    """
    dataset = prepare(
        _spec(args),
        args.source,
        args.data_dir,
        size=args.size,
        split=args.split,
        on_bad=args.on_bad,
        overwrite=args.overwrite,
    )
    print("\n".join(_summary(dataset)))


def run_check(args: argparse.Namespace) -> None:
    """Print what raw data hold.

    Raises:
      UserError: everything that is wrong with them.
    """
    spec = _spec(args, unnamed="unnamed")  # nothing is written, so nothing needs a name
    if args.source is None:
        raise UsageError(f"check-data {spec.name} needs --source: {spec.layout}.")
    raw, problems = check(spec, args.source)
    if raw is not None:
        print(f"{raw.table}: {len(raw.examples)} rows, {raw.task}: {', '.join(raw.classes)}")
    if problems:
        raise UserError(f"{args.source} has problems:\n  " + "\n  ".join(problems))
    print("No problems found.")


def _add_source_arguments(parser: argparse.ArgumentParser) -> None:
    layouts = "; ".join(f"{spec.name}: {spec.layout}" for spec in DATASETS.values())
    parser.add_argument(
        "dataset", metavar="NAME", help=f"one of {', '.join(DATASETS)} (csv, folder: your own)"
    )
    parser.add_argument("--source", type=Path, help=f"the raw data ({layouts})")
    own = parser.add_argument_group("your own data (NAME is csv or folder)")
    own.add_argument("--name", help="what to call the data set")
    own.add_argument(
        "--image-root", type=Path, help="csv: where its paths start (default: beside the table)"
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
        help="class names in order: a,b,c (default: those found, in numeric or alphabetic order)",
    )
    own.add_argument("--channels", type=int, choices=(1, 3), help="3 colour (default), 1 grey")
    own.add_argument("--metric", help="validation metric that selects the best checkpoint")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _spec(args: argparse.Namespace, unnamed: str = "") -> DatasetSpec:
    """The data set that the arguments describe; `UsageError` where they do not fit together.

    `unnamed` is what one's own data are called without `--name`; empty: that is refused.
    """
    spec = DATASETS[args.dataset]
    own = {
        "--name": args.name,
        "--image-root": args.image_root,
        "--label-columns": args.label_columns,
        "--classes": args.classes,
        "--channels": args.channels,
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
    if not allowed:
        return spec
    name = args.name or unnamed
    if not name or name in DATASETS:
        raise UsageError(
            f"{spec.name} needs --name: what to call your data set, and none of"
            f" {', '.join(DATASETS)}."
        )
    common = {"classes": args.classes, "channels": args.channels or 3, "metric": args.metric or ""}
    if spec.name == "folder":
        return folder_spec(name, **common)
    return csv_spec(name, image_root=args.image_root, label_columns=args.label_columns, **common)


def _summary(dataset: PreparedDataset) -> list[str]:
    info, manifest = dataset.info, dataset.manifest
    lines = [
        f"{dataset.folder}: {info.name}, {info.task}, {info.size} x {info.size}, "
        f"{info.channels} channel(s), split {info.split}"
    ]
    width = max(len(name) for name in (*info.classes, "images"))
    lines.append(f"  {'':{width}}" + "".join(f"{split:>9}" for split in SPLITS))
    lines.append(f"  {'images':{width}}" + "".join(f"{info.counts[s]:>9}" for s in SPLITS))
    for i, name in enumerate(info.classes):
        row = "".join(f"{info.class_counts[split][i]:>9g}" for split in SPLITS)
        lines.append(f"  {name:{width}}{row}")
    for what, title in (
        ("quarantined", "image(s) left out because they cannot be read"),
        ("duplicates_across_splits", "image(s) occur in more than one split"),
        ("groups_across_splits", "group(s) have images in more than one split"),
    ):
        if manifest[what]:
            lines.append(f"  Note: {len(manifest[what])} {title} ({what} in manifest.json).")
    unseen = [
        f"{name!r} in {split}"
        for split in SPLITS
        for name, count in zip(info.classes, info.class_counts[split], strict=True)
        if not count
    ]
    if unseen:
        lines.append(f"  Note: no image of class {', '.join(unseen)}.")
    return lines
