"""Which matrices of a compressed-tensors checkpoint are multiplied with activations of 8 bits that have one scale per token."""

import re
from collections.abc import Mapping
from typing import Any

_TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
_DEFAULTS = {"num_bits": 8, "type": "int", "symmetric": True}
"""What a scheme need not say."""


class TokenActivations:
    """Asked by module. config: what config.json says of quantization."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        groups = [group for group in (config.get("config_groups") or {}).values() if isinstance(group, Mapping)]
        self._groups = {str(target): _are_tokens(group) for group in groups for target in group.get("targets") or ()}

    def of(self, module: str) -> bool:
        """Whether the scheme of that module has them. Of several, its name is before patterns, and those before classes."""
        if module in self._groups:
            return self._groups[module]
        patterns = sorted(target for target in self._groups if target.startswith("re:"))
        found = next((target for target in patterns if _matches(target, module)), "Linear")
        return self._groups.get(found, False)


def _are_tokens(group: Mapping[str, Any]) -> bool:
    inputs = group.get("input_activations")
    if not isinstance(inputs, Mapping) or group.get("output_activations") or inputs.get("scale_dtype"):
        return False
    said = _DEFAULTS | {key: value for key, value in inputs.items() if key in _TOKENS}
    return said == _TOKENS


def _matches(pattern: str, module: str) -> bool:
    try:
        return re.match(pattern.removeprefix("re:"), module) is not None
    except re.error:
        return False
