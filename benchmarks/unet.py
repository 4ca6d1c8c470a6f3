"""A U-Net on a ResNet-50: ours beside segmentation_models_pytorch's, from the same weights.

    python benchmarks/unet.py train --data-dir data --name busi_lesions --size 128
    python benchmarks/unet.py speed --size 128 --rounds 5
    python benchmarks/unet.py profile --size 128

`train`: each seed draws weights (by segmentation_models_pytorch), the order of the images and which
of them are mirrored. Both sides start from these weights and see these images, in turn, each in a
process of its own: Adam at 1e-3, Dice over the batch, batches of 32, the last incomplete one left
out. The step of the lowest loss on the validation images is kept. Writes the test Dice of both and
the interval of its paired difference, over images and seeds. A side of a seed that is done is not
trained again.

`speed`: seconds and peak memory of a training step, and of one of a ResNet-50 that classifies, in
turn; a round gives a ratio of each. `profile`: processor time of our step by kind of operation.

Results go to `benchmarks/results/unet_<cpu>.json`, by mode.
"""

import argparse
import collections
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]

from benchmarks.train_step import RESULTS, THREADS, cpu_name, peak_mb, results_file  # noqa: E402

BATCH, RATE = 32, 1e-3
SIDES = ("ours", "torch")
SPEED = ("unet", "resnet50")

Arrays = dict[str, np.ndarray]


def images_of(values: argparse.Namespace) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every split: images `[n, h, w, 3]`, normalised, and masks `[n, h, w]` of 0 and 1."""
    from fmi_jax.data.prepared import open_dataset

    dataset = open_dataset(Path(values.data_dir), values.name, values.size)
    info, found = dataset.info, {}
    for split in ("train", "val", "test"):
        pixels, masks = zip(*dataset.split(split), strict=True)
        scaled = (np.stack(pixels) / np.float32(255) - np.float32(info.mean)) / info.std
        found[split] = scaled.astype(np.float32), np.stack(masks).astype(np.uint8)
    return found


def batches(
    images: np.ndarray, masks: np.ndarray, seed: int, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of one pass over the training images, in the order of a seed, half of them mirrored.

    Both sides see the same.
    """
    rng = np.random.default_rng((seed, epoch))
    order, mirrored = rng.permutation(len(images)), rng.random(len(images)) < 0.5
    for start in range(0, len(images) - BATCH + 1, BATCH):
        rows = order[start : start + BATCH]
        x, y = images[rows], masks[rows]
        flip = mirrored[rows]
        x[flip], y[flip] = x[flip][:, :, ::-1], y[flip][:, :, ::-1]
        yield x, y


class Ours:
    """A U-Net as `head=unet` builds it, trained by optax; or a ResNet-50 that classifies."""

    def __init__(self, weights: Arrays | None, network: str = "unet", size: int = 128):
        import jax
        import optax
        from flax import nnx

        from fmi_jax.data.labels import Label
        from fmi_jax.models.base import Execution, create
        from fmi_jax.models.registry import BACKBONES
        from fmi_jax.protocols.heads.unet import UNet
        from fmi_jax.settings import LossConfig
        from fmi_jax.tasks.mask_loss import mask_loss

        spec = BACKBONES["resnet50"]
        arch = spec.arch.sized(size, size)
        arch = arch.truncated(arch.num_blocks - 1)
        backbone = create(spec.family, arch, Execution(dtype=np.dtype(np.float32)), seed=0)
        if network == "unet":
            module: Any = UNet(
                backbone, 2, widths=(256, 128, 64, 32, 16), eval_mode=False, rngs=nnx.Rngs(0)
            )
        else:
            module = Classifier(backbone)
        if weights is not None:
            load(module, weights)
        graphdef, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
        options = LossConfig(terms="dice", dice_over="batch")
        classes = ("background", "lesion")
        objective = mask_loss(Label.MAP, classes, options, counts=(), total=0)
        optimizer = optax.adam(RATE)

        def loss(params: Any, stats: Any, images: Any, labels: Any) -> Any:
            model = nnx.merge(graphdef, params, stats, copy=True)  # its statistics change
            logits = model(images, rngs=nnx.Rngs(dropout=0))
            if network == "unet":
                mask = np.ones(len(images), np.float32)
                each, _ = objective.loss(logits, {"labels": labels, "mask": mask})
            else:
                each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return each.mean(), nnx.state(model, nnx.BatchStat)

        def update(params: Any, stats: Any, opt_state: Any, images: Any, labels: Any) -> Any:
            grads, stats = jax.grad(loss, has_aux=True)(params, stats, images, labels)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), stats, opt_state

        def predicted(params: Any, stats: Any, images: Any) -> Any:
            return jax.nn.softmax(nnx.merge(graphdef, params, stats)(images, rngs=None))[..., 1]

        self.jitted = jax.jit(update, donate_argnums=(0, 1, 2))
        self.predict_jitted = jax.jit(predicted)
        self.state = (params, stats, jax.jit(optimizer.init)(params))

    def step(self, images: np.ndarray, labels: np.ndarray) -> None:
        import jax

        self.state = jax.block_until_ready(self.jitted(*self.state, images, labels))

    def predict(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self.predict_jitted(*self.state[:2], images))


