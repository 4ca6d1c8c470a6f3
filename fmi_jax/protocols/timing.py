"""Speed of backbones under a linear head or a DeiT: latency of one image, throughput, compiling.

Paper protocol 8, inference: mean time of a single instance, relative to DeiT-B.
Each backbone is measured in turn with the reference in the same process, so that whatever else
the machine does hits both; a round gives one ratio. Only the forward pass is timed: images are on
the device already, as the network takes them. Time and iterations to the best validation score
are in the result of every training run ("best").
"""

import contextlib
import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import Array

from fmi_jax import parallel
from fmi_jax.artifacts.charts import Panel, Ratios
from fmi_jax.artifacts.result import Speed
from fmi_jax.cores import available_cores
from fmi_jax.data.labels import Label
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.errors import unknown_name
from fmi_jax.models.base import Execution, create_abstract
from fmi_jax.models.deit import DeiT
from fmi_jax.models.registry import BACKBONES
from fmi_jax.protocols.heads.stacked import TransformerConfig
from fmi_jax.protocols.judging import Network, Run, plain
from fmi_jax.protocols.spec import Finding, Images, JudgeSpec
from fmi_jax.rules import positive
from fmi_jax.settings import BackboneConfig, BaseConfig, section
from fmi_jax.training.step import Arrays


@dataclasses.dataclass(slots=True)
class TimingConfig:
    """Latency and throughput of backbones (protocol `timing`).

    Attributes:
      backbones: names of backbones to measure beside `backbone.name`.
      reference: backbone that all others are divided by, measured in turn with them.
      transformer: DeiT under which each backbone is measured once more ("deit_base"); empty: none.
      batch_size: images per step for throughput; latency is that of one image.
      repeats: rounds over all backbones, from which medians and spreads are taken.
    """

    backbones: tuple[str, ...] = ()
    reference: str = "deit_base"
    transformer: str = ""
    batch_size: int = positive(32)
    repeats: int = positive(10)


FIGURE = "timing.png"
_ON = " + "  # a backbone, and what stands on it


@dataclasses.dataclass(frozen=True)
class Forward:
    """A compiled forward pass.

    Attributes:
      call: computes the logits and waits for them.
      first_seconds: the first call: trace, compile, run.
      flops: floating-point operations that XLA counts; a product and its sum are two.
      bytes: most that XLA plans to hold: parameters, images, activations.
    """

    call: Callable[[], None]
    first_seconds: float
    flops: float
    bytes: int


@dataclasses.dataclass(frozen=True)
class Subject:
    """A backbone to be timed: with one image, and with `timing.batch_size`."""

    name: str
    params: int
    single: Forward
    batch: Forward


def judge(run: Run) -> Finding:
    """Time `backbone.name` and `timing.backbones`; see `TimingConfig`.

    Weights are random: they change no time.

    Raises:
      UsageError: no such backbone, or one that does not take images of `image_size`.
    """
    config = run.config
    settings = section(config, TimingConfig)
    own = dataclasses.replace(config.backbone, weights="", run="", frozen_blocks=0)
    others = [
        BackboneConfig(name=name, dtype=own.dtype)
        for name in (settings.reference, *settings.backbones)
    ]
    wanted = {
        _title(backbone): plain(config, backbone, "linear_probe") for backbone in (*others, own)
    }
    if settings.transformer:
        for backbone in (*others, own):
            stacked = plain(config, backbone, "stacked_probe")
            section(stacked, TransformerConfig).name = settings.transformer
            wanted[f"{_title(backbone)}{_ON}{settings.transformer}"] = stacked

    def prepare(title: str) -> Subject:
        return _prepare(title, run.network(wanted[title]), run, settings.batch_size)

    reference = prepare(_title(others[0]))
    # One at a time beside the reference: memory holds two networks, however many are asked.
    rows = [
        _measure(
            reference if title == reference.name else prepare(title),
            reference,
            settings.repeats,
            settings.batch_size,
        )
        for title in wanted
    ]
    return Finding(
        judge="timing",
        title=f"Speed of backbones at {config.image_size} pixels",
        values={
            "reference": reference.name,
            "image_size": config.image_size,
            "dtype": config.backbone.dtype,
            "batch_size": settings.batch_size,
            "repeats": settings.repeats,
            "machine": _machine(),
            "rows": rows,
        },
        text=_text(rows, reference.name, settings.batch_size),
        speeds=[_speed(row, reference.name) for row in rows],
        figures={
            FIGURE: f"Latency and throughput relative to {reference.name}: median and range of"
            f" {settings.repeats} rounds"
        },
        charts={FIGURE: _chart(rows, reference.name, settings.batch_size)},
        notes=tuple(_notes()),
    )


