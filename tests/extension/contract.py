"""What everything in the registries must do, asked of what `test_walls` has added to a copy.

The test of every protocol is the one of this checkout, over the protocols that are new.
"""

import copy
import dataclasses
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import short_runs
import test_every_preset as presets
from PIL import Image
from test_every_preset import test_every_protocol_runs_resumes_and_is_reported  # noqa: F401

from fmi_jax import entry
from fmi_jax.artifacts.result import Result
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.class_folders import folder_spec
from fmi_jax.errors import UsageError
from fmi_jax.run import experiment
from fmi_jax.study.plan import Plan, make_plan

PAIR = next(name for name in presets.SPECS if name.endswith("+tempered"))
NEW = (PAIR, "likeness")
presets.SPECS = {name: presets.SPECS[name] for name in NEW}


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    """A short run of the new backbone on images that are brighter with every grade."""
    folder = tmp_path_factory.mktemp("graded")
    rng = np.random.default_rng(7)
    for i in range(61):
        of_class = folder / "raw" / f"grade {i % 3}"
        of_class.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 70, (19, 19, 3), np.uint8) + np.uint8(60 * (i % 3))
        Image.fromarray(pixels).save(of_class / f"{i}.png")
    prepare(folder_spec("graded"), folder / "raw", folder / "data", size=16)
    config = short_runs.config_of_squares(folder)
    config.data.name, config.metric = "graded", ""
    config.image_size, config.backbone.name = 15, "toy_nano"
    return config


@pytest.fixture(scope="module")
def plan(graded: ExperimentConfig) -> Plan:
    return make_plan(presets.study_of(graded))


def test_the_new_parts_measure_one_run(graded: ExperimentConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(presets.config_of(PAIR, graded), judges=("likeness",))
    experiment.run(config, tmp_path)
    result = Result.read(tmp_path)
    assert (result.test.task, result.backbone["name"]) == ("grades", "toy_nano")
    assert result.best is not None
    assert result.best.metric == "grade_distance"
    count = result.test.confusion
    far = sum(abs(i - j) * count[i, j] for i in range(3) for j in range(3)) / count.sum()
    assert result.test.values["grade_distance"] == pytest.approx(far)
    assert result.test.intervals["grade_distance"][1] >= far
    assert np.shape(result.findings[1].values["cosines"]) == (3, 3)
    assert (tmp_path / "likeness.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    for words in ("Mean distance in grades", "Likeness of the classes", "temperature"):
        assert words in page, words


def asked(*arguments: str) -> ExperimentConfig:
    """The config that a command line gives."""
    with mock.patch.object(experiment, "run") as run:
        entry.run_main(["run.py", "--config=config.py", "--workdir=x", *arguments], None)
    return run.call_args.args[0]


def test_the_option_is_read_from_the_command_line_and_by_nothing_else(
    graded: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.py").write_text(
        "from fmi_jax.config import ExperimentConfig\nget_config = lambda: ExperimentConfig()\n"
    )
    option = "--config.tempered.temperature"
    found = asked("--config.protocol=fit", "--config.head=tempered", f"{option}=0.3")
    assert found.tempered.temperature == 0.3
    with pytest.raises(UsageError, match=r"Did you mean 'tempered\.temperature'"):
        asked("--config.tempered.temprature=0.3")
    for wrong, message in (("cold", "--config.tempered.temperature=cold"), ("0", "more than 0")):
        with pytest.raises(UsageError, match=message):
            experiment.run(asked(f"{option}={wrong}"), tmp_path / "wrong")
    other = dataclasses.replace(copy.deepcopy(graded), protocol="linear_probe")
    other.tempered.temperature = 0.3
    with pytest.raises(UsageError, match=r"'linear_probe' does not read tempered\.temperature"):
        experiment.run(other, tmp_path / "other")
    assert not [*(tmp_path / "other").glob("*.json")]
