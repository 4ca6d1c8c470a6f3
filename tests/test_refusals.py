"""What a user gets wrong at the command line: one message, the right exit code, no traceback."""

from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import runs
from PIL import Image

from fmi_jax import cli
from fmi_jax.entry import run_main
from fmi_jax.guard import guarded
from fmi_jax.run import experiment

CONFIG = """
from fmi_jax.config import ExperimentConfig


def get_config(arg=""):
    return {expression}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(expression="ExperimentConfig(image_size=28)"))
    return path


def refused(capsys: pytest.CaptureFixture[str], code: int, expected: int = 2) -> str:
    out, err = capsys.readouterr()
    assert code == expected, out + err
    assert err.startswith("error: "), err
    assert err.count("error: ") == 1, err
    assert "Traceback" not in err
    return err


def run(*arguments: object) -> int:
    return guarded(lambda: run_main(["run.py", *map(str, arguments)], None))


def test_wrong_flag(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(f"--config={config}", "--wrkdir=x")
    assert "unknown flag '--wrkdir'. Did you mean '--workdir'?" in refused(capsys, code)


def test_misspelt_config_field(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(f"--config={config}", "--workdir=x", "--config.optim.learing_rate=1")
    assert "Did you mean 'optim.learning_rate'" in refused(capsys, code)


def test_wrong_type_of_a_config_field(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(f"--config={config}", "--workdir=x", "--config.optim.learning_rate=fast")
    assert "--config.optim.learning_rate=fast" in refused(capsys, code)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("optim.schedule=linear", "optim.schedule='linear': expected one of constant, cosine"),
        ("train.batch_size=0", "train.batch_size=0: expected more than 0"),
        ("augment.flip_vertical=1.5", "augment.flip_vertical=1.5: expected between 0 and 1"),
        ("augment.crop_scale=(1.0,0.5)", "expected 0 < low <= high"),
        ("augment.crop_scale=(1,2,3)", "(1, 2, 3): expected 2 values of float, such as (0.8, 1.2)"),
        ("knn.k=abc", "knn.k=('abc',): expected values of int, such as (1, 5, 10, 20,"),
        ("optim.accumulate=0", "optim.accumulate=0: expected more than 0"),
        ("optim.accumulate=3", "train.batch_size=64 is not a multiple of optim.accumulate=3"),
    ],
)
def test_value_that_cannot_be(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, field: str, message: str
) -> None:
    workdir = tmp_path / "run"
    code = run(f"--config={config}", f"--workdir={workdir}", f"--config.{field}")
    assert message in refused(capsys, code)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("backbone.name=dinov2_vitb16", "unknown backbone 'dinov2_vitb16'. Did you mean 'dino"),
        ("protocol=fine_tune", "unknown protocol 'fine_tune'. Did you mean 'finetune'"),
        ("backbone.weights=lvd142", "published tags: lvd142m"),
        ("backbone.weights=none.safetensors", "there is no file none.safetensors"),
        ("backbone.stem=red", "backbone.stem='red': expected one of sum, mean, first"),
        ("data.name=aptos", "unknown data set 'aptos'. Did you mean 'aptos2019'"),
        ("data.name=aptos2019", "fmi-jax prepare aptos2019 --source"),
        ("metric=kappa", "unknown metric for a binary task 'kappa'"),
        ("train.model_parallel=3", "train.model_parallel=3 does not divide"),
    ],
)
def test_name_that_does_not_exist(
    config: Path,
    dots: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    field: str,
    message: str,
) -> None:
    code = run(
        f"--config={config}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.data_dir={dots}",
        "--config.data.name=dots",
        "--config.data.prepared_size=8",
        f"--config.{field}",
    )
    assert message in refused(capsys, code)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.fixture(scope="module")
def dots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds one tiny prepared data set."""
    folder = tmp_path_factory.mktemp("dots")
    rng = np.random.default_rng(2)
    for i in range(20):
        path = folder / "raw" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    code = cli.main(
        [
            *("prepare", "folder", "--name", "dots", "--source", str(folder / "raw")),
            *("--data-dir", str(folder / "data"), "--size", "8"),
        ]
    )
    assert code == 0
    return folder / "data"


