"""What is measured: a peer with a certain kind of weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .session import Library, Room, Server


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where everything is: the artifact and the GGUF file of one model, and a folder for all that peers need.

    weights: the kinds that are wanted, None for all.
    """

    artifacts: Path
    gguf: Path
    work: Path
    threads: int
    weights: tuple[str, ...] | None = None

    def wants(self, kind: str) -> bool:
        """Whether weights of this kind are to be measured."""
        return self.weights is None or kind in self.weights

    @property
    def checkpoint(self) -> Path:
        """The GGUF's weights as a float32 Hugging Face directory, for peers that read no GGUF."""
        return self.work / "checkpoint"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One row of the table. `open` gives what to start so that the room suffices; `setting` says how, in a few words."""

    peer: str
    weights: str
    four_bits: bool = False
    same_file: bool = False
    setting: str = ""
    open: Callable[[Room], Server | Library]

    @property
    def name(self) -> str:
        return f"{self.peer} {self.weights}"


class Peer(Protocol):
    """A module of this package."""

    NAME: str

    def install(self, place: Place) -> Mapping[str, str]:
        """Everything that its subjects need, once; the versions. Raises PeerError."""

    def subjects(self, place: Place) -> list[Subject]:
        """What can be measured after `install`."""
