"""A worker over the stand-in for the driver: its threads, what it imports, and how long code and templates take to load."""

import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifact_stand_in import byte_level_tokenizer, with_tokenizer
from checkout import ROOT
from fake_cuda import FakeCuda, fake_cuda_installed
from large_gpu_artifact import DECODE, LAUNCHES, LAYERS, MIXED, write_large_artifact
from toy_gpu_artifact import ToyKernels, solo, write_toy_artifact
from toy_gpu_worker import COMMAND

from engine.errors import MismatchError
from engine.options.runtime import RuntimeOptions
from engine.protocol import HEADER_BYTES, Drain, SamplingParams, StepDone, Submit, body_length, decode_to_server, encode
from engine.runtime.core import EngineCore
from engine.runtime.cuda.executor import CudaExecutor
from engine.runtime.loading import load_executor
from engine.runtime.process.channel import Channel
from engine.runtime.process.serving_loop import serve
from engine.server.llm import LLM, Params

NUM_BLOCKS = 64


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    with fake_cuda_installed() as fake:
        yield fake


def test_the_workers_loop_computes_in_a_thread_of_its_own(fake: FakeCuda, tmp_path: Path) -> None:
    manifest = write_toy_artifact(tmp_path / "toy")
    kernels = ToyKernels(fake, tmp_path / "toy", manifest, num_blocks=NUM_BLOCKS)
    submits = [
        Submit(f"{index}", [index + 1] * (index % 5 + 1), SamplingParams(max_tokens=12, temperature=index % 2, seed=index))
        for index in range(12)
    ]
    executor = load_executor(
        tmp_path / "toy", kv_memory=NUM_BLOCKS * manifest.caches[0].bytes_per_block, max_num_seqs=8, max_batch_tokens=32
    )
    assert isinstance(executor, CudaExecutor)
    ours, theirs = socket.socketpair()
    core = EngineCore(executor, RuntimeOptions(max_num_seqs=8, max_batch_tokens=32))
    thread = threading.Thread(target=serve, args=(core, Channel(theirs), tmp_path / "toy"))
    tokens: dict[str, list[int]] = {submit.id: [] for submit in submits}
    with ours, theirs, ours.makefile("rb") as stream:
        thread.start()
        ours.sendall(b"".join([*map(encode, submits), encode(Drain())]))
        thread.join()
        theirs.close()
        while header := stream.read(HEADER_BYTES):
            message = decode_to_server(stream.read(body_length(header)))
            for output in message.outputs if isinstance(message, StepDone) else []:
                tokens[output.id] += output.tokens
    assert tokens == {submit.id: solo(submit.prompt, submit.params) for submit in submits}
    assert {kind for kind, _, _ in kernels.steps} == {"decode", "mixed"}
    executor.close()


def test_serving_a_gpu_imports_no_torch_no_triton_and_no_cpu_code(tmp_path: Path) -> None:
    write_toy_artifact(tmp_path / "toy")
    code = f"""
import sys
from pathlib import Path
sys.path.append({str(ROOT / "tests" / "support")!r})
from engine.runtime.process import import_guard
import_guard.install()
from fake_cuda import fake_cuda_installed
from toy_gpu_artifact import ToyKernels
from engine.artifacts import load_manifest
from engine.protocol import SamplingParams, Submit
from engine.runtime.core import EngineCore
from engine.options.runtime import RuntimeOptions

directory = Path({str(tmp_path / "toy")!r})
with fake_cuda_installed() as fake:
    manifest = load_manifest(directory)
    ToyKernels(fake, directory, manifest, num_blocks=64)
    options = RuntimeOptions(max_num_seqs=4, max_batch_tokens=32, kv_memory=64 * manifest.caches[0].bytes_per_block)
    core = EngineCore.load(directory, options, on_phase=lambda name, seconds: None)
    for index in range(4):
        core.submit(Submit(str(index), [1, 2, index], SamplingParams(max_tokens=9, temperature=index % 2, logprobs=index)))
    while core.has_work():
        stats = core.step().stats
    core._executor.close()
cpu = [name for name in sys.modules if name in ("engine.runtime.executor", "engine.kernels.native", "engine.runtime.native_program")]
print([name for name in sys.modules if import_guard.is_forbidden(name)], cpu, stats.jit_compilations_total, fake.launches)
"""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    (tmp_path / "toy" / "tokenizer").mkdir()
    (tmp_path / "toy" / "tokenizer" / "text.json").write_text('{"eos_token_ids": []}')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    forbidden, _, rest = done.stdout.strip().partition(" ")
    assert (forbidden, rest.split()[:2]) == ("[]", ["[]", "0"])
    assert int(rest.split()[2]) >= 10


