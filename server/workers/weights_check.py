"""Are the weights those that were built? Asked beside a server that is already serving."""

from pathlib import Path

from ...errors import ArtifactError, WorkerError, split_hint
from .ask_process import ask_process
from .process import describe_exit


async def check_weights_in_background(artifacts: Path, digest: str) -> None:
    """Compare the weights of the artifact of this digest with its manifest, in a process that stands back for everything else.

    Raises ArtifactError if they differ, WorkerError if it could not be found out. Ends the process if it is cancelled.
    """
    try:
        code, answer = await ask_process("engine.artifacts.background_check", str(artifacts), digest)
    except OSError as error:
        raise WorkerError(f"the check of the weights cannot be started: {error}", hint="engine verify DIR finds out") from error
    if code == ArtifactError.exit_code:
        message, hint = split_hint(answer.decode(errors="replace").strip())
        raise ArtifactError(message, hint=hint)
    if code != 0:
        raise WorkerError(f"the check of the weights {describe_exit(code)}", hint="engine verify DIR finds out")
