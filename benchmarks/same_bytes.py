"""What a family's parts cost: decode steps of the shape of Gemma 3 270M beside a Llama's that reads the same bytes.

    python benchmarks/same_bytes.py --work DIR [--rounds N] [--json FILE]

Both have the widths, heads and layers of Gemma 3 270M and random weights, which are quantized to
int8. Gemma has twice as many norms, a norm of queries and keys, a GELU of 2,048 numbers, two tables
of angles and windows in five of six layers. What is in --work already is used again. Both artifacts
are loaded into this process, and a round computes one step with each, in an order of its own, so
that whatever slows the machine slows both alike. Shown are medians of the bytes per second of a
step (weights, and the keys and values that its layers see), and the median over rounds of their
quotient. Reports, judges nothing.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers

from engine.artifacts.step_arrays import step_arrays, whole_prompts
from engine.bench.provenance import provenance
from engine.bench.step_bytes import kv_bytes_read, weight_bytes_per_step
from engine.runtime.batch import StepInputs
from engine.runtime.executor import Executor

ENGINE = Path(sys.executable).with_name("engine")
LAYERS, WINDOW = 18, 512
SHAPE: dict[str, Any] = {
    "vocab_size": 262144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
}
GEMMA: dict[str, Any] = {
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 256,
    "layer_types": ["sliding_attention" if index % 6 != 5 else "full_attention" for index in range(LAYERS)],
}
NAMES = ("gemma3", "llama")
CONTEXTS = (128, 2048)
KV_MEMORY = 2 << 30


def write_checkpoint(name: str, directory: Path) -> None:
    """bfloat16, from transformers' own initial weights; the tokenizer knows bytes alone."""
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(**SHAPE, **GEMMA) if name == "gemma3" else transformers.LlamaConfig(**SHAPE)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    Tokenizer(models.BPE(vocabulary, [])).save(str(directory / "tokenizer.json"))


def build(name: str, work: Path) -> Path:
    artifact = work / f"{name}-int8"
    if not (artifact / "manifest.json").exists():
        write_checkpoint(name, work / name)
        command = [str(ENGINE), "build", str(work / name), "-o", str(artifact), "--quantize", "int8", "--store", str(work / "store")]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return artifact


def measure(executors: Mapping[str, Executor], context: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of one step of one sequence with each executor per round, after three that nobody times."""
    inputs = {}
    for name, executor in executors.items():
        sizes = {group.name: group.block_size for group in executor.manifest.caches}
        (piece,) = whole_prompts([[index % 200 for index in range(context)]], sizes)
        inputs[name] = StepInputs(step_arrays([piece._replace(start=context - 1)], sizes))
    times: dict[str, list[float]] = {name: [] for name in executors}
    for number in range(rounds + 3):
        for name in random.sample(NAMES, len(NAMES)):
            begin = time.perf_counter()
            executors[name].step(inputs[name])
            if number >= 3:
                times[name].append(time.perf_counter() - begin)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=400, help="steps of each model (default: 400)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    artifacts = {name: build(name, options.work) for name in NAMES}
    executors = {name: Executor.load(artifact, kv_memory=KV_MEMORY) for name, artifact in artifacts.items()}
    table = Table("context", *(f"{name}, {what}" for name in NAMES for what in ("ms", "MB", "GB/s")), "GB/s, quotient")
    rows = []
    for context in CONTEXTS:
        times = measure(executors, context, options.rounds)
        moved = {
            name: weight_bytes_per_step(executor.manifest, 1) + kv_bytes_read(executor.manifest, context)
            for name, executor in executors.items()
        }
        pairs = zip(*(times[name] for name in NAMES), strict=True)
        quotient = statistics.median((moved["gemma3"] / ours) / (moved["llama"] / theirs) for ours, theirs in pairs)
        medians = {name: statistics.median(seconds) for name, seconds in times.items()}
        figures = [(f"{medians[n] * 1e3:.2f}", f"{moved[n] / 1e6:.1f}", f"{moved[n] / medians[n] / 1e9:.1f}") for n in NAMES]
        table.add_row(f"{context:,}", *(text for cells in figures for text in cells), f"{quotient:.3f}")
        rows.append({"context": context, "median_s": medians, "bytes": moved, "quotient": quotient})
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if options.json:
        facts = {"provenance": msgspec.to_builtins(provenance(artifacts["gemma3"])), "rounds": options.rounds, "steps": rows}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
