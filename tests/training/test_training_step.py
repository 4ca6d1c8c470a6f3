"""The training step: equal on any number of devices, in micro-batches, and to PyTorch's AdamW."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from tiny_backbones import TINY

from fmi_jax import parallel
from fmi_jax.artifacts.checkpoints import RunCheckpoints
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.models.base import Execution, create_abstract
from fmi_jax.models.deit import DeiT, DeiTArch
from fmi_jax.protocols.registry import PROTOCOLS
from fmi_jax.protocols.spec import Parts
from fmi_jax.run.fit import abstract
from fmi_jax.settings import OptimConfig
from fmi_jax.tasks.classification import Multiclass, Multilabel
from fmi_jax.training import optim
from fmi_jax.training.loop import counters
from fmi_jax.training.partition import partition
from fmi_jax.training.step import initial_state, make_train_step, on_inputs
from fmi_jax.types import Batch

ARCH = DeiTArch(
    in_channels=3,
    patch_size=4,
    width=48,
    depth=2,
    num_heads=4,
    mlp_width=96,
    distilled=False,
    grid_size=3,
    norm_eps=1e-6,
)
CLASSES = 3
BATCH_SIZE = 16
OPTIM = OptimConfig(learning_rate=3e-3, weight_decay=0.1, warmup_steps=2, clip_norm=1.0)


def create(protocol: str, family: str = "deit") -> nnx.Module:
    rngs = nnx.Rngs(7)
    if family == "deit":
        backbone = DeiT(ARCH, Execution(drop_path=0.2), rngs=rngs)
    else:
        backbone = TINY[family].family(TINY[family].arch, Execution(remat=True), rngs=rngs)
    config = ExperimentConfig(protocol=protocol)
    parts = Parts(
        backbone=backbone, transformer=None, num_classes=CLASSES, config=config, rngs=rngs
    )
    return PROTOCOLS[protocol].fit.fit(config, backbone.arch).module(parts)


def noisy(keys: jax.Array, images: jax.Array) -> jax.Array:
    """An augmentation whose result shows every key."""
    noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
    return images / 255.0 + 0.1 * noise


def batch(step: int, **changes: np.ndarray) -> Batch:
    rng = np.random.default_rng(step)
    values = {
        "inputs": rng.integers(0, 256, (BATCH_SIZE, 12, 12, 3), np.uint8),
        "labels": rng.integers(0, CLASSES, BATCH_SIZE).astype(np.int32),
        "mask": np.ones(BATCH_SIZE, np.float32),
        "index": np.arange(BATCH_SIZE, dtype=np.int32),
    }
    return Batch(**(values | changes))


def bytes_per_device(tree: object) -> dict[str, int]:
    """Bytes that the arrays of `tree` take on each local device, by device name."""
    total = {str(device): 0 for device in jax.local_devices()}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            total[str(shard.device)] += shard.data.nbytes
    return total


class Training:
    """A few steps of the tiny classifier on a mesh."""

    def __init__(
        self,
        protocol: str = "finetune",
        devices: int = 1,
        model_parallel: int = 1,
        strategy: str = "replicated",
        accumulate: int = 1,
        family: str = "deit",
    ):
        self.mesh = parallel.make_mesh(model_parallel, jax.devices()[:devices])
        model = create(protocol, family)
        abstract = nnx.eval_shape(functools.partial(create, protocol, family))
        trainable = (
            PROTOCOLS[protocol]
            .fit.fit(ExperimentConfig(protocol=protocol), model.backbone.arch)
            .learns
        )
        self.partition = partition(abstract, trainable, divided=model_parallel > 1)
        shapes = self.partition.shapes(tuple(self.partition.variables))
        schedule = optim.relative_rate(OPTIM, OPTIM.warmup_steps, total_steps=100)
        optimizer = optim.make_optimizer(OPTIM, schedule)
        names = tuple(self.partition.variables)
        placement = parallel.parameter_shardings(self.mesh, self.partition.shapes(names), strategy)
        arrays = {
            name: parallel.place(np.asarray(value).reshape(shapes[name].shape), placement[name])
            for name, value in self.partition.read(model, names).items()
        }
        self.frozen = {name: arrays[name] for name in self.partition.frozen}
        self.state = initial_state(
            self.partition, arrays, optimizer, self.mesh, placement,
            learning_rate=OPTIM.learning_rate, seed=5,
        )  # fmt: skip
        self.step = make_train_step(
            self.partition,
            optimizer,
            schedule,
            on_inputs(noisy),
            loss=Multiclass().loss,
            accumulate=accumulate,
            mesh=self.mesh,
            placement=placement,
            dtype=jnp.float32,
        )

    def run(self, *batches: Batch) -> list[float]:
        """Losses of one step on each of `batches`."""
        losses = []
        for values in batches:
            placed = parallel.to_devices(self.mesh, values)
            self.state, scalars = self.step(self.state, self.frozen, placed)
            losses.append(float(scalars["loss"]))
        return losses


@pytest.fixture(scope="module")
def alone() -> tuple[Training, list[float]]:
    training = Training()
    return training, training.run(*map(batch, range(4)))


@pytest.mark.parametrize(
    "layout",
    [
        {"devices": 8},
        {"devices": 8, "strategy": "fsdp"},
        {"devices": 8, "strategy": "fsdp", "model_parallel": 2},
        {"devices": 8, "model_parallel": 4},
        {"devices": 4, "model_parallel": 4},
    ],
    ids=["data", "fsdp", "fsdp+tensor", "tensor", "tensor alone"],
)
def test_eight_devices_train_as_one(alone: tuple[Training, list[float]], layout: dict) -> None:
    one, losses = alone
    eight = Training(**layout)
    np.testing.assert_allclose(eight.run(*map(batch, range(4))), losses, rtol=1e-5)
    # The batch is divided over the data axis, and nothing is compiled twice.
    images = parallel.to_devices(eight.mesh, batch(0))["inputs"]
    rows = {shard.data.shape[0] for shard in images.addressable_shards}
    assert rows == {BATCH_SIZE * layout.get("model_parallel", 1) // layout["devices"]}
    assert eight.step._cache_size() == 1
    if layout.get("strategy") == "fsdp":
        for tree in ("params", "opt_state"):
            whole = bytes_per_device(getattr(one.state, tree))[str(jax.devices()[0])]
            share = bytes_per_device(getattr(eight.state, tree)).values()
            assert max(share) < 0.2 * whole, (tree, whole, max(share))
    for name, value in one.state.params.items():
        theirs = np.reshape(eight.state.params[name], value.shape)
        np.testing.assert_allclose(theirs, value, atol=2e-4, err_msg=name)


def test_checkpoints_have_one_shape_however_devices_share_the_heads(tmp_path) -> None:
    """A run on eight devices is read on one: its files say nothing of the "model" axis."""
    eight = Training(devices=8, strategy="fsdp", model_parallel=2)
    eight.run(batch(0))
    name = "backbone.blocks.1.attn.qkv.kernel"
    assert eight.state.params[name].shape == (48, 3, 48)
    model = {"params": eight.state.params, "stats": eight.state.followers}
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(1, model, counters(eight.state), {"best_step": 1})
    checkpoints.wait()
    one = Training()
    for training in (one, eight):
        state = training.state
        wanted = {"params": abstract(state.params), "stats": abstract(state.followers)}
        restored = checkpoints.restore(1, wanted, abstract(counters(state)))
        found = {"params": restored.model["params"], "opt": restored.training["opt_state"]}
        expected = {"params": eight.state.params, "opt": eight.state.opt_state}
        likes = {"params": state.params, "opt": state.opt_state}
        for ours, value, like in zip(*map(jax.tree.leaves, (found, expected, likes)), strict=True):
            assert ours.sharding == like.sharding
            np.testing.assert_array_equal(ours, np.reshape(value, like.shape))
    checkpoints.close()


def test_micro_batches_add_up_to_the_batch() -> None:
    # Drop-path draws once per micro-batch, so it is left to the test above.
    whole, cut = Training("linear_probe"), Training("linear_probe", devices=2, accumulate=4)
    batches = list(map(batch, range(3)))
    np.testing.assert_allclose(cut.run(*batches), whole.run(*batches), rtol=1e-5)


def test_linear_probe_touches_the_head_alone() -> None:
    training = Training("linear_probe")
    before = jax.device_get(training.frozen)
    head = jax.device_get(training.state.params)
    training.run(batch(0), batch(1))
    assert set(head) == {"head.kernel", "head.bias"}
    slots = [leaf for leaf in jax.tree.leaves(training.state.opt_state) if leaf.ndim]
    assert sorted(leaf.shape for leaf in slots) == sorted(2 * [(CLASSES,), (ARCH.width, CLASSES)])
    for name, value in before.items():
        np.testing.assert_array_equal(training.frozen[name], value, err_msg=name)
    assert not np.array_equal(training.state.params["head.kernel"], head["head.kernel"])


def test_a_bad_loss_changes_nothing_and_is_remembered() -> None:
    training = Training("linear_probe")
    training.run(batch(0))
    before = jax.device_get(training.state.params)
    bad = batch(1, mask=np.full(BATCH_SIZE, np.nan, np.float32))
    training.run(bad, batch(2))
    assert int(training.state.bad_step) == 1
    for name, value in before.items():
        np.testing.assert_array_equal(training.state.params[name], value, err_msg=name)


def test_padding_does_not_count() -> None:
    mask = np.ones(BATCH_SIZE, np.float32)
    mask[11:] = 0
    labels = batch(0)["labels"].copy()
    labels[11:] = 0
    first, second = Training("linear_probe"), Training("linear_probe")
    losses = first.run(batch(0, mask=mask)), second.run(batch(0, mask=mask, labels=labels))
    assert losses[0] == losses[1]
    np.testing.assert_array_equal(
        first.state.params["head.kernel"], second.state.params["head.kernel"]
    )


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, 0),
        ({"decay": "l2"}, 0),
        ({"clip_by": "tensor", "weight_decay_end": 0.4}, 2),  # as DINO is trained
    ],
    ids=["adamw", "adam", "dino"],
)
def test_optimizer_is_that_of_torch_with_the_decay_rule_of_the_study(
    changes: dict[str, Any], held: int
) -> None:
    rng = np.random.default_rng(3)
    params = {
        "cls_token": rng.normal(size=(1, 1, 5)),
        "kernel": rng.normal(size=(5, 7)),
        "bias": rng.normal(size=7),
    }
    params = {name: value.astype(np.float32) for name, value in params.items()}
    config = dataclasses.replace(OPTIM, warmup_steps=0, clip_norm=0.7, **changes)
    total = 10
    ours = optim.make_optimizer(
        config,
        optim.relative_rate(config, 0, total),
        weight_decay=optim.decay_by_step(config, total),
        held=optim.Held(lambda name: name == "kernel", held) if held else None,
    )
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    decayed = [p for p in theirs.values() if p.ndim > 1]
    rest = [p for p in theirs.values() if p.ndim <= 1]
    adam = torch.optim.Adam if config.decay == "l2" else torch.optim.AdamW
    torch_optimizer = adam(
        [{"params": decayed, "weight_decay": config.weight_decay},
         {"params": rest, "weight_decay": 0.0}],
        lr=config.learning_rate,
    )  # fmt: skip
    state = ours.init(params)
    for step in range(5):
        grads = {n: rng.normal(size=v.shape).astype(np.float32) for n, v in params.items()}
        updates, state = ours.update(grads, state, params)
        rate = config.learning_rate
        params = {name: params[name] + rate * updates[name] for name in params}
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(grads[name])
        groups = [[p] for p in theirs.values()]
        for group in groups if config.clip_by == "tensor" else [list(theirs.values())]:
            torch.nn.utils.clip_grad_norm_(group, config.clip_norm)
        if step < held:
            theirs["kernel"].grad = None
        if end := config.weight_decay_end:
            cosine = (1 + math.cos(math.pi * step / total)) / 2
            torch_optimizer.param_groups[0]["weight_decay"] = (
                end + (config.weight_decay - end) * cosine
            )
        torch_optimizer.step()
        still = step < held
        assert np.array_equal(params["kernel"], params["kernel"] - updates["kernel"]) == still
    for name, value in params.items():
        np.testing.assert_allclose(value, theirs[name].detach(), rtol=2e-6, atol=1e-7)


def test_warmup_is_exact_and_cosine_ends_at_zero() -> None:
    config = dataclasses.replace(OPTIM, schedule="cosine")
    schedule = optim.relative_rate(config, warmup=4, total_steps=12)
    rates = np.array([schedule(step) for step in range(13)])
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1.0, 1.0], rtol=1e-6)
    assert np.all(np.diff(rates[4:]) < 0)
    np.testing.assert_allclose(rates[[8, 12]], [0.5, 0.0], atol=1e-7)
    above = optim.relative_rate(dataclasses.replace(config, cosine_end=0.1), 4, total_steps=12)
    np.testing.assert_allclose([above(3), above(8), above(12)], [1.0, 0.55, 0.1], rtol=1e-6)
    constant = optim.relative_rate(dataclasses.replace(config, schedule="constant"), 0, 12)
    assert {float(constant(step)) for step in (0, 1, 40)} == {1.0}


@pytest.mark.parametrize("per_epoch", [7, 7.3])
def test_a_cosine_by_epoch_is_that_of_the_third_study(per_epoch: float) -> None:
    epochs, warmup = 13, 5
    config = dataclasses.replace(OPTIM, schedule="cosine_by_epoch", cosine_end=0.0)
    total = round(epochs * per_epoch)
    schedule = optim.relative_rate(config, warmup, warmup + total, per_epoch)
    rates = np.asarray(jax.jit(schedule)(np.arange(warmup, warmup + total)))
    study = [1.0]  # the rate of the next epoch is set once one is over
    for epoch in range(epochs - 1):
        study.append(0.5 * (1 + math.cos(math.pi * epoch * per_epoch / total)))
    # An epoch begins where its last one is validated.
    begins = [round(epoch * per_epoch) for epoch in range(epochs)]
    expected = [study[sum(step >= begin for begin in begins) - 1] for step in range(total)]
    np.testing.assert_allclose(rates, expected, atol=1e-6)


class WithBatchNorm(nnx.Module):
    """Two layers with running statistics, one of them frozen."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.lower = nnx.BatchNorm(3, rngs=rngs)
        self.head = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None) -> jax.Array:
        x = self.lower(images.mean((1, 2)), use_running_average=True)
        return self.head(x, use_running_average=rngs is None)


