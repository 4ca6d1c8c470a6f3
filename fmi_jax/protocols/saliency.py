"""Saliency: where a network looks, drawn over images, and judged where masks say what is there.

Paper, Figure 1 (attention of [cls]). A vision transformer shows the attention of its last block
and the rollout through all of them; every classifier shows Grad-CAM and gradient times input for
the class of its largest logit. On a data set of masks every map is compared with them, beside two
that know nothing: the same maps of a network with random weights, and a Gaussian at the centre.
"""

import copy
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fmi_jax import atomic, parallel
from fmi_jax.artifacts.charts import Overlays
from fmi_jax.artifacts.result import Result
from fmi_jax.augment.crop import center_crop
from fmi_jax.data.labels import IGNORE, Label, resized_maps
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.errors import UsageError
from fmi_jax.models.registry import BACKBONES
from fmi_jax.nn import resize
from fmi_jax.protocols.judging import Network, Run, batches_of
from fmi_jax.protocols.spec import Finding, Images, JudgeSpec
from fmi_jax.rules import one_of, positive
from fmi_jax.saliency import attention, gradient
from fmi_jax.saliency.agreement import Agreement, agreement, centred, standard_error
from fmi_jax.saliency.cases import Case, chosen
from fmi_jax.saliency.maps import HALF, PIXELWISE, TITLES, logits_of, maps_of, own_maps
from fmi_jax.settings import BaseConfig, section, set_fields
from fmi_jax.tasks.base import members
from fmi_jax.tasks.intervals import Z, scaled


@dataclasses.dataclass(slots=True)
class SaliencyConfig:
    """Maps of where a network looks (protocol `saliency`).

    Attributes:
      run: folder of a finished run whose network is shown; empty: the network that the config
        describes, as the run has trained it.
      split: split whose images are shown.
      cases: images of each class that are shown of each kind: correct, wrong and uncertain.
      batch_size: images per batch.
    """

    run: str = ""
    split: str = one_of("test", "train", "val", "test")
    cases: int = positive(2)
    batch_size: int = positive(32)


FILE = "saliency.npz"
_MEASURES = {"pointing": "pointing game", "energy": "energy inside", "precision": "AP per pixel"}
_CENTRE = "Centred Gaussian"
_MOST_ROWS = 12  # of one figure
_INTERVAL = "standard error between groups, logit scale"


def judge(run: Run) -> Finding:
    """Draw and compare the maps of a network; see `SaliencyConfig`.

    Writes `saliency.npz`: the maps of all images that are shown.

    Raises:
      UsageError: no such network, or one that has neither a [cls] token nor a classifier.
    """
    settings, info = section(run.config, SaliencyConfig), run.dataset.info
    network = run.finished(Path(settings.run)) if settings.run else run.network()
    classes, own = _has(network, run)
    if not classes and not own:
        raise _nothing_to_show(network.spec.name)
    cases = _cases(run, network, classes)
    batches = list(_computed(run, network, [case.row for case in cases], pictures(network)))
    shown = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
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
        captions[name] = _caption(kind, network.name, len(at))
    values: dict[str, Any] = {
        "networks": [network.name],
        "split": settings.split,
        "cases": [
            {"id": run.dataset.ids(settings.split)[case.row], "kind": case.kind} for case in cases
        ],
    }
    text, notes = "", ()
    if info.label is Label.MAP:
        values["agreement"], notes = _agreement(run, network)
        text = _text(values["agreement"])
    return Finding(
        judge="saliency",
        title=f"Where {network.name} looks",
        values=values,
        text=text,
        figures=captions,
        charts=charts,
        notes=notes,
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
    compute: Callable[[Any, Array], dict[str, Array]],
    *kept: str,
) -> Iterator[dict[str, np.ndarray]]:
    """Compute arrays of these images, batch by batch; `kept` names parts of the batch to add."""
    settings = section(run.config, SaliencyConfig)
    step = network.step(
        run.mesh,
        compute,
        lambda found, batch: {**found, **{name: batch[name] for name in kept}},
    )
    size = settings.batch_size
    parts = [np.asarray(rows[i : i + size]) for i in range(0, len(rows), size)]
    for batch, part in zip(batches_of(run, settings.split, parts), parts, strict=True):
        found = jax.device_get(step(network.arrays, parallel.to_devices(run.mesh, batch)))
        yield {name: value[: len(part)] for name, value in found.items()}


