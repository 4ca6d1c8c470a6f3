"""Whole runs: they end alike however often they are killed, and nothing broken is believed."""

import csv
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import runs
import short_runs
import torch
from reference_packages import load_exported
from safetensors.numpy import load_file
from tiny_backbones import fill
from tolerances import PARITY_FORWARD

import fmi_jax.artifacts.checkpoints as run_checkpoints
from fmi_jax.artifacts.weights import Provenance, save_backbone
from fmi_jax.data.preparing.images import load_image
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.class_folders import folder_spec
from fmi_jax.errors import UserError
from fmi_jax.models import base
from fmi_jax.models.deit import DeiT
from fmi_jax.models.registry import BACKBONES
from fmi_jax.run.network import read_trained
from weights_convert.cli import main as weights_convert
from weights_convert.engine import convert
from weights_convert.layouts.registry import layouts_of
from weights_convert.read import read_checkpoint

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import transformers  # isort: skip
from timm.models.vision_transformer import VisionTransformer  # isort: skip


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config over a prepared data set of two classes."""
    folder = tmp_path_factory.mktemp("squares")
    runs.draw_squares(folder / "raw")
    prepare(folder_spec("squares"), folder / "raw", folder / "data", size=16)
    return runs.write_config(folder, folder / "data")


@pytest.fixture(scope="module")
def whole(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    out = runs.succeed(f"--config={squares}", f"--workdir={workdir}")
    assert runs.steps_in(out) == list(range(1, 25))
    return workdir


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    """The parameters after the last step, bit for bit; with less loss in every validation it is
    the best one, which a finished run keeps."""
    newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())
    path = workdir.resolve() / "checkpoints" / str(newest) / "model"
    assert newest == 24
    return ocp.StandardCheckpointer().restore(path)["params"]


def assert_same_run(workdir: Path, whole: Path) -> None:
    expected, found = parameters(whole), parameters(workdir)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name
    for name in ("metrics.jsonl", "predictions.csv"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes(), name


def kill_at_random(squares: Path, workdir: Path, rng: random.Random, sent: int) -> int:
    """Start or resume the run and signal it at a random moment; returns the exit code."""
    process = runs.start(f"--config={squares}", f"--workdir={workdir}")
    assert process.stdout is not None
    lines = rng.randrange(1, 8)
    while lines and process.poll() is None:
        lines -= process.stdout.readline().startswith("step ")
    time.sleep(rng.uniform(0, 0.3))
    process.send_signal(sent)
    process.communicate(timeout=120)
    return process.returncode


def kill_and_compare(squares: Path, whole: Path, workdir: Path, kills: int) -> None:
    rng = random.Random(kills)
    killed = 0
    for _ in range(kills):
        killed += kill_at_random(squares, workdir, rng, signal.SIGKILL) == -signal.SIGKILL
        if (workdir / "result.json").exists():
            break
    assert killed >= min(kills, 3)
    out = runs.succeed(f"--config={squares}", f"--workdir={workdir}")
    assert "resuming at step" in out or "report:" in out
    assert_same_run(workdir, whole)


def test_killed_three_times_it_ends_bit_identical(
    squares: Path, whole: Path, tmp_path: Path
) -> None:
    kill_and_compare(squares, whole, tmp_path / "run", kills=3)


@pytest.mark.slow
def test_killed_ten_times_it_ends_bit_identical(squares: Path, tmp_path: Path) -> None:
    config = squares.with_name("long.py")
    config.write_text(squares.read_text().replace("max_steps = 24", "max_steps = 60"))
    reference = tmp_path / "reference"
    runs.succeed(f"--config={config}", f"--workdir={reference}")
    rng, workdir = random.Random(10), tmp_path / "run"
    codes = [kill_at_random(config, workdir, rng, signal.SIGKILL) for _ in range(10)]
    assert codes == [-signal.SIGKILL] * 10
    runs.succeed(f"--config={config}", f"--workdir={workdir}")
    for name in ("metrics.jsonl", "predictions.csv"):
        assert (workdir / name).read_bytes() == (reference / name).read_bytes(), name


@pytest.fixture(scope="module")
def stopped(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that got SIGTERM in the middle."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    process = runs.start(f"--config={squares}", f"--workdir={workdir}")
    assert process.stdout is not None
    while "step 7/" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    process.send_signal(signal.SIGTERM)
    code, _, err = runs.finish(process)
    assert code == 143, err
    return workdir


def newest_step(workdir: Path) -> int:
    return max(int(p.stem) for p in (workdir / "checkpoints" / "manifests").glob("*.json"))


def test_sigterm_saves_and_exits_143_and_the_run_goes_on_from_there(
    squares: Path, whole: Path, stopped: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    assert 7 <= newest_step(stopped) < 24
    out = runs.succeed(f"--config={squares}", f"--workdir={tmp_path / 'run'}")
    assert runs.steps_in(out)[0] == newest_step(stopped) + 1
    assert_same_run(tmp_path / "run", whole)


def test_a_finished_run_is_shown_again_not_trained_again(squares: Path, whole: Path) -> None:
    before = (whole / "result.json").stat().st_mtime_ns
    out = runs.succeed(f"--config={squares}", f"--workdir={whole}")
    assert not runs.steps_in(out)
    assert "Accuracy" in out
    assert (whole / "result.json").stat().st_mtime_ns == before


def test_everything_a_run_promises_is_there(whole: Path) -> None:
    result = json.loads((whole / "result.json").read_text())
    assert result["findings"][0]["evaluations"]["test"]["values"]["accuracy"] > 0.8
    assert {"confusion.png", "curves.png", "report.html", "predictions.csv", "metrics.jsonl"} <= {
        path.name for path in whole.iterdir()
    }
    assert list((whole / "tensorboard").glob("events*"))
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 25))
    assert min(r["val/loss"] for r in rows if "val/loss" in r) == result["best"]["value"]
    # Of the checkpoints the model that was best is kept, and nothing that only a resumed run needs.
    kept = whole / "checkpoints" / str(result["best"]["step"])
    assert [p for p in (whole / "checkpoints").iterdir() if p.name.isdecimal()] == [kept]
    assert {"model"} == {p.name for p in kept.iterdir() if p.is_dir()} - {"meta"}


def of_timm() -> torch.nn.Module:
    """The network of the run."""
    return VisionTransformer(
        img_size=96, patch_size=8, embed_dim=64, depth=1, num_heads=2, mlp_ratio=2, num_classes=2
    )


def of_transformers() -> torch.nn.Module:
    """The same."""
    config = transformers.ViTConfig(
        image_size=96,
        patch_size=8,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=128,
        layer_norm_eps=1e-6,
        num_labels=2,
    )
    return transformers.ViTForImageClassification(config)


@pytest.mark.parametrize("publisher", ["original", "timm", "hf"])
def test_the_best_model_of_a_run_goes_back_to_pytorch(
    whole: Path,
    squares: Path,
    tmp_path: Path,
    publisher: str,
    capsys: pytest.CaptureFixture,
) -> None:
    arguments = ("deit_nano", "--checkpoint", whole, "--export", publisher, "--out", tmp_path)
    assert weights_convert([str(argument) for argument in arguments]) == 0
    assert "head" not in capsys.readouterr().out
    suffix = "pth" if publisher == "original" else "safetensors"
    path = tmp_path / f"deit_nano.run.{publisher}.{suffix}"

    # The file has the bits of the run.
    run, groups = read_trained(whole), read_checkpoint(path).groups
    native = base.parameters(base.create_abstract(DeiT, run.assembly.arch, base.Execution()))
    for name, value in convert(groups, native, layouts_of(DeiT)).params.items():
        np.testing.assert_array_equal(value, run.arrays[f"backbone.{name}"])
    head = "classifier" if publisher == "hf" else "head"
    np.testing.assert_array_equal(groups[""][f"{head}.weight"].T, run.arrays["head.kernel"])
    np.testing.assert_array_equal(groups[""][f"{head}.bias"], run.arrays["head.bias"])

    # The published class takes all of it, and predicts what the run predicted.
    with (whole / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pixels = [load_image(squares.parent / "raw" / row["id"], 3, 16) for row in rows]
    images = (np.array(pixels, np.float32) / 255 - run.info.mean) / run.info.std
    batch = torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32)
    if publisher == "hf":
        model = load_exported(of_transformers(), path)
        logits = model(batch, interpolate_pos_encoding=True).logits
    else:
        model = load_exported(of_timm(), path).eval()
        positions = model.pos_embed[:, 1:].reshape(1, 12, 12, 64).permute(0, 3, 1, 2)
        positions = torch.nn.functional.interpolate(positions, size=(2, 2), mode="bicubic")
        positions = positions.flatten(2).transpose(1, 2)
        model.pos_embed = torch.nn.Parameter(torch.cat([model.pos_embed[:, :1], positions], 1))
        model.patch_embed.set_input_size((16, 16))
        logits = model(batch)
    np.testing.assert_allclose(
        logits.softmax(1).detach().numpy(),
        [[float(row["p_blue"]), float(row["p_red"])] for row in rows],
        atol=PARITY_FORWARD,
    )


def test_what_a_run_froze_is_exported_from_the_very_weights_it_started_from(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    spec, weights, workdir = BACKBONES["deit_nano"], tmp_path / "w.safetensors", tmp_path / "probe"

    def write_weights(seed: int) -> dict[str, np.ndarray]:
        params = base.parameters(
            fill(base.create_abstract(DeiT, spec.arch, base.Execution()), seed)
        )
        provenance = Provenance(
            backbone="deit_nano",
            tag="w",
            source="",
            source_sha256="",
            layout="",
            licence="unknown",
            converter="",
        )
        save_backbone(weights, params, spec.arch, provenance)
        return params

    params = write_weights(seed=5)
    config = short_runs.read_config(squares)
    config.protocol = "linear_probe"
    config.backbone.weights = str(weights)
    config.train.max_steps = 2
    short_runs.run(config, workdir)
    command = ("deit_nano", "--checkpoint", workdir, "--export", "timm", "--out", tmp_path)
    arguments = [*map(str, command), "--tag", "mine"]
    assert weights_convert(arguments) == 0
    exported = load_file(tmp_path / "deit_nano.mine.timm.safetensors")
    assert exported["head.weight"].any()
    np.testing.assert_array_equal(exported["norm.weight"], params["norm.scale"])
    np.testing.assert_array_equal(
        exported["blocks.0.attn.qkv.weight"].T, params["blocks.0.attn.qkv.kernel"]
    )
    assert "blocks.1.norm1.weight" not in exported  # the run ends after block 0
    write_weights(seed=6)
    assert weights_convert([*map(str, command), "--tag", "again"]) == 1
    assert "w.safetensors is not the file that the run in" in capsys.readouterr().err
    assert not (tmp_path / "deit_nano.again.timm.safetensors").exists()


def test_a_flipped_bit_is_noticed_and_the_previous_checkpoint_is_used(
    squares: Path, whole: Path, stopped: Path, tmp_path: Path
) -> None:
    workdir, newest = tmp_path / "run", newest_step(stopped)
    shutil.copytree(stopped, workdir)
    files = (workdir / "checkpoints" / str(newest)).rglob("*")
    data = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    code, out, err = runs.finish(runs.start(f"--config={squares}", f"--workdir={workdir}"))
    assert code == 0, err
    assert f"checkpoint step {newest} is set aside" in err
    assert runs.steps_in(out)[0] <= newest
    assert_same_run(workdir, whole)


def test_when_every_checkpoint_is_damaged_nothing_is_deleted(stopped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(stopped / "checkpoints", folder)
    for manifest in (folder / "manifests").iterdir():
        manifest.write_text("{}")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=r"no checkpoint in .* can be used.*Nothing was deleted"):
        run_checkpoints.RunCheckpoints(folder).newest_sound()
    assert sorted(folder.rglob("*")) == before


def test_killed_before_a_checkpoint_is_sealed_the_one_before_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orbax has committed a new best step and deleted what it need not keep."""
    seal = run_checkpoints.RunCheckpoints._seal

    def killed_before(self: run_checkpoints.RunCheckpoints, step: int) -> None:
        shutil.copytree(self.folder, tmp_path / f"killed{step}")
        seal(self, step)

    monkeypatch.setattr(run_checkpoints.RunCheckpoints, "_seal", killed_before)
    checkpoints = run_checkpoints.RunCheckpoints(tmp_path / "run")
    best = {1: 1, 2: 1, 3: 1, 4: 1, 5: 5, 6: 5, 7: 7}
    for step, best_step in best.items():
        tree = {"params": {"x": jax.numpy.full(3, float(step))}, "stats": {}}
        checkpoints.save(step, tree, {"step": jax.numpy.int32(step)}, {"best_step": best_step})
    checkpoints.close()
    kept = {int(path.name) for path in (tmp_path / "run").iterdir() if path.name.isdecimal()}
    assert kept <= {4, 5, 6, 7}  # two newest, and the best
    for step in best:
        resumed = run_checkpoints.RunCheckpoints(tmp_path / f"killed{step}")
        assert resumed.newest_sound() == (step - 1 or None)


