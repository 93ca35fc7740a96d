"""What `--debug-dump DIR` writes: the graph as traced and after each pass."""

from pathlib import Path

from torch import fx


def write_graph(directory: Path | None, name: str, graph: fx.Graph) -> None:
    """Write one graph as readable Python, with the references of its placeholders; nothing without a directory."""
    if directory is None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    legend = "\n".join(
        f"# {node.name} = {node.meta['ref']} {list(node.meta['val'].shape)}"
        for node in graph.find_nodes(op="placeholder")
        if "ref" in node.meta
    )
    (directory / f"{name}.py").write_text(f"{legend}\n\n{graph.python_code('self').src}")
