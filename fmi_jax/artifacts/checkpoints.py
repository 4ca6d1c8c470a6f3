"""Checkpoints of a run: written by Orbax, proven by checksums, the newest sound one restored.

Orbax commits a step atomically but does not notice a flipped bit, so every committed step gets a
manifest of SHA-256 sums beside it. A step without a manifest, or that differs from it, does not
count.
"""

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from fmi_jax import atomic, parallel
from fmi_jax.artifacts import sealed
from fmi_jax.errors import UserError
from fmi_jax.nn.shards import filed_shape

log = logging.getLogger(__name__)

FORMAT = 3
"""Format number of a step's manifest; format 1 was the checksums alone, format 2 had no seal."""

_DAMAGED = "damaged"  # folder of the steps that are set aside
_TRAINING = "training/"  # how names of files of that part of a step begin


class _NewestAndBest:
    """Keeps the two newest steps, and the best one. Two, so that a damaged newest has a spare."""

    def __init__(self) -> None:
        self.best_step: int | None = None

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        newest = {info.step for info in checkpoints[-2:]}
        return [info.step in newest or info.step == self.best_step for info in checkpoints]


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a step held: `model` and `training` trees as saved, and the `meta` JSON."""

    model: Any
    training: Any
    meta: dict[str, Any]


class RunCheckpoints:
    """The checkpoints of one run, under `folder`.

    A step has three parts: `model` (parameters that learn, running statistics), `training`
    (optimizer state and counters) and `meta` (JSON, with the key "best_step": the step of the
    best checkpoint so far, or None). Frozen parameters are not in it.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self._policy = _NewestAndBest()
        self._unsealed: tuple[int, int | None] | None = None  # a step, and the best until then
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,  # type: ignore[arg-type]
                cleanup_tmp_directories=True,
                create=True,
            ),
        )

    def save(self, step: int, model: Any, training: Any, meta: dict[str, Any]) -> None:
        """Start to write a step; the arrays may be donated as soon as this returns."""
        self.wait()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(_as_filed(model)),
                training=ocp.args.StandardSave(_as_filed(training)),
                meta=ocp.args.JsonSave(meta),
            ),
        )
        self._unsealed = step, meta["best_step"]

    def poll(self) -> None:
        """Seal a step whose writing has ended meanwhile; call now and then."""
        if self._unsealed is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Wait until what was saved is on disk and sealed with its manifest."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax passes on whatever its writer thread met
            raise UserError(
                f"checkpoint in {self.folder} could not be written: {error}."
                " Earlier checkpoints are intact; free space or choose another --workdir, then"
                " run the same command to resume."
            ) from error
        if self._unsealed is None:
            return
        step, best = self._unsealed
        if parallel.is_main():
            self._seal(step)
        self._unsealed = None
        # Not before: until a step is sealed, what the steps before it refer to must not go.
        self._policy.best_step = best

    def close(self) -> None:
        """Finish writing."""
        self._settle()
        self._manager.close()

    def _settle(self) -> None:
        """Wait, on every process, until the last step is sealed, which one process does."""
        self.wait()
        multihost_utils.sync_global_devices("checkpoints are sealed")

    def newest_sound(self) -> int | None:
        """The step to resume from, or None for a new run.

        It is the newest one that verifies and whose best step verifies too. Steps that cannot
        be used are set aside under `damaged/`, each with a warning. Raises `UserError` if there
        are steps but none can be used; a first step that was never sealed (the run was killed
        between Orbax's commit and the manifest) is none, and the run is new.
        """
        steps = sorted(self._manager.all_steps())
        if not steps:
            return None
        damage = {step: _damage(self.folder, step) for step in steps}
        if len(steps) == 1 and not any((self.folder / "manifests").glob("*.json")):
            self._set_aside(damage)
            return None
        unusable: dict[int, str] = {}
        for step in reversed(steps):
            reason = damage[step]
            if reason is None:
                best = self._meta(step)["best_step"]
                if best is not None and damage.get(best, "it is missing") is not None:
                    reason = f"the best step {best} that it refers to: {damage.get(best, 'gone')}"
            if reason is None:
                self._set_aside(unusable)
                self._policy.best_step = self._meta(step)["best_step"]
                return step
            unusable[step] = reason
        raise UserError(
            f"no checkpoint in {self.folder} can be used: "
            + "; ".join(f"step {step}: {why}" for step, why in sorted(unusable.items()))
            + ". Nothing was deleted. Use another --workdir to start again."
        )

    def restore(self, step: int, model: Any, training: Any) -> Restored:
        """Read a step onto the shapes and shardings of the given abstract trees.

        Raises:
          UserError: the run was finished and its result is gone, or the step is of another model.
        """
        if not (self.folder / str(step) / "training").is_dir():
            raise UserError(
                f"{self.folder.parent} holds a run that was finished, and its result.json is gone:"
                " its checkpoint has the network alone, from which no run resumes. Put that file"
                " back, or use another --workdir to run again."
            )
        restored = self._read(
            step,
            model,
            training=ocp.args.StandardRestore(_as_filed(training)),
            meta=ocp.args.JsonRestore(),
        )
        return Restored(
            _as_kept(restored["model"], model),
            _as_kept(restored["training"], training),
            restored["meta"],
        )

    def restore_model(self, step: int, model: Any) -> Any:
        """Read only the `model` part of a step, verified first."""
        self._settle()
        check_step(self.folder, step)
        return _as_kept(self._read(step, model)["model"], model)

    def _read(self, step: int, model: Any, **others: Any) -> Any:
        """Read the model and other parts of a step; `UserError` if it is not of this model."""
        parts = {"model": ocp.args.StandardRestore(_as_filed(model)), **others}
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**parts))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise self._does_not_fit(step, model, error) from error

    def _does_not_fit(self, step: int, model: Any, error: Exception) -> UserError:
        stored = ocp.StandardCheckpointer().metadata(self.folder / str(step) / "model")
        assert stored.item_metadata is not None  # of a step that verified
        held = set(stored.item_metadata.tree["params"])
        wanted = set(model["params"])
        parts = []
        for what, names in (("lacks", wanted - held), ("has besides", held - wanted)):
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                parts.append(f"it {what} {', '.join(sorted(names)[:5])}{more}")
        detail = "; ".join(parts) or " ".join(str(error).split())[:300]
        return UserError(f"checkpoint step {step} in {self.folder} is not of this model: {detail}.")

    def _meta(self, step: int) -> dict[str, Any]:
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[
            "meta"
        ]

    def _seal(self, step: int) -> None:
        manifest = _manifest(self.folder, step)
        manifest.parent.mkdir(exist_ok=True)
        _write_manifest(manifest, _checksums(self.folder / str(step)))
        for old in manifest.parent.glob("*.json"):
            if not (self.folder / old.stem).exists():
                old.unlink()

    def _set_aside(self, unusable: Mapping[int, str | None]) -> None:
        for step, reason in sorted(unusable.items()):
            log.warning("checkpoint step %d is set aside: %s", step, reason)
            if parallel.is_main():
                target = self.folder / _DAMAGED / str(step)
                target.parent.mkdir(exist_ok=True)
                shutil.rmtree(target, ignore_errors=True)
                (self.folder / str(step)).rename(target)
                _manifest(self.folder, step).unlink(missing_ok=True)
        if unusable:
            self._manager.reload()


