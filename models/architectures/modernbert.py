"""ModernBERT: an encoder with rotary embedding, layers that see a window on both sides, and a gated channel."""

from dataclasses import replace

from ...errors import UnsupportedModelError
from ..names import NameTable, fused_gate_up, fused_qkv
from ..parts.norm import NormSpec
from ..parts.pooling import DenseActivation, DenseSpec, PoolingSpec
from ..settings import Settings
from ..spec import EmbedSpec, LayerNorms, ModelSpec
from .architecture import HFEntry, ScoreHead
from .hf import activation, attention, before, dense, layer_norm, mlp, rope, windows_by_type
from .llama import GATE_UP, LAYER, QKV, parted, renamed

_HEADS = {f"{name}.{kind}" for name in ("head.dense", "head.norm", "decoder") for kind in ("weight", "bias")}
_NAMES = NameTable(
    sources={"embed.weight": "model.embeddings.tok_embeddings.weight"}
    | renamed(
        {
            "embed_norm": "model.embeddings.norm",
            "norm": "model.final_norm",
            "layers.{}.attention_norm": LAYER + "attn_norm",
            "layers.{}.attention.o": LAYER + "attn.Wo",
            "layers.{}.mlp_norm": LAYER + "mlp_norm",
            "layers.{}.mlp.down": LAYER + "mlp.Wo",
        }
    )
    | parted(QKV, LAYER + "attn.Wqkv", fused_qkv)
    | parted(GATE_UP, LAYER + "mlp.Wi", fused_gate_up),
    ignored=_HEADS,
)
_SCORE_NAMES = renamed({"pooling.dense0": "head.dense", "pooling.norm0": "head.norm", "pooling.dense1": "classifier"})
_OTHER_HEADS = ("classifier_pooling", "classifier_bias", "classifier_activation", "decoder_bias")
_TRAINING = (
    *("deterministic_flash_attn", "gradient_checkpointing", "initializer_cutoff_factor", "reference_compile"),
    *("repad_logits_with_grad", "sparse_prediction", "sparse_pred_ignore_index"),
)


def _norm(settings: Settings) -> NormSpec:
    return layer_norm(settings, "norm_eps", bias=settings.flag("norm_bias"))


def _modernbert(settings: Settings) -> ModelSpec:
    """The first layer reads what the embedding's norm gives, and has none of its own before attention."""
    settings.ignore("layer_norm_eps", "position_embedding_type", *_OTHER_HEADS, *_TRAINING)
    each = settings.integer("global_attn_every_n_layers")
    windows = windows_by_type(settings, settings.integer("local_attention") // 2 + 1, lambda index: index % each != 0)
    full = rope(settings, "full_attention", theta_name="global_rope_theta")
    local = rope(settings, "sliding_attention", theta_name="local_rope_theta", scaled=False)
    norm, bias = _norm(settings), settings.flag("attention_bias")
    ropes = [local if window else full for window in windows]
    spec = dense(
        settings,
        mixers=attention(settings, ropes=ropes, windows=windows, qkv_bias=bias, output_bias=bias, causal=False),
        channel=mlp(settings, activation_name="hidden_activation", bias=settings.flag("mlp_bias")),
        norms=before(norm),
        final=norm,
        embed=EmbedSpec(norm=norm),
    )
    first, *others = spec.layers
    return replace(spec, layers=(replace(first, norms=LayerNorms(before_channel=norm)), *others))


def _head_activation(settings: Settings) -> DenseActivation:
    match activation(settings, "classifier_activation"):
        case "gelu" | "silu" | "relu" as name:
            return name
        case name:
            raise UnsupportedModelError(
                f"{settings.source}: the head's activation {name!r} is not supported", hint="gelu, silu and relu are"
            )


def _scored(settings: Settings) -> PoolingSpec:
    inner = DenseSpec(
        size=settings.integer("hidden_size"),
        bias=settings.flag("classifier_bias"),
        activation=_head_activation(settings),
        norm=_norm(settings),
    )
    return PoolingSpec(kind="mean" if settings.text("classifier_pooling") == "mean" else "cls", dense=(inner, DenseSpec(size=1)))


HF = (
    HFEntry(
        model_types=("modernbert",),
        defaults={
            "attention_bias": False,
            "classifier_activation": "gelu",
            "classifier_bias": False,
            "classifier_pooling": "cls",
            "global_attn_every_n_layers": 3,
            "global_rope_theta": 160000.0,
            "hidden_activation": "gelu",
            "local_attention": 128,
            "local_rope_theta": 10000.0,
            "max_position_embeddings": 8192,
            "mlp_bias": False,
            "norm_bias": False,
            "norm_eps": 1e-5,
            "tie_word_embeddings": True,
        },
        read=_modernbert,
        names=_NAMES,
        encodes=True,
        score=ScoreHead(read=_scored, names=_SCORE_NAMES),
    ),
)
