"""Compile every network for every target, and tabulate what each step needs.

    make test-aot-all                              all of them, hours on two cores
    python -m benchmarks.aot_all --targets h200    some of them

Full depth, bfloat16, images of the size that a backbone was trained on, and also of 224 pixels if
that differs; at 1024 pixels two images a chip, else eight. For H200s and TPUs v5e: the training
step of all networks of `fmi-jax models`; for one network of each family also all protocols whose
programs differ, evaluation, features, and every way to divide a step. For the other targets:
fine-tuning of one network of each family. TPU programs are compiled at the compiler's level O1.

Every program becomes a line of `benchmarks/results/aot.jsonl` as soon as it is compiled. Programs
in that file are not compiled again, so a stopped run can be continued. The table is
`benchmarks/results/aot.md`.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fmi_jax.aot.compiler import Compiler
from fmi_jax.aot.program import Program, program
from fmi_jax.aot.targets import CHIPS, target
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import unknown_name
from fmi_jax.fields import as_dict, flatten
from fmi_jax.guard import guarded
from fmi_jax.models.registry import BACKBONES
from fmi_jax.protocols.registry import FITS

DEFAULT = flatten(as_dict(ExperimentConfig()))
RESULTS = Path(__file__).parent / "results" / "aot.jsonl"
LARGE = 1000  # pixels
# One network of each family, compiled in every protocol and every way to divide a step. The others
# are only fine-tuned, which shows the effect of their size.
CHOSEN = (
    *("deit_base", "dinov2_vitb14", "resnet50", "focalnet_tiny", "sam_vit_b", "seem_focal_tiny"),
    *("clip_vitb16", "blip_base", "swin_tiny", "focal_tiny", "convnext_tiny"),
)
FULL = ("h200", "v5e")  # targets with every program
PROTOCOLS = ("linear_probe", "lora", "attentive_probe", "stacked_finetune")
NO_LORA = ("ResNet", "FocalNet", "SEEM", "ConvNeXt")  # families without attention
WAYS: tuple[dict[str, Any], ...] = (
    {"train.sharding": "fsdp"},
    {"train.sharding": "fsdp", "backbone.remat": True},
    {"train.model_parallel": 2},
    {"optim.accumulate": 2},
)
COLUMNS = (
    *("step", "peak GB", "state GB", "TFLOP", "GB", "kernels", "collectives", "MB", "ideal MB"),
    *("n x n", "compile s"),
)


def programs(name: str) -> Iterator[Program]:
    """Yield every program for a chip."""
    level = "O1" if CHIPS[name].platform == "tpu" else ""
    chips = target(name)

    def of(backbone: str, pixels: int, what: str = "train", **fields: Any) -> Program:
        images = 2 if pixels >= LARGE else 8  # two micro-batches, or two chips along "model"
        named = {field.replace("__", "."): value for field, value in fields.items()}
        return program(
            chips,
            what,
            fields={
                "backbone.name": backbone,
                "image_size": pixels,
                "train.batch_size": chips.count * images,
                **named,
            },
            optimization=level,
        )

    for backbone, spec in BACKBONES.items():
        pixels = spec.image_size
        if backbone.endswith("_nano") or (name not in FULL and backbone not in CHOSEN):
            continue
        for size in sorted({pixels, 224} if backbone in CHOSEN else {pixels}):
            yield of(backbone, size)
        if backbone not in CHOSEN or name not in FULL:
            continue
        for protocol in PROTOCOLS:
            if protocol != "lora" or spec.family.__name__ not in NO_LORA:
                yield of(backbone, pixels, protocol=protocol)
        yield of(backbone, pixels, "eval")
        yield of(backbone, pixels, "features")
        for way in WAYS:
            yield of(backbone, pixels, **{k.replace(".", "__"): v for k, v in way.items()})
    if name in FULL:
        for protocol in FITS:
            yield of("deit_base", 224, protocol=protocol)
    yield of("dinov2_vitb14", 1022)
    yield of("dinov2_vitl14", 1022)


def key(asked: Mapping[str, Any]) -> str:
    """Key of a result: target, step, and the config fields that differ from their defaults.

    A field added later changes no key.
    """
    config = flatten(asked["config"])
    set_fields = {n: value for n, value in config.items() if DEFAULT.get(n, value) != value}
    names = ("target", "what", "optimization")
    return json.dumps({**{n: asked[n] for n in names}, "config": set_fields}, sort_keys=True)


def done(results: Path) -> dict[str, dict[str, Any]]:
    """Read the stored results, by key; a truncated line does not count."""
    found = {}
    for line in results.read_text().splitlines() if results.exists() else ():
        try:
            result = json.loads(line)
        except ValueError:
            continue
        found[key(result)] = result
    return found


def compile_all(name: str, results: Path) -> None:
    """Compile the missing programs for a chip, and store each result at once."""
    there = done(results)
    missing = [p for p in programs(name) if key(p.to_json()) not in there]
    print(f"{name}: {len(missing)} programs to compile", flush=True)
    if not missing:
        return
    with Compiler(name) as compiler:
        for number, asked in enumerate(missing, 1):
            result = {**asked.to_json(), "title": asked.title(), **compiler.report(asked)}
            with results.open("a") as file:
                file.write(json.dumps(result) + "\n")
            said = result.get("error", f"{result.get('peak_bytes', 0) / 1e9:.2f} GB")
            print(f"{name} {number}/{len(missing)} {row_title(result)}: {said}", flush=True)


def row_title(result: Mapping[str, Any]) -> str:
    """Describe a program in a few words."""
    config = result["config"]
    parts = [config["backbone"]["name"], str(config["image_size"]), config["protocol"]]
    parts += [result["what"]] if result["what"] != "train" else []
    parts += ["fsdp"] if config["train"]["sharding"] == "fsdp" else []
    parts += ["remat"] if config["backbone"]["remat"] else []
    parts += ["model 2"] if config["train"]["model_parallel"] > 1 else []
    parts += ["accumulate 2"] if config["optim"]["accumulate"] > 1 else []
    return (
        f"{', '.join(parts)}, {config['train']['batch_size'] // result['target']['count']} a chip"
    )


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Format all results in Markdown, one section for each target; numbers are for one chip."""
    text = ["# Every network, compiled for every target", ""]
    text += ["Numbers are of one chip. `python -m benchmarks.aot_all` writes this file.", ""]
    for name in dict.fromkeys(result["target"]["name"] for result in results):
        rows = [result for result in results if result["target"]["name"] == name]
        count = rows[0]["target"]["count"]
        text += [f"## {count} x {name}", "", f"| {' | '.join(COLUMNS)} |"]
        text += [f"| {' | '.join('---' for _ in COLUMNS)} |"]
        text += [f"| {' | '.join(cells(result))} |" for result in rows]
        text += [""]
    return "\n".join(text)


