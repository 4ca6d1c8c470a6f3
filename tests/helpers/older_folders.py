"""Archives of the files that earlier versions wrote, which later versions must still read.

    python tests/helpers/older_folders.py NUMBER        writes `fixtures/older_NUMBER.tar.xz`

The archive holds, of tiny networks on drawn squares, everything that the program writes:

* `data/` a prepared set with kept features, `weights/` a converted backbone;
* `half_finetune/`, `half_probe_grid/` runs that were stopped half-way (batch norm; the best of
  every head), `finished/` one at its end, and `expected.json`: what they come to uninterrupted;
* `root/` a study with finished, failed and begun cells and its plan, and `study.py`, which
  defines it.

Archives are not written anew: each is what one version left.
"""

import copy
import dataclasses
import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import short_runs

from fmi_jax import cli
from fmi_jax.artifacts.weights import Provenance, save_backbone
from fmi_jax.config import ExperimentConfig
from fmi_jax.fields import as_dict
from fmi_jax.models.base import Execution, create, parameters
from fmi_jax.models.registry import BACKBONES
from fmi_jax.run import experiment
from fmi_jax.study.ledger import Ledger
from fmi_jax.study.plan import make_plan
from fmi_jax.study.registry import find_study
from fmi_jax.study.state import State
from fmi_jax.training.interrupt import Stopped, StopRequest

FIXTURES = Path(__file__).parent.parent / "fixtures"
STEPS, STOPPED = 6, 3

STUDY = """
import json

from fmi_jax.config import from_dict
from fmi_jax.study.spec import Setting, Study

CONFIGS = {name: from_dict(values) for name, values in json.loads(%r).items()}


def settings():
    at = {name: {"dataset": "squares", "model": name} for name in CONFIGS}
    trained = Setting(at=at["finetune"], config=CONFIGS["finetune"])
    yield trained
    yield Setting(at=at["cka"], config=CONFIGS["cka"], after=trained)
    for name in ("knn", "linear_probe"):
        yield Setting(at=at[name], config=CONFIGS[name])


STUDY = Study(name="squares", title="Squares", settings=lambda: tuple(settings()),
              rows=("model",), rates=(1e-3, 1e30), seeds=1)
"""


def configs(squares: ExperimentConfig) -> dict[str, ExperimentConfig]:
    """The experiments by protocol."""
    made = {}
    for protocol in ("finetune", "probe_grid", "cka", "knn", "linear_probe"):
        config = dataclasses.replace(copy.deepcopy(squares), protocol=protocol)
        config.backbone.name = "resnet_nano"
        config.backbone.last_block = 1
        config.train.checkpoint_every_steps = STOPPED
        made[protocol] = config
    made["probe_grid"].optim.learning_rate = ExperimentConfig().optim.learning_rate
    made["probe_grid"].probe_grid.learning_rates = (1e-3, 1e-2)
    made["probe_grid"].probe_grid.seeds = 2
    made["probe_grid"].probe_grid.cached = False
    made["knn"].knn.k = (3, 5)
    made["cka"].cka.batch_size = 8
    return made


def stop(config: ExperimentConfig, workdir: Path) -> None:
    """Run for `STOPPED` steps and save."""
    at = mock.patch.object(StopRequest, "requested", lambda self, step: step == STOPPED)
    with at, pytest.raises(Stopped):
        experiment.run(config, workdir)


def write(folder: Path) -> None:
    """Everything, under a folder."""
    squares = short_runs.prepare_squares(folder)
    shutil.rmtree(folder / "raw")
    made = configs(squares)
    expected = {}
    for name in ("finetune", "probe_grid"):
        stop(made[name], folder / f"half_{name}")
        result = short_runs.run(made[name], folder / name)
        losses = short_runs.losses(folder / name)
        expected[name] = {
            "val": result.val.values,
            "test": result.test.values,
            "best": dataclasses.asdict(result.best),
            "losses": losses,
        }
    shutil.rmtree(folder / "probe_grid")
    (folder / "finetune").rename(folder / "finished")

    spec = BACKBONES["resnet_nano"]
    weights = parameters(create(spec.family, spec.arch, Execution(), 7))
    path = folder / "weights" / "resnet_nano.drawn.safetensors"
    path.parent.mkdir()
    source = Provenance(
        backbone=spec.name, tag="drawn", source="drawn", source_sha256="", layout="drawn",
        licence="none", converter="0.1.0",
    )  # fmt: skip
    save_backbone(path, weights, spec.arch, source)
    expected["weights"] = {
        name: float(np.abs(np.asarray(value, np.float64)).sum()) for name, value in weights.items()
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")

    path = folder / "study.py"
    values = {name: as_dict(made[name]) for name in ("finetune", "cka", "knn", "linear_probe")}
    path.write_text(STUDY % json.dumps(values))
    plan = make_plan(find_study(str(path)))
    ledger = Ledger(folder / "root")
    [begun] = [c for c in plan.candidates(plan.settings[-1]) if c.learning_rate == 1e-3]
    claim = ledger.claim(begun)
    assert claim is not None
    stop(begun.config, claim.folder)
    claim.release()
    arguments = [str(path), "--root", str(folder / "root"), "--data-dir", squares.data.data_dir]
    for model in ("finetune", "cka", "knn"):
        cli.main(["study", "run", *arguments, "--slice", f"model={model}"])
    states = [ledger.state(cell) for cell in plan.all_cells(plan.settings)]
    found = [states.count(state) for state in (State.DONE, State.FAILED, State.OPEN)]
    assert found == [3, 1, 3], states
    for failed in (folder / "root").glob("cells/*/failed.json"):
        values = json.loads(failed.read_text())
        failed.write_text(json.dumps(values | {"host": "elsewhere"}, indent=2) + "\n")
    for page in (*folder.rglob("*.html"), *folder.rglob("*.png")):  # nothing reads them
        page.unlink()


def unpack(number: int, folder: Path) -> Path:
    """What version `number` left, in `folder`."""
    with tarfile.open(FIXTURES / f"older_{number}.tar.xz") as file:
        file.extractall(folder, filter="data")
    return folder


def nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """An entry without its owner."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        write(Path(made))
        archive = FIXTURES / f"older_{sys.argv[1]}.tar.xz"
        with tarfile.open(archive, "x:xz") as file:
            for path in sorted(Path(made).iterdir()):
                file.add(path, path.name, filter=nobody)
        print(f"{archive}: {archive.stat().st_size / 1e3:.0f} kB")
