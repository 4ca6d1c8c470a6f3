"""What the campaign works on: drawn inputs, and every command's undisturbed outcome."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import runs

from fmi_jax.artifacts.tensors import write_tensors
from fmi_jax.models.base import Execution, create_abstract, parameters
from fmi_jax.models.registry import BACKBONES
from weights_convert.engine import plan, source_shapes
from weights_convert.layouts.registry import LAYOUTS

from .commands import DONE, FRESH, HALF, Scenario, argv, maker_of
from .invariants import said, snapshot
from .processes import Started, kill_all

_LONGEST = 900.0  # seconds of an undisturbed command, on the slowest machine
_HALF = 0.6  # part of the changes of files after which a half-done command was killed

STUDY = """
from pathlib import Path
from runpy import run_path

from fmi_jax.study.spec import Setting, Study

get_config = run_path(str(Path(__file__).parent / "squares.py"))["get_config"]
AT = {"dataset": "squares"}


def probe():
    config = get_config()
    config.protocol = "knn"
    return config


STUDY = Study(
    name="faults",
    title="What a campaign disturbs",
    settings=lambda: (
        Setting(at={**AT, "protocol": "finetune"}, config=get_config(), rates=(1e-3, 2e-3)),
        Setting(at={**AT, "protocol": "knn"}, config=probe(), rates=()),
    ),
    rows=("protocol",),
    seeds=1,
)
"""
SHORT = """
    config.backbone.weights = "tiny"
    config.augment.jitter_probability = 0.0
    config.train.max_steps = 9
    config.train.bootstrap_samples = 7
    return config
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """An undisturbed command.

    Attributes:
      seconds: time that it took.
      changes: number of changes of files, by kind of process ("main", "worker").
      written: snapshot of what it wrote.
    """

    seconds: float
    changes: dict[str, int]
    written: dict[str, str]


class World:
    """Inputs and references below a folder; each is made when it is first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.done = folder / "done" / "here"
        self._references: dict[str, Reference] = {}
        self.done.mkdir(parents=True)
        runs.draw_squares(self.done / "raw", count=47)
        config = runs.CONFIG.format(data_dir="data")
        (self.done / "squares.py").write_text(config.replace("    return config\n", SHORT))
        (self.done / "study.py").write_text(STUDY)
        _draw_checkpoint(self.done / "source.safetensors")

    def reference(self, scenario: Scenario) -> Reference:
        """The undisturbed outcome of a command.

        Raises:
          RuntimeError: it failed.
        """
        if scenario.name not in self._references:
            self._make(scenario)
        return self._references[scenario.name]

    def begin(self, scenario: Scenario, state: str, here: Path) -> None:
        """Copy what a command needs into a new folder, and what it has written in a state."""
        self.reference(scenario)
        here.mkdir(parents=True)
        for name in scenario.needs:
            _copy(self.done, here, name)
        for name in scenario.makes:
            _remove(here / name)
            if state == DONE:
                _copy(self.done, here, name)
            elif state == HALF:
                _copy(self._half(scenario), here, name)

    def _make(self, scenario: Scenario) -> None:
        for name in scenario.needs:
            if (maker := maker_of(name)) is not None:
                self.reference(maker)
        count = self.folder / f"{scenario.name}.changes"
        ended = Started(argv(scenario), self.done, faults={"count": str(count)}).wait(_LONGEST)
        if wrong := [*said(ended, {0})]:
            raise RuntimeError(f"{scenario.name}, undisturbed: {wrong}\n{ended.out}{ended.err}")
        changes = {"main": 0, "worker": 0}
        for line in count.read_text().splitlines() if count.exists() else ():
            kind, number = line.split()
            changes[kind] = max(changes[kind], int(number))
        self._references[scenario.name] = Reference(
            seconds=ended.seconds, changes=changes, written=snapshot(self.done, scenario.makes)
        )

    def _half(self, scenario: Scenario) -> Path:
        """Folder in which a command was killed half-way."""
        here = self.folder / f"half-{scenario.name}" / "here"
        if not here.exists():
            self.begin(scenario, FRESH, here)
            changes = self._references[scenario.name].changes
            within = max(changes, key=lambda kind: changes[kind])
            faults = {"within": within, "at": max(1, int(_HALF * changes[within]))}
            faults |= {"action": "SIGKILL", "mark": str(here.parent / "mark")}
            Started(argv(scenario), here, faults=faults).wait(_LONGEST)
            kill_all(here)
        return here


def _draw_checkpoint(path: Path) -> None:
    """Write small random weights as Facebook Research names them."""
    spec = BACKBONES["deit_nano"]
    native = parameters(create_abstract(spec.family, spec.arch, Execution()))
    shapes = source_shapes(plan(LAYOUTS["deit"], native), native)
    rng = np.random.default_rng(23)
    tensors = {k: 0.05 * rng.normal(size=s.shape).astype(np.float32) for k, s in shapes.items()}
    write_tensors(path, tensors, {"format": "pt"})


def _copy(source: Path, target: Path, name: str) -> None:
    """Copy a file or a folder with its times, and the hidden files beside it that belong to it."""
    if (source / name).is_dir():
        shutil.copytree(source / name, target / name, symlinks=True, dirs_exist_ok=True)
    elif (source / name).exists():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name)
    for draft in (source / name).parent.glob(f".{Path(name).name}*"):
        if draft.is_file():
            shutil.copy2(draft, target / draft.relative_to(source))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
