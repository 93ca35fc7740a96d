"""`python -P -m engine.server.text.tokenize_process DIR DIGEST`: a job of `token_jobs.py` by standard input, the answer by standard output.

It reads the tokenizer of the artifact of this digest, and exits with the code of an ArtifactError if that is not there any more. It ends
early when its standard input does, so it never outlives who asked.
"""

import os
import sys
import threading
from pathlib import Path

from ...artifacts import check_text, load_manifest
from ...errors import ArtifactError
from ...protocol import HEADER_BYTES, body_length
from .text import Text
from .token_jobs import pack_answer, unpack_job

NICENESS = 5
"""Streams go first: who asks for so much waits a little longer."""
_STDIN = 0


def main() -> int:
    directory, digest = Path(sys.argv[1]), sys.argv[2]
    os.nice(NICENESS)
    job = unpack_job(sys.stdin.buffer.read(body_length(sys.stdin.buffer.read(HEADER_BYTES))))
    threading.Thread(target=_end_with_who_asked, daemon=True).start()
    try:
        check_text(directory, load_manifest(directory, digest=digest))
        text = Text.load(directory / "tokenizer")
    except ArtifactError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    sys.stdout.buffer.write(pack_answer(job.run(text)))
    return 0


def _end_with_who_asked() -> None:
    os.read(_STDIN, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
