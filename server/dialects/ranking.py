"""POST /v1/rerank, as Jina and Cohere have it, and POST /v1/score"""

import time
import uuid
from typing import Annotated

from fastapi import Depends
from starlette.responses import Response

from ..http.body import JsonBody
from ..http.errors import json_response
from ..service import Served
from .text_answers import Ranked, RankedText, Ranking, Score, Scores, TextUsage
from .text_requests import RerankRequest, ScoreRequest


async def rerank(service: Served, request: Annotated[RerankRequest, Depends(JsonBody(RerankRequest))]) -> Response:
    """Documents by how well they answer a query."""
    texts, documents = service.texts_for("rerank", request.model), request.texts()
    pairs = [(request.query, document) for document in documents]
    scores, used = await texts.scores(
        pairs,
        truncate=request.truncate_prompt_tokens,
        query_first=True,
        most_of_second=request.most_of_a_document(),
        raw=request.use_activation is False,
    )
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: request.top_n]
    results = [Ranked(index, scores[index]) for index in best]
    if request.return_documents:
        for result in results:
            result.document = RankedText(documents[result.index])
    return json_response(Ranking(f"rerank-{uuid.uuid4().hex}", service.model, results, TextUsage(used, used)))


async def score(service: Served, request: Annotated[ScoreRequest, Depends(JsonBody(ScoreRequest))]) -> Response:
    """How well pairs of texts belong together."""
    texts = service.texts_for("score", request.model)
    scores, used = await texts.scores(
        request.pairs(), truncate=request.truncate_prompt_tokens, query_first=False, raw=request.use_activation is False
    )
    data = [Score(index, value) for index, value in enumerate(scores)]
    return json_response(Scores(f"score-{uuid.uuid4().hex}", int(time.time()), service.model, data, TextUsage(used, used)))
