"""What crosses the cuts between segments."""

from tiny_specs import tiny_layer, tiny_spec
from torch import fx
from traced_graphs import trace_model

from engine.artifacts import Call
from engine.compiler.partition import Partition, partition
from engine.models.checkpoint import parameter_shapes
from engine.models.parts.attention import GateSpec
from engine.passes import pipeline


def cut(*, by_head: bool, layers: int = 2, cuts_are_segments: bool = False) -> tuple[fx.Graph, Partition]:
    """A model whose attention is gated: q, k, v and, where it fills panels, the gate are one product."""
    spec = tiny_spec(*[tiny_layer(gate=GateSpec(by_head=by_head))] * layers)
    graph = trace_model(spec, kv_dtype="float32")
    pipeline.run(graph, pipeline.pipeline(dict.fromkeys(parameter_shapes(spec), "f32")))
    return graph, partition(graph, [], cuts_are_segments=cuts_are_segments)


def after_attention(parts: Partition) -> list[Call]:
    """Segments that follow attention, of which there is one in each of two layers."""
    found = [after for before, after in zip(parts.calls, parts.calls[1:], strict=False) if before.target == "engine.attention"]
    assert len(found) == 2
    return found


def test_a_gate_computed_with_queries_is_taken_out_of_what_both_are_in() -> None:
    graph, parts = cut(by_head=False)
    graph.lint()
    for call in after_attention(parts):
        form = parts.forms[call.target]
        assert all(len(given) == 2 for given in form["inputs"]), "no strides: whole tensors"
        assert 64 + 32 + 32 + 64 in [sizes[-1] for _, sizes in form["inputs"]]
        assert any(operator == "aten.slice.Tensor" for operator, _, _ in form["nodes"])


def test_layers_with_gates_stay_one_segment() -> None:
    assert len(cut(by_head=False, layers=6)[1].forms) == len(cut(by_head=False, layers=4)[1].forms)


def test_what_lies_in_one_piece_crosses_as_it_is() -> None:
    _, parts = cut(by_head=True)
    for call in after_attention(parts):
        widths = [sizes[1:] for _, sizes in parts.forms[call.target]["inputs"]]
        assert [4] in widths, "a number for each head"
        assert not [64 + 32 + 32 + width for width in (0, 4) if [64 + 32 + 32 + width] in widths]


def test_where_segments_take_views_they_are_given_them() -> None:
    _, parts = cut(by_head=False, cuts_are_segments=True)
    strides = [given[2:] for form in parts.forms.values() for given in form["inputs"] if len(given) == 3]
    assert [[192, 1]] in strides


def test_values_that_nobody_reads_any_more_are_freed() -> None:
    """The matrix of q, k, v and gate after the segment that reads its gate; no value twice."""
    _, parts = cut(by_head=False)
    freed = [name for call in parts.calls for name in call.frees]
    assert len(set(freed)) == len(freed)
    for call in after_attention(parts):
        assert {name for name in call.inputs if name.startswith("value:")} & set(call.frees)
