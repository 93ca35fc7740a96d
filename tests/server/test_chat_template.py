"""From messages to tokens."""

from pathlib import Path
from typing import Any

import pytest
from artifact_stand_in import BOS, CHAT_TEMPLATE, EOS, byte_level_tokenizer, sentencepiece_tokenizer, token_id, write_tokenizer
from tokenizers import processors

from engine.errors import ArtifactError, RequestError
from engine.server.text.chat_template import ChatTemplate
from engine.server.text.text import Text

HELLO = [{"role": "user", "content": "Hi"}]


def render(source: str, **extra: object) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(HELLO, add_generation_prompt=True, extra=extra)


@pytest.fixture
def text(tmp_path: Path) -> Text:
    write_tokenizer(tmp_path / "t", byte_level_tokenizer(), bos=BOS, eos=EOS, add_bos=False)
    return Text.load(tmp_path / "t")


def test_a_conversation(text: Text) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, *HELLO]
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert text.render_chat(messages, add_generation_prompt=False) == expected
    assert text.render_chat(messages) == expected + "<|im_start|>assistant\n"
    assert text.decode(text.encode_chat(messages)) == expected + "<|im_start|>assistant\n"


def test_special_tokens_of_the_template_are_single_tokens(text: Text) -> None:
    tokens = text.encode_chat(HELLO)
    assert [tokens.count(text.encode(token)[0]) for token in (BOS, EOS)] == [2, 1]


def test_content_may_be_text_parts(text: Text) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert "user\nonetwo<|im_end|>" in text.render_chat([{"role": "user", "content": parts}])


def test_an_assistants_own_message_can_come_back_as_the_client_holds_it(text: Text) -> None:
    answer: dict[str, Any] = {"role": "assistant", "content": "Yes?", "refusal": None, "tool_calls": None, "audio": None, "annotations": []}
    assert "assistant\nYes?<|im_end|>" in text.render_chat([*HELLO, answer])


@pytest.mark.parametrize(
    ("message", "param", "says"),
    [
        ({"content": "x"}, "messages[0].role", "role must be one of"),
        ({"role": "robot", "content": "x"}, "messages[0].role", "'robot'"),
        ({"role": "function", "content": "x"}, "messages[0].role", "not supported"),
        ({"role": "assistant", "function_call": {}}, "messages[0].function_call", "not supported"),
        ({"role": "user"}, "messages[0].content", "must be a string"),
        ({"role": "user", "content": 3}, "messages[0].content", "must be a string"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]", "must be an object"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text", "needs a string"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content[0].type", "'image_url'"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls[0].function", "with a name"),
        ({"role": "assistant", "tool_calls": {}}, "messages[0].tool_calls", "must be a list"),
        ({"role": "user", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls", "makes no calls"),
    ],
)
def test_bad_messages_are_named(text: Text, message: dict[str, object], param: str, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        text.render_chat([message])
    assert (caught.value.param, caught.value.status) == (param, 400)


def test_what_the_template_refuses_is_the_requests_fault(text: Text) -> None:
    with pytest.raises(RequestError, match="the user speaks first"):
        text.render_chat([{"role": "assistant", "content": "x"}])
    with pytest.raises(RequestError, match="must not be empty"):
        text.render_chat([])
    with pytest.raises(RequestError, match="TypeError"):
        render("{{ messages[0].content + 1 }}")


def test_what_hugging_face_templates_expect() -> None:
    assert render("{{ bos_token }}{{ eos_token }}{{ {'b': '<é>', 'a': [1]} | tojson }}") == '<s>{"b": "<é>", "a": [1]}'
    assert render("{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}") == "1"
    assert render("  {% if true %}\n  x\n  {% endif %}\n") == "  x\n"
    assert render("{% generation %}a{{ messages[0].content }}{% endgeneration %}") == "aHi"
    assert render("{{ strftime_now('%Y') | length }}") == "4"
    assert render("{{ enable_thinking }}", enable_thinking=False) == "False"


def test_the_sandbox_holds() -> None:
    for escape in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ raise_exception.__globals__.x }}"):
        with pytest.raises(RequestError):
            render(escape)


def test_a_template_that_does_not_parse() -> None:
    with pytest.raises(ArtifactError, match="does not parse"):
        render("{% if %}")


def test_a_beginning_is_put_once(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer()
    write_tokenizer(tmp_path / "t", tokenizer, bos="<s>", eos="</s>", add_bos=True, template="{{ bos_token }}{{ messages[0].content }}")
    text, bos = Text.load(tmp_path / "t"), token_id(tokenizer, "<s>")
    assert text.encode("hello") == [bos, *tokenizer.encode("hello").ids]
    assert text.encode("<s>hello").count(bos) == 1
    assert text.encode_chat(HELLO).count(bos) == 1
    assert text.encode("") == [bos]


def test_a_beginning_that_the_tokenizer_puts_is_not_doubled(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    bos = token_id(tokenizer, BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos)])
    write_tokenizer(tmp_path / "t", tokenizer, bos=BOS, eos=EOS, add_bos=False)
    text = Text.load(tmp_path / "t")
    assert text.encode("x")[:2] == [bos, *text.encode("x")[1:2]]
    assert text.encode(f"{BOS}x").count(bos) == 1
    assert text.encode_chat(HELLO)[:2].count(bos) == 1


