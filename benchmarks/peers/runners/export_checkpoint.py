"""A GGUF file as a float32 Hugging Face directory: its weights dequantized, its tokenizer, its chat template.

python -m peers.runners.export_checkpoint GGUF DIRECTORY
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main() -> None:
    gguf, directory = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    source = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **source
    )
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(directory)


if __name__ == "__main__":
    main()
