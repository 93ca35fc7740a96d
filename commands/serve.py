"""`engine serve`: an artifact over HTTP."""

import os

from ..server.options import API_KEY_VARIABLE, ServeOptions
from .parser import Given, Parser, add_options

DESCRIPTION = "Serve an artifact over HTTP with OpenAI's API. Compiles nothing. SIGTERM finishes what is running and exits 0."
EPILOG = """\
example:
  engine serve --artifacts smollm2 --port 8000
  curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{"model": "smollm2", "messages": [{"role": "user", "content": "Hello!"}]}'

http://HOST:PORT/ is a page to chat with the model and to watch the load.
/health answers 503 with the phase while loading and 200 when ready; /metrics is for Prometheus."""


def add_arguments(parser: Parser) -> None:
    add_options(parser, ServeOptions)


def run(given: Given) -> int:
    """Serve until a signal. Returns the exit code."""
    from ..server.serve import serve

    given.setdefault("api_key", os.environ.get(API_KEY_VARIABLE) or None)
    return serve(ServeOptions(**given))