def Classifier(backbone: Any) -> Any:
    from flax import nnx

    from fmi_jax.nn.linear import linear

    class Classified(nnx.Module):
        def __init__(self) -> None:
            self.backbone = backbone
            width = backbone.arch.feature_width
            self.head = linear(width, 2, dtype=np.float32, rngs=nnx.Rngs(0))

        def __call__(self, images: Any, *, rngs: Any) -> Any:
            return self.head(self.backbone.features(images, rngs=rngs).pooled)

    return Classified()


def load(module: Any, weights: Arrays) -> None:
    """Put the tensors of `smp.Unet("resnet50", classes=2)` into our module."""
    import jax.numpy as jnp
    from flax import nnx
    from parity_families.unet import layout

    from fmi_jax.models.base import parameters
    from weights_convert.engine import convert

    found = convert({"": weights}, parameters(module), [layout()]).params
    state = nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat))
    for path, variable in nnx.to_flat_state(state):
        variable.set_value(jnp.asarray(found[".".join(map(str, path))]))
    nnx.update(module, state)


class Torch:
    """The same with segmentation_models_pytorch and torch.optim."""

    def __init__(self, weights: Arrays | None, network: str = "unet"):
        import reference_packages  # imports torchvision beside any build of torch
        import segmentation_models_pytorch as smp
        import timm
        import torch

        assert reference_packages
        torch.set_num_threads(THREADS)
        self.torch, self.network = torch, network
        if network == "unet":
            self.model: Any = smp.Unet("resnet50", encoder_weights=None, classes=2)
        else:
            self.model = timm.create_model("resnet50", num_classes=2)
        if weights is not None:
            state = {name: torch.from_numpy(value.copy()) for name, value in weights.items()}
            self.model.load_state_dict(state)
        self.optimizer = torch.optim.Adam(self.model.parameters(), RATE)

    def _tensor(self, images: np.ndarray) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    def step(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.model.train()
        logits, target = self.model(self._tensor(images)), self.torch.from_numpy(labels.copy())
        if self.network == "unet":
            p, y = logits.softmax(1)[:, 1], target.float()
            loss = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
        else:
            loss = self.torch.nn.functional.cross_entropy(logits, target.long())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def predict(self, images: np.ndarray) -> np.ndarray:
        self.model.eval()
        with self.torch.inference_mode():
            return self.model(self._tensor(images)).softmax(1)[:, 1].numpy()


def drawn(seed: int) -> Arrays:
    """Weights of a seed, as segmentation_models_pytorch draws them."""
    import reference_packages
    import segmentation_models_pytorch as smp
    import torch

    assert reference_packages
    torch.manual_seed(seed)
    model = smp.Unet("resnet50", encoder_weights=None, classes=2)
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def train(side: str, seed: int, values: argparse.Namespace) -> None:
    """Train one side of one seed, and keep the counts of pixels of its test images."""
    data, weights = images_of(values), drawn(seed)
    model: Any = Ours(weights, size=values.size) if side == "ours" else Torch(weights)

    def counts(split: str) -> tuple[np.ndarray, float]:
        images, masks = data[split]
        rows = []
        both = total = 0.0
        for start in range(0, len(images), BATCH):
            x, y = images[start : start + BATCH], masks[start : start + BATCH]
            padded = np.concatenate([x, np.zeros_like(images[: BATCH - len(x)])])
            p = model.predict(padded)[: len(x)]
            both, total = both + float((p * y).sum()), total + float(p.sum() + y.sum())
            said = p > 0.5
            rows += [np.stack([(said & (y > 0)).sum((1, 2)), said.sum((1, 2)), y.sum((1, 2))], 1)]
        return np.concatenate(rows), 1 - (2 * both + 1) / (total + 1)

    best, kept, losses, used = np.inf, None, [], time.process_time()
    for epoch in range(values.epochs):
        for x, y in batches(*data["train"], seed, epoch):
            model.step(x, y)
        losses.append(counts("val")[1])
        if losses[-1] < best:
            best, kept = losses[-1], counts("test")[0]
        print(f"{side}, seed {seed}, epoch {epoch + 1}: {losses[-1]:.4f}", file=sys.stderr)
    assert kept is not None
    done = {"counts": kept.tolist(), "val_losses": losses, "seconds": time.process_time() - used}
    file = result_of(side, seed, values)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(done))


def result_of(side: str, seed: int, values: argparse.Namespace) -> Path:
    return Path(values.root) / f"{values.name}_{values.size}_{values.epochs}_{side}_{seed}.json"


def dice(counts: np.ndarray) -> float:
    """Pooled Dice of counts `[n, 3]`: both, predicted, true."""
    both, predicted, true = counts.sum(axis=0)
    return float(2 * both / (predicted + true))


