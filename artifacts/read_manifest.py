"""Reading a manifest: nothing is believed that it says, and nothing executed.

Its numbers are within their bounds, its digest holds, its paths stay inside the directory, and
what it says in one place fits what it says in another. So whoever has a Manifest may use it.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ArtifactError, Misfit, MismatchError
from .files import read_file
from .manifest import DTYPE_BYTES, MANIFEST_NAME, SCHEMA_VERSION, SIGNATURE_NAME, STEP, Manifest, ProbePrompt, content_digest
from .step_inputs import draw_inputs, step_inputs

MOST_BYTES = 64 << 20
"""Of a manifest: far more than that of any model, far less than would fill memory."""
_FOREIGN = "do not use this artifact: it was not written by Engine"
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}"
_NAME = re.compile(rf"{_PART}(?:/{_PART}){{0,7}}", re.ASCII)
_GROUP_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
_OWN_NAMES = {MANIFEST_NAME, SIGNATURE_NAME}


def load_manifest(directory: Path, *, digest: str | None = None) -> Manifest:
    """Read and validate DIR/manifest.json. Of other files nothing is opened.

    digest: of the one artifact that is wanted. Raises ArtifactError if the directory is no artifact,
    another one, or its manifest is damaged or was changed, and MismatchError if it was written in
    another schema version.
    """
    manifest = parse_manifest(_read(directory), directory / MANIFEST_NAME)
    if digest is not None and manifest.digest != digest:
        raise ArtifactError(
            f"{directory} is not the artifact that was asked for: its digest is {manifest.digest[:16]}…, not {digest[:16]}…",
            hint="give the digest of the artifact that is there (engine verify DIR), or put back the one that was asked for",
        )
    return manifest


def parse_manifest(raw: bytes, path: Path) -> Manifest:
    """Validate the content of a manifest.json. path: what to call it in a message. Raises as `load_manifest` does."""
    content = _parse(raw, path)
    _check_schema(content, path)
    manifest = _decode(raw, path)
    _check_digest(manifest, content, path)
    if fault := next(_faults(manifest), None):
        raise ArtifactError(f"{path} {fault}", hint=_FOREIGN)
    return manifest


def _read(directory: Path) -> bytes:
    if directory.is_file():
        raise ArtifactError(f"{directory} is a file, not an artifact directory", hint="give the directory that `engine build -o DIR` wrote")
    try:
        return read_file(directory, MANIFEST_NAME, most=MOST_BYTES)
    except FileNotFoundError:
        raise ArtifactError(f"{directory} is not an artifact: it has no {MANIFEST_NAME}", hint=_not_artifact_hint(directory)) from None


def _not_artifact_hint(directory: Path) -> str:
    if (directory / "config.json").exists():
        return f"this looks like a checkpoint; compile it first: engine build {directory} --target cpu -o DIR"
    return "a build that was stopped leaves no manifest; run `engine build` again"


def _parse(raw: bytes, path: Path) -> Any:
    try:
        return json.loads(raw.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is not JSON: {error}", hint="the file was cut off or damaged; build or copy the artifact again"
        ) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in found if names.count(name) > 1)!r} twice")
    return found


def _check_schema(content: Any, path: Path) -> None:
    schema = content.get("schema") if isinstance(content, dict) else None
    if type(schema) is not int or schema != SCHEMA_VERSION:
        misfit = Misfit(field="schema", artifact=repr(schema)[:40], machine=str(SCHEMA_VERSION))
        raise MismatchError(
            f"{path} was written by another version of Engine",
            [misfit],
            other="this version",
            hint="build the artifact again with this version",
        )


def _decode(raw: bytes, path: Path) -> Manifest:
    try:
        return msgspec.json.decode(raw, type=Manifest)
    except (RecursionError, msgspec.MsgspecError) as error:
        raise ArtifactError(
            f"{path} is not a valid manifest: {error}", hint="the file was edited or damaged; build or copy the artifact again"
        ) from None


def _check_digest(manifest: Manifest, content: dict[str, Any], path: Path) -> None:
    try:
        digest = content_digest(content)
    except ValueError as error:
        raise ArtifactError(f"{path} is not a valid manifest: {error}", hint=_FOREIGN) from None
    if digest != manifest.digest:
        raise ArtifactError(
            f"{path} was changed after it was written: its digest is {digest[:16]}…, it says {manifest.digest[:16]!r}",
            hint="never serve this copy; build or copy the artifact again",
        )


def _faults(manifest: Manifest) -> Iterator[str]:
    """What of a manifest does not fit the rest of it."""
    yield from _faults_of_names(manifest)
    yield from _faults_of_caches(manifest)
    yield from _faults_of_programs(manifest)
    yield from _faults_of_routes(manifest)
    if manifest.pooled is not None and manifest.pooled.default_prompt not in {"", *manifest.pooled.prompts}:
        yield f"puts a prompt in front of texts that it does not have: {manifest.pooled.default_prompt!r}"
    for name, weight in manifest.weights.items():
        if weight.dtype not in DTYPE_BYTES:
            yield f"has a weight of an unknown dtype: {name!r} is {weight.dtype!r}"
        if weight.experts is not None and weight.experts.chosen > weight.experts.count:
            yield f"has a weight of {weight.experts.count} experts of which {weight.experts.chosen} are chosen: {name!r}"
    for prompt in manifest.probe.prompts:
        if not _is_computable(prompt, manifest):
            yield "has a probe that this model cannot compute"


def _faults_of_names(manifest: Manifest) -> Iterator[str]:
    absent = set() if manifest.has_weights else {weight.file for weight in manifest.weights.values()}
    used = [*manifest.code_files, *(weight.file for weight in manifest.weights.values())]
    for name in [*manifest.files, *used]:
        if not _NAME.fullmatch(name):
            yield f"names a file outside the artifact, or one that no build writes: {name!r}"
        if name not in manifest.files and name not in absent:
            yield f"uses {name!r} but lists no digest for it"
    taken: dict[str, str] = {name: name for name in _OWN_NAMES}
    for name in manifest.files:
        for place in (name, *_folders(name)):
            if taken.setdefault(place.lower(), place) != place or place in _OWN_NAMES:
                yield f"lists {name!r} and {taken[place.lower()]!r}, which are one file to some systems"
    for name in manifest.files:
        if not manifest.files.keys().isdisjoint(_folders(name)):
            yield f"lists {name!r}, and as a file a folder that it lies in"


def _faults_of_caches(manifest: Manifest) -> Iterator[str]:
    names = [group.name for group in manifest.caches]
    tensors = [tensor for group in manifest.caches for tensor in group.tensors]
    if (not names and manifest.pooled is None) or len(set(names)) != len(names) or not all(map(_GROUP_NAME.fullmatch, names)):
        yield f"has the cache groups {', '.join(map(repr, names)) or 'of no layer'}"
    if len(set(tensors)) != len(tensors) or not all(group.layers for group in manifest.caches):
        yield "has a cache group without layers, or with one twice"
    if len({group.block_size for group in manifest.caches}) > 1:
        yield "has cache groups of different block sizes"
    for group in manifest.caches:
        if (group.window == 0) != group.keeps_all:
            yield f"has the cache group {group.name!r} of kind {group.kind} with a window of {group.window}"


def _faults_of_programs(manifest: Manifest) -> Iterator[str]:
    if STEP not in manifest.programs or manifest.result not in manifest.step.results:
        yield f"has no program {STEP!r} with the result {manifest.result!r}"
        return
    for name, program in manifest.programs.items():
        inputs = [info.name for info in program.inputs]
        if len(set(inputs)) != len(inputs):
            yield f"has a program {name!r} with an input twice"
        for info in program.inputs:
            if info.dtype not in DTYPE_BYTES:
                yield f"has an input of an unknown dtype: {info.name!r} is {info.dtype!r}"
    brought = [*step_inputs((group.name for group in manifest.caches), token_types=True), *(draw_inputs() if manifest.graphs else ())]
    if unknown := [info.name for info in manifest.step.inputs if info not in brought]:
        yield f"has a program {STEP!r} that reads {unknown[0]!r}, which no step brings"
    dims = {"1", *(dim for info in manifest.step.inputs for dim in info.dims)}
    for term in manifest.memory.activations:
        if not dims.issuperset(term.split("*")):
            yield f"has a memory plan in {term!r}, which no input of a step has"
    for graph in manifest.graphs:
        if missing := sorted(dims - {"1"} - graph.sizes.keys()):
            yield f"has the graph {graph.file!r} of no size {missing[0]}"


def _faults_of_routes(manifest: Manifest) -> Iterator[str]:
    routes = manifest.routes
    if routes is None:
        return
    if not routes.layers or len(set(routes.layers)) != len(routes.layers) or not manifest.step.results.keys() >= set(routes.results):
        yield f"tells the experts of layers for which its program {STEP!r} has no result"
    if routes.chosen > routes.experts:
        yield f"tells {routes.chosen} of {routes.experts} experts"


def _folders(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _is_computable(prompt: ProbePrompt, manifest: Manifest) -> bool:
    vocabulary, columns = range(manifest.model.vocab_size), range(manifest.result_size)
    return (
        0 < len(prompt.tokens) <= manifest.model.max_context
        and 0 < len(prompt.top_tokens) == len(prompt.top_logits)
        and all(token in vocabulary for token in prompt.tokens)
        and all(column in columns for column in prompt.top_tokens)
        and all(map(math.isfinite, prompt.top_logits))
    )