def keep_models(folder: Path, steps: Sequence[int]) -> None:
    """Keep nothing but the models of some steps in `folder`, of a run that is finished.

    The optimizer's state is twice as large as the model, the newest steps are for resuming, and
    what was set aside serves nobody now. Killed meanwhile and called again, it ends the same. A
    file among the steps is none of ours and stays.

    Raises:
      UserError: a step is damaged; nothing is deleted.
    """
    for step in steps:
        check_step(folder, step)
    for path in folder.iterdir():
        of_step = path.name.isdecimal() and int(path.name) not in steps
        if path.is_dir() and (of_step or path.name == _DAMAGED):
            shutil.rmtree(path)
    for step in steps:
        sums = _read_manifest(_manifest(folder, step))
        kept = {name: digest for name, digest in sums.items() if not name.startswith(_TRAINING)}
        _write_manifest(_manifest(folder, step), kept)
        shutil.rmtree(folder / str(step) / "training", ignore_errors=True)


def check_step(folder: Path, step: int) -> None:
    """Raise `UserError` unless every file of a step in `folder` is as its manifest says."""
    reason = _damage(folder, step)
    if reason is not None:
        raise UserError(f"checkpoint step {step} in {folder}: {reason}.")


def model_sha256(folder: Path, step: int) -> str:
    """Checksum of the `model` part of a step in `folder`, as its manifest has it.

    It stands for the names and checksums of the files of that part, so `keep_models` does not
    change it. The files are not read: see `check_step`.

    Raises:
      UserError: the step has no manifest, or a damaged one.
    """
    try:
        sums = _read_manifest(_manifest(folder, step))
        model = {name: digest for name, digest in sums.items() if name.startswith("model/")}
    except sealed.DAMAGE as error:
        raise UserError(f"checkpoint step {step} in {folder}: its manifest is damaged.") from error
    return hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()


