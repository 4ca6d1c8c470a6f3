"""Monitors in a run: what is written, what stops it, and which steps are kept and handed on."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import short_runs

from fmi_jax.artifacts.history import read_history
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UserError
from fmi_jax.fields import set_fields
from fmi_jax.protocols import monitor
from fmi_jax.protocols.dino import DinoConfig
from fmi_jax.protocols.knn import vote
from fmi_jax.protocols.monitor import FeatureMonitor
from fmi_jax.protocols.registry import protocol_of
from fmi_jax.rules import validate
from fmi_jax.run import conclusion
from fmi_jax.run.network import read_trained, trained_backbone
from fmi_jax.run.predict import predict

STEPS = 6  # with looks at 0, 2, 4 and 6


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    """A pre-training of squares whose teacher moves."""
    squares = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    config = dataclasses.replace(copy.deepcopy(squares), protocol="dino")
    config.train.max_steps, config.metric = STEPS, "balanced_accuracy"
    config.optim.learning_rate = 1e-4  # at the squares' own rate it collapses
    config.train.eval_every_epochs = 2 * config.train.batch_size / 43
    sizes = {"prototypes": 37, "hidden_width": 29, "bottleneck_width": 11, "local_crops": 0}
    set_fields(config, {f"dino.{n}": v for n, v in {**sizes, "momentum": 0.5}.items()})
    config.dino.monitor_images = 23
    return config


class Scripted:
    """Monitors whose values a test chooses, one mapping for each look."""

    def __init__(self, *looks: dict[str, float]):
        self.looks = list(looks)
        self.features: list[np.ndarray] = []

    def __call__(self, monitor: Any, features: np.ndarray, first: np.ndarray) -> dict[str, float]:
        self.features.append(features)
        return self.looks[len(self.features) - 1]

    def run(self, config: ExperimentConfig, workdir: Path) -> Any:
        with mock.patch.object(FeatureMonitor, "values", lambda *args: self(*args)):
            return short_runs.run(config, workdir)


def values(knn: float, spread: float = 0.5, dimensions: float = 8.0) -> dict[str, float]:
    return {
        "knn": knn,
        "effective_dimensions": dimensions,
        "feature_spread": spread,
        "similarity": 0.9,
    }


@pytest.fixture(scope="module")
def scripted(
    config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any, Scripted]:
    """A run whose neighbours agree best after its first look."""
    workdir = tmp_path_factory.mktemp("runs") / "scripted"
    script = Scripted(values(0.2), values(0.7), *[values(0.4)] * 5)
    return workdir, script.run(config, workdir), script


def test_what_is_written_is_measured_on_the_teacher_of_that_step(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    short_runs.run(config, tmp_path)
    history = read_history(tmp_path / "metrics.jsonl")
    steps, similar = history["monitor/similarity"]
    assert steps[0] == 0
    assert steps[-1] == STEPS
    assert similar[0] == pytest.approx(1)
    assert similar[-1] < 1 - 1e-6  # the teacher has moved
    assert {f"monitor/{name}" for name in monitor.TITLES} <= history.keys()
    # The features that were watched last are those of the backbone that is handed on.
    judged = dataclasses.replace(copy.deepcopy(config), protocol="knn")
    set_fields(judged, {"backbone.run": str(tmp_path), "knn.k": (5,)})
    judged.dino, judged.optim = ExperimentConfig().dino, ExperimentConfig().optim
    seen: list[np.ndarray] = []

    def remember(bank: np.ndarray, *args: Any, **options: Any) -> np.ndarray:
        seen.append(bank)
        return vote(bank, *args, **options)

    with mock.patch("fmi_jax.protocols.knn.vote", remember):
        short_runs.run(judged, tmp_path / "judged")
    last = {name: series[1][-1] for name, series in history.items() if name.startswith("monitor/")}
    rows = np.sort(np.random.default_rng(0).permutation(len(seen[0]))[:23])
    features = np.asarray(seen[0])[rows]
    assert monitor.spread_of(features) == pytest.approx(last["monitor/feature_spread"], rel=1e-5)
    assert monitor.effective_dimensions(features) == pytest.approx(
        last["monitor/effective_dimensions"], rel=1e-5
    )


def test_the_best_step_is_kept_beside_the_last(scripted: tuple[Path, Any, Scripted]) -> None:
    workdir, result, _ = scripted
    best = result.finding.values["best_by_neighbours"]["step"]
    assert best < STEPS
    kept = sorted(
        int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()
    )
    assert kept == [best, STEPS]
    assert not any((workdir / "checkpoints" / str(step) / "training").exists() for step in kept)
    assert any(
        "--config.backbone.run_step=best" in note for note in result.notes + result.finding.notes
    )


def test_the_last_is_handed_on_unless_the_best_is_asked_for(
    config: ExperimentConfig, scripted: tuple[Path, Any, Scripted], tmp_path: Path
) -> None:
    workdir, _, _ = scripted
    last, best = (trained_backbone(read_trained(workdir, step=step)) for step in ("kept", "best"))
    assert any(not np.array_equal(last[name], best[name]) for name in last)
    probe = dataclasses.replace(copy.deepcopy(config), protocol="linear_probe")
    probe.dino = ExperimentConfig().dino
    probe.train.max_steps = 1
    for step, expected in (("kept", last), ("best", best)):
        set_fields(probe, {"backbone.run": str(workdir), "backbone.run_step": step})
        short_runs.run(probe, tmp_path / step)
        found = trained_backbone(read_trained(tmp_path / step))
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    probe.backbone.run = ""
    with pytest.raises(UserError, match="expected the folder of a finished run"):
        validate(probe)


def test_a_run_killed_after_its_result_still_keeps_both(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    script = Scripted(values(0.2), values(0.7), *[values(0.4)] * 5)
    with (
        mock.patch.object(conclusion, "keep_models", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        script.run(config, tmp_path)
    short_runs.run(config, tmp_path)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal()}
    best = json.loads((tmp_path / "result.json").read_text())["findings"][0]["values"]
    assert kept == {str(best["best_by_neighbours"]["step"]), str(STEPS)}


@pytest.mark.parametrize(
    ("look", "words"),
    [
        (values(0.2, spread=0.04), "nearly the same feature"),
        (values(0.2, dimensions=0.7), "differ along one line"),
    ],
)
def test_collapse_stops_the_run_with_a_message(
    config: ExperimentConfig, tmp_path: Path, look: dict[str, float], words: str
) -> None:
    script = Scripted(values(0.2), values(0.3), look)
    with pytest.raises(UserError, match=words) as error:
        script.run(config, tmp_path)
    assert "docs/pretraining.md" in str(error.value)
    assert not (tmp_path / "result.json").exists()
    assert len(script.features) == 3
    steps = [
        int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal()
    ]
    assert steps  # what was good is kept
    assert max(steps) < STEPS


def test_outputs_that_are_all_the_same_stop_a_run_in_its_second_half() -> None:
    watch = FeatureMonitor(
        rows=np.arange(3),
        metric="",
        labels=None,
        groups=None,
        task=None,  # type: ignore[arg-type]
        outputs=lambda scalars: "alike" if scalars["spread"] < 0.1 else "",
    )
    now = {"feature_spread": 0.5, "effective_dimensions": 3.0}
    assert watch.collapse(now, now, {"spread": 0.01}, 0.5) == ""
    assert watch.collapse(now, now, {"spread": 0.01}, 0.6) == "alike"
    assert watch.collapse(now, now, {"spread": 0.3}, 0.6) == ""


def test_collapse_at_the_last_step_is_said_and_everything_is_kept(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    script = Scripted(values(0.2), *[values(0.1)] * 2, values(0.1, spread=0.01))
    result = script.run(config, tmp_path)
    assert len(script.features) == 4
    assert any("has collapsed" in note for note in result.finding.notes)
    assert any("may not have helped" in note for note in result.finding.notes)


def test_without_monitors_nothing_is_watched(config: ExperimentConfig, tmp_path: Path) -> None:
    config = copy.deepcopy(config)
    config.dino.monitor_images = 0
    result = short_runs.run(config, tmp_path)
    assert not any(n.startswith("monitor/") for n in read_history(tmp_path / "metrics.jsonl"))
    assert "best_by_neighbours" not in result.finding.values


def test_without_labels_there_is_no_best_step(config: ExperimentConfig, tmp_path: Path) -> None:
    """Nor where the metric is undefined for whatever was watched."""
    undefined = {**values(0.0), "knn": float("nan")}
    result = Scripted(*[undefined] * 4).run(config, tmp_path)
    assert "best_by_neighbours" not in result.finding.values
    with pytest.raises(UserError, match="chose no step"):
        read_trained(tmp_path, step="best")
    read_trained(tmp_path)


def test_a_page_never_says_that_validation_chose(config: ExperimentConfig, tmp_path: Path) -> None:
    config = copy.deepcopy(config)
    config.data.fraction = 0.5
    config.train.max_steps = 2
    result = short_runs.run(config, tmp_path)
    assert any("Trained on" in note for note in result.notes)
    assert not any("validation images" in note for note in result.notes)


def test_what_is_watched_depends_on_fields_that_a_run_keeps(config: ExperimentConfig) -> None:
    unread = protocol_of(config).unread
    assert not {"metric", "augment", "augment.center_crop", "train.eval_batch_size"} & {*unread}
    assert "augment.hue" in unread


@pytest.mark.parametrize("protocol", ["simsiam", "mae"])
def test_a_pretraining_without_a_teacher_hands_a_bare_backbone_on(
    protocol: str, config: ExperimentConfig, tmp_path: Path
) -> None:
    fields = {"protocol": protocol, "train.max_steps": 1}
    changed = short_runs.changed(dataclasses.replace(config, dino=DinoConfig()), fields)
    short_runs.run(changed, tmp_path)
    names = read_trained(tmp_path).arrays
    assert all(name.startswith("backbone.") for name in names)
    with pytest.raises(UserError, match="classif"):
        predict(tmp_path, [Path("new.png")])
