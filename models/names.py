"""Which checkpoint tensor is which parameter of `Decoder`, as tables; every tensor on either side must find its partner.

`{}` in a table stands for a layer's number.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ..errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class NameTable:
    """names: checkpoint tensor to parameter. ignored: checkpoint tensors that carry nothing of their own."""

    names: Mapping[str, str]
    ignored: Collection[str] = ()


HF_NAMES = NameTable(
    names={
        "model.embed_tokens.weight": "embed.weight",
        "model.norm.weight": "norm.weight",
        "lm_head.weight": "head.weight",
        "model.layers.{}.input_layernorm.weight": "layers.{}.attention_norm.weight",
        "model.layers.{}.self_attn.q_proj.weight": "layers.{}.attention.q.weight",
        "model.layers.{}.self_attn.k_proj.weight": "layers.{}.attention.k.weight",
        "model.layers.{}.self_attn.v_proj.weight": "layers.{}.attention.v.weight",
        "model.layers.{}.self_attn.o_proj.weight": "layers.{}.attention.o.weight",
        "model.layers.{}.self_attn.q_proj.bias": "layers.{}.attention.q.bias",
        "model.layers.{}.self_attn.k_proj.bias": "layers.{}.attention.k.bias",
        "model.layers.{}.self_attn.v_proj.bias": "layers.{}.attention.v.bias",
        "model.layers.{}.self_attn.o_proj.bias": "layers.{}.attention.o.bias",
        "model.layers.{}.self_attn.q_norm.weight": "layers.{}.attention.q_norm.weight",
        "model.layers.{}.self_attn.k_norm.weight": "layers.{}.attention.k_norm.weight",
        "model.layers.{}.self_attn.sinks": "layers.{}.attention.sinks",
        "model.layers.{}.post_attention_layernorm.weight": "layers.{}.mlp_norm.weight",
        "model.layers.{}.mlp.gate_proj.weight": "layers.{}.mlp.gate.weight",
        "model.layers.{}.mlp.up_proj.weight": "layers.{}.mlp.up.weight",
        "model.layers.{}.mlp.down_proj.weight": "layers.{}.mlp.down.weight",
        "model.layers.{}.mlp.gate_proj.bias": "layers.{}.mlp.gate.bias",
        "model.layers.{}.mlp.up_proj.bias": "layers.{}.mlp.up.bias",
        "model.layers.{}.mlp.down_proj.bias": "layers.{}.mlp.down.bias",
    },
    # Saved by old versions of transformers; the configuration says the same.
    ignored=("model.layers.{}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"),
)

GGUF_NAMES = NameTable(
    names={
        "token_embd.weight": "embed.weight",
        "output_norm.weight": "norm.weight",
        "output.weight": "head.weight",
        "blk.{}.attn_norm.weight": "layers.{}.attention_norm.weight",
        "blk.{}.attn_q.weight": "layers.{}.attention.q.weight",
        "blk.{}.attn_k.weight": "layers.{}.attention.k.weight",
        "blk.{}.attn_v.weight": "layers.{}.attention.v.weight",
        "blk.{}.attn_output.weight": "layers.{}.attention.o.weight",
        "blk.{}.attn_q.bias": "layers.{}.attention.q.bias",
        "blk.{}.attn_k.bias": "layers.{}.attention.k.bias",
        "blk.{}.attn_v.bias": "layers.{}.attention.v.bias",
        "blk.{}.attn_output.bias": "layers.{}.attention.o.bias",
        "blk.{}.attn_q_norm.weight": "layers.{}.attention.q_norm.weight",
        "blk.{}.attn_k_norm.weight": "layers.{}.attention.k_norm.weight",
        "blk.{}.ffn_norm.weight": "layers.{}.mlp_norm.weight",
        "blk.{}.ffn_gate.weight": "layers.{}.mlp.gate.weight",
        "blk.{}.ffn_up.weight": "layers.{}.mlp.up.weight",
        "blk.{}.ffn_down.weight": "layers.{}.mlp.down.weight",
        "blk.{}.ffn_gate.bias": "layers.{}.mlp.gate.bias",
        "blk.{}.ffn_up.bias": "layers.{}.mlp.up.bias",
        "blk.{}.ffn_down.bias": "layers.{}.mlp.down.bias",
    },
    # Read into the configuration instead (`RopeConfig.divisors`).
    ignored=("rope_freqs.weight",),
)

# GGUF architectures whose rows of q and k are stored with the two halves of each head interleaved
# (row 2i + j of a head holds row i + j * head_dim / 2), weights and biases alike.
GGUF_INTERLEAVED_ARCHITECTURES = frozenset({"llama", "smollm3"})
GGUF_INTERLEAVED_PARAMETERS = re.compile(r"layers\.\d+\.attention\.(?P<which>[qk])\.(weight|bias)")


def parameter_name(table: NameTable, tensor_name: str) -> str | None:
    """The parameter that a checkpoint tensor is, or None if the table does not know it."""
    number = re.search(r"(?<=\.)\d+(?=\.)", tensor_name)
    if number is None:
        return table.names.get(tensor_name)
    layer = number.group()
    pattern = table.names.get(tensor_name.replace(f".{layer}.", ".{}.", 1))
    return None if pattern is None else pattern.format(layer)


def match_names(table: NameTable, tensor_names: Iterable[str], parameters: Collection[str], source: str) -> dict[str, str]:
    """Pairs a checkpoint's tensors with the parameters of a model: parameter name to tensor name.

    parameters: the names that `Decoder` has for the checkpoint's configuration. A tied model may store its one matrix
    under the embedding's name, the head's, or both; both map to the parameter `embed.weight`, the embedding first.
    Raises CheckpointError naming tensors that no parameter takes and parameters that no tensor fills.
    """
    matched: dict[str, str] = {}
    unused: list[str] = []
    tied_head: str | None = None
    for tensor_name in tensor_names:
        name = parameter_name(table, tensor_name)
        if name == "head.weight" and name not in parameters:
            tied_head = tensor_name
        elif name is not None and name in parameters:
            matched[name] = tensor_name
        elif re.sub(r"\.\d+\.", ".{}.", tensor_name, count=1) not in table.ignored:
            unused.append(tensor_name)
    if tied_head is not None:
        matched.setdefault("embed.weight", tied_head)
    missing = [name for name in parameters if name not in matched]
    if unused or missing:
        originals = {parameter: tensor for tensor, parameter in table.names.items()}
        wanted = [_tensor_name(originals, name) for name in missing]
        lines = [f"{source} does not fit the model that its configuration describes"]
        lines += [f"  tensors that the model has no place for: {_listing(unused)}"] if unused else []
        lines += [f"  tensors that are missing: {_listing(wanted)}"] if wanted else []
        raise CheckpointError("\n".join(lines), hint="the file is incomplete, or its configuration belongs to another model")
    return matched


def _tensor_name(originals: Mapping[str, str], name: str) -> str:
    layer = re.search(r"(?<=^layers\.)\d+", name)
    if layer is None:
        return originals[name]
    return originals[name.replace(layer.group(), "{}", 1)].format(layer.group())


def _listing(names: list[str], limit: int = 10) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
