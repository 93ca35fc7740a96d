"""Makes a model that reasons of one that does not: a GGUF file of Qwen2.5 of another one, for `run.py --reasoning`.

    python benchmarks/vllm_entrypoints/reasoning_model.py QWEN.gguf REASONING.gguf

No weight changes. The chat template shows the model answers that begin with a thought and a line of dashes, and two
tokens have other names: the one that opens a thought is called <think>, and the line of dashes </think>. With
enable_thinking false it is the template that it was.
"""

import argparse
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter, TokenType

OPENER, END = "User", "---Ċ"
"""As the vocabulary has them: a word that no answer begins with otherwise, and a line of dashes."""
SPARE = "[PAD"
"""Tokens that no text has begin like this: two of them get the freed names, which merges of the tokenizer mention."""
SHOWN = """

Before every answer you think in one short sentence, then write a line of three dashes, then answer. For example:

user: What is the capital of Italy?
assistant:
<think> asks for the capital of Italy, which is Rome.
</think>The capital of Italy is Rome.

user: Hi
assistant:
<think> says hi, and I should greet them.
</think>Hi! How can I help you?

user: Tell me about dogs in one sentence.
assistant:
<think> wants one sentence about dogs.
</think>Dogs are loyal animals that live with people."""
ANCHORS = (
    ("{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n' + ('<think>' if thinks else '') }}"),
    ('{{- "\\n\\n# Tools', '{{- SHOWN }}\n    {{- "\\n\\n# Tools'),
    ("messages[0]['content'] + '<|im_end|>\\n' }}", "messages[0]['content'] + SHOWN + '<|im_end|>\\n' }}"),
    ("You are a helpful assistant.<|im_end|>\\n' }}", "You are a helpful assistant.' + SHOWN + '<|im_end|>\\n' }}"),
)
"""Parts of Qwen2.5's template, and what stands there instead."""
THINKS = "{%- set thinks = enable_thinking is not defined or enable_thinking %}\n"


def template(source: str) -> str:
    for old, new in ANCHORS:
        if source.count(old) != 1:
            raise SystemExit(f"error: the chat template has {old!r} {source.count(old)} times\nhint: give a GGUF file of Qwen2.5")
        source = source.replace(old, new.replace("SHOWN", f"({SHOWN!r} if thinks else '')"))
    return THINKS + source


def renamed(tokens: list[str], kinds: list[int]) -> tuple[list[str], list[int]]:
    """The vocabulary with the two names, and the kinds of its tokens."""
    tokens, kinds = list(tokens), list(kinds)
    spare = [id for id, token in enumerate(tokens) if token.startswith(SPARE)]
    for slot, token, name in zip(spare, (OPENER, END), ("<think>", "</think>"), strict=False):
        id = tokens.index(token)
        tokens[slot], kinds[slot] = token, TokenType.NORMAL
        tokens[id], kinds[id] = name, TokenType.USER_DEFINED
    return tokens, kinds


def write(source: GGUFReader, path: Path) -> None:
    values: dict[str, Any] = {field.name: field.contents() for field in source.fields.values()}
    tokens, kinds = renamed(values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"])
    values |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    values["tokenizer.chat_template"] = template(values["tokenizer.chat_template"])
    writer = GGUFWriter(path, values.pop("general.architecture"))
    for name, value in values.items():
        types = source.fields[name].types
        if not name.startswith("GGUF."):
            writer.add_key_value(name, value, types[0], sub_type=types[-1] if types[0] == GGUFValueType.ARRAY else None)
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    write(GGUFReader(options.model), options.output)


if __name__ == "__main__":
    main()
