"""CUDA graphs as data: every kernel, and for each bucket the launches of a whole step.

A template is complete but for addresses: an argument that is memory is a *base* (the workspace, a
weight, a KV cache, an input) and an offset in bytes. The runtime resolves bases to pointers and
makes the graph through the driver; nothing is captured and nothing is warmed up.
"""

import math
from pathlib import Path
from typing import Literal

import msgspec

from ..errors import ArtifactError

Kind = Literal["decode", "mixed"]
Parameter = Literal["pointer", "int32", "int64", "float32"]
WORKSPACE = "workspace"
DRAW_INPUTS = {"temperature": "float32", "top_k": "int32", "top_p": "float32", "min_p": "float32", "uniform": "float32"}
"""Inputs [sequences] that say how each sequence's token is drawn, with their dtypes, in the order of the operator `sample`."""


class _Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class KernelInfo(_Struct, frozen=True, kw_only=True):
    """One compiled kernel: a cubin and its entry point. `registers` and `stack_bytes` are ptxas' own account."""

    file: str
    function: str
    threads: int
    shared_bytes: int
    parameters: list[Parameter]
    registers: int
    stack_bytes: int


class GraphInfo(_Struct, frozen=True, kw_only=True):
    """A template, as the manifest lists it. decode: one new token per sequence; mixed: any number.

    tokens, sequences: the size to which a step is padded. workspace_bytes: memory for all that is
    computed on the way; graphs run one after another and share it.
    """

    file: str
    kind: Kind
    tokens: int
    sequences: int
    nodes: int
    workspace_bytes: int


class Place(_Struct, frozen=True, kw_only=True, array_like=True):
    """Memory: an index into the template's bases, and bytes from its start."""

    base: int
    offset: int


class Node(_Struct, frozen=True, kw_only=True, array_like=True):
    """One launch, after all before it. Arguments that are no memory are numbers."""

    kernel: int
    grid: tuple[int, int, int]
    arguments: list[Place | int | float]


class Output(_Struct, frozen=True, kw_only=True):
    """A result of the step, contiguous."""

    place: Place
    dtype: str
    shape: list[int]


class GraphTemplate(_Struct, frozen=True, kw_only=True):
    """The launches of a step of one bucket, in order.

    bases: `workspace`, `input:NAME`, `weight:NAME`, `kv:LAYER.k`, `kv:LAYER.v`. Inputs are
    contiguous, int32: tokens, positions, slots [tokens]; query_start [sequences + 1]; seq_lens,
    top_k [sequences]; block_table [sequences, table_width]. And float32: temperature, top_p, min_p,
    uniform [sequences].

    outputs: `logits` [sequences, V] float32, and `tokens` [sequences] int32: where the temperature is
    0 the lowest index of the largest logit (the other four are not read then), else what `uniform`
    in [0, 1) falls on after top-k (0: all), top-p (1: all) and min-p (0: all); -1 if the largest
    logit is infinite or any is NaN.
    """

    bases: list[str]
    table_width: int
    nodes: list[Node]
    outputs: dict[str, Output]

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


def load_template(path: Path) -> GraphTemplate:
    """Read a template. Raises ArtifactError if it is damaged."""
    try:
        template = msgspec.json.decode(path.read_bytes(), type=GraphTemplate)
    except (OSError, msgspec.MsgspecError) as error:
        raise ArtifactError(f"{path} is not a valid graph template: {error}", hint="build or copy the artifact again") from None
    places = [argument for node in template.nodes for argument in node.arguments if isinstance(argument, Place)]
    if any(not 0 <= place.base < len(template.bases) or place.offset < 0 for place in places):
        raise ArtifactError(f"{path} names memory that is not there", hint="build or copy the artifact again")
    if any(math.prod(node.grid) < 1 for node in template.nodes):
        raise ArtifactError(f"{path} has a launch without a block", hint="build or copy the artifact again")
    return template
