"""Segmentation: its loss, what it measures of an image, its metrics, its file and its heads."""

import csv
import functools
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from html_page import Page
from hypothesis import given, settings, strategies as st
from tiny_backbones import ONE_PER_FAMILY, TINY

from fmi_jax import parallel
from fmi_jax.artifacts.result import Best, Finding, Result
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.labels import IGNORE, Label
from fmi_jax.errors import UserError
from fmi_jax.fields import as_dict
from fmi_jax.models.base import Execution
from fmi_jax.models.deit import DeiT
from fmi_jax.protocols.heads.decoder import Decoder
from fmi_jax.protocols.heads.per_patch import PerPatchClassifier
from fmi_jax.report.page import write_report
from fmi_jax.settings import OptimConfig
from fmi_jax.tasks.base import Resampling
from fmi_jax.tasks.outlines import outlined
from fmi_jax.tasks.registry import describe, suitable
from fmi_jax.tasks.segmentation import MultilabelSegmentation, Segmentation
from fmi_jax.training import optim
from fmi_jax.training.partition import partition
from fmi_jax.training.step import initial_state, make_train_step, on_inputs
from fmi_jax.types import Batch, Rows

CLASSES = ("background", "drusen", "haemorrhage", "scar")
TASK = Segmentation(CLASSES)
B, SIDE = 5, 7
OLDER = {"id", "group", "loss", "overlap", "predicted", "true"}  # what earlier versions kept
MAKERS = [PerPatchClassifier, functools.partial(Decoder, width=128)]


