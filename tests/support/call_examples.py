"""An answer of each form, as models of its family write it: two calls, one of them without arguments, and text before them."""

CITY = {"city": 'Rio </tool_call> "x" {[', "days": 3, "exact": True, "tags": ["a", "b"], "note": None}
"""Arguments with marks and brackets in a string."""
PLAIN = {"city": "Rio, [Brazil] <b>", "days": 3, "exact": True, "tags": ["a", "b"], "note": None}
TOOLS = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "exact": {"type": "boolean"},
            "tags": {"type": "array"},
            "note": {"type": ["object", "null"]},
        },
    },
    "now": {"type": "object", "properties": {}},
}
_J = '{"city": "Rio </tool_call> \\"x\\" {[", "days": 3, "exact": true, "tags": ["a", "b"], "note": null}'
_L = f'[{{"name": "get_weather", "arguments": {_J}}}, {{"name": "now", "arguments": {{}}}}]'


def _python(open: str, close: str, separator: str) -> str:
    call = 'get_weather(city="Rio, [Brazil] <b>", days=3, exact=True, tags=["a", \'b\'], note=None)'
    return f"Sure.\n{open}{call}{separator}now(){close}"


def _xml(open: str, close: str, call: tuple[str, str], key: tuple[str, str, str], line: str = "\n") -> str:
    values = {"city": "Rio, [Brazil] <b>", "days": "3", "exact": "true", "tags": '["a", "b"]', "note": "null"}
    parameters = "".join(f"{key[0]}{name}{key[1]}{line}{value}{line}{key[2]}\n" for name, value in values.items())
    calls = [f"{call[0].format(name)}\n{body}{call[1]}" for name, body in (("get_weather", parameters), ("now", ""))]
    return "Sure.\n" + (f"{open}\n" + "\n".join(calls) + f"\n{close}" if open else "\n".join(calls))


def _deepseek(separator: str, call_end: str, prefix: str = "") -> str:
    calls = "\n".join(
        f"<｜tool▁call▁begin｜>{prefix}{name}{separator}{arguments}{call_end}" for name, arguments in (("get_weather", _J), ("now", "{}"))
    )
    return f"Sure.<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>"


_GEMMA = "{{city:{q}Rio, [Brazil] <b>{q},days:3,exact:true,tags:[{q}a{q},{q}b{q}],note:null}}"
_DSML = {"city": ("true", "Rio, [Brazil] <b>"), "days": ("false", "3"), "exact": ("false", "true"), "tags": ("false", '["a", "b"]')}

