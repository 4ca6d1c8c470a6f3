"""A run with judges, and its end: refused in time, made up for after a kill, and timed by judge."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import pytest
import short_runs

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UserError
from fmi_jax.models.registry import BACKBONES
from fmi_jax.protocols.registry import protocol_of
from fmi_jax.run import conclusion, experiment
from fmi_jax.settings import set_fields
from weights_convert.export import read_source


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    made = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    short_runs.prepare_masked(Path(made.data.data_dir))
    made.backbone.last_block = 0
    made.train.max_steps, made.train.bootstrap_samples = 3, 7
    return made


def of(squares: ExperimentConfig, fields: Mapping[str, object]) -> ExperimentConfig:
    config = copy.deepcopy(squares)
    set_fields(config, {name: value for name, value in fields.items() if "." not in name})
    spec = protocol_of(config)
    set_fields(config, {**spec.small, **fields})
    if "optim.learning_rate" in spec.unread:
        config.optim.learning_rate = ExperimentConfig().optim.learning_rate
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"judges": ("cka",), "cka.batch_size": 5}, "cka.batch_size=5: expected 8 or more"),
        ({"judges": ("cka",), "cka.other": ("runs/none",)}, "runs/none holds no result.json"),
        ({"judges": ("cka",), "cka.other": ("deit_nanx",)}, "unknown backbone 'deit_nanx'"),
        (
            {"judges": ("cka",), "cka.other": ("deit_nano:none",)},
            "cka.other='none': there is no ",
        ),
        (
            {"judges": ("cka",), "cka.run": "runs/another"},
            "beside protocol 'finetune' the first network is that of this run; expected cka.run"
            " empty",
        ),
        (
            {"judges": ("timing",), "timing.reference": "deit_nanx", "timing.transformer": ""},
            "unknown backbone 'deit_nanx'",
        ),
        (
            {"judges": ("timing",), "timing.transformer": "resnet50"},
            "unknown transformer for timing.transformer 'resnet50'",
        ),
        ({"judges": ("timing",), "timing.backbones": ("dinov2_vitb14",)}, "14"),
    ],
)
def test_what_a_judge_cannot_do_is_said_before_anything_is_trained(
    squares: ExperimentConfig, tmp_path: Path, fields: dict, message: str
) -> None:
    with pytest.raises(UserError) as refusal:
        experiment.run(of(squares, {"protocol": "finetune", **fields}), tmp_path)
    assert message in str(refusal.value)
    assert not (tmp_path / "run.json").exists()


class Killed(BaseException):
    """Stands for a signal that nobody catches."""


def test_a_run_killed_after_its_result_is_completed(
    squares: ExperimentConfig, tmp_path: Path
) -> None:
    config = of(squares, {"protocol": "dino", "data.fraction": 0.5})
    page = mock.patch.object(conclusion, "write_report", side_effect=Killed)
    with page, pytest.raises(Killed):
        experiment.run(config, tmp_path)
    written = (tmp_path / "result.json").read_bytes()
    step = tmp_path / "checkpoints" / "3"
    assert (step / "training").is_dir()
    result = experiment.run(config, tmp_path)
    assert (tmp_path / "result.json").read_bytes() == written
    assert b"</html>" in (tmp_path / "report.html").read_bytes()
    steps = [path for path in step.parent.iterdir() if path.name.isdecimal()]
    assert steps == [step]
    assert (step / "model").is_dir()
    assert not (step / "training").exists()
    # It was trained on a part of the images, though it has no metric of them.
    assert any(note.startswith("Trained on ") for note in result.notes)
    after = of(squares, {"protocol": "knn", "knn.k": (5,), "backbone.run": str(tmp_path)})
    experiment.run(after, tmp_path / "knn")  # what is left can be handed on

    # Of a damaged checkpoint nothing is deleted.
    (step / "training").mkdir()
    (step / "model" / "more").write_text("damage")
    experiment.run(config, tmp_path)
    assert (step / "training").is_dir()


def test_the_time_of_each_added_judge_is_its_own(squares: ExperimentConfig, tmp_path: Path) -> None:
    fields = {"protocol": "knn", "knn.k": (5,), "judges": ("logistic", "cka"), "cka.batch_size": 8}
    result = experiment.run(of(squares, fields), tmp_path)
    seconds = result.seconds
    assert list(seconds) == ["data", "features", "judging", "test", "logistic", "cka"]
    assert result.best is not None
    assert result.best.seconds == seconds["features"] + seconds["judging"]
    assert min(seconds["logistic"], seconds["cka"]) > 0.01  # each compiles a program


def test_a_head_on_each_patch_is_not_exported_as_a_classifier(
    squares: ExperimentConfig, tmp_path: Path
) -> None:
    fields = {"protocol": "fit", "adapt": "frozen", "head": "per_patch", "data.name": "masked"}
    experiment.run(of(squares, fields), tmp_path / "masks")
    probe = dataclasses.replace(copy.deepcopy(squares), protocol="linear_probe")
    experiment.run(probe, tmp_path / "probe")
    spec = BACKBONES["deit_nano"]
    assert read_source(spec, tmp_path / "masks").head is None
    assert read_source(spec, tmp_path / "probe").head is not None
