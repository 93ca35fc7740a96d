"""Which checkpoint tensors make which parameter of `Decoder`, as tables; every tensor on either side must find its partner.

`{}` in a table stands for a layer's number. One tensor may make several parameters (a fused qkv), each of which takes its rows of it.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from ..errors import CheckpointError
from .parts.attention import AttentionSpec
from .parts.latent_attention import LatentAttentionSpec
from .parts.moe import MoESpec
from .spec import LayerSpec, Mixer, ModelSpec


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a stored tensor of `of` rows, in order. index: int64 [rows]."""

    index: torch.Tensor
    of: int

    def taken_at(self, places: torch.Tensor) -> "Rows":
        """The rows at `places` of these."""
        return Rows(index=self.index[places], of=self.of)


RowsOf = Callable[[LayerSpec], Rows]


@dataclass(frozen=True, kw_only=True)
class Source:
    """How a parameter comes from a tensor of the checkpoint: some of its rows, times a number, plus a number, in this order.

    rows: which of them (default: all). times, plus: of every value; the parameter is float32 then. transposed: the checkpoint holds
    [in features, out features]. stacked, joined: how many tensors there are, for each number in the place of `{i}`; the parameter is all of
    them, as elements of a new first axis, or the rows of one after those of another. split: how many elements the tensor's first axis has,
    each of which holds as many of the parameter's rows (and, transposed, is a matrix transposed). turned: of how many matrices, one after
    another, the rows that were taken are; the parameter is the transpose of each.
    """

    tensor: str
    rows: RowsOf | None = None
    times: float = 1.0
    plus: float = 0.0
    transposed: bool = False
    stacked: Callable[[LayerSpec], int] | None = None
    joined: Callable[[LayerSpec], int] | None = None
    split: Callable[[LayerSpec], int] | None = None
    turned: Callable[[LayerSpec], int] | None = None

    @property
    def count(self) -> Callable[[LayerSpec], int] | None:
        """Of the tensors, where there are several."""
        return self.stacked or self.joined


Entry = Source | str | tuple[Source | str, ...]
"""A plain string is a tensor as it is. Of several, that counts whose tensor is there."""


@dataclass(frozen=True, kw_only=True)
class NameTable:
    """sources: by parameter. ignored: tensors that carry nothing of their own.

    interleaved: whether the rows of q and k lie so that neighbours (2i, 2i + 1) are rotated together; ours rotates halves, so they are
    reordered when they are read, and the weights of their norms with them. further_layers: what the tensors of a layer begin with, where
    layers may follow those of the model: they predict further tokens, and nothing here makes use of them.
    """

    sources: Mapping[str, Entry]
    ignored: Collection[str] = ()
    interleaved: bool = False
    further_layers: str = ""

    def ignores(self, tensor: str, layers: int) -> bool:
        """Whether a tensor that no parameter takes carries nothing that a model of so many layers needs."""
        before, _, after = self.further_layers.partition("{}")
        found = re.match(rf"{re.escape(before)}(\d+){re.escape(after)}", tensor) if before else None
        return _pattern(tensor) in self.ignored or (found is not None and int(found[1]) >= layers)


@dataclass(frozen=True, kw_only=True)
class Located:
    """A parameter's tensors, several only where they are stacked or joined, and what is to be done with them.

    shape: of each tensor. rows, columns: those to take, in order; None for all. turned: how many matrices are to be transposed, 0 for none.
    """

    tensors: tuple[str, ...]
    shape: tuple[int, ...]
    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None
    times: float = 1.0
    plus: float = 0.0
    transposed: bool = False
    stacked: bool = False
    joined: bool = False
    split: bool = False
    turned: int = 0

    @property
    def is_computed(self) -> bool:
        """Whether its values are others than its tensors hold."""
        return self.times != 1.0 or self.plus != 0.0