def test_running_statistics_follow_what_learns_and_stand_still_elsewhere() -> None:
    parts = partition(nnx.eval_shape(WithBatchNorm), lambda name: name.startswith("head."))
    assert parts.followers == ("head.mean", "head.var")
    assert {"lower.mean", "lower.var", "lower.scale", "lower.bias"} == set(parts.frozen)
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    schedule = optim.relative_rate(OPTIM, 0, 10)
    optimizer = optim.make_optimizer(OPTIM, schedule)
    placement = dict.fromkeys(parts.variables, parallel.replicated(mesh))
    arrays = parts.read(WithBatchNorm(), tuple(parts.variables))
    state = initial_state(
        parts, arrays, optimizer, mesh, placement, learning_rate=0.1, seed=0
    )  # fmt: skip
    step = make_train_step(
        parts, optimizer, schedule, on_inputs(lambda keys, images: images / 255.0),
        loss=Multiclass().loss, accumulate=1, mesh=mesh, placement=placement,
        dtype=jnp.float32,
    )  # fmt: skip
    frozen = {name: arrays[name] for name in parts.frozen}
    values = batch(0)
    state, _ = step(state, frozen, parallel.to_devices(mesh, values))
    x = (values["inputs"] / 255.0).mean((1, 2)) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(state.followers["head.mean"], 0.01 * x.mean(0), rtol=1e-4)