def pictures(network: Network) -> Callable[[Any, Array], dict[str, Array]]:
    """Make the function that computes what is drawn, for `Network.step`.

    That is `maps_of`, the mask of the top half of the attention, and "images", uint8, as the
    network sees them.
    """
    mean, std = (np.asarray(x, np.float32) for x in (network.info.mean, network.info.std))

    def compute(module: Any, images: Array) -> dict[str, Array]:
        found = maps_of(module, images)
        if "attention" in found:
            found[HALF] = attention.top_mass(found["attention"], 0.5)
        pixels = jnp.round(255 * (images.astype(jnp.float32) * std + mean)).clip(0, 255)
        return {**found, "images": pixels.astype(jnp.uint8)}

    return compute


def overlays(names: Sequence[str], drawn: Mapping[str, np.ndarray]) -> Overlays:
    """Make the chart of images under their maps, from what `pictures` computes."""
    height, width = drawn["images"].shape[1:3]
    maps = {}
    for name, title in TITLES.items():
        if name in drawn:
            kernel = resize.nearest if name == HALF else resize.linear
            found = gradient.enlarged(jnp.asarray(drawn[name]), height, width, kernel)
            if name == PIXELWISE:  # a few pixels would leave all others dark
                highest = jnp.quantile(found, 0.99, axis=(1, 2), keepdims=True)
                found = jnp.minimum(found, highest)
            maps[title] = np.asarray(gradient.scaled(found))
    return Overlays(names=names, images=drawn["images"], maps=maps)


def _cases(run: Run, network: Network, classes: int) -> list[Case]:
    """Choose the images to show, where possible of every class and kind."""
    settings, info = section(run.config, SaliencyConfig), run.dataset.info
    count = info.counts[settings.split]
    own = info.classes
    if settings.run:
        own = tuple(Result.read(Path(settings.run)).dataset["classes"])
    if not classes or info.label is Label.MAP or own != info.classes:
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


