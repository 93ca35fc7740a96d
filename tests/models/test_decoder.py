"""`Decoder` against the models that `transformers` builds from the same files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from gguf_files import write_gguf
from loading import load_decoder
from paged_runner import BLOCK_SIZE, PagedRunner
from random_checkpoints import VOCAB_SIZE, write_random_checkpoint
from reference_attention import use_reference_attention
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.kernels import ops
from engine.models.cache_groups import cache_groups
from engine.models.checkpoint import parameter_shapes
from engine.models.decoder import Decoder, constants
from engine.models.open import open_checkpoint
from engine.models.step import Step

# family, overrides: together every setting of every family, each at least twice.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("llama", {}),
    "llama2-mha-tied": ("llama", {"num_key_value_heads": 6, "tie_word_embeddings": True}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}}),
    "llama3": ("llama3", {}),
    "mistral": ("mistral", {}),
    "mistral-no-window": ("mistral", {"sliding_window": None, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen2-yarn": (
        "qwen2",
        {
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 64},
        },
    ),
    "qwen3": ("qwen3", {}),
    "qwen3-windows": ("qwen3", {"attention_bias": True, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "smollm3": ("smollm3", {}),
    "smollm3-untied": ("smollm3", {"tie_word_embeddings": False, "num_key_value_heads": 2, "no_rope_layers": [0, 1, 1]}),
    "granite_swa": ("granite_swa", {}),
    "granite_swa-tied": ("granite_swa", {"tie_word_embeddings": True, "layer_types": ["sliding_attention"] * 3, "layer_rope_theta": None}),
}


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, overrides = MODELS[request.param]
    return write_random_checkpoint(family, tmp_path_factory.mktemp(request.param) / "model", seed=7, **overrides)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small spend longer on waking a second thread than on computing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def reference_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference_attention(monkeypatch)


def random_tokens(count: int, seed: int) -> list[int]:
    return torch.randint(0, VOCAB_SIZE, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def expected_logits(directory: Path, tokens: list[int]) -> tuple[torch.Tensor, float]:
    """`transformers`' float32 logits [T, V], and how far any of them is from those of the same model in float64."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32)
    logits = model(torch.tensor([tokens])).logits[0]
    exact = model.double()(torch.tensor([tokens])).logits[0]
    return logits, float((logits - exact).abs().max())


@pytest.mark.usefixtures("reference_attention")
def test_prefill_and_decode_agree_with_transformers(checkpoint: Path) -> None:
    tokens = random_tokens(60, seed=1)
    expected, rounding = expected_logits(checkpoint, tokens)
    runner = PagedRunner(load_decoder(open_checkpoint(str(checkpoint))))
    steps = [tokens[:21], tokens[21:40], *([token] for token in tokens[40:])]
    actual = torch.cat([runner.step([(0, step)]) for step in steps])
    ends = torch.tensor([len(step) for step in steps]).cumsum(0) - 1
    error = float((actual - expected[ends]).abs().max())
    # Two float32 computations of one function differ by at most the sum of their own errors; ours may lose
    # up to three times what theirs loses, and both must be rounding, nothing else.
    assert rounding < 1e-5 * float(expected.abs().max())
    assert error <= 4 * rounding


@pytest.mark.usefixtures("reference_attention")
def test_a_ragged_step_gives_each_sequence_its_own_logits(checkpoint: Path) -> None:
    prompts = [random_tokens(count, seed=count) for count in (17, 1, 33)]
    runner = PagedRunner(load_decoder(open_checkpoint(str(checkpoint))))
    runner.step([(0, prompts[0][:9]), (2, prompts[2][:32])])
    actual = runner.step([(2, prompts[2][32:]), (0, prompts[0][9:]), (1, prompts[1])])
    for row, prompt in zip(actual, (prompts[2], prompts[0], prompts[1]), strict=True):
        expected, rounding = expected_logits(checkpoint, prompt)
        # Short sequences sample few roundings; their own scale is the floor.
        assert float((row - expected[-1]).abs().max()) <= 4 * max(rounding, 1e-6 * float(expected.abs().max()))


def test_parameters_are_those_of_the_checkpoint(checkpoint: Path) -> None:
    opened = open_checkpoint(str(checkpoint))
    shapes = parameter_shapes(opened.spec)
    assert {name: info.shape for name, info in opened.parameters.items()} == shapes
    assert set(Decoder(opened.spec).state_dict()) == {*shapes, *constants(opened.spec)}


def trace(model: Path) -> list[torch.fx.GraphModule]:
    """Runs the compiled model on fake tensors of three different sizes and returns every graph that took."""
    ops.define()
    ops.register_fakes()
    spec = open_checkpoint(str(model)).spec
    groups = [group.name for group in cache_groups(spec)]
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    with FakeTensorMode(), torch.no_grad():
        compiled = torch.compile(Decoder(spec), fullgraph=True, backend=backend)
        caches = []
        for layer in spec.layers:
            shape = (8, layer.mixer.num_kv_heads, BLOCK_SIZE, layer.mixer.head_dim)
            caches.append((torch.empty(shape), torch.empty(shape)))
        for T, S, R, B in ((11, 4, 5, 7), (34, 9, 3, 2), (4, 5, 4, 6)):
            shapes: dict[str, tuple[int, ...]] = {
                "tokens": (T,),
                "positions": (T,),
                "cu_seqlens": (S + 1,),
                "seq_lens": (S,),
                "logit_rows": (R,),
            }
            shapes |= {f"block_table.{group}": (S, B) for group in groups} | {f"slot_mapping.{group}": (T,) for group in groups}
            inputs = {name: torch.empty(shape, dtype=torch.int32) for name, shape in shapes.items()}
            for tensor in inputs.values():
                for dimension in range(tensor.dim()):
                    torch._dynamo.mark_dynamic(tensor, dimension)
            logits = compiled(Step.of(inputs), caches)
            assert logits.shape == (R, spec.vocab_size)
            assert logits.dtype == torch.float32
    return graphs


def test_traces_once_on_fake_tensors_for_any_sizes(checkpoint: Path) -> None:
    graphs = trace(checkpoint)
    assert len(graphs) == 1
    calls = [node for node in graphs[0].graph.nodes if node.target is torch.ops.engine.attention]
    assert len(calls) == open_checkpoint(str(checkpoint)).spec.num_layers


def test_traces_with_the_scaling_of_a_gguf_file(tmp_path: Path) -> None:
    directory = write_random_checkpoint("llama3", tmp_path / "model", num_hidden_layers=1)
    assert len(trace(write_gguf(directory, tmp_path / "model.gguf"))) == 1


def test_layers_of_one_kind_trace_to_the_same_operations(tmp_path: Path) -> None:
    """Nothing but the names of values may tell one layer from the next."""
    directory = write_random_checkpoint("smollm3", tmp_path / "model", num_hidden_layers=6, no_rope_layer_interval=3)
    (graph,) = trace(directory)
    layers: list[list[tuple[str, str, tuple[Any, ...]]]] = [[]]
    for node in graph.graph.nodes:
        if node.op not in ("placeholder", "output"):
            constants = tuple(each for each in node.args if isinstance(each, int | float))
            layers[-1].append((node.op, str(node.target), constants))
            if node.target is torch.ops.engine.attention:
                layers.append([])
    kinds = [str(layer) for layer in layers[1:-1]]
    # From attention to attention: layers 2 and 5 have no rotary embedding.
    assert kinds[0] == kinds[2] == kinds[3]
    assert kinds[1] == kinds[4]
    assert kinds[0] != kinds[1]
