"""GET /v1/models, /health, /version and /metrics"""

from starlette.requests import Request
from starlette.responses import Response

from ...version import __version__
from ..dialects.responses import ModelCard
from ..metrics import CONTENT_TYPE
from ..service import Service
from .errors import RETRY_AFTER_SECONDS, json_response


def _card(service: Service) -> ModelCard:
    return ModelCard(service.model, service.created, service.limits.max_context)


async def models(http: Request) -> Response:
    return json_response({"object": "list", "data": [_card(http.app.state.service)]})


async def model(http: Request) -> Response:
    service: Service = http.app.state.service
    service.check_model(http.path_params["name"])
    return json_response(_card(service))


async def health(http: Request) -> Response:
    """200 when requests are served; else 503 with what is going on."""
    life = http.app.state.service.worker.life
    if life.state == "ready":
        return json_response({"status": "ok"})
    body = {"status": life.state, "phase": life.last_phase(), "seconds": round(life.seconds_in_state(), 3), "phases": life.phases}
    return json_response(body, status=503, headers={"retry-after": str(RETRY_AFTER_SECONDS)})


async def version(_http: Request) -> Response:
    return json_response({"version": __version__})


async def metrics(http: Request) -> Response:
    return Response(http.app.state.service.metrics.render(), headers={"content-type": CONTENT_TYPE})
