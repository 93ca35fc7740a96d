"""What a step reads from memory, of a mixture of experts with latent attention: counted from what a build writes of one."""

from pathlib import Path

import msgspec
import pytest
from families import GENERIC, write_tiny_checkpoint
from rich_artifact import write_rich_artifact

from engine.artifacts import ExpertsInfo, Manifest, parse_target
from engine.bench.step_bytes import kv_bytes_read, share_chosen, weight_bytes_per_step
from engine.compiler.add_weights import planned
from engine.compiler.pack import leave_out, packed_bytes
from engine.compiler.progress import Reporter
from engine.compiler.step_program import Wanted, make_program
from engine.compiler.target_kind import kind_of
from engine.compiler.weight_formats import choose_formats
from engine.compiler.weights_plan import PackedWeight
from engine.models.open import open_checkpoint

LATENT = GENERIC["kv_lora_rank"] + GENERIC["qk_rope_head_dim"]
LAYERS = GENERIC["num_hidden_layers"]


def wanted(directory: Path, *, kv_dtype: str = "float16", without: tuple[str, ...] = ()) -> Wanted:
    """Of a tiny DeepSeek V3: 4 experts, of which 2 are chosen, in all layers but the first, and a shared one."""
    checkpoint = open_checkpoint(str(write_tiny_checkpoint("deepseek_v3", directory / "model")), weights=False)
    kind = kind_of(parse_target("cpu-x86-64-v3"))
    return Wanted.of(checkpoint, choose_formats(checkpoint, "int4", kind.layout), kv_dtype=kv_dtype, kind=kind, disable_pass=without)


def built(of: Wanted, directory: Path) -> tuple[Manifest, list[PackedWeight]]:
    """What an artifact's manifest says of the weights and of a step, and the plan that this comes from."""
    program = make_program(of, None, Reporter(quiet=True))
    step = program.parts.program({form: str(index) for index, form in enumerate(program.parts.forms)})
    manifest = write_rich_artifact(directory / "artifact")
    return msgspec.structs.replace(manifest, weights=leave_out(program.weights).index, programs={"step": step}), program.weights


def test_of_experts_those_count_that_are_chosen(tmp_path: Path) -> None:
    manifest, plan = built(wanted(tmp_path, without=("join_shared_expert",)), tmp_path)
    sizes = {weight.name: packed_bytes(weight) for weight in plan if weight.name != "embed.weight"}
    experts = sum(size for name, size in sizes.items() if ".mlp.experts." in name)
    others = sum(sizes.values()) - experts
    assert min(experts, others) > 0
    assert any(".mlp.shared." in name for name in sizes)
    # 4 experts; 2 tokens leave out one with probability 1/4, so 3 of 4 are read.
    assert [weight_bytes_per_step(manifest, tokens) - others for tokens in (1, 2, 64)] == [experts // 2, experts * 3 // 4, experts]
    assert planned(manifest) == plan


def test_one_that_every_token_shares_is_always_read(tmp_path: Path) -> None:
    manifest, plan = built(wanted(tmp_path), tmp_path)
    five = sum(packed_bytes(weight) for weight in plan if weight.experts == ExpertsInfo(count=4, chosen=2, shared=1))
    others = sum(packed_bytes(weight) for weight in plan if weight.experts is None and weight.name != "embed.weight")
    assert five > 0
    assert [weight_bytes_per_step(manifest, tokens) - others for tokens in (1, 2, 64)] == [five * 3 // 5, five * 4 // 5, five]
    assert planned(manifest) == plan


def test_where_every_expert_computes_every_token_all_are_read(tmp_path: Path) -> None:
    manifest, plan = built(wanted(tmp_path, without=("group_experts",)), tmp_path)
    assert weight_bytes_per_step(manifest, 1) == sum(packed_bytes(weight) for weight in plan if weight.name != "embed.weight")


@pytest.mark.parametrize(("kv_dtype", "bytes_per_token"), [("float32", 4 * LATENT), ("float16", 2 * LATENT), ("int8", LATENT + 4)])
def test_a_token_reads_one_latent_of_every_token_and_layer(kv_dtype: str, bytes_per_token: int, tmp_path: Path) -> None:
    groups = wanted(tmp_path, kv_dtype=kv_dtype).groups
    manifest = msgspec.structs.replace(write_rich_artifact(tmp_path / "artifact"), caches=groups)
    assert [kv_bytes_read(manifest, context) for context in (1, 8000)] == [context * LAYERS * bytes_per_token for context in (1, 8000)]


def test_the_share_of_a_large_mixture() -> None:
    """128 experts, 8 of them a token's: 8 of one token, about 52 of 8 tokens, all of many."""
    experts = ExpertsInfo(count=128, chosen=8)
    assert [round(128 * share_chosen(experts, tokens), 1) for tokens in (0, 1, 8, 32, 1000)] == [0.0, 8.0, 51.6, 111.8, 128.0]
    with_one = ExpertsInfo(count=128, chosen=8, shared=1)
    assert [round(129 * share_chosen(with_one, tokens), 1) for tokens in (0, 1, 8, 1000)] == [0.0, 9.0, 52.6, 129.0]
