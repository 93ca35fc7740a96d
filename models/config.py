"""What a decoder-only transformer of the Llama family is, resolved once and then only read.

`hf_config.py` and `gguf_config.py` build a `ModelConfig` from a checkpoint's own metadata.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from ..errors import CheckpointError

RopeKind = Literal["none", "linear", "llama3", "yarn", "divisors"]


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding: the base and how its frequencies are scaled. Raises CheckpointError on values that cannot be.

    kind: "none" leaves the frequencies theta^(-2i/head_dim) as they are; "linear", "llama3" and
        "yarn" scale them as Hugging Face `rope_parameters` of that name do; "divisors" divides
        frequency i by divisors[i], which is how GGUF states llama3 scaling.
    attention_factor: multiplies cos and sin.
    original_max_context: positions the model was trained on before scaling ("llama3", "yarn").
    """

    theta: float
    kind: RopeKind = "none"
    attention_factor: float = 1.0
    factor: float = 1.0
    original_max_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    divisors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.theta <= 1:
            raise CheckpointError(f"the model's configuration gives rope_theta = {self.theta}; it must be greater than 1")
        if self.factor <= 0:
            raise CheckpointError(f"the model's configuration scales rotary embedding by factor = {self.factor}; it must be positive")
        if self.kind in ("llama3", "yarn") and self.original_max_context <= 0:
            raise CheckpointError(f"the model's configuration gives an original context of {self.original_max_context} tokens")
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise CheckpointError(
                f"the model's configuration gives low_freq_factor = {self.low_freq_factor} and high_freq_factor = {self.high_freq_factor};"
                " the first must be positive and less than the second"
            )
        if self.kind == "yarn" and not 0 < self.beta_slow < self.beta_fast:
            raise CheckpointError(
                f"the model's configuration gives beta_slow = {self.beta_slow} and beta_fast = {self.beta_fast};"
                " the first must be positive and less than the second"
            )


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """What may differ from layer to layer.

    window: tokens each position attends to, itself included; 0 for all of them.
    """

    window: int = 0
    use_rope: bool = True


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shapes and choices of one model; everything `Decoder` reads. Raises CheckpointError on shapes that cannot be.

    attention_scale: what products of queries and keys are multiplied with; None for head_dim ** -0.5.
    attention_sinks: whether every query head has a learned score that takes its share of the softmax and adds no value.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int
    rms_eps: float
    rope: RopeConfig
    layers: tuple[LayerConfig, ...]
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    attention_scale: float | None = None
    attention_sinks: bool = False
    tie_embeddings: bool = False
    activation: Literal["silu"] = "silu"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and value <= 0:
                raise CheckpointError(f"the model's configuration gives {field.name} = {value}; it must be positive")
        if not self.layers:
            raise CheckpointError("the model's configuration gives no layers")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"the model's configuration gives {self.num_heads} attention heads and {self.num_kv_heads} key-value heads;"
                " the first must be a multiple of the second"
            )
        if self.head_dim % 2:
            raise CheckpointError(f"the model's configuration gives an odd head size, {self.head_dim}; rotary embedding needs an even one")
        if self.rope.kind == "divisors" and len(self.rope.divisors) != self.head_dim // 2:
            raise CheckpointError(
                f"{len(self.rope.divisors)} rotary frequency divisors for a head size of {self.head_dim}; {self.head_dim // 2} are needed"
            )

    @property
    def num_layers(self) -> int:
        return len(self.layers)
