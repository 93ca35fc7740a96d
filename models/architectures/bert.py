"""BERT and XLM-RoBERTa: encoders with a learned vector for every position, and norms of sums."""

from collections.abc import Callable

from ...errors import UnsupportedModelError
from ..names import Entry, NameTable
from ..parts.pooling import DenseSpec, PoolingSpec
from ..settings import Settings
from ..spec import EmbedSpec, ModelSpec
from .architecture import HFEntry, ScoreHead
from .hf import after, attention, dense, layer_norm, mlp, num_layers
from .llama import renamed

_DEFAULTS = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "tie_word_embeddings": True,
}
_POOLER = ("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type")


def _names(base: str) -> NameTable:
    """base: what all names begin with but those of heads."""
    embeddings, layer = f"{base}embeddings.", f"{base}encoder.layer.{{}}."
    sources: dict[str, Entry] = {
        "embed.weight": f"{embeddings}word_embeddings.weight",
        "embed_positions.weight": f"{embeddings}position_embeddings.weight",
        "embed_types.weight": f"{embeddings}token_type_embeddings.weight",
    }
    modules = {
        "embed_norm": f"{embeddings}LayerNorm",
        **{
            f"layers.{{}}.attention.{part}": f"{layer}attention.self.{name}"
            for part, name in zip("qkv", ("query", "key", "value"), strict=True)
        },
        "layers.{}.attention.o": f"{layer}attention.output.dense",
        "layers.{}.attention_post_norm": f"{layer}attention.output.LayerNorm",
        "layers.{}.mlp.up": f"{layer}intermediate.dense",
        "layers.{}.mlp.down": f"{layer}output.dense",
        "layers.{}.mlp_post_norm": f"{layer}output.LayerNorm",
    }
    heads = {
        *(f"{base}pooler.dense.{kind}" for kind in ("weight", "bias")),
        *(f"cls.predictions.{name}" for name in ("bias", "decoder.weight", "decoder.bias")),
        *(f"cls.predictions.transform.{name}.{kind}" for name in ("dense", "LayerNorm") for kind in ("weight", "bias")),
        *(f"cls.seq_relationship.{kind}" for kind in ("weight", "bias")),
        *("lm_head.bias", "lm_head.decoder.weight", "lm_head.decoder.bias"),
        *(f"lm_head.{name}.{kind}" for name in ("dense", "layer_norm") for kind in ("weight", "bias")),
    }
    return NameTable(sources=sources | renamed(modules), ignored={*heads, f"{embeddings}position_ids"})


def _reader(first_position: Callable[[Settings], int]) -> Callable[[Settings], ModelSpec]:
    """first_position: the row of position 0 among those of positions."""

    def read(settings: Settings) -> ModelSpec:
        kind = settings.text("position_embedding_type", "absolute")
        if kind != "absolute":
            raise UnsupportedModelError(
                f"{settings.source}: positions are {kind!r}", hint="a vector for each position is supported: absolute"
            )
        settings.ignore("gradient_checkpointing", "output_past", *_POOLER)
        positions, offset = settings.integer("max_position_embeddings"), first_position(settings)
        norm = layer_norm(settings)
        mixers = attention(settings, ropes=(None,) * num_layers(settings), qkv_bias=True, output_bias=True, causal=False)
        return dense(
            settings,
            mixers=mixers,
            channel=mlp(settings, gated=False, bias=True),
            norms=after(norm),
            normalizes_sums=True,
            final=None,
            max_context=positions - offset,
            embed=EmbedSpec(positions=positions, offset=offset, types=settings.integer("type_vocab_size"), norm=norm),
        )

    return read


def _scored(settings: Settings) -> PoolingSpec:
    dense = (DenseSpec(size=settings.integer("hidden_size"), activation="tanh"), DenseSpec(size=1))
    return PoolingSpec(kind="cls", dense=dense)


HF = (
    HFEntry(
        model_types=("bert",),
        defaults=_DEFAULTS,
        read=_reader(lambda settings: 0),
        names=_names("bert."),
        base="bert.",
        encodes=True,
        score=ScoreHead(read=_scored, names=renamed({"pooling.dense0": "bert.pooler.dense", "pooling.dense1": "classifier"})),
    ),
    HFEntry(
        model_types=("xlm-roberta", "roberta"),
        defaults=_DEFAULTS | {"pad_token_id": 1},
        read=_reader(lambda settings: settings.integer("pad_token_id") + 1),
        names=_names("roberta."),
        base="roberta.",
        encodes=True,
        score=ScoreHead(read=_scored, names=renamed({"pooling.dense0": "classifier.dense", "pooling.dense1": "classifier.out_proj"})),
    ),
)
