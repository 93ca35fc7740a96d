"""Limits of containers and units, from files as the kernel writes them."""

from pathlib import Path

import pytest

from engine.runtime.capacity import cgroups, machine

GIB = 2**30
UNLIMITED = 9223372036854771712  # what version 1 says where there is no limit
V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate"
V1 = "\n".join(
    f"3{i} 31 0:3{i} / /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}" for i, name in enumerate(("memory", "cpu,cpuacct"))
)


class Machine:
    """A file system with /proc/self and hierarchies of groups."""

    def __init__(self, root: Path, *, cgroup: str, mounts: str, available: int = 64 * GIB) -> None:
        self.root = root
        self.write("proc/self/cgroup", cgroup)
        self.write("proc/self/mountinfo", f"23 1 8:1 / / rw - ext4 /dev/sda1 rw\n{mounts}")
        self.write("proc/meminfo", f"MemTotal:  {128 * 2**20} kB\nMemAvailable:  {available // 1024} kB")

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(f"{text}\n")

    def group(self, path: str, **files: object) -> None:
        """`memory_max=1` is the file memory.max."""
        for name, value in files.items():
            self.write(f"sys/fs/cgroup/{path}/{name.replace('_', '.', 1)}", str(value))

    def free(self) -> int:
        return machine.free_memory(self.root)

    def cpus(self) -> float | None:
        return cgroups.cpu_quota(self.root)


def test_without_groups_the_machine_alone_counts(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  16 kB\nMemAvailable:  8 kB\n")
    assert machine.free_memory(tmp_path) == 8192
    assert cgroups.cpu_quota(tmp_path) is None


class TestVersion2:
    def test_the_group_of_a_container_is_the_root_that_it_sees(self, tmp_path: Path) -> None:
        container = Machine(tmp_path, cgroup="0::/", mounts=V2)
        container.group("", memory_max=GIB, memory_current=GIB // 4, cpu_max="150000 100000")
        assert container.free() == 3 * GIB // 4
        assert container.cpus() == 1.5

    def test_a_unit_has_a_group_of_its_own(self, tmp_path: Path) -> None:
        unit = Machine(tmp_path, cgroup="0::/system.slice/engine.service", mounts=V2)
        unit.group("system.slice/engine.service", memory_max=GIB, memory_current=0, cpu_max="max 100000")
        assert unit.free() == GIB
        assert unit.cpus() is None

    def test_every_group_above_limits_too(self, tmp_path: Path) -> None:
        pod = Machine(tmp_path, cgroup="0::/pods/pod/container", mounts=V2)
        pod.group("pods/pod/container", memory_max="max", memory_current=0, cpu_max="400000 100000")
        pod.group("pods/pod", memory_max=4 * GIB, memory_current=3 * GIB, cpu_max="200000 100000")
        pod.group("pods", memory_max=8 * GIB, memory_current=3 * GIB, cpu_max="max 100000")
        assert pod.free() == GIB
        assert pod.cpus() == 2

    def test_what_is_throttled_is_not_free(self, tmp_path: Path) -> None:
        unit = Machine(tmp_path, cgroup="0::/unit", mounts=V2)
        unit.group("unit", memory_max="max", memory_high=2 * GIB, memory_current=GIB)
        assert unit.free() == GIB

    def test_cached_files_give_way(self, tmp_path: Path) -> None:
        container = Machine(tmp_path, cgroup="0::/", mounts=V2)
        stat = f"anon {GIB // 4}\nfile {GIB}\ninactive_file {GIB // 2}\nactive_file {GIB // 8}\nslab_reclaimable {GIB // 8}"
        container.group("", memory_max=GIB, memory_current=GIB, memory_stat=stat)
        assert container.free() == 3 * GIB // 4

    def test_a_path_of_the_host_names_nothing_here(self, tmp_path: Path) -> None:
        """A container with the host's namespace of groups sees its own group mounted, under a path that it cannot reach."""
        mounts = V2.replace(" / /sys", " /docker/1f /sys")
        for path in ("/docker/1f", "/../elsewhere"):
            container = Machine(tmp_path, cgroup=f"0::{path}", mounts=mounts)
            container.group("", memory_max=GIB, memory_current=0)
            assert container.free() == GIB


class TestVersion1:
    def test_each_controller_has_a_hierarchy(self, tmp_path: Path) -> None:
        container = Machine(tmp_path, cgroup="4:memory:/app\n3:cpu,cpuacct:/app\n1:name=systemd:/app\n0::/", mounts=V1)
        stat = f"inactive_file 5\ntotal_inactive_file {GIB // 4}\ntotal_active_file {GIB // 4}"
        container.group("memory/app", memory_limit_in_bytes=GIB, memory_usage_in_bytes=GIB, memory_stat=stat)
        container.group("cpu,cpuacct/app", cpu_cfs_quota_us=250000, cpu_cfs_period_us=100000)
        assert container.free() == GIB // 2
        assert container.cpus() == 2.5

    def test_no_limit_is_a_very_large_one(self, tmp_path: Path) -> None:
        container = Machine(tmp_path, cgroup="4:memory:/app\n3:cpu,cpuacct:/app", mounts=V1)
        container.group("memory/app", memory_limit_in_bytes=UNLIMITED, memory_usage_in_bytes=GIB)
        container.group("cpu,cpuacct/app", cpu_cfs_quota_us=-1, cpu_cfs_period_us=100000)
        assert container.free() == 64 * GIB
        assert container.cpus() is None

    def test_every_group_above_limits_too(self, tmp_path: Path) -> None:
        container = Machine(tmp_path, cgroup="4:memory:/pod/app\n0::/", mounts=f"{V1}\n{V2.replace('cgroup rw', 'cgroup/unified rw')}")
        container.group("memory/pod/app", memory_limit_in_bytes=UNLIMITED, memory_usage_in_bytes=0)
        container.group("memory/pod", memory_limit_in_bytes=2 * GIB, memory_usage_in_bytes=GIB)
        assert container.free() == GIB


@pytest.mark.parametrize("text", ["", "a lot", "-1", "12 GiB"])
def test_what_says_nothing_limits_nothing(text: str, tmp_path: Path) -> None:
    container = Machine(tmp_path, cgroup="0::/", mounts=V2)
    container.group("", memory_max=text, memory_current=text, memory_stat=text, cpu_max=text)
    assert container.free() == 64 * GIB
    assert container.cpus() is None
