"""DINO: its loss, its head, and what moves a teacher, on any number of devices."""

import copy
import dataclasses
import math
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_backbones
import torch
from flax import nnx
from tolerances import LOSS_ON_DEVICES, PARITY_FORWARD, SAME_FLOAT32

from fmi_jax import parallel
from fmi_jax.augment import stack_by_size
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.models.base import Backbone, Execution
from fmi_jax.models.deit import DeiT, DeiTArch
from fmi_jax.protocols import dino, pretraining
from fmi_jax.protocols.dino import DinoConfig, ProjectionHead
from fmi_jax.protocols.spec import Fit, Parts, Pixels
from fmi_jax.settings import OptimConfig
from fmi_jax.tasks.self_supervision import Distillation, SelfSupervision
from fmi_jax.training import optim
from fmi_jax.training.loop import Plan
from fmi_jax.training.partition import named_values, partition
from fmi_jax.training.step import TrainState, initial_state, make_train_step

ARCH = DeiTArch(
    in_channels=3,
    patch_size=4,
    width=24,
    depth=2,
    num_heads=2,
    mlp_width=52,
    distilled=False,
    grid_size=3,
    norm_eps=1e-6,
)
OPTIONS = DinoConfig(
    prototypes=68,
    hidden_width=44,
    bottleneck_width=20,
    momentum=0.7,
    centre_momentum=0.6,
    temperature_warmup=0.5,
    held_epochs=0.5,
    local_crops=3,
    local_size=8,
)
OPTIM = OptimConfig(learning_rate=1e-3, weight_decay=0.1)
BATCH_SIZE, STEPS, TOTAL_STEPS = 8, 3, 5
PLAN = Plan(
    total_steps=TOTAL_STEPS, steps_per_epoch=2.0, evaluate_at=frozenset(), save_at=frozenset()
)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_the_loss_is_that_of_the_paper() -> None:
    """Equation 3, term by term, divided by the number of terms."""
    rng = np.random.default_rng(2)
    b, g, v, k = 3, 2, 5, 7
    student, teacher = rng.normal(size=(b, v, k)), rng.normal(size=(b, g, k))
    centre, hot, cold = rng.normal(size=k), 0.7, 0.4
    outputs = Distillation(*map(jnp.float32, (student, teacher, centre, cold)))
    losses, seen = jax.jit(SelfSupervision(student_temperature=hot).loss)(outputs, {})
    for image in range(b):
        terms, entropies = [], []
        for i in range(g):
            target = np.exp(log_softmax((teacher[image, i] - centre) / cold))
            entropies.append(-(target * np.log(target)).sum())
            for j in range(v):
                if i != j:
                    terms.append(-(target * log_softmax(student[image, j] / hot)).sum())
        assert len(terms) == g * (v - 1)
        assert losses[image] == pytest.approx(np.mean(terms), rel=1e-5)
        assert seen["teacher_entropy"][image] == pytest.approx(np.mean(entropies), rel=1e-4)
        assert seen["kl"][image] == pytest.approx(np.mean(terms) - np.mean(entropies), rel=1e-4)
    np.testing.assert_allclose(seen["teacher"], teacher.mean(1), rtol=1e-5)


def test_the_head_is_a_weight_normalised_one_of_torch() -> None:
    head = ProjectionHead(13, OPTIONS, dtype=jnp.float32, rngs=nnx.Rngs(3))
    theirs = []
    for layer in (head.fc1, head.fc2, head.fc3):
        theirs += [torch.nn.Linear(layer.in_features, layer.out_features), torch.nn.GELU()]
        theirs[-2].weight.data = torch.tensor(np.asarray(layer.kernel[...].T))
        theirs[-2].bias.data.zero_()
    last = torch.nn.Linear(OPTIONS.bottleneck_width, OPTIONS.prototypes, bias=False)
    last.weight.data = torch.tensor(np.asarray(head.prototypes[...].T))
    last = torch.nn.utils.parametrizations.weight_norm(last)
    last.parametrizations.weight.original0.data.fill_(1)
    features = np.random.default_rng(0).normal(size=(2, 5, 13)).astype(np.float32)
    projected = torch.nn.Sequential(*theirs[:-1])(torch.tensor(features))
    expected = last(torch.nn.functional.normalize(projected, dim=-1)).detach().numpy()
    found = np.asarray(jax.jit(lambda x: head(x))(features))
    np.testing.assert_allclose(found, expected, atol=PARITY_FORWARD * np.abs(expected).max())


