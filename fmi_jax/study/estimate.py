"""Cost of a study: floating-point operations of every cell, and the time they take.

Operations are counted from the traced program, without compiling it: the products and
convolutions of a training step on one image, in both passes, and of a forward pass. The speed
comes from finished cells or from `--tflops`.
"""

import copy
import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from fmi_jax.config import ExperimentConfig, from_dict
from fmi_jax.data.prepared import open_dataset
from fmi_jax.data.subset import training_subset
from fmi_jax.drawing.template import duration
from fmi_jax.errors import UserError
from fmi_jax.fields import as_dict
from fmi_jax.protocols.registry import protocol_of
from fmi_jax.run.assembly import assemble
from fmi_jax.study.cells import Cell, following
from fmi_jax.study.ledger import Ledger
from fmi_jax.study.plan import Missing, Plan
from fmi_jax.study.spec import Setting
from fmi_jax.study.state import State


def describe_plan(
    plan: Plan, settings: Sequence[Setting], ledger: Ledger, tflops: float | None
) -> str:
    """Describe the cells of a study: how many are done, their cost, and missing files."""
    cells = plan.all_cells(settings)
    states = {cell: ledger.state(cell) for cell in cells}
    due = plan.due(settings, ledger.ended(states))
    total = plan.count(settings)
    counts = {state: sum(states[cell] is state for cell in due) for state in State}
    cannot = [setting for setting in settings if setting.config is None]
    lines = [
        plan.study.title,
        f"{len(settings)} settings, {total} cells in the end: "
        + ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        + (
            f"; {total - len(due)} more when those before them have ended"
            if total > len(due)
            else ""
        ),
    ]
    lines += [f"cannot be run: {reason}" for reason in dict.fromkeys(s.why_not for s in cannot)]
    lines += _cost(plan, settings, ledger, cells, states, tflops)
    missing = Missing()
    needs = [
        need
        for cell in due.values()
        if states[cell.id] is State.OPEN
        for need in missing.of(cell.apart)
    ]
    lines += [f"not ready ({needs.count(need)} cells): {need}" for need in dict.fromkeys(needs)]
    return "\n".join(lines)


def _cost(
    plan: Plan,
    settings: Sequence[Setting],
    ledger: Ledger,
    cells: Mapping[str, Cell],
    states: Mapping[str, State],
    tflops: float | None,
) -> list[str]:
    needed = [
        cell
        for cell in plan.in_the_end(settings, ledger.ended(states)).values()
        if states[cell.id] is not State.DONE
    ]
    # Cells of one setting differ in rate and seed alone, so each program is counted once.
    work_of = {cell.program: operations(cell.config) for cell in needed}
    works = [work_of[cell.program] for cell in needed]
    left, unknown = sum(filter(None, works)), works.count(None)
    lines = [f"left to compute: {left / 1e15:,.3g} PFLOP"]
    if unknown:
        lines[0] += f", and {unknown} cells of data that are not prepared"
    speeds = [
        work / sum(ledger.result(cell)["seconds"].values())
        for cell, state in states.items()
        if state is State.DONE and (work := operations(cells[cell].config))
    ]
    if tflops is not None:
        speed, source = tflops * 1e12, "--tflops"
    elif speeds:
        speed, source = statistics.median(speeds), f"the median of {len(speeds)} finished cells"
    else:
        return [*lines, "time: not known before a cell has been run here; --tflops T assumes one"]
    return [
        *lines,
        f"time: {duration(left / speed)} one at a time, at {speed / 1e12:,.3g} TFLOP/s ({source})",
    ]


def operations(config: ExperimentConfig) -> float | None:
    """Floating-point operations of an experiment; None if its data are not prepared."""
    data = config.data
    try:
        dataset = open_dataset(Path(data.data_dir), data.name, data.prepared_size, data.split)
        info = training_subset(
            dataset, fraction=data.fraction, shots=data.shots, seed=data.subset_seed
        ).info
    except UserError:
        return None
    images = protocol_of(config).images(config, info.counts)
    if not any(images):
        return 0.0
    train, forward = per_image(config, info.channels, len(info.classes))
    return train * images.trained + forward * images.judged


def per_image(config: ExperimentConfig, channels: int, num_classes: int) -> tuple[float, float]:
    """Floating-point operations per image of a training step and of a forward pass."""
    after = protocol_of(config).own.after
    bare = following(config, "") if after else copy.deepcopy(config)
    bare.backbone.weights = bare.backbone.run = bare.transformer.weights = ""
    bare.backbone.run_step = ExperimentConfig().backbone.run_step
    bare.optim.learning_rate = ExperimentConfig().optim.learning_rate
    bare.train.seed = 0
    bare.backbone.attention = "plain"  # operations of a kernel cannot be read from the program
    return _per_image(json.dumps(as_dict(bare)), channels, num_classes)


@functools.cache
def _per_image(values: str, channels: int, num_classes: int) -> tuple[float, float]:
    config = from_dict(json.loads(values))
    assembly = assemble(config, channels, num_classes)
    if assembly.fit.augment is not None:  # its inputs are no images; the backbone is counted
        assembly = assemble(config, channels, num_classes, bare=True)
    parts, shapes = assembly.partition, assembly.partition.shapes
    side = config.image_size
    images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    whole = shapes(tuple(parts.variables))  # counters of batches have no gradient
    learns = shapes(parts.params) or {
        name: x for name, x in whole.items() if jnp.issubdtype(x.dtype, jnp.inexact)
    }
    rest = shapes(tuple(name for name in parts.variables if name not in learns))

    def forward(params: Any, rest: Any, images: Any) -> Any:
        return parts.merge(params, rest)(images, rngs=None).sum()

    once = jax.make_jaxpr(forward)(learns, rest, images)
    both = jax.make_jaxpr(jax.grad(forward))(learns, rest, images)
    return count(both), count(once)


def count(jaxpr: ClosedJaxpr) -> float:
    """Count operations of products and convolutions in a program; a multiply-add counts as two."""
    return sum(_of_equation(equation) for equation in jaxpr.jaxpr.eqns)


def _of_equation(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    shapes: list[Any] = [getattr(variable.aval, "shape", ()) for variable in equation.invars]
    result = float(np.prod(getattr(equation.outvars[0].aval, "shape", ())))
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * result * float(np.prod([shapes[0][axis] for axis in contracted]))
    if name == "conv_general_dilated":
        outputs = shapes[1][params["dimension_numbers"].rhs_spec[0]]
        return 2 * result * float(np.prod(shapes[1])) / outputs
    inner = sum(
        count(value if isinstance(value, ClosedJaxpr) else ClosedJaxpr(value, ()))
        for value in jax.tree.leaves(
            list(params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)
        )
        if isinstance(value, ClosedJaxpr | Jaxpr)
    )
    return inner * params["length"] if name == "scan" else inner
