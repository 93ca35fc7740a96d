"""Cores, hyper-threads and NUMA nodes, from files as the kernel writes them."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.cpus import cores_of, parse_cpus, shares_of


def system(root: Path, siblings: Sequence[str], nodes: Sequence[str] = ()) -> Path:
    for cpu, cores in enumerate(siblings):
        topology = root / f"cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cores}\n")
    for node, cpus in enumerate(nodes):
        (root / f"node/node{node}").mkdir(parents=True)
        (root / f"node/node{node}/cpulist").write_text(f"{cpus}\n")
    return root


def test_hyper_threads_are_one_core(tmp_path: Path) -> None:
    root = system(tmp_path, ["0,2", "1,3", "0,2", "1,3"])
    assert cores_of({0, 1, 2, 3}, root) == [[0, 2], [1, 3]]
    assert cores_of({0, 2}, root) == [[0, 2]]
    assert cores_of({0, 1, 7}, root) == [[0], [1], [7]], "a CPU of unknown topology is a core"


def test_shares_are_of_neighbours(tmp_path: Path) -> None:
    """Even CPUs are near one half of the memory, odd ones near the other."""
    root = system(tmp_path, [str(cpu) for cpu in range(8)], ["0,2,4,6", "1,3,5,7"])
    assert shares_of(range(8), 2, root) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert shares_of(range(8), 3, root) == [[0, 2], [4, 6, 1], [3, 5, 7]]
    assert shares_of(range(8), 1, root) == [[0, 2, 4, 6, 1, 3, 5, 7]]


def test_hyper_threads_are_shared_out_only_where_cores_are_too_few(tmp_path: Path) -> None:
    root = system(tmp_path, ["0-1", "0-1", "2-3", "2-3"])
    assert shares_of(range(4), 2, root) == [[0, 1], [2, 3]]
    assert shares_of(range(4), 3, root) == [[0], [1], [2, 3]]
    assert shares_of(range(2), 2, root) == [[0], [1]]


@pytest.mark.parametrize(("text", "cpus"), [("0-3,8", [0, 1, 2, 3, 8]), ("5", [5]), ("", []), ("1,0\n", [1, 0])])
def test_lists_of_cpus(text: str, cpus: list[int]) -> None:
    assert parse_cpus(text) == cpus
