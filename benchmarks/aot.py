"""Compile a step of any config for TPUs or GPUs that are not attached, and report what it needs.

    python -m benchmarks.aot --target h200 --backbone dinov2_vitb14 --image-size 1022 --batch 8

Needs the compilers, in an environment of their own: `make .venv-aot`. Prints a table; with
`--json` also one JSON object as the last line (`fmi_jax/aot/report.py` explains its keys).
Exit codes: 0 done, 1 it does not compile or does not fit into the memory, 2 wrong usage.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from fmi_jax.aot.compiler import Compiler
from fmi_jax.aot.program import WHAT, Program, program
from fmi_jax.aot.targets import CHIPS, target
from fmi_jax.errors import UsageError, UserError
from fmi_jax.guard import guarded

# Options that are config fields: the field's name, and the type of the option.
FIELDS = {
    "backbone": ("backbone.name", str),
    "protocol": ("protocol", str),
    "image_size": ("image_size", int),
    "batch": ("train.batch_size", int),
    "sharding": ("train.sharding", str),
    "model_parallel": ("train.model_parallel", int),
    "accumulate": ("optim.accumulate", int),
    "last_block": ("backbone.last_block", int),
    "dtype": ("backbone.dtype", str),
}


class Parser(argparse.ArgumentParser):
    """Argument parser that turns wrong usage into a `UsageError`."""

    def error(self, message: str) -> Any:
        raise UsageError(f"{message}; see python -m benchmarks.aot --help.")


def parse(argv: Sequence[str]) -> tuple[Program, bool]:
    """Parse the command line into a program, and whether JSON is asked for."""
    parser = Parser(
        prog="python -m benchmarks.aot", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--target", required=True, help=f"{', '.join(CHIPS)}; with a topology: v5e:4x4, h200:2x8")
    add("--devices", type=int, default=0, help="use the first N chips; default: one host"
        " (8 GPUs, 4 TPU chips), or the topology that --target gives")  # fmt: skip
    add("--what", default="train", choices=WHAT, help="which step (default: train)")
    add("--backbone", help="a name of `fmi-jax models`")
    add("--protocol", help="a name of `fmi-jax protocols`, such as finetune (the default)")
    add("--image-size", type=int, help="pixels a side")
    add("--batch", type=int, help="images of a step, over all chips")
    add("--sharding", help="replicated or fsdp")
    add("--model-parallel", type=int, help='chips along "model"')
    add("--remat", action="store_true", help="recompute blocks in the backward pass")
    add("--accumulate", type=int, help="micro-batches of a step")
    add("--last-block", type=int, help="cut the network after this block")
    add("--dtype", help="auto, bfloat16 or float32")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="any config field")
    add("--optimization", default="", choices=("", "O1"), help="O1: the TPU compiler takes a"
        " tenth of the time, and its cycles are no estimate of a run")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object on the last line")
    args = parser.parse_args(argv)
    fields: dict[str, Any] = {
        name: getattr(args, option)
        for option, (name, _) in FIELDS.items()
        if getattr(args, option) is not None
    }
    if args.remat:
        fields["backbone.remat"] = True
    chips = target(args.target, args.devices)
    asked = program(
        chips, args.what, fields=fields, assignments=args.set, optimization=args.optimization
    )
    return asked, args.json


def table(report: dict[str, Any]) -> str:
    """Format a report as a table for people."""
    chip = CHIPS[report["target"]["name"]]
    rows = [
        ("state", size(report["state_bytes"])),
        ("activations", size(report["activation_bytes"])),
        ("peak", f"{size(report['peak_bytes'])} of {size(report['memory_bytes'])}"),
        ("FLOPs", f"{report['flops'] / 1e12:.3f} T: {1e3 * report['flops'] / chip.flops:.2f} ms"),
        ("bytes", f"{report['bytes_accessed'] / 1e9:.2f} GB:"
         f" {1e3 * report['bytes_accessed'] / chip.bandwidth:.2f} ms"),
        ("cycles", f"{report['cycles'] / 1e6:.2f} M" if report["cycles"] else "not estimated"),
        ("kernels", f"{report['kernels']:,}"),
    ]  # fmt: skip
    for kind, (count, total) in sorted(report["collectives"].items()):
        rows.append((kind, f"{count}, {total / 1e6:.2f} MB"))
    total = sum(size for _, size in report["collectives"].values())
    wanted = ", ".join(f"{kind} {n / 1e6:.2f}" for kind, n in report["ideal"].items())
    rows += [
        ("communicated", f"{total / 1e6:.2f} MB, ideally {report['ideal_bytes'] / 1e6:.2f}"
         + (f" ({wanted})" if wanted else "")),
        ("n x n", ", ".join(report["n_by_n"]) or "none"),
        ("compiled in", f"{report['compile_seconds']} s, traced in {report['lower_seconds']} s"),
    ]  # fmt: skip
    if report["uncounted"]:
        rows.append(("not counted", f"FLOPs of {', '.join(report['uncounted'])}"))
    lines = [report["title"], "On one chip; times are bounds by the data sheet:"]
    return "\n".join(lines + [f"  {name:<20} {text}" for name, text in rows])


def size(count: float) -> str:
    """Format a number of bytes."""
    return f"{count / 1e9:.3f} GB"


def main(argv: Sequence[str]) -> None:
    """Compile and print the report; raise `UserError` if it does not compile or fit."""
    asked, as_json = parse(argv)
    with Compiler(asked.target.name) as compiler:
        report = compiler.report(asked)
    if "error" in report:
        kind = UsageError if report["exit_code"] == UsageError.exit_code else UserError
        if as_json:
            print(json.dumps({**asked.to_json(), **report}))
        raise kind(f"{asked.title()}: {report['error']}")
    print(table(report))
    if as_json:
        print(json.dumps(report))
    if not report["fits"]:
        raise UserError(
            f"the program does not fit: it needs {size(report['peak_bytes'])} of the"
            f" {size(report['memory_bytes'])} of one {asked.target.name}. Fewer images, more chips,"
            " --remat or --sharding=fsdp need less."
        )


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