class Taught(nnx.Module):
    """A layer, a teacher that is its moving average, and the centre of the teacher's outputs."""

    def __init__(self) -> None:
        self.student = nnx.Linear(3, CLASSES, rngs=nnx.Rngs(0))
        # Another one, or the first gradient were rounding alone.
        self.teacher = nnx.Linear(3, CLASSES, rngs=nnx.Rngs(1))
        self.centre = nnx.Variable(jnp.zeros(CLASSES))

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None) -> tuple[jax.Array, ...]:
        del rngs
        x = images.mean((1, 2))
        return self.student(x), jax.lax.stop_gradient(self.teacher(x)), self.centre[...]


def taught(outputs: tuple[jax.Array, ...], batch: dict) -> tuple[jax.Array, dict]:
    """A loss without labels; what the teacher says is seen."""
    del batch
    student, teacher, centre = outputs
    targets = jax.nn.softmax(teacher - centre)
    losses = -(targets * jax.nn.log_softmax(student)).sum(-1)
    return losses, {"teacher": teacher, "surprise": losses}


def follow(params: dict, followers: dict, seen: dict, step: jax.Array) -> dict:
    momentum = 0.9 + 0.01 * step
    moved = {
        f"teacher.{leaf}": momentum * followers[f"teacher.{leaf}"]
        + (1 - momentum) * params[f"student.{leaf}"]
        for leaf in ("kernel", "bias")
    }
    return moved | {"centre": 0.5 * followers["centre"] + 0.5 * seen["teacher"]}