def test_views_of_one_size_are_stacked_in_order() -> None:
    crops = [np.full((2, side, side, 1), i) for i, side in enumerate((5, 3, 5, 3, 3))]
    large, small = stack_by_size(crops)
    assert large.shape == (2, 2, 5, 5, 1)
    assert small.shape == (2, 3, 3, 3, 1)
    np.testing.assert_array_equal(large[1, :, 0, 0, 0], [0, 2])
    np.testing.assert_array_equal(small[1, :, 0, 0, 0], [1, 3, 4])


def config() -> ExperimentConfig:
    return ExperimentConfig(protocol="dino", image_size=12, dino=copy.deepcopy(OPTIONS))


FIT: Fit = dino.fit(config(), ARCH)
assert FIT.follow is not None
FOLLOW = FIT.follow(PLAN)


def make(remat: bool = False) -> dino.Dino:
    rngs, execution = nnx.Rngs(11), Execution(remat=remat)
    parts = Parts(
        backbone=DeiT(ARCH, execution, rngs=rngs),
        transformer=None,
        num_classes=0,
        config=config(),
        rngs=rngs,
        new_backbone=lambda: DeiT(ARCH, execution, rngs=rngs),
    )
    model = FIT.module(parts)
    assert isinstance(model, dino.Dino)
    return model


@dataclasses.dataclass
class Trained:
    """States from before the first step on, without frozen arrays, and the scalars."""

    params: list[dict[str, np.ndarray]]
    followers: list[dict[str, np.ndarray]]
    scalars: list[dict[str, Any]]
    divided: set[str]


def train(devices: int, accumulate: int, strategy: str, remat: bool) -> Trained:
    """A few steps without labels; the last image of a batch is padding."""
    mesh = parallel.make_mesh(devices=jax.devices()[:devices])
    parts = partition(nnx.eval_shape(lambda: make(remat)), FIT.learns, FIT.follows)
    assert not parts.frozen
    shapes = parts.shapes(tuple(parts.variables))
    placement = parallel.parameter_shardings(mesh, shapes, strategy)
    drawn = named_values(make(remat))
    arrays = {
        name: parallel.place(np.asarray(drawn[FIT.begins(name) or name]), placement[name])
        for name in drawn
    }
    schedule = optim.relative_rate(OPTIM, 0, TOTAL_STEPS)
    optimizer = optim.make_optimizer(OPTIM, schedule, held=FIT.held(PLAN))
    state = initial_state(
        parts, arrays, optimizer, mesh, placement,
        learning_rate=OPTIM.learning_rate, seed=0,
    )  # fmt: skip
    assert FIT.augment is not None
    assert FIT.task is not None
    step = make_train_step(
        parts, optimizer, schedule,
        FIT.augment(Pixels(config(), (0.5,) * 3, (0.25,) * 3, jnp.float32)),
        loss=FIT.task.loss, accumulate=accumulate, mesh=mesh, placement=placement,
        dtype=jnp.float32, follow=FOLLOW,
        logged=lambda seen: FIT.logged(seen) | {"teacher": seen["teacher"]},
    )  # fmt: skip
    rng = np.random.default_rng(1)
    found = Trained([], [], [], {n for n, x in placement.items() if any(x.spec)})

    def note(state: TrainState) -> None:
        found.params.append(jax.device_get(state.params))
        found.followers.append(jax.device_get(state.followers))

    note(state)
    for _ in range(STEPS):
        batch = {
            "inputs": rng.integers(0, 256, (BATCH_SIZE, 17, 17, 3), np.uint8),
            "mask": np.array([1] * (BATCH_SIZE - 1) + [0], np.float32),
            "index": np.arange(BATCH_SIZE, dtype=np.int32),
        }
        placed = parallel.to_devices(mesh, batch)  # type: ignore[arg-type]
        state, scalars = step(state, {}, placed)
        found.scalars.append(jax.device_get(scalars))
        note(state)
    assert step._cache_size() == 1
    return found


