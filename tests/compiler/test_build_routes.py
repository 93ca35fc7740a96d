"""`engine build --capture-routes`: whole artifacts that tell which experts tokens chose, the same ones at any load."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import GENERIC, write_tiny_checkpoint
from loading import load_decoder
from paged_runner import PagedRunner

from engine.artifacts import RoutesInfo, load_manifest
from engine.cli import main
from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.errors import BuildError, RequestError
from engine.kernels.attention.reference import attention
from engine.models.open import open_checkpoint
from engine.models.parts.moe import MoE
from engine.options.runtime import RuntimeOptions
from engine.protocol import SamplingParams, Submit
from engine.runtime.core import EngineCore
from engine.runtime.executor import Executor
from engine.server.llm import LLM, Params
from engine.server.text.completion import Completion

EXPERTS, CHOSEN = 8, 3
GENERATOR = torch.Generator().manual_seed(4)
PROMPTS = [torch.randint(3, GENERIC["vocab_size"], (length,), generator=GENERATOR).tolist() for length in (60, 1, 33, 90, 7, 21)]
ROUTED = Params(temperature=0, max_tokens=24, logprobs=2, ignore_eos=True, return_routed_experts=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("routes") / "model"
    return write_tiny_checkpoint("qwen3_moe", directory, num_experts=EXPERTS, num_experts_per_tok=CHOSEN)


@pytest.fixture(scope="module")
def artifacts(checkpoint: Path, store: Path) -> tuple[Path, Path]:
    """One that tells, and one that does not."""
    places = checkpoint.with_name("told"), checkpoint.with_name("untold")
    for place in places:
        build(BuildOptions(model=str(checkpoint), output=place, store=store, capture_routes=place.name == "told"))
    return places


@pytest.fixture(scope="module")
def alone(artifacts: tuple[Path, Path]) -> list[Completion]:
    """The answer to each prompt by itself."""
    with LLM(artifacts[0]) as llm:
        return [llm.generate([prompt], ROUTED)[0] for prompt in PROMPTS]


def said(completions: list[Completion]) -> list[tuple[Any, ...]]:
    return [(completion.tokens, completion.logprobs, completion.routed_experts) for completion in completions]


def eager_tables(checkpoint: Path, tokens: list[int]) -> list[torch.Tensor]:
    """The table of weights [T, E] that each plain router makes for these tokens."""
    decoder = load_decoder(open_checkpoint(str(checkpoint)))
    tables: list[torch.Tensor] = []
    for layer in decoder.layers:
        layer.attention.attend = attention  # type: ignore[union-attr]
        assert isinstance(layer.mlp, MoE)
        layer.mlp.router.register_forward_hook(lambda router, given, table: tables.append(table))
    PagedRunner(decoder, blocks=10, blocks_per_sequence=10).step([(0, tokens)])
    return tables


def test_they_are_those_of_the_plain_model(checkpoint: Path, alone: list[Completion]) -> None:
    for prompt, completion in zip(PROMPTS, alone, strict=True):
        tokens = [*prompt, *completion.tokens[:-1]]
        told = torch.tensor(completion.routed_experts)
        tables = eager_tables(checkpoint, tokens)
        assert told.shape == (len(tokens), len(tables), CHOSEN)
        for layer, table in enumerate(tables):
            weights = table.sort(dim=1, descending=True, stable=True)
            assert torch.equal(told[:, layer], weights.indices[:, :CHOSEN])


def test_they_are_the_same_at_any_load(artifacts: tuple[Path, Path], alone: list[Completion]) -> None:
    """With others; in chunks of 8 tokens; with one thread; each twice, so that prompts were computed before."""
    expected = said(alone)
    loads: list[dict[str, Any]] = [{}, {"max_num_seqs": 8, "max_batch_tokens": 8}, {"threads": 1}]
    for limits in loads:
        with LLM(artifacts[0], **limits) as llm:
            assert said(llm.generate(PROMPTS, ROUTED)) == expected
            assert said(llm.generate(PROMPTS, ROUTED)) == expected


def in_process(executor: Executor, submits: list[Submit]) -> tuple[dict[str, list[bytes]], int]:
    """What each request is told, and how often one had to give way."""
    core = EngineCore(executor, RuntimeOptions(max_num_seqs=6, max_batch_tokens=64))
    told: dict[str, list[bytes]] = {submit.id: [] for submit in submits}
    preemptions = 0
    for submit in submits:
        core.submit(submit)
    while core.has_work():
        done = core.step()
        preemptions = done.stats.preemptions_total
        for output in done.outputs:
            assert output.error is None
            told[output.id] += output.routed_experts
    return told, preemptions


def test_they_are_the_same_where_some_have_to_give_way(artifacts: tuple[Path, Path]) -> None:
    (group,) = load_manifest(artifacts[0]).caches
    executor = Executor.load(artifacts[0], kv_memory=6 * group.bytes_per_block)
    params = SamplingParams(max_tokens=90, temperature=0.0, ignore_eos=True, routed_from=0)
    submits = [Submit(str(index), prompt[:30], params) for index, prompt in enumerate(PROMPTS) if len(prompt) > 30]
    together, preemptions = in_process(executor, submits)
    assert preemptions > 0
    for submit in submits:
        assert len(together[submit.id]) == 30 + 89
        assert in_process(executor, [submit]) == ({submit.id: together[submit.id]}, 0)


def test_the_first_tokens_may_be_found_in_the_cache(artifacts: tuple[Path, Path], alone: list[Completion]) -> None:
    start = 70
    later = Params(temperature=0, max_tokens=24, ignore_eos=True, return_routed_experts=True, routed_experts_start_len=start)
    longest = max(range(len(PROMPTS)), key=lambda index: len(PROMPTS[index]))
    with LLM(artifacts[0]) as llm:
        llm.generate([PROMPTS[longest]], ROUTED)
        (completion,) = llm.generate([PROMPTS[longest]], later)
    assert completion.cached_tokens == 64
    assert completion.routed_experts == (alone[longest].routed_experts or [])[start:]


def test_no_other_bit_changes(artifacts: tuple[Path, Path], alone: list[Completion]) -> None:
    told, untold = map(load_manifest, artifacts)
    assert told.probe == untold.probe
    assert told.routes == RoutesInfo(layers=list(range(GENERIC["num_hidden_layers"])), experts=EXPERTS, chosen=CHOSEN)
    assert untold.routes is None
    assert told.kernel_library == untold.kernel_library
    assert told.memory.activations["T"] > untold.memory.activations["T"], "what routers choose is kept until the step ends"
    plain = Params(temperature=0, max_tokens=24, logprobs=2, ignore_eos=True)
    for artifact in artifacts:
        with LLM(artifact) as llm:
            found = llm.generate(PROMPTS, plain)
        assert [(each.tokens, each.logprobs) for each in found] == [(each.tokens, each.logprobs) for each in alone]
        assert {each.routed_experts for each in found} == {None}


def test_an_artifact_without_them_refuses(artifacts: tuple[Path, Path]) -> None:
    with LLM(artifacts[1]) as llm, pytest.raises(RequestError, match="does not tell which experts") as refused:
        llm.generate(PROMPTS[:1], ROUTED)
    assert "--capture-routes" in refused.value.hint


def test_inspect_shows_where_a_text_goes(artifacts: tuple[Path, Path], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    text = "the quick brown fox"
    assert main(["inspect", str(artifacts[0]), "--routes", text, "--json"]) == 0
    shown = json.loads(capfdbinary.readouterr().out)
    assert len(shown["layers"]) == GENERIC["num_hidden_layers"]
    assert {sum(layer["choices"]) for layer in shown["layers"]} == {shown["tokens"] * CHOSEN}
    assert main(["inspect", str(artifacts[0])]) == 0
    assert f"the {CHOSEN} of {EXPERTS} experts that each token chose" in capfdbinary.readouterr().out.decode()


REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no experts": ("llama", {}, "for models that generate text by experts"),
    "a GPU": ("qwen3_moe", {"target": "sm90"}, "for CPU targets"),
    "routers that no pass finds": ("qwen3_moe", {"disable_pass": ["route_experts"]}, "0 have a router whose choices can be captured"),
}


@pytest.mark.parametrize(("family", "options", "words"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_captured_is_refused(family: str, options: dict[str, Any], words: str, store: Path, tmp_path: Path) -> None:
    model = write_tiny_checkpoint(family, tmp_path / "model")
    with pytest.raises(BuildError, match=words):
        build(BuildOptions(model=str(model), output=tmp_path / "artifact", store=store, capture_routes=True, **options))
    assert not (tmp_path / "artifact").exists()
