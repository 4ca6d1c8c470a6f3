"""Comparison of two trees: names of cells, runs of every protocol, compiled programs.

    python benchmarks/same_numbers.py record before.json     on one tree
    python benchmarks/same_numbers.py compare before.json    on another: what differs, exit code 1
    python benchmarks/same_numbers.py record before.json --parts cells runs

The parts:

* `cells`: the ids of all cells of all studies (a changed id runs a finished cell again);
* `runs`: every protocol on a ViT and on a ResNet, eight steps on drawn photographs: SHA-256 of the
  trained parameters and of `predictions.csv`, the losses and the metrics to the last digit;
* `programs`: FLOPs, bytes, collectives, kernels and peak of twelve programs compiled ahead of time
  (needs the compilers, `make .venv-aot`).

Runs go through `run.py`, as a user's do. Do not compare the numbers of two machines: another CPU
rounds differently.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IMAGES, SIDE, STEPS = 60, 32, 8
BACKBONES = ("deit_nano", "resnet_nano")
FIELDS = {
    "image_size": SIDE,
    "data.name": "aptos2019",
    "data.prepared_size": SIDE,
    "train.batch_size": 8,
    "train.max_steps": STEPS,
    "train.eval_every_epochs": 1.0,
    "train.log_every_steps": 1,
    "train.bootstrap_samples": 50,
    "optim.warmup_steps": 2,
}
# Fields that single protocols need beside these.
OWN: Mapping[str, Mapping[str, Any]] = {
    "stacked_probe": {"transformer.name": "deit_nano"},
    "stacked_finetune": {"transformer.name": "deit_nano"},
    "partial": {"backbone.frozen_blocks": 1},
    "stacked_partial": {"backbone.frozen_blocks": 1, "transformer.name": "deit_nano"},
    "probe_grid": {"probe_grid.learning_rates": "(1e-3, 1e-2)", "probe_grid.seeds": 2},
    "knn": {"knn.k": "(3, 5)"},
    "cka": {"cka.batch_size": 8, "cka.other": "('deit_tiny',)"},
}
SKIPPED = {("timing", name): "its numbers are times" for name in BACKBONES} | {
    ("lora", "resnet_nano"): "a ResNet has no linear layer to adapt",
    ("saliency", "resnet_nano"): "an untrained ResNet has no attention and no classifier",
}
CHANGES = {"seconds", "started", "finished", "machine", "data_dir", "workdir", "seal"}
PROGRAMS = (
    ("h200", "deit_base", {}),
    ("h200", "deit_base", {"train.sharding": "fsdp"}),
    ("h200", "deit_base", {"train.model_parallel": 2}),
    ("h200", "deit_base", {"optim.accumulate": 4}),
    ("h200", "dinov2_vitb14", {"image_size": 1022, "train.batch_size": 8}),
    ("h200", "resnet50", {}),
    ("h200", "sam_vit_b", {"image_size": 1024, "train.batch_size": 8, "backbone.last_block": 2}),
    ("v5e", "deit_base", {"train.batch_size": 32}),
    ("v5e", "deit_base", {"train.batch_size": 32, "train.sharding": "fsdp"}),
    ("v5e", "dinov2_vitb14", {"image_size": 1022, "train.batch_size": 4}),
    ("v5e", "resnet50", {"train.batch_size": 32}),
    ("v5e", "swin_tiny", {"train.batch_size": 32}),
)
COMPILED = ("flops", "bytes_accessed", "collectives", "kernels", "peak_bytes", "state_bytes")


def cells() -> Iterator[tuple[str, Any]]:
    """Yield a hash of the cell ids of every setting of every study (16 digits of the SHA-256)."""
    from fmi_jax.study.plan import make_plan
    from fmi_jax.study.registry import STUDIES

    for name, study in STUDIES.items():
        plan = make_plan(study)
        for setting in plan.settings:
            ids = "\n".join(cell.id for cell in plan.candidates(setting))
            title = ", ".join(str(value) for value in dict(setting.at).values())
            yield f"{name}: {title}", hashlib.sha256(ids.encode()).hexdigest()[:16]


def runs() -> Iterator[tuple[str, Any]]:
    """Run every protocol on both backbones, and yield the outcomes."""
    from fmi_jax.protocols.registry import PROTOCOLS

    with tempfile.TemporaryDirectory() as folder:
        raw, data = Path(folder, "raw"), Path(folder, "data")
        call("-m", "fmi_jax.cli", "draw", "aptos2019", raw, "--images", IMAGES)
        call(
            *("-m", "fmi_jax.cli", "prepare", "aptos2019", "--source", raw),
            *("--size", SIDE, "--data-dir", data),
        )
        config = Path(folder, "config.py")
        config.write_text(
            "from fmi_jax.config import ExperimentConfig\n"
            "def get_config(arg=''):\n    return ExperimentConfig()\n"
        )
        for protocol in PROTOCOLS:
            for backbone in BACKBONES:
                if (protocol, backbone) in SKIPPED:
                    continue
                workdir = Path(folder, f"{protocol}-{backbone}")
                fields = {**FIELDS, **OWN.get(protocol, {}), "data.data_dir": data}
                fields |= {"backbone.name": backbone, "protocol": protocol}
                flags = [f"--config.{name}={value}" for name, value in fields.items()]
                call("run.py", f"--config={config}", f"--workdir={workdir}", *flags)
                yield f"{protocol}, {backbone}", outcome(workdir)


def outcome(workdir: Path) -> dict[str, Any]:
    """Collect the outcome of a finished run, without values that differ from run to run."""
    found: dict[str, Any] = {"result": without(json.loads((workdir / "result.json").read_text()))}
    predictions, scalars = workdir / "predictions.csv", workdir / "metrics.jsonl"
    if predictions.exists():
        found["predictions"] = hashlib.sha256(predictions.read_bytes()).hexdigest()
    if scalars.exists():
        rows = map(json.loads, scalars.read_text().splitlines())
        found["losses"] = [row["train/loss"] for row in rows if "train/loss" in row]
    if (workdir / "checkpoints").exists():
        found["parameters"] = parameters(workdir)
    return found


def parameters(workdir: Path) -> str:
    """SHA-256 of the best network's arrays, by name."""
    import numpy as np

    from fmi_jax.run.network import read_trained

    digest = hashlib.sha256()
    for name, array in sorted(read_trained(workdir).arrays.items()):
        digest.update(name.encode())
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()