def test_killed_before_the_first_checkpoint_was_sealed_it_begins_anew(
    squares: Path, whole: Path, stopped: Path, tmp_path: Path
) -> None:
    """Orbax has committed the step, the manifest is not written yet."""
    workdir, newest = tmp_path / "run", newest_step(stopped)
    shutil.copytree(stopped, workdir)
    folder = workdir / "checkpoints"
    shutil.rmtree(folder / "manifests")
    for path in folder.iterdir():
        if path.name != str(newest):
            shutil.rmtree(path)
    code, out, err = runs.finish(runs.start(f"--config={squares}", f"--workdir={workdir}"))
    assert code == 0, err
    assert f"checkpoint step {newest} is set aside: it was not written to the end" in err
    assert runs.steps_in(out)[0] == 1
    assert_same_run(workdir, whole)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(
    squares: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    line = runs.refuse(
        f"--config={squares}",
        f"--workdir={workdir}",
        "--config.optim.learning_rate=1e38",
        code=1,
    )
    assert "not finite at step" in line
    assert "blue" in line or "red" in line
    for manifest in (workdir / "checkpoints" / "manifests").glob("*.json"):
        model = workdir.resolve() / "checkpoints" / manifest.stem / "model"
        for value in ocp.StandardCheckpointer().restore(model)["params"].values():
            assert np.isfinite(value).all()


def test_another_config_in_the_same_workdir_is_refused(squares: Path, whole: Path) -> None:
    line = runs.refuse(f"--config={squares}", f"--workdir={whole}", "--config.train.seed=3")
    assert "train.seed: 0 there, 3 now" in line


def test_a_checkpoint_of_another_model_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole / "checkpoints", folder)
    checkpoints = run_checkpoints.RunCheckpoints(folder)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    leaf = jax.ShapeDtypeStruct((3,), np.float32, sharding=here)
    with pytest.raises(
        UserError, match=r"is not of this model: it lacks stem.kernel; it has besides backbone"
    ):
        checkpoints.restore_model(24, {"params": {"stem.kernel": leaf}, "stats": {}})


