"""The figures as bars, with matplotlib."""

from collections.abc import Sequence
from pathlib import Path

from engine.bench.provenance import Provenance

from . import engine_serve
from .measure import Measured
from .measures import MEASURES

_COLUMNS = 3
_OURS, _FOUR_BITS, _OTHER = "C1", "C0", "0.7"


def plot(measured: Sequence[Measured], facts: Provenance, file: Path) -> None:
    """One panel per measure, one bar per subject, its range as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 2 + 0.55 * len(measured)), layout="constrained")
    figure.suptitle(f"{facts.cpu}, {facts.cores} cores, {facts.date[:10]}; orange Engine, blue 4 bits, grey others", fontsize=10)
    panels = figure.subplots(-(-len(MEASURES) // _COLUMNS), _COLUMNS, sharey=True).flat
    names = [one.name for one in measured]
    colors = [_OURS if one.peer == engine_serve.NAME else _FOUR_BITS if one.four_bits else _OTHER for one in measured]
    for axes, measure in zip(panels, MEASURES, strict=False):
        medians = [measure.median(one) or 0.0 for one in measured]
        bars = axes.barh(names, medians, color=colors)
        axes.bar_label(bars, [f"{median:,.{measure.digits}f}" if median else "-" for median in medians], padding=3, fontsize=7)
        for row, one in enumerate(measured):
            if values := measure.values(one):
                axes.plot([min(values), max(values)], [row, row], color="black", linewidth=1)
        axes.set_title(f"{measure.title} ({'more' if measure.more_is_better else 'less'} is better)", fontsize=9)
        axes.margins(x=0.15)
    figure.axes[0].invert_yaxis()  # of all: they share it
    figure.savefig(file)
