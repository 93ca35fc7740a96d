"""Reading a range of a file, all of it or an error."""

from pathlib import Path

import torch

from ...errors import CheckpointError


def read_range(path: Path, offset: int, size: int) -> torch.Tensor:
    """Bytes [offset, offset + size) of a file, uint8 [size]. Raises CheckpointError if they are not all there."""
    data = torch.empty(size, dtype=torch.uint8)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            view = memoryview(data.numpy().data)
            while view:
                count = file.readinto(view)
                if not count:
                    raise CheckpointError(
                        f"{path.name} ended {len(view)} bytes early while bytes {offset} to {offset + size} were read",
                        hint="the file changed after it was opened; fetch it again",
                    )
                view = view[count:]
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read: {error.strerror or error}", hint="look at its permissions and at the disk"
        ) from error
    return data