def draw(seed: int, *, ignored: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Logits and masks of a batch; the last class is in no mask."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES) - 1, (B, SIDE, SIDE)).astype(np.uint8)
    labels[rng.random(labels.shape) < ignored] = IGNORE
    return rng.normal(0, 2, (B, SIDE, SIDE, len(CLASSES))).astype(np.float32), labels


@jax.jit
def measure(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    return TASK.measure(logits, {"labels": labels})


def measured(seed: int, **options: float) -> dict[str, np.ndarray]:
    return jax.tree.map(np.asarray, measure(*draw(seed, **options)))


def one_image_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Cross-entropy and soft Dice loss of an image, over lists of the pixels that count."""
    kept = labels != IGNORE
    if not kept.any():
        return 0.0
    z, y = logits[kept].astype(np.float64), labels[kept]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    dice = [
        (2 * p[y == c, c].sum() + 1) / (p[:, c].sum() + (y == c).sum() + 1)
        for c in range(1, len(CLASSES))
    ]
    return float(loss + 1 - np.mean(dice))


def test_masks_are_for_this_task_and_no_other() -> None:
    assert suitable(Label.MAP, CLASSES) is Segmentation
    assert {suitable(Label.INDEX, CLASSES[:n]).name for n in (2, 3)} == {"binary", "multiclass"}
    assert suitable(Label.VECTOR, CLASSES).name == "multilabel"
    assert suitable(Label.LAYERS, CLASSES) is MultilabelSegmentation
    assert describe("dice").higher_is_better
    assert TASK.metric(TASK.selects).score(0.5) > TASK.metric(TASK.selects).score(math.nan)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_the_loss_and_the_sums_of_an_image_are_those_of_its_pixels(seed, ignored) -> None:
    logits, labels = draw(seed, ignored=ignored)
    labels[0] = IGNORE
    found = jax.tree.map(np.asarray, measure(logits, labels))
    expected = [one_image_loss(*pair) for pair in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-4, atol=1e-5)
    predicted = logits.argmax(axis=-1)
    for c in range(len(CLASSES)):
        true = labels == c
        called = (predicted == c) & (labels != IGNORE)
        np.testing.assert_array_equal(found["true"][:, c], true.sum(axis=(1, 2)))
        np.testing.assert_array_equal(found["predicted"][:, c], called.sum(axis=(1, 2)))
        np.testing.assert_array_equal(found["intersection"][:, c], (true & called).sum(axis=(1, 2)))


def test_the_training_loss_is_the_measured_one_and_ignored_pixels_have_no_gradient() -> None:
    logits, labels = draw(3)

    @jax.jit
    def losses(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss, _ = TASK.loss(logits, {"labels": labels})
        gradient = jax.grad(lambda x: TASK.loss(x, {"labels": labels})[0].sum())(logits)
        return loss, gradient

    loss, gradient = map(np.asarray, losses(logits))
    np.testing.assert_allclose(loss, measured(3)["loss"], rtol=1e-5)
    assert (gradient[labels == IGNORE] == 0).all()
    assert (gradient[labels != IGNORE] != 0).any(axis=-1).all()
    perfect = 20.0 * np.eye(len(CLASSES))[np.minimum(labels, 3)]
    assert float(TASK.loss(jnp.asarray(perfect), {"labels": labels})[0].max()) < 0.01


def test_a_mask_of_another_size_is_compared_at_the_size_of_the_outputs() -> None:
    logits, labels = draw(4)
    large = labels.repeat(3, axis=1).repeat(3, axis=2)
    large[:, ::3], large[:, :, ::3] = IGNORE, IGNORE  # not at a centre
    found = TASK.measure(jnp.asarray(logits), {"labels": jnp.asarray(large)})
    for name, value in measured(4).items():
        np.testing.assert_allclose(np.asarray(found[name]), value, rtol=1e-5)


def test_metrics_are_of_the_pooled_pixels_and_nan_where_a_class_is_nowhere() -> None:
    logits, labels = draw(5)
    logits[..., 3] = -99  # never predicted, and in no mask
    found = jax.tree.map(np.asarray, measure(logits, labels))
    result = TASK.evaluate(found)
    counted = labels != IGNORE
    y, p = labels[counted], logits.argmax(axis=-1)[counted]
    dice = [2 * ((y == c) & (p == c)).sum() / ((y == c).sum() + (p == c).sum()) for c in (1, 2)]
    iou = [((y == c) & (p == c)).sum() / ((y == c) | (p == c)).sum() for c in (1, 2)]
    assert result.values["dice"] == pytest.approx(np.mean(dice))
    assert result.values["iou"] == pytest.approx(np.mean(iou))
    assert result.values["loss"] == pytest.approx(found["loss"].mean(), rel=1e-6)
    assert [result.per_class[name]["dice"] for name in CLASSES[1:3]] == pytest.approx(dice)
    assert math.isnan(result.per_class["scar"]["iou"])
    assert result.undefined == ("dice[scar]", "iou[scar]", "dice_where_present[scar]")
    assert result.per_class["drusen"]["support"] == (labels == 1).any(axis=(1, 2)).sum()
    assert (result.confusion.sum(axis=(1, 2)) == counted.sum()).all()

    # An image that no weight counts changes nothing; a class of it alone is undefined.
    weights = np.array([[1.0, 2, 0, 1, 1], [1, 1, 1, 1, 1]])
    values = TASK.values(TASK.checked(found), weights)
    repeated = {name: value[[0, 1, 1, 3, 4]] for name, value in found.items()}
    for name, value in TASK.evaluate(repeated).values.items():
        assert values[name][0] == pytest.approx(value)
        assert values[name][1] == pytest.approx(result.values[name])
    nothing = {name: np.zeros_like(value) for name, value in found.items()}
    assert set(TASK.evaluate(nothing).undefined) >= {"dice", "iou"}
    low, high = TASK.bounded(result, found, Resampling(200, 1)).intervals["dice"]
    assert low < result.values["dice"] < high


def test_outlines_are_measured_on_the_host_where_they_are_asked_for() -> None:
    logits, labels = draw(8)
    found = measured(8)
    quick, whole = TASK.on_host(found, "dice"), TASK.on_host(found)
    assert {*found} - {*quick} == {"predicted_map", "true_map"}
    assert {*TASK.on_host(found, "hausdorff_95")} == {*whole}
    known = labels != IGNORE
    called = (logits.argmax(axis=-1) == 1) & known
    each = [outlined(*pair) for pair in zip(called, labels == 1, strict=True)]
    assert whole["hausdorff"][:, 1] == pytest.approx([one.hausdorff for one in each], rel=1e-6)

    result, quickly = TASK.evaluate(whole), TASK.evaluate(quick)
    assert {*result.values} == {*TASK.metrics}
    assert {*result.values} - {*quickly.values} == {
        "surface_dice", "hausdorff_95", "lesion_sensitivity", "lesion_precision",
    }  # fmt: skip
    drusen = result.per_class["drusen"]
    assert drusen["hausdorff_95"] == pytest.approx(np.mean([one.hausdorff for one in each]))
    assert drusen["lesion_sensitivity"] == pytest.approx(
        sum(one.found for one in each) / sum(one.lesions for one in each)
    )
    assert "hausdorff_95" not in result.per_class["background"]
    bounds = TASK.bounded(result, whole, Resampling(101, 0)).intervals
    low, high = bounds["hausdorff_95[drusen]"]  # which is above 1
    assert low < drusen["hausdorff_95"] < high
    # The last class is in no mask but predicted: no outline of the truth is far from it.
    assert result.values["hausdorff_95"] == pytest.approx(
        np.mean([result.per_class[name]["hausdorff_95"] for name in CLASSES[1:3]])
    )


def test_masks_that_overlap_are_counted_class_by_class_and_none_is_background() -> None:
    rng = np.random.default_rng(9)
    task, logits = MultilabelSegmentation(CLASSES), draw(9)[0]
    labels = rng.integers(0, 2 ** len(CLASSES), (B, SIDE, SIDE)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = IGNORE
    found = jax.tree.map(np.asarray, task.measure(jnp.asarray(logits), {"labels": labels}))
    whole, known = task.on_host(found), labels != IGNORE
    result = task.evaluate(whole)
    dice = []
    for c, name in enumerate(CLASSES):
        true, called = known & ((labels & 2**c) > 0), known & (logits[..., c] > 0)
        both = (true & called).sum()
        dice.append(2 * both / (true.sum() + called.sum()))
        assert result.per_class[name]["dice"] == pytest.approx(dice[-1])
        neither = known.sum() - true.sum() - called.sum() + both
        table = [[neither, called.sum() - both], [true.sum() - both, both]]
        np.testing.assert_array_equal(result.confusion[c], table)
        assert whole["hausdorff"][2, c] == pytest.approx(outlined(called[2], true[2]).hausdorff)
        assert "hausdorff_95" in result.per_class[name]
    assert result.values["dice"] == pytest.approx(np.mean(dice))
    assert task.image_dice(found).shape == (B,)


def test_an_image_without_a_class_counts_1_per_image_and_not_where_the_class_is_present() -> None:
    true = np.array([[90, 10.0], [100, 0], [100, 0], [100, 0]])
    predicted = np.array([[90, 10.0], [100, 0], [95, 5], [100, 0]])
    overlap = np.array([[85, 5.0], [100, 0], [95, 0], [100, 0]])
    found = {"intersection": overlap, "predicted": predicted, "true": true, "loss": np.ones(4)}
    values = Segmentation(("background", "lesion")).evaluate(found).values
    assert values["dice"] == pytest.approx(10 / 25)
    assert values["dice_per_image"] == pytest.approx((0.5 + 1 + 0 + 1) / 4)
    assert values["iou_per_image"] == pytest.approx((1 / 3 + 1 + 0 + 1) / 4)
    assert values["dice_where_present"] == pytest.approx(0.5)
    by_image = Segmentation(("background", "lesion")).image_dice(found)
    assert by_image == pytest.approx([0.5, 1, 0, 1])  # whose order is that of the page


def test_what_was_measured_is_kept_as_a_table(tmp_path: Path) -> None:
    path, found = tmp_path / TASK.file, TASK.checked(TASK.on_host(measured(6)))
    assert {"hausdorff", "surface", "found"} < {*found}
    groups = ["p1", "p1", "p2", "p3", "p3"]
    TASK.keep(path, found, Rows(list("abcde"), groups))
    again, rows = TASK.read(path)
    assert rows == Rows(list("abcde"), groups)
    for name, drawn in TASK.bootstrap(found, Resampling(50, 1, groups)).values.items():
        resampled = TASK.bootstrap(again, Resampling(50, 1, groups)).values[name]
        assert resampled == pytest.approx(drawn, rel=1e-6, nan_ok=True)
    with path.open(newline="") as file:
        first = next(csv.DictReader(file))
    assert int(first["overlap_drusen"]) == found["intersection"][0, 1]
    certainty, right = TASK.outcomes(found)
    table = path.read_text().splitlines()
    kept = [i for i, name in enumerate(table[0].split(",")) if name.split("_")[0] in OLDER]
    older = "\r\n".join(",".join(line.split(",")[i] for i in kept) for line in table)
    path.write_text(older + "\r\n", newline="")
    again, _ = TASK.read(path)
    assert {*again} == {"intersection", "predicted", "true", "loss"}
    assert TASK.evaluate(again).values["dice"] == pytest.approx(TASK.evaluate(found).values["dice"])
    assert len(certainty) == len(right) == 0
    with pytest.raises(UserError, match="is not the table of classes background, other"):
        Segmentation(("background", "other")).read(path)
    with pytest.raises(UserError, match="does not exist"):
        TASK.read(tmp_path / "gone.csv")


def test_a_diverged_network_is_named() -> None:
    found = measured(7)
    found["loss"] = np.where(np.arange(B) == 2, np.nan, found["loss"])
    with pytest.raises(UserError, match=r"1 images \(first: image 2 .*diverged"):
        TASK.evaluate(found)
    with pytest.raises(UserError, match="no images"):
        TASK.evaluate({name: value[:0] for name, value in found.items()})


@pytest.mark.parametrize("head", MAKERS)
@pytest.mark.parametrize("name", ONE_PER_FAMILY.values())
def test_every_family_gives_logits_for_each_pixel(
    name: str, head: Callable[..., nnx.Module]
) -> None:
    tiny = TINY[name]

    def logits(images: jax.Array) -> jax.Array:
        backbone = tiny.family(tiny.arch, Execution(), rngs=nnx.Rngs(0))  # type: ignore[call-arg]
        return head(backbone, 3, eval_mode=True, rngs=nnx.Rngs(1))(images)

    shape = (2, tiny.side, tiny.side, tiny.arch.in_channels)
    found = jax.eval_shape(logits, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert (found.shape, found.dtype) == ((2, tiny.side, tiny.side, 3), jnp.float32)


@pytest.mark.parametrize("head", MAKERS)
def test_a_head_learns_where_bright_squares_are(head: Callable[..., nnx.Module]) -> None:
    """Through the training step, on a frozen backbone; and the left is not taken for the right."""
    tiny, task = TINY[ONE_PER_FAMILY[DeiT]], Segmentation(("background", "square"))
    side, steps = tiny.side, 60
    mesh = parallel.make_mesh(devices=jax.devices()[:1])

    def create(key: jax.Array) -> nnx.Module:
        rngs = nnx.Rngs(key)
        backbone = tiny.family(tiny.arch, Execution(), rngs=rngs)  # type: ignore[call-arg]
        return head(backbone, 2, eval_mode=True, rngs=rngs)

    def batch(seed: int) -> Batch:
        rng = np.random.default_rng(seed)
        maps = np.zeros((8, side, side), np.uint8)
        for image in maps:
            top, left = rng.integers(0, side - 14, 2)
            image[top : top + 15, left : left + 15] = 1
        inputs = (maps[..., None] * 150 + rng.integers(0, 60, (8, side, side, 3))).astype(np.uint8)
        mask, index = np.ones(8, np.float32), np.arange(8, dtype=np.int32)
        return Batch(inputs=inputs, labels=maps, mask=mask, index=index)

    key = jax.random.key(0)
    parts = partition(nnx.eval_shape(create, key), lambda name: name.startswith("head."))
    config = OptimConfig(learning_rate=1e-2, warmup_steps=2)
    schedule = optim.relative_rate(config, 2, steps)
    optimizer = optim.make_optimizer(config, schedule)
    names = tuple(parts.variables)
    placement = parallel.parameter_shardings(mesh, parts.shapes(names), "replicated")
    arrays = jax.jit(lambda key: parts.read(create(key), names))(key)
    state = initial_state(
        parts, arrays, optimizer, mesh, placement, learning_rate=config.learning_rate, seed=0
    )
    step = make_train_step(
        parts, optimizer, schedule, on_inputs(lambda keys, images: images / 100.0 - 1), mesh=mesh,
        loss=task.loss, accumulate=2, placement=placement, dtype=jnp.float32,
    )  # fmt: skip
    frozen = {name: arrays[name] for name in parts.frozen}
    for i in range(steps):
        state, _ = step(state, frozen, parallel.to_devices(mesh, batch(i)))
    test = batch(steps + 1)
    model = parts.merge(state.params, frozen)
    logits = jax.jit(lambda images: model(images))(test["inputs"] / 100.0 - 1)
    dice = task.evaluate(task.measure(logits, test)).values["dice"]
    mirrored = task.evaluate(task.measure(logits[:, :, ::-1], test)).values["dice"]
    assert dice > 0.7
    assert mirrored < dice - 0.2


def test_a_segmentation_has_intervals_of_each_class() -> None:
    rng = np.random.default_rng(0)
    true = np.stack([np.full(23, 90.0), np.full(23, 10.0), np.zeros(23)], axis=1)
    true[3, 2] = 4
    overlap = true * rng.uniform(0.5, 1, size=true.shape)
    task = Segmentation(("background", "common", "single"))
    found = {"intersection": overlap, "predicted": true, "true": true, "loss": rng.uniform(size=23)}
    bounds = task.bounded(task.evaluate(found), found, Resampling(101, 0))
    assert bounds.redrawn > 20  # most lack the single image
    of_one = {"dice[single]", "iou[single]", "dice_where_present[single]"}
    assert set(bounds.intervals) == set(bounds.named()) - of_one


def test_the_page_of_a_run_shows_the_metrics_of_each_class(tmp_path: Path) -> None:
    found = measured(4)
    test = TASK.bounded(TASK.evaluate(found), found, Resampling(23, 0))
    Result(
        config=as_dict(ExperimentConfig()),
        protocol="fit",
        backbone={"name": "tiny", "params": 7, "trained_params": 7, "weights": ""},
        dataset={"name": "spots", "split": "stratified", "split_sha256": "0" * 64}
        | {"counts": {"train": 11, "val": 5, "test": B}, "synthetic": True},
        seed=0,
        steps=3,
        best=Best(metric="dice", value=0.5, step=3, epoch=1.0, seconds=1.0),
        findings=[Finding(judge="fit", evaluations={"val": test, "test": test})],
        seconds={"train": 1.0},
        device={"platform": "cpu"},
        versions={},
        notes=(),
        started="2024-02-03T04:05:06+00:00",
        finished="2024-02-03T04:05:09+00:00",
    ).write(tmp_path)
    TASK.keep(tmp_path / TASK.file, found, Rows(ids=[f"{i}" for i in range(B)]))
    words = Page(write_report(tmp_path).read_text()).text
    assert "bootstrap, logit scale for Dice, IoU" in words
    assert all(name in words for name in CLASSES)
