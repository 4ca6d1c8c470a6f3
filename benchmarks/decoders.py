"""Decoders on a frozen network, whose features are computed once for all of them.

    python benchmarks/decoders.py --data-dir data --name busi_lesions --weights WEIGHTS.safetensors

Every image and its mirror image go through the frozen network once; decoders then learn from its
token grids, each over three seeds: AdamW at 1e-3 with a cosine, cross entropy and Dice, batches of
32, half of the images mirrored; the step of the highest Dice on the validation images is kept.
Beside them stand the runs of `benchmarks/unet.py train` that are under `--unet`: a U-Net on a
ResNet-50 from random weights.

Writes test Dice with intervals to `benchmarks/results/decoders_<cpu>.json`, and a Markdown table.
A row has the mean over seeds; its interval comes from resampled images and seeds, that of a
difference pairs the images. A seed that is done is not trained again.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.train_step import RESULTS, cpu_name, results_file

HEADS = ("per_patch", "decoder", "unet")
BATCH, RATE = 32, 1e-3
SAMPLES = 5000
SPLITS = ("train", "val", "test")


def config_of(head: str, values: argparse.Namespace) -> Any:
    from fmi_jax.config import ExperimentConfig

    config = ExperimentConfig(protocol="fit", adapt="frozen", head=head, image_size=values.size)
    config.data.data_dir, config.data.name = values.data_dir, values.name
    config.augment.center_crop = 1.0
    config.backbone.name, config.backbone.weights = values.backbone, values.weights
    return config


def module_of(head: str, values: argparse.Namespace, info: Any, seed: int = 0) -> Any:
    """A frozen network under a head, as a run of that config begins."""
    from fmi_jax import parallel
    from fmi_jax.run.network import pretrained

    config = config_of(head, values)
    config.train.seed = seed
    network = pretrained(config, info, parallel.make_mesh())
    return network.partition.merge(network.arrays, placement=network.placement), network


def features(values: argparse.Namespace, dataset: Any) -> dict[str, dict[str, np.ndarray]]:
    """Images, token grids of the depths that the decoders read, and masks of every split.

    The mirror images stand behind the images on axis 1.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from fmi_jax.data.labels import resized_maps
    from fmi_jax.protocols.heads.decoder import depths

    module, network = module_of("decoder", values, dataset.info)
    graphdef, state = nnx.split(module.backbone)
    blocks = depths(network.arch)

    @jax.jit
    def run(state: Any, images: Any) -> tuple[Any, list[Any]]:
        backbone, images = nnx.merge(graphdef, state), network.preprocess(images)
        both = jnp.stack([images, images[:, :, ::-1]], 1)
        flat = both.reshape(-1, *both.shape[2:])
        grids = [each.tokens for each in backbone.features_at(flat, blocks, rngs=None)]
        return both, [grid.reshape(len(images), 2, *grid.shape[1:]) for grid in grids]

    found: dict[str, dict[str, np.ndarray]] = {}
    for split in SPLITS:
        pixels, masks = map(np.stack, zip(*dataset.split(split), strict=True))
        parts = []
        for start in range(0, len(pixels), BATCH):
            some = pixels[start : start + BATCH]
            padded = np.concatenate([some, np.zeros_like(pixels[: BATCH - len(some)])])
            images, grids = jax.device_get(run(state, padded))
            parts.append([x[: len(some)] for x in (images, *grids)])
        images, *grids = map(np.concatenate, zip(*parts, strict=True))
        maps = resized_maps(masks.astype(np.uint8), values.size, values.size)
        found[split] = {"images": images, "masks": np.stack([maps, maps[:, :, ::-1]], 1)}
        found[split] |= {f"grid{i}": grid for i, grid in enumerate(grids)}
    return found


