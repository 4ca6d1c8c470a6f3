"""The test table on the console."""

import math

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fmi_jax.artifacts.evaluation import Evaluation
from fmi_jax.tasks.registry import TASKS, describe


def console_table(evaluation: Evaluation, title: str, console: Console | None = None) -> None:
    """Print the main metrics with their 95% intervals, and the metrics of each class.

    Args:
      evaluation: metrics to print.
      title: name of the images ("Test set, 110 images").
      console: console to print on; None: the terminal, or plain ASCII where stdout is not one.
    """
    console = Console() if console is None else console
    if not console.is_terminal:
        console = Console(file=console.file, width=120, no_color=True, emoji=False)
    metrics = _table(console, title, ("", "Value", "95% interval"))
    task = TASKS[evaluation.task]
    of_groups = [name for name in evaluation.values if name not in task.metrics]
    for name in (*task.shown, *of_groups, "loss"):
        if name in evaluation.values and name not in task.left_out:
            label = describe(name, evaluation.task).label
            low, high = evaluation.intervals.get(name, (math.nan, math.nan))
            interval = "" if math.isnan(low) else f"{low:.3f} to {high:.3f}"
            metrics.add_row(label, _number(evaluation.values[name]), interval)
    console.print(metrics)
    classes = _table(console, task.of_classes, ("", *task.per_class.values()))
    for name, row in evaluation.per_class.items():
        cells = (_number(row[m]) if m in row else "" for m in task.per_class)
        classes.add_row(Text(name), *cells)
    console.print(classes)
    if evaluation.undefined:
        console.print(Text(f"Undefined on these images: {', '.join(evaluation.undefined)}."))


def per_group_line(evaluation: Evaluation, metric: str) -> str:
    """Say what a metric is where the images of each group are pooled."""
    label = describe(metric, evaluation.task).label
    return f"per group ({evaluation.count}): {label} {_number(evaluation.values[metric])}"


def _table(console: Console, title: str, columns: tuple[str, ...]) -> Table:
    style = box.SIMPLE_HEAD if console.is_terminal else box.ASCII2
    table = Table(
        title=Text(title),
        title_justify="left",
        title_style="bold",
        box=style,
        min_width=len(title),  # which would else be broken into lines of the table's width
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "undefined" if math.isnan(value) else f"{value:.3f}"
