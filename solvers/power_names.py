"""Names of racks in plans: those that are alike as one name with a range of numbers."""

from __future__ import annotations

import re

from solvers.power_case import Case, Integers

_RANGE = re.compile(r"\[(\d+)-(\d+)\]")


def unfolded(name: str) -> list[str]:
    """Return the names that one with ranges, such as ``row[0]/rack[0-9]``, stands for."""
    found = _RANGE.search(name)
    if found is None:
        return [name]
    first, last = int(found[1]), int(found[2])
    return [
        whole
        for number in range(first, last + 1)
        for whole in unfolded(f"{name[: found.start()]}[{number}]{name[found.end() :]}")
    ]


def folded(case: Case, placed: Integers) -> dict[str, dict[str, int]]:
    """Return the servers of every rack that has some; neighbours that are alike as one, with a range of numbers."""
    found: dict[str, dict[str, int]] = {}
    group: tuple[str, int, int, tuple[int, ...]] | None = None

    def close() -> None:
        if group is not None and any(group[3]):
            stem, first, last, row = group
            number = "" if first < 0 else f"[{first}]" if first == last else f"[{first}-{last}]"
            servers = {name: count for name, count in zip(case.workloads, row, strict=True) if count}
            found[stem + number] = servers

    for rack, node in enumerate(case.site.racks.tolist()):
        parts = re.fullmatch(r"(.*)\[(\d+)\]", case.site.name[node])
        stem, at = (parts[1], int(parts[2])) if parts else (case.site.name[node], -1)
        row = tuple(placed[rack].tolist())
        if group is not None and at >= 0 and group[0] == stem and group[2] == at - 1 and group[3] == row:
            group = (stem, group[1], at, row)
        else:
            close()
            group = (stem, at, at, row)
    close()
    return found
