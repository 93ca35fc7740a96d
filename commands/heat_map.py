"""How often each expert of each layer was chosen: what `engine inspect --routes` shows."""

import io
import math
from collections import Counter
from collections.abc import Sequence

import msgspec
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ..artifacts import RoutesInfo

_BLOCKS = "·▁▂▃▄▅▆▇█"
"""Never chosen, and eighths of the most that any expert was chosen."""
_COLORS = ("#606060", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725", "#fde725")
_PER_LINE = 64
_HTML_COLUMNS = 160


class LayerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """choices: for each expert of the layer, how many tokens chose it."""

    layer: int
    choices: list[int]

    @property
    def busiest(self) -> int:
        """The expert that most tokens chose, the first of equals."""
        return self.choices.index(max(self.choices))

    @property
    def never(self) -> int:
        """Experts that no token chose."""
        return self.choices.count(0)


class ExpertLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Of `tokens` of a text. mean: how many tokens an expert would have if all had equally many."""

    tokens: int
    mean: float
    layers: list[LayerLoad]

    @classmethod
    def of(cls, routes: RoutesInfo, routed_experts: Sequence[Sequence[Sequence[int]]]) -> "ExpertLoad":
        """routed_experts: [tokens, layers, chosen], of a token at least."""
        layers = []
        for place, layer in enumerate(routes.layers):
            found = Counter(expert for token in routed_experts for expert in token[place])
            layers.append(LayerLoad(layer=layer, choices=[found[expert] for expert in range(routes.experts)]))
        tokens = len(routed_experts)
        return cls(tokens=tokens, mean=tokens * routes.chosen / routes.experts, layers=layers)

    def encode(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    def summary(self) -> str:
        """How uneven the load is, in a line."""
        experts = sum(len(each.choices) for each in self.layers)
        never = sum(each.never for each in self.layers)
        busiest = max(self.layers, key=lambda each: max(each.choices))
        most = max(busiest.choices)
        return (
            f"{self.tokens:,} tokens in {len(self.layers)} layers: {never:,} of {experts:,} experts never chosen; most loaded is expert "
            f"{busiest.busiest} of layer {busiest.layer}, {most:,} tokens, {most / self.mean:.1f} times the mean of {self.mean:.1f}"
        )

    def table(self) -> Group:
        """For rich to print: a line of blocks for each layer, an expert each, and the summary."""
        table = Table(box=None, pad_edge=False)
        for column in ("layer", "experts", "never", "most", "x mean"):
            table.add_column(column, justify="left" if column == "experts" else "right", overflow="fold")
        most = max(max(each.choices) for each in self.layers)
        for each in self.layers:
            peak = max(each.choices)
            cells = self._cells(each.choices, most)
            table.add_row(str(each.layer), cells, f"{each.never:,}", f"{each.busiest} ({peak:,})", f"{peak / self.mean:.1f}")
        return Group(table, Text(f"\n{self.summary()}"))

    def html(self) -> str:
        """The same as a page."""
        console = Console(record=True, file=io.StringIO(), width=_HTML_COLUMNS)
        console.print(self.table())
        return console.export_html()

    @staticmethod
    def _cells(choices: Sequence[int], most: int) -> Text:
        text = Text()
        for expert, count in enumerate(choices):
            level = math.ceil((len(_BLOCKS) - 1) * count / most)
            if expert and expert % _PER_LINE == 0:
                text.append("\n")
            text.append(_BLOCKS[level], style=_COLORS[level])
        return text
