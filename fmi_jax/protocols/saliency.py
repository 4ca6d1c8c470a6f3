"""Saliency: where a network looks, drawn over images, and judged where masks say what is there.

Paper, Figure 1 (attention of [cls]). Backbones show maps of their own (`Backbone.own_maps`), and
every classifier Grad-CAM and gradient times input for the class of its largest logit. Where data
have masks or boxes every map is compared with them; without any, by what deleting and inserting
its pixels does to the class. Beside stand two that know nothing: the same maps of a network with
random weights, and a Gaussian at the centre.
"""

import copy
import dataclasses
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int

from fmi_jax import atomic, parallel
from fmi_jax.artifacts.charts import Lines
from fmi_jax.artifacts.result import Result
from fmi_jax.augment.crop import center_crop
from fmi_jax.data.labels import IGNORE, Label, resized_maps
from fmi_jax.data.masks import masked_rows, masks_of
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.errors import UsageError
from fmi_jax.fields import set_fields
from fmi_jax.models.registry import BACKBONES
from fmi_jax.protocols.judging import Network, Run, batches_of
from fmi_jax.protocols.spec import Finding, Images, JudgeSpec
from fmi_jax.rules import not_negative, one_of, positive
from fmi_jax.saliency import attention, gradient
from fmi_jax.saliency.agreement import Agreement, agreement, centred
from fmi_jax.saliency.cases import Case, chosen
from fmi_jax.saliency.comparison import CENTRE, Yardstick, compare, table
from fmi_jax.saliency.curves import STEPS, area, deletion_and_insertion
from fmi_jax.saliency.maps import TITLES, logits_of, maps_of, own_maps
from fmi_jax.saliency.pictures import overlays, pictures
from fmi_jax.settings import BaseConfig, section
from fmi_jax.tasks.base import members


@dataclasses.dataclass(slots=True)
class SaliencyConfig:
    """Maps of where a network looks (protocol `saliency`).

    Attributes:
      run: folder of a finished run whose network is shown; empty: the network that the config
        describes, as the run has trained it.
      split: split whose images are shown.
      cases: images of each class that are shown of each kind: correct, wrong and uncertain.
      curves: images, at even distances through the split, whose deletion and insertion curves are
        computed, some 400 forward passes for each; 0: none.
      batch_size: images per batch.
    """

    run: str = ""
    split: str = one_of("test", "train", "val", "test")
    cases: int = positive(2)
    curves: int = not_negative(0)
    batch_size: int = positive(32)


FILE = "saliency.npz"
_MOST_ROWS = 12  # of one figure
_OUTLINED = " Line: outline of the mask, where an image has one."
_PASSES = 2 * 9 * (STEPS + 1)  # of an image, for its curves: four maps, twice, and the centre
_CURVES_FILE = "saliency_curves.png"
_CURVES_CAPTION = (
    "Mean probability of the predicted class while the pixels that a map ranks first are deleted,"
    " or put into a blurred image. Dotted: the same map of a network with random weights."
)
_ON_MASKS = Yardstick(
    titles={"pointing": "pointing game", "energy": "energy inside", "precision": "AP per pixel"},
    least={"pointing": 0, "energy": 0, "precision": 0},
    deciding="precision",
    words="average precision per pixel",
    claim="find what the masks show",
)
_ON_CURVES = Yardstick(
    titles={"deletion": "deletion", "insertion": "insertion", "difference": "their difference"},
    least={"deletion": 0, "insertion": 0, "difference": -1},
    deciding="difference",
    words="the areas, insertion less deletion,",
    claim="rank the pixels that the class hangs on",
)


