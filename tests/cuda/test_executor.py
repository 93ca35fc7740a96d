"""An artifact for a GPU served from its templates, against the stand-in for the driver: values, padding, buckets, limits, leaks."""

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fake_cuda import FakeCuda, fake_cuda_installed
from fake_executor import logits_of
from gpu_steps import Chunk, step_inputs
from toy_gpu_artifact import BLOCK_SIZE, VOCAB, ToyKernels, file_info, solo, write_toy_artifact

from engine.artifacts import Manifest, load_manifest
from engine.errors import ArtifactError, DeviceError, EngineError, MismatchError, UsageError
from engine.options.runtime import RuntimeOptions
from engine.protocol import SamplingParams, Submit
from engine.runtime.batch import StepInputs
from engine.runtime.core import EngineCore
from engine.runtime.cuda.executor import CudaExecutor
from engine.runtime.loading import load_executor

NUM_BLOCKS = 48
BYTES_PER_BLOCK = 2 * 2 * BLOCK_SIZE * 4


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    with fake_cuda_installed() as fake:
        yield fake


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    write_toy_artifact(tmp_path / "artifact")
    return tmp_path / "artifact"


@pytest.fixture
def kernels(fake: FakeCuda, artifact: Path) -> ToyKernels:
    return ToyKernels(fake, artifact, load_manifest(artifact), num_blocks=NUM_BLOCKS)


def load(
    artifact: Path,
    *,
    kv_memory: int = NUM_BLOCKS * BYTES_PER_BLOCK,
    max_num_seqs: int = 8,
    max_batch_tokens: int = 64,
    threads: int | None = None,
) -> CudaExecutor:
    executor = load_executor(artifact, kv_memory=kv_memory, threads=threads, max_num_seqs=max_num_seqs, max_batch_tokens=max_batch_tokens)
    assert isinstance(executor, CudaExecutor)
    return executor


@pytest.fixture
def executor(artifact: Path, kernels: ToyKernels) -> Iterator[CudaExecutor]:
    executor = load(artifact)
    executor.graphs.wait()
    kernels.steps.clear()
    yield executor
    executor.close()


