"""`python -P -m engine.artifacts.background_check DIR DIGEST`: the weights against the manifest, beside a server that needs the machine.

A process of its own, because a thread would take the interpreter away from those that serve. It
computes a SHARE of the time at most, and so it reads: within a container's quota even time that is
left over is taken from others. Exits 0 if the weights are those of the manifest, and with the code
of an ArtifactError if they are not, after printing what is wrong; with 1 if the artifact is not the
one that is served any more, which has been mapped and stays what it was. It ends early when its
standard input does, so it never outlives who started it.
"""

import hashlib
import os
import select
import sys
import time
from pathlib import Path

from ..errors import ArtifactError
from .manifest import Manifest
from .read_manifest import load_manifest
from .verify import check_weights

NICENESS = 19
"""Whatever serves goes first, also to the disk."""
SHARE = 0.1
PIECE_BYTES = 64 << 10
"""Read and digested at once, between two pauses: longer ones make steps wait that share the core."""
REPLACED = 1


def main() -> int:
    directory, digest = Path(sys.argv[1]), sys.argv[2]
    os.nice(NICENESS)
    if (manifest := _manifest(directory, digest)) is None:
        return REPLACED
    try:
        check_weights(directory, manifest, digest=_paced_digest, threads=1)
    except ArtifactError as error:
        if _manifest(directory, digest) is None:
            return REPLACED
        print(error)
        return error.exit_code
    return 0


def _manifest(directory: Path, digest: str) -> Manifest | None:
    try:
        return load_manifest(directory, digest=digest)
    except ArtifactError as error:
        print(error, file=sys.stderr)
        return None


def _paced_digest(path: Path) -> str:
    """As `file_digest`, at SHARE of the speed."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        while True:
            started = time.thread_time()
            count = file.readinto(buffer)
            digest.update(buffer[:count])
            if not count:
                return digest.hexdigest()
            _pause((time.thread_time() - started) * (1 / SHARE - 1))


def _pause(seconds: float) -> None:
    if select.select([sys.stdin], [], [], seconds)[0]:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
