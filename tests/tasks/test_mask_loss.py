"""The loss of masks: its terms beside formulas in NumPy, over images and over the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tolerances import PARITY_FORWARD

from fmi_jax import parallel
from fmi_jax.data.labels import IGNORE, Label
from fmi_jax.errors import UsageError
from fmi_jax.settings import LossConfig
from fmi_jax.tasks.classification import Multiclass
from fmi_jax.tasks.mask_loss import MaskLoss
from fmi_jax.tasks.segmentation import MultilabelSegmentation, Segmentation
from fmi_jax.training.partition import partition
from fmi_jax.training.step import initial_state, make_train_step

CLASSES = ("background", "drusen", "haemorrhage")
TASK, OVERLAPPING = Segmentation(CLASSES), MultilabelSegmentation(CLASSES)
PIXELS = np.array([60, 30, 10])
WEIGHTS = {Label.MAP: 100 / (3 * PIXELS), Label.LAYERS: (100 - PIXELS) / PIXELS}
B, SIDE, K = 8, 5, len(CLASSES)
MASK = np.array([1, 1, 1, 0, 1, 1, 1, 0], np.float32)


def draw(values: int = K) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, values, (B, SIDE, SIDE)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = IGNORE
    return rng.normal(0, 2, (B, SIDE, SIDE, K)).astype(np.float32), labels


def expected(label: Label, options: LossConfig) -> np.ndarray:
    """Loss of each image, over lists of the pixels that count."""
    one = label is Label.MAP
    logits, labels = draw(K if one else 2**K)
    weights = WEIGHTS[label] if options.class_weights == "balanced" else np.ones(K)
    pixels = []
    for z, y in zip(logits.astype(np.float64), labels, strict=True):
        kept = y != IGNORE
        if one:
            p = np.exp(z[kept]) / np.exp(z[kept]).sum(axis=1, keepdims=True)
            pixels.append((p, np.eye(K)[y[kept]]))
        else:
            bits = np.unpackbits(y[kept][:, None], axis=1, bitorder="little")[:, :K]
            pixels.append((1 / (1 + np.exp(-z[kept])), bits.astype(float)))

    def overlap(p: np.ndarray, y: np.ndarray) -> float:
        false, missed = options.tversky
        of_classes = [
            (both + 0.5)
            / (both + false * (p[:, c].sum() - both) + missed * (y[:, c].sum() - both) + 0.5)
            for c in range(int(one), K)
            for both in [(p[:, c] * y[:, c]).sum()]
        ]
        return 1 - float(np.mean(of_classes))

    def surprise(p: np.ndarray, y: np.ndarray) -> float:
        y = y * (1 - options.label_smoothing) + options.label_smoothing / (K if one else 2)
        yes = weights * y * (1 - p) ** options.focal_gamma * np.log(p)
        no = (1 - y) * p**options.focal_gamma * np.log(1 - p)
        return float(-yes.sum(axis=1).mean() if one else -(yes + no).mean())

    of_batch = [np.concatenate(x) for x in zip(*np.array(pixels, object)[MASK > 0], strict=True)]
    loss = np.zeros(B)
    if options.terms != "dice":
        loss += [surprise(*each) for each in pixels]
    if options.terms != "cross_entropy":
        whole = overlap(*of_batch)
        loss += [whole if options.dice_over == "batch" else overlap(*each) for each in pixels]
    return loss


@pytest.mark.parametrize(
    "options",
    [
        LossConfig(),
        LossConfig(terms="dice"),
        LossConfig(terms="dice", dice_over="batch"),
        LossConfig(dice_over="batch", tversky=(0.3, 0.7)),
        LossConfig(terms="cross_entropy", focal_gamma=2.0, label_smoothing=0.1),
        LossConfig(focal_gamma=1.5, tversky=(0.0, 1.0)),
        LossConfig(class_weights="balanced", label_smoothing=0.1),
    ],
    ids=str,
)
@pytest.mark.parametrize("task", [TASK, OVERLAPPING], ids=lambda task: task.name)
def test_terms_are_those_of_the_formulas(task, options) -> None:
    logits, labels = draw(K if task is TASK else 2**K)
    objective = task.objective(options, PIXELS, 100)
    loss, _ = jax.jit(objective.loss)(logits, {"labels": labels, "mask": MASK})
    np.testing.assert_allclose(loss, expected(task.label, options), rtol=PARITY_FORWARD)


def test_dice_over_the_batch_is_the_studys() -> None:
    """With two classes `1 - (2 sum(y p) + 1) / (sum(y) + sum(p) + 1)` over all pixels."""
    rng = np.random.default_rng(1)
    z, y = rng.normal(size=(B, SIDE, SIDE)), rng.integers(0, 2, (B, SIDE, SIDE))
    p = 1 / (1 + np.exp(-z))
    study = 1 - (2 * (y * p).sum() + 1) / (y.sum() + p.sum() + 1)
    objective = Segmentation(CLASSES[:2]).objective(
        LossConfig(terms="dice", dice_over="batch"), (), 0
    )
    logits = jnp.stack([jnp.zeros_like(z), z], axis=-1)
    batch = {"labels": y.astype(np.uint8), "mask": np.ones(B, np.float32)}
    loss, _ = jax.jit(objective.loss)(logits, batch)
    np.testing.assert_allclose(loss, study, rtol=PARITY_FORWARD)


class PerPixel(nnx.Module):
    """One layer on the channels of each pixel."""

    def __init__(self, rngs: nnx.Rngs):
        self.head = nnx.Linear(3, K, rngs=rngs)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.head(images)


def stepped(devices: int) -> dict[str, np.ndarray]:
    """Parameters after a step along the gradient of Dice over the batch."""
    mesh = parallel.make_mesh(devices=jax.devices()[:devices])
    parts = partition(nnx.eval_shape(PerPixel, nnx.Rngs(0)), lambda name: True)
    names = tuple(parts.variables)
    placement = parallel.parameter_shardings(mesh, parts.shapes(names), "replicated")
    arrays = {
        name: parallel.place(np.asarray(value), placement[name])
        for name, value in parts.read(PerPixel(nnx.Rngs(0)), names).items()
    }
    optimizer = optax.sgd(1.0)
    state = initial_state(parts, arrays, optimizer, mesh, placement, learning_rate=1.0, seed=0)
    options = LossConfig(terms="dice", dice_over="batch")
    objective = MaskLoss(Label.MAP, options, (1.0,) * K)
    step = make_train_step(
        parts, optimizer, lambda step: 1.0, lambda keys, batch: batch, loss=objective.loss,
        accumulate=1, mesh=mesh, placement=placement, dtype=jnp.float32,
    )  # fmt: skip
    logits, labels = draw()
    batch = {"inputs": logits, "labels": labels, "mask": MASK, "index": np.arange(B)}
    state, scalars = step(state, {}, parallel.to_devices(mesh, batch))
    found = jax.tree.map(np.asarray, state.params)
    return found | {"loss": np.asarray(scalars["loss"])}


def test_dice_over_the_batch_is_the_same_on_eight_devices_as_on_one() -> None:
    one, eight = stepped(1), stepped(8)
    initial = PerPixel(nnx.Rngs(0)).head.kernel[...]
    assert np.abs(one["head.kernel"] - initial).max() > 1e-3
    for name, value in one.items():
        np.testing.assert_allclose(eight[name], value, rtol=PARITY_FORWARD, atol=1e-7)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(LossConfig)])
def test_options_are_taken_or_refused_by_name(field) -> None:
    other = {
        "class_weights": "balanced",
        "terms": "dice",
        "dice_over": "batch",
        "tversky": (0.3, 0.7),
    }
    options = LossConfig(**{field: other.get(field, 0.5)})
    of_masks = {"terms", "dice_over", "tversky"}
    of_both = {"focal_gamma", "label_smoothing"}
    if field == "class_weights":
        weights = TASK.objective(options, (60, 30, 10), 100).weights
        assert weights == pytest.approx((100 / 180, 100 / 90, 100 / 30))
        with pytest.raises(UsageError, match="no pixel of the training masks is of class 'drusen'"):
            TASK.objective(options, (60, 0, 10), 70)
    elif field in of_masks | of_both:
        assert TASK.objective(options, (), 0) == MaskLoss(Label.MAP, options, (1.0,) * K)
    else:
        with pytest.raises(UsageError, match=rf"loss\.{field}=.* these labels are masks"):
            TASK.objective(options, (), 0)
    if field in of_masks:
        with pytest.raises(UsageError, match=rf"loss\.{field}=.* is for masks"):
            Multiclass(CLASSES).objective(options, (3, 4, 5), 12)
