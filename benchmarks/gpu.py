"""Check on one GPU: the same numbers as a CPU, and the speed beside timm's.

    python benchmarks/gpu.py                under ten minutes on one GPU
    python benchmarks/gpu.py --tiny         a dry run of everything on a CPU, in a minute

Needs jax with its GPU plugin, flax and optax. The timm side needs torch and timm, and is left out
without them. No images are read.

First, a training step of every family (cut to two blocks) in bfloat16 on the device, and in
float32 on the CPU: loss, norm of the gradient, and the cosine between both gradients. Then whole
training steps: seconds, share of the device's bfloat16 peak (MFU) and peak memory, beside timm's
network under `torch.compile` with flash attention, in bfloat16, at the same batch. Both use
clipped AdamW. The FLOPs in MFU are those of our program, for both sides.

Every part runs in a process of its own, and no new part begins after --minutes.

THIS HAS NOT RUN ON A GPU YET: only `--tiny` has, on a CPU. All that is known of the GPU programs
comes from compiling them without a GPU (`python -m benchmarks.aot`).
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 5
STEPS = 10  # timed steps, after two that compile and warm up
LARGEST_LOSS_ERROR, LEAST_COSINE = (
    0.05,
    0.95,
)  # limits for bfloat16 beside float32, for a network with random weights


@dataclasses.dataclass(frozen=True)
class Row:
    """A network to time.

    Attributes:
      title: title in the table.
      backbone: name of our backbone.
      pixels, batch: side and number of the images of a step.
      timm: timm's name for the network; empty if it has none.
      options: arguments of `timm.create_model`.
      blocks: number of blocks to keep in our backbone; 0: all.
    """

    title: str
    backbone: str
    pixels: int
    batch: int
    timm: str
    options: tuple[tuple[str, Any], ...] = ()
    blocks: int = 0


FAMILIES = (
    "deit_tiny",
    "dinov2_vits14",
    "resnet50",
    "focalnet_tiny",
    "sam_vit_b",
    "seem_focal_tiny",
    "clip_vitb16",
    "blip_base",
    "swin_tiny",
    "focal_tiny",
    "convnext_tiny",
)
ROWS = (
    Row("ViT-B 224", "deit_base", 224, 64, "deit_base_patch16_224"),
    Row("DINOv2-B 1022", "dinov2_vitb14", 1022, 4, "vit_base_patch14_dinov2",
        (("img_size", 1022),)),
    Row("SAM-B 1024", "sam_vit_b", 1024, 4, "samvit_base_patch16"),
    Row("ResNet-50 224", "resnet50", 224, 64, "resnet50"),
)  # fmt: skip
TINY_FAMILIES = ("deit_nano", "resnet_nano")
TINY_ROWS = (
    Row("nano", "deit_nano", 32, 2, "vit_tiny_patch16_224", (("img_size", 32), ("depth", 1)), 1),
)
PIXELS, BATCH = 224, 4  # images of the comparison
TINY_PIXELS = 32


def main() -> int:
    args = arguments()
    if args.side:
        print(json.dumps(SIDES[args.side](args)))
        return 0
    begin = time.monotonic()
    families = args.families or (TINY_FAMILIES if args.tiny else FAMILIES)
    rows = TINY_ROWS if args.tiny else ROWS
    results: dict[str, Any] = {"device": part("device", args), "families": [], "rows": []}
    print(f"device: {results['device']['kind']}")
    wrong = 0
    for name in families:
        if over(begin, args.minutes):
            break
        found = compared(name, args)
        wrong += not found["agrees"]
        results["families"].append(found)
        print(found["line"], flush=True)
    for row in rows:
        if over(begin, args.minutes):
            break
        found = {"row": row.title, "ours": part("ours", args, row=row.title)}
        if all(importlib.util.find_spec(name) for name in ("torch", "timm")):
            found["timm"] = part("timm", args, row=row.title)
        results["rows"].append(found)
        print(timing(found, results["device"]["peak"]), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    return int(wrong > 0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small networks, on the CPU")
    parser.add_argument("--minutes", type=float, default=10, help="begin nothing after these")
    parser.add_argument("--families", nargs="+", metavar="BACKBONE", help="compare these alone")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    for hidden in ("--side", "--backbone", "--row", "--dtype", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser.parse_args()


def over(begin: float, minutes: float) -> bool:
    if time.monotonic() - begin < 60 * minutes:
        return False
    print(f"{minutes:g} minutes are over: the rest is left out.")
    return True


def part(side: str, args: argparse.Namespace, *, cpu: bool = False, **options: str) -> Any:
    """Run a side in a process of its own; returns its output, or `{"error": ...}` if it fails."""
    command = [sys.executable, __file__, "--side", side]
    command += [text for name, value in options.items() for text in (f"--{name}", value)]
    env = dict(os.environ)
    if args.tiny:
        command.append("--tiny")
    if args.tiny or cpu:
        env["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def compared(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Compare a step of a family in bfloat16 on the device with float32 on the CPU."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        files = {"bfloat16": f"{folder}/device.npz", "float32": f"{folder}/cpu.npz"}
        sides = {
            dtype: part("step", args, cpu=dtype == "float32", backbone=name, dtype=dtype, out=file)
            for dtype, file in files.items()
        }
        for dtype, side in sides.items():
            if "error" in side:
                line = f"{name}: {dtype} FAILED: {side['error']}"
                return {"backbone": name, "agrees": False, "line": line, "error": side["error"]}
        low, high = (np.load(file) for file in files.values())
        dot = sum(float((low[key] * high[key]).sum()) for key in high)
        lengths = [
            sum(float((each[key] ** 2).sum()) for key in high) ** 0.5 for each in (low, high)
        ]
    cosine = dot / max(lengths[0] * lengths[1], 1e-30)
    losses = sides["bfloat16"]["loss"], sides["float32"]["loss"]
    error = abs(losses[0] - losses[1]) / abs(losses[1])
    agrees = error <= LARGEST_LOSS_ERROR and cosine >= LEAST_COSINE
    line = (
        f"{name}: loss {losses[0]:.4f} beside {losses[1]:.4f}, norm of the gradient"
        f" {lengths[0] / max(lengths[1], 1e-30):.3f} of float32's, cosine {cosine:.4f}"
        + ("" if agrees else "  DISAGREES")
    )
    return {"backbone": name, "agrees": agrees, "line": line, "loss": losses, "cosine": cosine}


def timing(found: dict[str, Any], peak: float | None) -> str:
    """Format the times of a row for people."""
    lines = []
    for side in ("ours", "timm"):
        if side not in found:
            continue
        values = found[side]
        if "error" in values:
            lines.append(f"{found['row']}: {side} FAILED: {values['error']}")
            continue
        flops = found["ours"].get("flops")
        mfu = f"{flops / values['seconds'] / peak:.1%}" if flops and peak else "not known"
        memory = f"{values['memory'] / 1e9:.2f} GB" if values["memory"] else "not known"
        spread = f"{1e3 * values['seconds']:.1f} ms ({1e3 * values['fastest']:.1f} the fastest)"
        lines.append(f"{found['row']}: {side} {spread}, MFU {mfu}, memory {memory}")
    return "\n".join(lines)


def without_jaxtyping() -> None:
    """Make the package importable without jaxtyping, which only annotates here."""
    if importlib.util.find_spec("jaxtyping"):
        return

    class Anything:
        def __class_getitem__(cls, shape: Any) -> type:
            return cls

    module = types.ModuleType("jaxtyping")
    module.__getattr__ = lambda name: Anything  # type: ignore[method-assign]
    sys.modules["jaxtyping"] = module


@dataclasses.dataclass
class Training:
    """Our training step, and its arguments.

    Attributes:
      step: function `(state, frozen, batch) -> (state, scalars)`.
      state: training state before the first step.
      batch: drawn images and labels.
    """

    step: Callable[..., Any]
    state: Any
    batch: dict[str, Any]


def training(backbone: str, pixels: int, batch: int, dtype: str, *, blocks: int = 0) -> Training:
    """Make the package's own step for a classifier on `backbone`, on drawn images.

    Args:
      backbone: name of the backbone.
      pixels, batch: side of the images in pixels, and number of images.
      dtype: compute type.
      blocks: number of blocks to keep; 0: all.
    """
    sys.path.insert(0, str(ROOT))
    without_jaxtyping()
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from fmi_jax import parallel
    from fmi_jax.models.base import Execution
    from fmi_jax.models.registry import BACKBONES
    from fmi_jax.settings import OptimConfig
    from fmi_jax.tasks.classification import Multiclass
    from fmi_jax.training import optim
    from fmi_jax.training.partition import named_values, partition
    from fmi_jax.training.step import initial_state, make_train_step, on_inputs

    spec = BACKBONES[backbone]
    arch = spec.arch.sized(pixels, pixels)
    # Truncated even if all blocks stay: this removes parts that no feature depends on.
    arch = arch.truncated(min(blocks or arch.num_blocks, arch.num_blocks) - 1)
    execution = Execution(dtype=jnp.dtype(dtype))

    class Classifier(nnx.Module):
        """A linear head, as the program's, whose module needs packages that are not here."""

        def __init__(self, net: Any, rngs: nnx.Rngs):
            self.backbone = net
            self.head = nnx.Linear(net.arch.feature_width, CLASSES, rngs=rngs)

        def __call__(self, images: Any, *, rngs: nnx.Rngs | None = None) -> Any:
            pooled = self.backbone.features(images, rngs=rngs).pooled
            return self.head(pooled.astype(jnp.float32))

    def create() -> nnx.Module:
        rngs = nnx.Rngs(0)
        net = spec.family(arch, execution, rngs=rngs)  # type: ignore[call-arg]
        return Classifier(net, rngs)

    structure = partition(nnx.eval_shape(create), lambda name: True)
    mesh = parallel.make_mesh(1, devices=jax.devices()[:1])
    shapes = structure.shapes(tuple(structure.variables))
    placement = parallel.parameter_shardings(mesh, shapes, "replicated")
    arrays = jax.jit(lambda: named_values(create()), out_shardings=placement)()
    schedule = optim.relative_rate(OptimConfig(), 0, 1000)
    optimizer = optim.make_optimizer(OptimConfig(), schedule)
    mean, std = np.float32(127.5), np.float32(64)

    def augment(keys: Any, images: Any) -> Any:
        del keys
        return ((images.astype(jnp.float32) - mean) / std).astype(execution.dtype)

    step = make_train_step(
        structure, optimizer, schedule, on_inputs(augment),
        loss=Multiclass().loss, accumulate=1, mesh=mesh, placement=placement,
        dtype=execution.dtype,
    )  # fmt: skip
    state = initial_state(structure, arrays, optimizer, mesh, placement, learning_rate=1e-4, seed=0)
    rng = np.random.default_rng(0)
    rows = {
        "inputs": rng.integers(0, 256, (batch, pixels, pixels, 3)).astype(np.uint8),
        "labels": rng.integers(0, CLASSES, batch).astype(np.int32),
        "mask": np.ones(batch, np.float32),
        "index": np.arange(batch, dtype=np.int32),
    }
    return Training(step, state, parallel.to_devices(mesh, rows))  # type: ignore[arg-type]


