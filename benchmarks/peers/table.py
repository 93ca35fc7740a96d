"""The tables: figures, and how far Engine is ahead."""

from collections.abc import Callable, Mapping, Sequence

from engine.bench.report import Table

from . import engine_serve
from .measure import FULL_SPEED, QUIET_SHARE, Measured, Watched
from .measures import MEASURES, Measure, runs


def tables(measured: Sequence[Measured], versions: Mapping[str, Mapping[str, str]]) -> list[Table]:
    """Absolute figures, then ratios where Engine was measured as well."""
    ours = next((one for one in measured if one.peer == engine_serve.NAME), None)
    peers = [one for one in measured if one is not ours]
    return [_figures(measured, versions), *([_ratios(ours, peers)] if ours and peers else [])]


def warnings(measured: Sequence[Measured], failures: Mapping[str, str]) -> list[str]:
    """What to know before believing a figure."""
    found = [f"{name} is missing: {error}" for name, error in failures.items()]
    for one in measured:
        if one.error is not None:
            found.append(f"{one.name} is incomplete: {one.error}")
        if cut := sum(run.summary.cut for run in runs(one)):
            found.append(f"{one.name}: the time limit cut off {cut} requests")
        watched: list[Watched] = [*runs(one), *one.starts]
        if disturbed := [taken.others for taken in watched if taken.others > QUIET_SHARE]:
            found.append(f"{one.name}: others used up to {max(disturbed):.0%} of the machine in {len(disturbed)} runs")
        if slow := [taken.speed for taken in watched if taken.speed < FULL_SPEED]:
            found.append(f"{one.name}: the machine was down to {min(slow):.0%} of its best speed in {len(slow)} runs")
    return found


def best(measure: Measure, peers: Sequence[Measured]) -> float | None:
    """The best median of some peers, None if none has one."""
    found = [value for peer in peers if (value := measure.median(peer)) is not None]
    return (max if measure.more_is_better else min)(found, default=None)


def _figures(measured: Sequence[Measured], versions: Mapping[str, Mapping[str, str]]) -> Table:
    rows = [(one.name, "HTTP" if one.over_http else "library", *(measure.show(one) for measure in MEASURES)) for one in measured]
    notes = [f"{peer}: {', '.join(f'{name} {number}' for name, number in found.items())}" for peer, found in versions.items()]
    return Table(title="\nmedian (range)", columns=("", "asked by", *(measure.title for measure in MEASURES)), rows=rows, notes=notes)


def _ratios(ours: Measured, peers: Sequence[Measured]) -> Table:
    groups: dict[str, Sequence[Measured]] = {peer.name: [peer] for peer in peers}
    kinds: dict[str, Callable[[Measured], bool]] = {
        "best with the same file": lambda peer: peer.same_file,
        "best at 4 bits": lambda peer: peer.four_bits,
        "best of all": lambda peer: True,
    }
    groups |= {name: [peer for peer in peers if belongs(peer)] for name, belongs in kinds.items()}
    rows = [(name, *(_ratio(measure, ours, group) for measure in MEASURES)) for name, group in groups.items()]
    title = "\nhow many times better Engine is (2.00: twice the rate, half the time or memory)"
    return Table(title=title, columns=("against", *(measure.name for measure in MEASURES)), rows=rows)


def _ratio(measure: Measure, ours: Measured, peers: Sequence[Measured]) -> str:
    mine, theirs = measure.median(ours), best(measure, peers)
    return "-" if mine is None or theirs is None else f"{measure.ahead(mine, theirs):.2f}"
