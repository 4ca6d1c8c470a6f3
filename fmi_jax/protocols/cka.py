"""CKA: how alike the layers of networks are, before and after training or between foundations.

Paper, Figures 7, 8 and A.1. A network is compared with itself before training
(`cka.run`, and "pretrained" as the other), with other runs or with other foundations; of a
stacked classifier the layers of foundation and transformer are all taken. Every image goes
through every network once, and one batch of it is held at a time.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from fmi_jax import atomic, parallel
from fmi_jax.artifacts.charts import Matrix
from fmi_jax.artifacts.result import Headline, Result
from fmi_jax.data.labels import Label
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.errors import UsageError
from fmi_jax.models.base import Backbone, Execution, create
from fmi_jax.models.registry import BACKBONES
from fmi_jax.protocols import hsic
from fmi_jax.protocols.judging import Network, Run, batches_of, plain
from fmi_jax.protocols.spec import Finding, Images, JudgeSpec, PretrainedNetwork
from fmi_jax.rules import one_of, positive
from fmi_jax.settings import BackboneConfig, BaseConfig, section
from fmi_jax.training.step import Arrays
from fmi_jax.types import Batch, Features


@dataclasses.dataclass(slots=True)
class CkaConfig:
    """Similarity of networks, layer by layer (protocol `cka`).

    Attributes:
      run: folder of a finished run whose network is the first; empty: the backbone that the
        config describes.
      other: networks to compare it with, each "pretrained" (the start of the first network),
        the folder of a finished run, or "NAME" or "NAME:WEIGHTS" of a backbone.
      features: features to compare: "all" ([cls] and patch tokens), "cls", "patches" or "pooled".
      estimator: "summed" (HSIC terms summed over batches, divided once), "averaged" (the mean
        of the CKA of each batch: the study) or "exact" (all pairs of images at once; the
        features of all of them have to fit into memory).
      batch_size: images per batch, over which the unbiased HSIC is computed; 8 or more.
      split: split whose images are compared.
    """

    run: str = ""
    other: tuple[str, ...] = ("pretrained",)
    features: str = one_of("all", "all", "cls", "patches", "pooled")
    estimator: str = one_of("summed", "summed", "averaged", "exact")
    batch_size: int = positive(64)
    split: str = one_of("test", "train", "val", "test")


TABLE = "cka.csv"
EXACT_BYTES = 2**32
"""The most that the features of a split may take for the estimator "exact"."""

_AVERAGED = (
    "The CKA of each batch was averaged, as in the study: a mean of ratios, which depends on the"
    " batch size. The estimator 'summed' does so less."
)
_MIN_BATCH = 2 * hsic.MIN_IMAGES  # evenly divided, no batch is then smaller than MIN_IMAGES


def judge(run: Run) -> Finding:
    """Compare every layer of every network with every other; see `CkaConfig`.

    Writes `cka.csv` (every layer by every layer).

    Raises:
      UsageError: no such network, too few images, [cls] of a network without one, or features
        that do not fit into memory.
    """
    settings = section(run.config, CkaConfig)
    _check(run.config, run.dataset.info)
    rows = hsic.even_batches(
        len(run.dataset.ids(settings.split)), settings.batch_size, run.config.train.seed
    )
    networks = _networks(run)
    names = [list(_shapes(network, run)) for network in networks]
    if settings.estimator == "exact":
        matrix = hsic.exact(_features(run, networks, rows))
    else:
        estimate = hsic.summed if settings.estimator == "summed" else hsic.averaged
        matrix = estimate(_grams(run, networks, rows))

    titles = _distinct([network.name for network in networks])
    ends = np.cumsum([len(some) for some in names]).tolist()
    parts = [slice(end - len(some), end) for some, end in zip(names, ends, strict=True)]
    of_first, last = matrix[parts[0]], matrix[np.ix_([e - 1 for e in ends], [e - 1 for e in ends])]
    # The first beside each of the others; beside itself where there is no other.
    pairs = [
        {
            "networks": [titles[0], titles[i]],
            "layers": [names[0], names[i]],
            "cka": _rounded(of_first[:, parts[i]]),
        }
        for i in (range(1, len(networks)) if len(networks) > 1 else [0])
    ]
    if run.active:
        _write_table(run.workdir / TABLE, titles, names, matrix)
    charts, captions = {}, {}
    for i, pair in enumerate(pairs):
        name = f"cka_layers{f'_{i + 1}' * (len(pairs) > 1)}.png"
        first, second = pair["networks"]
        charts[name] = Matrix(
            values=np.array(pair["cka"], float),
            unit="CKA",
            rows=pair["layers"][0],
            columns=pair["layers"][1],
            titles=(first, second),
        )
        captions[name] = f"CKA of every layer of {first} and every layer of {second}"
    if len(networks) > 2:
        charts["cka_last.png"] = Matrix(values=last, unit="CKA", rows=titles, columns=titles)
        captions["cka_last.png"] = "CKA of the last layers of all networks"
    return Finding(
        judge="cka",
        title=f"Similarity of networks on {run.dataset.info.name}",
        values={
            "networks": titles,
            "features": settings.features,
            "estimator": settings.estimator,
            "split": settings.split,
            "images": sum(map(len, rows)),
            "batches": len(rows),
            "last_layers": _rounded(last),
            "pairs": pairs,
        },
        text=_text(pairs),
        # Of a network that was trained: its last layer beside that before training.
        headline=Headline(name="cka_last_layer", unit="CKA", value=pairs[0]["cka"][-1][-1])
        if settings.run
        else None,
        figures=captions,
        charts=charts,
        notes=(_AVERAGED,) if settings.estimator == "averaged" and len(rows) > 1 else (),
    )


def _check(config: BaseConfig, info: DatasetInfo) -> None:
    """Refuse what cannot be compared, before a network is trained for it."""
    settings = section(config, CkaConfig)
    if settings.run and config.protocol != SPEC.name:
        raise UsageError(
            f"cka.run={settings.run!r}: beside protocol {config.protocol!r} the first network is"
            " that of this run; expected cka.run empty, and that folder in cka.other."
        )
    count = info.counts[settings.split]
    if count < hsic.MIN_IMAGES:
        raise UsageError(
            f"cka.split={settings.split!r} has {count} image(s): CKA needs {hsic.MIN_IMAGES}."
        )
    if settings.batch_size < _MIN_BATCH:
        raise UsageError(
            f"cka.batch_size={settings.batch_size}: expected {_MIN_BATCH} or more, for the unbiased"
            f" estimate needs {hsic.MIN_IMAGES} images in every batch."
        )
    for name in (settings.run, *settings.other):
        if name and name != "pretrained" and _is_folder(name):
            Result.read(Path(name))
    own = [] if settings.run else [(config.backbone.name, config.backbone.last_block)]
    others = [(other.backbone, -1) for other in _others(config)]
    widths = [_width(config, info, name, last_block) for name, last_block in (*own, *others)]
    if settings.estimator == "exact":
        _check_size(count * sum(widths))


def _width(config: BaseConfig, info: DatasetInfo, name: str, last_block: int) -> int:
    """Count the features of an image at all layers of a backbone; `UsageError` for none."""
    spec, side = BACKBONES[name], config.image_size
    arch = dataclasses.replace(spec.arch, in_channels=info.channels).sized(side, side)
    arch = arch if last_block < 0 else arch.truncated(last_block)
    shapes = jax.eval_shape(
        lambda images: _walk(
            create(spec.family, arch, Execution(), 0), images, section(config, CkaConfig).features
        )[0],
        jax.ShapeDtypeStruct((1, side, side, info.channels), np.float32),
    )
    return sum(math.prod(shape.shape) for shape in shapes.values())


def _check_size(numbers: int) -> None:
    """Refuse more features than "exact" may keep."""
    needed = 4 * numbers
    if needed > EXACT_BYTES:
        raise UsageError(
            f"cka.estimator='exact' keeps {needed / 2**30:.1f} GiB of features here, and"
            f" {EXACT_BYTES / 2**30:.0f} GiB is the most: expected cka.estimator='summed', or"
            " narrower features (cka.features='pooled' or 'cls')."
        )


def _networks(run: Run) -> list[Network]:
    """The first network and the others, as `CkaConfig` names them."""
    settings = section(run.config, CkaConfig)
    networks = [run.finished(Path(settings.run)) if settings.run else run.network()]
    for name in settings.other:
        if name != "pretrained":
            networks.append(_named(run, name))
        elif settings.run:
            networks.append(run.started(Path(settings.run)))
        elif run.trained:  # else the first is that very network
            networks.append(run.network(run.config))
    return networks


def _is_folder(name: str) -> bool:
    """Test whether an entry of `cka.other` is a run's folder, not `NAME` or `NAME:WEIGHTS`."""
    backbone = name.partition(":")[0]
    return "/" in backbone or Path(backbone).exists()


