"""The command `fmi-jax` and its subcommands."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fmi_jax import __version__
from fmi_jax.arguments import Parser, check_plain, place, whole
from fmi_jax.entry import run_main
from fmi_jax.errors import UsageError, UserError
from fmi_jax.guard import guarded
from fmi_jax.huge_pages import restart_with_huge_pages
from fmi_jax.paths import check_output, check_output_folder
from fmi_jax.settings import BackboneConfig

if TYPE_CHECKING:  # importing it loads jax, which most commands do not need
    from fmi_jax.models.base import BackboneSpec

_EPILOG = """\
examples:
  fmi-jax doctor
  fmi-jax prepare aptos2019 --source RAW --data-dir data
  fmi-jax run --config=quickstart --workdir=runs/quickstart
  fmi-jax study run table1 --slice dataset=aptos2019
  fmi-jax predict --workdir runs/quickstart image1.png image2.png
  fmi-jax evaluate --workdir runs/quickstart --data other_hospital

Converting a public PyTorch checkpoint: python -m weights_convert --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `fmi-jax`; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["run"]:  # same flags as run.py
        if argv is None:  # started as a process of its own
            restart_with_huge_pages()
        return guarded(lambda: run_main(["fmi-jax run", *arguments[1:]], None))

    def command() -> None:
        check_plain(arguments)
        values = parse(arguments)
        values.main(values)

    return guarded(command)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; call `main` of the result to run it. Raises `UsageError`."""
    return make_parser().parse_args(arguments)


def make_parser() -> Parser:
    """Make the parser of every command."""
    parser = Parser(
        prog="fmi-jax",
        description="Which vision foundation model for medical images, and how?",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fmi_jax {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=Parser
    )
    commands.add_parser("run", help="train and evaluate a config; the same as run.py")
    for add in (_studies, _data, _predict, _evaluate, _protocols, _models, _doctor):
        add(commands)
    return parser


def _command(
    commands: argparse._SubParsersAction, name: str, summary: str, main: Callable[..., None] | None
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:])
    parser.set_defaults(main=main)
    return parser


def _studies(commands: argparse._SubParsersAction) -> None:
    from fmi_jax.study.commands import add_study_arguments
    from fmi_jax.study.report.command import add_report_arguments, run_report

    add_study_arguments(
        _command(commands, "study", "run a table or a figure of the paper, cell by cell", None),
        Parser,
    )
    add_report_arguments(
        _command(
            commands,
            "report",
            "write the tables, figures and statistics of studies, finished or not",
            run_report,
        )
    )


def _data(commands: argparse._SubParsersAction) -> None:
    from fmi_jax.data.preparing import commands as data_commands

    def prepare(values: argparse.Namespace) -> None:
        for dataset in data_commands.run_prepare(values):
            card = dataset.folder / "card.html"
            if values.no_thumbnails or not card.exists():
                from fmi_jax.data.card.page import write_card

                card = write_card(dataset, thumbnails=not values.no_thumbnails)
            print(f"  {card}: counts, samples and what to beware of")

    data_commands.add_prepare_arguments(
        _command(
            commands, "prepare", "read a raw data set once: check, decode, resize, store", prepare
        )
    )
    data_commands.add_check_arguments(
        _command(
            commands,
            "check-data",
            "look for mistakes in a raw data set without writing anything",
            data_commands.run_check,
        )
    )
    data_commands.add_draw_arguments(
        _command(
            commands,
            "draw",
            "draw a small raw data set in the layout of a real one, to try things out",
            data_commands.run_draw,
        )
    )


def _predict(commands: argparse._SubParsersAction) -> None:
    def main(values: argparse.Namespace) -> None:
        options = {name: getattr(values, name) for name in ("flips", "largest", "fill_holes")}
        if values.masks is None and any(options.values()):
            raise UsageError(
                "--flips, --largest and --fill-holes are for masks: add --masks FOLDER"
            )
        # Tables of classes and of masks; not one of labels, nor a run's own predictions.
        check_output(values.out, values.images, (b"id,predicted", b"id,class,"))
        for folder in filter(None, (values.masks, values.saliency)):
            check_output_folder(folder, values.images)
        values.out.parent.mkdir(parents=True, exist_ok=True)
        if values.masks is None:
            from fmi_jax.run.predict import predict

            predict(values.workdir, values.images, values.batch_size).write(values.out)
        else:
            from fmi_jax.run.masks import MaskOptions, write_masks

            asked = MaskOptions(**options)
            write_masks(
                values.workdir, values.images, values.out, values.masks, asked, values.batch_size
            )
            print(f"masks -> {values.masks}")
        print(f"{len(values.images)} image(s) -> {values.out}")
        if values.saliency is not None:
            from fmi_jax.run.overlays import write_overlays

            write_overlays(values.workdir, values.images, values.saliency, values.batch_size)
            print(f"where the network looks -> {values.saliency}")

    parser = _command(
        commands,
        "predict",
        "write class probabilities, or masks, for new images, from a finished run",
        main,
    )
    parser.add_argument("images", nargs="+", type=place, metavar="IMAGE", help="image file")
    parser.add_argument("--workdir", required=True, type=place, help="folder of the run")
    parser.add_argument(
        "--out", type=place, default=Path("predictions.csv"), help="CSV (default: %(default)s)"
    )
    parser.add_argument(
        "--saliency",
        type=place,
        metavar="FOLDER",
        help="also draw where the network looks, a PNG for each image",
    )
    parser.add_argument(
        "--masks",
        type=place,
        metavar="FOLDER",
        help="write masks, a PNG for each image; the CSV holds them as runs of pixels",
    )
    parser.add_argument(
        "--flips", action="store_true", help="masks: average over the image and its mirror images"
    )
    parser.add_argument(
        "--largest", action="store_true", help="masks: keep the largest part of each class alone"
    )
    parser.add_argument(
        "--fill-holes", action="store_true", help="masks: fill what a class encloses"
    )
    parser.add_argument(
        "--batch-size",
        type=whole(1, 2**20),
        default=32,
        help="images per step (default: %(default)s)",
    )


def _evaluate(commands: argparse._SubParsersAction) -> None:
    def main(values: argparse.Namespace) -> None:
        from fmi_jax.run.evaluate import announce, evaluate

        out = values.out or values.workdir / "external" / f"{values.data}-{values.split}"
        check_output_folder(out)
        result = evaluate(
            values.workdir,
            values.data,
            out,
            data_dir=values.data_dir,
            rule=values.split_rule,
            split=values.split,
            size=values.size,
            batch_size=values.batch_size,
        )
        announce(result, out)

    parser = _command(
        commands, "evaluate", "measure a finished run on another data set: an external test", main
    )
    parser.add_argument("--workdir", required=True, type=place, help="folder of the run")
    parser.add_argument(
        "--data", required=True, metavar="NAME", help="prepared data set; classes match by name"
    )
    parser.add_argument(
        "--split", default="test", help="train, val, test or all (default: %(default)s)"
    )
    parser.add_argument(
        "--split-rule", default="", metavar="RULE", help="split rule that the set was prepared by"
    )
    parser.add_argument(
        "--data-dir", type=place, help="folder of the prepared sets (default: the run's)"
    )
    parser.add_argument(
        "--size",
        type=whole(0, 2**16),
        default=0,
        help="size it was prepared at (default: the run's)",
    )
    parser.add_argument(
        "--out",
        type=place,
        help="folder of the result and its page (default: WORKDIR/external/NAME-SPLIT)",
    )
    parser.add_argument(
        "--batch-size",
        type=whole(1, 2**20),
        default=32,
        help="images per step (default: %(default)s)",
    )


def _protocols(commands: argparse._SubParsersAction) -> None:
    def main(values: argparse.Namespace) -> None:
        from fmi_jax import options

        print(options.detail(values.name) if values.name else options.overview())

    parser = _command(
        commands,
        "protocols",
        "list every protocol, adaptation, head and judge, or the config fields of one",
        main,
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="show this one, with every field that it reads"
    )


def _models(commands: argparse._SubParsersAction) -> None:
    def main(values: argparse.Namespace) -> None:
        from fmi_jax.models.registry import BACKBONES

        lines = [f"{'backbone':<26}{'params':>9}{'patch':>7}{'size':>6}{'features':>10}"]
        for spec in [BACKBONES[values.name]] if values.name else BACKBONES.values():
            lines += ["", *_describe_model(spec, values.weights_dir)]
        if values.name:
            lines += ["", _parameter_table(BACKBONES[values.name])]
        lines += [
            "",
            "patch: pixels per side of a token. size: pixels per side of its training images.",
            "maps: where it looks (protocol saliency). With a classifier every backbone has",
            "Grad-CAM and gradient times input, too.",
            f"[x]: converted, in {values.weights_dir}. To fetch and convert one:",
            f"  python -m weights_convert BACKBONE --download --tag TAG --out {values.weights_dir}",
        ]
        print("\n".join(lines))

    parser = _command(
        commands,
        "models",
        "list every backbone and its public weights, or the parameters of one",
        main,
    )
    parser.add_argument(
        "name", nargs="?", metavar="BACKBONE", help="show this one, with a table of its parameters"
    )
    parser.add_argument(
        "--weights-dir",
        type=place,
        default=Path(BackboneConfig().weights_dir),
        help="converted checkpoints (default: %(default)s)",
    )


def _describe_model(spec: "BackboneSpec", weights_dir: Path) -> list[str]:
    """Describe a backbone: its size, its note, and its public and own weights, as lines of text."""
    on_disk = {
        path.name.removeprefix(f"{spec.name}.").removesuffix(".safetensors")
        for path in weights_dir.glob(f"{spec.name}.*.safetensors")
    }
    lines = [
        f"{spec.name:<26}{spec.num_params / 1e6:>7.1f} M{spec.patch_size:>7}{spec.image_size:>6}"
        f"{spec.arch.feature_width:>10}",
        f"  {spec.note}",
        f"  maps: {', '.join(spec.family.own_maps).replace('_', ' ') or 'none'}",
    ]
    for source in spec.sources:
        mark = "[x]" if source.tag in on_disk else "[ ]"
        lines += [f"  {mark} {source.tag:<20}  {source.licence}", f"      {source.url}"]
    own = sorted(on_disk - {source.tag for source in spec.sources})
    return lines + [f"  [x] {tag:<20}  your own" for tag in own]


def _parameter_table(spec: "BackboneSpec") -> str:
    """Name, shape and size of every parameter of a backbone, and their number."""
    from clu import parameter_overview
    from flax import nnx

    from fmi_jax.models.base import Execution, create_abstract

    state = nnx.state(create_abstract(spec.family, spec.arch, Execution()), nnx.Param)
    values = {".".join(map(str, path)): v.get_value() for path, v in nnx.to_flat_state(state)}
    # clu lists the fields of a dataclass.
    parameter = dataclasses.make_dataclass("Parameter", ("name", "shape", "size"))
    rows = [parameter(name, value.shape, value.size) for name, value in values.items()]
    total = parameter_overview.count_parameters(values)
    return f"{parameter_overview.make_table(rows)}\n{total:,} parameters in {len(rows)} arrays"


def _doctor(commands: argparse._SubParsersAction) -> None:
    def main(values: argparse.Namespace) -> None:
        import shutil

        from fmi_jax.run import launch, runtime

        for name, version in runtime.versions().items():
            print(f"{name:18} {version}")
        try:
            cluster = launch.find_cluster()
            started = f"{cluster.processes} on {cluster.name}" if cluster else "one, by hand"
        except UserError as error:
            started = str(error)
        print(f"{'processes started':18} {started}")
        print(f"{'devices':18} {runtime.device()}")
        print(f"{'devices not used':18} {launch.unused_devices() or 'none'}")
        print(f"{'backbone.dtype':18} {runtime.compute_type()}")
        print(f"{'free disk here':18} {shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB")
        prepared = sorted(p.parent for p in values.data_dir.glob("*/*/manifest.json"))
        print(f"{'prepared data':18} {', '.join(map(str, prepared)) or 'none'}")
        converted = sorted(p.name for p in values.weights_dir.glob("*.safetensors"))
        print(f"{'weights':18} {', '.join(converted) or 'none'}")

    parser = _command(commands, "doctor", "show versions, devices, data and weights", main)
    parser.add_argument("--data-dir", type=place, default=Path("data"), help="prepared data sets")
    parser.add_argument(
        "--weights-dir", type=place, default=Path("weights"), help="converted checkpoints"
    )


if __name__ == "__main__":
    sys.exit(main())