def run_taught(devices: int, accumulate: int, strategy: str = "replicated") -> tuple:
    """Three steps, the last image of a batch padding."""
    mesh = parallel.make_mesh(devices=jax.devices()[:devices])
    parts = partition(
        nnx.eval_shape(Taught),
        lambda name: name.startswith("student."),
        lambda name: name.startswith(("teacher.", "centre")),
    )
    assert set(parts.followers) == {"teacher.kernel", "teacher.bias", "centre"}
    assert not parts.running
    shapes = parts.shapes(tuple(parts.variables))
    placement = parallel.parameter_shardings(mesh, shapes, strategy)
    values = parts.read(Taught(), tuple(parts.variables))
    arrays = {name: parallel.place(np.asarray(x), placement[name]) for name, x in values.items()}
    schedule = optim.relative_rate(OPTIM, 0, 10)
    optimizer = optim.make_optimizer(OPTIM, schedule)
    state = initial_state(parts, arrays, optimizer, mesh, placement, learning_rate=0.1, seed=0)
    step = make_train_step(
        parts, optimizer, schedule, on_inputs(lambda keys, images: images / 255.0),
        loss=taught, accumulate=accumulate, mesh=mesh, placement=placement, dtype=jnp.float32,
        follow=follow, logged=lambda seen: {"surprise": seen["surprise"]},
    )  # fmt: skip
    mask = np.ones(BATCH_SIZE, np.float32)
    mask[-1] = 0
    scalars: dict = {}
    for i in range(3):
        rows = {k: v for k, v in batch(i, mask=mask).items() if k != "labels"}
        state, scalars = step(state, {}, parallel.to_devices(mesh, rows))  # type: ignore[arg-type]
    assert step._cache_size() == 1
    return jax.device_get((state.params, state.followers, scalars))


