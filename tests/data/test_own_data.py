"""One's own images, from files to predictions, by the commands of the README."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import runs

from fmi_jax.data.prepared import open_dataset


def fmi_jax(*arguments: object, cwd: Path) -> str:
    command = [sys.executable, "-m", "fmi_jax.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=runs.environment())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_digits_are_prepared_learned_and_predicted(tmp_path: Path) -> None:
    writer = runs.ROOT / "examples" / "write_digits.py"
    subprocess.run([sys.executable, writer, "data/raw/digits"], check=True, cwd=tmp_path)
    table = tmp_path / "data" / "raw" / "digits" / "digits.csv"
    assert len(rows(table)) == 1797
    shown = fmi_jax(
        *("prepare", "csv", "--name", "digits", "--source", table.relative_to(tmp_path)),
        *("--channels", 1, "--size", 32),
        cwd=tmp_path,
    )
    assert "1 channel" in shown
    config = runs.ROOT / "configs" / "digits.py"
    runs.succeed(f"--config={config}", "--workdir=runs/digits", cwd=tmp_path)
    workdir = tmp_path / "runs" / "digits"
    result = json.loads((workdir / "result.json").read_text())
    test = result["findings"][0]["evaluations"]["test"]
    assert test["values"]["accuracy"] >= 0.95
    assert test["count"] == len(open_dataset(tmp_path / "data", "digits", 32).ids("test"))

    # New files, through the same preparation: the probabilities of the test table again.
    known = rows(workdir / "predictions.csv")[:37]
    images = [table.parent / row["id"] for row in known]
    fmi_jax("predict", "--workdir", workdir, *images, "--out", "new.csv", cwd=tmp_path)
    found = rows(tmp_path / "new.csv")
    assert [row["id"] for row in found] == [str(path) for path in images]
    columns = [f"p_{digit}" for digit in range(10)]
    np.testing.assert_allclose(
        [[float(row[c]) for c in columns] for row in found],
        [[float(row[c]) for c in columns] for row in known],
        atol=1e-5,
    )
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:60])
    command = [sys.executable, "-m", "fmi_jax.cli", "predict", "--workdir", workdir, broken]
    done = subprocess.run(command, capture_output=True, text=True, env=runs.environment())
    assert done.returncode == 1
    assert "broken.png" in done.stderr
    assert "Traceback" not in done.stderr
