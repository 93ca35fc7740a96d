"""The names of the forms in `table.py`, for who offers them without reading answers."""

from typing import NamedTuple

TOOL_FORM_NAMES = (
    "cohere", "deepseek_v3", "deepseek_v31", "deepseek_v32", "functiongemma", "gemma4", "glm45", "gpt_oss", "granite", "hermes",
    "internlm", "jamba", "kimi_k2", "lfm2", "llama3_json", "llama4_pythonic", "minimax_m2", "mistral", "olmo3", "phi4_mini_json",
    "qwen3_coder", "seed_oss", "step3", "xlam",
)  # fmt: skip
REASONING_FORM_NAMES = (
    "cohere", "deepseek_r1", "gemma4", "gpt_oss", "granite", "hunyuan", "kimi", "mistral", "seed_oss", "think",
)  # fmt: skip
NONE = "none"
"""In place of a name: answers are not read for it."""


class FormNames(NamedTuple):
    """Of a model's forms. None: not known."""

    tools: str | None = None
    reasoning: str | None = None
