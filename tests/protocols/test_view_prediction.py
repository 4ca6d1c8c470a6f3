"""BYOL and SimSiam: one step of each beside the same in plain PyTorch."""

import itertools
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from tolerances import PARITY_FORWARD, PARITY_GRADIENT
from torch import nn

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.protocols import byol, pretraining, simsiam
from fmi_jax.protocols.byol import Byol, ByolConfig
from fmi_jax.protocols.simsiam import SimSiam, SimSiamConfig
from fmi_jax.protocols.spec import Parts
from fmi_jax.tasks.self_supervision import Predictions, ViewPrediction, spread
from fmi_jax.training.loop import Plan
from fmi_jax.training.partition import named_values, partition

WIDTH, HIDDEN, NARROW, SIDE, BATCH = 11, 23, 13, 3, 5
PIXELS = 3 * SIDE * SIDE
BYOL = ByolConfig(hidden_width=HIDDEN, projection_width=NARROW, momentum=0.7)
SIMSIAM = SimSiamConfig(projection_width=HIDDEN, prediction_width=NARROW)
PLAN = Plan(total_steps=7, steps_per_epoch=2.0, evaluate_at=frozenset(), save_at=frozenset())


class Linear(nnx.Module):
    """A backbone of one matrix: these tests are of what stands on it."""

    def __init__(self, seed: int):
        self.arch = types.SimpleNamespace(feature_width=WIDTH)
        self.execution = types.SimpleNamespace(dtype=jnp.float32)
        kernel = np.random.default_rng(seed).normal(size=(PIXELS, WIDTH))
        self.kernel = nnx.Param(jnp.asarray(kernel, jnp.float32))

    def features(self, images: jax.Array, *, rngs: nnx.Rngs | None) -> Any:
        del rngs
        return types.SimpleNamespace(pooled=images.reshape(len(images), -1) @ self.kernel[...])


def parts() -> Parts:
    backbone: Any = Linear(0)
    rngs: Any = nnx.Rngs(5)
    another: Any = lambda: Linear(1)  # noqa: E731
    return Parts(
        backbone=backbone,
        transformer=None,
        num_classes=0,
        config=ExperimentConfig(),
        rngs=rngs,
        new_backbone=another,
    )


def mlp(*widths: int, last_norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        last = i == len(widths) - 2
        layers.append(nn.Linear(before, after, bias=last and not last_norm))
        if not last or last_norm:
            layers.append(nn.BatchNorm1d(after))
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def filled(model: Any, of: str, theirs: nn.Sequential, rng: np.random.Generator) -> None:
    """Draw the parameters of an MLP, and write them into its counterpart."""
    ours = model
    for name in of.split("."):
        ours = getattr(ours, name)
    linears = [layer for layer in theirs if isinstance(layer, nn.Linear)]
    norms = [layer for layer in theirs if isinstance(layer, nn.BatchNorm1d)]
    assert (len(linears), len(norms)) == (len(ours.layers), len(ours.norms))

    def drawn(shape: tuple[int, ...]) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    for mine, other in zip(ours.layers, linears, strict=True):
        mine.kernel[...] = kernel = drawn(mine.kernel.shape) / mine.kernel.shape[0] ** 0.5
        other.weight.data = torch.tensor(np.asarray(kernel).T)
        assert (mine.bias is None) == (other.bias is None)
        if other.bias is not None:
            mine.bias[...] = bias = drawn(mine.bias.shape)
            other.bias.data = torch.tensor(np.asarray(bias))
    for mine, other in zip(ours.norms, norms, strict=True):
        mine.scale[...] = scale = 1 + 0.1 * drawn(mine.scale.shape)
        mine.bias[...] = bias = 0.1 * drawn(mine.bias.shape)
        other.weight.data, other.bias.data = torch.tensor(scale), torch.tensor(bias)


def of_byol(rng: np.random.Generator) -> tuple[Any, Callable[[torch.Tensor], Any], list[Any]]:
    model = Byol(parts(), BYOL)
    project, follower = (mlp(WIDTH, HIDDEN, NARROW) for _ in range(2))
    predict = mlp(NARROW, HIDDEN, NARROW)
    filled(model, "head.projection", project, rng)
    filled(model, "head.prediction", predict, rng)
    filled(model, "teacher.head.projection", follower, rng)
    first = torch.tensor(np.asarray(model.backbone.kernel[...]), requires_grad=True)
    second = torch.tensor(np.asarray(model.teacher.backbone.kernel[...]))

    def loss(views: torch.Tensor) -> torch.Tensor:
        online = [predict(project(views[:, i].reshape(BATCH, -1) @ first)) for i in (0, 1)]
        with torch.no_grad():
            target = [follower(views[:, i].reshape(BATCH, -1) @ second) for i in (0, 1)]
        return sum(
            (2 - 2 * nn.functional.cosine_similarity(online[i], target[1 - i])).mean()
            for i in (0, 1)
        )

    return model, loss, [first, project[0].weight, predict[-1].weight]


def of_simsiam(rng: np.random.Generator) -> tuple[Any, Callable[[torch.Tensor], Any], list[Any]]:
    model = SimSiam(parts(), SIMSIAM)
    project = mlp(WIDTH, HIDDEN, HIDDEN, HIDDEN, last_norm=True)
    predict = mlp(HIDDEN, NARROW, HIDDEN)
    filled(model, "head.projection", project, rng)
    filled(model, "head.prediction", predict, rng)
    first = torch.tensor(np.asarray(model.backbone.kernel[...]), requires_grad=True)

    def loss(views: torch.Tensor) -> torch.Tensor:
        z = [project(views[:, i].reshape(BATCH, -1) @ first) for i in (0, 1)]
        p = [predict(one) for one in z]
        cosine = nn.functional.cosine_similarity
        return -sum(cosine(p[i], z[1 - i].detach()).mean() for i in (0, 1)) / 2

    return model, loss, [first, project[0].weight, predict[-1].weight]


@pytest.mark.parametrize(
    ("make", "task"),
    [(of_byol, ViewPrediction(4.0, 0.0)), (of_simsiam, ViewPrediction(1.0, -1.0))],
    ids=["byol", "simsiam"],
)
def test_loss_gradients_and_statistics_are_those_of_pytorch(make: Any, task: Any) -> None:
    rng = np.random.default_rng(3)
    model, theirs, leaves = make(rng)
    views = rng.normal(size=(BATCH, 2, SIDE, SIDE, 3)).astype(np.float32)
    values = named_values(model)
    roles = partition(
        model,
        lambda name: not name.startswith("teacher."),
        lambda name: name.startswith("teacher."),
    )

    def loss(params: Any, rest: Any) -> tuple[Any, Any]:
        merged = roles.merge(params, rest)
        losses, seen = task.loss(merged((jnp.asarray(views),), rngs=nnx.Rngs(0)), {})
        return losses.mean(), (seen, roles.read(merged, roles.running))

    with jax.default_matmul_precision("highest"):
        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, (seen, stats)), grads = step(
            {name: values[name] for name in roles.params},
            {name: values[name] for name in roles.followers},
        )
    expected = theirs(torch.tensor(views))
    expected.backward()
    assert float(value) == pytest.approx(float(expected.detach()), rel=PARITY_FORWARD)
    ours = [
        grads["backbone.kernel"],
        grads["head.projection.layers.0.kernel"].T,
        grads["head.prediction.layers.1.kernel"].T,
    ]
    for mine, leaf in zip(ours, leaves, strict=True):
        reference = leaf.grad.numpy()
        np.testing.assert_allclose(mine, reference, atol=PARITY_GRADIENT * abs(reference).max())
    assert stats["head.projection.norms.0.count"] == 2  # one view at a time
    assert seen["feature"].shape[0] == BATCH


