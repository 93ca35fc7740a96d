"""GET /v1/models, /health, /version and /metrics"""

from starlette.responses import Response

from ...version import __version__
from ..dialects.answers import ModelCard, ModelList, SamplingParamsCard, Version
from ..dialects.params import GenerationParams
from ..service import Served, Service
from ..texts import tasks
from .errors import RETRY_AFTER_SECONDS, json_response


def _card(service: Service) -> ModelCard:
    limits = service.limits
    held = GenerationParams().or_else(limits.sampling).sampling(max_tokens=0, rules=None)
    sampling = SamplingParamsCard(
        held.temperature, held.top_p, held.top_k, held.min_p, held.repetition_penalty, limits.sampling.max_new_tokens
    )
    return ModelCard(service.model, service.created, limits.max_context, sampling, tasks(service.pooled))


async def models(service: Served) -> Response:
    """The one model that is served."""
    return json_response(ModelList([_card(service)]))


async def model(service: Served, name: str) -> Response:
    """The model, if it is the one that is served."""
    service.check_model(name)
    return json_response(_card(service))


async def health(service: Served) -> Response:
    """200 when requests are served, by one replica at least; else 503 with what is going on."""
    replicas = service.fleet.replicas
    well = sum(replica.is_well for replica in replicas)
    if well:
        return json_response({"status": "ok"} if len(replicas) == 1 else {"status": "ok", "replicas": len(replicas), "well": well})
    worker = next((replica for replica in replicas if not replica.life.ended), replicas[0])
    life = worker.life
    status, seconds = ("stalled", life.progress.seconds()) if worker.is_stalled else (life.state, life.seconds_in_state())
    body = {"status": status, "phase": life.last_phase(), "seconds": round(seconds, 3), "phases": life.phases}
    return json_response(body, status=503, headers={"retry-after": str(RETRY_AFTER_SECONDS)})


async def version() -> Response:
    return json_response(Version(__version__))


async def metrics(service: Served) -> Response:
    """In Prometheus' text format."""
    from ..metrics_page import CONTENT_TYPE, render

    return Response(render(service.metrics, service.fleet), headers={"content-type": CONTENT_TYPE})