def judge(run: Run) -> Finding:
    """Draw and compare the maps of a network; see `SaliencyConfig`.

    Writes `saliency.npz`: the maps of all images that are shown.

    Raises:
      UsageError: no such network, or one that has neither a map of its own nor a classifier.
    """
    settings = section(run.config, SaliencyConfig)
    network = run.finished(Path(settings.run)) if settings.run else run.network()
    classes, own = _has(network, run)
    if not classes and not own:
        raise _nothing_to_show(network.spec.name)
    cases = _cases(run, network, classes)
    batches = list(
        _computed(
            run,
            network,
            [case.row for case in cases],
            pictures(network.info.mean, network.info.std),
        )
    )
    shown = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    if masked := masked_rows(run.dataset, settings.split):
        shown["masks"] = _masks(run, network, [case.row for case in cases])
    if run.active:
        _write_maps(run.workdir / FILE, run.dataset.ids(settings.split), cases, shown)
    charts, captions = {}, {}
    for kind in dict.fromkeys(case.kind for case in cases):
        at = [i for i, case in enumerate(cases) if case.kind == kind]
        name = f"saliency_{kind}.png"
        first = at[:_MOST_ROWS]
        charts[name] = overlays(
            [cases[i].words for i in first], {name: value[first] for name, value in shown.items()}
        )
        captions[name] = _caption(kind, network.name, len(at)) + _OUTLINED * bool(masked)
    values: dict[str, Any] = {
        "networks": [network.name],
        "split": settings.split,
        "cases": [
            {"id": run.dataset.ids(settings.split)[case.row], "kind": case.kind} for case in cases
        ],
    }
    texts, notes = [], []
    if masked:
        values["agreement"], more = _agreement(run, network, masked)
        texts.append(table(_ON_MASKS, values["agreement"], "with something in the mask"))
        notes += more
    if settings.curves and not classes:
        notes.append(
            "Curves are of a class's probability: this network has no classifier, so there are none"
            " (saliency.curves)."
        )
    if classes and settings.curves:
        values["curves"], more, charts[_CURVES_FILE] = _curves(run, network)
        captions[_CURVES_FILE] = _CURVES_CAPTION
        texts.append(table(_ON_CURVES, values["curves"], "at even distances through the split"))
        notes += more
    return Finding(
        judge="saliency",
        title=f"Where {network.name} looks",
        values=values,
        text="\n\n".join(filter(None, texts)),
        figures=captions,
        charts=charts,
        notes=tuple(notes),
    )


def _check(config: BaseConfig, info: DatasetInfo) -> None:
    """Refuse a network that has nothing to show, before anything is computed."""
    settings = section(config, SaliencyConfig)
    if not info.counts[settings.split]:
        raise UsageError(
            f"saliency.split={settings.split!r} has no images: expected a split that has some."
        )
    if config.protocol != SPEC.name:
        if settings.run:
            raise UsageError(
                f"saliency.run={settings.run!r}: beside protocol {config.protocol!r} the network is"
                " that of this run; expected saliency.run empty."
            )
    elif settings.run:
        Result.read(Path(settings.run))
    elif not BACKBONES[config.backbone.name].family.own_maps:
        raise _nothing_to_show(config.backbone.name)


def _nothing_to_show(name: str) -> UsageError:
    own = BACKBONES[name].family.own_maps
    why = (
        f"the last block of {name} attends within several windows, so attention that is received"
        " says nothing of the whole image"
        if own
        else f"{name} has no map of its own (`fmi-jax models` says which have)"
    )
    return UsageError(
        f"{why}, and no classifier whose gradient could be shown: expected saliency.run=FOLDER of"
        " a run that has trained a classifier."
    )


def _has(network: Network, run: Run) -> tuple[int, set[str]]:
    """Number of classes of a network, 0 for one that does not classify images, and the names of
    its own maps."""
    info = run.dataset.info
    images = jax.ShapeDtypeStruct((1, info.size, info.size, info.channels), np.uint8)

    def both(arrays: Any, images: Array) -> tuple[Array, dict[str, Array]]:
        module, entering = network.partition.merge(arrays), network.preprocess(images)
        own = own_maps(*attention.read_by_head(module, entering))
        return logits_of(module, entering), own

    logits, own = jax.eval_shape(both, network.arrays, images)
    return logits.shape[1], {*own}