def batch(*lengths: tuple[int, int], seed: int = 0) -> tuple[StepInputs, list[list[int]]]:
    """A step for sequences with (new tokens, tokens in all), each in blocks of its own, in an order of their own."""
    random = np.random.default_rng(seed)
    histories = [random.integers(0, VOCAB, total).tolist() for _, total in lengths]
    free = iter(random.permutation(NUM_BLOCKS).tolist())
    blocks = [[next(free) for _ in range(-(-total // BLOCK_SIZE))] for _, total in lengths]
    chunks = [Chunk(history, total - new, held) for history, (new, total), held in zip(histories, lengths, blocks, strict=True)]
    inputs = step_inputs(chunks, BLOCK_SIZE)
    return inputs, histories


def test_a_prompt_of_every_length(executor: CudaExecutor, kernels: ToyKernels) -> None:
    for count in range(1, 65):
        inputs, (history,) = batch((count, count), seed=count)
        logits = executor.step(inputs)
        expected = logits_of(history, VOCAB)
        assert np.array_equal(logits[0], expected)
        assert executor.choose(logits, [0]) == [int(expected.argmax())]
    assert kernels.steps == [("decode", 1, 1), *[("mixed", 16, 4)] * 15, *[("mixed", 32, 8)] * 16, *[("mixed", 64, 8)] * 32]


@pytest.mark.parametrize(
    ("lengths", "bucket"),
    [
        ([(3, 3)] * 1, ("mixed", 16, 4)),
        ([(3, 3), (1, 1)], ("mixed", 16, 4)),
        ([(3, 3), (5, 5), (1, 1), (7, 7)], ("mixed", 16, 4)),
        ([(1, 1)] * 4 + [(2, 2)], ("mixed", 32, 8)),
        ([(17, 17), (13, 13), (11, 11)], ("mixed", 64, 8)),
        ([(1, 1)] * 2, ("decode", 2, 2)),
        ([(1, 1)] * 3, ("decode", 4, 4)),
        ([(1, 1)] * 5, ("decode", 8, 8)),
        ([(1, 1)] * 8, ("decode", 8, 8)),
    ],
)
def test_a_step_takes_the_smallest_graph_that_it_fits(
    executor: CudaExecutor, kernels: ToyKernels, lengths: list[tuple[int, int]], bucket: tuple[str, int, int]
) -> None:
    inputs, histories = batch(*lengths)
    logits = executor.step(inputs)
    expected = [logits_of(history, VOCAB) for history in histories]
    assert kernels.steps == [bucket]
    assert [np.array_equal(logits[row], values) for row, values in enumerate(expected)] == [True] * len(lengths)
    rows = list(reversed(range(len(lengths))))
    assert executor.choose(logits, rows) == [int(expected[row].argmax()) for row in rows]


def test_rows_do_not_know_what_is_beside_them(executor: CudaExecutor) -> None:
    """Steps of all sizes one after another leave their inputs behind; the padding of the next must cover them."""
    random = np.random.default_rng(3)
    for seed in range(60):
        count = int(random.integers(1, 9))
        lengths = [(new, new) for new in random.integers(1, 64 // count // 2 + 1, count).tolist()]
        inputs, histories = batch(*lengths, seed=seed)
        logits = executor.step(inputs)
        for row, history in enumerate(histories):
            assert np.array_equal(logits[row], logits_of(history, VOCAB))


def test_logits_are_gone_with_the_next_step(executor: CudaExecutor) -> None:
    inputs, _ = batch((3, 3))
    logits = executor.step(inputs)
    kept = logits[0]
    copy = kept.copy()
    with pytest.raises(IndexError):
        logits[1]
    executor.step(batch((4, 4), seed=1)[0])
    assert np.array_equal(kept, copy)
    with pytest.raises(AssertionError, match="the next step"):
        logits[0]


def test_an_output_that_is_not_finite_is_no_token(executor: CudaExecutor, kernels: ToyKernels) -> None:
    inputs, histories = batch((3, 3), (2, 2))
    kernels.poison = histories[0][1]
    assert kernels.poison not in histories[1]
    assert executor.choose(executor.step(inputs), [0, 1]) == [-1, int(logits_of(histories[1], VOCAB).argmax())]


def test_graphs_come_small_first_and_the_rest_beside_serving(artifact: Path, kernels: ToyKernels) -> None:
    phases: list[str] = []
    executor = CudaExecutor.load(
        artifact,
        load_manifest(artifact),
        max_num_seqs=3,
        max_batch_tokens=40,
        kv_memory=1 << 14,
        on_phase=lambda name, _: phases.append(name),
    )
    graphs = executor.manifest.graphs
    executor.graphs.wait()
    made = {(graphs[number].kind, graphs[number].tokens) for number in executor.graphs.made}
    assert made == {("decode", 1), ("decode", 2), ("decode", 4), ("mixed", 16), ("mixed", 32), ("mixed", 64)}
    assert phases == ["open_device", "check", "load_weights", "allocate_kv", "load_code", "probe"]
    assert kernels.steps == [("mixed", 16, 4)]
    executor.close()


def test_a_graph_that_is_not_there_yet_is_made(artifact: Path, kernels: ToyKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.runtime.cuda.step_graphs.StepGraphs.make_behind", lambda graphs, numbers: None)
    executor = load(artifact)
    kinds = [executor.manifest.graphs[number].kind for number in executor.graphs.made]
    assert kinds.count("mixed") == 1
    inputs, (history,) = batch((50, 50))
    assert np.array_equal(executor.step(inputs)[0], logits_of(history, VOCAB))
    assert kernels.steps[-1] == ("mixed", 64, 8)
    executor.close()


def test_what_fails_in_the_background_fails_the_next_step(artifact: Path, kernels: ToyKernels, fake: FakeCuda) -> None:
    fake.fail("cuGraphInstantiateWithFlags", 2, after=5)  # four decode graphs, the first mixed one, then this
    executor = load(artifact)
    executor.graphs.wait()
    with pytest.raises(DeviceError, match=r"cuGraphInstantiateWithFlags failed: CUDA_ERROR_OUT_OF_MEMORY"):
        executor.step(batch((2, 2))[0])
    executor.close()


def test_a_long_prompt_in_the_probe_needs_no_flags(artifact: Path, kernels: ToyKernels) -> None:
    executor = load_executor(artifact, kv_memory=1 << 14)
    assert isinstance(executor, CudaExecutor)
    executor.close()


def test_the_kv_cache_takes_nine_tenths_of_what_is_left(artifact: Path, kernels: ToyKernels, fake: FakeCuda) -> None:
    fake.library.fake_set_total_memory(100_000)
    executor = CudaExecutor.load(artifact, load_manifest(artifact), max_num_seqs=1, max_batch_tokens=16)
    taken = executor.pools["full"] * BYTES_PER_BLOCK
    free = executor.device.memory()[0]
    assert 0.85 * (free + taken) < taken <= 0.9 * (free + taken) + 4 * 256  # four caches, each aligned
    executor.close()


def requests() -> list[Submit]:
    random = np.random.default_rng(0)
    submits = []
    for index in range(24):
        temperature = float(index % 2)
        params = SamplingParams(max_tokens=int(random.integers(1, 20)), temperature=temperature, seed=index, top_p=0.9)
        prompt = random.integers(0, VOCAB, int(random.integers(1, 30))).tolist()
        submits.append(Submit(f"r{index}", prompt, params))
    return submits


@pytest.mark.parametrize("num_blocks", [NUM_BLOCKS, 20])
def test_serving_gives_every_request_what_it_gets_alone(artifact: Path, fake: FakeCuda, num_blocks: int) -> None:
    """Continuous batching, chunked prefill, prefix reuse and (with few blocks) preemption, through the whole core."""
    kernels = ToyKernels(fake, artifact, load_manifest(artifact), num_blocks=num_blocks)
    executor = load(artifact, kv_memory=num_blocks * BYTES_PER_BLOCK)
    core = EngineCore(executor, RuntimeOptions(max_num_seqs=8, max_batch_tokens=40))
    tokens: dict[str, list[int]] = {submit.id: [] for submit in requests()}
    for submit in requests():
        core.submit(submit)
    while core.has_work():
        for output in core.step().outputs:
            assert output.error is None
            tokens[output.id] += output.tokens
        core.check()
    assert {kind for kind, _, _ in kernels.steps} == {"decode", "mixed"}
    assert tokens == {submit.id: solo(submit.prompt, submit.params, capacity=num_blocks * BLOCK_SIZE) for submit in requests()}
    executor.close()


def edit(artifact: Path, **changes: object) -> Manifest:
    manifest = msgspec.structs.replace(load_manifest(artifact), **changes)
    (artifact / "manifest.json").write_bytes(manifest.encode())
    return manifest


def refused(artifact: Path, fake: FakeCuda, kind: type[EngineError], **options: int) -> str:
    """What a load says that must fail, and leave nothing behind."""
    with pytest.raises(kind) as caught:
        load(artifact, **options)
    assert type(caught.value) is kind
    assert fake.alive() == {}
    return str(caught.value)


def test_no_driver(artifact: Path, fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_LIBCUDA", str(artifact / "nothing.so"))
    text = refused(artifact, fake, MismatchError)
    lines = [line.split() for line in text.splitlines()]
    assert ["field", "artifact", "this", "machine"] in lines
    assert ["target", "sm90", "no", "NVIDIA", "GPU"] in lines
    assert "there is no NVIDIA driver on this machine" in text
    assert "hint: install the NVIDIA driver" in text


def test_no_gpu(artifact: Path, fake: FakeCuda) -> None:
    fake.library.fake_set_device_count(0)
    text = refused(artifact, fake, MismatchError)
    assert "no NVIDIA GPU" in text
    assert "CUDA_ERROR_NO_DEVICE" in text
    assert "hint: look whether `nvidia-smi` lists a GPU" in text


def test_another_gpu(artifact: Path, fake: FakeCuda) -> None:
    fake.library.fake_set_capability(80)
    assert ["target", "sm90", "sm80"] in [line.split() for line in refused(artifact, fake, MismatchError).splitlines()]


def test_an_old_driver(artifact: Path, fake: FakeCuda) -> None:
    fake.library.fake_set_version(11040)
    assert "the NVIDIA driver is too old: it is for CUDA 11.4, and 12.0 is needed" in refused(artifact, fake, MismatchError)


@pytest.mark.parametrize(
    ("total", "words", "hint"),
    [
        (300, "the weights need 512 bytes of the GPU's memory; of its 300 bytes 300 are free", "free memory of the GPU"),
        (1_700, "the inputs of a step need", "--max-num-seqs"),
        (5_000, "the block tables need", "--max-num-seqs"),
        (6_300, "the activations of a step need", "--max-batch-tokens"),
        (6_736, "too little for the KV cache: the least is 64 bytes for 4 tokens", "--max-batch-tokens"),
    ],
)
def test_too_little_memory(artifact: Path, kernels: ToyKernels, fake: FakeCuda, total: int, words: str, hint: str) -> None:
    fake.library.fake_set_total_memory(total)
    with pytest.raises(DeviceError) as caught:
        CudaExecutor.load(artifact, load_manifest(artifact), max_num_seqs=8, max_batch_tokens=64)
    assert words in caught.value.message
    assert hint in (caught.value.hint or "")
    assert fake.alive() == {}


def test_a_cache_that_does_not_fit(artifact: Path, kernels: ToyKernels, fake: FakeCuda) -> None:
    text = refused(artifact, fake, DeviceError, kv_memory=1 << 40)
    assert "the KV cache's blocks need 34,359,738,368 bytes of the GPU's memory; of its 8,589,934,592 bytes" in text
    assert "hint: give less with --kv-memory" in text
    assert "--kv-memory 63 bytes holds too little" in refused(artifact, fake, UsageError, kv_memory=63)


@pytest.mark.parametrize("options", [{"max_num_seqs": 9}, {"max_batch_tokens": 65}])
def test_limits_that_no_graph_has(artifact: Path, fake: FakeCuda, options: dict[str, int]) -> None:
    assert "hint: its largest is for 64 and 8: lower --max-batch-tokens or --max-num-seqs" in refused(artifact, fake, UsageError, **options)


def test_cpu_threads_make_no_sense(artifact: Path, fake: FakeCuda) -> None:
    assert "this artifact runs on a GPU" in refused(artifact, fake, UsageError, threads=2)


def test_a_damaged_file(artifact: Path, kernels: ToyKernels, fake: FakeCuda) -> None:
    cubin = artifact / "kernels" / "embed.cubin"
    cubin.write_bytes(cubin.read_bytes().replace(b"embed", b"embad"))
    assert "embed.cubin is damaged" in refused(artifact, fake, ArtifactError)


def rewrite(artifact: Path, file: str, data: bytes) -> None:
    """Replace a file as if it had been built so."""
    (artifact / file).write_bytes(data)
    edit(artifact, files={**load_manifest(artifact).files, file: file_info(artifact / file)})


def test_a_cubin_that_the_driver_does_not_take(artifact: Path, fake: FakeCuda) -> None:
    rewrite(artifact, "kernels/embed.cubin", b"no code at all" * 10)
    text = refused(artifact, fake, DeviceError)
    assert "the kernel embed of kernels/embed.cubin: cuModuleLoadData failed: CUDA_ERROR_INVALID_IMAGE" in text
    assert "hint: the artifact's code is damaged, or newer than the driver" in text


def test_a_cubin_of_another_gpu(artifact: Path, kernels: ToyKernels, fake: FakeCuda) -> None:
    fake.fail("cuModuleLoadData", 209)
    assert "hint: the artifact's code is for another kind of GPU" in refused(artifact, fake, DeviceError)


def test_wrong_weights_fail_the_probe(artifact: Path, fake: FakeCuda) -> None:
    ToyKernels(fake, artifact, load_manifest(artifact), num_blocks=NUM_BLOCKS)
    file = artifact / "weights" / "b.safetensors"
    data = bytearray(file.read_bytes())
    data[-4 * VOCAB :] = (3 * np.roll(np.arange(VOCAB, dtype=np.float32), 1) + 1).tobytes()
    rewrite(artifact, "weights/b.safetensors", bytes(data))
    assert "the golden probe failed" in refused(artifact, fake, ArtifactError)


def test_a_step_that_fails_says_so(executor: CudaExecutor, fake: FakeCuda) -> None:
    fake.fail("cuGraphLaunch", 719)
    with pytest.raises(DeviceError, match=r"cuGraphLaunch failed: CUDA_ERROR_LAUNCH_FAILED") as caught:
        executor.step(batch((2, 2))[0])
    assert caught.value.exit_code == 10
    assert math.isfinite(executor.step(batch((2, 2))[0])[0].max())


def test_every_failing_call_of_a_load_is_told_and_leaves_nothing(artifact: Path, kernels: ToyKernels, fake: FakeCuda) -> None:
    for function in (
        "cuDevicePrimaryCtxRetain",
        "cuCtxSetCurrent",
        "cuStreamCreate",
        "cuMemHostAlloc",
        "cuMemcpyHtoDAsync_v2",
        "cuEventCreate",
        "cuEventRecord",
        "cuEventSynchronize",
        "cuMemsetD8Async",
        "cuModuleGetFunction",
        "cuFuncSetAttribute",
        "cuGraphCreate",
        "cuGraphAddKernelNode_v2",
        "cuGraphInstantiateWithFlags",
        "cuMemcpy2DAsync_v2",
        "cuMemcpyDtoHAsync_v2",
        "cuStreamSynchronize",
    ):
        fake.fail(function, 400)
        text = refused(artifact, fake, DeviceError)
        assert f'{function} failed: CUDA_ERROR_INVALID_HANDLE, "words of the stand-in"' in text