def _check(config: BaseConfig, info: DatasetInfo) -> None:
    """Refuse backbones that cannot be measured, before a network is trained beside them."""
    settings, size = section(config, TimingConfig), config.image_size
    for name in (settings.reference, *settings.backbones):
        spec = BACKBONES[name]
        arch = dataclasses.replace(spec.arch, in_channels=info.channels).sized(size, size)
        create_abstract(spec.family, arch, Execution()).grid(size, size)
    plain_deits = {name: spec for name, spec in BACKBONES.items() if spec.family is DeiT}
    if settings.transformer and settings.transformer not in plain_deits:
        raise unknown_name("transformer for timing.transformer", settings.transformer, plain_deits)


def _title(backbone: BackboneConfig) -> str:
    kept = f", blocks 0 to {backbone.last_block}" if backbone.last_block >= 0 else ""
    return backbone.name + kept


def _prepare(title: str, network: Network, run: Run, batch_size: int) -> Subject:
    device = jax.local_devices()[0]
    everywhere = parallel.replicated(run.mesh)  # parts of them may be on other hosts
    whole = jax.jit(lambda arrays: arrays, out_shardings=everywhere)(network.arrays)
    arrays = jax.device_put(jax.device_get(whole), device)
    info = run.dataset.info
    passes = []
    for size in (1, batch_size):
        pixels = jax.ShapeDtypeStruct((size, info.size, info.size, info.channels), np.uint8)
        taken = jax.eval_shape(network.preprocess, pixels)
        drawn = np.random.default_rng(0).standard_normal(taken.shape, np.float32)
        passes.append(_compile(network, arrays, jax.device_put(drawn.astype(taken.dtype), device)))
    params = sum(x.size for name, x in arrays.items() if not name.startswith("head."))
    return Subject(title, params, *passes)


def _compile(network: Network, arrays: Arrays, images: Array) -> Forward:
    def forward(arrays: Arrays, images: Array) -> Array:
        return network.partition.merge(arrays)(images, rngs=None)

    with _without_cache():
        start = time.perf_counter()
        lowered = jax.jit(forward).lower(arrays, images)
        compiled = lowered.compile()
        jax.block_until_ready(compiled(arrays, images))
        first = time.perf_counter() - start
    # Counted before XLA replaces operations by calls of libraries, which it cannot look into.
    counted = lowered.cost_analysis() or {}
    planned = compiled.memory_analysis()
    return Forward(
        call=lambda: jax.block_until_ready(compiled(arrays, images)),
        first_seconds=first,
        flops=float(counted.get("flops", 0)),
        bytes=sum(
            getattr(planned, f"{part}_size_in_bytes", 0) for part in ("argument", "output", "temp")
        ),
    )


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Compile, even what another process has compiled before."""
    name = "jax_enable_compilation_cache"
    before = getattr(jax.config, name)
    try:
        jax.config.update(name, False)
        compilation_cache.reset_cache()  # whether to use one is decided once
        yield
    finally:
        jax.config.update(name, before)
        compilation_cache.reset_cache()


def _measure(subject: Subject, reference: Subject, repeats: int, batch_size: int) -> dict[str, Any]:
    """One row: medians with lowest and highest over the rounds, as JSON values."""
    latency, relative_latency = _in_turn(subject.single, reference.single, repeats)
    seconds, relative_seconds = _in_turn(subject.batch, reference.batch, repeats)
    return {
        "backbone": subject.name,
        "params": subject.params,
        "latency_ms": _spread([1e3 * x for x in latency]),
        "relative_latency": _spread(relative_latency),
        "images_per_second": _spread([batch_size / x for x in seconds]),
        "relative_throughput": _spread([1 / x for x in relative_seconds]),
        "first_call_seconds": subject.single.first_seconds,
        "first_call_seconds_batch": subject.batch.first_seconds,
        "gflops_per_image": subject.single.flops / 1e9,
        "memory_mib": subject.single.bytes / 2**20,
        "memory_mib_batch": subject.batch.bytes / 2**20,
    }


def _in_turn(subject: Forward, reference: Forward, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of the subject in each round, and their ratios to the reference's."""

    def seconds(forward: Forward) -> float:
        start = time.perf_counter()
        forward.call()
        return time.perf_counter() - start

    own, ratios = [], []
    for i in range(repeats):
        # Who comes first changes: what a pass leaves in the caches is fair to both.
        pair = (subject, reference) if i % 2 else (reference, subject)
        taken = {forward: seconds(forward) for forward in dict.fromkeys(pair)}
        own.append(taken[subject])
        ratios.append(taken[subject] / taken[reference])
    return own, ratios


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "mean": statistics.mean(values),
        "low": min(values),
        "high": max(values),
    }


