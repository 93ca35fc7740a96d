"""The names of the forms in `table.py`, for who offers them without reading answers."""

from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from ...artifacts import AnswerForms

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

    @classmethod
    def chosen(cls, found: "AnswerForms | None", tools: str | None = None, reasoning: str | None = None) -> Self:
        """The forms that the build found, unless another is given."""
        if found is None:
            return cls(tools, reasoning)
        return cls(tools or found.tools, reasoning or found.reasoning)
