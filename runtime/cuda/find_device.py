"""Whether this machine has the GPU that an artifact is for."""

from ...artifacts import Manifest
from ...artifacts.nvidia_target import NvidiaTarget
from ...errors import DeviceError, Misfit, MismatchError
from .device import Device
from .driver import Driver


def find_device(manifest: Manifest) -> Device:
    """The GPU, if it is the artifact's kind; its context is not taken yet. Raises MismatchError."""
    target = NvidiaTarget.parse(manifest.target)
    device, reason, hint = None, "", "build the artifact with the --target of this machine, or serve it on one with such a GPU"
    try:
        device = Device(Driver())
    except DeviceError as error:
        reason, hint = error.message, error.hint
    misfits = target.misfits(device.capability if device else None)
    if device is None or misfits:
        if reason:
            misfits.append(Misfit(field="driver", artifact="needed", machine=reason))
        raise MismatchError("this artifact was built for another machine", misfits, hint=hint)
    return device
