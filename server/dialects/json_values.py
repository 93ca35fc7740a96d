"""How many values a body has, counted before it is decoded: making them would stop every other client's stream."""

import re

from ...errors import RequestError

MAX_OBJECTS = 200_000
"""Texts, keys, lists and objects of one body."""
MAX_ITEMS = 2**20
"""Items of all its lists and objects."""
_MARK = re.compile(rb'\\.|["{\[,]', re.DOTALL)


def check_values(body: bytes) -> None:
    """Raises RequestError for a body with more values than any use has. Lets other threads run meanwhile."""
    objects = body.count(b'"') // 2 + body.count(b"{") + body.count(b"[")
    if objects <= MAX_OBJECTS and body.count(b",") < MAX_ITEMS:
        return  # there are no more than that, whatever is within texts
    objects, items, in_text = 0, 1, False
    for match in _MARK.finditer(body):
        mark = match[0]
        if mark == b'"':
            in_text = not in_text
            objects += in_text
        elif in_text:
            continue
        elif mark == b",":
            items += 1
        else:
            objects += 1
        if objects > MAX_OBJECTS or items > MAX_ITEMS:
            raise RequestError(
                f"the body has more than {MAX_OBJECTS} texts and objects, or more than {MAX_ITEMS} items in lists",
                code="too_many_values",
                hint="ask in several requests",
            )
