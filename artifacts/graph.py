"""CUDA graphs as data: every kernel, and for each bucket the launches of a whole step.

A template is complete but for addresses: an argument that is memory is a *base* (the workspace, a
weight, a KV cache, an input) and an offset in bytes. The runtime resolves bases to pointers and
makes the graph through the driver; nothing is captured and nothing is warmed up.
"""

from pathlib import Path
from typing import Literal

import msgspec

from ..errors import ArtifactError
from .json_file import read_json
from .numbers import Count, Grid, Index, Number, Shape, SharedBytes, Size, Threads

Kind = Literal["decode", "mixed"]
Parameter = Literal["pointer", "int32", "int64", "float32"]
WORKSPACE = "workspace"
TOKENS = "tokens"
"""The result that holds a token of every row."""
RESULT_DTYPES = {"logits": "float32", TOKENS: "int32"}
DRAW_INPUTS = {"temperature": "float32", "top_k": "int32", "top_p": "float32", "min_p": "float32", "uniform": "float32"}
"""Inputs [R] that say how each row's token is drawn, with their dtypes, in the order of the operator `sample`."""


class _Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class KernelInfo(_Struct, frozen=True, kw_only=True):
    """One compiled kernel: a cubin and its entry point. `registers` and `stack_bytes` are ptxas' own account."""

    file: str
    function: str
    threads: Threads
    shared_bytes: SharedBytes
    parameters: list[Parameter]
    registers: Index
    stack_bytes: Index


class GraphInfo(_Struct, frozen=True, kw_only=True):
    """A template, as the manifest lists it. decode: one new token per sequence; mixed: any number.

    sizes: by dimension of the step's inputs, to what a step is padded. workspace_bytes: memory for
    all that is computed on the way; graphs run one after another and share it.
    """

    file: str
    kind: Kind
    sizes: dict[str, Size]
    nodes: Count
    workspace_bytes: Count

    @property
    def tokens(self) -> int:
        return self.sizes["T"]

    @property
    def sequences(self) -> int:
        return self.sizes["S"]

    @property
    def rows(self) -> int:
        """Rows that can have logits."""
        return self.sizes["R"]


class Place(_Struct, frozen=True, kw_only=True, array_like=True):
    """Memory: an index into the template's bases, and bytes from its start."""

    base: Index
    offset: Count


class Node(_Struct, frozen=True, kw_only=True, array_like=True):
    """One launch, after all before it. Arguments that are no memory are numbers."""

    kernel: Index
    grid: Grid
    arguments: list[Place | Number | float]


class Output(_Struct, frozen=True, kw_only=True):
    """A result of the step, contiguous."""

    place: Place
    dtype: str
    shape: Shape


class GraphTemplate(_Struct, frozen=True, kw_only=True):
    """The launches of a step of one bucket, in order.

    bases: `workspace`, `input:NAME`, `weight:NAME`, `cache:GROUP.LAYER.k`, `cache:GROUP.LAYER.v`. Inputs
    are those of the program, contiguous, with the sizes of the template.

    outputs: `logits` [R, V] float32, and `tokens` [R] int32: where the temperature is 0 the lowest
    index of the largest logit (the other four are not read then), else what `uniform` in [0, 1) falls
    on after top-k (0: all), top-p (1: all) and min-p (0: all); -1 if the largest logit is infinite or
    any is NaN.
    """

    bases: list[str]
    nodes: list[Node]
    outputs: dict[str, Output]

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


def load_template(path: Path) -> GraphTemplate:
    """Read a template. Raises ArtifactError if it is damaged."""
    template = read_json(path, GraphTemplate, "graph template")
    places = [argument for node in template.nodes for argument in node.arguments if isinstance(argument, Place)]
    places += [output.place for output in template.outputs.values()]
    if any(place.base >= len(template.bases) for place in places):
        raise ArtifactError(f"{path} names memory that is not there", hint="build or copy the artifact again")
    return template
