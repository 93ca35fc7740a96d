"""Vectors of 512 sentences, beside sentence-transformers, or transformers where that is not installed, on the same cores.

    python benchmarks/embeddings.py ARTIFACT CHECKPOINT [--threads N] [--rounds N] [--agree X] [--json FILE]

Both are in one run and take turns; what counts is the ratio of neighbouring rounds. Sentences have 4 to 60 words. The
other side computes batches of 32, the sentences sorted by length so that little is padded, as sentence-transformers does.
Before anything is measured, both must agree in every number, to 1e-3 unless --agree says otherwise: vectors of a quantized
artifact differ more from those of its checkpoint. Reports, judges nothing.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.bench.provenance import provenance
from engine.server.llm import LLM

SENTENCES, BATCH, AGREE = 512, 32, 1e-3
WORDS = """
the of a river light engine model winter city paper window music answer garden number ocean market letter silver question road
morning table system signal forest history machine language student doctor bridge summer island memory science kitchen
"""
Embed = Callable[[Sequence[str]], NDArray[np.float32]]


def sentences() -> list[str]:
    draw, words = random.Random(0), WORDS.split()
    return [" ".join(draw.choices(words, k=draw.randint(4, 60))) for _ in range(SENTENCES)]


def other_side(checkpoint: str, threads: int) -> tuple[str, Embed]:
    """What is compared with, and its name."""
    import torch

    torch.set_num_threads(threads)
    try:
        from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]
    except ImportError:
        return "transformers", _by_transformers(checkpoint)
    model = SentenceTransformer(checkpoint, device="cpu")
    return "sentence-transformers", lambda texts: np.asarray(model.encode(list(texts), batch_size=BATCH))


def _by_transformers(checkpoint: str) -> Embed:
    """Mean pooling, scaled to length 1."""
    import torch
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModel.from_pretrained(checkpoint).eval()

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        found: list[Any] = [None] * len(texts)
        for start in range(0, len(texts), BATCH):
            chosen = order[start : start + BATCH]
            batch = tokenizer([texts[index] for index in chosen], padding=True, truncation=True, return_tensors="pt")
            rows, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            vectors = torch.nn.functional.normalize((rows * mask).sum(1) / mask.sum(1))
            for index, vector in zip(chosen, vectors.numpy(), strict=True):
                found[index] = vector
        return np.stack(found)

    return embed


def measure(artifact: Path, checkpoint: str, threads: int, rounds: int, agree: float = AGREE) -> dict[str, Any]:
    """Sentences per second of both, the median of `rounds`; ratio: the median of ours over theirs of each round.

    agree: by how much a number of theirs may differ from ours.
    """
    texts = sentences()
    name, theirs = other_side(checkpoint, threads)
    with LLM(artifact, threads=threads) as llm:

        def ours(texts: Sequence[str]) -> NDArray[np.float32]:
            return np.array(llm.embed(texts), np.float32)

        difference = float(np.abs(ours(texts) - theirs(texts)).max())
        if not difference <= agree:
            raise SystemExit(f"the two sides differ by {difference:.3g}: they do not compute the same (--agree allows {agree:g})")
        pairs = [(_seconds(ours, texts), _seconds(theirs, texts)) for _ in range(rounds)]
    return {
        "compared_with": name,
        "largest_difference": difference,
        "engine_per_s": SENTENCES / statistics.median(pair[0] for pair in pairs),
        "other_per_s": SENTENCES / statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
        "seconds": pairs,
    }


def _seconds(embed: Embed, texts: Sequence[str]) -> float:
    started = time.perf_counter()
    embed(texts)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--agree", type=float, default=AGREE, metavar="X", help="largest difference of a number (default: %(default)s)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.artifact, options.checkpoint, options.threads, options.rounds, options.agree)
    print(
        f"engine {found['engine_per_s']:.0f} sentences/s, {found['compared_with']} {found['other_per_s']:.0f}: "
        f"{found['ratio']:.2f} times; largest difference {found['largest_difference']:.2g}"
    )
    if options.json is not None:
        facts = msgspec.to_builtins(provenance(options.artifact))
        options.json.write_text(json.dumps({"provenance": facts} | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
