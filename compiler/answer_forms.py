"""Loads the tokenizer that was written as serving would, and learns how the model writes tool calls and reasoning."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from ..artifacts import AnswerForms
from ..errors import BuildError


def answer_forms(directory: Path) -> AnswerForms:
    """Of the artifact at `directory`. Raises BuildError for a tokenizer or template that could not serve."""
    command = [sys.executable, "-P", "-m", "engine.server.find_forms", str(directory)]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONSAFEPATH": "1"})
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-2000:].partition("\nhint: ")[0].replace(str(directory), "the checkpoint")
        raise BuildError(
            f"the model's text could not be served: {said}",
            hint="mend its tokenizer.json or chat template (a chat_template.jinja beside it is taken before others)",
        )
    return msgspec.json.decode(done.stdout, type=AnswerForms)