def test_image_size_that_the_backbone_cannot_take(
    config: Path, dots: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = run(
        f"--config={config}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.data_dir={dots}",
        "--config.data.name=dots",
        "--config.data.prepared_size=8",
        "--config.backbone.name=dinov2_vitb14",
        "--config.image_size=1024",
    )
    assert "1022" in refused(capsys, code)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("{'protocol': 'finetune'}", "get_config returned dict"),
        ("ExperimentConfig(lr=3)", "lr"),
    ],
)
def test_config_file_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], expression: str, message: str
) -> None:
    path = tmp_path / "odd.py"
    path.write_text(CONFIG.format(expression=expression))
    assert message in refused(capsys, run(f"--config={path}", "--workdir=x"))


def test_config_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    code = run("--config=configs/quickstrat.py", "--workdir=x")
    said = refused(capsys, code)
    assert "there is no file 'configs/quickstrat.py'. Did you mean 'quickstart'?" in said
    assert "Valid: aptos2019, " in said


def test_config_name_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, run("--config=quickstrat:8", "--workdir=x"))
    assert "there is no config 'quickstrat'. Did you mean 'quickstart'?" in said


def test_no_workdir(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--workdir is missing" in refused(capsys, run(f"--config={config}"))


def test_workdir_that_cannot_be_made(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    code = run(f"--config={config}", f"--workdir={tmp_path / 'file' / 'run'}")
    assert "cannot be used: Not a directory" in refused(capsys, code)


def test_run_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for default in (None, Path("configs/quickstart.py")):
        code = guarded(lambda default=default: run_main(["run.py"], default))
        assert "--workdir is missing" in refused(capsys, code)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir="], "--workdir is missing: expected the folder of the run"),
        (["--workdir=a\0b"], r"'--workdir=a\x00b': expected text in UTF-8 without control"),
        (["--workdir=a\udce9"], r"'--workdir=a\udce9': expected text in UTF-8"),
        (["--workdir=x", "--flagfile=nope"], "--flagfile is not read: expected the fields in a"),
        (["--workdir=x", "--num_processes=-1"], "--num_processes"),
        (["--workdir=x", "--num_processes=1e20"], "--num_processes"),
        (["--workdir=x", "--process_id=-1"], "--process_id"),
        (["--workdir=x", "--process_id=5", "--num_processes=2"], "multi-host start needs all of"),
        (["--workdir=x", "--coordinator_address=foo"], "multi-host start needs all of"),
        (
            ["--workdir=x", "--coordinator_address=foo", "--process_id=0", "--num_processes=2"],
            "--coordinator_address=foo: expected HOST:PORT",
        ),
        (
            ["--workdir=x", "--coordinator_address=a:99999", "--process_id=0", "--num_processes=2"],
            "--coordinator_address=a:99999: expected HOST:PORT",
        ),
        (
            ["--workdir=x", "--coordinator_address=a:80", "--process_id=5", "--num_processes=2"],
            "--process_id=5: expected 0 to 1",
        ),
    ],
)
def test_flags_of_run(
    config: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    begun = AssertionError("it began")
    with (
        mock.patch.object(experiment, "run", side_effect=begun),
        mock.patch.object(jax.distributed, "initialize", side_effect=begun),
    ):
        code = run(f"--config={config}", *flags)
    assert message in refused(capsys, code)


def test_long_names(config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "File name too long" in refused(capsys, run(f"--config={'c' * 5000}", "--workdir=x"), 1)
    workdir = tmp_path / ("w" * 300)
    refused(capsys, run(f"--config={config}", f"--workdir={workdir}"), 2)


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["study", "plan", "example", "--tflops", "0"], "expected a number above 0, not '0'", 2),
        (["study", "plan", "example", "--tflops", "nan"], "above 0, not 'nan'", 2),
        (["study", "plan", "example", "--tflops", "-5"], "above 0, not '-5'", 2),
        (
            ["study", "plan", "example", "--rates", "1e-3,inf"],
            "such as 1e-4,1e-3, not '1e-3,inf'",
            2,
        ),
        (["study", "run", "example", "--slurm-workers", "-1"], "whole number from 0 to 10000", 2),
        (["predict", "--workdir", "x", "a.png", "--batch-size", "0"], "from 1 to 1048576", 2),
        (["predict", "--workdir", "x", "a.png", "--batch-size", "1e9"], "from 1 to 1048576", 2),
        (["predict", "--workdir", "x", "a.png", "--out", ""], "not nothing", 2),
        (["predict", "--workdir", "x", "a\udce9.png"], "expected text in UTF-8", 2),
        (["predict", "--workdir", "x", "a.png", "--out", "/dev/null"], "is a device: exp", 1),
        (["predict", "--workdir", "x", "a.png", "--out", "a.png"], "is one of the inputs", 1),
        (["predict", "--workdir", "x", "a.png", "--out", "README.md"], "holds something else", 1),
        (["predict", "--workdir", "x", "configs/a.png", "--saliency", "configs"], "a.png: exp", 1),
        (["evaluate", "--workdir", "x", "--data", "d", "--out", "run.py"], "Not a directory", 1),
        (["report", "--out", "/dev/null/x"], "nothing can be written to /dev/null/x", 1),
        (["check-data", "csv", "--source", "x", "--processes", "-1"], "from 0 to 1024", 2),
        (["draw", "aptos2019", "/dev/null/x"], "nothing can be written to /dev/null/x", 1),
        (["predic", "--workdir", "x"], "invalid choice: 'predic'", 2),
        (["predict", "--workdir", "x"], "the following arguments are required: IMAGE", 2),
        (["predict", "--workdir", "nowhere", "a.png"], "nowhere holds no result.json", 1),
        (["prepare", "aptos2019", "--source", "nowhere"], "nowhere does not exist", 1),
        (["prepare", "aptos2018", "--source", "."], "Did you mean 'aptos2019'", 2),
        (["check-data", "aptos2019", "--source", "nowhere"], "nowhere does not exist", 1),
    ],
)
def test_subcommands(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
    code: int,
) -> None:
    monkeypatch.chdir(runs.ROOT)
    assert message in refused(capsys, cli.main(arguments), code)


