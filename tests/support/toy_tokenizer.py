"""A byte-level tokenizer of some 280 tokens, with several ways to write the same text."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END = "<|end|>"
_MERGES = ('" :', '": "', ": Ġ", ", Ġ", "t r", "u e", "tr ue", "n u", "l l", "nu ll", "a b", "ab c", "} }", '" }', "[ ]", '{ "')


def write_toy_tokenizer(directory: Path) -> Tokenizer:
    """Writes tokenizer/tokenizer.json, as an artifact has it. Its last token ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(left, right) for left, right in (merge.split(" ") for merge in _MERGES)]
    vocabulary = {token: id for id, token in enumerate([*alphabet, *dict.fromkeys(left + right for left, right in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [merge for merge in merges if set(merge) <= vocabulary.keys()]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    (directory / "tokenizer").mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer" / "tokenizer.json"))
    return tokenizer