def _agreement(run: Run, network: Network) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Compare every map with the masks of the split, and with maps that know nothing."""
    settings = section(run.config, SaliencyConfig)
    config = copy.deepcopy(network.config)
    set_fields(config, {"backbone.weights": "", "backbone.run": "", "transformer.weights": ""})
    found, rows = _measured(run, network)
    if not len(rows):
        return {}, (f"No mask of the {settings.split} images has anything in it.",)
    drawn, _ = _measured(run, run.network(config))
    groups = run.dataset.groups(settings.split)
    member = members(None if groups is None else [groups[row] for row in rows], len(rows))
    centre = found.pop(_CENTRE)
    table, notes = {}, []
    if settings.run:
        notes.append(
            f"The {settings.split} images are those of {run.dataset.info.name!r}: the network may"
            " have been trained on some of them."
        )
    for name in (name for name in TITLES if name in found):
        own = found[name]
        rivals = {"random weights": drawn[name], "the centre of the image": centre}
        ahead = {
            words: _interval_of_mean(own.precision - rival.precision, member)
            for words, rival in rivals.items()
        }
        table[TITLES[name]] = {
            "trained": _summary(own, member),
            "random weights": _summary(drawn[name], member),
            "ahead_of": ahead,
        }
        lost = [words for words, (low, _) in ahead.items() if not low > 0]
        if lost:
            notes.append(
                f"{TITLES[name]} is not shown to find what the masks show better than"
                f" {' and '.join(lost)}: the 95% interval of the difference in average precision"
                " per pixel is not above 0."
            )
    return {
        "images": len(rows),
        "groups": int(member.max()) + 1,
        "interval": _INTERVAL,
        "methods": table,
        _CENTRE: _summary(centre, member),
    }, tuple(notes)


def _measured(run: Run, network: Network) -> tuple[dict[str, Agreement], Int[np.ndarray, "n"]]:
    """Agreement of every map with the masks that have anything in them, and those rows."""
    parts: dict[str, list[Agreement]] = {}
    rows = []
    split = section(run.config, SaliencyConfig).split
    side, crop = network.config.image_size, network.config.augment.center_crop

    def compute(module: Any, images: Array) -> dict[str, Array]:
        found = {name: x for name, x in maps_of(module, images).items() if name != "heads"}
        return {name: gradient.enlarged(x, side, side) for name, x in found.items()}

    every = range(run.dataset.info.counts[split])
    for batch in _computed(run, network, every, compute, "labels", "index"):
        masks = center_crop(jnp.asarray(batch.pop("labels"))[..., None], crop)[..., 0]
        masks = np.asarray(resized_maps(masks, side, side))
        index, inside = batch.pop("index"), (masks > 0) & (masks != IGNORE)
        some = inside.any(axis=(1, 2))
        rows.append(index[some])
        batch[_CENTRE] = np.broadcast_to(centred(side, side), masks.shape)
        for name, value in batch.items():
            parts.setdefault(name, []).append(agreement(value[some], inside[some]))
    joined = {
        name: Agreement(*(np.concatenate(x) for x in zip(*some, strict=True)))
        for name, some in parts.items()
    }
    return joined, np.concatenate(rows)


def _summary(found: Agreement, member: Int[np.ndarray, "n"]) -> dict[str, dict[str, float]]:
    return {
        name: {"value": float(value.mean()), **_ends(value, member)}
        for name, value in found._asdict().items()
    }


def _ends(values: Float[np.ndarray, "n"], member: Int[np.ndarray, "n"]) -> dict[str, float]:
    interval = scaled(float(values.mean()), standard_error(values, member), (0.0, 1.0), _INTERVAL)
    return {"low": interval.low, "high": interval.high} if interval.defined else {}


def _interval_of_mean(
    values: Float[np.ndarray, "n"], member: Int[np.ndarray, "n"]
) -> tuple[float, float]:
    """95% interval of the mean of differences between pairs; NaN with fewer than two groups."""
    mean, half = float(values.mean()), Z * standard_error(values, member)
    return mean - half, mean + half


def _text(found: Mapping[str, Any]) -> str:
    """Table of the agreement with masks."""
    if not found:
        return ""

    def line(name: str, row: Mapping[str, Mapping[str, float]]) -> str:
        cells = [
            f"{one['value']:.3f}"
            + (f" ({one['low']:.3f}-{one['high']:.3f})" if "low" in one else "")
            for one in (row[measure] for measure in _MEASURES)
        ]
        return f"{name:<36}" + "".join(f"{cell:>22}" for cell in cells)

    heading = f"{'':<36}" + "".join(f"{title:>22}" for title in _MEASURES.values())
    lines = [heading]
    for name, row in found["methods"].items():
        lines.append(line(name, row["trained"]))
        lines.append(line(f"  {name}, random weights", row["random weights"]))
    lines.append(line(_CENTRE, found[_CENTRE]))
    of = f" of {found['groups']} groups" if found["groups"] < found["images"] else ""
    lines.append(f"{found['images']} images{of} with something in the mask")
    return "\n".join(lines)


def _images(config: BaseConfig, counts: Mapping[str, int]) -> Images:
    """Count the pass that chooses the images to show, the largest part where there are no masks."""
    settings = section(config, SaliencyConfig)
    return Images(0, counts[settings.split])


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