def cells(result: Mapping[str, Any]) -> list[str]:
    """Cells of one row of the table."""
    title = row_title(result)
    if "error" in result:
        reason = result["error"].splitlines()[0].replace("|", "/")[:120]
        return [title, f"**{reason}**", *[""] * (len(COLUMNS) - 2)]
    moved = result["collectives"]
    return [
        title,
        f"{result['peak_bytes'] / 1e9:.2f}" + ("" if result["fits"] else " **does not fit**"),
        f"{result['state_bytes'] / 1e9:.2f}",
        f"{result['flops'] / 1e12:.2f}",
        f"{result['bytes_accessed'] / 1e9:.1f}",
        f"{result['kernels']:,}",
        ", ".join(f"{kind} {count}" for kind, (count, _) in sorted(moved.items())),
        f"{sum(size for _, size in moved.values()) / 1e6:.1f}",
        f"{result['ideal_bytes'] / 1e6:.1f}",
        ", ".join(result["n_by_n"][:2]),
        f"{result['compile_seconds']:.0f}",
    ]


def main(argv: Sequence[str]) -> None:
    """Compile the missing programs, two targets side by side, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=list(CHIPS), metavar="TARGET")
    parser.add_argument("--count", action="store_true", help="say how many there are, and end")
    args = parser.parse_args(argv)
    for name in args.targets:
        if name not in CHIPS:
            raise unknown_name("target", name, CHIPS)
    if args.count:
        for name in args.targets:
            print(f"{name}: {len(list(programs(name)))} programs")
        return
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: compile_all(name, RESULTS), args.targets))
    kept = done(RESULTS)
    wanted = [key(p.to_json()) for name in args.targets for p in programs(name)]
    RESULTS.with_suffix(".md").write_text(table([kept[k] for k in wanted if k in kept]))


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
