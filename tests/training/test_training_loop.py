"""What the loop decides between steps: when to look, what is best, when the rate drops."""

import dataclasses
import itertools
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from fmi_jax import parallel
from fmi_jax.artifacts.scalars import MetricWriter
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UserError
from fmi_jax.tasks.registry import describe
from fmi_jax.training.loop import Loop, Plan
from fmi_jax.training.selection import Selection
from fmi_jax.training.step import TrainState
from fmi_jax.types import Batch

BATCH = Batch(
    inputs=np.zeros((4, 1, 1, 1), np.uint8),
    labels=np.zeros(4, np.int32),
    mask=np.ones(4, np.float32),
    index=np.arange(4, dtype=np.int32),
)


class Notes:
    """Stands for checkpoints, writer and report: remembers what it was told."""

    def __init__(self) -> None:
        self.saved: dict[int, dict] = {}
        self.rows: list[tuple[int, dict]] = []

    def save(self, step: int, model: dict, training: dict, meta: dict) -> None:
        self.saved[step] = meta

    def write_scalars(self, step: int, scalars: dict) -> None:
        self.rows.append((step, scalars))

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: {}


def loop_over(
    config: ExperimentConfig, values: list[float], bad_at: int = -1
) -> tuple[Loop, Notes]:
    """A loop whose validations give `values` in turn, one an epoch of two steps."""
    config.train.batch_size = 4
    config.train.epochs = len(values)
    notes, coming = Notes(), iter(values)

    def step(state: TrainState, frozen: dict, batch: dict) -> tuple[TrainState, dict]:
        bad = state.step if state.step == bad_at else state.bad_step
        state = dataclasses.replace(state, step=state.step + 1, bad_step=bad)
        return state, {"loss": np.float32(1), "learning_rate": state.learning_rate}

    loop = Loop(
        config=config,
        plan=Plan.of(config, num_train=8),
        mesh=parallel.make_mesh(devices=jax.devices()[:1]),
        train_step=step,
        frozen={},
        batches=(BATCH for _ in itertools.count()),
        validate=lambda arrays, done: [{"accuracy": next(coming)}],
        learning_rate=3.0,
        batch_ids=lambda step: [f"image{step}"],
        checkpoints=notes,
        writer=notes,
        report=notes,
        selection=Selection(metric="accuracy", score=describe("accuracy").score),
    )
    return loop, notes


def run(loop: Loop) -> TrainState:
    rate = np.float32(loop.learning_rate)
    return loop.run(TrainState(np.int32(0), {}, {}, {}, rate, np.uint32(0), np.int32(-1)), 0)


def test_the_first_of_equal_bests_is_kept_and_nan_is_never_best() -> None:
    loop, notes = loop_over(ExperimentConfig(), [0.2, 0.7, math.nan, 0.7, 0.1])
    run(loop)
    assert (loop.selection.best_step, loop.selection.tracks[0].best_value) == (4, 0.7)
    assert [meta["best_step"] for meta in notes.saved.values()] == [2, 4, 4, 4, 4]
    first_is_nan, _ = loop_over(ExperimentConfig(), [math.nan, 0.0])
    run(first_is_nan)
    assert first_is_nan.selection.best_step == 4


def test_plateau_drops_the_rate_after_patience_but_not_in_warmup() -> None:
    config = ExperimentConfig()
    config.optim.schedule = "plateau"
    config.optim.plateau_patience = 1
    config.optim.warmup_steps = 4
    loop, notes = loop_over(config, [0.5, 0.4, 0.4, 0.4, 0.6, 0.5, 0.5, 0.5])
    run(loop)
    # Epoch 2 lies in the warm-up; 3 and 4 are bad: dropped; 5 is best; 6 and 7 are bad: dropped.
    rates = [scalars["train/learning_rate"] for _, scalars in notes.rows if "train/loss" in scalars]
    np.testing.assert_allclose(rates, [3.0] * 8 + [0.3] * 6 + [0.03] * 2, rtol=1e-6)
    assert notes.saved[16]["lr_scale"] == pytest.approx(0.01)


