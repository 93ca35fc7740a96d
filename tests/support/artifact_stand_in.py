"""An artifact directory for a worker without a model: real manifest, real small tokenizers, no code and no weights."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from engine.artifacts import (
    AnswerForms,
    CacheGroup,
    FileInfo,
    Manifest,
    MemoryPlan,
    ModelInfo,
    PooledInfo,
    Probe,
    Program,
    RoutesInfo,
    Toolchain,
    load_manifest,
)
from engine.artifacts.manifest import SCHEMA_VERSION, content_digest
from engine.artifacts.step_inputs import step_inputs

MODEL = "echo"
MAX_CONTEXT = 512
BOS, EOS, END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{%- if messages[0].role == 'assistant' %}{{ raise_exception('the user speaks first') }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS_TEMPLATE = (
    "{% if say %}{{ say }}<|im_end|>\n{% endif %}"
    "{% if tools %}<|im_start|>system\n# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}{{ message.content }}"
    "{% for call in message.tool_calls %}\n<tool_call>\n"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)
"""Calls as hermes has them, and reasoning. `say` comes first: what a worker that says its prompt back will answer."""
CONVERSING_TEMPLATE = (
    "{% set last = messages[-1] %}"
    "{% if last.role == 'tool' %}The tool says {{ last.content }}."
    '{% elif tools %}<tool_call>\n{"name": "{{ tools[0].function.name }}", "arguments": {{ last.content }}}\n</tool_call>'
    "{% else %}{{ last.content }}{% endif %}<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls %}{{ call.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
"""A worker that says its prompt back answers what the user says, calls the first tool with it, or tells a tool's result."""
CORPUS = (
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on by the river.",
    "a b c d e f g a b c d e f g a b c d e f g",
    "One, two, three, four, five: once I caught a fish alive. Then I let it go again.",
)


def byte_level_tokenizer() -> Tokenizer:
    """BPE over bytes: every character outside of ASCII is several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[BOS, EOS, END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece_tokenizer() -> Tokenizer:
    """BPE over characters with single bytes for what it does not know, and a space put before every text."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz,.é"]
    merges = [("▁", "a"), ("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello")]
    vocabulary = {token: i for i, token in enumerate([*tokens, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    id = tokenizer.token_to_id(token)
    assert id is not None
    return id


def write_tokenizer(
    directory: Path, tokenizer: Tokenizer, *, bos: str, eos: str, add_bos: bool, template: str | None = CHAT_TEMPLATE
) -> None:
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    text = {
        "special_tokens": {"bos_token": bos, "eos_token": eos},
        "bos_token_id": tokenizer.token_to_id(bos),
        "eos_token_ids": [tokenizer.token_to_id(eos)],
    }
    (directory / "text.json").write_text(json.dumps({**text, "add_bos": add_bos}))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")


def write_artifact(
    directory: Path,
    *,
    template: str | None = CHAT_TEMPLATE,
    forms: AnswerForms | None = None,
    pooled: PooledInfo | None = None,
    routes: RoutesInfo | None = None,
    max_context: int = MAX_CONTEXT,
    added_tokens: Sequence[str] = (),
) -> Path:
    """pooled: of a model that makes vectors or scores, an encoder whose texts and pairs stand between special tokens. routes: what is told
    of experts."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(list(added_tokens))
    if pooled is not None:
        special = [(token, token_id(tokenizer, token)) for token in (BOS, EOS)]
        single, pair = f"{BOS} $A {EOS}", f"{BOS} $A {EOS} $B:1 {EOS}:1"
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    groups = [CacheGroup(name="full", kind="full", layers=[0], num_kv_heads=1, head_dim=1, block_size=16, dtype="float32")]
    write_tokenizer(directory / "tokenizer", tokenizer, bos=BOS, eos=EOS, add_bos=False, template=template)
    told = [] if routes is None else routes.results
    manifest = Manifest(
        schema=SCHEMA_VERSION,
        created=1_700_000_000,
        target="cpu",
        toolchain=Toolchain(engine="0", torch="0", compiler="0"),
        model=ModelInfo(
            name=MODEL,
            architecture="echo",
            vocab_size=tokenizer.get_vocab_size(),
            max_context=max_context,
            hidden_size=1,
            num_layers=1,
            parameters=1,
            quantize="none",
            source_format="none",
        ),
        pooled=pooled,
        routes=routes,
        caches=groups if pooled is None else [],
        kernel_library="kernels/none.so",
        segments=[],
        programs={
            "step": Program(
                inputs=step_inputs(["full"] if pooled is None else []),
                calls=[],
                results={"logits" if pooled is None else "pooled": "value:0"} | {name: f"value:{name}" for name in told},
            )
        },
        weights={},
        memory=MemoryPlan(weight_bytes=0, activations={}),
        fusion=[],
        probe=Probe(recorded_on="reference", prompts=[]),
        forms=forms,
        files={},
    )
    (directory / "kernels").mkdir()
    (directory / "kernels" / "none.so").touch()
    seal(directory, manifest)
    return directory


def seal(directory: Path, manifest: Manifest) -> Manifest:
    """Write a manifest that lists the files that are in `directory` now; gives it as it is read."""
    sealed = msgspec.structs.replace(manifest, files=file_infos(directory))
    (directory / "manifest.json").write_bytes(sealed.encode())
    return load_manifest(directory)


def with_tokenizer(directory: Path, manifest: Manifest) -> Manifest:
    """Give an artifact whose vocabulary is that of `byte_level_tokenizer` a tokenizer."""
    write_tokenizer(directory / "tokenizer", byte_level_tokenizer(), bos=BOS, eos=EOS, add_bos=False)
    return seal(directory, manifest)


def file_infos(directory: Path) -> dict[str, FileInfo]:
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name not in ("manifest.json", "manifest.sig"))
    return {
        path.relative_to(directory).as_posix(): FileInfo(bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        for path in files
    }


def edit_manifest(directory: Path, change: Callable[[dict[str, Any]], object], *, reseal: bool = True) -> None:
    """Change the parsed manifest; its digest is made right again, unless what changes it is to be noticed."""
    path = directory / "manifest.json"
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(resealed(content) if reseal else content))


def resealed(content: dict[str, Any]) -> dict[str, Any]:
    """The same with its right digest."""
    return {**content, "digest": content_digest(content)}
