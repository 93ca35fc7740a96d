"""How `engine generate` and `engine chat` choose tokens: flags, and the `Params` that they become."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ..options.option import option
from ..options.values import COUNT

if TYPE_CHECKING:
    from ..server.llm import Params


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """None leaves a choice to `Params`."""

    max_tokens: int | None = option(None, "longest answer, in tokens (default: what the context leaves)", **COUNT)
    temperature: float | None = option(
        None, "0 always takes the likeliest token; above 1 is wilder (default: the model's, else 1)", type=float, metavar="X"
    )
    top_k: int | None = option(None, "choose among the N likeliest tokens; 0: among all", type=int, metavar="N")
    top_p: float | None = option(
        None, "choose among the likeliest tokens that make up P together (default: the model's, else 1)", type=float, metavar="P"
    )
    min_p: float | None = option(None, "drop tokens less than P times as likely as the likeliest", type=float, metavar="P")
    seed: int | None = option(None, "the same seed gives the same answer, whatever else is running", type=int, metavar="N")
    stop: Sequence[str] = option((), "end the answer before this text; may be given more than once", metavar="TEXT")
    repetition_penalty: float | None = option(None, "above 1 makes tokens that have occurred less likely", type=float, metavar="X")
    presence_penalty: float | None = option(None, "taken off the logit of each token answered before", type=float, metavar="X")
    frequency_penalty: float | None = option(None, "the same, times how often it was answered", type=float, metavar="X")

    def params(self) -> "Params":
        """Checked where they are used, as those of a request are."""
        from ..server.llm import Params

        values = {each.name: getattr(self, each.name) for each in fields(SamplingOptions)}
        return Params(**(values | {"stop": list(self.stop) or None}))