def test_one_workdir_takes_one_run_at_a_time(squares: Path, tmp_path: Path) -> None:
    arguments = (f"--config={squares}", f"--workdir={tmp_path / 'run'}")
    first = runs.start(*arguments)
    try:
        assert first.stdout is not None
        first.stdout.readline()
        assert "another process is running" in runs.refuse(*arguments)
    finally:
        first.kill()
        first.communicate()


def test_two_processes_train_as_one(squares: Path, whole: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workdir = tmp_path / "run"
    processes = [
        runs.start(
            f"--config={squares}",
            f"--workdir={workdir}",
            f"--coordinator_address=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={i}",
            devices=2,
        )
        for i in range(2)
    ]
    for code, out, err in [runs.finish(process) for process in processes]:
        assert code == 0, f"{out}\n{err}"

    def scalars(folder: Path, name: str) -> np.ndarray:
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return np.array([row[name] for row in rows if name in row])

    np.testing.assert_allclose(
        scalars(workdir, "train/loss"), scalars(whole, "train/loss"), rtol=1e-4
    )
    assert len((workdir / "predictions.csv").read_text().splitlines()) == len(
        (whole / "predictions.csv").read_text().splitlines()
    )


def test_a_run_that_is_stopped_leaves_no_shared_memory_to_warn_of(
    squares: Path, tmp_path: Path
) -> None:
    process = runs.start(
        f"--config={squares}", f"--workdir={tmp_path / 'run'}", "--config.data.workers=2"
    )
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith("step 2/"):
        assert line, process.communicate()
    process.send_signal(signal.SIGTERM)
    code, _, err = runs.finish(process)
    assert (code, err) == (143, "")


def test_no_process_is_left_behind(squares: Path, tmp_path: Path) -> None:
    process = runs.start(
        f"--config={squares}", f"--workdir={tmp_path / 'run'}", "--config.data.workers=2"
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("step 2/"):
        assert process.poll() is None, process.communicate()
    group = subprocess.run(
        ["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True, check=True
    ).stdout.split()
    process.kill()
    process.communicate(timeout=60)  # returns when nobody holds the pipes any more
    time.sleep(1)
    assert group
    alive = subprocess.run(
        ["ps", "-o", "pid=,stat=", "-p", ",".join(group)], capture_output=True, text=True
    ).stdout.splitlines()
    assert not [line for line in alive if "Z" not in line]  # a zombie only waits to be counted
