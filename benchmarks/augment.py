"""Time of augmentation, 256 pixels to 224: ours on the device, torchvision's on PIL.

    python benchmarks/augment.py [BATCH ...]

Ours is one compiled program on JAX's default device. torchvision's is what the study ran in its
loader: one image after the other on one CPU core. The two run in turn; the fastest round counts,
because other programs on the machine only add time. On a CPU the table also has the share of a
training step of DeiT-B, for 8 images. Prints a table; on a CPU also writes
`benchmarks/results/augment_cpu.json`.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import train_step
from PIL import Image

from fmi_jax.augment import augment, dino_views, views
from fmi_jax.settings import AugmentConfig

# torchvision lacks operators with a torch of another build; it imports once these exist.
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision.transforms as T  # noqa: E402
from PIL import ImageFilter  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "augment_cpu.json"
ROUNDS = 10
MEAN, STD = (0.41, 0.22, 0.07), (0.27, 0.15, 0.08)

STUDY = AugmentConfig()
EVERY = dataclasses.replace(
    STUDY,
    rotation_probability=0.5,
    grayscale_probability=0.2,
    blur_probability=0.2,
    affine_probability=0.5,
    perspective_probability=0.5,
    solarize_probability=0.2,
    erase_probability=0.5,
)

crop_and_flip = (
    T.CenterCrop(224),
    T.RandomResizedCrop(224, scale=(0.8, 1.2)),
    T.RandomVerticalFlip(),
    T.RandomHorizontalFlip(),
)
jitter = T.RandomApply([T.ColorJitter(0.2, 0.2, 0.1, 0.1)], p=0.8)
to_tensor = (T.ToTensor(), T.Normalize(MEAN, STD))


def blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(np.random.uniform(0.1, 2)))  # noqa: NPY002


THEIRS = {
    "study": T.Compose([*crop_and_flip, jitter, *to_tensor]),
    "every operation": T.Compose(
        [
            *crop_and_flip,
            T.RandomApply([T.RandomRotation(5)]),
            jitter,
            T.RandomGrayscale(0.2),
            T.RandomApply([T.Lambda(blur)], p=0.2),
            T.RandomApply([T.RandomAffine(5, (0.1, 0.3), (0.1, 3.3), 0.2)]),
            T.RandomPerspective(0.2),
            T.RandomSolarize(128, 0.2),
            *to_tensor,
            T.RandomErasing(0.5),
        ]
    ),
}
OURS = {
    "study": lambda keys, x: augment(keys, x, STUDY, 224, MEAN, STD, jnp.float32),
    "every operation": lambda keys, x: augment(keys, x, EVERY, 224, MEAN, STD, jnp.float32),
    "8 DINO views": lambda keys, x: views(keys, x, dino_views(), MEAN, STD, jnp.float32),
}


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(what: str, batch: int) -> dict[str, float]:
    """Measure seconds to compile, and per batch for each side."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, 256, 256, 3), dtype=np.uint8)
    on_device = jax.device_put(images)
    keys = jax.random.split(jax.random.key(0), batch)
    start = time.perf_counter()
    program = jax.jit(OURS[what]).lower(keys, on_device).compile()
    row = {"compile": time.perf_counter() - start}
    sides = {"ours": lambda: jax.block_until_ready(program(keys, on_device))}
    if what in THEIRS:
        pil = [Image.fromarray(image) for image in images]
        sides["torchvision"] = lambda: torch.stack([THEIRS[what](image) for image in pil])
    rounds = [{side: seconds(call) for side, call in sides.items()} for _ in range(ROUNDS)]
    return row | {side: min(times[side] for times in rounds) for side in sides}


def main(batches: list[int]) -> None:
    torch.set_num_threads(1)
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    record = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs",
        "load_before": os.getloadavg()[0],
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "torchvision", "pillow")
        },
        "rows": [
            {"what": what, "batch": batch} | measure(what, batch)
            for batch in batches
            for what in OURS
        ],
    }
    step = train_step.measure("ours", "deit_base")["step"] if on_cpu else None
    record["train_step_of_8"] = step
    print(f"jax {jax.__version__} on {device.device_kind}")
    print(f"{'':>16} batch  compile s  ours ms  torchvision ms  of a DeiT-B step")
    for row in record["rows"]:
        theirs = f"{1e3 * row['torchvision']:14.1f}" if "torchvision" in row else f"{'':14}"
        share = f"{row['ours'] / step:17.1%}" if step and row["batch"] == 8 else ""
        print(
            f"{row['what']:>16} {row['batch']:5}  {row['compile']:9.1f}  {1e3 * row['ours']:7.1f}"
            f"  {theirs} {share}"
        )
    if on_cpu:
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [8])
