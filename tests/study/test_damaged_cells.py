"""Damaged files of a study: every command says which one in one message, and what to do."""

import json
from pathlib import Path

import pytest

from fmi_jax import cli
from fmi_jax.config import ExperimentConfig
from fmi_jax.fields import as_dict
from fmi_jax.study import driver
from fmi_jax.study.ledger import Ledger
from fmi_jax.study.plan import make_plan
from fmi_jax.study.registry import find_study
from fmi_jax.study.state import State

STAND_IN = Path(__file__).parent.parent / "helpers" / "study_stand_in.py"

GRID = """
from fmi_jax.config import ExperimentConfig
from fmi_jax.study.spec import Setting, Study

CONFIG = ExperimentConfig(protocol="finetune")
CONFIG.data.split = "upstream"
STUDY = Study(name="grid", title="A grid", rows=("model",), rates=(), seeds=1, settings=lambda: (
    Setting(at={"dataset": "synthetic", "model": "m"}, config=CONFIG),))
"""

DEEP = b"[" * 100_000
OLD = {"format": 5, "config": {}, "seconds": {}, "best": None, "findings": []}


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(driver, "WORKER", (str(STAND_IN),))
    (tmp_path / "grid.py").write_text(GRID)
    return [str(tmp_path / "grid.py"), "--root", str(tmp_path / "root")]


@pytest.fixture
def folder(arguments: list[str], tmp_path: Path) -> Path:
    """Folder of the only cell, which was claimed and has ended neither way."""
    plan = make_plan(find_study(arguments[0]))
    [cell] = plan.all_cells(plan.settings).values()
    ledger = Ledger(tmp_path / "root")
    claim = ledger.claim(cell)
    assert claim is not None
    claim.release()
    plan.write(tmp_path / "root")
    return ledger.folder(cell.id)


def one_message(code: int, capsys: pytest.CaptureFixture[str], path: Path) -> str:
    err = capsys.readouterr().err
    assert code == 1, err
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    assert str(path) in err
    return err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("result.json", content) for content in (b"[]", b"null", b"{}", b"\x80", DEEP)),
        ("result.json", {"format": 6}),
        ("result.json", {**OLD, "best": "x"}),
        ("result.json", {**OLD, "best": {"metric": "accuracy", "value": "high"}}),
        ("result.json", {**OLD, "seconds": {"training": "1"}}),
        ("result.json", {**OLD, "seconds": 3}),
        ("result.json", {**OLD, "config": []}),
        *(("failed.json", content) for content in (b"[]", b"null", b"{}", b"\x80", DEEP)),
        ("failed.json", {"reason": 3, "exit_code": 1, "host": "", "time": ""}),
    ],
)
def test_a_damaged_file_of_a_cell(
    name: str,
    content: bytes | dict,
    arguments: list[str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    for command in ("run", "status", "plan"):
        if (name, command) == ("failed.json", "plan"):
            continue  # it counts the failed ones, and reads no reason
        code = cli.main(["study", command, *arguments])
        assert "folder" in one_message(code, capsys, path)
    assert cli.main(["report", "--root", arguments[-1]]) == 0
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert "1 missing" in out or "1 failed" in out
    assert (str(path) in err) is (name == "result.json")


def test_a_result_of_another_cell_is_not_counted_by_the_driver(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["study", "run", *arguments]) == 0
    capsys.readouterr()
    asked = json.loads((folder / "cell.json").read_text())
    assert asked["cell"] == folder.name
    asked["config"]["train"]["seed"] += 1
    (folder / "cell.json").write_text(json.dumps(asked))
    said = one_message(cli.main(["study", "run", *arguments]), capsys, folder / "result.json")
    assert "it is of another cell: train.seed is 0 there, and 1 in cell.json" in said
    (folder / "cell.json").write_text(json.dumps(asked | {"cell": "another"}))
    said = one_message(cli.main(["study", "run", *arguments]), capsys, folder / "cell.json")
    assert "it is that of another" in said
    # What an earlier version wrote says nothing of the name.
    (folder / "cell.json").write_text(json.dumps({"config": as_dict(ExperimentConfig())}))
    assert Ledger(Path(arguments[-1])).state(folder.name) is State.DONE


@pytest.mark.parametrize("content", [b"[]", b"null", b"{}", b"\x80", DEEP])
def test_a_damaged_plan(
    content: bytes, arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(arguments[-1]) / "grid.json"
    path.write_bytes(content)
    for command in (["study", "run", *arguments], ["report", "--root", arguments[-1]]):
        said = one_message(cli.main(command), capsys, path)
        assert "Delete it and give that command again: no finished cell is run twice." in said
    assert path.read_bytes() == content


def test_a_file_in_the_place_of_a_cell(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("mine")
    said = one_message(cli.main(["study", "run", *arguments]), capsys, folder)
    assert "move it away, then give the same command again" in said
    assert folder.read_text() == "mine"


def test_the_words_of_a_failure_reach_no_terminal_raw(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = {"reason": "\x1b[31mred\x9b1m", "exit_code": 1, "host": "", "time": "\x1b[2J"}
    (folder / "failed.json").write_text(json.dumps(failure))
    for command in ("run", "status"):
        cli.main(["study", command, *arguments])
        said = "".join(capsys.readouterr())
        assert "\\x1b[31mred\\x9b1m" in said
        assert not {"\x1b", "\x9b"} & {*said}
