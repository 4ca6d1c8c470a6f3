"""Runs of the real program in processes of their own, as a user starts them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from compiling import FAST
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent

CONFIG = """
from fmi_jax.config import ExperimentConfig


def get_config(arg: str = "") -> ExperimentConfig:
    config = ExperimentConfig(image_size=16, metric="loss")
    config.data.name = "squares"
    config.data.data_dir = {data_dir!r}
    config.data.prepared_size = 16
    config.data.threads = 1
    config.augment.center_crop = 1.0
    config.augment.crop_scale = (0.8, 1.0)
    config.augment.hue = 0.02
    config.backbone.name = "deit_nano"
    config.backbone.last_block = 0
    config.backbone.drop_path = 0.2
    config.optim.learning_rate = 3e-3
    config.optim.warmup_steps = 3
    config.train.batch_size = 8
    config.train.max_steps = 24
    config.train.eval_every_epochs = 1.0
    config.train.checkpoint_every_steps = 3
    config.train.log_every_steps = 1
    config.train.bootstrap_samples = 50
    return config
"""


def draw_squares(folder: Path, count: int = 61, size: int = 19) -> None:
    """A folder per class: a red square somewhere in noise, or a blue one."""
    rng = np.random.default_rng(11)
    for i in range(count):
        name = ("blue", "red")[i % 2]
        pixels = rng.integers(0, 120, (size, size, 3), np.uint8)
        top, left = rng.integers(0, size - 9, 2)
        pixels[top : top + 9, left : left + 9, 2 - 2 * (i % 2)] += 110
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{i:03}.png")


def write_config(folder: Path, data_dir: Path) -> Path:
    """The config of a run over the prepared squares that takes a few seconds."""
    path = folder / "squares.py"
    path.write_text(CONFIG.format(data_dir=str(data_dir)))
    return path


def environment() -> dict[str, str]:
    """That of this process, with one device."""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return env | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}


def start(*arguments: object, devices: int = 1, **options: object) -> subprocess.Popen[str]:
    """`python run.py ARGUMENTS`, its output piped."""
    env = environment()
    if devices > 1:  # compiled for one run alone
        flags = (f"--xla_force_host_platform_device_count={devices}", *FAST)
        env["XLA_FLAGS"] = " ".join(flags)
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        **options,  # type: ignore[call-overload]
    )


def finish(process: subprocess.Popen[str], timeout: float = 240) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def succeed(*arguments: object, **options: object) -> str:
    """Run to a good end; returns stdout."""
    code, out, err = finish(start(*arguments, **options))
    assert code == 0, f"exit code {code}\n{out}\n{err}"
    return out


def refuse(*arguments: object, code: int = 2) -> str:
    """Run into a refusal: that exit code, one line on stderr, no traceback; returns the line."""
    found, out, err = finish(start(*arguments))
    assert found == code, f"exit code {found}, expected {code}\n{out}\n{err}"
    assert err.count("\n") == 1, err
    assert err.startswith("error: "), err
    assert "Traceback" not in out + err
    return err


def steps_in(out: str) -> list[int]:
    """The steps that console lines report."""
    return [int(step) for step in re.findall(r"^step (\d+)/", out, flags=re.MULTILINE)]