def test_predict_replaces_no_table_but_its_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table = tmp_path / "predictions.csv"
    arguments = ["predict", "--workdir", str(tmp_path), "a.png", "--out", str(table)]
    for columns in ("id,label", "id,label,predicted,p_a", "id,group,label,predicted", "id,loss"):
        table.write_text(f"{columns}\n")
        assert "holds something else" in refused(capsys, cli.main(arguments), 1)
        masks = [*arguments, "--masks", str(tmp_path / "masks")]
        assert "holds something else" in refused(capsys, cli.main(masks), 1)
        assert table.read_text() == f"{columns}\n"
    for columns, more in (("id,predicted,p_a", []), ("id,class,height", ["--masks", "x"])):
        table.write_text(f"{columns}\n")
        said = refused(capsys, cli.main([*arguments, *more]), 1)
        assert "holds no result.json" in said or "holds no run.json" in said, said


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "fmi-jax prepare aptos2019" in capsys.readouterr().out
    assert run("--help") == 0
    assert "--config.optim.learning_rate=3e-4" in capsys.readouterr().out
    for command in ("prepare", "check-data", "predict", "models", "doctor", "run"):
        assert cli.main([command, "--help"]) == 0
        assert command in capsys.readouterr().out


def test_models_and_doctor_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    assert "dinov2_vitg14" in capsys.readouterr().out
    assert cli.main(["doctor"]) == 0
    assert "jax" in capsys.readouterr().out
