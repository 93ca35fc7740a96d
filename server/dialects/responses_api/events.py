"""The events of a stream of the Responses API, in the order of their kinds. Their tag is their name; the writer numbers them."""

import msgspec

from ..answers import ContentLogprob
from .answers import OutputItem, Part, ResponseObject


class _Event(msgspec.Struct, tag_field="type", kw_only=True):
    sequence_number: int = 0


class _OfResponse(_Event, kw_only=True):
    response: ResponseObject


class Created(_OfResponse, tag="response.created"):
    pass


class InProgress(_OfResponse, tag="response.in_progress"):
    pass


class _OfItem(_Event, kw_only=True):
    output_index: int
    item: OutputItem


class ItemAdded(_OfItem, tag="response.output_item.added"):
    pass


class _InItem(_Event, kw_only=True):
    output_index: int
    item_id: str


class _OfPart(_InItem, kw_only=True):
    content_index: int = 0
    part: Part


class PartAdded(_OfPart, tag="response.content_part.added"):
    pass


class OutputTextDelta(_InItem, tag="response.output_text.delta", kw_only=True):
    content_index: int = 0
    delta: str
    logprobs: list[ContentLogprob]


class OutputTextDone(_InItem, tag="response.output_text.done", kw_only=True):
    content_index: int = 0
    text: str
    logprobs: list[ContentLogprob]


class ReasoningDelta(_InItem, tag="response.reasoning_text.delta", kw_only=True):
    content_index: int = 0
    delta: str


class ReasoningDone(_InItem, tag="response.reasoning_text.done", kw_only=True):
    content_index: int = 0
    text: str


class ArgumentsDelta(_InItem, tag="response.function_call_arguments.delta", kw_only=True):
    delta: str


class ArgumentsDone(_InItem, tag="response.function_call_arguments.done", kw_only=True):
    name: str
    arguments: str


class PartDone(_OfPart, tag="response.content_part.done"):
    pass


class ItemDone(_OfItem, tag="response.output_item.done"):
    pass


class Completed(_OfResponse, tag="response.completed"):
    pass


class Incomplete(_OfResponse, tag="response.incomplete"):
    pass


class Failed(_OfResponse, tag="response.failed"):
    pass


_Parts = PartAdded | OutputTextDelta | OutputTextDone | ReasoningDelta | ReasoningDone | PartDone
_Items = ItemAdded | ArgumentsDelta | ArgumentsDone | ItemDone
ResponseEvent = Created | InProgress | _Items | _Parts | Completed | Incomplete | Failed
