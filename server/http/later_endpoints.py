"""Endpoints that a start has no time for: Anthropic's Messages, OpenAI's Responses, and those of models of texts. `later.py` adds them."""

from ..dialects.cohere_embed import CohereEmbeddings, cohere_embed
from ..dialects.embeddings import embeddings
from ..dialects.messages_api.answers import Message, MessageEvent, TokenCount
from ..dialects.messages_api.endpoints import count_tokens, create_message
from ..dialects.ranking import rerank, score
from ..dialects.responses_api.answers import Deleted, ItemList, ResponseObject
from ..dialects.responses_api.endpoints import cancel_response, create_response, delete_response, get_response, list_input_items
from ..dialects.responses_api.events import ResponseEvent
from ..dialects.text_answers import Embeddings, Ranking, Scores
from .openapi import Endpoint

ENDPOINTS = (
    Endpoint("POST", "/v1/messages", create_message, Message, events=MessageEvent),
    Endpoint("POST", "/v1/messages/count_tokens", count_tokens, TokenCount),
    Endpoint("POST", "/v1/responses", create_response, ResponseObject, events=ResponseEvent),
    Endpoint("GET", "/v1/responses/{id}", get_response, ResponseObject),
    Endpoint("DELETE", "/v1/responses/{id}", delete_response, Deleted),
    Endpoint("POST", "/v1/responses/{id}/cancel", cancel_response, ResponseObject),
    Endpoint("GET", "/v1/responses/{id}/input_items", list_input_items, ItemList),
    Endpoint("POST", "/v1/embeddings", embeddings, Embeddings),
    Endpoint("POST", "/v2/embed", cohere_embed, CohereEmbeddings),
    Endpoint("POST", "/v1/rerank", rerank, Ranking),
    Endpoint("POST", "/rerank", rerank, Ranking, hidden=True),
    Endpoint("POST", "/v1/score", score, Scores),
    Endpoint("POST", "/score", score, Scores, hidden=True),
)
