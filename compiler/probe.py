"""Stage 7: golden values, from the artifact itself where this machine can run it."""

import hashlib
from pathlib import Path

import torch

from ..artifacts import Manifest, Probe, ProbePrompt
from ..errors import BuildError
from .interpret import GraphInterpreter, run_prompt
from .run_artifact import artifact_logits

TOP = 8
PROMPT_LENGTHS = (3, 70)
"""Within one block, and across several; the shortest is the one replayed at every load."""


def probe_prompts(vocab_size: int, max_context: int) -> list[list[int]]:
    """Fixed token ids spread over the vocabulary, the same for every build of a model."""
    return [[(7919 * (index + 1) + 104729 * length) % vocab_size for index in range(min(length, max_context))] for length in PROMPT_LENGTHS]


def record_on_target(directory: Path, prompts: list[list[int]]) -> Probe:
    """Run the artifact at `directory` on the prompts. Raises BuildError if it fails or gives no finite logits."""
    logits = artifact_logits(directory, prompts, last_only=True)
    return Probe(recorded_on="target", prompts=[_record(prompt, row, digest=True) for prompt, row in zip(prompts, logits, strict=True)])


def record_from_reference(interpreter: GraphInterpreter, manifest: Manifest, prompts: list[list[int]]) -> Probe:
    """The values that the operators' references give, for a target that this machine cannot run."""
    logits = [run_prompt(interpreter, prompt, manifest.caches, wanted=manifest.wanted_rows)[None] for prompt in prompts]
    recorded = [_record(prompt, rows, digest=False) for prompt, rows in zip(prompts, logits, strict=True)]
    return Probe(recorded_on="reference", prompts=recorded)


def _record(tokens: list[int], logits: torch.Tensor, *, digest: bool) -> ProbePrompt:
    last_V = logits[-1].contiguous()
    if not bool(last_V.isfinite().all()):
        raise BuildError(
            "what the model computes is not finite on the probe prompts",
            hint="the checkpoint is damaged, or its configuration belongs to another model",
        )
    top = torch.topk(last_V, min(TOP, last_V.numel()))
    sha256 = hashlib.sha256(last_V.numpy().tobytes()).hexdigest() if digest else ""
    return ProbePrompt(tokens=tokens, top_tokens=top.indices.tolist(), top_logits=top.values.tolist(), logits_sha256=sha256)