def compared(values: argparse.Namespace) -> dict[str, Any]:
    """Test Dice of both sides and the paired difference, over resampled images, mean of seeds."""
    found = {
        side: np.array(
            [json.loads(result_of(side, seed, values).read_text())["counts"] for seed in seeds]
        )
        for side in SIDES
        for seeds in [range(values.seeds)]
    }
    rng, count = np.random.default_rng(0), found["ours"].shape[1]

    def difference(rows: np.ndarray, seeds: np.ndarray) -> float:
        a, b = (np.mean([dice(found[side][seed][rows]) for seed in seeds]) for side in SIDES)
        return float(a - b)

    everything = np.arange(count), np.arange(values.seeds)
    drawn_ = [
        difference(rng.integers(0, count, count), rng.integers(0, values.seeds, values.seeds))
        for _ in range(5000)
    ]
    return {
        "images": count,
        "dice": {side: [dice(one) for one in found[side]] for side in SIDES},
        "difference": difference(*everything),
        "interval": np.quantile(drawn_, (0.025, 0.975)).tolist(),
    }


def timed(side: str, network: str, values: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step, of the processor and by the clock, and peak memory."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(values.batch, values.size, values.size, 3)).astype(np.float32)
    shape = (values.batch, values.size, values.size) if network == "unet" else (values.batch,)
    labels = rng.integers(0, 2, shape).astype(np.uint8)
    model: Any
    model = Ours(None, network, values.size) if side == "ours" else Torch(None, network)
    model.step(images, labels)
    clock, processor = [], []
    for _ in range(3):
        start, used = time.perf_counter(), time.process_time()
        model.step(images, labels)
        clock.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    return {"step": min(clock), "step_processor": min(processor), "step_mb": peak_mb()}


def fresh(*arguments: str) -> str:
    """Run this file in a process of its own; what it prints."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(THREADS)}
    environment |= {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    command = [sys.executable, __file__, *sys.argv[1:], *arguments]
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def speed(values: argparse.Namespace) -> dict[str, Any]:
    rounds: list[dict[str, dict[str, float]]] = []
    for i in range(values.rounds):
        order = [(side, network) for network in SPEED for side in SIDES]
        done = {}
        for side, network in order if i % 2 == 0 else order[::-1]:
            out = fresh("--side", side, "--network", network)
            done[f"{side} {network}"] = json.loads(out.splitlines()[-1])
        rounds.append(done)
        print(json.dumps(done), file=sys.stderr, flush=True)
    table: dict[str, Any] = {}
    for network in SPEED:
        for key in ("step", "step_processor", "step_mb"):
            ratios = [r[f"ours {network}"][key] / r[f"torch {network}"][key] for r in rounds]
            table[f"{network} {key}"] = {
                "ours": statistics.median(r[f"ours {network}"][key] for r in rounds),
                "torch": statistics.median(r[f"torch {network}"][key] for r in rounds),
                "ratio": [min(ratios), statistics.median(ratios), max(ratios)],
            }
    return {"batch": values.batch, "size": values.size, "rounds": rounds, "table": table}


def profiled(values: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one step by kind of operation, in descending order."""
    import jax
    from jax.profiler import ProfileData

    rng = np.random.default_rng(0)
    images = rng.normal(size=(values.batch, values.size, values.size, 3)).astype(np.float32)
    labels = rng.integers(0, 2, (values.batch, values.size, values.size)).astype(np.uint8)
    model = Ours(None, "unet", values.size)
    model.step(images, labels)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            model.step(images, labels)
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = ProfileData.from_file(str(file))
        spent: collections.Counter[str] = collections.Counter()
        for plane in data.planes:
            for line in plane.lines:
                for event in line.events:
                    if any(key == "hlo_op" for key, _ in event.stats):
                        spent[re.sub(r"[.\d]+$", "", event.name)] += event.duration_ns
    return {name: round(ns / 1e9, 4) for name, ns in spent.most_common(12)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=("train", "speed", "profile"))
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--name", default="busi_lesions")
    parser.add_argument("--root", default="runs/unet_benchmark")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--network", choices=SPEED, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    values = parser.parse_args()
    if values.seed is not None:
        train(values.side, values.seed, values)
        return
    if values.side:
        print(json.dumps(timed(values.side, values.network, values)))
        return
    modes: dict[str, Callable[[argparse.Namespace], dict[str, Any]]]
    modes = {"train": compared, "speed": speed, "profile": profiled}
    if values.mode == "train":
        for seed in range(values.seeds):
            for side in SIDES if seed % 2 == 0 else SIDES[::-1]:
                if not result_of(side, seed, values).is_file():
                    fresh("--side", side, "--seed", str(seed))
    found = modes[values.mode](values)
    path = RESULTS / results_file().name.replace("train_step", "unet")
    report = json.loads(path.read_text()) if path.exists() else {}
    report[values.mode] = {"machine": cpu_name()} | found
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in found.items() if k != "rounds"}, indent=1))


if __name__ == "__main__":
    main()
