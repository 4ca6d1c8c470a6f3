"""Reliability diagrams: whether classes are as frequent as they are probable."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmi_jax.drawing.style import BLUE, GREY, short
from fmi_jax.study.report import drawing
from fmi_jax.study.report.drawing import TWO_COLUMNS, Drawn
from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.samples import Sample
from fmi_jax.study.report.table import Table

MOST = 24
"""Largest number of panels in a figure."""

_ACROSS = 6


def chosen(table: Table, samples: Mapping[Number, Sample]) -> list[Number]:
    """Choose the numbers to show: all if there are few, else the best ones of each data set."""
    sampled = [n for n in table.numbers if n in samples and len(samples[n].confidence)]
    if len(sampled) <= MOST:
        return sampled
    each = max(1, MOST // len(table.columns))
    best: set[Number] = set()
    for dataset in table.columns:
        here = [number for number in sampled if number.setting.dataset == dataset]
        best |= set(sorted(here, key=lambda number: number.score, reverse=True)[:each])
    return [number for number in sampled if number in best][:MOST]


def draw(table: Table, samples: Mapping[Number, Sample]) -> Drawn:
    """Draw a panel for each number that `chosen` gives, by data set and then by row."""
    order = [*table.columns]
    shown = sorted(chosen(table, samples), key=lambda n: order.index(n.setting.dataset))
    total = sum(number in samples for number in table.numbers)
    which = "" if len(shown) == total else f" Of {total}, the best of each data set."
    return drawing.save(
        "reliability",
        "Frequency of a class against its mean probability, in 15 bins of equal width: a line for"
        " each class and run; on the diagonal a class is as frequent as it is probable. ECE: mean"
        f" distance from it, the mean over classes and runs.{which}",
        lambda: _figure(table, shown, samples),
    )


def _figure(table: Table, shown: Sequence[Number], samples: Mapping[Number, Sample]) -> Figure:
    down = -(-len(shown) // _ACROSS)
    side = TWO_COLUMNS / _ACROSS
    lines = 1 + len(table.coordinates)
    height = down * (side + 0.05 + 0.11 * lines) + 0.25
    figure, axes = drawing.panels((TWO_COLUMNS, height), down, _ACROSS, len(shown))
    for k, (ax, number) in enumerate(zip(axes, shown, strict=False)):
        _panel(ax, samples[number])
        names = [number.setting.dataset, *(number.setting.at.get(c) for c in table.coordinates)]
        ax.set_title("\n".join(short(name, 18) for name in names if name), fontsize=6)
        ax.tick_params(labelleft=k % _ACROSS == 0, labelbottom=k + _ACROSS >= len(shown))
    figure.supxlabel("Mean probability", fontsize=7)
    figure.supylabel("Share that came true", fontsize=7)
    return figure


def _panel(ax: Axes, sample: Sample) -> None:
    ax.plot((0, 1), (0, 1), color=GREY, linewidth=0.6)
    strength = max(0.15, 1 / len(sample.confidence))
    ax.plot(sample.confidence.T, sample.frequency.T, "o-", color=BLUE, alpha=strength,
            markersize=2, linewidth=0.8, clip_on=False)  # fmt: skip
    ax.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
    ax.set_xticklabels(["0", "0.5", "1"])
    ax.set_yticklabels(["0", "0.5", "1"])
    ax.text(0.96, 0.05, f"ECE {sample.ece:.3f}", ha="right", fontsize=6, transform=ax.transAxes,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8})  # fmt: skip