@pytest.fixture(scope="module")
def alone() -> Trained:
    return train(devices=1, accumulate=1, strategy="replicated", remat=False)


def test_the_teacher_begins_as_the_student_and_follows_it(alone: Trained) -> None:
    """The moving averages, replayed in NumPy from the student and what the teacher has said."""
    teacher = {name for name in alone.followers[0] if name.startswith("teacher.")}
    assert set(alone.followers[0]) - teacher == {"centre", "temperature"}
    assert {name.removeprefix("teacher.") for name in teacher} == set(alone.params[0])
    for name in teacher:
        student = alone.params[0][name.removeprefix("teacher.")]
        np.testing.assert_array_equal(alone.followers[0][name], student)
    drawn = named_values(make())
    name = "teacher.backbone.patch_embed.proj.kernel"
    assert not np.array_equal(drawn[name], alone.followers[0][name])
    assert not alone.followers[0]["centre"].any()
    start, end = OPTIONS.teacher_temperature
    assert alone.followers[0]["temperature"] == np.float32(start)

    for step in range(STEPS):
        old, new = alone.followers[step : step + 2]
        cosine = math.cos(math.pi * step / TOTAL_STEPS)
        momentum = 1 - (1 - OPTIONS.momentum) * (cosine + 1) / 2
        for name in teacher:
            student = alone.params[step + 1][name.removeprefix("teacher.")]
            expected = momentum * old[name] + (1 - momentum) * student
            np.testing.assert_allclose(new[name], expected, rtol=1e-5, atol=SAME_FLOAT32)
        said = alone.scalars[step]["teacher"]
        assert np.abs(said).max() > 1e-3
        np.testing.assert_allclose(
            new["centre"], 0.6 * old["centre"] + 0.4 * said, rtol=1e-5, atol=SAME_FLOAT32
        )
        # Half of five steps: the temperature has risen after two and a half.
        expected = min(start + (end - start) * (step + 1) / 2.5, end)
        assert new["temperature"] == pytest.approx(expected, rel=1e-6)
        still = {name for name in teacher if np.array_equal(new[name], old[name])}
        assert still == ({"teacher.head.prototypes"} if step == 0 else set())  # half an epoch


def test_what_is_logged_adds_up(alone: Trained) -> None:
    for scalars in alone.scalars:
        assert scalars["loss"] == pytest.approx(scalars["teacher_entropy"] + scalars["kl"])
        assert 0 < scalars["teacher_entropy"] < math.log(OPTIONS.prototypes)
        assert scalars["kl"] > 0


def test_devices_micro_batches_and_remat_change_nothing(alone: Trained) -> None:
    found = train(devices=4, accumulate=2, strategy="fsdp", remat=True)
    name = "backbone.blocks.1.attn.qkv.kernel"
    assert {name, f"teacher.{name}", "head.prototypes", "teacher.head.fc2.kernel"} <= found.divided
    for ours, theirs in zip(alone.scalars, found.scalars, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=LOSS_ON_DEVICES)
    for ours, theirs in zip(alone.followers, found.followers, strict=True):
        for name, value in ours.items():
            np.testing.assert_allclose(theirs[name], value, rtol=1e-4, atol=2e-5, err_msg=name)
    for name, value in alone.params[-1].items():
        np.testing.assert_allclose(found.params[-1][name], value, atol=2e-4, err_msg=name)


