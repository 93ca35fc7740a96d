"""A checkpoint's tokenizer, for texts that a build or a comparison computes on."""

import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from ..models.checkpoint import Checkpoint


def whole_texts_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Neither cuts texts off nor fills them up. Raises as `Checkpoint.write_tokenizer` does."""
    with tempfile.TemporaryDirectory(prefix="engine-tokenizer-") as scratch:
        checkpoint.write_tokenizer(Path(scratch))
        tokenizer = Tokenizer.from_file(str(Path(scratch) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
