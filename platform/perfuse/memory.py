"""Memory that this process may still take: of the machine, and of the containers (cgroups) that it runs in."""

import os
from collections.abc import Iterator
from pathlib import Path

LIMITS = {
    "": ("memory.max", "memory.current", ""),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}
"""By the controller of a line of /proc/self/cgroup (version 2 has one tree for all): files of limit and use, and how the numbers
of a group with those in it begin in memory.stat."""


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """The least of what the machine has and what each limit leaves; what only caches files is free."""
    return min([_of_machine(proc), *_of_containers(proc, cgroups)])


def _of_machine(proc: Path) -> int:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def _of_containers(proc: Path, cgroups: Path) -> Iterator[int]:
    """Of the group of this process and all that hold it; inside a container the container's own stands at the root."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        controller = "memory" if "memory" in names.split(",") else names
        if controller in LIMITS:
            root = cgroups / controller
            group = root / path.strip("/")
            for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
                yield from _left(folder, *LIMITS[controller])


def _left(group: Path, limit: str, use: str, stat: str) -> Iterator[int]:
    try:
        most, used = (group / limit).read_text().strip(), int((group / use).read_text())
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return
    if most != "max":
        cached = sum(int(counts[f"{stat}{which}_file"]) for which in ("active", "inactive"))
        yield max(0, int(most) - used + cached)
