"""What the runtime takes of the machine by default, from files as the kernel writes them."""

from pathlib import Path

import msgspec
import pytest
from fake_executor import tiny_manifest

from engine.cpus import usable_cpus
from engine.errors import ArtifactError, UsageError
from engine.options.runtime import RuntimeOptions
from engine.runtime.capacity import cgroups, machine
from engine.runtime.capacity.kv_memory import default_kv_memory, default_resident_blocks
from engine.runtime.text_settings import read_eos_token_ids


def test_this_machine_has_cores_and_memory() -> None:
    assert 1 <= machine.default_threads() <= len(usable_cpus())
    assert machine.free_memory() > 0


def test_kv_memory_is_what_is_needed_within_half_of_what_is_free() -> None:
    manifest = tiny_manifest(max_context=40, block_size=16)  # 128 bytes a block

    def kv(free: int, reserved: int = 0) -> int:
        memory = msgspec.structs.replace(manifest.memory, weight_bytes=reserved)
        return default_kv_memory(msgspec.structs.replace(manifest, memory=memory), max_num_seqs=2, max_batch_tokens=8, free=free)

    assert kv(10_000) == 2 * 3 * 128
    assert kv(1_000) == 500
    assert kv(1_000, reserved=400) == 300
    with pytest.raises(UsageError, match="less than one block"):
        kv(250)
    with pytest.raises(UsageError, match="less than one block"):
        kv(1_000, reserved=2_000)


def test_workers_of_one_server_share_memory_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = tiny_manifest(max_context=40, block_size=16)
    manifest = msgspec.structs.replace(manifest, memory=msgspec.structs.replace(manifest.memory, weight_bytes=400))
    monkeypatch.setattr(cgroups, "cpu_quota", lambda root: 3.0)
    monkeypatch.setattr(machine, "cores_of", lambda cpus: [[0], [1], [2], [3]])
    alone = default_kv_memory(manifest, max_num_seqs=2, max_batch_tokens=8, free=1_000)
    assert machine.default_threads() == 3
    monkeypatch.setattr(machine._Share, "workers", 2)
    assert default_kv_memory(manifest, max_num_seqs=2, max_batch_tokens=8, free=1_000) == alone // 2 == 150, "the weights are there once"
    assert machine.default_threads() == 2


def test_memory_for_remembering_is_one_context_or_a_quarter_of_all() -> None:
    full, window = tiny_manifest(block_size=16, windows=(0, 40)).caches
    assert default_resident_blocks(full, 1000, max_context=40) == 3
    assert default_resident_blocks(full, 10, max_context=4000) == 2
    assert default_resident_blocks(full, 1, max_context=4000) == 0
    assert default_resident_blocks(window, 2000, max_context=4000) == 250


def test_options_that_cannot_work() -> None:
    with pytest.raises(UsageError, match="threads is 0"):
        RuntimeOptions(threads=0)
    with pytest.raises(UsageError, match="max_batch_tokens"):
        RuntimeOptions(max_num_seqs=9, max_batch_tokens=8)


def test_end_of_text_tokens_are_read_from_the_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"text\.json"):
        read_eos_token_ids(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    path = tmp_path / "tokenizer/text.json"
    path.write_text('{"bos_token_id": null, "eos_token_ids": [2, 7], "add_bos": true}')
    assert read_eos_token_ids(tmp_path) == [2, 7]
    path.write_text('{"eos_token_ids": "2"}')
    with pytest.raises(ArtifactError):
        read_eos_token_ids(tmp_path)
