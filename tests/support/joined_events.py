"""What a stream of named events says, however its text was cut into deltas: while a machine is busy some of them are joined."""

import json
from typing import Any


def joined_events(body: str) -> list[tuple[dict[str, Any], str]]:
    """Events without their numbers, and the text of deltas, of which those that follow each other are one."""
    found: list[tuple[dict[str, Any], str]] = []
    for line in body.splitlines():
        if not line.startswith("data: "):
            continue
        event = json.loads(line.removeprefix("data: "))
        event.pop("sequence_number", None)
        text = _taken(event)
        if text and found and found[-1][0] == event:
            found[-1] = (event, found[-1][1] + text)
        else:
            found.append((event, text))
    return found


def _taken(event: dict[str, Any]) -> str:
    """The text of a delta, which the event has no longer; else none."""
    delta = event.get("delta")
    text: str = event.pop("delta") if isinstance(delta, str) else delta.pop("text", "") if isinstance(delta, dict) else ""
    return text
