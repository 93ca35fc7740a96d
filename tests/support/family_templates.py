"""Small chat templates that write calls as each family's own does: the published marks, and nothing else of them."""

_START = "{% if tools %}{{ '<|im_start|>system\n' }}{{ tools | tojson }}{{ '<|im_end|>\n' }}{% endif %}{% for message in messages %}"
_TURN = "{{ '<|im_start|>' + message.role + '\n' }}"
_END = "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_EACH = "{% for call in message.tool_calls or [] %}{% set f = call.function %}"
_ITEMS = "{% for name, value in f.arguments.items() %}"
_PLAIN = "{{ value if value is string else value | tojson }}"


def _template(calls: str, turn: str = _TURN, end: str = _END, content: str = "{{ message.content or '' }}") -> str:
    return _START + turn + content + calls + end


def _object(name: str = "name", arguments: str = "arguments") -> str:
    return "{{ {'" + name + "': f.name, '" + arguments + "': f.arguments} | tojson }}"


def _listed(opener: str, closer: str = "", name: str = "name", arguments: str = "arguments") -> str:
    inside = _EACH + "{{ ', ' if not loop.first }}" + _object(name, arguments) + "{% endfor %}"
    return "{% if message.tool_calls %}{{ '" + opener + "' }}[" + inside + "]{{ '" + closer + "' }}{% endif %}"


def _xml(open: str, call: str, key: str, between: str, value_end: str, call_end: str, close: str = "") -> str:
    parameter = _ITEMS + "{{ '" + key + "' + name + '" + between + "' }}" + _PLAIN + "{{ '" + value_end + "' }}{% endfor %}"
    return _EACH + "{{ '" + open + call + "' }}" + parameter + "{{ '" + call_end + close + "' }}{% endfor %}"


_PYTHON = (
    _EACH
    + "{{ ', ' if not loop.first }}{{ f.name }}("
    + _ITEMS
    + "{{ ', ' if not loop.first }}{{ name }}={{ value | tojson }}{% endfor %}){% endfor %}"
)


def _gemma(opener: str, quote: str, closer: str) -> str:
    value = "{{ '" + quote + "' + value + '" + quote + "' if value is string else value }}"
    inside = _ITEMS + "{{ ',' if not loop.first }}{{ name }}:" + value + "{% endfor %}"
    return _EACH + "{{ '" + opener + "call:' + f.name + '{' }}" + inside + "{{ '}" + closer + "' }}{% endfor %}"


TEMPLATES: dict[str, str] = {
    "hermes": _template(_EACH + "{{ '\n<tool_call>\n' }}" + _object() + "{{ '\n</tool_call>' }}{% endfor %}"),
    "granite": _template(_listed("<|tool_call|>")),
    "internlm": _template(
        _EACH + "{{ '<|action_start|><|plugin|>\n' }}" + _object(arguments="parameters") + "{{ '<|action_end|>' }}{% endfor %}"
    ),
    "jamba": _template(_listed("<tool_calls>", "</tool_calls>")),
    "phi4_mini_json": _template(_listed("functools")),
    "llama3_json": _template(_EACH + _object(arguments="parameters") + "{% endfor %}"),
    "mistral": _template(
        _EACH + "{{ '[TOOL_CALLS]' + f.name + '[ARGS]' }}{{ f.arguments | tojson }}{% endfor %}",
        turn="{{ '[INST]' if message.role == 'user' }}",
        end="{{ '[/INST]' if message.role == 'user' else '</s>' }}{% endfor %}",
    ),
    "llama4_pythonic": _template("{% if message.tool_calls %}[" + _PYTHON + "]{% endif %}"),
    "olmo3": _template("{% if message.tool_calls %}{{ '<function_calls>' }}" + _PYTHON + "{{ '</function_calls>' }}{% endif %}"),
    "lfm2": _template("{% if message.tool_calls %}{{ '<|tool_call_start|>' }}[" + _PYTHON + "]{{ '<|tool_call_end|>' }}{% endif %}"),
    "qwen3_coder": _template(
        _xml("\n<tool_call>\n", "<function=' + f.name + '>\n", "<parameter=", ">\n", "\n</parameter>\n", "</function>", "\n</tool_call>")
    ),
    "glm45": _template(_xml("\n<tool_call>", "' + f.name + '\n", "<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n", "</tool_call>")),
    "minimax_m2": _template(
        _xml(
            "\n<minimax:tool_call>\n",
            "<invoke name=\"' + f.name + '\">\n",
            '<parameter name="',
            '">',
            "</parameter>\n",
            "</invoke>",
            "\n</minimax:tool_call>",
        )
    ),
    "seed_oss": _template(
        _xml(
            "\n<seed:tool_call>\n",
            "<function=' + f.name + '>\n",
            "<parameter=",
            ">",
            "</parameter>\n",
            "</function>",
            "\n</seed:tool_call>",
        )
    ),
    "step3": _template(
        _xml(
            "<｜tool_calls_begin｜>\n<｜tool_call_begin｜>function<｜tool_sep｜>",
            "<steptml:invoke name=\"' + f.name + '\">\n",
            '<steptml:parameter name="',
            '">',
            "</steptml:parameter>\n",
            "</steptml:invoke>",
            "<｜tool_call_end｜>\n<｜tool_calls_end｜>",
        )
    ),
    "deepseek_v3": _template(
        "{% for call in message.tool_calls or [] %}{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + call.type + '<｜tool▁sep｜>'"
        " + call.function.name + '\n```json\n' + call.function.arguments + '\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>' }}{% endfor %}"
    ),
    "deepseek_v31": _template(
        "{% for call in message.tool_calls or [] %}{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + call.function.name"
        " + '<｜tool▁sep｜>' + call.function.arguments + '<｜tool▁call▁end｜><｜tool▁calls▁end｜>' }}{% endfor %}"
    ),
    "kimi_k2": _template(
        _EACH + "{{ '<|tool_calls_section_begin|><|tool_call_begin|>functions.' + f.name + ':0<|tool_call_argument_begin|>' }}"
        "{{ f.arguments | tojson }}{{ '<|tool_call_end|><|tool_calls_section_end|>' }}{% endfor %}"
    ),
    "cohere": _template(_listed("<|START_ACTION|>", "<|END_ACTION|>", "tool_name", "parameters")),
    "functiongemma": _template(_gemma("<start_function_call>", "<escape>", "<end_function_call>")),
    "gemma4": _template(_gemma("<|tool_call>", '<|"|>', "<tool_call|>")),
    "gpt_oss": _template(
        _EACH
        + "{{ ' to=functions.' + f.name + '<|channel|>commentary json<|message|>' }}{{ f.arguments | tojson }}{{ '<|call|>' }}{% endfor %}",
        turn="{{ '<|start|>' + message.role }}",
        end="{% if not message.tool_calls %}{{ '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
        content="{% if message.content %}{{ '<|channel|>final<|message|>' + message.content }}{% endif %}",
    ),
}