def _named(run: Run, name: str) -> Network:
    if _is_folder(name):
        return run.finished(Path(name))
    backbone, _, weights = name.partition(":")
    own = run.config.backbone
    other = BackboneConfig(
        name=backbone,
        weights=weights,
        weights_dir=own.weights_dir,
        stem=own.stem,
        dtype=own.dtype,
    )
    return run.network(plain(run.config, other, "cka"))


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered where two networks have the same."""
    return [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def layers(module: Any, images: Float[Array, "b h w c"], kind: str) -> dict[str, Array]:
    """Features of every layer of a classifier by name, each `[b, ...]`, from one forward pass.

    A layer is what enters the first block ("embedding") or leaves a block ("block 0", ...),
    before any norm that a head would put after it; those of a stacked transformer follow under
    "transformer ...".

    Args:
      module: network with a `backbone`, and a `projector` and a `transformer` if it is stacked.
      images: input of the module.
      kind: "all": everything that a layer puts out; "patches": without [cls] and other tokens
        that are no part of the image; "cls"; or "pooled": what a head would read there. The last
        two have no embedding: [cls] is the same for every image there.

    Raises:
      UsageError: [cls] of a network that has none.
    """
    found, features = _walk(module.backbone, images, kind)
    if hasattr(module, "transformer"):
        upper, _ = _walk(module.transformer, module.projector(features.tokens), kind)
        found |= {f"transformer {name}": value for name, value in upper.items()}
    return found


def _walk(backbone: Backbone, images: Array, kind: str) -> tuple[dict[str, Array], Features]:
    """The layers of one backbone, and the features after the last of them."""
    grid = backbone.grid(images.shape[1], images.shape[2])
    outputs = backbone.outputs(images, len(backbone.blocks))
    x = next(outputs)
    found = {} if kind in ("cls", "pooled") else {"embedding": _tokens(x, grid, kind)}
    features = None
    for i, x in enumerate(outputs):
        features = backbone.readout(x, i, grid)
        if kind == "cls" and features.cls is None:
            raise UsageError(
                "cka.features='cls': a network without a [cls] token is among those compared;"
                " expected 'all', 'patches' or 'pooled'."
            )
        found[f"block {i}"] = features.pooled if kind == "pooled" else _tokens(x, grid, kind)
    assert features is not None
    return found, features


def _tokens(x: Array, grid: tuple[int, int], kind: str) -> Array:
    """Part of the output of a layer: a map `[b, h, w, d]`, or tokens `[b, n, d]`, [cls] first
    and the patches last."""
    if kind == "cls":
        return x[:, 0]
    return x[:, -grid[0] * grid[1] :] if kind == "patches" and x.ndim == 3 else x


def _shapes(network: Network, run: Run) -> dict[str, tuple[int, ...]]:
    """Shape of the features of an image at every layer, by the layer's name."""
    info, names = run.dataset.info, []
    kind = section(run.config, CkaConfig).features

    def trace(arrays: Arrays, images: Array) -> list[Array]:
        found = layers(network.partition.merge(arrays), network.preprocess(images), kind)
        names.extend(found)  # a tree of results would be sorted
        return list(found.values())

    images = jax.ShapeDtypeStruct((1, info.size, info.size, info.channels), np.uint8)
    shapes = jax.eval_shape(trace, network.arrays, images)
    return {name: shape.shape[1:] for name, shape in zip(names, shapes, strict=True)}


