"""The installed program: sdist and wheel are built, installed beside nothing else of ours, and run.

Nothing is fetched: the fresh environment sees the libraries of this one, and not the checkout.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs

from fmi_jax import __version__
from fmi_jax.entry import config_names

PACKAGES = {
    "fmi_jax": "fmi_jax",
    "weights_convert": "weights_convert",
    "configs": "fmi_jax/configs",
}
"""Folders of the checkout that a wheel holds, and where it has them."""

BUILD = "import sys; from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"


def call(*command: object, cwd: Path, code: int = 0) -> str:
    arguments = list(map(str, command))
    env = {name: value for name, value in runs.environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(folder).as_posix()


@dataclasses.dataclass(frozen=True)
class Installed:
    """The program in an environment of its own.

    Attributes:
      home: folder in which its commands run.
      bin: folder of its commands.
      sdist, wheel: what was built.
    """

    home: Path
    bin: Path
    sdist: Path
    wheel: Path

    def fmi_jax(self, *arguments: object, code: int = 0) -> str:
        return call(self.bin / "fmi-jax", *arguments, cwd=self.home, code=code)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    own = shutil.ignore_patterns("__pycache__", "*.egg-info", "runs", "weights", "build", "dist")
    shutil.copytree(
        runs.ROOT,
        folder / "checkout",
        ignore=lambda at, names: (
            own(at, names)
            | {n for n in names if Path(at) == runs.ROOT and (n == "data" or n.startswith("."))}
        ),
    )
    built = folder / "built"
    call(sys.executable, "-c", BUILD, "build_sdist", built, cwd=folder / "checkout")
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    call(sys.executable, "-c", BUILD, "build_wheel", built, cwd=unpacked)
    [wheel] = built.glob("*.whl")

    environment = folder / "environment"
    venv.create(environment)
    paths = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})
    libraries = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    Path(paths["purelib"], "libraries.pth").write_text("\n".join(libraries) + "\n")
    bin = Path(paths["scripts"])
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", bin / "python")
    call(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=folder)
    home = folder / "home"
    home.mkdir()
    return Installed(home, bin, sdist, wheel)


def test_a_wheel_holds_every_file_of_the_packages(installed: Installed) -> None:
    expected = {
        f"{there}/{name}" for here, there in PACKAGES.items() for name in files(runs.ROOT / here)
    }
    with zipfile.ZipFile(installed.wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected


def test_an_sdist_holds_what_builds_tests_and_explains_it(installed: Installed) -> None:
    with tarfile.open(installed.sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("run.py", "Makefile", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"):
        assert name in found
    for folder in (*PACKAGES, "docs", "examples", "tests", "benchmarks"):
        assert {f"{folder}/{name}" for name in files(runs.ROOT / folder)} <= found


def test_it_is_the_wheel_that_runs(installed: Installed) -> None:
    where = "import fmi_jax, weights_convert as w; print(fmi_jax.__file__, w.__file__)"
    for path in call(installed.bin / "python", "-c", where, cwd=installed.home).split():
        assert Path(path).is_relative_to(installed.bin.parent)
    assert installed.fmi_jax("--version").split() == ["fmi_jax", __version__]
    assert "fmi-jax run --config=quickstart" in installed.fmi_jax("--help")
    named = installed.fmi_jax("run", "--help").replace(",", "").split()
    assert set(config_names()) <= set(named)
    assert "dinov2_vitb14" in installed.fmi_jax("models")
    convert = (installed.bin / "python", "-m", "weights_convert", "--help")
    assert "--download" in call(*convert, cwd=installed.home)


def test_a_config_runs_by_its_name(installed: Installed) -> None:
    """Drawn, prepared, trained for two steps and reported; the report of a study beside it."""
    installed.fmi_jax("draw", "isic2019", "raw", "--images", 48)
    installed.fmi_jax("prepare", "isic2019", "--source", "raw", "--size", 32, "--split", "upstream")
    assert list(installed.home.glob("data/isic2019/*/card.html"))
    small = {
        "image_size": 32,
        "data.name": "isic2019",
        "data.split": "upstream",
        "data.prepared_size": 32,
        "backbone.last_block": 0,
        "augment.jitter_probability": 0.0,
        "train.batch_size": 8,
        "train.max_steps": 2,
        "train.bootstrap_samples": 10,
    }
    overrides = [f"--config.{name}={value}" for name, value in small.items()]
    installed.fmi_jax("run", "--config=quickstart", "--workdir=run", *overrides)
    workdir = installed.home / "run"
    result = json.loads((workdir / "result.json").read_text())
    assert result["steps"] == 2
    assert result["config"]["backbone"]["name"] == "deit_nano"
    assert (workdir / "report.html").stat().st_size > 10_000
    cells = ("--slice", "dataset=ddsm", "--slice", "model=dinov2")
    said = installed.fmi_jax("study", "run", "table1", "--root", "root", *cells, code=1)
    assert "not ready" in said  # weights and data are elsewhere
    installed.fmi_jax("report", "table1", "--root", "root")
    [page] = installed.home.glob("root/report/*.html")
    assert "Table 1" in page.read_text()
