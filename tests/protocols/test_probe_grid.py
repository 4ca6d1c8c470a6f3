"""A grid of heads: each is the linear probe that it would have been alone."""

import copy
import csv
import dataclasses
import json
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import short_runs
from flax import nnx
from tolerances import PARITY_FORWARD

from fmi_jax.artifacts.history import part, read_history
from fmi_jax.artifacts.result import Result
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.models.base import ParameterKeys
from fmi_jax.protocols.heads import head_grid
from fmi_jax.protocols.heads.head_grid import ProbeGridConfig
from fmi_jax.protocols.registry import FITS, JUDGES, check_read
from fmi_jax.protocols.spec import Head
from fmi_jax.report.page import write_report
from fmi_jax.run import experiment
from fmi_jax.run.predict import predict
from fmi_jax.settings import LossConfig, OptimConfig
from fmi_jax.tasks.classification import Classification, Multiclass, Multilabel
from fmi_jax.tasks.predictions import read_predictions
from fmi_jax.tasks.registry import TASKS
from fmi_jax.training import optim, side_by_side
from fmi_jax.training.loop import Loop

RATES = (3e-3, 5e-2)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    """Two rates and two seeds, with everything that a head has of its own: clipping that acts,
    warm-up, a plateau that drops the rate, more than one validation."""
    config = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    config.protocol = "probe_grid"
    config.probe_grid = ProbeGridConfig(learning_rates=RATES, seeds=2)
    config.optim = OptimConfig(
        weight_decay=0.1, warmup_steps=2, clip_norm=0.5, schedule="plateau", plateau_patience=0
    )
    config.metric = "loss"
    config.train.batch_size = 16  # 8 devices, 2 micro-batches
    config.train.max_steps = 11
    return config