def test_prompts_are_never_cut_short(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    write_tokenizer(tmp_path / "t", tokenizer, bos=BOS, eos=EOS, add_bos=False)
    text = Text.load(tmp_path / "t")
    assert (len(text.encode("x" * 50)), len(text.encode("x"))) == (50, 1)


def test_a_model_without_template_completes_only(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "t", byte_level_tokenizer(), bos=BOS, eos=EOS, add_bos=False, template=None)
    with pytest.raises(RequestError, match="/v1/completions") as caught:
        Text.load(tmp_path / "t").encode_chat(HELLO)
    assert caught.value.code == "no_chat_template"


@pytest.mark.parametrize("damage", ["tokenizer.json", "text.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]"])
def test_damaged_files(tmp_path: Path, damage: str, content: bytes | None) -> None:
    write_tokenizer(tmp_path / "t", byte_level_tokenizer(), bos=BOS, eos=EOS, add_bos=False, template=CHAT_TEMPLATE)
    if content is None:
        (tmp_path / "t" / damage).unlink()
    else:
        (tmp_path / "t" / damage).write_bytes(content)
    with pytest.raises(ArtifactError, match="cannot be read"):
        Text.load(tmp_path / "t")


CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}


def conversation(source: str, *messages: dict[str, Any], **options: Any) -> str:
    return ChatTemplate(source, {}).render(messages, add_generation_prompt=False, **options)


def test_content_comes_in_the_shape_that_the_template_reads() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}
    text = {"role": "user", "content": "one"}
    loops = "{% for part in messages[0].content %}<{{ part.text }}>{% endfor %}"
    assert (conversation(loops, parts), conversation(loops, text)) == ("<one><two>", "<one>")
    assert (conversation("{{ messages[0].content }}", parts), conversation("{{ messages[0].content }}", text)) == ("onetwo", "one")
    both = "{% if messages[0].content is string %}={{ messages[0].content }}{% else %}" + loops + "{% endif %}"
    assert (conversation(both, parts), conversation(both, text)) == ("<one><two>", "=one")


def test_calls_have_their_arguments_as_the_template_writes_them() -> None:
    calling = {"role": "assistant", "tool_calls": [CALL]}
    each = "{% for call in messages[-1].tool_calls or [] %}"
    user = {"role": "user", "content": "x"}
    for expression in ("call.function.arguments | tojson", "call.function.arguments"):
        assert conversation(each + "{{ " + expression + " }}{% endfor %}", user, calling) == '{"a": [1]}'
    joined = each + "{{ '<' + call.function.arguments + '>' }}{% endfor %}"
    assert conversation(joined, user, calling) == '<{"a": [1]}>'
    items = each + "{% for name, value in call.function.arguments.items() %}{{ name }}={{ value }}{% endfor %}{% endfor %}"
    assert conversation(items, user, calling) == "a=[1]"


def test_absent_content_is_undefined_where_the_template_knows_that() -> None:
    user, calling = {"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert conversation("{{ messages[-1].content is defined }}", user, calling) == "False"
    assert conversation("{{ '<' + messages[-1].content + '>' }}", user, calling) == "<>"


def test_roles_and_names() -> None:
    roles = "{% for message in messages %}{{ message.role }} {{ message.name }} {% endfor %}"
    user, system = {"role": "user", "content": "x"}, {"role": "developer", "content": "x"}
    assert conversation(roles, system, user) == "system  user  "
    assert conversation(roles + "{# developer #}", system) == "developer  "
    result = {"role": "tool", "content": "x", "tool_call_id": CALL["id"]}
    assert conversation(roles, user, {"role": "assistant", "tool_calls": [CALL]}, result).endswith("tool f ")


def test_tools_need_a_template_that_reads_them() -> None:
    user, tool = {"role": "user", "content": "x"}, {"type": "function", "function": {"name": "f"}}
    assert conversation("{{ tools[0].function.name }}{{ tools is none }}", user, tools=[tool]) == "fFalse"
    with pytest.raises(RequestError, match="no place for tools") as refused:
        conversation("{{ messages }}", user, tools=[tool])
    assert refused.value.param == "tools"


def test_reasoning_comes_back_under_the_name_that_the_template_has() -> None:
    user = {"role": "user", "content": "x"}
    for name in ("reasoning", "reasoning_content", "thinking"):
        source = "{{ messages[-1]." + name + " }}"
        for given in ("reasoning", "reasoning_content"):
            assert conversation(source, user, {"role": "assistant", "content": "So.", given: "Hm."}) == "Hm."
    both = {"role": "assistant", "content": "So.", "reasoning": "Hm.", "tool_calls": [CALL]}
    assert conversation("{{ messages[-1].thinking }}", user, both) == ""
