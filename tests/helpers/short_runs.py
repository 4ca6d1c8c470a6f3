"""Runs of a few steps inside the test's own process, over the squares of `runs`."""

import copy
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import runs
from PIL import Image

from fmi_jax import parallel
from fmi_jax.artifacts.result import Result
from fmi_jax.config import ExperimentConfig, from_dict
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.class_folders import folder_spec
from fmi_jax.data.raw.csv_table import csv_spec
from fmi_jax.fields import set_fields
from fmi_jax.protocols.registry import protocol_of
from fmi_jax.run import conclusion, experiment
from fmi_jax.training.interrupt import Stopped, StopRequest


def read_config(path: Path) -> ExperimentConfig:
    """What a config file says."""
    spec = importlib.util.spec_from_file_location("squares", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def config_of_cell(folder: Path) -> ExperimentConfig:
    """What a driver has a cell run."""
    return from_dict(json.loads((folder / "cell.json").read_text())["config"])


def prepare_squares(folder: Path) -> ExperimentConfig:
    """A config of six steps over prepared squares, with two validations."""
    runs.draw_squares(folder / "raw")
    prepare(folder_spec("squares"), folder / "raw", folder / "data", size=16)
    return config_of_squares(folder)


def config_of_squares(folder: Path) -> ExperimentConfig:
    """The config of `prepare_squares`, over data that are prepared."""
    config = read_config(runs.write_config(folder, folder / "data"))
    config.train.max_steps = 6
    config.train.eval_every_epochs = 0.6
    config.backbone.drop_path = 0.0
    config.augment.jitter_probability = 0.0  # takes long to compile
    return config


def prepare_masked(data_dir: Path) -> None:
    """Prepare the data set "masked" beside others: squares in noise, and where they are."""
    raw = data_dir.parent / "masked"
    raw.mkdir()
    rng, rows = np.random.default_rng(5), ["path,mask"]
    for i in range(61):
        pixels, mask = rng.integers(0, 120, (19, 19, 3), np.uint8), np.zeros((19, 19), np.uint8)
        top, left = rng.integers(0, 10, 2)
        square = slice(top, top + 9), slice(left, left + 9)
        pixels[square] += 110
        mask[square] = 255
        Image.fromarray(pixels).save(raw / f"{i}.png")
        Image.fromarray(mask).save(raw / f"{i}_mask.png")
        rows.append(f"{i}.png,{i}_mask.png")
    (raw / "table.csv").write_text("\n".join(rows) + "\n")
    spec = csv_spec("masked", classes=("background", "square"))
    prepare(spec, raw / "table.csv", data_dir, size=16)


def prepare_layered(
    data_dir: Path,
    name: str = "layered",
    classes: tuple[str, ...] = ("dot", "square"),
    count: int = 61,
) -> None:
    """Prepare red squares in noise and green dots on them, so that masks overlap.

    Args:
      data_dir: folder of the prepared sets; raw files are written beside it.
      name: name of the data set.
      classes: classes in the order of their columns; no image shows a "scar". With "background" as
        the first there is one mask for each image, in which dots cover squares.
      count: number of images.
    """
    raw = data_dir.parent / name
    raw.mkdir()
    rng, one = np.random.default_rng(6), classes[0] == "background"
    columns = ["mask"] if one else [f"mask_{c}" for c in classes]
    rows = [",".join(["path", "site", *columns])]
    for i in range(count):
        pixels = rng.integers(0, 90, (19, 19, 3), np.uint8)
        masks = {c: np.zeros((19, 19), np.uint8) for c in ("square", "dot", "scar")}
        top, left = rng.integers(0, 8, 2)
        masks["square"][top : top + 9, left : left + 9] = 255
        masks["dot"][top + 5 : top + 12, left + 5 : left + 12] = 1
        pixels[masks["square"] > 0, 0] += 150
        pixels[masks["dot"] > 0, 1] += 150
        Image.fromarray(pixels).save(raw / f"{i}.png")
        if one:
            united = np.where(masks["square"] > 0, classes.index("square"), 0)
            masks["mask"] = np.where(masks["dot"] > 0, classes.index("dot"), united).astype(
                np.uint8
            )
        shown = [column.removeprefix("mask_") for column in columns if column != "mask_scar"]
        for c in shown:
            Image.fromarray(masks[c]).save(raw / f"{i}_{c}.png")
        files = [f"{i}_{c}.png" if c in shown else "" for c in ("mask",) * one or classes]
        rows.append(",".join([f"{i}.png", "ab"[i % 2], *files]))
    (raw / "table.csv").write_text("\n".join(rows) + "\n")
    prepare(csv_spec(name, classes=classes), raw / "table.csv", data_dir, size=16)


def changed(squares: ExperimentConfig, fields: Mapping[str, object]) -> ExperimentConfig:
    """The experiment with these fields, short as its protocol's `small` fields make it."""
    config = copy.deepcopy(squares)
    set_fields(config, {name: value for name, value in fields.items() if "." not in name})
    spec = protocol_of(config)
    set_fields(config, {**spec.small, **fields})
    if "optim.learning_rate" in spec.unread:
        config.optim.learning_rate = ExperimentConfig().optim.learning_rate
    return config


def run(config: ExperimentConfig, workdir: Path, devices: int = 1) -> Result:
    """The whole run on that many simulated devices, without its report."""
    mesh = parallel.make_mesh(devices=jax.devices()[:devices])
    on_mesh = mock.patch.object(parallel, "make_mesh", return_value=mesh)
    with on_mesh, mock.patch.object(conclusion, "write_report"):
        result = experiment.run(config, workdir)
    assert isinstance(result, Result)
    return result


def run_stopped(config: ExperimentConfig, workdir: Path, after: int) -> Result:
    """The same run, stopped after some steps and started once more."""
    stop = mock.patch.object(StopRequest, "requested", lambda self, step: step == after)
    with stop, pytest.raises(Stopped):
        run(config, workdir)
    assert not (workdir / "result.json").exists()
    return run(config, workdir)


def losses(workdir: Path) -> list[float]:
    """The training loss of every step."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row["train/loss"] for row in rows if "train/loss" in row]
