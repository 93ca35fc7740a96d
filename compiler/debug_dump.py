"""What `--debug-dump DIR` writes.

DIR/graphs/      the graph as traced, and after each pass
DIR/bytecode/    what Dynamo made of the model's code, decompiled
DIR/segments/    per segment, by key: the generated C++
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import fx


def write_graph(directory: Path | None, name: str, graph: "fx.Graph") -> None:
    """Write one graph as readable Python, with the references of its placeholders; nothing without a directory."""
    if directory is None:
        return
    graphs = directory / "graphs"
    graphs.mkdir(parents=True, exist_ok=True)
    inputs = [node for node in graph.find_nodes(op="placeholder") if "ref" in node.meta]
    legend = "\n".join(f"# {node.name} = {node.meta['ref']} {list(node.meta['val'].shape)}" for node in inputs)
    (graphs / f"{name}.py").write_text(f"{legend}\n\n{graph.python_code('self').src}")


@contextmanager
def decompiled_bytecode(directory: Path | None) -> Iterator[None]:
    """Write what Dynamo compiles while the body runs; nothing without a directory."""
    if directory is None:
        yield
        return
    import depyf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises to run the code several times; there is nothing to run here
        with depyf.prepare_debug(str(directory / "bytecode")):
            yield


def segment_sources(directory: Path | None, key: str) -> Path | None:
    """Where the generated code of a segment goes."""
    return None if directory is None else directory / "segments" / key
