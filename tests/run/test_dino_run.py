"""DINO in a run: it resumes exactly, reads no label, and hands its teacher's backbone on."""

import copy
import dataclasses
from collections.abc import Generator
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import short_runs

from fmi_jax import parallel
from fmi_jax.artifacts.result import Result
from fmi_jax.config import ExperimentConfig
from fmi_jax.data import loader
from fmi_jax.data.prepared import open_dataset
from fmi_jax.fields import set_fields
from fmi_jax.protocols.pretraining import FIGURE
from fmi_jax.report.page import write_report
from fmi_jax.run.assembly import assemble
from fmi_jax.run.network import finished, pretrained, read_trained, trained_backbone
from fmi_jax.settings import OptimConfig
from fmi_jax.types import Batch

STEPS, STOP = 4, 2
TEACHER = "teacher.backbone."


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    config = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    config.train.max_steps = STEPS
    config.train.checkpoint_every_steps = STOP
    config.optim.warmup_steps = 0
    return config


@pytest.fixture(scope="module")
def config(squares: ExperimentConfig) -> ExperimentConfig:
    """A pre-training with local crops, whose teacher moves in every step."""
    config = dataclasses.replace(copy.deepcopy(squares), protocol="dino")
    sizes = {"prototypes": 37, "hidden_width": 29, "bottleneck_width": 11, "local_size": 8}
    others = {"local_crops": 1, "momentum": 0.8, "anchor": 0.25}
    set_fields(config, {f"dino.{name}": value for name, value in {**sizes, **others}.items()})
    return config


@pytest.fixture(scope="module")
def whole(config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    short_runs.run(config, workdir)
    return workdir


def kept(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the one checkpoint that a finished run keeps."""
    model = ocp.StandardCheckpointer().restore(
        (workdir / "checkpoints" / str(STEPS) / "model").resolve()
    )
    return {name: np.asarray(value) for part in model.values() for name, value in part.items()}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_every_array_is_kept_and_the_teacher_has_moved(
    config: ExperimentConfig, whole: Path
) -> None:
    arrays = kept(whole)
    data = config.data
    info = open_dataset(Path(data.data_dir), data.name, data.prepared_size, data.split).info
    assert arrays.keys() == assemble(config, 3, 2).partition.variables.keys()
    assert {"centre", "temperature", "teacher.head.prototypes"} <= arrays.keys()
    assert arrays["centre"].any()
    begun = pretrained(config, info, parallel.make_mesh()).arrays
    for name, value in arrays.items():
        if name.startswith("anchor."):  # the backbone as it began, to the end
            first = begun[name.replace("anchor.", "backbone.", 1)]
            np.testing.assert_array_equal(value, first, err_msg=name)
    for name, value in arrays.items():
        if name.startswith(TEACHER) and name.endswith("kernel"):
            student = arrays[name.removeprefix("teacher.")]
            assert not np.array_equal(value, student), name
    write_report(whole)
    page = (whole / "report.html").read_text()
    assert "Course of the pre-training" in page
    assert (whole / FIGURE).read_bytes().startswith(b"\x89PNG")


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    config: ExperimentConfig, whole: Path, tmp_path: Path
) -> None:
    short_runs.run_stopped(config, tmp_path / "stopped", after=STOP)
    assert_same(kept(tmp_path / "stopped"), kept(whole))
    assert short_runs.losses(tmp_path / "stopped") == short_runs.losses(whole)


def test_labels_change_nothing(config: ExperimentConfig, whole: Path, tmp_path: Path) -> None:
    original, replaced = loader.train_batches, []

    def without_labels(*arguments, **options) -> Generator[Batch, None, None]:
        for batch in original(*arguments, **options):
            replaced.append(np.array(batch["labels"]))
            yield Batch(**{**batch, "labels": 1 - batch["labels"]})

    with mock.patch.object(loader, "train_batches", without_labels):
        short_runs.run(config, tmp_path / "other")
    assert {0, 1} == {int(label) for labels in replaced for label in labels}
    assert_same(kept(tmp_path / "other"), kept(whole))


@pytest.mark.parametrize("protocol", ["knn", "linear_probe"])
def test_the_backbone_of_the_teacher_is_judged(
    protocol: str, squares: ExperimentConfig, whole: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(copy.deepcopy(squares), protocol=protocol)
    config.backbone.run, config.knn.k = str(whole), (5,) if protocol == "knn" else (200,)
    if protocol == "knn":
        config.optim = OptimConfig()
    result = short_runs.run(config, tmp_path)
    assert isinstance(Result.read(tmp_path).test.values["accuracy"], float)
    assert "protocol 'dino'" in " ".join(result.notes)
    teacher = {
        name.removeprefix(TEACHER): value
        for name, value in kept(whole).items()
        if name.startswith(TEACHER)
    }
    assert_same(trained_backbone(read_trained(whole)), teacher)
    if protocol == "linear_probe":
        mesh = parallel.make_mesh(devices=jax.devices()[:1])
        probe = finished(tmp_path, mesh).arrays
        judged = {
            name.removeprefix("backbone."): np.asarray(value)
            for name, value in probe.items()
            if name.startswith("backbone.")
        }
        assert_same(judged, teacher)
