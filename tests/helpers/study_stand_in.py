"""A cell's process that pretends: what a driver sees of a run, without JAX.

Called as the worker is; `cell.json` says by `optim.weight_decay` what it does: 0.1 fails with a
message, 0.2 dies of a signal, 0.3 raises, 0.4 takes as long as a file `go` is missing in the root,
and saves when it is asked to stop. Everything else is done at once; the validation score is the
learning rate. Every start is a line in `starts.txt` of the root.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from fmi_jax.artifacts import sealed
from fmi_jax.artifacts.result import FORMAT

folder = Path(sys.argv[1])
root = folder.parent.parent
config = json.loads((folder / "cell.json").read_text())["config"]
with (root / "starts.txt").open("a") as file:
    gpu, cores = os.environ.get("CUDA_VISIBLE_DEVICES", ""), sys.argv[2]
    file.write(f"{folder.name} {os.getpid()} {gpu or '-'} {cores}\n")
what = config["optim"]["weight_decay"]
if what == 0.1:
    print("step 1/9  loss 3.0", flush=True)
    print("error: the loss is not finite.", file=sys.stderr)
    sys.exit(1)
if what == 0.2:
    os.kill(os.getpid(), signal.SIGKILL)
if what == 0.3:
    raise RuntimeError("out of memory")
if what == 0.4:

    def save(*_: object) -> None:
        (folder / "saved").touch()
        sys.exit(143)

    signal.signal(signal.SIGTERM, save)
    (folder / "ready").touch()
    while not (root / "go").exists():
        time.sleep(0.02)
rate = config["optim"]["learning_rate"]
best = {"metric": "accuracy", "value": rate, "step": 1}
finding = {"evaluations": {"test": {"values": {"accuracy": rate}}}}
values = {"format": FORMAT, "config": config, "best": best, "findings": [finding]}
sealed.write(folder / "result.json", {**values, "seconds": {"training": 1.0}})