def _computed(
    run: Run,
    network: Network,
    rows: Sequence[int],
    compute: Callable[..., dict[str, Array]],
    *kept: str,
    maps: Iterator[np.ndarray] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Compute arrays of these images, batch by batch.

    Args:
      run, network: run and network.
      rows: rows of the split.
      compute: function for `Network.step`.
      kept: names of parts of the batch to add.
      maps: array of the images of each batch that `compute` takes, too; None: it takes none.
    """
    settings = section(run.config, SaliencyConfig)
    step = network.step(
        run.mesh,
        compute,
        lambda found, batch: {**found, **{name: batch[name] for name in kept}},
        *(() if maps is None else ("maps",)),
    )
    size = settings.batch_size
    parts = [np.asarray(rows[i : i + size]) for i in range(0, len(rows), size)]
    places = parallel.held_places(run.mesh, parallel.whole_shares(run.mesh, max(map(len, parts))))
    for batch, part in zip(batches_of(run, settings.split, parts), parts, strict=True):
        if maps is not None:
            value = next(maps)
            maps_held = value[np.minimum(places, len(value) - 1)]  # padding has any image's
            batch = {**batch, "maps": maps_held}
        placed = parallel.to_devices(run.mesh, batch)  # type: ignore[arg-type]
        found = jax.device_get(step(network.arrays, placed))
        yield {name: value[: len(part)] for name, value in found.items()}


def _cases(run: Run, network: Network, classes: int) -> list[Case]:
    """Choose the images to show, where possible of every class and kind."""
    settings, info = section(run.config, SaliencyConfig), run.dataset.info
    count = info.counts[settings.split]
    own = info.classes
    if settings.run:
        own = tuple(Result.read(Path(settings.run)).dataset["classes"])
    if not classes or info.label.of_pixels or own != info.classes:
        rows = np.unique(np.linspace(0, count - 1, min(count, 3 * settings.cases)).astype(int))
        return [Case(row, "image", "") for row in rows.tolist()]
    batches = _computed(
        run, network, range(count), lambda module, x: {"logits": logits_of(module, x)}
    )
    logits = np.concatenate([batch["logits"] for batch in batches]).astype(np.float64)
    return list(chosen(logits, run.dataset.labels(settings.split), info.classes, settings.cases))


def _write_maps(
    path: Path, ids: Sequence[str], cases: Sequence[Case], shown: Mapping[str, np.ndarray]
) -> None:
    file = io.BytesIO()
    np.savez_compressed(
        file,
        ids=np.array([ids[case.row] for case in cases]),
        kinds=np.array([case.kind for case in cases]),
        **shown,  # type: ignore[arg-type]
    )
    atomic.write_bytes(path, file.getvalue())


def _caption(kind: str, name: str, count: int) -> str:
    which = {
        "correct": "Images of every class that were classified correctly, the surest",
        "wrong": "Images of every class that were classified wrongly, the surest",
        "uncertain": "Images of every class that were classified with the least certainty",
        "image": "Images at even distances through the split",
    }[kind]
    more = f"; {count - _MOST_ROWS} more in {FILE}" if count > _MOST_ROWS else ""
    return f"{which}{more}: where {name} looks. Gradients are those of the predicted class."


def _random(run: Run, network: Network) -> Network:
    """Draw random weights for the network."""
    config = copy.deepcopy(network.config)
    set_fields(config, {"backbone.weights": "", "backbone.run": "", "transformer.weights": ""})
    return run.network(config)


def _members(run: Run, rows: Iterable[int]) -> Int[np.ndarray, "n"]:
    groups = run.dataset.groups(section(run.config, SaliencyConfig).split)
    rows = [*rows]
    return members(None if groups is None else [groups[row] for row in rows], len(rows))


def _agreement(
    run: Run, network: Network, masked: Sequence[int]
) -> tuple[dict[str, Any], list[str]]:
    """Compare every map with the masks of these rows, and with maps that know nothing."""
    settings = section(run.config, SaliencyConfig)
    own, rows = _measured(run, network, masked)
    if not len(rows):
        return {}, [f"No mask of the {settings.split} images has anything in it."]
    drawn, _ = _measured(run, _random(run, network), masked)
    notes, count = [], run.dataset.info.counts[settings.split]
    if len(masked) < count:
        notes.append(
            f"{len(masked)} of the {count} {settings.split} images have a mask: the numbers on"
            " masks leave out the others."
        )
    if settings.run:
        notes.append(
            f"The {settings.split} images are those of {run.dataset.info.name!r}: the network may"
            " have been trained on some of them."
        )
    centre = own.pop(CENTRE)
    values, more = compare(_ON_MASKS, own, drawn, centre, _members(run, rows))
    return values, notes + more


def _curves(run: Run, network: Network) -> tuple[dict[str, Any], list[str], Lines]:
    """Delete and insert pixels in the order of every map, and of maps that know nothing."""
    settings, info = section(run.config, SaliencyConfig), run.dataset.info
    # Of the classifier's own classes: the images shown may have labels of another form.
    label = Label(Result.read(Path(settings.run)).dataset["label"]) if settings.run else info.label
    count, side = info.counts[settings.split], network.config.image_size
    rows = np.unique(np.linspace(0, count - 1, min(count, settings.curves)).astype(int)).tolist()

    def compute(module: Any, images: Array, maps: Array) -> dict[str, Array]:
        logits = logits_of(module, images)
        target = logits.argmax(axis=1)[:, None]

        def probability(images: Array) -> Array:
            logits = logits_of(module, images).astype(jnp.float32)
            shares = jax.nn.softmax(logits) if label is Label.INDEX else nnx.sigmoid(logits)
            return jnp.take_along_axis(shares, target, axis=1)[:, 0]

        return {"curves": deletion_and_insertion(probability, images, maps)}

    def maps() -> Iterator[np.ndarray]:
        both = [_computed(run, one, rows, _enlarged(side)) for one in (network, drawn)]
        for own, other in zip(*both, strict=True):
            centre = np.broadcast_to(centred(side, side), next(iter(own.values())).shape)
            titles[:] = [name for name in TITLES if name in own]
            each = [*(own[x] for x in titles), *(other[x] for x in titles), centre]
            yield np.stack(each, axis=1).astype(np.float32)

    titles: list[str] = []
    drawn = _random(run, network)
    found = np.concatenate(
        [batch["curves"] for batch in _computed(run, network, rows, compute, maps=maps())]
    ).astype(np.float64)
    areas = area(found)
    each = [
        {"deletion": lost, "insertion": won, "difference": won - lost}
        for lost, won in zip(*np.moveaxis(areas, 2, 0).swapaxes(1, 2), strict=True)
    ]
    n = len(titles)
    names = [TITLES[name] for name in titles]
    values, notes = compare(
        _ON_CURVES,
        dict(zip(names, each[:n], strict=True)),
        dict(zip(names, each[n:-1], strict=True)),
        each[-1],
        _members(run, rows),
    )
    of_image = found.mean(axis=0)  # [maps, 2, points]
    blurry, whole = of_image[0, 1, [0, -1]]
    if blurry > 0.9 * whole:
        notes.append(
            f"Blurring hides little: the predicted class has probability {blurry:.3f} in blurred"
            f" images and {whole:.3f} in whole ones, so insertion hardly tells maps apart."
        )
    lines = {name: of_image[[i, n + i]] for i, name in enumerate(names)} | {CENTRE: of_image[-1:]}
    chart = Lines(
        x="Share of the pixels",
        y="Probability of the predicted class",
        panels={
            title: {name: line[:, kind] for name, line in lines.items()}
            for kind, title in enumerate(("Deletion", "Insertion"))
        },
    )
    return values, notes, chart


def _enlarged(side: int) -> Callable[[Any, Array], dict[str, Array]]:
    """Make the function that computes every map at the size of the image."""

    def compute(module: Any, images: Array) -> dict[str, Array]:
        found = {name: x for name, x in maps_of(module, images).items() if name != "heads"}
        return {name: gradient.enlarged(x, side, side) for name, x in found.items()}

    return compute


def _masks(run: Run, network: Network, rows: Sequence[int]) -> Bool[np.ndarray, "n side side"]:
    """Where something is in images, as the network sees them."""
    split, side = section(run.config, SaliencyConfig).split, network.config.image_size
    masks = jnp.asarray(masks_of(run.dataset, split, rows))[..., None]
    masks = center_crop(masks, network.config.augment.center_crop)[..., 0]
    masks = np.asarray(resized_maps(masks, side, side))
    return (masks > 0) & (masks != IGNORE)


def _measured(
    run: Run, network: Network, masked: Sequence[int]
) -> tuple[dict[str, Mapping[str, np.ndarray]], Int[np.ndarray, "n"]]:
    """Agreement of every map with the masks that have anything in them, and those rows."""
    parts: dict[str, list[Agreement]] = {}
    rows, side = [], network.config.image_size
    for batch in _computed(run, network, masked, _enlarged(side), "index"):
        index = batch["index"]
        inside = _masks(run, network, index.tolist())
        some = inside.any(axis=(1, 2))
        rows.append(index[some])
        maps = {TITLES[name]: batch[name] for name in TITLES if name in batch}
        maps[CENTRE] = np.broadcast_to(centred(side, side), inside.shape)
        for title, value in maps.items():
            parts.setdefault(title, []).append(agreement(value[some], inside[some]))
    joined: dict[str, Mapping[str, np.ndarray]] = {
        title: Agreement(*(np.concatenate(x) for x in zip(*some, strict=True)))._asdict()
        for title, some in parts.items()
    }
    return joined, np.concatenate(rows)


def _images(config: BaseConfig, counts: Mapping[str, int]) -> Images:
    """Count the pass that chooses the images to show, and those of the curves."""
    settings = section(config, SaliencyConfig)
    count = counts[settings.split]
    return Images(0, count + _PASSES * min(count, settings.curves))


SPEC = JudgeSpec(
    labels=tuple(Label),
    name="saliency",
    summary="maps of where a network looks (saliency)",
    judge=judge,
    shows="analysis",
    options=SaliencyConfig,
    reads=("saliency",),
    images=_images,
    after="saliency.run",
    check=_check,
)
