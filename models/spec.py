"""What a model is, composed of parts: resolved once from a checkpoint's configuration, and then only read.

The entries in `architectures/` make a `ModelSpec` of a checkpoint's own metadata; `decoder.py` makes a module of it.
"""

from dataclasses import dataclass, replace

from ..errors import CheckpointError
from .parts.attention import AttentionSpec
from .parts.latent_attention import LatentAttentionSpec
from .parts.layer_inputs import LayerInputsSpec
from .parts.mlp import MLPSpec
from .parts.moe import MoESpec
from .parts.norm import NormSpec
from .parts.pooling import PoolingSpec

Mixer = AttentionSpec | LatentAttentionSpec
Channel = MLPSpec | MoESpec


@dataclass(frozen=True, kw_only=True)
class LayerNorms:
    """Where a layer normalizes: what the mixer reads, what it gives, what the channel reads, what it gives.

    In a parallel layer without `before_channel`, the channel reads what the mixer reads.
    """

    before_mixer: NormSpec | None = None
    after_mixer: NormSpec | None = None
    before_channel: NormSpec | None = None
    after_channel: NormSpec | None = None


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """x + mixer(x), then x + channel(x); or, parallel, x + mixer(x) + channel(x).

    multiplier: of what is added each time. normalizes_sums: whether the norms after mixer and channel are of the sums, as in GPT-1.
    scaled: whether the result is multiplied with a learned number.
    """

    mixer: Mixer
    channel: Channel
    norms: LayerNorms
    parallel: bool = False
    multiplier: float = 1.0
    normalizes_sums: bool = False
    scaled: bool = False


@dataclass(frozen=True, kw_only=True)
class EmbedSpec:
    """multiplier: of every token's embedding. positions: rows of a learned table, one of which is then added; 0 for none. offset: the row
    of position 0. types: rows of another one, for the first and second text of a pair. norm: of the sum."""

    multiplier: float = 1.0
    positions: int = 0
    offset: int = 0
    types: int = 0
    norm: NormSpec | None = None


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """The product with which logits end. tied: its matrix is the embedding's. multiplier: of logits, before the soft cap (0: none)."""

    tied: bool = False
    bias: bool = False
    multiplier: float = 1.0
    softcap: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything `Decoder` reads. Raises CheckpointError on shapes that cannot be.

    pooling: of a model that makes a vector of a text, and has no head then. The layers of an encoder see later tokens too. layer_inputs:
    where every layer has an input of its own beside the residual stream.
    """

    architecture: str
    hidden_size: int
    vocab_size: int
    max_context: int
    layers: tuple[LayerSpec, ...]
    embed: EmbedSpec = EmbedSpec()
    final: NormSpec | None
    head: HeadSpec = HeadSpec()
    pooling: PoolingSpec | None = None
    layer_inputs: LayerInputsSpec | None = None

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("hidden_size", "vocab_size", "max_context")}
        sizes |= {"intermediate_size": min((layer.channel.size for layer in self.layers), default=0)} if self.layers else {}
        for name, value in sizes.items():
            if value <= 0:
                raise CheckpointError(
                    f"the model's configuration gives {name} = {value}; it must be positive",
                    hint="the file was edited or damaged; fetch the checkpoint again",
                )
        if not self.layers:
            raise CheckpointError(
                "the model's configuration gives no layers", hint="the file was edited or damaged; fetch the checkpoint again"
            )
        if len({layer.mixer.causal for layer in self.layers}) > 1:
            raise CheckpointError(
                "some of the model's layers see later tokens, and some do not", hint="a model must be an encoder, or a decoder"
            )
        for index, layer in enumerate(self.layers):
            self._check_source(index, layer.mixer)
        if self.pooling is not None:
            self.pooling.check(causal=not self.is_encoder)

    def _check_source(self, index: int, mixer: Mixer) -> None:
        """A layer that reads another's keys and values takes them as they are."""
        if mixer.source is None:
            return
        source = self.layers[mixer.source].mixer if 0 <= mixer.source < index else None
        if source is None or source.source is not None or (source.num_kv_heads, source.head_dim) != (mixer.num_kv_heads, mixer.head_dim):
            raise CheckpointError(
                f"layer {index} of the model reads keys and values of layer {mixer.source}, which has none of its kind",
                hint="the configuration was edited or damaged; fetch the checkpoint again",
            )

    @property
    def is_encoder(self) -> bool:
        """Whether tokens see those that follow: a text is computed at once then, and nothing of it is kept."""
        return not self.layers[0].mixer.causal

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def head_dims(self) -> set[int]:
        """Head sizes of all layers."""
        return {layer.mixer.head_dim for layer in self.layers}

    def for_context(self, max_context: int) -> "ModelSpec":
        """The same model with the tables that it has for sequences of at most max_context tokens."""

        def limited(layer: LayerSpec) -> LayerSpec:
            rope = layer.mixer.rope
            return layer if rope is None else replace(layer, mixer=replace(layer.mixer, rope=rope.for_context(max_context)))

        return replace(self, layers=tuple(map(limited, self.layers)))
