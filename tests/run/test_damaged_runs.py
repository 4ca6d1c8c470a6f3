"""Runs that were killed, damaged or edited: completed, resumed, or refused in one message."""

import copy
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import pytest
import runs
import short_runs
from sealing import resealed

from fmi_jax import parallel
from fmi_jax.artifacts import checkpoints, sealed
from fmi_jax.artifacts.history import read_history
from fmi_jax.artifacts.record import RunRecord
from fmi_jax.artifacts.result import PENDING, Result
from fmi_jax.artifacts.scalars import MetricWriter
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UserError
from fmi_jax.report.page import write_report
from fmi_jax.run import conclusion, experiment
from fmi_jax.run.evaluate import evaluate
from fmi_jax.run.predict import predict
from fmi_jax.study.state import ended
from fmi_jax.training.interrupt import Stopped, StopRequest

STOPPED, STEPS = 4, 6


class Killed(BaseException):
    """Stands for a signal that nobody catches."""


@pytest.fixture(autouse=True)
def _one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(parallel, "make_mesh", lambda *_, **__: mesh)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    made = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    made.train.bootstrap_samples, made.train.checkpoint_every_steps = 7, 2
    return made


@pytest.fixture(scope="module")
def stopped(squares: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped and has saved."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    stop = mock.patch.object(StopRequest, "requested", lambda self, step: step == STOPPED)
    with stop, pytest.raises(Stopped):
        short_runs.run(squares, workdir)
    return workdir


@pytest.fixture(scope="module")
def measured(
    squares: ExperimentConfig, stopped: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same run, resumed and killed when its result was known and nothing else was written."""
    workdir = tmp_path_factory.mktemp("measured") / "run"
    shutil.copytree(stopped, workdir)
    with (
        mock.patch.object(conclusion, "finish", side_effect=Killed),
        pytest.raises(Killed),
    ):
        short_runs.run(squares, workdir)
    return workdir


@pytest.fixture(scope="module")
def finished(
    squares: ExperimentConfig, measured: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same run at its end."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(measured, workdir)
    short_runs.run(squares, workdir)
    return workdir


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def refused(config: ExperimentConfig, workdir: Path, *parts: str) -> str:
    with pytest.raises(UserError) as error:
        experiment.run(config, workdir)
    said = str(error.value)
    for part in parts:
        assert part in said, said
    return said


def steps(workdir: Path) -> list[int]:
    found = (workdir / "checkpoints").iterdir()
    return sorted(int(path.name) for path in found if path.is_dir() and path.name.isdecimal())


# Killed between any two files


def no_page() -> list:
    return [mock.patch.object(conclusion, "write_report", side_effect=Killed)]


def no_cleaning() -> list:
    return [mock.patch.object(conclusion, "keep_models", side_effect=Killed)]


def half_cleaned() -> list:
    return [mock.patch.object(checkpoints, "_write_manifest", side_effect=Killed)]


def not_emptied() -> list:
    removed = shutil.rmtree

    def remove(path: Path, **options: object) -> None:
        if path.name == "training":
            raise Killed
        removed(path, **options)

    return [mock.patch.object(shutil, "rmtree", remove)]


def not_named() -> list:
    return [mock.patch.object(Path, "replace", side_effect=Killed)]


@pytest.mark.parametrize("kill", [no_page, no_cleaning, half_cleaned, not_emptied, not_named])
def test_killed_between_any_two_files_it_is_completed(
    kill: Callable[[], list], squares: ExperimentConfig, measured: Path, workdir: Path
) -> None:
    shutil.copytree(measured, workdir)
    assert len(steps(workdir)) > 1
    result = (workdir / PENDING).read_bytes()
    [killed] = kill()
    with killed, pytest.raises(Killed):
        experiment.run(squares, workdir)
    assert ended(workdir) is None  # a driver runs it again
    with pytest.raises(UserError, match=r"holds no result\.json"):
        predict(workdir, [workdir / "no.png"])
    found = experiment.run(squares, workdir)
    assert (workdir / "result.json").read_bytes() == result
    assert not (workdir / PENDING).exists()
    assert b"</html>" in (workdir / "report.html").read_bytes()
    assert {"confusion.png", "curves.png"} <= {path.name for path in workdir.iterdir()}
    assert found.best is not None
    assert steps(workdir) == [found.best.step]
    kept = {p.name for p in (workdir / "checkpoints" / str(found.best.step)).iterdir()}
    assert "training" not in kept
    assert "model" in kept


def test_killed_before_its_result_it_is_measured_again(
    squares: ExperimentConfig, stopped: Path, finished: Path, workdir: Path
) -> None:
    shutil.copytree(stopped, workdir)
    with mock.patch.object(Result, "write", side_effect=Killed), pytest.raises(Killed):
        experiment.run(squares, workdir)
    assert (workdir / "predictions.csv").is_file()
    found = short_runs.run(squares, workdir)
    assert found.test.values == Result.read(finished).test.values
    assert (workdir / "predictions.csv").read_bytes() == (finished / "predictions.csv").read_bytes()


def test_a_report_that_is_gone_is_written_again(
    squares: ExperimentConfig, finished: Path, workdir: Path
) -> None:
    """Also that of a run which an earlier version left without one."""
    shutil.copytree(finished, workdir)
    (workdir / "report.html").unlink(missing_ok=True)
    experiment.run(squares, workdir)
    assert b"</html>" in (workdir / "report.html").read_bytes()


def test_a_changed_digit_of_the_predictions_is_noticed(finished: Path, workdir: Path) -> None:
    shutil.copytree(finished, workdir)
    table = workdir / "predictions.csv"
    content = bytearray(table.read_bytes())
    content[content.rindex(b".") + 1] ^= 1
    table.write_bytes(content)
    with pytest.raises(UserError, match=r"predictions\.csv has changed since its run wrote it"):
        write_report(workdir)


# Checkpoints


def flip(bit: int) -> Callable[[bytes], bytes]:
    def flipped(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[20] ^= 1 << bit
        return bytes(changed)

    return flipped


@pytest.mark.parametrize(
    "damage",
    [
        flip(7),
        flip(0),
        lambda _: b"[]",
        lambda _: b"null",
        lambda _: b'{"format": 2, "sha256": [1]}',
        lambda _: b'{"format": 2, "sha256": 3}',
        lambda _: b'{"format": "2"}',
        lambda _: b"[" * 100_000,
        lambda content: content.replace(b'"format": 3', b'"format": 7'),
        lambda content: content.replace(b'"seal"', b'"sea1"'),
    ],
)
def test_a_manifest_that_is_not_sound_is_damage(
    damage: Callable[[bytes], bytes], stopped: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(stopped / "checkpoints", folder)
    newest = folder / "manifests" / f"{STOPPED}.json"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.raises(UserError, match=f"step {STOPPED} in .*: its manifest is damaged"):
        checkpoints.check_step(folder, STOPPED)
    with pytest.raises(UserError, match="its manifest is damaged"):
        checkpoints.model_sha256(folder, STOPPED)
    before = checkpoints.RunCheckpoints(folder).newest_sound()
    assert before is not None
    assert before < STOPPED
    assert (folder / "damaged" / str(STOPPED)).is_dir()


def test_a_damaged_newest_manifest_costs_a_few_steps_and_nothing_else(
    squares: ExperimentConfig, stopped: Path, finished: Path, workdir: Path
) -> None:
    """A file among the steps is nobody's; what was set aside goes with the end of the run."""
    shutil.copytree(stopped, workdir)
    newest = workdir / "checkpoints" / "manifests" / f"{STOPPED}.json"
    newest.write_bytes(flip(7)(newest.read_bytes()))
    (workdir / "checkpoints" / "99").write_text("mine")
    found = short_runs.run(squares, workdir)
    assert found.test.values == Result.read(finished).test.values
    assert short_runs.losses(workdir) == short_runs.losses(finished)
    assert (workdir / "checkpoints" / "99").read_text() == "mine"
    assert steps(workdir) == steps(finished)
    assert not (workdir / "checkpoints" / "damaged").exists()


def test_manifests_without_a_seal_are_read(stopped: Path, tmp_path: Path) -> None:
    """Those of formats 1 and 2."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(stopped / "checkpoints", folder)
    for path in (folder / "manifests").iterdir():
        sums = json.loads(path.read_text())["sha256"]
        old = sums if int(path.stem) == STOPPED else {"format": 2, "sha256": sums}
        path.write_text(json.dumps(old))
    assert checkpoints.RunCheckpoints(folder).newest_sound() == STOPPED
    for step in steps(tmp_path):
        checkpoints.check_step(folder, step)


# Edited files


def test_no_flipped_bit_of_a_sealed_file_goes_unseen(tmp_path: Path) -> None:
    path, values = tmp_path / "a.json", {"format": 3, "classes": ["c1", "c2"], "mean": 0.25}
    sealed.write(path, values)
    content = path.read_bytes()
    for place in range(8 * len(content)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(bytes(changed))
        try:
            assert sealed.read(path, 3, since=3) == values  # a blank for a line end
        except sealed.DAMAGE:
            continue
    path.write_text(json.dumps(json.loads(content), indent=7, sort_keys=True))
    assert sealed.read(path, 3, since=3) == values


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("run.json", '"blue"', '"bluf"'),
        ("run.json", '"prepared_size": 16', '"prepared_size": 18'),
        ("result.json", '"step": ', '"step": 1'),
    ],
)
def test_an_edited_file_is_named_and_nothing_is_computed_from_it(
    name: str,
    old: str,
    new: str,
    squares: ExperimentConfig,
    finished: Path,
    workdir: Path,
) -> None:
    shutil.copytree(finished, workdir)
    path = workdir / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    what = "record" if name == "run.json" else "result"
    message = (
        f"{path} is not the {what} of a run (its checksum differs); expected the file as it was"
        " written, since it cannot be edited: put a copy of it back, or run again in another folder"
    )
    refused(squares, workdir, message)
    after = copy.deepcopy(squares)
    after.protocol, after.backbone.run, after.knn.k = "knn", str(workdir), (3,)
    after.optim.learning_rate = ExperimentConfig().optim.learning_rate
    refused(after, workdir.parent / "after", message)
    for use in (
        lambda: predict(workdir, [workdir / "no.png"]),
        lambda: evaluate(workdir, "squares", workdir.parent / "out"),
    ):
        with pytest.raises(UserError) as error:
            use()
        assert message in str(error.value)


def test_an_unsealed_record_of_an_earlier_version_is_read(finished: Path, workdir: Path) -> None:
    shutil.copytree(finished, workdir)
    path = workdir / "run.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in values.items() if k != "seal"} | {"format": 1}))
    assert RunRecord.read(ExperimentConfig, workdir) == RunRecord.read(ExperimentConfig, finished)
    path.write_text(json.dumps({k: v for k, v in values.items() if k != "seal"}))
    with pytest.raises(UserError, match="its checksum is missing"):
        RunRecord.read(ExperimentConfig, workdir)


@pytest.mark.parametrize("content", [b"[]", b"{}", b"\x80", b"[" * 100_000, b'{"config": []}'])
def test_a_record_that_is_none_is_one_message(
    content: bytes, squares: ExperimentConfig, workdir: Path
) -> None:
    workdir.mkdir()
    (workdir / "run.json").write_bytes(content)
    refused(squares, workdir, f"{workdir / 'run.json'} is not the record of a run")


def test_a_description_of_data_that_is_none_is_one_message(finished: Path, workdir: Path) -> None:
    shutil.copytree(finished, workdir)
    with resealed(workdir / "run.json") as record:
        del record["dataset"]["split"]
    with pytest.raises(UserError, match=r"run\.json is not the record of a run \(KeyError: 'split"):
        predict(workdir, [workdir / "no.png"])


# Other files of a run


def test_damaged_lines_of_the_log_are_set_aside(
    squares: ExperimentConfig,
    stopped: Path,
    finished: Path,
    workdir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(stopped, workdir)
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = [
        lines[0].replace(b"loss", b"l\xefss"),
        lines[0].replace(b'"step"', b'"stdp"'),
        b"[1]\n",
        b"null\n",
        b'{"step": "1"}\n',
        b"[" * 100_000 + b"\n",
    ]
    path.write_bytes(b"".join([*damaged, *lines, b'{"step": 1, "tr']))
    assert len(read_history(path)["train/loss"][0]) == STOPPED
    short_runs.run(squares, workdir)
    assert "6 damaged line(s)" in caplog.text
    assert (workdir / "metrics.damaged").read_bytes() == b"".join(damaged)
    assert path.read_bytes() == (finished / "metrics.jsonl").read_bytes()


def test_what_is_gone_or_in_the_way_is_one_message(
    squares: ExperimentConfig, stopped: Path, finished: Path, tmp_path: Path
) -> None:
    for name, source, parts in (
        ("result.json", finished, ("a run that was finished, and its result.json is gone",)),
        ("run.json", finished, ("holds checkpoints of a run and no run.json", "put that file")),
        ("run.json", stopped, ("holds checkpoints of a run and no run.json", "--workdir")),
    ):
        workdir = tmp_path / f"{name}-{source.parent.name}"
        shutil.copytree(source, workdir)
        (workdir / name).unlink()
        refused(squares, workdir, str(workdir), *parts)
    for name in ("tensorboard", "checkpoints"):
        workdir = tmp_path / name
        shutil.copytree(stopped, workdir)
        shutil.rmtree(workdir / name)
        (workdir / name).write_text("a file")
        refused(squares, workdir, str(workdir / name), "move it away, then give the same command")
        assert (workdir / name).read_text() == "a file"
    workdir = tmp_path / "log"
    shutil.copytree(stopped, workdir)
    (workdir / "metrics.jsonl").unlink()
    (workdir / "metrics.jsonl").mkdir()
    refused(squares, workdir, f"{workdir / 'metrics.jsonl'}: Is a directory")


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from fmi_jax.entry import run_main
from fmi_jax.guard import guarded
sys.exit(guarded(lambda: run_main(["run.py", *sys.argv[2:]], None)))
"""


def test_on_a_full_disk_the_message_is_all_that_is_said(
    squares: ExperimentConfig, finished: Path, workdir: Path
) -> None:
    """With space again the run ends as it would have."""
    config = runs.write_config(workdir.parent, Path(squares.data.data_dir))
    changes = [
        f"--config.{name}={value}"
        for name, value in {
            "train.max_steps": STEPS,
            "train.eval_every_epochs": squares.train.eval_every_epochs,
            "train.checkpoint_every_steps": 2,
            "train.bootstrap_samples": 7,
            "backbone.drop_path": 0.0,
            "augment.jitter_probability": 0.0,
        }.items()
    ]
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            LIMITED,
            "60000",
            f"--config={config}",
            f"--workdir={workdir}",
            *changes,
        ],
        capture_output=True,
        text=True,
        env=runs.environment() | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        check=False,
    )
    assert process.returncode == 1, process.stderr
    assert process.stderr.count("\n") == 1, process.stderr
    assert process.stderr.startswith("error: checkpoint in ")
    assert "free space or choose another --workdir" in process.stderr
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with mock.patch.object(MetricWriter, "flush", side_effect=full):
        refused(
            squares,
            workdir,
            f"{workdir}: the disk is full, or a quota of it. What has been saved is",
        )
    found = short_runs.run(squares, workdir)
    assert found.test.values == Result.read(finished).test.values
