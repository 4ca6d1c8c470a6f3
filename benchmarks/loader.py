"""Images per second into the training step: our loader beside the study's.

    python benchmarks/loader.py [--photos N] [--rounds N]

The study decodes the original photograph in every epoch. Here its side reads drawn fundus
photographs of 2588 x 1958 pixels (PNG) with Pillow and torchvision (resize to 256, the training
augmentation, tensor) in a DataLoader of 2 worker processes. Ours reads prepared images with 2
threads, uint8, up to arrays on the device; augmentation is part of the training step there
(`benchmarks/augment.py`). All rows run in turn, each in a process of its own on the same two cores,
with the files in the system's cache. It also measures the cost of preparation, and after how many
epochs it pays; and the memory that reading takes, with the most that the pixels of batches and kept
images can be.

Writes `benchmarks/results/loader_cpu.json`, and prints a table.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import train_step

CORES = 2
WIDTH, HEIGHT = 2588, 1958
RESULTS = Path(__file__).parent / "results" / "loader_cpu.json"
PACKAGES = ("grain", "array-record", "tensorflow-datasets", "pillow", "torch", "torchvision")
STUDY = "study: 2588 x 1958 PNG, 2 workers"


def draw_photographs(folder: Path, count: int) -> None:
    """Draw `count` large photographs in the raw layout of APTOS2019."""
    import numpy as np
    from PIL import Image

    from fmi_jax.data.raw.drawn.fundus import grades_of, photograph

    def write(index: int) -> str:
        photo = photograph(1, index, int(grades[index]))
        large = Image.fromarray(photo.pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        # Enlarging removes the grain, and without it the PNG would be far smaller than a photo's.
        grain = np.random.default_rng(index).normal(0, 1, (HEIGHT, WIDTH, 1)).round()
        pixels = np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "train_images" / f"{photo.id}.png")
        return photo.id

    (folder / "train_images").mkdir(parents=True)
    grades = grades_of(count, 1)
    with ThreadPoolExecutor(CORES) as pool:
        ids = list(pool.map(write, range(count)))
    lines = ["id_code,diagnosis", *(f"{i},{g}" for i, g in zip(ids, grades, strict=True))]
    (folder / "train.csv").write_text("\n".join(lines) + "\n")


def prepare_sets(folder: Path) -> dict[str, float]:
    """Prepare the photographs at both sizes, and the quickstart's set; seconds per photograph."""
    from fmi_jax.data.preparing.prepare import prepare
    from fmi_jax.data.registry import DATASETS

    aptos = DATASETS["aptos2019"]
    seconds = {}
    for size in (256, 1024):
        start = time.perf_counter()
        dataset = prepare(aptos, folder / "photos", folder / "data", size=size, processes=CORES)
        taken = time.perf_counter() - start
        seconds[f"{size}"] = taken / sum(dataset.info.counts.values())
    prepare(DATASETS["synthetic"], None, folder / "data")
    return seconds


def rate(batches: Iterator[Any], batch: int, warm_up: int, count: int) -> dict[str, float]:
    """Measure images per second over `count` batches, and the growth of memory in MB."""
    before = memory_mb("VmRSS")
    for _ in range(warm_up):
        next(batches)
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(batches)
    return {
        "images_per_s": count * batch / (time.perf_counter() - start),
        "images_per_cpu_s": count * batch / (time.process_time() - cpu),
        "mb": memory_mb("VmHWM") - before,
    }


