"""The answers of /v1/embeddings, /v1/rerank and /v1/score."""

import msgspec
from msgspec import UNSET, UnsetType


class TextUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct):
    """embedding: numbers, or the base64 of them as little-endian float32."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class Embeddings(msgspec.Struct):
    id: str
    created: int
    data: list[Embedding]
    model: str
    usage: TextUsage
    object: str = "list"


class RankedText(msgspec.Struct):
    text: str


class Ranked(msgspec.Struct):
    index: int
    relevance_score: float
    document: RankedText | UnsetType = UNSET


class Ranking(msgspec.Struct):
    """Best first."""

    id: str
    model: str
    results: list[Ranked]
    usage: TextUsage


class Score(msgspec.Struct):
    index: int
    score: float
    object: str = "score"


class Scores(msgspec.Struct):
    id: str
    created: int
    model: str
    data: list[Score]
    usage: TextUsage
    object: str = "list"