def step_side(args: argparse.Namespace) -> dict[str, float]:
    """Take one step; write the gradient as the optimizer saw it, its first moment, to a file."""
    import numpy as np

    pixels = TINY_PIXELS if args.tiny else PIXELS
    blocks = 1 if args.tiny else 3 if args.backbone.startswith("sam") else 2
    ours = training(args.backbone, pixels, BATCH, args.dtype, blocks=blocks)
    state, scalars = ours.step(ours.state, {}, ours.batch)
    moments = {
        name: np.asarray(value, np.float64) for name, value in first_moments(state.opt_state)
    }
    np.savez(args.out, **moments)  # type: ignore[arg-type]
    return {name: float(scalars[name]) for name in ("loss", "grad_norm")}


def first_moments(opt_state: Any) -> Iterator[tuple[str, Any]]:
    for part in opt_state:
        if hasattr(part, "mu"):
            yield from part.mu.items()


def ours_side(args: argparse.Namespace) -> dict[str, Any]:
    """Measure seconds, memory and FLOPs of our step."""
    row = row_of(args)
    ours = training(row.backbone, row.pixels, row.batch, "bfloat16", blocks=row.blocks)
    import jax

    from fmi_jax.aot import hlo, products

    compiled = ours.step.lower(ours.state, {}, ours.batch).compile()  # type: ignore[attr-defined]
    flops, _ = products.flops(hlo.read(compiled.as_text()))
    state = ours.state

    def step() -> None:
        nonlocal state
        state, scalars = compiled(state, {}, ours.batch)
        jax.block_until_ready(scalars)

    times = timed(step)
    memory = jax.devices()[0].memory_stats() or {}  # a CPU has none
    return {"flops": flops, **times, "memory": memory.get("peak_bytes_in_use")}


