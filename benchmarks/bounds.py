"""Bounds of a forward pass on a CPU: its matrix products and convolutions alone.

    python benchmarks/bounds.py

Measures, in GFLOP/s, the product of DeiT-B's MLP at 224 pixels and batch 8 in XLA, NumPy's BLAS and
PyTorch; the operations of DeiT-B's forward pass; and the products and depth-wise convolutions of
the blocks in FocalNet-T's forward pass, ours and PyTorch's. Each side runs in a process of its
own, in turn, on two threads; the fastest of many calls counts. Writes
`benchmarks/results/bounds_cpu.json` and prints it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

THREADS = 2
BATCH = 8
SIDES = ("xla", "numpy", "torch")
ROUNDS = 2
RESULTS = Path(__file__).parent / "results" / "bounds_cpu.json"
PRODUCT = (1576, 768, 3072)  # tokens of the batch, width, width of the MLP
# FocalNet-T: map side, channels and number of blocks of each stage; kernel sizes of focal levels.
STAGES = ((56, 96, 2), (28, 192, 2), (14, 384, 6), (7, 768, 2))
KERNELS = (3, 5, 7)

Product = Callable[[np.ndarray, np.ndarray], float]
Depthwise = Callable[[np.ndarray, np.ndarray], float]


def fastest(call: Callable[[], object], calls: int = 20) -> float:
    """Seconds of the fastest call; the first two calls do not count."""
    call()
    call()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def xla() -> tuple[Product, Depthwise]:
    """Timers in XLA: a product, and a depth-wise convolution of [b, h, w, c] by [k, k, 1, c]."""
    import jax

    from fmi_jax.nn.conv import depthwise_conv

    def timed(function: Callable[..., jax.Array]) -> Product:
        compiled = jax.jit(function)

        def seconds(*arrays: np.ndarray) -> float:
            placed = jax.device_put(arrays)
            return fastest(lambda: compiled(*placed).block_until_ready())

        return seconds

    return timed(lambda a, b: a @ b), timed(depthwise_conv)


def numpy() -> tuple[Product, Depthwise]:
    """Timers in NumPy: a product; it has no convolution."""
    return lambda a, b: fastest(lambda: a @ b), lambda x, kernel: float("nan")


def torch() -> tuple[Product, Depthwise]:
    """Timers in PyTorch: a product, and a convolution in PyTorch's own order of axes."""
    import torch

    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)

    def product(a: np.ndarray, b: np.ndarray) -> float:
        left, right = torch.from_numpy(a), torch.from_numpy(b)
        return fastest(lambda: left @ right)

    def depthwise(x: np.ndarray, kernel: np.ndarray) -> float:
        image = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
        weight = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()
        size, channels = kernel.shape[0], x.shape[-1]
        conv = torch.nn.functional.conv2d
        return fastest(lambda: conv(image, weight, padding=size // 2, groups=channels))

    return product, depthwise


def measure(side: str) -> dict[str, float]:
    """Measure GFLOP/s of the product, and seconds of FocalNet-T's parts."""
    product, depthwise = {"xla": xla, "numpy": numpy, "torch": torch}[side]()
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    rows, inner, columns = PRODUCT
    rate = 2 * rows * inner * columns / product(draw(rows, inner), draw(inner, columns)) / 1e9
    products, convolutions = 0.0, 0.0
    for grid, width, blocks in STAGES:
        tokens = BATCH * grid * grid
        # Query, context and gates; modulator; projection; both layers of the MLP.
        widths = ((width, 2 * width + 4), (width, width), (width, width))
        for a, b in (*widths, (width, 4 * width), (4 * width, width)):
            products += blocks * product(draw(tokens, a), draw(a, b))
        for size in KERNELS:
            image, kernel = draw(BATCH, grid, grid, width), draw(size, size, 1, width)
            convolutions += blocks * depthwise(image, kernel)
    return {"gflops": rate, "focalnet_products": products, "focalnet_depthwise": convolutions}


def operations(name: str) -> float:
    """GFLOP of a forward pass to the feature that heads read, as counted by XLA."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from fmi_jax.models.base import Execution, create_abstract
    from fmi_jax.models.registry import BACKBONES

    spec = BACKBONES[name]
    arch = spec.arch.truncated(spec.arch.num_blocks - 1)
    graphdef, state = nnx.split(create_abstract(spec.family, arch, Execution()))
    images = jax.ShapeDtypeStruct((BATCH, 224, 224, 3), jnp.float32)
    forward = jax.jit(lambda state, x: nnx.merge(graphdef, state).features(x).pooled)
    return forward.lower(state, images).cost_analysis()["flops"] / 1e9


def main() -> None:
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": str(THREADS)}
    report: dict = {"load_before": os.getloadavg()[0], "rounds": []}
    for i in range(ROUNDS):
        found = {}
        for side in SIDES if i % 2 == 0 else SIDES[::-1]:
            command = [sys.executable, __file__, "--side", side]
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
            found[side] = json.loads(done.stdout)
        report["rounds"].append(found)
    names = ("deit_base", "focalnet_tiny", "resnet152")
    report["forward_gflop"] = {name: operations(name) for name in names}
    text = json.dumps(report, indent=1).replace("NaN", "null") + "\n"
    RESULTS.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", choices=SIDES, help="measure it in this process")
    flags = parser.parse_args()
    if flags.side:
        print(json.dumps(measure(flags.side)))
    else:
        main()