def memory_mb(field: str) -> float:
    """Resident memory of this process: "VmRSS" now, "VmHWM" at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def measure_ours(
    folder: Path, name: str, size: int, batch: int, count: int, in_memory: bool
) -> dict[str, float]:
    import jax

    from fmi_jax import parallel
    from fmi_jax.data import loader
    from fmi_jax.data.prepared import open_dataset

    dataset = open_dataset(folder / "data", name, size)
    image_mb = size * size * dataset.info.channels / 2**20
    images = dataset.info.counts["train"]
    # Batches that wait, those being read, and the last one, which the step still holds.
    pixels = image_mb * batch * (CORES + 2)
    if in_memory:
        pixels += image_mb * images
    else:
        loader.IN_MEMORY_BYTES = 0
    mesh = parallel.make_mesh()
    batches = loader.train_batches(dataset, batch_size=batch, seed=0, threads=CORES)
    on_device = (jax.block_until_ready(parallel.to_devices(mesh, x)) for x in batches)
    return rate(on_device, batch, 1 + images // batch, count) | {"mb_pixels": pixels}


def measure_study(folder: Path) -> dict[str, float]:
    import torch
    from PIL import Image

    # torchvision lacks operators with a torch of another build; it imports once these exist.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision.transforms as T

    augment = T.Compose(
        [
            T.Resize((256, 256)),
            T.CenterCrop(224),
            T.RandomResizedCrop(224, scale=(0.8, 1.2)),
            T.RandomVerticalFlip(),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.2, 0.2, 0.1, 0.1)], p=0.8),
            T.ToTensor(),
            T.Normalize((0.41, 0.22, 0.07), (0.27, 0.15, 0.08)),
        ]
    )
    paths = sorted((folder / "photos" / "train_images").iterdir())

    class Photographs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
            image: Any = augment(Image.open(paths[row]).convert("RGB"))
            return image, 0

    batch = 4
    batches = iter(torch.utils.data.DataLoader(Photographs(), batch, num_workers=CORES))
    # Both workers finish their first batch at about the same time; the time counts from then on.
    return rate(batches, batch, CORES, len(paths) // batch - CORES)


OURS = {
    "256 pixels": ("synthetic", 256, 64, 60, False),
    "256 pixels, in memory": ("synthetic", 256, 64, 200, True),
    "1024 pixels": ("aptos2019", 1024, 16, 16, False),
}


def measure(row: str, folder: Path) -> dict[str, float]:
    """Measure one row, in a fresh process."""
    command = [sys.executable, __file__, "--measure", row, "--folder", os.fspath(folder)]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def main(photos: int, rounds: int) -> None:
    rows = (STUDY, *OURS)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        draw_photographs(folder / "photos", photos)
        sizes = [path.stat().st_size for path in (folder / "photos" / "train_images").iterdir()]
        preparing = prepare_sets(folder)
        results = []
        for i in range(rounds):
            order = rows if i % 2 == 0 else rows[::-1]
            results.append({row: measure(row, folder) for row in order})
            done = {row: round(x["images_per_s"]) for row, x in results[-1].items()}
            print(f"round {i + 1} of {rounds}: {done}", file=sys.stderr, flush=True)
    speed = {row: [r[row]["images_per_s"] for r in results] for row in rows}
    ratios = {row: [o / s for o, s in zip(speed[row], speed[STUDY], strict=True)] for row in OURS}
    # n epochs: preparation + n * ours < n * study
    saved = 1 / statistics.median(speed[STUDY]) - 1 / statistics.median(speed["256 pixels"])
    report = {
        "machine": f"{train_step.cpu_name()}, {CORES} cores",
        "load_before": load,
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "photographs": {"count": photos, "mean_mb": statistics.mean(sizes) / 1e6},
        "preparation_s_per_image": preparing,
        "preparation_pays_after_epochs": preparing["256"] / saved,
        "images_per_s": {row: summary(speed[row]) for row in rows},
        "ratio_to_study": {row: summary(ratios[row]) for row in OURS},
        "memory_mb": {
            row: {
                "most": max(r[row]["mb"] for r in results),
                "pixels_at_most": results[0][row]["mb_pixels"],
            }
            for row in OURS
        },
        "rounds": results,
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print("| | images/s (range) | times the study's (range) | memory, of it pixels at most |")
    print("| --- | --- | --- | --- |")
    for row in rows:
        values = report["images_per_s"][row]
        cells = [f"{values['median']:.0f} ({values['lowest']:.0f} to {values['highest']:.0f})"]
        if row in OURS:
            ratio, memory = report["ratio_to_study"][row], report["memory_mb"][row]
            cells.append(f"{ratio['median']:.0f} ({ratio['lowest']:.0f} to {ratio['highest']:.0f})")
            cells.append(f"{memory['most']:.0f} MB, {memory['pixels_at_most']:.0f} MB")
        else:
            cells += ["1", ""]
        print(f"| {row} | {' | '.join(cells)} |")
    print(
        f"Preparation at 256 pixels: {1 / preparing['256']:.0f} images/s, earned back after"
        f" {report['preparation_pays_after_epochs']:.1f} epochs."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=96, help="drawn at 2588 x 1958")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", choices=(STUDY, *OURS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.photos < 64:
        parser.error(f"--photos {flags.photos}: expected at least 64")
    if hasattr(os, "sched_setaffinity"):  # before any library counts its cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    if flags.measure == STUDY:
        print(json.dumps(measure_study(flags.folder)))
    elif flags.measure:
        print(json.dumps(measure_ours(flags.folder, *OURS[flags.measure])))
    else:
        main(flags.photos, flags.rounds)