def timm_side(args: argparse.Namespace) -> dict[str, Any]:
    """Measure seconds and memory of timm's network under `torch.compile`; eager in a dry run."""
    import torch

    # timm imports torchvision, whose compiled operators CPU-only installs may lack.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    row = row_of(args)
    device = "cpu" if args.tiny else "cuda"
    torch.manual_seed(0)
    model = timm.create_model(row.timm, num_classes=CLASSES, **dict(row.options)).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=not args.tiny)
    run = model if args.tiny else torch.compile(model)
    images = torch.randn(row.batch, 3, row.pixels, row.pixels, device=device)
    labels = torch.randint(0, CLASSES, (row.batch,), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(run(images), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()  # waits for the device

    found = timed(step)
    return {**found, "memory": None if args.tiny else torch.cuda.max_memory_allocated()}


def timed(step: Callable[[], None]) -> dict[str, float]:
    """Seconds of a step: the median, and the fastest."""
    for _ in range(2):
        step()
    times = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return {"seconds": statistics.median(times), "fastest": min(times)}


def device_side(args: argparse.Namespace) -> dict[str, Any]:
    """Describe the device, with its bfloat16 peak in FLOP/s if it is known."""
    del args
    sys.path.insert(0, str(ROOT))
    import jax

    from fmi_jax.aot.targets import CHIPS

    kind = jax.devices()[0].device_kind
    known = [chip.flops for name, chip in CHIPS.items() if name in kind.lower()]
    return {"kind": kind, "peak": known[0] if known else None}


def row_of(args: argparse.Namespace) -> Row:
    return next(row for row in (*ROWS, *TINY_ROWS) if row.title == args.row)


SIDES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "device": device_side,
    "step": step_side,
    "ours": ours_side,
    "timm": timm_side,
}

if __name__ == "__main__":
    sys.exit(main())
