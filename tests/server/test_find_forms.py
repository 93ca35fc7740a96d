"""What a build learns from a chat template."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from artifact_stand_in import BOS, CHAT_TEMPLATE, EOS, TOOLS_TEMPLATE, byte_level_tokenizer, write_tokenizer
from family_templates import TEMPLATES

from engine.artifacts import AnswerForms
from engine.server.find_forms import find_forms
from engine.server.text.chat_template import ChatTemplate


def found(source: str) -> AnswerForms:
    return find_forms(ChatTemplate(source, {}))


@pytest.mark.parametrize("form", sorted(TEMPLATES))
def test_the_form_of_calls_is_that_of_the_templates_own(form: str) -> None:
    assert found(TEMPLATES[form]).tools == form


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("<think>\n{{ m }}\n</think>", "think"),
        ("{{ m.split('</think>')[-1] }}", "think"),
        ("<think>\n</think>\n<answer>\n</answer>", "hunyuan"),
        ("[THINK][/THINK]", "mistral"),
        ("<seed:think></seed:think>", "seed_oss"),
        ("<|channel>thought\n<channel|>", "gemma4"),
        ("<|START_THINKING|><|END_THINKING|>", "cohere"),
        ("Here is my thought process: Here is my response:", "granite"),
        ("<|start|>assistant<|channel|>analysis<|message|>", "gpt_oss"),
        ("", None),
    ],
)
def test_the_form_of_reasoning_is_that_of_its_marks(text: str, form: str | None) -> None:
    assert found(CHAT_TEMPLATE + "{% if false %}" + text + "{% endif %}").reasoning == form


def test_templates_that_say_less() -> None:
    assert found(CHAT_TEMPLATE) == AnswerForms()
    assert found(TOOLS_TEMPLATE) == AnswerForms(tools="hermes", reasoning="think")
    only_described = CHAT_TEMPLATE + "{% if tools %}Answer with <function_calls>f()</function_calls>.{% endif %}"
    assert found(only_described).tools == "olmo3"
    says_nothing = CHAT_TEMPLATE + "{% if tools %}{{ tools }}{% endif %}"
    assert found(says_nothing).tools is None
    tokens = ["<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"]
    assert find_forms(ChatTemplate(says_nothing, {}), tokens).tools is None
    sections = ["<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"]
    assert find_forms(ChatTemplate(says_nothing, {}), [*tokens, *sections]).tools == "kimi_k2"
    refuses = "{% for m in messages if m.role == 'tool' %}{{ raise_exception('no') }}{% endfor %}{{ tools }}<tool_calls></tool_calls>"
    assert found(refuses).tools == "jamba"


def run(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "engine.server.find_forms", str(directory)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer", byte_level_tokenizer(), bos=BOS, eos=EOS, add_bos=False, template=TOOLS_TEMPLATE)
    assert json.loads(run(tmp_path).stdout) == {"tools": "hermes", "reasoning": "think"}
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text("{% if %}")
    broken = run(tmp_path)
    assert broken.returncode != 0
    assert "does not parse" in broken.stderr