ANSWERS: dict[str, str] = {
    "hermes": f'Sure.\n<tool_call>\n{{"name": "get_weather", "arguments": {_J}}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now"}\n</tool_call>',
    "granite": f"Sure.<|tool_call|>{_L}",
    "internlm": f'Sure.<|action_start|><|plugin|>\n{{"name": "get_weather", "parameters": {_J}}}<|action_end|>\n'
    '<|action_start|><|plugin|>\n{"name": "now", "parameters": {}}<|action_end|>',
    "jamba": f"Sure.\n<tool_calls>{_L}</tool_calls>",
    "phi4_mini_json": f"Sure. functools{_L}",
    "llama3_json": f'Sure.\n<|python_tag|>{{"name": "get_weather", "parameters": {_J}}}; {{"name": "now", "parameters": {{}}}}',
    "xlam": f"Sure.\n{_L}",
    "mistral": f"Sure.[TOOL_CALLS]get_weather[ARGS]{_J}[TOOL_CALLS]now[ARGS]{{}}",
    "llama4_pythonic": _python("[", "]", ", "),
    "olmo3": _python("<function_calls>\n", "\n</function_calls>", "\n"),
    "lfm2": _python("<|tool_call_start|>[", "]<|tool_call_end|>", ", "),
    "qwen3_coder": _xml("<tool_call>", "</tool_call>", ("<function={}>", "</function>"), ("<parameter=", ">", "</parameter>")),
    "glm45": _xml("", "", ("<tool_call>{}", "</tool_call>"), ("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>"), ""),
    "minimax_m2": _xml(
        "<minimax:tool_call>",
        "</minimax:tool_call>",
        ('<invoke name="{}">', "</invoke>"),
        ('<parameter name="', '">', "</parameter>"),
        "",
    ),
    "seed_oss": _xml("<seed:tool_call>", "</seed:tool_call>", ("<function={}>", "</function>"), ("<parameter=", ">", "</parameter>"), ""),
    "step3": _xml(
        "<｜tool_calls_begin｜>",
        "<｜tool_calls_end｜>",
        (
            '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="{}">',
            "</steptml:invoke><｜tool_call_end｜>",
        ),
        ('<steptml:parameter name="', '">', "</steptml:parameter>"),
        "",
    ),
    "deepseek_v3": _deepseek("\n```json\n", "\n```<｜tool▁call▁end｜>", "function<｜tool▁sep｜>"),
    "deepseek_v31": _deepseek("<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    "deepseek_v32": 'Sure.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
    + "".join(f'<｜DSML｜parameter name="{k}" string="{s}">{v}</｜DSML｜parameter>\n' for k, (s, v) in _DSML.items())
    + '<｜DSML｜parameter name="note" string="false">null</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    '<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
    "kimi_k2": "Sure.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    f"{_J}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{{}}<|tool_call_end|><|tool_calls_section_end|>",
    "cohere": "<|START_RESPONSE|>Sure.<|END_RESPONSE|><|START_ACTION|>[\n"
    f'    {{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {_J}}},\n'
    '    {"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>',
    "functiongemma": f"Sure.\n<start_function_call>call:get_weather{_GEMMA.format(q='<escape>')}<end_function_call>"
    "<start_function_call>call:now{}<end_function_call>",
    "gemma4": f"""Sure.\n<|tool_call>call:get_weather{_GEMMA.format(q='<|"|>')}<tool_call|><|tool_call>call:now{{}}<tool_call|>""",
    "gpt_oss": "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>Sure.<|end|>"
    f"<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{_J}<|call|>"
    "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}<|call|>",
}
MORE: dict[str, list[str]] = {
    "hermes": [
        '<tool_call>{"arguments": {"city": "Rio"}, "name": "get_weather"}</tool_call>',
        '<tool_call>\n{"name": "get_weather", "arguments": "{\\"city\\": \\"Rio\\"}"}\n</tool_call>',
        'It is:\n```json\n{"name": "get_weather", "arguments": {"city": "Rio"}}\n```',
        '{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rio"}}}',
    ],
    "mistral": [
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Rio"}, "id": "abcdefghi"}]',
        '[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Rio"}',
        '[TOOL_CALLS]get_weather{"city": "Rio"}',
    ],
    "llama3_json": ['{"name": "get_weather", "parameters": {"city": "Rio"}}'],
    "llama4_pythonic": ["<|python_start|>[get_weather(city='Rio')]<|python_end|>"],
    "granite": [
        '<tool_call>[{"name": "get_weather", "arguments": {"city": "Rio"}}]',
        '<function_call> {"name": "get_weather", "arguments": {"city": "Rio"}}',
    ],
    "qwen3_coder": [
        "<function=get_weather>\n<parameter=city>\nRio\n</parameter>\n</function>\n</tool_call>",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rio"}}\n</tool_call>',
    ],
    "glm45": ["<tool_call>get_weather<arg_key>city</arg_key><arg_value>Rio</arg_value></tool_call>"],
    "step3": ['<steptml:invoke name="get_weather"><steptml:parameter name="city">Rio</steptml:parameter></steptml:invoke>'],
}
"""Other ways in which the same families write get_weather(city="Rio")."""
STRINGS_ARE_QUOTED = frozenset(name for name, answer in ANSWERS.items() if _J in answer)