def without(value: Any) -> Any:
    """Remove times and places from a result."""
    if isinstance(value, dict):
        return {k: without(v) for k, v in value.items() if k not in CHANGES}
    return [without(v) for v in value] if isinstance(value, list) else value


def programs() -> Iterator[tuple[str, Any]]:
    """Compile the twelve programs, cut to two or three blocks, and yield their figures."""
    from fmi_jax.aot.compiler import Compiler
    from fmi_jax.aot.program import program
    from fmi_jax.aot.targets import target

    for name in dict.fromkeys(name for name, _, _ in PROGRAMS):
        with Compiler(name) as compiler:
            for chip, backbone, own in PROGRAMS:
                if chip != name:
                    continue
                fields = {
                    "backbone.name": backbone,
                    "backbone.last_block": 1,
                    "image_size": 224,
                    "train.batch_size": 64,
                    **own,
                }
                level = "O1" if name == "v5e" else ""
                asked = program(target(name), "train", fields=fields, optimization=level)
                report = compiler.report(asked)
                if "error" in report:
                    raise SystemExit(f"{asked.title()}: {report['error']}")
                yield asked.title(), {key: report[key] for key in COMPILED}


PARTS: Mapping[str, Callable[[], Iterator[tuple[str, Any]]]] = {
    "cells": cells,
    "runs": runs,
    "programs": programs,
}


def call(*arguments: object) -> None:
    """Run a command of this tree in a process of its own, on one device."""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}:\n{done.stdout}{done.stderr}")


def differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """Yield the differences between two records, a line each."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            inner = f"{where} / {key}" if where else key
            if key not in now or key not in before:
                yield f"{inner}: {'missing' if key not in now else 'new'}"
            else:
                yield from differences(before[key], now[key], inner)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from differences(one, other, f"{where} / {i}")
    elif before != now:
        yield f"{where}: {str(before)[:80]} -> {str(now)[:80]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, help="all of them, or what was recorded"
    )
    args = parser.parse_args()
    kept = json.loads(args.file.read_text()) if args.what == "compare" else dict.fromkeys(PARTS)
    if missing := sorted({*(args.parts or ())} - {*kept}):
        parser.error(f"{args.file} has no {missing[0]!r}: expected some of {', '.join(kept)}")
    parts = args.parts or list(kept)
    found: dict[str, Any] = {}
    for part in parts:
        found[part] = {}
        for name, value in PARTS[part]():
            print(f"{part}: {name}", file=sys.stderr, flush=True)
            found[part][name] = value
    if args.what == "record":
        args.file.write_text(json.dumps(found, indent=1) + "\n")
    else:
        from fmi_jax.artifacts.result import current

        for run in kept.get("runs", {}).values():  # an earlier tree may have written another format
            run["result"] = current(run["result"], args.file)
        lines = list(differences({part: kept[part] for part in parts}, found))
        print("\n".join(lines) or "nothing differs")
        sys.exit(bool(lines))