def test_followers_move_by_the_whole_batch_however_it_is_cut() -> None:
    """An EMA teacher and a centre, without labels: after the update, not in a micro-batch."""
    params, followers, scalars = run_taught(devices=1, accumulate=1)
    begun = partition(nnx.eval_shape(Taught), lambda name: True).read(Taught(), ("teacher.kernel",))
    assert np.abs(followers["teacher.kernel"] - begun["teacher.kernel"]).max() > 1e-3
    assert np.abs(followers["centre"]).max() > 1e-3
    assert scalars["surprise"] == pytest.approx(scalars["loss"], rel=1e-6)
    for layout in ((1, 4), (4, 1), (2, 2)):
        for strategy in ("replicated", "fsdp"):
            others = run_taught(*layout, strategy=strategy)
            for ours, theirs in zip((params, followers), others, strict=False):
                for name, value in ours.items():
                    np.testing.assert_allclose(theirs[name], value, rtol=1e-4, atol=1e-6)


def test_what_follows_does_not_learn() -> None:
    with pytest.raises(ValueError, match=r"student.bias is to learn and to follow"):
        partition(nnx.eval_shape(Taught), lambda name: True, lambda name: name == "student.bias")


def test_sharding_rules_leave_no_axis_twice_and_no_indivisible_one() -> None:
    mesh = parallel.make_mesh(2, jax.devices()[:8])
    for name, shape in {
        "backbone.blocks.0.attn.qkv.kernel": (48, 144),
        "backbone.blocks.0.attn.proj.kernel": (48, 48),
        "backbone.blocks.11.mlp.fc1.bias": (4096,),
        "backbone.patch_embed.proj.kernel": (7, 7, 3, 131),
        "head.kernel": (768, 5),
    }.items():
        sharding = parallel.parameter_sharding(mesh, name, shape, "fsdp")
        sharding.shard_shape(shape)  # raises if a dimension does not divide
    assert parallel.parameter_sharding(mesh, "head.kernel", (768, 5), "fsdp").spec[0] == "data"
    # Rows before columns, of which an exchange would have to be put in order.
    wide = parallel.parameter_sharding(mesh, "projector.kernel", (48, 192), "fsdp")
    assert tuple(wide.spec) == ("data", None)


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_has_a_rule_for_the_model_axis(name: str) -> None:
    tiny, mesh = TINY[name], parallel.make_mesh(2, jax.devices()[:8])
    arch = tiny.arch.truncated(tiny.arch.num_blocks - 1)
    backbone = create_abstract(tiny.family, arch, Execution())
    parts = partition(backbone, lambda name: True, divided=True)
    shapes = parts.shapes(tuple(parts.variables))
    named = {f"backbone.{name}": shape for name, shape in shapes.items()}
    assert parallel.parameter_shardings(mesh, named, "fsdp").keys() == named.keys()
    with pytest.raises(ValueError, match=r"no rule says how backbone\.mixer\.kernel"):
        parallel.parameter_sharding(mesh, "backbone.mixer.kernel", (4, 4), "replicated")