@pytest.fixture(scope="module")
def grid(config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("grid")
    short_runs.run(config, workdir)
    return workdir


def alone(config: ExperimentConfig, rate: float) -> ExperimentConfig:
    """The linear probe of one rate."""
    return dataclasses.replace(
        config,
        protocol="linear_probe",
        probe_grid=ProbeGridConfig(),
        optim=dataclasses.replace(config.optim, learning_rate=rate),
    )


def probabilities(workdir: Path) -> np.ndarray:
    test = Result.read(workdir).test
    return read_predictions(
        workdir / "predictions.csv", TASKS[test.task].label, test.classes
    ).probabilities


def rows(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_every_head_is_the_linear_probe_of_its_rate(
    config: ExperimentConfig, grid: Path, tmp_path: Path
) -> None:
    heads = Result.read(grid).finding.values["heads"]
    for i, rate in enumerate(RATES):
        workdir = tmp_path / str(i)
        expected = short_runs.run(alone(config, rate), workdir)
        found = heads[2 * i]
        assert (found["learning_rate"], found["seed"]) == (rate, config.train.seed)
        assert found["best_step"] == expected.best.step
        for split in ("val", "test"):
            values = getattr(expected, split).values
            assert found[split].keys() == values.keys()
            for name, value in values.items():
                assert found[split][name] == pytest.approx(value, abs=PARITY_FORWARD), name
        # Also every step on the way, so that clipping and the plateau have been seen to act.
        name = f"lr{rate}_seed0/"
        for mine, theirs in zip(rows(grid), rows(workdir), strict=True):
            for scalar, value in theirs.items():
                key = scalar if scalar == "step" else name + scalar
                assert mine[key] == pytest.approx(value, rel=PARITY_FORWARD, abs=PARITY_FORWARD)
    dropped = {row.get(f"lr{RATES[1]}_seed0/train/learning_rate", RATES[1]) for row in rows(grid)}
    assert min(dropped) < 0.2 * RATES[1]
    assert heads[0]["best_step"] != heads[2]["best_step"]


def test_the_first_seed_of_the_best_rate_is_the_result(
    config: ExperimentConfig, grid: Path, tmp_path: Path
) -> None:
    result = Result.read(grid)
    details = result.finding.values
    chosen = [h for h in details["heads"] if {**h, **details["chosen"]} == h]
    assert len(chosen) == 1
    assert result.best.step == chosen[0]["best_step"]
    assert result.best.value == pytest.approx(chosen[0]["val"]["loss"], abs=PARITY_FORWARD)
    assert result.test.values == chosen[0]["test"]
    same = [h for h in details["heads"] if h["learning_rate"] == chosen[0]["learning_rate"]]
    assert {h["seed"] for h in same} == {0, 1}
    accuracy = [h["test"]["loss"] for h in same]
    assert details["seeds"]["test_mean"]["loss"] == pytest.approx(np.mean(accuracy))
    assert details["seeds"]["test_std"]["loss"] == pytest.approx(np.std(accuracy, ddof=1))
    assert same[0]["test"] != same[1]["test"]
    write_report(grid)
    assert (grid / "curves.png").exists()
    page = (grid / "report.html").read_text()
    assert page.count(f'<th scope="row">{RATES[1]:g}</th>') == 2
    curves = part(read_history(grid / "metrics.jsonl"), details["curves"])
    assert curves["val/loss"][1].min() == result.best.value
    assert curves["train/loss"][0].tolist() == list(range(1, config.train.max_steps + 1))
    # Whatever reads a finished run gets that head.
    folder = Path(config.data.data_dir).parent / "raw"
    with (grid / "predictions.csv").open() as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    found = predict(grid, [folder / name for name in ids])
    np.testing.assert_allclose(found.probabilities, probabilities(grid), atol=PARITY_FORWARD)


def test_on_eight_devices_in_micro_batches_and_stopped_it_is_the_same(
    config: ExperimentConfig, grid: Path, tmp_path: Path
) -> None:
    stopped = tmp_path / "stopped"
    short_runs.run_stopped(config, stopped, after=7)
    for name in ("metrics.jsonl", "predictions.csv"):
        assert (stopped / name).read_bytes() == (grid / name).read_bytes(), name
    cut = copy.deepcopy(config)
    cut.optim.accumulate = 2
    eight = tmp_path / "eight"
    short_runs.run(cut, eight, devices=8)
    np.testing.assert_allclose(probabilities(eight), probabilities(grid), atol=PARITY_FORWARD)
    for mine, theirs in zip(rows(eight), rows(grid), strict=True):
        assert mine == pytest.approx(theirs, rel=PARITY_FORWARD, abs=PARITY_FORWARD)


def test_a_grid_ends_early_as_it_would_have_at_its_end_also_when_it_is_stopped_there(
    config: ExperimentConfig, grid: Path, tmp_path: Path
) -> None:
    """A floor after the last best step of every head changes neither them nor the test outputs."""
    config = copy.deepcopy(config)
    config.metric = "accuracy"
    config.optim.plateau_floor = 0.0
    whole = short_runs.run(config, tmp_path / "whole")
    last = max(head["best_step"] for head in whole.finding.values["heads"])
    config.optim.plateau_floor = 0.02
    early = short_runs.run(config, tmp_path / "early")
    assert last <= early.steps < whole.steps == config.train.max_steps
    assert early.finding.values["heads"] == whole.finding.values["heads"]
    assert (tmp_path / "early" / "predictions.csv").read_bytes() == (
        tmp_path / "whole" / "predictions.csv"
    ).read_bytes()
    said = f"ended after {early.steps} of {whole.steps} steps"
    assert any(said in note for note in early.all_notes)
    assert not any("ended after" in note for note in whole.all_notes)
    # Killed between the last checkpoint and the result, it trains no further.
    stopped = tmp_path / "stopped"
    killed = mock.patch.object(experiment, "conclude", side_effect=KeyboardInterrupt)
    with killed, pytest.raises(KeyboardInterrupt):
        short_runs.run(config, stopped)
    with mock.patch.object(Loop, "run", side_effect=AssertionError("it trains again")):
        again = short_runs.run(config, stopped)
    assert again.steps == early.steps
    for name in ("metrics.jsonl", "predictions.csv"):
        assert (stopped / name).read_bytes() == (tmp_path / "early" / name).read_bytes(), name


def test_options_of_the_loss_hold_for_every_head_however_the_batch_is_cut(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    config = copy.deepcopy(config)
    config.train.max_steps, config.optim.schedule = 5, "constant"
    config.loss = LossConfig(class_weights="balanced", focal_gamma=1.0, label_smoothing=0.1)
    config.data.sampling = "balanced"
    first = short_runs.run_stopped(config, tmp_path / "whole", after=3)
    found = rows(tmp_path / "whole")
    cut = copy.deepcopy(config)
    cut.optim.accumulate = 2
    short_runs.run(cut, tmp_path / "cut", devices=8)
    for mine, theirs in zip(rows(tmp_path / "cut"), found, strict=True):
        assert mine == pytest.approx(theirs, rel=PARITY_FORWARD, abs=PARITY_FORWARD)
    # The metrics have the plain cross entropy.
    measured = read_predictions(
        tmp_path / "whole" / "predictions.csv", TASKS[first.test.task].label, first.test.classes
    )
    assert measured.labels is not None
    plain = -np.log(measured.probabilities[np.arange(len(measured.labels)), measured.labels]).mean()
    assert first.test.values["loss"] == pytest.approx(plain, abs=1e-4)
    plainly = copy.deepcopy(config)
    plainly.loss = LossConfig()
    short_runs.run(plainly, tmp_path / "plain")
    assert rows(tmp_path / "plain")[0] != found[0]


@pytest.mark.parametrize(
    ("field", "value"), [("loss.focal_gamma", 2.0), ("data.sampling", "balanced")]
)
@pytest.mark.parametrize("protocol", [*JUDGES, *FITS])
def test_what_does_not_train_by_labels_refuses_their_options(
    config: ExperimentConfig, tmp_path: Path, protocol: str, field: str, value: object
) -> None:
    wrong = short_runs.changed(ExperimentConfig(), {"protocol": protocol, field: value})
    with pytest.raises(UsageError, match=rf"'{protocol}' does not read {field}"):
        check_read(wrong)


def test_on_kept_features_it_is_the_grid_on_images_without_augmentation(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    config = copy.deepcopy(config)
    plain = {"jitter_probability": 0.0, "flip_horizontal": 0.0, "flip_vertical": 0.0}
    config.augment = dataclasses.replace(
        config.augment, **plain, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0)
    )
    config.train.max_steps = 5
    expected = short_runs.run(config, tmp_path / "images")
    config.probe_grid.cached = True
    result = short_runs.run_stopped(config, tmp_path / "features", after=3)
    assert any("without augmentation" in note for note in result.all_notes)
    assert result.best.step == expected.best.step
    np.testing.assert_allclose(
        probabilities(tmp_path / "features"),
        probabilities(tmp_path / "images"),
        atol=PARITY_FORWARD,
    )


def test_seeds_start_as_linear_probes_of_these_seeds() -> None:
    def drawn_after(seed: int, draws: int) -> nnx.Rngs:
        rngs = nnx.Rngs(seed)
        for _ in range(draws):
            rngs.params()
        return rngs

    streams = head_grid.streams(5, 3, ParameterKeys(jax.random.key(5), drawn=4))
    for i, stream in enumerate(streams):
        assert jnp.array_equal(
            jax.random.key_data(stream.params()),
            jax.random.key_data(drawn_after(5 + i, draws=4).params()),
        )


@pytest.mark.parametrize("task", [Multiclass, Multilabel])
def test_the_loss_of_each_head_is_its_own(task: type[Classification]) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(5, 3, 7)).astype(np.float32)
    labels = rng.integers(0, 2, (5, 7)) if task is Multilabel else rng.integers(0, 7, 5)
    together, _ = side_by_side.each(task().loss)(logits, {"labels": labels})
    for i in range(3):
        alone, _ = task().loss(logits[:, i], {"labels": labels})
        np.testing.assert_allclose(together[:, i], alone)


def test_rates_are_chosen_by_their_mean_over_seeds() -> None:
    heads = [Head(learning_rate=rate, seed=seed) for rate in (1.0, 2.0, 3.0) for seed in (0, 1)]
    assert head_grid.choose(heads, [0.9, 0.1, 0.6, 0.5, 0.5, 0.6]) == 2
    assert head_grid.choose(heads, [-0.9, -0.1, -0.6, -0.5, -0.5, -0.6]) == 0
    assert head_grid.choose(heads, [-np.inf, 1.0, 0.1, 0.1, 0.2, 0.2]) == 4


def test_what_no_head_reads_is_refused(config: ExperimentConfig, tmp_path: Path) -> None:
    wrong = copy.deepcopy(config)
    wrong.optim.learning_rate = 3e-3
    with pytest.raises(UsageError, match=r"probe_grid\.learning_rates"):
        experiment.run(wrong, tmp_path / "rate")
    assert [path.name for path in (tmp_path / "rate").iterdir()] == [".lock"]
    wrong = copy.deepcopy(config)
    wrong.probe_grid.learning_rates = ()
    with pytest.raises(UsageError, match=r"probe_grid\.learning_rates"):
        experiment.run(wrong, tmp_path / "none")
    wrong = dataclasses.replace(config, protocol="linear_probe")
    with pytest.raises(UsageError, match="does not read probe_grid"):
        experiment.run(wrong, tmp_path / "unread")


def test_optimizers_side_by_side_are_each_alone() -> None:
    rng = np.random.default_rng(2)
    one = optim.make_optimizer(OptimConfig(clip_norm=1.0, weight_decay=0.1), lambda step: 0.5)
    together = optim.side_by_side(one)
    shapes = {"kernel": (3, 5, 2), "bias": (3, 2)}
    params, grads = (
        {
            name: rng.normal(size=shape, scale=scale).astype(np.float32)
            for name, shape in shapes.items()
        }
        for scale in (1, 7)
    )
    updates, _ = together.update(grads, together.init(params), params)
    for i in range(3):
        of = jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), params)
        expected, _ = one.update(jax.tree.map(lambda x, i=i: x[i], grads), one.init(of), of)
        for name, value in expected.items():
            np.testing.assert_allclose(updates[name][i], value, rtol=1e-6, err_msg=name)
