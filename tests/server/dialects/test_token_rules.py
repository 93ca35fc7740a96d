"""What a request says of single tokens, on its way to the worker."""

from typing import Any

import pytest
from artifact_stand_in import byte_level_tokenizer, sentencepiece_tokenizer
from tokenizers import Tokenizer

from engine.errors import RequestError
from engine.protocol import Ready, TokenRules
from engine.server.dialects.params import GenerationParams
from engine.server.dialects.planning import Ask, ModelLimits, Prompt, plan
from engine.server.text.text import Text, TextSpec

READY = Ready(num_blocks=9, max_tokens=99, max_batch_tokens=9, max_num_seqs=9)


def text(tokenizer: Tokenizer) -> Text:
    return Text(tokenizer, TextSpec(special_tokens={}, bos_token_id=None, eos_token_ids=[], add_bos=True), None)


def plans(tokenizer: Tokenizer, choices: int = 1, **params: Any) -> list[Any]:
    ask = Ask(prompts=[Prompt([5], True)], params=GenerationParams(**params), param="prompt", max_tokens=9, choices=choices)
    return [assembler.plan.sampling for assembler in plan(ask, text(tokenizer), ModelLimits(99, tokenizer.get_vocab_size()), READY)]


def test_all_choices_share_one() -> None:
    made = plans(byte_level_tokenizer(), 3, logit_bias={5: -100.0, 7: 2.0}, allowed_token_ids=[5, 6], seed=1)
    assert {id(each.token_rules) for each in made} == {id(made[0].token_rules)}
    assert made[0].token_rules == TokenRules.of({5: -100.0, 7: 2.0}, [5, 6])
    assert [each.seed for each in made] == [1, 2, 3]
    assert plans(byte_level_tokenizer(), logit_bias={})[0].token_rules is None


@pytest.mark.parametrize("make", [byte_level_tokenizer, sentencepiece_tokenizer])
def test_bad_words_stand_at_the_beginning_or_after_a_space(make: Any) -> None:
    tokenizer = make()
    (made,) = plans(tokenizer, bad_words=["hello", " dog"])
    wanted = [tuple(tokenizer.encode(word, add_special_tokens=False).ids) for word in ("hello", " hello", "dog", " dog")]
    assert made.bad_words == tuple(wanted)


@pytest.mark.parametrize("params", [{"allowed_token_ids": [99999]}, {"logit_bias": {99999: 1.0}}, {"stop_token_ids": [99999]}])
def test_tokens_that_there_are_not_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        plans(byte_level_tokenizer(), **params)
    assert caught.value.param == next(iter(params))