def train(
    head: str, seed: int, values: argparse.Namespace, info: Any, data: dict[str, Any]
) -> dict[str, Any]:
    """Train a decoder, and count the pixels of the test images: both, predicted, true."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from fmi_jax.data.labels import Label
    from fmi_jax.protocols.per_pixel import upsampled
    from fmi_jax.settings import LossConfig
    from fmi_jax.tasks.mask_loss import mask_loss, members

    module, _ = module_of(head, values, info, seed)
    graphdef, params, stats = nnx.split(module.head, nnx.Param, nnx.BatchStat)
    classes = ("background", "lesion")
    objective = mask_loss(Label.MAP, classes, LossConfig(), counts=(), total=0)
    size = values.size, values.size
    steps = values.epochs * (len(data["train"]["images"]) // BATCH)
    optimizer = optax.adamw(optax.cosine_decay_schedule(RATE, steps), weight_decay=1e-2)
    grids = sorted(name for name in data["train"] if name.startswith("grid"))

    def logits(head_: Any, batch: Any, training: bool) -> Any:
        read = [batch[name] for name in grids]
        if head == "unet":
            return head_(batch["images"], None, read, training=training)
        if head == "decoder":
            return upsampled(head_(read, size), *size)
        return upsampled(head_(read[-1].astype(jnp.float32)), *size)

    def loss(params: Any, stats: Any, batch: Any) -> Any:
        model = nnx.merge(graphdef, params, stats, copy=True)
        given = {"labels": batch["masks"], "mask": jnp.ones(BATCH)}
        each, _ = objective.loss(logits(model, batch, True), given)
        return each.mean(), nnx.state(model, nnx.BatchStat)

    @jax.jit
    def update(params: Any, stats: Any, opt_state: Any, batch: Any) -> Any:
        grads, stats = jax.grad(loss, has_aux=True)(params, stats, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state

    @jax.jit
    def counted(params: Any, stats: Any, batch: Any) -> Any:
        said = logits(nnx.merge(graphdef, params, stats), batch, False).argmax(-1)
        true, said = (members(Label.MAP, x, 2)[..., 1] for x in (batch["masks"], said))
        return jnp.stack([(said * true).sum((1, 2)), said.sum((1, 2)), true.sum((1, 2))], -1)

    def counts(split: str) -> np.ndarray:
        parts, given = [], data[split]
        for start in range(0, len(given["images"]), BATCH):
            batch = {name: x[start : start + BATCH, 0] for name, x in given.items()}
            real = len(batch["images"])
            padded = {n: np.concatenate([x, np.repeat(x[:1], BATCH - real, 0)]) for n, x in
                      batch.items()}  # fmt: skip
            parts.append(np.asarray(counted(params, stats, padded))[:real])
        return np.concatenate(parts)

    opt_state, best, kept = optimizer.init(params), -1.0, None
    rng, used = np.random.default_rng(seed), time.process_time()
    for _ in range(values.epochs):
        order = rng.permutation(len(data["train"]["images"]))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows, side = order[start : start + BATCH], rng.integers(0, 2, BATCH)
            batch = {name: x[rows, side] for name, x in data["train"].items()}
            params, stats, opt_state = update(params, stats, opt_state, batch)
        if (reached := dice(counts("val"))) > best:
            best, kept = reached, counts("test")
    assert kept is not None
    size_ = sum(x.size for x in jax.tree.leaves(params))
    return {
        "counts": kept.tolist(),
        "val_dice": best,
        "seconds": time.process_time() - used,
        "parameters": size_,
    }


def dice(counts: np.ndarray) -> float:
    """Pooled Dice of counts `[n, 3]`."""
    both, predicted, true = counts.sum(axis=0)
    return float(2 * both / max(predicted + true, 1))


def dice_where_present(counts: np.ndarray) -> float:
    """Mean Dice of the images with a lesion."""
    both, predicted, true = counts[counts[:, 2] > 0].T
    return float((2 * both / (predicted + true)).mean())


def resampled(counts: np.ndarray, measure: Any) -> np.ndarray:
    """Mean over seeds of a metric on resampled images and seeds; the same images for every row."""
    rng, (seeds, images, _) = np.random.default_rng(0), counts.shape
    values = []
    for _ in range(SAMPLES):
        rows, drawn = rng.integers(0, images, images), rng.integers(0, seeds, seeds)
        values.append(np.mean([measure(counts[seed][rows]) for seed in drawn]))
    return np.array(values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--name", default="busi_lesions")
    parser.add_argument("--backbone", default="dinov2_vits14")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--root", default="runs/decoders")
    parser.add_argument("--unet", default="runs/unet_benchmark")
    values = parser.parse_args()

    from fmi_jax.data.prepared import open_dataset

    dataset = open_dataset(Path(values.data_dir), values.name, 256, "stratified")
    root, data = Path(values.root), None
    root.mkdir(parents=True, exist_ok=True)
    spent, rows = 0.0, {}
    for head in HEADS:
        done = []
        for seed in range(values.seeds):
            file = root / f"{head}_{values.size}_{values.epochs}_{seed}.json"
            if not file.is_file():
                if data is None:
                    used = time.process_time()
                    data = features(values, dataset)
                    spent = time.process_time() - used
                    print(f"features: {spent:.0f} s of the processor", file=sys.stderr)
                found = train(head, seed, values, dataset.info, data)
                file.write_text(json.dumps(found))
                print(head, seed, dice(np.array(found["counts"])), file=sys.stderr, flush=True)
            done.append(json.loads(file.read_text()))
        rows[head] = done
    scratch = sorted(Path(values.unet).glob(f"{values.name}_*_ours_*.json"))
    if scratch:
        rows["unet, ResNet-50 from random weights"] = [json.loads(f.read_text()) for f in scratch]
    samples: dict[str, Any] = {}
    report: dict[str, Any] = {}
    for name, done in rows.items():
        counts = np.array([one["counts"] for one in done])
        report[name] = {"seconds": float(np.mean([one["seconds"] for one in done]))}
        for metric in (dice, dice_where_present):
            spread = resampled(counts, metric)
            samples[name, metric.__name__] = spread
            report[name][metric.__name__] = {
                "seeds": [metric(each) for each in counts],
                "interval": np.quantile(spread, (0.025, 0.975)).tolist(),
            }
    best = max(rows, key=lambda name: np.mean(report[name]["dice"]["seeds"]))
    lines = ["| decoder | Dice | difference from the best | Dice where a lesion is | processor |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for name, found in report.items():
        cells = [
            f"{np.mean(found[m]['seeds']):.3f} ({found[m]['interval'][0]:.3f} to"
            f" {found[m]['interval'][1]:.3f})"
            for m in ("dice", "dice_where_present")
        ]
        low, high = np.quantile(samples[name, "dice"] - samples[best, "dice"], (0.025, 0.975))
        apart = "" if name == best else f"{low:+.3f} to {high:+.3f}"
        found["difference"] = [float(low), float(high)]
        lines.append(f"| {name} | {cells[0]} | {apart} | {cells[1]} | {found['seconds']:.0f} s |")
    path = RESULTS / results_file().name.replace("train_step", "decoders")
    about = {"machine": cpu_name(), "size": values.size, "epochs": values.epochs}
    path.write_text(json.dumps(about | {"features_s": spent, "rows": report}, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