def _machine() -> dict[str, Any]:
    """Describe the machine, and how busy it was with other things."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "device": jax.local_devices()[0].device_kind,
        "cpu": names[0] if names else platform.processor(),
        "cpu_cores": len(available_cores()),
        "load_average": os.getloadavg()[0],
    }


def _text(rows: Sequence[dict[str, Any]], reference: str, batch_size: int) -> str:
    heading = (
        f"{'':<28}{'latency':>12}{'relative':>10}{'throughput':>14}{'relative':>10}"
        f"{'first call':>12}{'GFLOP':>9}{'memory':>11}"
    )
    lines = [
        f"{row['backbone']:<28}{row['latency_ms']['median']:>9.1f} ms"
        f"{row['relative_latency']['median']:>9.2f}x"
        f"{row['images_per_second']['median']:>8.1f} img/s"
        f"{row['relative_throughput']['median']:>9.2f}x"
        f"{row['first_call_seconds']:>10.1f} s{row['gflops_per_image']:>9.1f}"
        f"{row['memory_mib']:>7.0f} MiB"
        for row in rows
    ]
    explained = (
        f"latency: one image, compiled; throughput: {batch_size} images at once; relative to"
        f" {reference};\nfirst call: with tracing and compiling; GFLOP and memory: of one image"
    )
    return "\n".join([heading, *lines, explained])


def _chart(rows: Sequence[Mapping[str, Any]], reference: str, batch_size: int) -> Ratios:
    def panel(title: str, ratio: str, value: str, form: str) -> Panel:
        return Panel(
            title=title,
            spreads=np.array(
                [[row[ratio][end] for end in ("low", "median", "high")] for row in rows]
            ),
            values=[form.format(row[value]["median"]) for row in rows],
        )

    return Ratios(
        reference=reference,
        rows=[row["backbone"] for row in rows],
        panels=(
            panel("Latency of one image", "relative_latency", "latency_ms", "{:.1f} ms"),
            panel(
                f"Throughput, {batch_size} images at once",
                "relative_throughput",
                "images_per_second",
                "{:.1f}/s",
            ),
        ),
    )


def _notes() -> Iterator[str]:
    if jax.device_count() > 1:
        yield f"Measured on one of {jax.device_count()} devices."
    if jax.default_backend() == "gpu":
        yield (
            "The count of operations leaves out what cuDNN's fused attention computes"
            " (in bfloat16)."
        )


def _speed(row: Mapping[str, Any], reference: str) -> Speed:
    backbone, _, transformer = row["backbone"].partition(_ON)
    relative = row["relative_latency"]
    return Speed(
        backbone=backbone,
        transformer=transformer,
        median=relative["median"],
        low=relative["low"],
        high=relative["high"],
        milliseconds=row["latency_ms"]["median"],
        reference=reference,
    )


SPEC = JudgeSpec(
    labels=tuple(Label),
    name="timing",
    summary="latency and throughput",
    judge=judge,
    small={"timing.reference": "deit_nano", "timing.transformer": "deit_nano"},
    options=TimingConfig,
    check=_check,
    reads=("timing",),
    ignores=("optim", "augment.center_crop", "data.split"),
    images=lambda config, counts: Images(0, 0),  # how many rounds there are says little of time
    shows="speed",
)
