"""Mean gain of each model over a baseline, over the data sets (Figure 1)."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from fmi_jax.drawing.style import GREY, short
from fmi_jax.study.report import drawing
from fmi_jax.study.report.drawing import ONE_COLUMN, PLAIN, Drawn, Look
from fmi_jax.study.report.relative import Gain
from fmi_jax.study.report.samples import covered


def draw(gains: Sequence[Gain], looks: Mapping[str, Look], lines: str, baseline: str) -> Drawn:
    """Draw the mean gains of the rows; published ones as hollow markers.

    Args:
      gains: gain of each row, in order.
      looks: look of each value of the coordinate `lines`.
      lines: coordinate that a colour stands for.
      baseline: name of the baseline, in words.
    """
    most = max((len(gain.datasets) for gain in gains), default=0)
    return drawing.save(
        "gain",
        f"Test metric relative to {baseline}, in percent and in the mean over the data sets"
        f" ({most} where nothing else is said), with 95% intervals over"
        f" {covered(number for gain in gains for number in gain.numbers)}. Hollow: the published"
        " numbers, with 95% intervals over their runs in grey.",
        lambda: _figure(gains, looks, lines, baseline, most),
    )


def _figure(
    gains: Sequence[Gain], looks: Mapping[str, Look], lines: str, baseline: str, most: int
) -> Figure:
    rows = [gain.row for gain in gains]
    height = drawing.row_axis_height(rows) + 0.75
    figure = Figure(figsize=(ONE_COLUMN, height), layout="constrained")
    ax = figure.subplots()
    places = drawing.row_axis(ax, rows)
    ax.axvline(0, color=GREY, linewidth=0.8)
    for gain in gains:
        y = places[gain.row]
        look = looks.get(gain.at.get(lines, ""), PLAIN)
        if gain.datasets:
            ax.plot(gain.interval, (y, y), color=look.colour)
            ax.plot(gain.ours, y, **drawing.filled(look))
        if gain.published_datasets:
            ax.plot(gain.published_interval, (y, y), color=GREY, linewidth=0.5, zorder=1)
            ax.plot(gain.published, y, **drawing.hollow(look))
        if gain.datasets and len(gain.datasets) < most:
            ax.annotate(
                f"{len(gain.datasets)} data sets", (1, y), (0, 0), va="center", ha="right",
                xycoords=ax.get_yaxis_transform(), textcoords="offset points", fontsize=6,
                color="#444444",
            )  # fmt: skip
    ax.set_xlabel(f"Mean gain over {short(baseline, 36)} (%)")
    drawing.few_ticks(ax, 6)
    drawing.key_of_published(figure)
    return figure
