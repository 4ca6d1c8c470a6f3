"""Time that a study saves: its cells as one study, beside the same numbers one by one.

    python benchmarks/study.py            one round of each
    python benchmarks/study.py --rounds 3

The numbers are those of `deit_nano` on the drawn fundus photographs, under a frozen linear head and
fine-tuned (four learning rates, then a second seed of the best), and judged by kNN and logistic
regression.

One by one, each is a run of its own with an empty compilation cache and an empty folder of
features, as if the commands were typed on as many fresh machines. As a study, heads of all rates
and seeds train in one pass, runs that differ in rate or seed share one compiled program, and kNN
and logistic regression share features. Both sides run one process at a time on the same cores.
Writes `benchmarks/results/study_cpu.json` and prints a table.
"""

import argparse
import dataclasses
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fmi_jax.config import ExperimentConfig
from fmi_jax.data.prepared import open_or_draw
from fmi_jax.huge_pages import with_huge_pages
from fmi_jax.study.cells import Cell, cell_id
from fmi_jax.study.driver import Driver, make_slots
from fmi_jax.study.grids import example
from fmi_jax.study.ledger import Ledger
from fmi_jax.study.plan import make_plan
from fmi_jax.study.spec import Setting, Study

RESULTS = Path(__file__).parent / "results" / "study_cpu.json"
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
SEEDS = 2
PROTOCOLS = ("probe_grid", "finetune", "knn", "logistic")


def config(protocol: str) -> ExperimentConfig:
    """Make an experiment of the example study, long enough that training dominates."""
    made = example.config("synthetic", "deit_nano", protocol)
    made.train.epochs = 20
    return made


def settings() -> tuple[Setting, ...]:
    return tuple(
        Setting(at={"dataset": "synthetic", "model": p}, config=config(p)) for p in PROTOCOLS
    )


STUDY = Study(name="bench", title="", settings=settings, rows=("model",), rates=RATES, seeds=SEEDS)


def environment(cache: Path) -> None:
    os.environ |= with_huge_pages(dict(os.environ))
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"


def as_study(folder: Path, data: Path) -> tuple[float, int]:
    """Measure seconds and processes of the study."""
    environment(folder / "xla")
    plan = make_plan(STUDY, free={"data.data_dir": str(data)})
    driver = Driver(plan, plan.settings, Ledger(folder), make_slots(1, []), retry=False)
    start = time.perf_counter()
    outcome = driver.run()
    assert not outcome.failures
    assert not outcome.not_ready
    return time.perf_counter() - start, sum(outcome.counts.values())


def one_by_one(folder: Path, data: Path, best: dict[str, float]) -> tuple[float, int]:
    """Measure seconds and processes of the same numbers, each run by itself."""
    runs = []
    for protocol in ("linear_probe", "finetune"):
        rates = [(rate, 0) for rate in RATES]
        rates += [(best[protocol], seed) for seed in range(1, SEEDS)]
        for rate, seed in rates:
            made = config(protocol)
            made.optim.learning_rate, made.train.seed = rate, seed
            runs.append(made)
    runs += [config("knn"), config("logistic")]
    seconds = 0.0
    for i, made in enumerate(runs):
        own = folder / str(i)
        environment(own / "xla")
        (own / "data").mkdir(parents=True)
        (own / "data" / "synthetic").symlink_to(data / "synthetic")
        made.data = dataclasses.replace(made.data, data_dir=str(own / "data"))
        name = cell_id(made)
        claim = Ledger(own).claim(Cell(id=name, config=made, program=name))
        assert claim is not None
        command = [sys.executable, "-m", "fmi_jax.study.worker", str(claim.folder)]
        command.append(",".join(map(str, sorted(os.sched_getaffinity(0)))))
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds += time.perf_counter() - start
    return seconds, len(runs)


def best_rates(folder: Path) -> dict[str, float]:
    """Read the learning rates that the study chose."""
    results = [json.loads(p.read_text()) for p in folder.glob("cells/*/result.json")]
    grid = next(r for r in results if r["config"]["protocol"] == "probe_grid")
    tuned = [r for r in results if r["config"]["protocol"] == "finetune" and r["seed"] == 1]
    return {
        "linear_probe": grid["findings"][0]["values"]["chosen"]["learning_rate"],
        "finetune": tuned[0]["config"]["optim"]["learning_rate"],
    }


def main(rounds: int) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        made = config("finetune").data
        open_or_draw(data, made.name, made.prepared_size, made.split)
        for i in range(rounds):
            root = Path(temporary) / f"round{i}"
            study, cells = as_study(root / "study", data)
            shutil.rmtree(data / "features")  # each single run computes its own
            alone, processes = one_by_one(root / "alone", data, best_rates(root / "study"))
            rows.append(
                {"study_seconds": study, "one_by_one_seconds": alone, "ratio": study / alone}
            )
            print(f"round {i + 1}: {rows[-1]}", file=sys.stderr, flush=True)
    ratios = [row["ratio"] for row in rows]
    report = {
        "what": f"{cells} cells of a study, {processes} runs one by one",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "load": os.getloadavg()[0],
        "rounds": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    medians = [
        statistics.median(row[key] for row in rows)
        for key in ("study_seconds", "one_by_one_seconds")
    ]
    print("| | processes | time | ratio |\n| --- | --- | --- | --- |")
    print(f"| one by one | {processes} | {medians[1]:.0f} s | 1 |")
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"| as a study | {cells} | {medians[0]:.0f} s | {spread} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1)
    main(parser.parse_args().rounds)