def _step(
    network: Network, run: Run, of_layer: Callable[[Array, Array], Array]
) -> Callable[[Batch], list[np.ndarray]]:
    """Make the function that computes `of_layer(features, mask)` for every layer of a batch."""
    mesh, kind = run.mesh, section(run.config, CkaConfig).features
    step = network.step(
        mesh,
        lambda module, x: list(layers(module, x, kind).values()),
        lambda found, batch: [of_layer(features, batch["mask"]) for features in found],
    )
    return lambda batch: jax.device_get(step(network.arrays, parallel.to_devices(mesh, batch)))


def _grams(
    run: Run, networks: Sequence[Network], rows: Sequence[np.ndarray]
) -> Iterator[Float[np.ndarray, "l n n"]]:
    """The kernel matrices of all layers of all networks, batch by batch."""
    steps = [_step(network, run, hsic.gram) for network in networks]
    batches = batches_of(run, section(run.config, CkaConfig).split, rows)
    for batch, some in zip(batches, rows, strict=True):
        grams = np.stack([gram for step in steps for gram in step(batch)])
        yield grams[:, : len(some), : len(some)]


def _features(
    run: Run, networks: Sequence[Network], rows: Sequence[np.ndarray]
) -> list[Float[np.ndarray, "n f"]]:
    """The features of all images at all layers of all networks; `UsageError` if too many."""
    count = sum(map(len, rows))
    widths = [math.prod(shape) for network in networks for shape in _shapes(network, run).values()]
    _check_size(count * sum(widths))
    steps = [
        _step(network, run, lambda x, mask: x.reshape(x.shape[0], -1).astype(np.float32))
        for network in networks
    ]
    found = [np.empty((count, width), np.float32) for width in widths]
    start = 0
    batches = batches_of(run, section(run.config, CkaConfig).split, rows)
    for batch, some in zip(batches, rows, strict=True):
        parts = [part for step in steps for part in step(batch)]
        for kept, part in zip(found, parts, strict=True):
            kept[start : start + len(some)] = part[: len(some)]
        start += len(some)
    return found