def locate(
    table: NameTable, tensors: Collection[str], parameters: Mapping[str, tuple[int, ...]], spec: ModelSpec, source: str
) -> dict[str, Located]:
    """Where each parameter of a model is to be found among a checkpoint's tensors.

    parameters: shapes by name, those that `Decoder(spec)` has. A tied model may store its one matrix under the embedding's name, the
    head's, or both; both map to the parameter `embed.weight`, the embedding first. Raises CheckpointError naming tensors that no
    parameter takes and parameters that no tensor fills.
    """
    matching = _Matching(table, spec)
    located: dict[str, Located] = {}
    missing: list[str] = []
    is_tied = "head.weight" not in parameters
    for parameter, shape in parameters.items():
        names = ("embed.weight", "head.weight") if parameter == "embed.weight" and is_tied else (parameter,)
        entries = [entry for name in names for entry in matching.entries(name)]
        found = [candidate for entry in entries if (candidate := matching.located(parameter, entry, shape)).tensors[0] in tensors]
        if found:
            located[parameter] = found[0]
            missing += [name for name in found[0].tensors if name not in tensors]
        else:
            missing.append(entries[0].tensor if entries else parameter)
    used = {name for entry in located.values() for name in entry.tensors}
    if is_tied:
        used.update(entry.tensor for entry in matching.entries("head.weight"))
    unused = [name for name in tensors if name not in used and not table.ignores(name, spec.num_layers)]
    if unused or missing:
        lines = [f"{source} does not fit the model that its configuration describes"]
        lines += [f"  tensors that the model has no place for: {_listing(unused)}"] if unused else []
        lines += [f"  tensors that are missing: {_listing(missing)}"] if missing else []
        raise CheckpointError("\n".join(lines), hint="the file is incomplete, or its configuration belongs to another model")
    return located


def tensor_of(table: NameTable, tensors: Collection[str], parameter: str) -> str | None:
    """The tensor, of those that are there, in which a parameter of no layer lies."""
    return next((entry.tensor for entry in _alternatives(table, parameter) if entry.tensor in tensors), None)


def _alternatives(table: NameTable, parameter: str) -> list[Source]:
    entry = table.sources.get(_pattern(parameter), ())
    entries = entry if isinstance(entry, tuple) else (entry,)
    return [Source(tensor=each) if isinstance(each, str) else each for each in entries]


