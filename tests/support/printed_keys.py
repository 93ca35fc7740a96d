"""The keys of a model's program, of its code's toolchain and of a small segment, for CPU and NVIDIA. As a script: prints them as JSON."""

import json
import sys
from pathlib import Path

from engine.artifacts import parse_target
from engine.compiler.step_program import Wanted
from engine.compiler.target_kind import kind_of
from engine.compiler.weight_formats import choose_formats
from engine.models.open import open_checkpoint

FORM = '{"inputs":[["float32",["d0",8]]],"nodes":[["aten.relu.default",[{"v":0}],{}]],"outputs":[1]}'


def keys(model: Path) -> dict[str, dict[str, str]]:
    """Ingredients, and the keys themselves, by what they are of."""
    checkpoint = open_checkpoint(str(model), weights=False)
    found = {}
    for name in ("cpu-x86-64-v3", "sm90"):
        kind = kind_of(parse_target(name))
        formats = choose_formats(checkpoint, "none", kind.layout)
        wanted = Wanted.of(checkpoint, formats, kv_dtype=kind.kv_dtypes[0], kind=kind, disable_pass=())
        for identity in (wanted.identity(), kind.backend.segment(FORM), kind.backend.library()):
            if identity is not None:
                found[f"{name} {identity.kind}"] = {**identity.ingredients, "key": identity.key}
    return found


if __name__ == "__main__":
    print(json.dumps(keys(Path(sys.argv[1]))))