def test_a_rate_below_the_floor_ends_the_run_and_is_saved() -> None:
    config = ExperimentConfig()
    config.optim.schedule, config.optim.plateau_patience = "plateau", 0
    config.optim.plateau_floor = 0.01
    loop, notes = loop_over(config, [0.5, 0.4, 0.6, 0.4, 0.4, 0.7, 0.8])
    # Epochs 2, 4 and 5 are bad: the factor is 0.1, 0.01 (not below) and 0.001.
    assert int(run(loop).step) == max(notes.saved) == 10
    assert notes.saved[10]["lr_scale"] == pytest.approx(0.001)
    assert loop.selection.best_step == 6
    config.optim.plateau_floor = 0.0
    loop, _ = loop_over(config, [0.5] * 7)
    assert int(run(loop).step) == 14


def test_heads_side_by_side_go_on_until_all_are_below_the_floor() -> None:
    selection = Selection(metric="accuracy", score=describe("accuracy").score, names=("a", "b"))
    config = ExperimentConfig()
    selection.tracks[0].lr_scale = 1e-9
    assert not selection.ended(config)
    selection.tracks[1].lr_scale = 1e-5
    assert selection.ended(config)


def test_a_run_ends_when_validation_has_not_improved_for_longer_than_its_patience() -> None:
    config = ExperimentConfig()
    config.train.patience, config.optim.warmup_steps = 2, 4
    loop, notes = loop_over(config, [0.5, 0.4, 0.4, 0.6, 0.5, 0.5, 0.6, 0.9])
    # Epoch 2 lies in the warm-up, and 4 is better; 5, 6 and 7 (the same is no better) are not.
    assert int(run(loop).step) == max(notes.saved) == 14
    assert notes.saved[14]["stale"] == 3
    assert loop.selection.best_step == 8
    assert loop.selection.out_of_patience(config.train)
    # Resumed, it has ended; with more patience it goes on.
    resumed = Selection(metric="accuracy", score=describe("accuracy").score)
    resumed.restore(notes.saved[14])
    assert resumed.ended(config)
    config.train.patience = 3
    assert not resumed.ended(config)
    # Heads side by side wait for the last of them.
    heads = Selection(metric="accuracy", score=describe("accuracy").score, names=("a", "b"))
    config.train.patience = 1
    for improved in ([False, False], [False, True], [False, False]):
        heads.count_stale(np.array(improved))
    assert not heads.ended(config)
    heads.count_stale(np.array([False, False]))
    assert heads.ended(config)


def test_constant_schedule_never_drops() -> None:
    loop, _ = loop_over(ExperimentConfig(), [0.5] + [0.1] * 6)
    run(loop)
    assert loop.selection.lr_scale == 1.0


def test_a_bad_step_ends_the_run_with_its_images_and_saves_nothing_after_it() -> None:
    loop, notes = loop_over(ExperimentConfig(), [0.5, 0.6, 0.7], bad_at=3)
    with pytest.raises(UserError, match="not finite at step 4, on the batch of image3"):
        run(loop)
    assert list(notes.saved) == [2]
    assert [step for step, scalars in notes.rows if "train/loss" in scalars] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("epochs", "every", "images", "expected"),
    [
        (3, 1.0, 8, {2, 4, 6}),
        (2, 0.5, 8, {1, 2, 3, 4}),
        (2, 0.1, 8, {1, 2, 3, 4}),
        (1, 5.0, 9, {2}),
        (4, 1.0, 10, {2, 5, 8, 10}),  # 2.5 steps an epoch, rounded to even
    ],
)
def test_plan(epochs: float, every: float, images: int, expected: set[int]) -> None:
    config = ExperimentConfig()
    config.train.batch_size, config.train.epochs = 4, epochs
    config.train.eval_every_epochs = every
    plan = Plan.of(config, images)
    assert plan.evaluate_at == expected
    assert plan.total_steps == max(expected)


def test_writer_drops_what_lies_beyond_the_checkpoint(tmp_path: Path) -> None:
    first = MetricWriter(tmp_path, 0, active=True)
    for step in (1, 2, 3):
        first.write_scalars(step, {"train/loss": step / 10})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')  # killed while writing
    second = MetricWriter(tmp_path, 2, active=True)
    second.write_scalars(3, {"train/loss": math.inf, "val/roc_auc": math.nan})
    second.close()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
        '{"step": 1, "train/loss": 0.1}',
        '{"step": 2, "train/loss": 0.2}',
        '{"step": 3, "train/loss": null, "val/roc_auc": null}',
    ]
