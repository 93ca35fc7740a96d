"""How byte-level BPE tokenizers cut text into words, by the names that GGUF files give them.

Which names mean the same is what llama.cpp's llama-vocab.cpp says; the patterns are those of the models' own tokenizers.
"""

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """How a byte-level BPE cuts text into words before merging.

    pattern: cuts words apart; None for GPT-2's own. split_digits: every digit is a word of its own.
    whole_words: a word that is in the vocabulary is one token, whatever the merges say.
    """

    pattern: str | None = None
    split_digits: bool = False
    whole_words: bool = False
    nfc: bool = False
    add_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.split_digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.pattern is not None:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), behavior="isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.pattern is None))
        return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SEED_CODER = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_LOWER}|{_UPPER}|\p{{N}}|{_REST}"
_GPT_4O = rf"{_LOWER}{_CONTRACTIONS}?|{_UPPER}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_REST}"

_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2")
_NAMES = {
    PreTokenizer(): ("gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "exaone4", "mpt", "olmo", "jais", "trillion", "granite-docling"),
    PreTokenizer(split_digits=True): ("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"),
    PreTokenizer(split_digits=True, nfc=True): ("command-r",),
    PreTokenizer(pattern=_LLAMA3, whole_words=True, add_bos=True): _LLAMA3_NAMES,
    PreTokenizer(pattern=_LLAMA3): ("smaug-bpe", "dbrx", "glm4", "chatglm-bpe"),
    PreTokenizer(pattern=_QWEN2, nfc=True): ("qwen2",),
    PreTokenizer(pattern=_QWEN2): ("deepseek-r1-qwen", "megrez", "kormo", "stablelm2", "hunyuan", "solar-open", "grok-2"),
    PreTokenizer(pattern=_SEED_CODER): ("seed-coder",),
    PreTokenizer(pattern=_TEKKEN, whole_words=True, add_bos=True): ("tekken",),
    PreTokenizer(pattern=_GPT_4O): ("gpt-4o", "llama4", "kanana2"),
}
PRE_TOKENIZERS = {name: pre_tokenizer for pre_tokenizer, names in _NAMES.items() for name in names}
"""By the value of tokenizer.ggml.pre."""
