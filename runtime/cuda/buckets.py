"""Which of the artifact's graphs a step takes: the smallest that it fits, so the same step always takes the same."""

from collections.abc import Sequence

from ...artifacts.graph import GraphInfo
from ...errors import ArtifactError, UsageError


class Buckets:
    """Graphs by their number in the manifest, from small to large. decode: every sequence has one new token; mixed: any number."""

    def __init__(self, graphs: Sequence[GraphInfo]) -> None:
        sized = sorted(enumerate(graphs), key=lambda item: (item[1].tokens, item[1].sequences))
        self._decode = [item for item in sized if item[1].kind == "decode"]
        self._mixed = [item for item in sized if item[1].kind == "mixed"]

    def choose(self, tokens: int, sequences: int) -> int:
        """The number of the graph for a step of T tokens and S sequences, within limits that `within` has accepted."""
        if tokens == sequences:
            for number, info in self._decode:
                if info.sequences >= sequences:
                    return number
        return self._choose_mixed(tokens, sequences)

    def within(self, max_num_seqs: int, max_batch_tokens: int) -> list[int]:
        """Every graph that steps of these limits can take, in the order in which they are wanted.

        Decode graphs and the smallest mixed one come first, then the larger mixed ones. Raises
        UsageError if the artifact has no graph for the largest step.
        """
        decode = [number for number, info in self._decode if info.sequences <= max_num_seqs]
        decode += [number for number, info in self._decode if info.sequences > max_num_seqs][:1]
        mixed = [number for number, _ in self._mixed]
        return decode + mixed[: mixed.index(self._choose_mixed(max_batch_tokens, max_num_seqs)) + 1]

    def _choose_mixed(self, tokens: int, sequences: int) -> int:
        for number, info in self._mixed:
            if info.tokens >= tokens and info.sequences >= sequences:
                return number
        if not self._mixed:
            raise ArtifactError("the artifact has no graph for a prompt", hint="build the artifact again")
        largest = self._mixed[-1][1]
        raise UsageError(
            f"the artifact has no graph for a step of {tokens:,} tokens and {sequences:,} sequences",
            hint=f"its largest is for {largest.tokens:,} and {largest.sequences:,}: lower --max-batch-tokens or --max-num-seqs",
        )
