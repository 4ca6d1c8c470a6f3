"""A run with judges: refused in time, timed by judge, and warned of first."""

from pathlib import Path

import pytest
import short_runs

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UserError
from fmi_jax.run import experiment


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    made = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    made.backbone.last_block = 0
    made.train.max_steps, made.train.bootstrap_samples = 3, 7
    return made


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
        experiment.run(short_runs.changed(squares, {"protocol": "finetune", **fields}), tmp_path)
    assert message in str(refusal.value)
    assert not (tmp_path / "run.json").exists()


def test_the_time_of_each_added_judge_is_its_own(squares: ExperimentConfig, tmp_path: Path) -> None:
    fields = {"protocol": "knn", "knn.k": (5,), "judges": ("logistic", "cka"), "cka.batch_size": 8}
    result = experiment.run(short_runs.changed(squares, fields), tmp_path)
    seconds = result.seconds
    assert list(seconds) == ["data", "features", "judging", "test", "logistic", "cka"]
    assert result.best is not None
    assert result.best.seconds == seconds["features"] + seconds["judging"]
    assert min(seconds["logistic"], seconds["cka"]) > 0.01  # each compiles a program


def test_one_class_for_all_images_is_the_first_thing_that_is_said(
    squares: ExperimentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every training image is a neighbour: the more frequent class wins everywhere."""
    fields = {"protocol": "knn", "knn.k": (43,), "knn.temperature": (1e3,), "judges": ("logistic",)}
    result = experiment.run(short_runs.changed(squares, fields), tmp_path)
    warning = result.all_notes[0]
    assert warning.startswith("Only one class is predicted for all 9 test images (")
    assert "nothing is told apart" not in " ".join(result.all_notes[1:])  # by the other judge
    out = capsys.readouterr().out
    assert out.index(f"note: {warning}") < out.index("Test set")
    page = (tmp_path / "report.html").read_text()
    assert page.index("Note: ") == page.index("Note: Only one class is predicted")
