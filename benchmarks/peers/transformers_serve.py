"""transformers' own server, with continuous batching."""

import json
from collections.abc import Mapping
from functools import partial

from .checkpoint import make_checkpoint, transformers_environment
from .session import Room, Server
from .subject import Place, Subject

NAME = "transformers"
_DTYPES = ("float32", "bfloat16")
_NO_END = -1


def install(place: Place) -> Mapping[str, str]:
    environment = transformers_environment(place)
    environment.install()
    make_checkpoint(place)
    return environment.versions(["transformers", "torch"])


def subjects(place: Place) -> list[Subject]:
    return [
        Subject(peer=NAME, weights=dtype, setting="serve --continuous-batching", open=partial(_server, place, dtype)) for dtype in _DTYPES
    ]


def _server(place: Place, dtype: str, _: Room) -> Server:
    """Its endpoint refuses fields that it does not know; a generation config without an end replaces `ignore_eos`."""
    program = transformers_environment(place).command("transformers")
    model = str(place.checkpoint)
    command = [str(program), "serve", model, "--device", "cpu", "--dtype", dtype, "--host", "127.0.0.1", "--port", "{port}"]
    command += ["--continuous-batching", "--cb-max-memory-percent", "0.05"]
    return Server(
        command=tuple(command),
        model=model,
        variables={"OMP_NUM_THREADS": str(place.threads)},
        body={"ignore_eos": None},
        exact_body={"generation_config": json.dumps({"eos_token_id": _NO_END, "do_sample": False})},
    )
