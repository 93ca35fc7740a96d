"""The part of an artifact that only NVIDIA has: the graph template of every bucket."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...artifacts import CacheGroup, Call
from ...artifacts.graph import DRAW_INPUTS, TOKENS, GraphInfo, KernelInfo
from ...artifacts.launch_plan import load_plan
from ...artifacts.manifest import LOGITS
from ...artifacts.step_inputs import draw_inputs
from .. import segment_graph
from ..lower import Lowered
from ..partition import Partition
from .graphs import KernelTable, buckets, make_template

_TOKENS = "value:tokens"


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """What the manifest lists: kernels by number, and templates."""

    kernels: list[KernelInfo]
    graphs: list[GraphInfo]


NO_GRAPHS = Graphs(kernels=[], graphs=[])


def with_sample(parts: Partition, vocab_size: int) -> Partition:
    """The program with a last call: a token of every row, so that steps bring back 4 bytes each where nobody asks for logits."""
    numbers = [[dtype, ["d0"]] for dtype in DRAW_INPUTS.values()]
    arguments = [{"v": index} for index in range(1 + len(numbers))]
    form = {
        "inputs": [["float32", ["d0", vocab_size]], *numbers],
        "nodes": [["engine.sample.default", arguments, {}]],
        "outputs": [len(arguments)],
    }
    text = segment_graph.text(form)
    inputs = [parts.results[LOGITS], *(f"input:{name}" for name in DRAW_INPUTS)]
    call = Call(kind="segment", target=text, inputs=inputs, outputs=[_TOKENS])
    return replace(
        parts,
        inputs=[*parts.inputs, *draw_inputs()],
        calls=[*parts.calls, call],
        forms={**parts.forms, text: form},
        results={**parts.results, TOKENS: _TOKENS},
    )


def write_graphs(
    directory: Path, parts: Partition, segments: Mapping[str, Lowered], groups: Sequence[CacheGroup], max_context: int
) -> Graphs:
    """Write graphs/NAME.json for every bucket into the artifact at `directory`.

    segments: by canonical text. Raises BuildError for a bucket that the plans do not hold for.
    """
    plans = {form: load_plan(segment.file) for form, segment in segments.items()}
    table = KernelTable(plans)
    (directory / "graphs").mkdir()
    graphs = []
    for bucket in buckets(groups, max_context):
        template, workspace = make_template(parts, plans, table, bucket)
        file = f"graphs/{bucket.name}.json"
        (directory / file).write_bytes(template.encode())
        graphs.append(
            GraphInfo(
                file=file,
                kind=bucket.kind,
                sizes=bucket.sizes,
                nodes=len(template.nodes),
                workspace_bytes=workspace,
            )
        )
    return Graphs(kernels=table.kernels, graphs=graphs)