def test_a_view_is_not_compared_with_itself() -> None:
    """M2: an online network that only sees the same view would have a perfect loss here."""
    same = np.eye(2, 3, dtype=np.float32)[None]  # two orthogonal projections of one image
    losses, seen = ViewPrediction(1.0, -1.0).loss(Predictions(*map(jnp.asarray, (same, same))), {})
    assert float(losses[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(seen["cosine"][0]) == pytest.approx(0.0, abs=1e-6)


def test_spread_is_zero_when_all_images_are_one() -> None:
    unit = np.random.default_rng(0).normal(size=(4000, 3))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert float(spread(jnp.asarray(unit.mean(0)))) == pytest.approx(1.0, abs=0.01)
    assert float(spread(jnp.asarray(unit[0]))) == pytest.approx(0.0, abs=1e-3)
    (note,) = pretraining.warn_of_spread(ExperimentConfig(), {"spread": 0.01})
    assert "collapsed" in note
    assert not [*pretraining.warn_of_spread(ExperimentConfig(), {"spread": 0.9})]


def test_the_teacher_of_byol_follows_backbone_and_projection_alone() -> None:
    config = ExperimentConfig(protocol="byol", byol=BYOL)
    arch: Any = None
    fit = byol.fit(config, arch)
    assert fit.follow is not None
    model: Any = fit.module(parts())
    roles = partition(model, fit.learns, fit.follows)
    assert not roles.frozen
    values = named_values(model)
    teacher = {n for n in roles.followers if n.startswith("teacher.")}
    assert all(fit.begins(name) in values for name in teacher)
    assert not any("prediction" in name for name in teacher)
    moved = fit.follow(PLAN)(
        {n: values[n] for n in roles.params}, {n: values[n] for n in roles.followers}, {},
        jnp.int32(0),
    )  # fmt: skip
    name = "teacher.backbone.kernel"
    expected = 0.7 * values[name] + 0.3 * values["backbone.kernel"]
    np.testing.assert_allclose(moved[name], expected, rtol=1e-6)
    assert {n for n in teacher if n not in moved} == {
        n for n in roles.running if n.startswith("teacher.")
    }


@pytest.mark.parametrize("module", [byol, simsiam])
def test_a_schedule_that_needs_validation_and_frozen_batch_norms_are_refused(module: Any) -> None:
    config = ExperimentConfig(protocol=module.SPEC.name)
    config.optim.schedule = "plateau"
    with pytest.raises(UsageError, match=rf"{module.SPEC.name}.*expected 'cosine'"):
        module.SPEC.check(config, None)
    config.optim.schedule = "cosine"
    config.backbone.frozen_blocks = 1
    config.backbone.name = "deit_nano"
    module.SPEC.check(config, None)
    config.backbone.name = "resnet_nano"
    with pytest.raises(UsageError, match=r"resnet_nano has batch norms.*expected 0"):
        module.SPEC.check(config, None)


def test_what_goes_through_the_network_is_counted() -> None:
    config = ExperimentConfig()
    config.train.batch_size, config.train.max_steps = 4, 3
    watched = 2 * 40  # at first and at the end
    for module, judged in ((byol, 24 + watched), (simsiam, watched)):  # two views of twelve images
        assert module.SPEC.judge.images(config, {"train": 40}) == (24, judged)
