"""Which family of models writes calls and reasoning in which form. One row per form, under the name that other engines have for it."""

from collections.abc import Mapping
from dataclasses import replace

from .forms.brace_calls import BraceCalls
from .forms.form import Form
from .forms.harmony import Harmony
from .forms.json_calls import JsonCalls
from .forms.named_json import NamedJson
from .forms.python_calls import PythonCalls
from .forms.think import Silent, Think
from .forms.xml_calls import XmlCalls

_COHERE_RESPONSE = Silent(("<|START_RESPONSE|>", "<|END_RESPONSE|>"))

BARE_JSON = JsonCalls(("{", "[", "```json", "```", "<tools>"), ("```", "</tools>"), where="line", bare=True)
"""What models write that leave their tags out: read beside every form."""

TOOL_FORMS: Mapping[str, tuple[Form, ...]] = {
    "hermes": (JsonCalls(("<tool_call>",), ("</tool_call>",)),),
    "granite": (JsonCalls(("<|tool_call|>", "<tool_call>", "<function_call>"), ("</tool_call>",), listed=True),),
    "internlm": (JsonCalls(("<|action_start|><|plugin|>",), ("<|action_end|>",), arguments_key="parameters"),),
    "jamba": (JsonCalls(("<tool_calls>",), ("</tool_calls>",), listed=True),),
    "phi4_mini_json": (JsonCalls(("functools",), listed=True), JsonCalls(("<|tool_call|>",), ("<|/tool_call|>",), listed=True)),
    "llama3_json": (replace(BARE_JSON, arguments_key="parameters"), JsonCalls(("<|python_tag|>",))),
    "xlam": (replace(BARE_JSON, listed=True),),
    "mistral": (NamedJson("[TOOL_CALLS]", "[ARGS]", id_mark="[CALL_ID]"), JsonCalls(("[TOOL_CALLS]",), listed=True)),
    "llama4_pythonic": (
        PythonCalls(("<|python_start|>",), ("<|python_end|>",)),
        PythonCalls(("[",), where="line", bare=True),
    ),
    "olmo3": (PythonCalls(("<function_calls>",), ("</function_calls>",), lines=True),),
    "lfm2": (PythonCalls(("<|tool_call_start|>",), ("<|tool_call_end|>",)),),
    "qwen3_coder": (
        XmlCalls("<function=", ">", "<parameter=", ">", "", "</parameter>", "</function>", "<tool_call>", "</tool_call>", own_line=True),
        JsonCalls(("<tool_call>",), ("</tool_call>",)),
    ),
    "glm45": (XmlCalls("<tool_call>", "", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "</tool_call>"),),
    "minimax_m2": (
        XmlCalls(
            '<invoke name="',
            '">',
            '<parameter name="',
            '"',
            ">",
            "</parameter>",
            "</invoke>",
            "<minimax:tool_call>",
            "</minimax:tool_call>",
        ),
    ),
    "seed_oss": (
        XmlCalls("<function=", ">", "<parameter=", ">", "", "</parameter>", "</function>", "<seed:tool_call>", "</seed:tool_call>"),
    ),
    "step3": (
        Silent(("<｜tool_calls_begin｜>", "<｜tool_calls_end｜>", "<｜tool_call_begin｜>function<｜tool_sep｜>", "<｜tool_call_end｜>")),
        XmlCalls('<steptml:invoke name="', '">', '<steptml:parameter name="', '"', ">", "</steptml:parameter>", "</steptml:invoke>"),
    ),
    "deepseek_v3": (
        NamedJson(
            "<｜tool▁call▁begin｜>",
            "\n```json\n",
            "<｜tool▁calls▁begin｜>",
            "function<｜tool▁sep｜>",
            call_end="\n```<｜tool▁call▁end｜>",
            section_end="<｜tool▁calls▁end｜>",
        ),
    ),
    "deepseek_v31": (
        NamedJson(
            "<｜tool▁call▁begin｜>",
            "<｜tool▁sep｜>",
            "<｜tool▁calls▁begin｜>",
            call_end="<｜tool▁call▁end｜>",
            section_end="<｜tool▁calls▁end｜>",
        ),
    ),
    "deepseek_v32": (
        XmlCalls(
            '<｜DSML｜invoke name="',
            '">',
            '<｜DSML｜parameter name="',
            '"',
            ">",
            "</｜DSML｜parameter>",
            "</｜DSML｜invoke>",
            "<｜DSML｜function_calls>",
            "</｜DSML｜function_calls>",
            typed=True,
        ),
    ),
    "kimi_k2": (
        NamedJson(
            "<|tool_call_begin|>",
            "<|tool_call_argument_begin|>",
            "<|tool_calls_section_begin|>",
            call_end="<|tool_call_end|>",
            section_end="<|tool_calls_section_end|>",
            names_are_ids=True,
        ),
    ),
    "cohere": (
        JsonCalls(("<|START_ACTION|>",), ("<|END_ACTION|>",), name_key="tool_name", arguments_key="parameters", listed=True),
        _COHERE_RESPONSE,
    ),
    "functiongemma": (BraceCalls("<start_function_call>", "<end_function_call>", "<escape>"),),
    "gemma4": (BraceCalls("<|tool_call>", "<tool_call|>", '<|"|>'),),
    "gpt_oss": (Harmony(),),
}

_SECTIONS = ("<｜tool▁calls▁begin｜>", "<|tool_calls_section_begin|>", "<minimax:tool_call>", "<｜DSML｜function_calls>")

REASONING_FORMS: Mapping[str, tuple[Form, ...]] = {
    "think": (Think(("<think>",), ("</think>",), ends_before=_SECTIONS),),
    "deepseek_r1": (Think(("<think>",), ("</think>",), ends_before=_SECTIONS, implied=True),),
    "mistral": (Think(("[THINK]",), ("[/THINK]",)),),
    "seed_oss": (Think(("<seed:think>",), ("</seed:think>",)),),
    "kimi": (Think(("◁think▷",), ("◁/think▷",)),),
    "hunyuan": (Think(("<think>",), ("</think>",)), Silent(("<answer>", "</answer>"))),
    "granite": (Think(("Here is my thought process:", "Here's my thought process:"), ("Here is my response:", "Here's my response:")),),
    "cohere": (Think(("<|START_THINKING|>",), ("<|END_THINKING|>",), where="anywhere"), _COHERE_RESPONSE),
    "gemma4": (Think(("<|channel>thought",), ("<channel|>",), where="anywhere"),),
    "gpt_oss": (Harmony(),),
}