def test_serving_a_cpu_imports_no_gpu_code() -> None:
    code = "import sys, engine.runtime.core, engine.runtime.executor, engine.runtime.process.worker\n"
    code += "print([name for name in sys.modules if name.startswith('engine.runtime.cuda')])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_worker_without_a_gpu_fails_with_the_table(tmp_path: Path) -> None:
    write_toy_artifact(tmp_path / "toy")
    code = f"""
import sys
from pathlib import Path
from engine.errors import MismatchError
from engine.runtime.loading import load_executor
try:
    load_executor(Path({str(tmp_path / "toy")!r}))
except MismatchError as error:
    print(error)
"""
    environment = {**os.environ, "ENGINE_LIBCUDA": "libthereisnone.so"}
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, env=environment)
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[:3] == ["this artifact was built for another machine", "field artifact this machine", "target sm90 no NVIDIA GPU"]


def test_the_python_class_over_a_real_worker(tmp_path: Path) -> None:
    manifest = write_toy_artifact(tmp_path / "toy", vocab_size=byte_level_tokenizer().get_vocab_size())
    with_tokenizer(tmp_path / "toy", manifest)
    prompts = [[index + 3] * (index % 7 + 1) for index in range(10)]
    kv_memory = NUM_BLOCKS * manifest.caches[0].bytes_per_block
    phases: list[str] = []
    with LLM(tmp_path / "toy", kv_memory=kv_memory, max_num_seqs=8, max_batch_tokens=32, worker_command=COMMAND, log=phases.append) as llm:
        completions = llm.generate(prompts, Params(max_tokens=10, temperature=0, ignore_eos=True))
    greedy = SamplingParams(max_tokens=10, temperature=0.0)
    vocab_size = manifest.model.vocab_size
    assert [completion.tokens for completion in completions] == [solo(prompt, greedy, vocab_size=vocab_size) for prompt in prompts]
    assert any("load_weights" in line for line in phases)


def test_the_command_on_a_machine_without_a_gpu(tmp_path: Path) -> None:
    with_tokenizer(tmp_path / "toy", write_toy_artifact(tmp_path / "toy"))
    run = [sys.executable, "-P", "-m", "engine", "serve", "--artifacts", str(tmp_path / "toy"), "--port", "0"]
    environment = {**os.environ, "ENGINE_LIBCUDA": "libthereisnone.so"}
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=environment, cwd="/")
    assert done.returncode == MismatchError.exit_code
    assert ["target", "sm90", "no", "NVIDIA", "GPU"] in [line.split() for line in done.stderr.splitlines()]
    assert "hint: install the NVIDIA driver" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_artifact_of_32_layers(fake: FakeCuda, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many kernels, graphs and launches as a real one has. How long loading them took is shown by `pytest -s`."""
    directory = tmp_path / "large"
    manifest = write_large_artifact(directory)
    fake.declare(directory, manifest)
    seconds: dict[str, float] = {}
    gc.disable()  # as in a worker that loads
    try:
        executor = CudaExecutor.load(
            directory, manifest, kv_memory=1 << 24, max_num_seqs=64, max_batch_tokens=2048, on_phase=seconds.__setitem__
        )
    finally:
        gc.enable()
    first = len(executor.graphs.made)
    executor.graphs.wait()
    with capsys.disabled():
        phases = ", ".join(f"{name} {1000 * value:.0f}" for name, value in seconds.items())
        print(f"\n{first} graphs of {LAUNCHES * (LAYERS + 1)} launches before the first request; ms: {phases}")
    assert len(executor.graphs.made) == len(DECODE) + len(MIXED)
    assert fake.alive()["exec"] == len(DECODE) + len(MIXED)
    assert fake.alive()["module"] == len(manifest.kernels)
    assert "graph" not in fake.alive()
    executor.close()
