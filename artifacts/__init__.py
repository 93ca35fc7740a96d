"""The artifact format: what a build writes and the runtime reads."""

from .manifest import (
    AnswerForms,
    CacheGroup,
    Call,
    ExpertsInfo,
    FileInfo,
    InputInfo,
    Manifest,
    MemoryPlan,
    ModelInfo,
    PassReport,
    PooledInfo,
    Probe,
    ProbePrompt,
    Program,
    SamplingDefaults,
    SegmentInfo,
    Toolchain,
    WeightInfo,
)
from .nvidia_target import NvidiaTarget
from .read_manifest import load_manifest
from .routes import RoutesInfo
from .target import Target, this_machine_flags
from .targets import AnyTarget, parse_target
from .verify import check_code, check_machine, check_servable, check_text, check_weights, verify

__all__ = [
    "AnswerForms",
    "AnyTarget",
    "CacheGroup",
    "Call",
    "ExpertsInfo",
    "FileInfo",
    "InputInfo",
    "Manifest",
    "MemoryPlan",
    "ModelInfo",
    "NvidiaTarget",
    "PassReport",
    "PooledInfo",
    "Probe",
    "ProbePrompt",
    "Program",
    "RoutesInfo",
    "SamplingDefaults",
    "SegmentInfo",
    "Target",
    "Toolchain",
    "WeightInfo",
    "check_code",
    "check_machine",
    "check_servable",
    "check_text",
    "check_weights",
    "load_manifest",
    "parse_target",
    "this_machine_flags",
    "verify",
]