class _Matching:
    """A table applied to one model."""

    def __init__(self, table: NameTable, spec: ModelSpec) -> None:
        self._table, self._spec = table, spec
        self._rows: dict[tuple[RowsOf, LayerSpec], Rows] = {}

    def entries(self, parameter: str) -> list[Source]:
        """The entries for a parameter, with the layer's number in their tensors' names."""
        layer = _layer_of(parameter)
        entries = _alternatives(self._table, parameter)
        return entries if layer is None else [replace(entry, tensor=entry.tensor.replace("{}", str(layer))) for entry in entries]

    def located(self, parameter: str, entry: Source, shape: tuple[int, ...]) -> Located:
        layer = _layer_of(parameter)
        rows, columns, turned = None, None, 0
        tensors: tuple[str, ...] = (entry.tensor,)
        if layer is not None:
            spec = self._spec.layers[layer]
            if entry.turned is not None:
                turned = entry.turned(spec)
                shape = (turned * shape[1], shape[0] // turned)
            rows = None if entry.rows is None else self._remembered(entry.rows, spec)
            if self._table.interleaved:
                rows, columns = _uninterleaved(parameter, spec.mixer, rows)
            if entry.count is not None:
                tensors = tuple(entry.tensor.replace("{i}", str(number)) for number in range(entry.count(spec)))
        return Located(
            tensors=tensors,
            shape=self._stored_shape(entry, shape if rows is None else (rows.of, *shape[1:]), layer, len(tensors)),
            rows=None if rows is None else rows.index,
            columns=columns,
            times=entry.times,
            plus=entry.plus,
            transposed=entry.transposed,
            stacked=entry.stacked is not None,
            joined=entry.joined is not None,
            split=entry.split is not None,
            turned=turned,
        )

    def _stored_shape(self, entry: Source, shape: tuple[int, ...], layer: int | None, tensors: int) -> tuple[int, ...]:
        """Of each tensor. shape: that of the parameter, with all rows that its tensors have."""
        if entry.stacked is not None:
            return shape[1:]
        if entry.joined is not None:
            shape = (shape[0] // tensors, *shape[1:])
        if entry.split is None or layer is None:
            return shape[::-1] if entry.transposed else shape
        count = entry.split(self._spec.layers[layer])
        each = (shape[0] // count, *shape[1:])
        return (count, *(each[::-1] if entry.transposed else each))

    def _remembered(self, rows_of: RowsOf, spec: LayerSpec) -> Rows:
        key = (rows_of, spec)
        if key not in self._rows:
            self._rows[key] = rows_of(spec)
        return self._rows[key]


_HEADS = re.compile(r"layers\.\d+\.attention\.(?P<which>[qk])(?P<norm>_norm)?\.(weight|bias)")


def _uninterleaved(parameter: str, spec: Mixer, rows: Rows | None) -> tuple[Rows | None, torch.Tensor | None]:
    """`rows`, and of a matrix with a row for each head its columns, each head in the order in which halves are rotated.

    Layers that do not rotate too: llama.cpp's converter reorders theirs, and no score depends on an order that q and k share.
    """
    if isinstance(spec, LatentAttentionSpec):
        return _halves_at_the_end(parameter, spec) or rows, None
    match = _HEADS.fullmatch(parameter)
    if match is None:
        return rows, None
    heads = spec.num_heads if match["which"] == "q" else spec.num_kv_heads
    if match["norm"] and spec.qk_norm is not None and spec.qk_norm.over != "width":
        heads = 1
    order = halves_of_interleaved(heads, spec.head_dim, spec.head_dim if spec.rope is None else spec.rope.width)
    if match["norm"] and spec.qk_norm is not None and spec.qk_norm.over == "each_head":
        return rows, order
    return Rows(index=order, of=len(order)) if rows is None else rows.taken_at(order), None


def _halves_at_the_end(parameter: str, spec: LatentAttentionSpec) -> Rows | None:
    """Of queries and latents, whose last elements rotate. None of what does not."""
    match = re.fullmatch(r"layers\.\d+\.attention\.(q|latent)\.(weight|bias)", parameter)
    if match is None:
        return None
    heads, size = (spec.num_heads, spec.query_dim) if match[1] == "q" else (1, spec.head_dim)
    turned = torch.arange(spec.rope.width).view(-1, 2).t().flatten() + size - spec.rope.width
    head = torch.cat((torch.arange(size - spec.rope.width), turned))
    index = (torch.arange(heads)[:, None] * size + head).flatten()
    return Rows(index=index, of=len(index))


def halves_of_interleaved(heads: int, head_dim: int, width: int) -> torch.Tensor:
    """Row numbers [heads * head_dim] int64: of each head first the even ones of the `width` rotated, then the odd ones, then the rest."""
    head = torch.cat((torch.arange(0, width, 2), torch.arange(1, width, 2), torch.arange(width, head_dim)))
    return (torch.arange(heads)[:, None] * head_dim + head).flatten()


def fused_qkv(which: str) -> RowsOf:
    """The rows of q, k or v in a tensor that holds those of all three, one after another."""
    return _FUSED_QKV[which]


def fused_qkv_by_group(which: str) -> RowsOf:
    """... in a tensor that holds, for each key-value head, the rows of its query heads, its key and its value."""
    return _FUSED_QKV_BY_GROUP[which]


def swapped_halves(which: str) -> RowsOf:
    """All rows of q or k, the two halves of every head in the other order: what turns a rotation round."""
    return _SWAPPED_HALVES[which]


def fused_gate_up(which: str) -> RowsOf:
    """The rows of gate or up in a tensor that holds gate first, then up."""
    return _FUSED_GATE_UP[which]


def gate_up_of_shared(which: str) -> RowsOf:
    """Those of the MLP beside experts in a tensor that holds gate first, then up."""
    return _GATE_UP_OF_SHARED[which]


def experts_of(layer: LayerSpec) -> int:
    """How many experts a layer has."""
    assert isinstance(layer.channel, MoESpec)
    return layer.channel.router.experts


def keys_values_of_latents(which: str) -> RowsOf:
    """The rows of keys or values in a tensor that makes, of a latent, those of each head in turn."""
    return _KEYS_VALUES_OF_LATENTS[which]


def heads_of(layer: LayerSpec) -> int:
    """How many query heads a layer has."""
    return layer.mixer.num_heads


def gate_up_of_experts(which: str) -> RowsOf:
    """The rows of gate or up in a tensor that holds, for each expert, gate first, then up."""
    return _GATE_UP_OF_EXPERTS[which]


def alternating_gate_up_of_experts(which: str) -> RowsOf:
    """... in one that holds, for each expert, rows of gate and up in turns."""
    return _ALTERNATING_GATE_UP_OF_EXPERTS[which]


def _contiguous(start: int, count: int, of: int) -> Rows:
    return Rows(index=torch.arange(start, start + count), of=of)


def _qkv_rows(which: str, layer: LayerSpec) -> Rows:
    spec = layer.mixer
    assert isinstance(spec, AttentionSpec)
    sizes = {"q": spec.num_heads * spec.head_dim, "k": spec.num_kv_heads * spec.head_dim, "v": spec.num_kv_heads * spec.value_size}
    start = {"q": 0, "k": sizes["q"], "v": sizes["q"] + sizes["k"]}[which]
    return _contiguous(start, sizes[which], sum(sizes.values()))


def _qkv_rows_by_group(which: str, layer: LayerSpec) -> Rows:
    spec = layer.mixer
    sharing, dim = spec.num_heads // spec.num_kv_heads, spec.head_dim
    rows = torch.arange(spec.num_kv_heads * (sharing + 2) * dim).view(spec.num_kv_heads, sharing + 2, dim)
    part = {"q": rows[:, :sharing], "k": rows[:, sharing], "v": rows[:, sharing + 1]}[which]
    return Rows(index=part.reshape(-1), of=rows.numel())


def _swapped(which: str, layer: LayerSpec) -> Rows:
    spec = layer.mixer
    heads = spec.num_heads if which == "q" else spec.num_kv_heads
    index = torch.arange(heads * spec.head_dim).view(heads, 2, -1).flip(1).flatten()
    return Rows(index=index, of=len(index))


def _gate_up_rows(which: str, layer: LayerSpec) -> Rows:
    size = layer.channel.size
    return _contiguous(0 if which == "gate" else size, size, 2 * size)


def _gate_up_rows_of_shared(which: str, layer: LayerSpec) -> Rows:
    assert isinstance(layer.channel, MoESpec)
    assert layer.channel.shared is not None
    size = layer.channel.shared.size
    return _contiguous(0 if which == "gate" else size, size, 2 * size)


def _gate_up_rows_of_experts(which: str, layer: LayerSpec) -> Rows:
    rows = torch.arange(experts_of(layer) * 2 * layer.channel.size)
    return Rows(index=rows.view(-1, 2, layer.channel.size)[:, int(which == "up")].flatten(), of=len(rows))


def _alternating_rows_of_experts(which: str, layer: LayerSpec) -> Rows:
    rows = torch.arange(experts_of(layer) * 2 * layer.channel.size)
    return Rows(index=rows.view(-1, 2)[:, int(which == "up")], of=len(rows))


def _keys_values(which: str, layer: LayerSpec) -> Rows:
    spec = layer.mixer
    assert isinstance(spec, LatentAttentionSpec)
    of_each = torch.arange(spec.num_heads * (spec.plain_dim + spec.value_dim)).view(spec.num_heads, -1)
    part = of_each[:, : spec.plain_dim] if which == "keys" else of_each[:, spec.plain_dim :]
    return Rows(index=part.flatten(), of=of_each.numel())


def _each(rows: Callable[[str, LayerSpec], Rows], names: Sequence[str]) -> dict[str, RowsOf]:
    return {name: partial(rows, name) for name in names}


_FUSED_QKV = _each(_qkv_rows, "qkv")
_FUSED_QKV_BY_GROUP = _each(_qkv_rows_by_group, "qkv")
_SWAPPED_HALVES = _each(_swapped, "qk")
_FUSED_GATE_UP = _each(_gate_up_rows, ("gate", "up"))
_GATE_UP_OF_SHARED = _each(_gate_up_rows_of_shared, ("gate", "up"))
_KEYS_VALUES_OF_LATENTS = _each(_keys_values, ("keys", "values"))
_GATE_UP_OF_EXPERTS = _each(_gate_up_rows_of_experts, ("gate", "up"))
_ALTERNATING_GATE_UP_OF_EXPERTS = _each(_alternating_rows_of_experts, ("gate", "up"))


def _layer_of(parameter: str) -> int | None:
    found = re.match(r"layers\.(\d+)\.", parameter)
    return int(found[1]) if found else None


def _pattern(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "{}", name, count=1)


def _listing(names: list[str], limit: int = 10) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
