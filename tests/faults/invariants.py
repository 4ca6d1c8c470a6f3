"""What must hold after every case: what a command says, and what is on disk in the end."""

import hashlib
import json
import re
import signal
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .processes import Ended

_CLOCK = {"seconds", "started", "finished", "time", "milliseconds", "seal", "images_per_second"}
_SAME_BYTES = {".csv", ".safetensors", ".npy", ".png", ".jpg", ".html", ".md"}
_OF_TIME = {"report.html", "log.txt", "report.md"}  # what they hold depends on the clock
_CHECKPOINT = re.compile(r"(.*checkpoints/\d+/(?:model|training))/.+")
_DEFECT = "is a defect of fmi_jax"


def said(ended: Ended, codes: Collection[int]) -> Iterator[str]:
    """Find what is wrong with the end of a command, or with what it printed.

    Args:
      ended: command that has ended.
      codes: exit codes that it may have; a negative one is a signal.
    """
    text = ended.out + ended.err
    if -signal.SIGINT in codes and "KeyboardInterrupt" in text and "in guarded" not in text:
        return  # Python was interrupted before the command began
    if ended.hung:
        yield f"it hung: killed after {ended.seconds:.0f} s"
    elif ended.code not in codes:
        yield f"exit code {ended.code}, expected one of {sorted(codes)}"
    if "Traceback" in text:
        yield "a traceback"
    if _DEFECT in text:
        yield "a message that calls it a defect"
    messages = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if len(messages) > 1:
        yield f"{len(messages)} messages"
    if ended.code in (1, 2) and not messages:
        yield f"exit code {ended.code} without a message"
    if ended.code == 0 and messages:
        yield "a message, and exit code 0"


def snapshot(root: Path, places: Collection[str]) -> dict[str, str]:
    """Describe what a command has written: a checksum by path, of all that the clock does not say.

    A checkpoint is one entry for the parameters it holds, bit by bit. Of logs and pages there is
    only that they are there and not empty.
    """
    found: dict[str, str] = {}
    for place in places:
        path = root / place
        files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.exists() else []
        for file in files:
            if file.is_file():
                name = entry(file.relative_to(root).as_posix())
                found[name] = found.get(name) or _digest(root, name, file)
            elif not any(file.iterdir()):
                found[f"{file.relative_to(root).as_posix()}/"] = "an empty folder"
    return found


def entry(name: str) -> str:
    """Name under which a file is in a snapshot."""
    if part := _CHECKPOINT.fullmatch(name):
        return part[1]
    if "/tensorboard/" in name:
        return name.rpartition("/")[0]
    return re.sub(r"(checkpoints/manifests)/.*", r"\1", name)


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> Iterator[str]:
    """Compare two snapshots."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            yield f"{name} is missing"
        elif name not in expected:
            yield f"{name} is left behind"
        elif expected[name] != found[name]:
            yield f"{name} differs: {found[name][:60]}, expected {expected[name][:60]}"


def strays(root: Path, places: Collection[str]) -> Iterator[str]:
    """Find what lies beside the files and folders of a case, and is none of them."""
    known = {root / place for place in places}
    known |= {folder for path in known for folder in path.parents}
    for folder in {path.parent for path in known if root in path.parents}:
        for path in folder.iterdir():
            if path not in known:
                yield f"{path.relative_to(root).as_posix()} is left behind"


def repeated(root: Path) -> Iterator[str]:
    """Find runs below a folder that were done twice, by their logs."""
    for log in root.rglob("log.txt"):
        text = log.read_text(errors="replace")
        if (count := len(re.findall(r"^report: ", text, re.MULTILINE))) > 1:
            yield f"{log.relative_to(root)}: the cell ended {count} times"
        if "Traceback" in text or _DEFECT in text:
            yield f"{log.relative_to(root)}: a traceback, or a message that calls it a defect"
    for log in root.rglob("metrics.jsonl"):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        steps = [row["step"] for row in rows if "train/loss" in row]
        if steps != sorted(set(steps)):
            yield f"{log.relative_to(root)}: steps {steps}"


def _digest(root: Path, name: str, file: Path) -> str:
    if _CHECKPOINT.fullmatch(file.relative_to(root).as_posix()):
        return _parameters(root / name)
    if file.stat().st_size == 0:
        return "empty"
    if file.name in _OF_TIME or "manifests" in name:
        return "written"
    if file.suffix in _SAME_BYTES or ".array_record" in file.name:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    if file.suffix in (".json", ".jsonl"):
        return _of_json(file.read_bytes())
    return "written"


def _of_json(content: bytes) -> str:
    """Checksum of one JSON document or of one on each line, without what the clock said."""
    try:
        try:
            values = json.loads(content)
        except ValueError:
            values = [json.loads(line) for line in content.splitlines()]
    except ValueError:
        return f"no JSON: {content[:40]!r}"
    return hashlib.sha256(json.dumps(_timeless(values), sort_keys=True).encode()).hexdigest()


def _timeless(values: Any) -> Any:
    if isinstance(values, dict):
        kept = {n: v for n, v in values.items() if n.rpartition("/")[2] not in _CLOCK}
        return {name: _timeless(value) for name, value in kept.items()}
    return [_timeless(value) for value in values] if isinstance(values, list) else values


def _parameters(folder: Path) -> str:
    """Checksum of every array of a part of a checkpoint, bit by bit."""
    import jax
    import orbax.checkpoint as ocp

    try:
        tree = ocp.StandardCheckpointer().restore(folder.absolute())
    except Exception as error:  # whatever the library raises where it is damaged
        return f"cannot be restored: {type(error).__name__}: {error}"
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
