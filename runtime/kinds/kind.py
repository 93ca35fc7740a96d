"""What serving does differently on one kind of machine than on another, decided once."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from ...artifacts import Manifest
from ...options.runtime import RuntimeOptions
from ..phases import OnPhase

if TYPE_CHECKING:
    from ..step import StepExecutor


class RuntimeKind(ABC):
    """What computes an artifact's steps. Nothing of it is imported before it is used: executors share no native code.

    uses_gpu: whether it is a GPU. free_memory_share: of what weights and the largest step leave free, what the caches get.
    commits_caches: whether their memory is taken at load, and not as blocks are first written.
    """

    uses_gpu: bool
    free_memory_share: float
    commits_caches: bool

    @abstractmethod
    def check_fit(self, manifest: Manifest) -> None:
        """Raise MismatchError for an artifact that was made for another kind of machine: another processor, torch or GPU."""

    @abstractmethod
    def load(self, directory: Path, manifest: Manifest, options: RuntimeOptions, on_phase: OnPhase) -> "StepExecutor":
        """Load an artifact and make it ready to run.

        Raises UsageError for options that make no sense here, and what the executor's own `load` does.
        """

    @abstractmethod
    def step_bytes(self, manifest: Manifest, options: RuntimeOptions) -> int:
        """What activations and results of the largest step take. Raises UsageError for limits that the artifact has no code for."""

    @abstractmethod
    def pools(self, manifest: Manifest, free: int, options: RuntimeOptions) -> dict[str, int]:
        """Blocks of each cache group with `free` bytes of memory before anything is loaded.

        Raises UsageError or DeviceError where the executor would refuse to load.
        """

    @abstractmethod
    def check_scores(self) -> None:
        """Raise RequestError if the tokens of prompts cannot be scored."""

    @abstractmethod
    def least_tokens(self, manifest: Manifest) -> int:
        """Tokens for which the caches must have room, or the artifact does not load."""
