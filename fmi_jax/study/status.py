"""Status of a study, from its folder alone."""

from collections.abc import Sequence
from pathlib import Path

from fmi_jax.study.files import LOG
from fmi_jax.study.ledger import Ledger
from fmi_jax.study.plan import Plan
from fmi_jax.study.progress import steps_of, title
from fmi_jax.study.spec import Setting
from fmi_jax.study.state import State


def describe_status(plan: Plan, settings: Sequence[Setting], root: Path) -> str:
    """Describe the cells by row of the table, the running ones, and the reasons of failures."""
    ledger = Ledger(root)
    cells = plan.all_cells(settings)
    states = {cell: ledger.state(cell) for cell in cells}
    scores = ledger.ended(states)
    rows: dict[str, list[Setting]] = {}
    for setting in settings:
        name = " ".join(setting.at[c] for c in plan.study.rows if c in setting.at) or "all"
        rows.setdefault(name, []).append(setting)
    width = max(map(len, rows))
    lines = [plan.study.title, f"{'':<{width}}  done  running  failed  of"]
    for name, of_row in rows.items():
        due = plan.due(of_row, scores)
        shown = (State.DONE, State.RUNNING, State.FAILED)
        done, running, failed = (sum(states[cell] is state for cell in due) for state in shown)
        total = plan.count(of_row)
        lines.append(f"{name:<{width}}  {done:>4}  {running:>7}  {failed:>6}  {total:>2}")
    due = plan.due(settings, scores)
    for id, cell in due.items():
        if states[id] is State.RUNNING:
            steps = steps_of(ledger.folder(id) / LOG)
            at = "" if steps is None else f": step {steps[0]} of {steps[1]}"
            lines.append(f"running  {title(cell)}{at}")
    for id, cell in due.items():
        if states[id] is State.FAILED:
            failure = ledger.failure(id)
            lines.append(f"failed   {title(cell)} ({failure.time}): {failure.reason}")
    return "\n".join(lines)
