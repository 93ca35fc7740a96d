"""An artifact directory with something in every part of its manifest, small enough to be read a thousand times."""

import json
from pathlib import Path

import msgspec
from artifact_stand_in import seal, write_artifact

from engine.artifacts import (
    CacheGroup,
    Call,
    ExpertsInfo,
    Manifest,
    MemoryPlan,
    PassReport,
    Probe,
    ProbePrompt,
    Program,
    SegmentInfo,
    WeightInfo,
)
from engine.artifacts.graph import GraphInfo, KernelInfo
from engine.artifacts.step_inputs import draw_inputs, step_inputs

WEIGHT = "layers.0.q.weight"
ATTENTION_INPUTS = [
    *("value:0", "value:1", "value:2", "cache:full.0.k", "cache:full.0.v"),
    *("input:cu_seqlens", "input:seq_lens", "input:block_table.full", "input:slot_mapping.full"),
    *("", "", "value:3", "value:4", "", ""),
]


def write_rich_artifact(directory: Path) -> Manifest:
    write_artifact(directory)
    header = json.dumps({WEIGHT: {"dtype": "U8", "shape": [4, 16], "data_offsets": [0, 64]}}).encode()
    for name, content in {
        "segments/abc.so": b"segment code",
        "kernels/abc.cubin": b"\x7fELF",
        "graphs/decode-1.json": b"{}",
        "weights/0.safetensors": len(header).to_bytes(8, "little") + header + bytes(64),
    }.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
    calls = [
        Call(kind="segment", target="abc", inputs=["input:tokens", f"weight:{WEIGHT}"], outputs=[f"value:{n}" for n in range(5)]),
        Call(
            kind="operator",
            target="engine.attention",
            inputs=ATTENTION_INPUTS,
            outputs=["value:5"],
            scalars=[0.25, 0, 0, 0.0, 0.0, 0],
            frees=[f"value:{n}" for n in range(5)],
        ),
    ]
    weight = WeightInfo(
        file="weights/0.safetensors",
        dtype="uint8",
        shape=[4, 16],
        format="q4_1",
        sources=[WEIGHT],
        recipe=["pack"],
        experts=ExpertsInfo(count=4, chosen=2),
    )
    kernel = KernelInfo(
        file="kernels/abc.cubin", function="f", threads=128, shared_bytes=0, parameters=["pointer", "int32"], registers=32, stack_bytes=0
    )
    manifest = Manifest(
        **{
            **msgspec.structs.asdict(read_unchecked(directory)),
            "caches": [CacheGroup(name="full", kind="full", layers=[0], num_kv_heads=2, head_dim=16, block_size=32, dtype="int8")],
            "segments": [SegmentInfo(key="abc", file="segments/abc.so", calls=1, nodes=57)],
            "kernels": [kernel],
            "graphs": [
                GraphInfo(
                    file="graphs/decode-1.json",
                    kind="decode",
                    sizes={"T": 1, "S": 1, "S1": 2, "R": 1, "B.full": 16},
                    nodes=3,
                    workspace_bytes=512,
                )
            ],
            "programs": {"step": Program(inputs=[*step_inputs(["full"]), *draw_inputs()], calls=calls, results={"logits": "value:5"})},
            "memory": MemoryPlan(weight_bytes=64, activations={"T": 640, "R": 1280, "S*T": 4, "1": 7}),
            "weights": {WEIGHT: weight},
            "fusion": [PassReport(name="eliminate_no_ops", matches=12, nodes_before=1000, nodes_after=988)],
            "probe": Probe(
                recorded_on="target",
                prompts=[ProbePrompt(tokens=[1, 2, 3], top_tokens=[7, 8], top_logits=[1.5, 0.5], logits_sha256="e" * 64)],
            ),
        }
    )
    return seal(directory, manifest)


def read_unchecked(directory: Path) -> Manifest:
    return msgspec.json.decode((directory / "manifest.json").read_bytes(), type=Manifest)