def _manifest(folder: Path, step: int) -> Path:
    return folder / "manifests" / f"{step}.json"


def _damage(folder: Path, step: int) -> str | None:
    """What is wrong with a step on disk, or None; `UserError` if a later version wrote it."""
    manifest = _manifest(folder, step)
    if not manifest.exists():
        return "it was not written to the end"
    try:
        expected = _read_manifest(manifest)
    except sealed.DAMAGE:
        return "its manifest is damaged"
    found = _checksums(folder / str(step))
    changed = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if not any(name.startswith(_TRAINING) for name in expected):  # `keep_models` was killed
        changed = [name for name in changed if not name.startswith(_TRAINING)]
    if changed:
        return f"{len(changed)} file(s) differ from the manifest, first {changed[0]}"
    return None


def _as_filed(tree: Any) -> Any:
    """The tree with the shapes that files have: a fused kernel, and what an optimizer keeps of
    it, in one piece (`shards.filed_shape`). Arrays, or shapes of arrays."""

    def filed(path: tuple[Any, ...], x: Any) -> Any:
        shape = filed_shape(str(getattr(path[-1], "key", "")), x.shape)
        if shape == x.shape:
            return x
        # A part that is divided along "model" is whole here: files are cut along other lines.
        where = NamedSharding(x.sharding.mesh, PartitionSpec(*x.sharding.spec[:1]))
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=where)
        return jax.jit(jax.numpy.reshape, static_argnums=1, out_shardings=where)(x, shape)

    return jax.tree_util.tree_map_with_path(filed, tree)


def _as_kept(tree: Any, wanted: Any) -> Any:
    """The inverse of `_as_filed`, onto the shapes and shardings of `wanted`."""

    def kept(x: Any, like: Any) -> Any:
        if x.shape == like.shape:
            return x
        reshape = jax.jit(jax.numpy.reshape, static_argnums=1, out_shardings=like.sharding)
        return reshape(x, like.shape)

    return jax.tree.map(kept, tree, wanted)


def _write_manifest(path: Path, sums: Mapping[str, str]) -> None:
    sealed.write(path, {"format": FORMAT, "sha256": sums})


def _read_manifest(path: Path) -> dict[str, str]:
    """SHA-256 of every file of a step, by relative path.

    Raises:
      UserError: a later version wrote it.
      sealed.DAMAGE: it is no sound manifest.
    """
    values = sealed.read(path, FORMAT, since=3)
    return dict(values["sha256"] if "format" in values else values)


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by relative path."""
    return {
        path.relative_to(folder).as_posix(): atomic.sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
