"""Files of earlier versions are read and resumed: runs, studies, prepared sets, weights."""

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import older_folders
import pytest
import short_runs
from tolerances import ACROSS_CPUS

from fmi_jax import cli
from fmi_jax.artifacts import weights
from fmi_jax.artifacts.checkpoints import RunCheckpoints
from fmi_jax.artifacts.record import RunRecord
from fmi_jax.artifacts.result import Result
from fmi_jax.artifacts.weights import load_backbone
from fmi_jax.config import ExperimentConfig
from fmi_jax.data import loader
from fmi_jax.data.prepared import manifest_sha256, open_dataset
from fmi_jax.data.raw.drawn import folder as drawn
from fmi_jax.errors import UserError
from fmi_jax.models.registry import BACKBONES
from fmi_jax.run import experiment
from fmi_jax.run.network import read_trained
from fmi_jax.study.ledger import Ledger
from fmi_jax.study.planned import read_studies
from fmi_jax.study.state import State
from fmi_jax.training.loop import Loop


@pytest.fixture(scope="module", params=[1])
def left(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return older_folders.unpack(request.param, tmp_path_factory.mktemp("older"))


@pytest.fixture(scope="module")
def expected(left: Path) -> dict:
    return json.loads((left / "expected.json").read_text())


def config_of(left: Path, run: str) -> ExperimentConfig:
    """Config that resumes a run: its own, with the folder where the data are now."""
    record = RunRecord.read(ExperimentConfig, left / run)
    assert record is not None
    config = copy.deepcopy(record.config)
    config.data.data_dir = str(left / "data")
    return config


def times(folder: Path) -> dict[Path, int]:
    """When each file under a folder was written last; locks apart."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("protocol", ["finetune", "probe_grid"])
def test_a_run_that_was_stopped_goes_on_where_it_stood(
    protocol: str, left: Path, expected: dict
) -> None:
    """With its optimizer, its batch statistics, and the best of its heads."""
    workdir = left / f"half_{protocol}"
    before = short_runs.losses(workdir)
    result = short_runs.run(config_of(left, workdir.name), workdir)
    then = expected[protocol]
    assert short_runs.losses(workdir)[: len(before)] == before
    np.testing.assert_allclose(short_runs.losses(workdir), then["losses"], rtol=ACROSS_CPUS)
    for split in ("val", "test"):
        found = getattr(result, split).values["loss"]
        np.testing.assert_allclose(found, then[split]["loss"], rtol=ACROSS_CPUS)
    assert result.best.step == then["best"]["step"]


def test_a_finished_run_is_announced_and_read(left: Path, expected: dict, capsys) -> None:
    with mock.patch.object(Loop, "run", side_effect=AssertionError("it trains again")):
        result = experiment.run(config_of(left, "finished"), left / "finished")
    assert isinstance(result, Result)
    assert result.test.values == pytest.approx(expected["finetune"]["test"])
    assert "accuracy" in capsys.readouterr().out
    learned = read_trained(left / "finished").arrays
    assert np.isfinite(np.asarray(learned["head.kernel"])).all()


def test_a_new_default_that_a_run_does_not_read_is_no_other_setting(left: Path) -> None:
    config = config_of(left, "finished")
    assert config.knn.k == (200,)
    config.knn = ExperimentConfig().knn
    config.probe_grid = ExperimentConfig().probe_grid
    experiment.run(config, left / "finished")
    config.train.epochs += 1
    with pytest.raises(UserError, match=r"other settings: train\.epochs: .* now\. Use another"):
        experiment.run(config, left / "finished")


def test_a_result_of_format_3_is_read(left: Path, tmp_path: Path) -> None:
    """It did not say what was trained."""
    written = Result.read(left / "finished").to_json()
    old = {name: value for name, value in written.items() if name not in ("adapt", "head")}
    (tmp_path / "result.json").write_text(json.dumps({**old, "format": 3}))
    assert Result.read(tmp_path).to_json() == {**written, "adapt": "", "head": ""}


def test_a_result_of_format_4_is_read(left: Path, tmp_path: Path) -> None:
    """It did not name the method of an interval: there was one, the percentile bootstrap."""
    written = Result.read(left / "finished").to_json()
    old = copy.deepcopy(written) | {"format": 4}
    for finding in old["findings"]:
        for evaluation in finding["evaluations"].values():
            for name in ("methods", "redrawn", "calibration", "choices", "decisions", "subgroups"):
                del evaluation[name]
    (tmp_path / "result.json").write_text(json.dumps(old))
    found = Result.read(tmp_path)
    assert found.to_json() == written
    assert set(found.test.methods.values()) == {"percentile bootstrap"}
    assert set(found.test.methods) == set(found.test.intervals) > {"accuracy"}


def test_prepared_images_and_kept_features_are_read(left: Path) -> None:
    dataset = open_dataset(left / "data", "squares", 16)
    batches = loader.eval_batches(dataset, "test", batch_size=3, threads=1, places=np.arange(3))
    assert sum(int(batch["mask"].sum()) for batch in batches) == dataset.info.counts["test"] == 9
    [knn] = (left / "root" / "cells").glob("*-knn-*")
    config = config_of(left, f"root/cells/{knn.name}")
    features = times(left / "data" / "features")
    result = short_runs.run(config, left / "knn_again")
    assert times(left / "data" / "features") == features
    earlier = dict(Result.read(knn).test.values)
    del earlier["quadratic_kappa"]  # since then only of classes that are in an order
    assert result.test.values == pytest.approx(earlier)


def test_converted_weights_are_loaded(left: Path, expected: dict) -> None:
    spec = BACKBONES["resnet_nano"]
    path = left / "weights" / "resnet_nano.drawn.safetensors"
    loaded = load_backbone(path, spec, spec.arch, stem="sum")
    sums = {name: np.abs(value.astype(np.float64)).sum() for name, value in loaded.items()}
    assert sums == pytest.approx(expected["weights"])


def test_a_study_runs_what_is_left_of_it_and_reports_the_rest(left: Path, capsys) -> None:
    root, study = left / "root", str(left / "study.py")
    done = {path.parent.name: path.read_bytes() for path in root.glob("cells/*/result.json")}
    assert {name.split("-")[2] for name in done} == {"finetune", "cka", "knn"}
    arguments = [study, "--root", str(root), "--data-dir", str(left / "data")]
    # The failed cell is not run again; the begun one is resumed, the open one ends in NaN.
    assert cli.main(["study", "run", *arguments]) == 1
    logs = {path.parent.name: path.read_text() for path in root.glob("cells/*/log.txt")}
    [begun] = (name for name, text in logs.items() if "resuming at step 3" in text)
    assert "linear_probe" in begun
    assert Ledger(root).state(begun) is State.DONE
    for name, result in done.items():
        assert (root / "cells" / name / "result.json").read_bytes() == result
    assert cli.main(["report", "squares", "--root", str(root)]) == 0
    assert "Of 4 settings" in capsys.readouterr().out
    numbers = (root / "report" / "numbers.csv").read_text()
    assert all(name in numbers for name in ("finetune", "linear_probe", "knn", "cka"))


def refuses(read: Callable[[], object], path: Path, way_out: str) -> None:
    with pytest.raises(UserError) as caught:
        read()
    said = str(caught.value)
    assert re.search(r"is of format '?(\w+ )*99", said), said
    assert str(path) in said or str(path.parent) in said, said
    assert way_out in said, said


def set_format(path: Path) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    return path


@pytest.mark.parametrize(
    "name", ["finished/run.json", "finished/result.json", "root/squares.json", "failed", "result"]
)
def test_files_of_later_versions_are_refused_in_one_message(
    name: str, left: Path, tmp_path: Path
) -> None:
    if name in ("failed", "result"):
        [cell, *_] = (left / "root" / "cells").glob(f"*/{name}.json")
        name = str(cell.relative_to(left))
    folder = tmp_path / Path(name).parts[0]
    shutil.copytree(left / folder.name, folder)
    path = set_format(tmp_path / name)
    read = {
        "finished/run.json": lambda: RunRecord.read(ExperimentConfig, folder),
        "finished/result.json": lambda: Result.read(folder),
        "root/squares.json": lambda: read_studies(folder),
        "failed.json": lambda: Ledger(folder).failure(path.parent.name),
        "result.json": lambda: Ledger(folder).score(path.parent.name),
    }
    refuses(read.get(name) or read[path.name], path, "install the version that wrote it")


def test_a_study_of_a_later_version_is_not_overwritten(left: Path, tmp_path: Path, capsys) -> None:
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(left / "root" / "squares.json", root)
    written = set_format(root / "squares.json").read_bytes()
    arguments = [str(left / "study.py"), "--root", str(root), "--data-dir", str(left / "data")]
    assert cli.main(["study", "run", *arguments]) == 1
    assert "is of format 99" in capsys.readouterr().err
    assert (root / "squares.json").read_bytes() == written


def test_checkpoints_of_a_later_version_are_refused_and_stay_where_they_are(
    left: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(left / "half_finetune" / "checkpoints", folder)
    assert RunCheckpoints(folder).newest_sound() is not None  # format 1: checksums alone
    newest = max((folder / "manifests").glob("*.json"), key=lambda path: int(path.stem))
    values = {"format": 99, "sha256": json.loads(newest.read_text())}
    newest.write_text(json.dumps(values))
    before = sorted(folder.rglob("*"))
    refuses(RunCheckpoints(folder).newest_sound, newest, "install the version that wrote it")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("number", [1, 99])
def test_prepared_data_of_another_version_name_the_command_that_remakes_them(
    number: int, left: Path, tmp_path: Path
) -> None:
    shutil.copytree(left / "data" / "squares", tmp_path / "squares")
    [path] = tmp_path.glob("squares/*/manifest.json")
    manifest = {**json.loads(path.read_text()), "format": number}
    del manifest["sha256"]
    path.write_text(json.dumps({**manifest, "sha256": manifest_sha256(manifest)}))
    size, _, split = path.parent.name.partition("-")
    with pytest.raises(UserError, match=rf"is of format {number}, .* reads 2") as caught:
        open_dataset(tmp_path, "squares", int(size))
    assert f"--data-dir {tmp_path} --size {size} --split {split} --overwrite" in str(caught.value)


def test_weights_of_a_later_version_are_refused(
    left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, path = BACKBONES["resnet_nano"], tmp_path / "later.safetensors"
    file = weights.read_backbone(left / "weights" / "resnet_nano.drawn.safetensors")
    with monkeypatch.context() as later:
        later.setattr(weights, "FORMAT", "fmi_jax backbone 99")
        weights.save_backbone(path, file.params, spec.arch, file.provenance)
    refuses(lambda: weights.read_backbone(path), path, "convert the checkpoint again")


def test_drawn_images_are_drawn_anew_when_the_drawing_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw() -> bool:
        with drawn.drawn_folder(tmp_path / "raw", "Squares, seed 1.\n") as folder:
            return folder is not None

    assert draw()
    assert not draw()
    marker = tmp_path / "raw" / drawn.MARKER
    assert marker.read_text() == "Squares, seed 1.\nFormat 1.\n"
    marker.write_text("Squares, seed 1.\n")  # as before there were numbers
    assert not draw()
    marker.write_text("Squares, seed 1.\nFormat 99.\n")
    with pytest.raises(UserError, match=r"Format 1\..* Delete it to have it drawn again"):
        draw()