def test_batch_norms_of_the_teacher_see_its_own_views() -> None:
    """Before the first update both networks are one, and so are the statistics of their views."""
    tiny, asked = tiny_backbones.TINY["resnet"], config()
    asked.image_size, asked.dino.local_crops = tiny.side, 0
    fit = dino.fit(asked, tiny.arch)

    def backbone() -> Backbone:
        return tiny_backbones.fill(
            tiny_backbones.abstract(tiny.family, tiny.arch, Execution())  # type: ignore[type-var]
        )

    rngs = nnx.Rngs(3)
    model = fit.module(
        Parts(
            backbone=backbone(),
            transformer=None,
            num_classes=0,
            config=asked,
            rngs=rngs,
            new_backbone=backbone,
        )
    )
    before = named_values(model)
    views = np.random.default_rng(1).normal(size=(3, 2, 65, 65, 3)).astype(np.float32)
    nnx.jit(lambda model, views: model((views,), rngs=nnx.Rngs(0)))(model, views)  # type: ignore[operator]
    after = named_values(model)
    running = [n for n in after if n.startswith("backbone.") and n.endswith(".mean")]
    assert running
    for name in running:
        assert not np.array_equal(after[name], before[name])
        np.testing.assert_allclose(after[f"teacher.{name}"], after[name], rtol=1e-5)
    parts = partition(model, fit.learns, fit.follows)
    assert fit.follow is not None
    moved = fit.follow(PLAN)(
        {name: after[name] for name in parts.params},
        {name: after[name] for name in parts.followers},
        {"teacher": jnp.zeros(OPTIONS.prototypes)},
        jnp.int32(0),
    )
    assert {f"teacher.{name}" for name in parts.params} | {"centre", "temperature"} == {*moved}


def test_every_array_of_the_teacher_has_a_rule_for_the_model_axis() -> None:
    parts = partition(nnx.eval_shape(make), FIT.learns, FIT.follows, divided=True)
    mesh = parallel.make_mesh(2, jax.devices()[:8])
    shapes = parts.shapes(tuple(parts.variables))
    placement = parallel.parameter_shardings(mesh, shapes, "fsdp")
    for name in parts.params:
        assert placement[f"teacher.{name}"] == placement[name]


def checked(name: str, **changes: Any) -> None:
    asked = config()
    asked.image_size = 224
    asked.backbone.name = name
    asked.dino.local_size = 96
    for field, value in changes.items():
        setattr(asked.optim if field == "schedule" else asked.dino, field, value)
    info: Any = types.SimpleNamespace(channels=3)
    dino.SPEC.check(asked, info)


@pytest.mark.parametrize("name", ["sam_vit_b", "clip_vitb16", "blip_base"])
def test_backbones_with_positions_for_one_size_take_no_local_crops(name: str) -> None:
    checked(name, local_crops=0)
    with pytest.raises(UsageError, match=rf"{name} has positions .*\(224 pixels\).*local_crops=0"):
        checked(name)


def test_what_cannot_be_trained_is_refused_at_once() -> None:
    checked("deit_tiny")
    checked("resnet50", local_size=97)
    checked("dinov2_vitb14", local_size=98)
    with pytest.raises(
        UsageError, match=r"dino.local_size=96 .*dinov2_vitb14.*nearest to 96 is 98"
    ):
        checked("dinov2_vitb14")
    with pytest.raises(UsageError, match="nothing on validation; expected 'cosine'"):
        checked("deit_tiny", schedule="plateau")


def test_an_anchored_teacher_is_so_much_the_first_weights_and_else_an_average() -> None:
    """Whatever the student does: `anchor * first + (1 - anchor) * average of students`."""
    rng, share, name = np.random.default_rng(7), 0.3, "backbone.kernel"
    first = rng.normal(size=(3, 2))
    plain = {"teacher.backbone.kernel": first, "teacher.head.kernel": first}
    held = {**plain, "anchor.kernel": first}
    for keep in (0.9, 0.5, 0.99):
        student = {name: rng.normal(size=(3, 2)), "head.kernel": rng.normal(size=(3, 2))}
        plain |= pretraining.averaged(student, plain, keep)
        held |= pretraining.averaged(student, held, keep, share)
    expected = share * first + (1 - share) * plain["teacher.backbone.kernel"]
    np.testing.assert_allclose(held["teacher.backbone.kernel"], expected, rtol=1e-12)
    np.testing.assert_array_equal(held["teacher.head.kernel"], plain["teacher.head.kernel"])
    np.testing.assert_array_equal(held["anchor.kernel"], first)
