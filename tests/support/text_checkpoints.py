"""Small random checkpoints of models that make vectors or scores of texts, with sentence-transformers' files, and what they give."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from random_checkpoints import BOS, EOS, VOCAB_SIZE, randomize, save_tokenizer, train_tokenizer
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

END = "<|endoftext|>"
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 60,
    "intermediate_size": 92,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 160,
}
_ALTERNATING = ["full_attention", "sliding_attention"] * 2


@dataclass(frozen=True, kw_only=True)
class Family:
    """config: its class in `transformers`. settings: of it. pooling: of its checkpoints by default."""

    config: str
    settings: dict[str, Any]
    pooling: str = "mean"
    is_causal: bool = False


FAMILIES = {
    "bert": Family(config="BertConfig", settings={}),
    "xlm-roberta": Family(config="XLMRobertaConfig", settings={"type_vocab_size": 1, "layer_norm_eps": 1e-5}, pooling="cls"),
    "modernbert": Family(
        config="ModernBertConfig",
        settings={
            "pad_token_id": 0,
            "local_attention": 14,
            "layer_types": ["full_attention", *["sliding_attention"] * 2, "full_attention"],
        },
    ),
    "qwen3": Family(config="Qwen3Config", settings={"num_key_value_heads": 2, "head_dim": 16}, pooling="lasttoken", is_causal=True),
    "gemma3_text": Family(
        config="Gemma3TextConfig",
        settings={
            "num_key_value_heads": 2,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "use_bidirectional_attention": True,
            "sliding_window": 14,
            "layer_types": _ALTERNATING,
        },
    ),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a checkpoint does with the rows of a text. dense: sizes of layers behind pooling. prompts, default_prompt: as it names them."""

    pooling: str
    normalize: bool = True
    dense: tuple[int, ...] = ()
    prompts: dict[str, str] | None = None
    default_prompt: str | None = None
    max_length: int | None = None


def write_embedder(family: str, directory: Path, recipe: Recipe | None = None, *, seed: int = 0, **overrides: Any) -> Path:
    """A checkpoint of vectors. recipe: by default the family's pooling, scaled to length 1. overrides: of the configuration."""
    import transformers

    recipe = recipe or Recipe(pooling=FAMILIES[family].pooling)
    config = _config(family, **overrides)
    model = transformers.AutoModel.from_config(config)
    randomize(model, seed)
    model.save_pretrained(directory)
    _save_tokenizer(family, directory)
    _write_modules(directory, recipe, config.hidden_size, seed)
    return directory


def write_cross_encoder(family: str, directory: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """A checkpoint of one score for a pair of texts."""
    import transformers

    config = _config(family, num_labels=1, pad_token_id=0, **overrides)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    randomize(model, seed)
    model.save_pretrained(directory)
    _save_tokenizer(family, directory)
    return directory


def _config(family: str, **overrides: Any) -> Any:
    import transformers

    found = FAMILIES[family]
    return getattr(transformers, found.config)(**{**_SIZES, **found.settings, **overrides})


def _save_tokenizer(family: str, directory: Path) -> None:
    tokenizer = train_tokenizer()
    ids = [(token, tokenizer.token_to_id(token)) for token in (END, BOS, EOS)]
    single, pair = (f"$A {END}", None) if FAMILIES[family].is_causal else (f"{BOS} $A {EOS}", f"{BOS} $A {EOS} $B:1 {EOS}:1")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    save_tokenizer(tokenizer, directory)


def _write_modules(directory: Path, recipe: Recipe, hidden_size: int, seed: int) -> None:
    kinds = ["Transformer", "Pooling", *["Dense"] * len(recipe.dense), *(["Normalize"] if recipe.normalize else [])]
    modules = [
        {"idx": index, "name": str(index), "path": f"{index}_{kind}" if index else "", "type": f"sentence_transformers.models.{kind}"}
        for index, kind in enumerate(kinds)
    ]
    _write(directory / "modules.json", modules)
    modes = {f"pooling_mode_{mode}": False for mode in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")}
    name = {"cls": "cls_token", "mean": "mean_tokens"}.get(recipe.pooling, recipe.pooling)
    _write(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden_size} | modes | {f"pooling_mode_{name}": True})
    generator = torch.Generator().manual_seed(seed + 1)
    for index, size in enumerate(recipe.dense):
        folder = directory / f"{index + 2}_Dense"
        activation = "torch.nn.modules.activation.Tanh" if index == 0 else "torch.nn.modules.linear.Identity"
        _write(
            folder / "config.json",
            {"in_features": hidden_size, "out_features": size, "bias": index == 0, "activation_function": activation},
        )
        tensors = {"linear.weight": torch.randn(size, hidden_size, generator=generator) * hidden_size**-0.5}
        save_file(
            tensors | ({"linear.bias": torch.randn(size, generator=generator) * 0.1} if index == 0 else {}), folder / "model.safetensors"
        )
        hidden_size = size
    texts = {"prompts": recipe.prompts or {}, "default_prompt_name": recipe.default_prompt, "similarity_fn_name": "cosine"}
    _write(directory / "config_sentence_transformers.json", texts)
    if recipe.max_length is not None:
        _write(directory / "sentence_bert_config.json", {"max_seq_length": recipe.max_length, "do_lower_case": False})


def _write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@torch.no_grad()
def expected_vectors(directory: Path, recipe: Recipe, texts: Sequence[Sequence[int]], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """What `transformers` and sentence-transformers' modules give for these tokens, each alone: [size]."""
    import transformers
    from safetensors.torch import load_file

    model = transformers.AutoModel.from_pretrained(directory, attn_implementation="eager", dtype=dtype)
    layers = [
        {name: tensor.to(dtype) for name, tensor in load_file(directory / f"{index + 2}_Dense" / "model.safetensors").items()}
        for index in range(len(recipe.dense))
    ]

    def vector(tokens: Sequence[int]) -> Tensor:
        rows = model(torch.tensor([tokens])).last_hidden_state[0]
        pooled: Tensor = {"cls": rows[0], "mean": rows.mean(0), "lasttoken": rows[-1]}[recipe.pooling]
        for index, layer in enumerate(layers):
            pooled = F.linear(pooled, layer["linear.weight"], layer.get("linear.bias"))
            pooled = pooled.tanh() if index == 0 else pooled
        return F.normalize(pooled, dim=0) if recipe.normalize else pooled

    return [vector(tokens) for tokens in texts]


@torch.no_grad()
def expected_scores(directory: Path, pairs: Sequence[tuple[Sequence[int], int]]) -> list[float]:
    """What `transformers` gives for each (tokens, where the second text begins), before any activation."""
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32)

    def score(tokens: Sequence[int], second: int) -> float:
        types = torch.tensor([[int(0 < second <= place) for place in range(len(tokens))]])
        given = {"token_type_ids": types} if getattr(model.config, "type_vocab_size", 0) > 1 else {}
        return float(model(torch.tensor([tokens]), **given).logits[0, 0])

    return [score(tokens, second) for tokens, second in pairs]
