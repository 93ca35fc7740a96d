"""Small random checkpoints of every family, written by `transformers`, with a tokenizer trained on the spot."""

from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 323
BOS, EOS = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Enough different words for the merges that the vocabulary needs.
CORPUS = (
    "Once upon a time a small model learned to speak. It spoke of rivers and mountains, of bread and salt, and of the sea.",
    "def compile(model, target): return [lower(piece, target) for piece in partition(trace(model))]",
    "The quick brown fox jumps over the lazy dog; the dog, being lazy, lets it. Numbers: 0 1 2 3 4 5 6 7 8 9 10 2026.",
    "Straße, naïve, façade, 東京, Ελλάδα, Москва, 🙂. Words in other scripts become bytes, and bytes become tokens.",
)

# Odd sizes throughout: no dimension is a multiple of the kernels' panels of 16 or groups of 32.
_COMMON: dict[str, Any] = {
    "hidden_size": 60,
    "intermediate_size": 92,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama3": (
        "LlamaConfig",
        {
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "mistral": ("MistralConfig", {"sliding_window": 7, "head_dim": 14}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 3, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "smollm3": ("SmolLM3Config", {"no_rope_layer_interval": 2, "num_key_value_heads": 6, "tie_word_embeddings": True}),
    "granite_swa": (
        "GraniteSWAConfig",
        {
            "sliding_window": 7,
            "attention_multiplier": 0.4,
            "layer_rope_theta": [0, 10000.0, 10000.0],
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
}


def write_random_checkpoint(
    family: str, directory: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB", **overrides: Any
) -> Path:
    """Writes config, weights (safetensors) and tokenizer of a random model into `directory`, which is made; returns it.

    family: a key of FAMILIES. overrides: settings of the family's `transformers` configuration class.
    Every weight is random, norms and biases included, at a scale that keeps activations near 1.
    """
    import transformers

    class_name, settings = FAMILIES[family]
    config = getattr(transformers, class_name)(**{**_COMMON, **settings, **overrides})
    tokenizer = train_tokenizer(min(config.vocab_size, VOCAB_SIZE))
    config.bos_token_id, config.eos_token_id, config.pad_token_id = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS), None
    model = transformers.AutoModelForCausalLM.from_config(config)
    randomize(model, seed)
    model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    save_tokenizer(tokenizer, directory)
    return directory


def train_tokenizer(vocab_size: int = VOCAB_SIZE) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer of exactly `vocab_size` tokens, its special tokens first."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"the corpus gives {tokenizer.get_vocab_size()} tokens, not {vocab_size}")
    return tokenizer


def save_tokenizer(tokenizer: tokenizers.Tokenizer, directory: Path) -> None:
    """Writes `tokenizer` into `directory` as `transformers` does, with the chat template."""
    import transformers

    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, chat_template=CHAT_TEMPLATE)
    fast.save_pretrained(directory)


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Fill every parameter with random numbers, at a scale that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
            else:
                parameter.normal_(0, 0.1, generator=generator)
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(1)
