"""An artifact for sm90 with as many kernels, graphs and launches as one of a model of 32 layers; its kernels do nothing."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from fake_cuda import fake_cubin
from fake_executor import tiny_manifest
from safetensors.numpy import save_file
from toy_gpu_artifact import file_info

from engine.artifacts import CacheGroup, Manifest, Program, WeightInfo
from engine.artifacts.graph import GraphInfo, GraphTemplate, KernelInfo, Kind, Node, Output, Parameter, Place
from engine.artifacts.step_inputs import draw_inputs, step_inputs

LAYERS = 32
LAUNCHES = 10
"""Per layer, and as many before the first and after the last together."""
_POINTER: list[Parameter] = ["pointer"]
_INT32: list[Parameter] = ["int32"]
ARGUMENTS: list[Parameter] = [*_POINTER * 6, *_INT32 * 4, "int64", "float32"]
DECODE = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64)
MIXED = (64, 128, 256, 512, 1024, 2048)
CUBIN_BYTES = 12_000
WORKSPACE_BYTES = 1 << 20
VOCAB = 128


def write_large_artifact(directory: Path) -> Manifest:
    for folder in ("kernels", "graphs", "weights"):
        (directory / folder).mkdir(parents=True)
    bases = ["workspace", *(f"input:{info.name}" for info in step_inputs(["full"]))]
    weights = {f"layers.{layer}.{name}": np.zeros(64, np.float32) for layer in range(LAYERS) for name in ("norm", "qkv", "o", "up", "down")}
    save_file(weights, directory / "weights" / "0.safetensors")
    bases += [f"weight:{name}" for name in weights] + [f"cache:full.{layer}.{part}" for layer in range(LAYERS) for part in "kv"]
    sizes: list[tuple[Kind, int, int]] = [("decode", count, count) for count in DECODE] + [("mixed", count, 64) for count in MIXED]
    kernels = [_kernel(directory, number) for number in range(LAUNCHES * len(sizes))]
    graphs = [_graph(directory, bases, number, *size) for number, size in enumerate(sizes)]
    info = WeightInfo(file="weights/0.safetensors", dtype="float32", shape=[64], format="f32", sources=[], recipe=[])
    files = [*(kernel.file for kernel in kernels), *(graph.file for graph in graphs), info.file]
    manifest = msgspec.structs.replace(
        tiny_manifest(vocab_size=VOCAB, max_context=4096, block_size=32, routes=None),
        target="sm90",
        caches=[
            CacheGroup(name="full", kind="full", layers=list(range(LAYERS)), num_kv_heads=1, head_dim=8, block_size=32, dtype="bfloat16")
        ],
        programs={"step": Program(inputs=[*step_inputs(["full"]), *draw_inputs()], calls=[], results={"logits": "value:0"})},
        kernels=kernels,
        graphs=graphs,
        weights=dict.fromkeys(weights, info),
        files={name: file_info(directory / name) for name in files},
    )
    (directory / "manifest.json").write_bytes(manifest.encode())
    return manifest


def _kernel(directory: Path, number: int) -> KernelInfo:
    file = f"kernels/{number}.cubin"
    (directory / file).write_bytes(fake_cubin("kernel", f"{number}" + "x" * CUBIN_BYTES))
    return KernelInfo(
        file=file, function="kernel", threads=128, shared_bytes=1000 * (number % 200), parameters=ARGUMENTS, registers=64, stack_bytes=0
    )


def _graph(directory: Path, bases: list[str], number: int, kind: Kind, tokens: int, sequences: int) -> GraphInfo:
    generator = np.random.default_rng(number)
    nodes = []
    for index in range(LAUNCHES * (LAYERS + 1)):
        chosen = [0, 0, *generator.integers(1, len(bases), 4).tolist()]
        places: list[Any] = [Place(base=base, offset=0 if base else 256 * (index % 1000)) for base in chosen]
        arguments = [*places, tokens, sequences, index, 4096, 2**33 + index, 0.125]
        nodes.append(Node(kernel=number * LAUNCHES + index % LAUNCHES, grid=(tokens, 8, 1), arguments=arguments))
    outputs = {
        "logits": Output(place=Place(base=0, offset=0), dtype="float32", shape=[sequences, VOCAB]),
        "tokens": Output(place=Place(base=0, offset=1 << 19), dtype="int32", shape=[sequences]),
    }
    template = GraphTemplate(bases=bases, nodes=nodes, outputs=outputs)
    file = f"graphs/{number}.json"
    (directory / file).write_bytes(template.encode())
    return GraphInfo(
        file=file,
        kind=kind,
        sizes={"T": tokens, "S": sequences, "S1": sequences + 1, "R": sequences, "B.full": 128},
        nodes=len(nodes),
        workspace_bytes=WORKSPACE_BYTES,
    )
