"""What an entry is: how a family of checkpoints becomes a `ModelSpec`, and where its parameters lie."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from ...errors import CheckpointError
from ..names import Entry, NameTable, Source
from ..parts.pooling import DenseSpec, PoolingSpec
from ..settings import Settings
from ..spec import ModelSpec

Stored = TypeVar("Stored")


@dataclass(frozen=True, kw_only=True)
class GGUFSource:
    """What a GGUF file says beside its settings, for a reader of them.

    tensors: names. vectors: the values of tensors that belong to the configuration (rotary divisors), by name.
    """

    tensors: frozenset[str]
    vectors: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class ScoreHead:
    """How `...ForSequenceClassification` makes one score: what is pooled and computed, and where its parameters lie."""

    read: Callable[[Settings], PoolingSpec]
    names: Mapping[str, Entry]


LAST_TOKEN_SCORE = ScoreHead(
    read=lambda settings: PoolingSpec(kind="last", dense=(DenseSpec(size=1, bias=False),)), names={"pooling.dense0.weight": "score.weight"}
)
"""That of decoders."""


@dataclass(frozen=True, kw_only=True)
class HFEntry:
    """A family of Hugging Face checkpoints.

    model_types: the values of config.json's `model_type`. defaults: what `transformers` assumes where config.json is silent; a null in
    it is not silence. parts: objects in the configuration whose settings are read as if they were its own. aliases: other names of
    settings, and their common ones. read: makes the spec; a setting that it does not ask for
    is refused unless it says nothing. names: where parameters lie, which may depend on the spec. prefixes: of a model that is one part of
    its checkpoint, what the names of its tensors begin with there, and in a checkpoint of its own; none where all of them are its own.
    base: what all names begin with but those of heads; a checkpoint without a head leaves it out. encodes: whether it is of encoders,
    which generate no text. score: the head of one score. fitting: the spec as a checkpoint with these tensors has it, of which some may
    be left out.
    """

    model_types: tuple[str, ...]
    defaults: Mapping[str, Any]
    read: Callable[[Settings], ModelSpec]
    names: NameTable | Callable[[ModelSpec], NameTable]
    aliases: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    prefixes: Mapping[str, str] = field(default_factory=dict)
    base: str = "model."
    encodes: bool = False
    score: ScoreHead = LAST_TOKEN_SCORE
    fitting: Callable[[ModelSpec, Collection[str]], ModelSpec] = lambda spec, tensors: spec

    def names_of(self, spec: ModelSpec) -> NameTable:
        """Where the parameters of that model lie, those behind pooling included."""
        table = self.names if isinstance(self.names, NameTable) else self.names(spec)
        if spec.pooling is None:
            return table
        own = {f"pooling.dense{index}.{kind}" for index in range(len(spec.pooling.dense)) for kind in ("weight", "bias")}
        behind: dict[str, Entry] = {name: (name, *_several(self.score.names.get(name, ()))) for name in own}
        return replace(table, sources={**table.sources, **self.score.names, **behind})

    def settings(self, values: Mapping[str, Any], source: str) -> Settings:
        """The settings of a configuration, under their common names. source: its file. Raises CheckpointError for a part that is none."""
        inside: dict[str, Any] = {}
        for part in self.parts:
            if not isinstance(given := values.get(part) or {}, dict):
                raise CheckpointError(
                    f"{source}: {part} is {given!r}; it must be an object",
                    hint="the file was edited or damaged; fetch the checkpoint again",
                )
            inside |= self._common(given)
        own = {name: value for name, value in values.items() if name not in self.parts}
        return Settings(inside | self._common(own), source, self.defaults)

    def _common(self, values: Mapping[str, Any]) -> dict[str, Any]:
        common = {self.aliases[name]: value for name, value in values.items() if name in self.aliases and value is not None}
        return common | {name: value for name, value in values.items() if name not in self.aliases}

    def own_tensors(self, stored: Mapping[str, Stored]) -> dict[str, Stored]:
        """What belongs to the model, of all tensors of its checkpoint, by the names that they would have in one of its own with a head."""
        if not self.prefixes:
            return {self.base + name: tensor for name, tensor in stored.items()} if self._lacks_base(stored) else dict(stored)
        found = {name: next((prefix for prefix in self.prefixes if name.startswith(prefix)), None) for name in stored}
        return {self.prefixes[prefix] + name[len(prefix) :]: stored[name] for name, prefix in found.items() if prefix is not None}

    def _lacks_base(self, stored: Mapping[str, Stored]) -> bool:
        """Whether a checkpoint is of a model without a head. Not all families of decoders begin as most do: their layers say so."""
        return not any(name.startswith(self.base) for name in stored) and (
            self.encodes or any(name.startswith("layers.") for name in stored)
        )


def _several(entry: Entry) -> tuple[Source | str, ...]:
    return entry if isinstance(entry, tuple) else (entry,)


@dataclass(frozen=True, kw_only=True)
class GGUFEntry:
    """A family of GGUF files.

    architectures: the values of `general.architecture`. settings: their settings as a config.json would have them, `model_type`
    included, whose entry then makes the spec; what it does not ask for is refused unless it says nothing. names: where parameters lie.
    values: parameters that the metadata holds, as float32 tensors by the names that the table gives them.
    """

    architectures: tuple[str, ...]
    settings: Callable[[Settings, GGUFSource], dict[str, Any]]
    names: NameTable | Callable[[ModelSpec], NameTable]
    values: Callable[[Mapping[str, Any], ModelSpec], dict[str, torch.Tensor]] = lambda metadata, spec: {}

    def names_of(self, spec: ModelSpec) -> NameTable:
        return self.names if isinstance(self.names, NameTable) else self.names(spec)