def _write_table(
    path: Path, titles: Sequence[str], names: Sequence[Sequence[str]], matrix: np.ndarray
) -> None:
    """Every layer of every network in a row and in a column."""
    layers = [
        f"{title}: {name}" for title, some in zip(titles, names, strict=True) for name in some
    ]
    rows = [[name, *map(repr, row)] for name, row in zip(layers, matrix.tolist(), strict=True)]
    atomic.write_bytes(path, atomic.csv_bytes([["layer", *layers], *rows]))


def _rounded(matrix: np.ndarray) -> list[list[float | None]]:
    """Round values for JSON; undefined ones become None."""
    return [[None if math.isnan(x) else round(x, 6) for x in row] for row in matrix.tolist()]


def _text(pairs: Sequence[Mapping[str, Any]]) -> str:
    """The CKA of every pair of networks, layer by layer where they have the same ones."""
    lines = []
    for pair in pairs:
        (rows, columns), values = pair["layers"], pair["cka"]
        lines.append(f"CKA of {' and '.join(pair['networks'])}")
        found = (
            [(name, values[i][i]) for i, name in enumerate(rows)]
            if rows == columns
            else [(f"{rows[-1]} and {columns[-1]}", values[-1][-1])]
        )
        lines += [
            f"  {name:<24} {'undefined' if value is None else format(value, '.3f')}"
            for name, value in found
        ]
    return "\n".join(lines)


def _others(config: BaseConfig) -> list[PretrainedNetwork]:
    named = [
        other.partition(":")
        for other in section(config, CkaConfig).other
        if other != "pretrained" and not _is_folder(other)
    ]
    return [PretrainedNetwork("cka.other", name, weights) for name, _, weights in named]


def _images(config: BaseConfig, counts: Mapping[str, int]) -> Images:
    """Count every image of the split once for each network."""
    settings = section(config, CkaConfig)
    return Images(0, counts[settings.split] * (1 + len(settings.other)))


SPEC = JudgeSpec(
    labels=tuple(Label),
    name="cka",
    summary="similarity of the layers of networks (CKA)",
    judge=judge,
    shows="analysis",
    options=CkaConfig,
    reads=("cka",),
    images=_images,
    networks=_others,
    after="cka.run",
    check=_check,
    label="CKA of the last layer",
)