@pytest.mark.parametrize(("size", "message"), [(12, "nearest valid: 8 or 16"), (3, "valid: 8")])
def test_a_batch_that_does_not_divide_is_refused(size: int, message: str) -> None:
    mesh = parallel.make_mesh(devices=jax.devices()[:4])
    with pytest.raises(UsageError, match=message):
        parallel.check_batch_size(mesh, size, 2, "train.batch_size")


def test_a_group_of_devices_takes_one_share_of_a_batch() -> None:
    mesh = parallel.make_mesh(4, jax.devices()[:8])
    parallel.check_batch_size(mesh, 6, 3, "train.batch_size")
    with pytest.raises(UsageError, match=r"over 2 groups of devices x 3 micro.*valid: 6 or 12"):
        parallel.check_batch_size(mesh, 8, 3, "train.batch_size")


def test_loss_per_task() -> None:
    logits = jnp.array([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]])
    labels = jnp.array([0, 2])
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(np.asarray(logits)), torch.tensor([0, 2]), reduction="none"
    )
    found, _ = Multiclass().loss(logits, {"labels": labels})
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    many = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], np.float32)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(np.asarray(logits)), torch.tensor(many), reduction="none"
    ).mean(1)
    found, _ = Multilabel().loss(logits, {"labels": jnp.asarray(many)})
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_running_statistics_are_those_of_the_whole_batch_on_any_number_of_devices():
    one, eight = Training(family="resnet"), Training(family="resnet", devices=8)
    batches = [batch(step) for step in range(3)]
    np.testing.assert_allclose(eight.run(*batches), one.run(*batches), rtol=1e-5)
    assert int(one.state.followers["backbone.bn1.count"]) == 3
    for name, value in one.state.followers.items():
        np.testing.assert_allclose(eight.state.followers[name], value, rtol=1e-5, atol=1e-5)


def test_micro_batches_move_the_running_statistics_once_each():
    training = Training(family="resnet", accumulate=2)
    training.run(batch(0))
    assert int(training.state.followers["backbone.bn1.count"]) == 2
